"""Define the metrics of an evaluation (`METRICS`), and compute them with intervals (`measure`).

A metric is a function of `ScoredImages`, which have scores and true classes. To add a metric, add
an entry to `METRICS`. Tables, JSON, CSV, pages, and the terminal then list it. Fake is the positive
class.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ray_app.metrics import uncertainty
from ray_app.metrics.arrays import Bools, Floats
from ray_app.metrics.uncertainty import Interval, Replicates, Stratum
from ray_app.metrics.values import MetricValue

if TYPE_CHECKING:
    from ray_app.detectors.card import Platt

NO_FAKES, NO_REALS, ONE_CLASS, NO_IMAGES = (
    "there are no fakes",
    "there are no reals",
    "it needs real and fake images",
    "there are no images",
)
NOTHING_FLAGGED = "no image is flagged as fake"
WOODRUFF = "woodruff"
MIN_FOR_ECE = 100
MIN_FOR_EER = 50
"""With fewer images of a class, the equal error rate moves in steps that the jackknife misses."""
MAX_RESAMPLED = 5_000
"""Maximum images of a class for random blocks. If there are more, every k-th by score is used."""
ECE_BINS = 15
_LARGEST = np.finfo(np.float64).max
# Probability beyond each end of each of two rates, so that both hold with 95 % or more.
_EACH_OF_TWO = 0.0125


class UndefinedError(ValueError):
    """Raised if a metric has no value for the given images, such as a TPR without fakes.

    Args:
        reason: Reason for the missing value, which is also the message of the error.
        n: Number of images.
    """

    def __init__(self, reason: str, n: int = 0) -> None:
        super().__init__(reason)
        self.n = n


class Curve(NamedTuple):
    """Numbers of images at or above each distinct score, from which ROC and similar curves follow.

    The order is from the highest score down.

    Attributes:
        true_positives: Number of fakes that score at least as high as each threshold.
        false_positives: Number of reals that score at least as high as each threshold.
        thresholds: The distinct scores.
    """

    true_positives: Floats
    false_positives: Floats
    thresholds: Floats


def descending_order(scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the indices (n,) of scores from the highest down. Equal scores keep their order.

    A float32 score and its index form one 64-bit key: the bits of the score, changed so that they
    ascend as scores descend, followed by the index. Sorting the keys takes a fifth of the time of
    the stable sorts of NumPy and pyarrow.
    """
    if scores.dtype != np.float32 or np.isnan(scores).any():
        return np.argsort(-scores, kind="stable")
    bits = (scores + np.float32(0)).view(np.uint32)  # The sum turns -0 into +0.
    sign = np.uint32(1 << 31)
    keys = np.where(bits & sign, bits, ~(bits | sign)).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(scores), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(2**32 - 1)).astype(np.int64)


@dataclass(frozen=True)
class ScoredImages:
    """Images of known class with scores (log-odds of fake), sorted from the highest score down.

    Attributes:
        scores: Scores (n,) in descending order.
        is_fake: The class of each image (n,).
        threshold: Scores above it are fake.
        strict: If False, scores equal to the threshold are also fake.
        calibration: Turns scores into probabilities. It does not move the threshold.
    """

    scores: npt.NDArray[np.floating[Any]]
    is_fake: Bools
    threshold: float = 0.0
    strict: bool = True
    calibration: "Platt | None" = None

    @classmethod
    def from_scores(cls, scores: Any, is_fake: Any, **cut: Any) -> "ScoredImages":
        """Return scored images from scores (n,) in any order.

        Args:
            scores: Scores (n,).
            is_fake: The class of each image (n,).
            **cut: `threshold`, `strict`, and `calibration`, as in the attributes of the class.
        """
        values = np.asarray(scores)
        order = descending_order(values)
        return cls(values[order], np.asarray(is_fake, np.bool_)[order], **cut)

    @property
    def cut(self) -> dict[str, Any]:
        """The attributes `threshold`, `strict`, and `calibration` by name, for `from_scores`."""
        return {"threshold": self.threshold, "strict": self.strict, "calibration": self.calibration}

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, selection: Any) -> "ScoredImages":
        """Return the images that a mask or ascending indices select."""
        indices = np.asarray(selection)
        if indices.dtype == np.bool_:
            indices = np.flatnonzero(indices)  # Six times as fast as two selections by a mask.
        return ScoredImages(self.scores[indices], self.is_fake[indices], **self.cut)

    @cached_property
    def n_fake(self) -> int:
        """Number of fakes."""
        return int(np.count_nonzero(self.is_fake))

    @property
    def n_real(self) -> int:
        """Number of real images."""
        return len(self) - self.n_fake

    @cached_property
    def flagged(self) -> Bools:
        """Whether each image is on the fake side of the threshold."""
        flagged: Bools = (
            self.scores > self.threshold if self.strict else self.scores >= self.threshold
        )
        return flagged

    @cached_property
    def true_positives(self) -> int:
        """Number of fakes that are flagged."""
        return int(np.count_nonzero(self.flagged & self.is_fake))

    @cached_property
    def false_positives(self) -> int:
        """Number of reals that are flagged."""
        return int(np.count_nonzero(self.flagged)) - self.true_positives

    @cached_property
    def curve(self) -> Curve:
        """The numbers of fakes and of real images at or above each distinct score.

        The counts equal those of `sklearn.metrics.confusion_matrix_at_thresholds`. Because the
        scores are sorted, computing them is 15 times faster.
        """
        if not len(self):
            return Curve(np.empty(0), np.empty(0), np.empty(0))
        last_indices = np.append(np.flatnonzero(self.scores[1:] != self.scores[:-1]), len(self) - 1)
        hits = np.cumsum(self.is_fake)[last_indices].astype(np.float64)
        return Curve(hits, last_indices + 1.0 - hits, self.scores[last_indices].astype(np.float64))

    @cached_property
    def log_odds(self) -> Floats:
        """The calibrated log-odds of each image."""
        values = self.scores.astype(np.float64)
        if self.calibration is None:
            return values
        with np.errstate(over="ignore"):
            return np.clip(self.calibration(values), -_LARGEST, _LARGEST)

    @cached_property
    def probabilities(self) -> Floats:
        """The calibrated probability of fake of each image."""
        from scipy.special import expit

        probabilities: Floats = expit(self.log_odds)
        return probabilities

    def require_both(self) -> None:
        """Check that there are real and fake images.

        Raises:
            UndefinedError: A class is missing.
        """
        if not self.n_fake or not self.n_real:
            raise UndefinedError(ONE_CLASS, len(self))


@dataclass(frozen=True)
class Resampled:
    """Scored images in groups, of which the jackknife leaves out one at a time for intervals.

    The groups are images of one generator or source, or random blocks. If there are many images,
    only a sample of them is kept.

    Attributes:
        images: The images, or the sample of them.
        fakes: The groups of the fakes, with the group of each fake in the order of `images`.
        reals: The groups of the real images, with the group of each one in the order of `images`.
    """

    images: ScoredImages
    fakes: Stratum
    reals: Stratum

    @property
    def is_grouped(self) -> bool:
        """Whether the fakes or the real images are grouped by name, not in random blocks."""
        return self.fakes.is_grouped or self.reals.is_grouped

    @property
    def strata(self) -> list[tuple[Stratum, Bools]]:
        """The groups of each class that has images, with a mask (n,) of its images.

        The entry for fakes comes before that for real images.
        """
        both = [(self.fakes, self.images.is_fake), (self.reals, ~self.images.is_fake)]
        return [(stratum, mask) for stratum, mask in both if len(stratum.codes)]

    @cached_property
    def leave_one_out(self) -> list[tuple[Floats, float, list[ScoredImages]]]:
        """The images without each group, from which jackknife replicates are computed.

        There is one tuple for each class that has images, fakes first:

        - The size of each group, as a fraction of the images of the class (groups,).
        - The factor `Stratum.scale` for the variance of metrics, which is below 1 for random blocks
          of a sample.
        - For each group, the images of both classes without this group.
        """
        entries = []
        for stratum, mask in self.strata:
            codes = np.full(len(self.images), -1)
            codes[mask] = stratum.codes
            fractions = np.bincount(stratum.codes, minlength=stratum.groups) / len(stratum.codes)
            parts = [self.images.select(codes != group) for group in range(stratum.groups)]
            entries.append((fractions, stratum.scale, parts))
        return entries

    @staticmethod
    def in_groups(
        scores: Any,
        is_fake: Bools,
        names: npt.NDArray[np.object_] | None,
        *,
        totals: tuple[int, int] | None = None,
        seed: int = 0,
        **cut: Any,
    ) -> "Resampled":
        """Return scored images in groups by name, or in random blocks, for the jackknife.

        If a class has too few names, its images are cut into random blocks. Groups do not depend on
        scores, so two detectors get equal groups for the same images in the same order.

        Args:
            scores: Scores (n,) in any order.
            is_fake: The class of each image (n,).
            names: The generator of a fake and the source of a real image (n,); None for random
                blocks.
            totals: Numbers of fakes and reals from which the images were sampled; None if they are
                not a sample.
            seed: Seed of the random blocks.
            **cut: `threshold`, `strict`, and `calibration`, as in the attributes of `ScoredImages`.

        Returns:
            The images, sorted by score, with the group of each image.
        """
        order = descending_order(scores)
        strata = []
        for mask, n in zip((is_fake, ~is_fake), totals or (None, None), strict=True):
            stratum = uncertainty.make_stratum(
                int(mask.sum()), None if names is None else names[mask], n, seed
            )
            codes = np.zeros(len(scores), np.int64)
            codes[mask] = stratum.codes
            strata.append(stratum._replace(codes=codes[order][mask[order]]))
        return Resampled(ScoredImages(scores[order], is_fake[order], **cut), *strata)

    @staticmethod
    def in_blocks(images: ScoredImages, seed: int = 0) -> "Resampled":
        """Return images in random blocks, for the jackknife.

        If a class has more than MAX_RESAMPLED images, only every k-th image by score is used.

        Args:
            images: The images.
            seed: Seed of the random blocks.

        Returns:
            The images, or the sample of them, with the block of each image.
        """
        indices = [np.flatnonzero(images.is_fake == kind) for kind in (True, False)]
        thinned = [index[:: max(1, math.ceil(len(index) / MAX_RESAMPLED))] for index in indices]
        strata = [
            uncertainty.make_stratum(len(subset), None, len(index), seed)
            for subset, index in zip(thinned, indices, strict=True)
        ]
        selected = np.sort(np.concatenate(thinned))
        return Resampled(images.select(selected), *strata)


@dataclass(frozen=True)
class Metric:
    """The definition of a metric: its name and meaning, its value, and its 95 % interval.

    By default, the interval is computed by the jackknife, which leaves out one group of images at a
    time.

    Attributes:
        name: Key in documents, such as `auc`.
        title: Name on pages and in the terminal.
        sentence: Meaning of the metric.
        is_share: Whether the value is shown in per cent.
        direction: Whether higher (`max`) or lower (`min`) values are better.
        needs: The input that the metric is computed from. A metric that needs `scores` ranks images
            by score, and is undefined for a detector that only replies yes or no.
        value: Computes the value. It raises `UndefinedError` with the reason if there is no value.
        outcomes: For a proportion, such as the TPR, returns two masks: the images that are hits,
            and the images that count. `value` is then not needed.
        of_both: Whether a proportion, such as the accuracy, is over images of both classes. If
            images are grouped by generator or source, its interval is then that of the jackknife,
            not the exact interval of a proportion.
        scale: Transformation of the values for the jackknife. `logit` is for values from 0 to 1,
            `log` for values above 0, and `plain` for no transformation. The transformation keeps
            intervals in this range.
        interval: Computes the interval of this metric instead of the jackknife.
        method: Name of the method of the interval, to be shown.
        min_per_class: Minimum number of images of each class for an interval.
        min_images: Minimum number of images for a value.
        leave_out: Computes all jackknife replicates, which are the values without each group, in a
            faster way. None to call `value` or `outcomes` for the images without each group.
    """

    name: str
    title: str
    sentence: str
    is_share: bool = True
    direction: Literal["max", "min"] = "max"
    needs: Literal["scores", "threshold", "probabilities", "verdicts", "masks"] = "threshold"
    value: Callable[[ScoredImages], float] | None = None
    outcomes: Callable[[ScoredImages], tuple[Bools, Bools]] | None = None
    of_both: bool = False
    scale: uncertainty.Scale = "logit"
    interval: "Callable[[ScoredImages, float, Resampled], Interval | None] | None" = None
    method: str = uncertainty.JACKKNIFE
    min_per_class: int = uncertainty.MIN_GROUPS
    min_images: int = 1
    leave_out: "Callable[[Resampled], list[Replicates]] | None" = None

    def compute(self, images: ScoredImages) -> float:
        """Return the value of the metric for images.

        Raises:
            UndefinedError: The metric has no value for these images.
        """
        if self.outcomes is not None:
            hits, among = self.outcomes(images)
            n = int(np.count_nonzero(among))
            return int(np.count_nonzero(hits & among)) / n
        if self.value is None:
            raise UndefinedError("not measured")
        return self.value(images)

    def count(self, images: ScoredImages) -> int:
        """Return the number of images that the metric is computed from.

        Raises:
            UndefinedError: The metric has no value for these images.
        """
        if self.outcomes is None:
            return len(images)
        return int(np.count_nonzero(self.outcomes(images)[1]))


def measure(metric: Metric, images: ScoredImages, sample: Resampled | None = None) -> MetricValue:
    """Return the value of a metric with its interval.

    Args:
        metric: The metric.
        images: The images.
        sample: The images in the groups that the jackknife leaves out to compute intervals. If
            None, only proportions get an interval.

    Returns:
        The value. If it is undefined, or has no interval in spite of a sample, `why` has the
        reason.
    """
    try:
        value, n = metric.compute(images), metric.count(images)
        if n < metric.min_images:
            raise UndefinedError(f"it needs {metric.min_images} images or more; there are {n}", n)
    except UndefinedError as undefined:
        return MetricValue(n=undefined.n, why=str(undefined))
    if metric.outcomes is not None and not (sample and sample.is_grouped and metric.of_both):
        low, high = _proportion_interval(metric, images, value, n, sample)
        return MetricValue(value, low, high, n, uncertainty.CLOPPER_PEARSON)
    if sample is None:
        return MetricValue(value, n=n)
    smallest = min(len(stratum.codes) for stratum, _ in sample.strata)
    if smallest < metric.min_per_class:
        reason = (
            f"an interval needs {metric.min_per_class} images of each class; there are {smallest}"
        )
        return MetricValue(value, n=n, why=reason)
    if metric.interval is not None:
        interval = metric.interval(images, value, sample)
        return _add_interval(value, interval, n, metric.method)
    interval = jackknife_interval(metric, value, sample)
    if interval is None and metric.scale == "logit":
        n_groups = min(
            stratum.groups if stratum.is_grouped else stratum.n for stratum, _ in sample.strata
        )
        return _add_interval(
            value, uncertainty.fraction_interval(value, n_groups), n, uncertainty.CLOPPER_PEARSON
        )
    return _add_interval(value, interval, n, metric.method)


def compute_replicates(metric: Metric, sample: Resampled) -> list[Replicates]:
    """Return the jackknife replicates of a metric: its values with each group of images left out.

    Args:
        metric: The metric.
        sample: The images in groups.

    Returns:
        The replicates of each class that has images, fakes first.

    Raises:
        UndefinedError: The metric has no value if some group is left out.
    """
    if metric.leave_out is not None:
        return metric.leave_out(sample)
    return [
        Replicates(np.array([metric.compute(part) for part in parts]), fractions, scale)
        for fractions, scale, parts in sample.leave_one_out
    ]


def jackknife_interval(metric: Metric, value: float, sample: Resampled) -> Interval | None:
    """Return the 95 % interval of a metric by the jackknife, which leaves out groups of images.

    Args:
        metric: The metric.
        value: The value of the metric for all images.
        sample: The images in groups.

    Returns:
        The interval. None if the metric is undefined without some group, or if
        `uncertainty.jackknife` gives no interval, for example because the values without each group
        do not vary.
    """
    try:
        return uncertainty.jackknife(value, compute_replicates(metric, sample), metric.scale)
    except UndefinedError:
        return None


def measure_difference(
    metric: Metric, a: Resampled, b: Resampled
) -> tuple[MetricValue, float | None]:
    """Measure the difference of a metric between two detectors or ensembles a and b: b minus a.

    Args:
        metric: The metric.
        a: Images with the scores of a.
        b: The same images with the scores of b, in the groups of `a`.

    Returns:
        The difference with its interval, and the p-value for the hypothesis of no difference. The
        p-value is None if it cannot be computed.
    """
    n = len(a.images)
    try:
        value = metric.compute(b.images) - metric.compute(a.images)
        pairs = zip(compute_replicates(metric, a), compute_replicates(metric, b), strict=True)
        parts = [second._replace(values=second.values - first.values) for first, second in pairs]
    except UndefinedError as undefined:
        return MetricValue(n=n, why=str(undefined)), None
    return difference(value, parts, n)


def difference(value: float, parts: list[Replicates], n: int) -> tuple[MetricValue, float | None]:
    """Return a difference of a metric between two detectors, with its interval and p-value.

    The interval and the p-value are computed by the jackknife. Both are missing if a class has too
    few groups of images. If the difference does not vary between groups, the interval is missing.
    The p-value is then 1 for a difference of 0, else missing.

    Args:
        value: The difference for all images.
        parts: For each class, the differences with each of its groups of images left out.
        n: Number of images.

    Returns:
        The difference with its interval, and the p-value for the hypothesis of no difference, or
        None.
    """
    n_replicates = min((len(part.values) for part in parts), default=0)
    if n_replicates < uncertainty.MIN_GROUPS:
        reason = f"an interval needs {uncertainty.MIN_GROUPS} images of each class; there are {n_replicates}"
        return MetricValue(value, n=n, why=reason), None
    interval = uncertainty.jackknife(value, parts, "plain")
    p = uncertainty.difference_p_value(value, parts)
    if interval is None:
        reason = "the difference does not vary between groups of images"
        return MetricValue(value, n=n, why=reason), p if value == 0 else None
    low, high = max(-1.0, interval[0]), min(1.0, interval[1])
    return MetricValue(value, low, high, n, uncertainty.JACKKNIFE), p


def _proportion_interval(
    metric: Metric,
    images: ScoredImages,
    value: float,
    n: int,
    sample: Resampled | None,
    tail: float = 0.025,
) -> Interval:
    """Return the exact interval of a proportion, for the effective number of images."""
    n_effective = float(n)
    if sample is not None and sample.is_grouped and metric.outcomes is not None:
        try:
            hits, among = metric.outcomes(sample.images)
        except UndefinedError:
            return uncertainty.proportion_interval(value * n, n, tail)
        strata = [
            (stratum._replace(codes=stratum.codes[among[mask]]), mask[among])
            for stratum, mask in sample.strata
            if among[mask].any()
        ]
        if any(stratum.is_grouped for stratum, _ in strata):
            n_effective = uncertainty.effective_count(hits[among], strata, value, n)
    n_hits = round(value * n) if n_effective == n else value * n_effective
    return uncertainty.proportion_interval(n_hits, n_effective, tail)


def _add_interval(value: float, interval: Interval | None, n: int, method: str) -> MetricValue:
    if interval is None:
        return MetricValue(value, n=n, why="the metric does not vary between groups of images")
    return MetricValue(value, min(value, interval[0]), max(value, interval[1]), n, method)


# ---------------------------------------------------------------- metrics at the threshold


def true_positive_outcomes(images: ScoredImages) -> tuple[Bools, Bools]:
    """Return which images are hits of the TPR (all flagged ones), and which count (all fakes).

    The fraction of hits among the images that count is `sklearn.metrics.recall_score`.

    Args:
        images: The images.

    Returns:
        The mask of the hits, and the mask of the images that count.

    Raises:
        UndefinedError: No image is fake.
    """
    if not images.n_fake:
        raise UndefinedError(NO_FAKES)
    return images.flagged, images.is_fake


def true_negative_outcomes(images: ScoredImages) -> tuple[Bools, Bools]:
    """Return which images are hits of the TNR (all not flagged), and which count (all reals).

    The fraction of hits among the images that count is the recall of real images.

    Args:
        images: The images.

    Returns:
        The mask of the hits, and the mask of the images that count.

    Raises:
        UndefinedError: No image is real.
    """
    if not images.n_real:
        raise UndefinedError(NO_REALS)
    return ~images.flagged, ~images.is_fake


def accuracy_outcomes(images: ScoredImages) -> tuple[Bools, Bools]:
    """Return which images are hits of the accuracy (classified correctly), and which count (all).

    The fraction of hits among the images that count is `sklearn.metrics.accuracy_score`.

    Args:
        images: The images.

    Returns:
        The mask of the hits, and the mask of the images that count.

    Raises:
        UndefinedError: The list of images is empty.
    """
    if not len(images):
        raise UndefinedError(NO_IMAGES)
    return images.flagged == images.is_fake, np.ones(len(images), np.bool_)


def precision_outcomes(images: ScoredImages) -> tuple[Bools, Bools]:
    """Return which images are hits of the precision (all fakes), and which count (all flagged).

    The fraction of hits among the images that count is `sklearn.metrics.precision_score`.

    Args:
        images: The images.

    Returns:
        The mask of the hits, and the mask of the images that count.

    Raises:
        UndefinedError: A class is missing, or no image is flagged.
    """
    images.require_both()
    if not images.true_positives + images.false_positives:
        raise UndefinedError(NOTHING_FLAGGED)
    return images.is_fake, images.flagged


def balanced_accuracy(images: ScoredImages) -> float:
    """Return the mean of TPR and TNR (`sklearn.metrics.balanced_accuracy_score`)."""
    images.require_both()
    return (images.true_positives / images.n_fake + 1 - images.false_positives / images.n_real) / 2


def f1(images: ScoredImages) -> float:
    """Return the F1 score of the class fake (`sklearn.metrics.f1_score`)."""
    images.require_both()
    return (
        2 * images.true_positives / (images.n_fake + images.true_positives + images.false_positives)
    )


def f1_even(images: ScoredImages) -> float:
    """Return the F1 score of the class fake if real images and fakes were equally frequent."""
    images.require_both()
    tpr = images.true_positives / images.n_fake
    return 2 * tpr / (1 + tpr + images.false_positives / images.n_real)


def precision_at_prior(images: ScoredImages, prior: float) -> float:
    """Return the precision if a fraction `prior` of all images were fake."""
    images.require_both()
    if not images.true_positives + images.false_positives:
        raise UndefinedError(NOTHING_FLAGGED, len(images))
    return _precision(
        images.true_positives / images.n_fake, images.false_positives / images.n_real, prior
    )


def _precision(tpr: float, fpr: float, prior: float) -> float:
    return prior * tpr / (prior * tpr + (1 - prior) * fpr)


def _precision_interval(
    images: ScoredImages, value: float, sample: Resampled, prior: float
) -> Interval:
    """Return the interval of a precision from exact limits of TPR and FPR, each at 97.5 %.

    If there are few reals and no false alarm, the value is 1, and the interval shows how uncertain
    it is.
    """
    intervals = []
    for metric in (METRICS["tpr"], METRICS["tnr"]):
        rate = measure(metric, images)
        fraction = rate.value or 0.0
        intervals.append(
            _proportion_interval(metric, images, fraction, rate.n, sample, _EACH_OF_TWO)
        )
    (low_tpr, high_tpr), (low_tnr, high_tnr) = intervals
    return _precision(low_tpr, 1 - low_tnr, prior), _precision(high_tpr, 1 - high_tnr, prior)


# ---------------------------------------------------------------- metrics of the ranking


def auc(images: ScoredImages) -> float:
    """Return the area under the ROC curve (`sklearn.metrics.roc_auc_score`).

    It is the fraction of pairs of a fake and a real image in which the fake scores higher; a tie
    counts half. The function is fast if one class is small, such as the images of one generator. It
    finds the rank of each score of the smaller class by binary search.
    """
    images.require_both()
    fakes, reals = images.scores[images.is_fake], images.scores[~images.is_fake]
    few, many = (fakes, reals) if len(fakes) <= len(reals) else (reals, fakes)
    won, pairs = float(_count_below(few, many).sum()), len(fakes) * len(reals)
    return (won if few is fakes else pairs - won) / pairs


def auc_replicates(sample: Resampled) -> list[Replicates]:
    """Return the jackknife replicates of the AUC: its values with each group of images left out.

    The AUC counts the pairs of a fake and a real image in which the fake scores higher. The
    replicates are computed from the number of such pairs with an image of each group. This is
    faster than computing each AUC.

    Args:
        sample: The images in groups.

    Returns:
        The replicates of each class, fakes first.

    Raises:
        UndefinedError: A class is missing.
    """
    sample.images.require_both()
    fakes, reals = sample.fakes, sample.reals
    is_fake = sample.images.is_fake
    fake_scores, real_scores = sample.images.scores[is_fake], sample.images.scores[~is_fake]
    won_by_fakes = _count_below(fake_scores, real_scores)
    lost_by_reals = len(fake_scores) - _count_below(real_scores, fake_scores)
    total = float(won_by_fakes.sum())
    parts = []
    for stratum, pairs, opposite in (
        (fakes, won_by_fakes, len(real_scores)),
        (reals, lost_by_reals, len(fake_scores)),
    ):
        lost = np.bincount(stratum.codes, pairs, stratum.groups)
        sizes = np.bincount(stratum.codes, minlength=stratum.groups)
        remaining = np.maximum(len(stratum.codes) - sizes, 1)
        parts.append(
            Replicates(
                (total - lost) / (remaining * opposite), sizes / len(stratum.codes), stratum.scale
            )
        )
    return parts


def _count_below(scores: npt.NDArray[Any], others: npt.NDArray[Any]) -> Floats:
    """Return how many of `others` each score exceeds; ties count half. Both arrays descend."""
    below, up_to = (np.searchsorted(others[::-1], scores, side) for side in ("left", "right"))
    return (below + up_to) / 2


def average_precision(images: ScoredImages) -> float:
    """Return the average precision (`sklearn.metrics.average_precision_score`)."""
    images.require_both()
    return _average_precision(images.curve, images.n_fake, 1.0)


def average_precision_even(images: ScoredImages) -> float:
    """Return the average precision if real images and fakes were equally frequent."""
    images.require_both()
    return _average_precision(images.curve, images.n_fake, images.n_fake / images.n_real)


def _average_precision(curve: Curve, n_fake: int, weight: float) -> float:
    steps = np.diff(curve.true_positives, prepend=0.0)
    return (
        float(
            steps @ (curve.true_positives / (curve.true_positives + weight * curve.false_positives))
        )
        / n_fake
    )


def equal_error_rate(images: ScoredImages) -> float:
    """Return the rate at which FPR and FNR are equal on the ROC curve.

    The points of the curve (`sklearn.metrics.det_curve`) are joined by straight lines.
    """
    images.require_both()
    fpr = np.append(0.0, images.curve.false_positives / images.n_real)
    surplus = fpr - 1 + np.append(0.0, images.curve.true_positives / images.n_fake)
    index = int(np.argmax(surplus >= 0))
    weight = -surplus[index - 1] / (surplus[index] - surplus[index - 1])
    return float(fpr[index - 1] + weight * (fpr[index] - fpr[index - 1]))


def tpr_at_fpr(images: ScoredImages, one_in: int) -> float:
    """Return the TPR at the lowest threshold that flags at most one real in `one_in`.

    The metric is undefined with fewer reals than `one_in`. The threshold would then be just above
    all reals. But of `one_in` further reals, one or more would exceed this threshold on average.
    """
    images.require_both()
    if images.n_real < one_in:
        raise UndefinedError(
            f"a false alarm in {one_in:,} needs {one_in:,} reals or more; there are {images.n_real:,}",
            len(images),
        )
    return count_found(images, images.n_real // one_in) / images.n_fake


def count_found(images: ScoredImages, allowed: int) -> float:
    """Return the number of fakes found at the lowest threshold with at most `allowed` false alarms.

    A false alarm is a real image whose score reaches the threshold.
    """
    index = int(np.searchsorted(images.curve.false_positives, allowed, "right"))
    return float(images.curve.true_positives[index - 1]) if index else 0.0


def _woodruff_interval(
    images: ScoredImages, value: float, sample: Resampled, one_in: int
) -> Interval:
    """Return the interval of the TPR at an FPR (Woodruff 1952).

    It combines the uncertainty of the fakes with that of the threshold.
    """
    from scipy.special import betaincinv

    curve, n = images.curve, images.n_real
    allowed = n // one_in
    index = int(np.searchsorted(curve.false_positives, allowed, "right"))
    threshold = curve.thresholds[index - 1] if index else math.inf
    is_flagged = sample.images.scores >= threshold
    intervals, sizes = [], []
    for stratum, mask, fraction, total in (
        (sample.fakes, sample.images.is_fake, value, images.n_fake),
        (sample.reals, ~sample.images.is_fake, allowed / n, n),
    ):
        n_effective = float(total)
        if stratum.is_grouped:
            hits = is_flagged[mask]
            n_effective = uncertainty.effective_count(
                hits, [(stratum, np.ones(len(hits), np.bool_))], fraction, total
            )
        intervals.append(uncertainty.proportion_interval(fraction * n_effective, n_effective))
        sizes.append(n_effective)
    rate, n_effective = 1 / one_in, sizes[1]
    min_alarms = (
        float(betaincinv(rate * n_effective, n_effective - rate * n_effective + 1, 0.025)) * n
    )
    max_alarms = (
        float(betaincinv(rate * n_effective + 1, n_effective - rate * n_effective, 0.975)) * n
    )
    low = (
        count_found(images, math.floor(min_alarms) - 1) / images.n_fake if min_alarms >= 1 else 0.0
    )
    high = count_found(images, math.ceil(max_alarms)) / images.n_fake if max_alarms < n - 1 else 1.0
    return (
        max(0.0, value - math.hypot(value - intervals[0][0], max(0.0, value - low))),
        min(1.0, value + math.hypot(intervals[0][1] - value, max(0.0, high - value))),
    )


# ---------------------------------------------------------------- metrics of probabilities


def log_loss(images: ScoredImages) -> float:
    """Return the mean cross-entropy in nats (`sklearn.metrics.log_loss`), without clipping."""
    if not len(images):
        raise UndefinedError(NO_IMAGES)
    losses = np.logaddexp(0, np.where(images.is_fake, -1, 1) * images.log_odds)
    return float((losses / len(images)).sum())


def brier_score(images: ScoredImages) -> float:
    """Return the mean squared error of probabilities (`sklearn.metrics.brier_score_loss`)."""
    if not len(images):
        raise UndefinedError(NO_IMAGES)
    return float(((images.probabilities - images.is_fake) ** 2).mean())


def expected_calibration_error(images: ScoredImages) -> float:
    """Return the debiased expected calibration error over 15 bins of equal width.

    The plain error (Guo et al. 2017) is above 0 even for perfect probabilities. The correction is
    that of Kumar, Liang and Ma (2019) for absolute differences, with the mean of a folded normal
    distribution instead of draws. The result is never below 0.
    """
    images.require_both()
    bins = np.minimum((images.probabilities * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    total, n_fake, probability_sum = (
        np.bincount(bins, weights, ECE_BINS)
        for weights in (None, images.is_fake, images.probabilities)
    )
    filled = total > 0
    in_bin = total[filled].astype(np.float64)
    fraction = n_fake[filled] / in_bin
    gap = np.abs(probability_sum[filled] / in_bin - fraction)
    redrawn = _folded_normal_mean(gap, np.sqrt(fraction * (1 - fraction) / in_bin))
    return max(0.0, float(in_bin @ (2 * gap - redrawn)) / len(images))


def _ece_interval(_images: ScoredImages, value: float, sample: Resampled) -> Interval | None:
    """Return the jackknife's interval, down to 0 if the error is less than two half-widths.

    An error near 0 is the absolute value of a random deviation, which the jackknife treats as a
    true error.
    """
    interval = jackknife_interval(METRICS["ece"], value, sample)
    if interval is None:
        return None
    half = interval[1] - value
    return (value - half if value > 2 * half else 0.0), min(1.0, value + half)


def _folded_normal_mean(mean: Floats, deviation: Floats) -> Floats:
    """Return E|X| of normal X (k,) with non-negative mean; the mean if the deviation is 0."""
    from scipy.special import erf

    with np.errstate(over="ignore", under="ignore"):
        ratio = mean / np.maximum(deviation, np.finfo(np.float64).tiny)
        folded: Floats = deviation * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + mean * erf(
            ratio / np.sqrt(2)
        )
    return folded


def oracle_accuracy(images: ScoredImages, points: int = 100) -> float:
    """Return the best accuracy over 100 thresholds, which are tried on the test images themselves.

    The accuracy is therefore too optimistic. Sidbench computes it in this way.
    """
    images.require_both()
    with np.errstate(divide="ignore"):
        grid = np.linspace(0, 1, points)
        thresholds = np.log(grid) - np.log1p(-grid)
    curve = images.curve
    indices = np.searchsorted(-curve.thresholds, -thresholds, "left")
    hits, alarms = (
        np.append(0.0, counts)[indices] for counts in (curve.true_positives, curve.false_positives)
    )
    return float((hits + images.n_real - alarms).max()) / len(images)


def _precision_metric(name: str, percentage: str, one_in: int) -> Metric:
    prior = 1 / one_in
    return Metric(
        name,
        f"flags that are right if {percentage} are fake",
        f"The precision if one image in {one_in:,} were fake.",
        value=partial(precision_at_prior, prior=prior),
        interval=partial(_precision_interval, prior=prior),
        method=uncertainty.CLOPPER_PEARSON,
        min_per_class=1,
    )


def _tpr_metric(name: str, percentage: str, one_in: int) -> Metric:
    return Metric(
        name,
        f"fakes found at {percentage} false flags",
        f"The fraction of fakes above a threshold that one real image in {one_in:,} exceeds.",
        needs="scores",
        value=partial(tpr_at_fpr, one_in=one_in),
        interval=partial(_woodruff_interval, one_in=one_in),
        method=WOODRUFF,
        min_per_class=1,
    )


_ALL = (
    Metric(
        "tpr",
        "fakes found",
        "The true-positive rate: the fraction of fakes called fake at the threshold.",
        outcomes=true_positive_outcomes,
    ),
    Metric(
        "tnr",
        "real images cleared",
        "The true-negative rate: the fraction of real images not called fake.",
        outcomes=true_negative_outcomes,
    ),
    Metric(
        "balanced_accuracy",
        "balanced accuracy",
        "The mean of the fractions of fakes and of reals judged correctly at the threshold.",
        value=balanced_accuracy,
    ),
    Metric(
        "accuracy",
        "accuracy",
        "The fraction of all images judged correctly. It depends on how many of them are fake.",
        outcomes=accuracy_outcomes,
        of_both=True,
    ),
    Metric(
        "f1",
        "F1",
        "The harmonic mean of precision and fakes found. It depends on how many images are fake.",
        is_share=False,
        value=f1,
    ),
    Metric(
        "precision",
        "precision",
        "The fraction of fakes among the images called fake, at the fraction of fakes in this data.",
        outcomes=precision_outcomes,
        of_both=True,
    ),
    Metric(
        "auc",
        "ROC AUC",
        "The probability that a random fake scores higher than a random real image: 1 is perfect, ½ is chance.",
        is_share=False,
        needs="scores",
        value=auc,
        leave_out=auc_replicates,
    ),
    Metric(
        "average_precision",
        "average precision",
        "Precision averaged over all thresholds by the fakes that each finds. It depends on the fraction of fakes.",
        is_share=False,
        needs="scores",
        value=average_precision,
    ),
    Metric(
        "eer",
        "equal error rate",
        "The error rate at the threshold at which the fraction of missed fakes equals that of flagged real images.",
        direction="min",
        needs="scores",
        value=equal_error_rate,
        min_per_class=MIN_FOR_EER,
    ),
    _tpr_metric("tpr_at_fpr_5", "5 %", 20),
    _tpr_metric("tpr_at_fpr_1", "1 %", 100),
    _tpr_metric("tpr_at_fpr_01", "0.1 %", 1000),
    Metric(
        "log_loss",
        "log loss",
        "Mean cross-entropy of the stated probabilities, in nats: 0.693 is chance, less is better.",
        is_share=False,
        direction="min",
        needs="probabilities",
        value=log_loss,
        scale="log",
    ),
    Metric(
        "brier",
        "Brier score",
        "Mean squared distance of the stated probability from the truth; 0.25 is chance.",
        is_share=False,
        direction="min",
        needs="probabilities",
        value=brier_score,
    ),
    Metric(
        "ece",
        "calibration error, debiased",
        "Mean distance of stated probabilities from the fraction of fakes (15 bins of equal width), less its expected value by chance.",
        direction="min",
        needs="probabilities",
        value=expected_calibration_error,
        scale="plain",
        interval=_ece_interval,
        min_images=MIN_FOR_ECE,
    ),
    _precision_metric("precision_at_prior_01", "0.1 %", 1000),
    _precision_metric("precision_at_prior_1", "1 %", 100),
    _precision_metric("precision_at_prior_10", "10 %", 10),
)
DETECTION = tuple(metric.name for metric in _ALL)
"""Metrics of a system as a whole, in the order of documents."""
_OTHERS = (
    Metric(
        "f1_even",
        "F1 at even counts",
        "F1 with as many fakes as real images.",
        False,
        value=f1_even,
    ),
    Metric(
        "average_precision_even",
        "average precision at even counts",
        "Average precision with as many fakes as real images.",
        False,
        needs="scores",
        value=average_precision_even,
    ),
    Metric(
        "oracle_accuracy",
        "accuracy at oracle threshold",
        "The best accuracy over 100 thresholds, chosen on the test images themselves.",
        needs="scores",
        value=oracle_accuracy,
    ),
)
METRICS: Mapping[str, Metric] = MappingProxyType(
    {metric.name: metric for metric in (*_ALL, *_OTHERS)}
)
