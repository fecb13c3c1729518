"""Figures of detection: how well scores tell fake from real, as a whole and generator by generator.

Knows log-odds, labels and generators' names; knows no images and no training. Fake is the positive class, and 0 the threshold where one
is needed: P(fake) > ½.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.arrays import Bools, Floats, checked
from ray_app.metrics.intervals import auc_of, proportion_interval

FIGURES: Mapping[str, Literal["max", "min"]] = MappingProxyType(
    {
        "auc": "max",
        "average_precision": "max",
        "mean_generator_auc": "max",
        "worst_generator_auc": "max",
        "tpr_at_fpr_1": "max",
        "balanced_accuracy": "max",
        "f1": "max",
        "loss": "min",
        "pixel_f1": "max",
        "pixel_iou": "max",
    }
)
"""What can choose a checkpoint, and whether more of it is better. The last two are of masks (ray_app.metrics.pixels)."""

_NEED_BOTH = (
    "auc", "auc_interval", "average_precision", "mean_generator_auc", "worst_generator_auc",
    "tpr_at_fpr_1", "tpr_at_fpr_1_interval", "balanced_accuracy", "f1",
)  # fmt: skip


def detection_figures(scores: ArrayLike, labels: ArrayLike, generators: Sequence[str]) -> dict[str, Any]:
    """All figures of scores (n,), log-odds of fake, with labels (n,), 1 = fake, and the generator of each, as plain JSON.

    Proportions and AUCs have 95 % intervals [low, high] beside them. `loss` is the mean cross-entropy of the log-odds. `generators`: by
    name n, label, the AUC against all images of the other class, and the share told right (`tpr` of fakes, `tnr` of reals);
    `mean_generator_auc` and `worst_generator_auc` are over the fakes' generators. A figure that needs both classes is None with one.
    Raises ValueError for scores that are not finite, labels other than 0 and 1, lengths that differ, and no scores at all.
    """
    numbers, fake = checked(scores, labels)
    if len(generators) != len(numbers):
        raise ValueError(f"{len(numbers):,} scores but {len(generators):,} generators")
    by_generator = _by_generator(numbers, fake, generators)
    figures: dict[str, Any] = {"n_real": int((~fake).sum()), "n_fake": int(fake.sum())}
    figures |= _overall(numbers, fake, by_generator) if 0 < figures["n_fake"] < len(fake) else dict.fromkeys(_NEED_BOTH)
    figures["loss"] = float(np.logaddexp(0, np.where(fake, -numbers, numbers)).mean())
    return figures | {"generators": by_generator}


def _overall(scores: Floats, fake: Bools, by_generator: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    fakes, reals = scores[fake], np.sort(scores[~fake])
    auc = auc_of(fakes, reals)
    areas = [figures["auc"] for figures in by_generator.values() if figures["label"] == "fake"]
    # Above the first real that is one too many for 1 %: no more reals than that are flagged, whatever the ties.
    found = int((fakes > reals[len(reals) - 1 - len(reals) // 100]).sum())
    tpr, tnr = (fakes > 0).mean(), (reals <= 0).mean()
    return {
        "auc": auc.value,
        "auc_interval": [auc.low, auc.high],
        "average_precision": _average_precision(fakes, reals),
        "mean_generator_auc": float(np.mean(areas)),
        "worst_generator_auc": float(np.min(areas)),
        "tpr_at_fpr_1": found / len(fakes),
        "tpr_at_fpr_1_interval": list(proportion_interval(found, len(fakes))),
        "balanced_accuracy": float(tpr + tnr) / 2,
        "f1": float(2 * (fakes > 0).sum() / (len(fakes) + (scores > 0).sum())),
    }


def _average_precision(fakes: Floats, sorted_reals: Floats) -> float:
    """The share of fakes among all that score at least as high, averaged over the fakes: precision over recall, without interpolation."""
    values, counts = np.unique(fakes, return_counts=True)
    found = counts[::-1].cumsum()[::-1]
    flagged = found + len(sorted_reals) - np.searchsorted(sorted_reals, values, "left")
    return float(counts @ (found / flagged)) / len(fakes)


def _by_generator(scores: Floats, fake: Bools, generators: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Figures by generator, in order of name; one that has real and fake images is two, told apart by the label."""
    names, codes = np.unique(np.asarray(generators, dtype=object), return_inverse=True)
    groups, members = np.unique(2 * codes + fake, return_inverse=True)
    pieces = np.split(scores[np.argsort(members, kind="stable")], np.cumsum(np.bincount(members))[:-1])
    # Seen from the other end, with every sign turned, a real is to the fakes what a fake is to the reals.
    others = {True: np.sort(scores[~fake]), False: np.sort(-scores[fake])}
    figures = {}
    for group, piece in zip(groups, pieces, strict=True):
        name, is_fake = str(names[group // 2]), bool(group % 2)
        label = "fake" if is_fake else "real"
        mixed = group ^ 1 in groups
        figures[f"{name} ({label})" if mixed else name] = _of_group(piece if is_fake else -piece, others[is_fake], label)
    return figures


def _of_group(towards: Floats, others: Floats, label: str) -> dict[str, Any]:
    """Figures of one generator's images, from scores that rise towards its own label, against all others, sorted likewise."""
    right = int((towards > 0).sum() if label == "fake" else (towards >= 0).sum())
    auc = auc_of(towards, others) if len(others) else None
    return {
        "n": len(towards),
        "label": label,
        "auc": auc.value if auc else None,
        "auc_interval": [auc.low, auc.high] if auc else None,
        "tpr" if label == "fake" else "tnr": right / len(towards),
        "interval": list(proportion_interval(right, len(towards))),
    }
