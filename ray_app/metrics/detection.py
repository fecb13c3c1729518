"""Measure how well the scores or verdicts of a detector separate fakes from real images.

`measure_detection` returns all metrics of some images. `detection_figures` returns a few of them as
plain JSON, also for each generator. Fake is the positive class, and the default threshold is 0,
which is P(fake) > ½. `average_rates` computes means of a rate over generators. `measure_verdicts`
is for verdicts with abstentions. `build_classification_report` computes scikit-learn's
classification report from counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics import registry, uncertainty
from ray_app.metrics.arrays import Bools, Floats, check_scores
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
"""Metrics that can select a checkpoint, and whether more or less is better.

The last two are metrics of masks (ray_app.metrics.localization).
"""

# The highest ROC AUC at which labels may be swapped, and the minimum images of each class for this
# conclusion.
MAX_SWAPPED_AUC, MIN_PER_CLASS = 0.35, 10

NO_RANKING = "binary replies have no ranking; see balanced accuracy"
NO_PROBABILITY = "binary replies have no probabilities: their scores are two fixed values"

_NEED_BOTH = (
    "auc", "auc_interval", "average_precision", "mean_generator_auc", "worst_generator_auc",
    "tpr_at_fpr_1", "tpr_at_fpr_1_interval", "balanced_accuracy", "f1",
)  # fmt: skip


def measure_detection(
    images: ScoredImages, sample: Resampled | None = None, *, continuous: bool = True
) -> dict[str, MetricValue]:
    """Return the metrics of a detector or ensemble on some images, by the names in `DETECTION`.

    Args:
        images: The scored images.
        sample: The images, divided into groups. The jackknife leaves out one group at a time to
            compute intervals. If None, only proportions have an interval, which is exact.
        continuous: False for a detector that only replies yes or no. Metrics of rankings are then
            undefined and, without a calibration, also metrics of probabilities.

    Returns:
        The metrics by name, such as `auc` and `tpr`.
    """
    has_probabilities = continuous or images.calibration is not None
    metrics = {}
    for name in registry.DETECTION:
        needs = registry.METRICS[name].needs
        if needs == "scores" and not continuous:
            metrics[name] = undefined(NO_RANKING, len(images))
        elif needs == "probabilities" and not has_probabilities:
            metrics[name] = undefined(NO_PROBABILITY, len(images))
        else:
            metrics[name] = registry.measure(registry.METRICS[name], images, sample)
    return metrics


def detection_figures(
    scores: ArrayLike, labels: ArrayLike, generators: Sequence[str]
) -> dict[str, Any]:
    """Return all metrics of scores, on all images and by generator, as plain JSON.

    Proportions and AUCs have 95 % intervals [low, high] in keys of their own. `loss` is the mean
    cross-entropy of the log-odds. `mean_generator_auc` and `worst_generator_auc` are over the
    generators of fakes. A metric that needs both classes is None if a class is missing.

    Args:
        scores: Log-odds of fake (n,).
        labels: Labels (n,), 1 for fake and 0 for real.
        generators: The generator of each image (n,).

    Returns:
        The metrics by name. `generators` has for each name `n`, `label`, the AUC against all images
        of the other class, and the fraction classified correctly (`tpr` of fakes, `tnr` of reals).

    Raises:
        ValueError: A score is not finite, a label is neither 0 nor 1, the lengths differ, or there
            are no scores.
    """
    values, fake = check_scores(scores, labels)
    if len(generators) != len(values):
        raise ValueError(f"got {len(values):,} scores but {len(generators):,} generators")
    images = ScoredImages.from_scores(values, fake)
    by_generator = _measure_generators(values, fake, generators)
    metrics: dict[str, Any] = {"n_real": images.n_real, "n_fake": images.n_fake}
    metrics |= (
        _measure_all(images, by_generator)
        if images.n_fake and images.n_real
        else dict.fromkeys(_NEED_BOTH)
    )
    return metrics | {"loss": registry.log_loss(images), "generators": by_generator}


def ranks_backwards(auc: MetricValue, n_real: int, n_fake: int) -> bool:
    """Return whether a ROC AUC is so far below 0.5 that the labels may be swapped.

    The AUC must be at most `MAX_SWAPPED_AUC`. If it has an interval, the interval must end below
    0.5. With fewer than `MIN_PER_CLASS` images of a class, the result is False.

    Args:
        auc: The AUC.
        n_real: Number of real images.
        n_fake: Number of fakes.
    """
    if auc.value is None or auc.value > MAX_SWAPPED_AUC or min(n_real, n_fake) < MIN_PER_CLASS:
        return False
    interval = auc.interval
    return interval is None or interval[1] < 0.5


def _measure_all(
    images: ScoredImages, by_generator: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    auc = _measure("auc", images, Resampled.in_blocks(images))
    areas = [metrics["auc"] for metrics in by_generator.values() if metrics["label"] == "fake"]
    # With fewer than 100 reals, the threshold is above all of them.
    allowed = images.n_real // 100
    hits = round(registry.count_found(images, allowed))
    return {
        "auc": auc.value,
        "auc_interval": _interval_list(auc),
        "average_precision": registry.average_precision(images),
        "mean_generator_auc": float(np.mean(areas)),
        "worst_generator_auc": float(np.min(areas)),
        "tpr_at_fpr_1": hits / images.n_fake,
        "tpr_at_fpr_1_interval": list(uncertainty.proportion_interval(hits, images.n_fake)),
        "balanced_accuracy": registry.balanced_accuracy(images),
        "f1": registry.f1(images),
    }


def _measure_generators(
    scores: Floats, fake: Bools, generators: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return metrics by generator, against all images of the other class.

    A generator with real and fake images has two entries, named by label.
    """
    names, codes = np.unique(np.asarray(generators, dtype=object), return_inverse=True)
    metrics = {}
    groups = np.unique(2 * codes + fake)
    for group in groups.tolist():
        name, is_fake = str(names[group // 2]), bool(group % 2)
        is_own = (codes == group // 2) & (fake == is_fake)
        label, rate = ("fake", "tpr") if is_fake else ("real", "tnr")
        selected = is_own | (fake != is_fake)
        images = ScoredImages.from_scores(scores[selected], fake[selected])
        auc = _measure("auc", images, Resampled.in_blocks(images))
        right = _measure(rate, images)
        metrics[f"{name} ({label})" if group ^ 1 in groups else name] = {
            "n": int(is_own.sum()),
            "label": label,
            "auc": auc.value,
            "auc_interval": _interval_list(auc),
            rate: right.value,
            "interval": _interval_list(right),
        }
    return metrics


def _measure(name: str, images: ScoredImages, sample: Resampled | None = None) -> MetricValue:
    return registry.measure(registry.METRICS[name], images, sample)


def _interval_list(metric: MetricValue) -> list[float] | None:
    return list(metric.interval) if metric.interval else None


def average_rates(rates: Mapping[str, tuple[int, int]]) -> dict[str, MetricValue]:
    """Return two means of the true-positive rate (TPR) over generators.

    `tpr_mean` weighs every generator alike, `tpr_weighted` every image. OpenFake prints the first
    in version 1 and the second in version 2, both as "Average TPR".

    Args:
        rates: By generator, the number of fakes found, and the number of all its fakes. A generator
            without fakes is left out.
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
    """Numbers of labelled images by label and verdict, the input of `measure_verdicts`.

    The first part of a field's name is the label, and the second part is the verdict. For example,
    `fake_abstain` counts fakes with the verdict `abstain`. `unscored` images have no verdict, such
    as files that cannot be read.
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
        """The number of all fakes, and that of all real images, including unscored images."""
        return (
            self.fake_fake + self.fake_real + self.fake_abstain + self.fake_unscored,
            self.real_fake + self.real_real + self.real_abstain + self.real_unscored,
        )


def measure_verdicts(counts: VerdictCounts) -> dict[str, MetricValue]:
    """Return metrics of verdicts: how many images are decided, and how many of them correctly.

    `coverage` is the fraction of all images, including unscored ones, whose verdict is fake or
    real. Metrics that end in `_of_decided`, such as `tpr_of_decided`, are computed from images with
    these verdicts alone. For metrics that end in `_strict`, abstentions and unscored images count
    as wrong.
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


def build_classification_report(
    fake_fake: int, fake_real: int, real_fake: int, real_real: int
) -> dict[str, Any]:
    """Return scikit-learn's classification report (`output_dict=True`) from counts of images.

    `fake`, `real`, `macro avg`, and `weighted avg` have precision, recall, f1-score, and support;
    `accuracy` is one number. A value that would divide by 0 is None, and so is an average over it;
    scikit-learn writes 0.

    Args:
        fake_fake: Number of fakes called fake.
        fake_real: Number of fakes called real.
        real_fake: Number of reals called fake.
        real_real: Number of reals called real.
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


def _class_report(n_right: int, n_true: int, n_predicted: int) -> dict[str, Any]:
    f1 = _ratio(2 * n_right, n_true + n_predicted)
    return {
        "precision": _ratio(n_right, n_predicted),
        "recall": _ratio(n_right, n_true),
        "f1-score": f1,
        "support": n_true,
    }


def _average(
    fake: dict[str, Any], real: dict[str, Any], fake_weight: int, real_weight: int
) -> dict[str, Any]:
    """Return weighted averages; a class with weight 0 does not count."""
    parts = [
        (report, weight) for report, weight in ((fake, fake_weight), (real, real_weight)) if weight
    ]
    total = fake_weight + real_weight
    means = {
        key: None
        if not parts or any(report[key] is None for report, _ in parts)
        else sum(report[key] * weight for report, weight in parts) / total
        for key in ("precision", "recall", "f1-score")
    }
    return means | {"support": fake["support"] + real["support"]}


def _ratio(part: int, total: int) -> float | None:
    return part / total if total else None
