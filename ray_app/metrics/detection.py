"""Figures of detection: how well scores separate fake from real, as a whole (`detection_of`) and by generator (`detection_figures`).

Fake is the positive class, and 0 the threshold where none is given: P(fake) > ½.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ray_app.detectors.card import Calibration
from ray_app.metrics.arrays import Bools, Floats, MetricEstimate, ScoreHistogram, checked, undefined
from ray_app.metrics.calibration import brier_score, debiased_ece, log_loss
from ray_app.metrics.intervals import DELONG, auc_of, proportion_interval
from ray_app.metrics.operating_points import (
    ONE_CLASS,
    Confusion,
    average_precision,
    equal_error_rate,
    found_at_fpr,
    precision_at_prior,
    rates_at,
    tpr_at_fpr,
)

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
"""What can choose a checkpoint, and whether more of it is better. The last two are of masks (ray_app.metrics.localization)."""

RANKING = ("auc", "average_precision", "eer", "tpr_at_fpr_1", "tpr_at_fpr_01")
"""The figures that need scores which rank images."""

NO_RANKING = "binary replies have no ranking; see balanced accuracy"
NO_CHANCE = "binary replies give no chances: their scores are two agreed numbers"

_NEED_BOTH = (
    "auc", "auc_interval", "average_precision", "mean_generator_auc", "worst_generator_auc",
    "tpr_at_fpr_1", "tpr_at_fpr_1_interval", "balanced_accuracy", "f1",
)  # fmt: skip


def detection_of(
    fakes: ScoreHistogram,
    reals: ScoreHistogram,
    *,
    threshold: float = 0.0,
    strict: bool = True,
    continuous: bool = True,
    calibration: Calibration | None = None,
) -> dict[str, MetricEstimate]:
    """All figures of detection from the scores (log-odds of fake) of either class; `_01`, `_1`, `_10` in names: at 0.1 %, 1 % and 10 %.

    Fake is what scores above `threshold`, or, unless `strict`, at it. `continuous`: False for a detector that only says yes or no, whose
    scores rank nothing and, without a calibration, are no chances. `calibration` makes chances of scores, for log-loss, Brier score and
    ECE; it does not move the threshold.
    Rates have Clopper–Pearson intervals, the AUC DeLong's; the others need a bootstrap (ray_app.metrics.intervals) and have none here.
    A figure that is not defined has its reason. Raises ValueError for a threshold that is not finite.
    """
    if not math.isfinite(threshold):
        raise ValueError(f"a threshold is a finite number, not {threshold}")
    counts = Confusion.at(fakes, reals, threshold, strict)
    ranking = _ranking(fakes, reals) if continuous else {name: undefined(NO_RANKING, counts.n) for name in RANKING}
    chances = {"log_loss": log_loss, "brier": brier_score, "ece": debiased_ece}
    has_chances = continuous or calibration is not None
    return {
        **rates_at(counts),
        **ranking,
        **{name: of(fakes, reals, calibration) if has_chances else undefined(NO_CHANCE, counts.n) for name, of in chances.items()},
        "precision_at_prior_01": precision_at_prior(counts, 0.001),
        "precision_at_prior_1": precision_at_prior(counts, 0.01),
        "precision_at_prior_10": precision_at_prior(counts, 0.1),
    }


def detection_figures(scores: ArrayLike, labels: ArrayLike, generators: Sequence[str]) -> dict[str, Any]:
    """All figures of scores (n,), log-odds of fake, with labels (n,), 1 = fake, and the generator of each, as plain JSON.

    Proportions and AUCs have 95 % intervals [low, high] beside them. `loss` is the mean cross-entropy of the log-odds. `generators`: by
    name n, label, the AUC against all images of the other class, and the share classified right (`tpr` of fakes, `tnr` of reals);
    `mean_generator_auc` and `worst_generator_auc` are over the fakes' generators. A figure that needs both classes is None with one.
    Raises ValueError for scores that are not finite, labels other than 0 and 1, lengths that differ, and no scores at all.
    """
    numbers, fake = checked(scores, labels)
    if len(generators) != len(numbers):
        raise ValueError(f"{len(numbers):,} scores but {len(generators):,} generators")
    by_generator = _by_generator(numbers, fake, generators)
    fakes, reals = ScoreHistogram.of(numbers[fake]), ScoreHistogram.of(numbers[~fake])
    figures: dict[str, Any] = {"n_real": reals.n, "n_fake": fakes.n}
    figures |= _overall(fakes, reals, by_generator) if fakes.n and reals.n else dict.fromkeys(_NEED_BOTH)
    return figures | {"loss": log_loss(fakes, reals).value, "generators": by_generator}


def auc_figure(fakes: ScoreHistogram, reals: ScoreHistogram) -> MetricEstimate:
    """The AUC with DeLong's interval; not defined with one class."""
    n = fakes.n + reals.n
    if not fakes.n or not reals.n:
        return undefined(ONE_CLASS, n)
    auc = auc_of(fakes, reals)
    return MetricEstimate(auc.value, (auc.low, auc.high), DELONG, n)


def _ranking(fakes: ScoreHistogram, reals: ScoreHistogram) -> dict[str, MetricEstimate]:
    n, both = fakes.n + reals.n, fakes.n and reals.n
    return {
        "auc": auc_figure(fakes, reals),
        "average_precision": MetricEstimate(average_precision(fakes, reals), n=n) if both else undefined(ONE_CLASS, n),
        "eer": equal_error_rate(fakes, reals),
        "tpr_at_fpr_1": tpr_at_fpr(fakes, reals, 100),
        "tpr_at_fpr_01": tpr_at_fpr(fakes, reals, 1000),
    }


def _overall(fakes: ScoreHistogram, reals: ScoreHistogram, by_generator: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    auc, rates = auc_of(fakes, reals), rates_at(Confusion.at(fakes, reals, 0.0))
    areas = [figures["auc"] for figures in by_generator.values() if figures["label"] == "fake"]
    found = found_at_fpr(fakes, reals, 100)
    return {
        "auc": auc.value,
        "auc_interval": [auc.low, auc.high],
        "average_precision": average_precision(fakes, reals),
        "mean_generator_auc": float(np.mean(areas)),
        "worst_generator_auc": float(np.min(areas)),
        "tpr_at_fpr_1": found / fakes.n,
        "tpr_at_fpr_1_interval": list(proportion_interval(found, fakes.n)),
        "balanced_accuracy": rates["balanced_accuracy"].value,
        "f1": rates["f1"].value,
    }


def _by_generator(scores: Floats, fake: Bools, generators: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Figures by generator, in order of name; one that has real and fake images is two, named by the label."""
    names, codes = np.unique(np.asarray(generators, dtype=object), return_inverse=True)
    groups, members = np.unique(2 * codes + fake, return_inverse=True)
    pieces = np.split(scores[np.argsort(members, kind="stable")], np.cumsum(np.bincount(members))[:-1])
    # Seen from the other end, with every sign turned, a real is to the fakes what a fake is to the reals.
    others = {True: ScoreHistogram.of(scores[~fake]), False: ScoreHistogram.of(-scores[fake])}
    figures = {}
    for group, piece in zip(groups, pieces, strict=True):
        name, is_fake = str(names[group // 2]), bool(group % 2)
        label = "fake" if is_fake else "real"
        mixed = group ^ 1 in groups
        figures[f"{name} ({label})" if mixed else name] = _of_group(piece if is_fake else -piece, others[is_fake], label)
    return figures


def _of_group(towards: Floats, others: ScoreHistogram, label: str) -> dict[str, Any]:
    """Figures of one generator's images, from scores that rise towards its own label, against all others, turned likewise."""
    own = ScoreHistogram.of(towards)
    right = own.above(0) if label == "fake" else own.at_or_above(0)
    auc = auc_of(own, others) if others.n else None
    return {
        "n": len(towards),
        "label": label,
        "auc": auc.value if auc else None,
        "auc_interval": [auc.low, auc.high] if auc else None,
        "tpr" if label == "fake" else "tnr": right / len(towards),
        "interval": list(proportion_interval(right, len(towards))),
    }
