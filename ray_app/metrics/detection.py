"""Figures of detection: how well scores separate fake from real, as a whole (`detection_of`) and by
generator (`detection_figures`).

Fake is the positive class, and 0 the threshold where none is given: P(fake) > ½.

Also the means of a rate over generators (`averages`), metrics of verdicts with abstentions
(`abstaining`), and scikit-learn's classification report from counts (`classification_report`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics import registry, uncertainty
from ray_app.metrics.arrays import Bools, Floats, checked
from ray_app.metrics.intervals import proportion
from ray_app.metrics.registry import (
    NO_FAKES,
    NO_IMAGES,
    NO_REALS,
    ONE_CLASS,
    Resampled,
    ScoredImages,
)
from ray_app.metrics.values import MetricValue, undefined

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
"""What can choose a checkpoint, and whether more of it is better. The last two are of masks
(ray_app.metrics.localization).
"""

# of a ROC AUC, and the images of each class that it takes to say so
FAR_BELOW_HALF, MIN_PER_CLASS = 0.35, 10

NO_RANKING = "binary replies have no ranking; see balanced accuracy"
NO_CHANCE = "binary replies give no chances: their scores are two agreed numbers"

_NEED_BOTH = (
    "auc", "auc_interval", "average_precision", "mean_generator_auc", "worst_generator_auc",
    "tpr_at_fpr_1", "tpr_at_fpr_1_interval", "balanced_accuracy", "f1",
)  # fmt: skip


def detection_of(
    images: ScoredImages, sample: Resampled | None = None, *, continuous: bool = True
) -> dict[str, MetricValue]:
    """Return all metrics of a system as a whole.

    Args:
        images: The images that the metrics are of.
        sample: The groups that intervals are worked out from; None for exact intervals only.
        continuous: False for a detector that only says yes or no. Its scores rank nothing and,
            without a calibration, are no probabilities.
    """
    has_probabilities = continuous or images.calibration is not None
    found = {}
    for name in registry.DETECTION:
        needs = registry.METRICS[name].needs
        if needs == "scores" and not continuous:
            found[name] = undefined(NO_RANKING, len(images))
        elif needs == "probabilities" and not has_probabilities:
            found[name] = undefined(NO_CHANCE, len(images))
        else:
            found[name] = registry.measure(registry.METRICS[name], images, sample)
    return found


def detection_figures(
    scores: ArrayLike, labels: ArrayLike, generators: Sequence[str]
) -> dict[str, Any]:
    """All figures of scores (n,), log-odds of fake, with labels (n,), 1 = fake, and the generator
    of each, as plain JSON.

    Proportions and AUCs have 95 % intervals [low, high] beside them. `loss` is the mean
    cross-entropy of the log-odds. `generators`: by name n, label, the AUC against all images of the
    other class, and the share classified right (`tpr` of fakes, `tnr` of reals);
    `mean_generator_auc` and `worst_generator_auc` are over the fakes' generators. A figure that
    needs both classes is None with one. Raises ValueError for scores that are not finite, labels
    other than 0 and 1, lengths that differ, and no scores at all.
    """
    numbers, fake = checked(scores, labels)
    if len(generators) != len(numbers):
        raise ValueError(f"{len(numbers):,} scores but {len(generators):,} generators")
    images = ScoredImages.from_scores(numbers, fake)
    by_generator = _by_generator(numbers, fake, generators)
    figures: dict[str, Any] = {"n_real": images.n_real, "n_fake": images.n_fake}
    figures |= (
        _overall(images, by_generator)
        if images.n_fake and images.n_real
        else dict.fromkeys(_NEED_BOTH)
    )
    return figures | {"loss": registry.log_loss(images), "generators": by_generator}


def ranks_backwards(auc: MetricValue, n_real: int, n_fake: int) -> bool:
    """Return whether a ROC AUC is so far below 0.5 that the labels may be swapped, on enough images
    of both classes.
    """
    if auc.value is None or auc.value > FAR_BELOW_HALF or min(n_real, n_fake) < MIN_PER_CLASS:
        return False
    ends = auc.interval
    return ends is None or ends[1] < 0.5


def _overall(images: ScoredImages, by_generator: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    auc = _measured("auc", images, Resampled.in_blocks(images))
    areas = [figures["auc"] for figures in by_generator.values() if figures["label"] == "fake"]
    # With fewer than 100 reals the threshold is above all of them.
    allowed = images.n_real // 100
    hits = round(registry.found_at(images, allowed))
    return {
        "auc": auc.value,
        "auc_interval": _ends(auc),
        "average_precision": registry.average_precision(images),
        "mean_generator_auc": float(np.mean(areas)),
        "worst_generator_auc": float(np.min(areas)),
        "tpr_at_fpr_1": hits / images.n_fake,
        "tpr_at_fpr_1_interval": list(uncertainty.proportion_interval(hits, images.n_fake)),
        "balanced_accuracy": registry.balanced_accuracy(images),
        "f1": registry.f1(images),
    }


def _by_generator(
    scores: Floats, fake: Bools, generators: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Figures by generator against all images of the other class, by name; one with real and fake
    images is two, named by label.
    """
    names, codes = np.unique(np.asarray(generators, dtype=object), return_inverse=True)
    figures = {}
    groups = np.unique(2 * codes + fake)
    for group in groups.tolist():
        name, is_fake = str(names[group // 2]), bool(group % 2)
        own = (codes == group // 2) & (fake == is_fake)
        label, rate = ("fake", "tpr") if is_fake else ("real", "tnr")
        chosen = own | (fake != is_fake)
        images = ScoredImages.from_scores(scores[chosen], fake[chosen])
        auc = _measured("auc", images, Resampled.in_blocks(images))
        right = _measured(rate, images)
        figures[f"{name} ({label})" if group ^ 1 in groups else name] = {
            "n": int(own.sum()),
            "label": label,
            "auc": auc.value,
            "auc_interval": _ends(auc),
            rate: right.value,
            "interval": _ends(right),
        }
    return figures


def _measured(name: str, images: ScoredImages, sample: Resampled | None = None) -> MetricValue:
    return registry.measure(registry.METRICS[name], images, sample)


def _ends(found: MetricValue) -> list[float] | None:
    return list(found.interval) if found.interval else None


def averages(rates: Mapping[str, tuple[int, int]]) -> dict[str, MetricValue]:
    """Return two means of the TPR over generators.

    `tpr_mean` weighs every generator alike, `tpr_weighted` every image. OpenFake v1 prints the first
    and v2 the second, both as "Average TPR" (specs/detectors.md §11).

    Args:
        rates: By generator, the fakes found and the fakes that there are. A generator without fakes
            is left out.
    """
    measured = [(hits, n) for hits, n in rates.values() if n]
    total = sum(n for _, n in measured)
    mean = (
        MetricValue(value=sum(hits / n for hits, n in measured) / len(measured), n=total)
        if measured
        else undefined(NO_FAKES)
    )
    return {
        "tpr_mean": mean,
        "tpr_weighted": proportion(sum(hits for hits, _ in measured), total, NO_FAKES),
    }


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """Images by what they are and, behind it, their verdict; `unscored`: those without one, such as
    files that cannot be read.
    """

    fake_fake: int = 0
    fake_real: int = 0
    fake_abstain: int = 0
    real_fake: int = 0
    real_real: int = 0
    real_abstain: int = 0
    fake_unscored: int = 0
    real_unscored: int = 0

    @property
    def totals(self) -> tuple[int, int]:
        """Number of fakes and of reals."""
        return (
            self.fake_fake + self.fake_real + self.fake_abstain + self.fake_unscored,
            self.real_fake + self.real_real + self.real_abstain + self.real_unscored,
        )


def abstaining(counts: VerdictCounts) -> dict[str, MetricValue]:
    """How many images are decided and how well, and the same with abstentions and unscored images
    counted wrong (`_strict`).

    `coverage` is the share of all images, unscored ones among them, whose verdict is fake or real.
    """
    fakes_decided, reals_decided = (
        counts.fake_fake + counts.fake_real,
        counts.real_fake + counts.real_real,
    )
    fakes = fakes_decided + counts.fake_abstain + counts.fake_unscored
    reals = reals_decided + counts.real_abstain + counts.real_unscored
    right, decided, n = (
        counts.fake_fake + counts.real_real,
        fakes_decided + reals_decided,
        fakes + reals,
    )
    balanced = (
        MetricValue(value=(counts.fake_fake / fakes + counts.real_real / reals) / 2, n=n)
        if fakes and reals
        else undefined(ONE_CLASS, n)
    )
    return {
        "coverage": proportion(decided, n, NO_IMAGES),
        "accuracy_of_decided": proportion(right, decided, "no image is decided"),
        "tpr_of_decided": proportion(
            counts.fake_fake,
            fakes_decided,
            "no fake is decided" if fakes else NO_FAKES,
        ),
        "tnr_of_decided": proportion(
            counts.real_real,
            reals_decided,
            "no real is decided" if reals else NO_REALS,
        ),
        "accuracy_strict": proportion(right, n, NO_IMAGES),
        "balanced_accuracy_strict": balanced,
        "tpr_strict": proportion(counts.fake_fake, fakes, NO_FAKES),
        "tnr_strict": proportion(counts.real_real, reals, NO_REALS),
    }


def classification_report(
    fake_fake: int, fake_real: int, real_fake: int, real_real: int
) -> dict[str, Any]:
    """scikit-learn's report (`output_dict=True`) from counts of images, by truth and then verdict.

    Under `fake`, `real`, `macro avg` and `weighted avg` stand precision, recall, f1-score and
    support; `accuracy` is one number. What would divide by 0 is None, and so is an average of it,
    where scikit-learn writes 0.
    """
    fake = _class_report(fake_fake, fake_fake + fake_real, fake_fake + real_fake)
    real = _class_report(real_real, real_real + real_fake, real_real + fake_real)
    return {
        "fake": fake,
        "real": real,
        "accuracy": _ratio(fake_fake + real_real, fake_fake + fake_real + real_fake + real_real),
        "macro avg": _average(fake, real, 1, 1),
        "weighted avg": _average(fake, real, fake["support"], real["support"]),
    }


def _class_report(right: int, there: int, named: int) -> dict[str, Any]:
    f1 = _ratio(2 * right, there + named)
    return {
        "precision": _ratio(right, named),
        "recall": _ratio(right, there),
        "f1-score": f1,
        "support": there,
    }


def _average(
    fake: dict[str, Any], real: dict[str, Any], fake_weight: int, real_weight: int
) -> dict[str, Any]:
    """Averages by weight; a class of no weight does not count."""
    parts = [(one, weight) for one, weight in ((fake, fake_weight), (real, real_weight)) if weight]
    total = fake_weight + real_weight
    means = {
        key: None
        if not parts or any(one[key] is None for one, _ in parts)
        else sum(one[key] * weight for one, weight in parts) / total
        for key in ("precision", "recall", "f1-score")
    }
    return means | {"support": fake["support"] + real["support"]}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
