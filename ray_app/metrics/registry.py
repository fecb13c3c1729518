"""The metrics of an evaluation, each declared once (`METRICS`), and how one is measured (`measure`).

A metric is a plain function of `ScoredImages`. To add a metric, add an entry to `METRICS`: tables,
JSON, CSV, pages, and the terminal list what is in the registry. Fake is the positive class.
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
from ray_app.metrics.uncertainty import Ends, Replicates, Stratum
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
"""With fewer images of a class the equal error rate moves in steps, which the jackknife misses."""
MAX_RESAMPLED = 5_000
"""Images of a class that random blocks are cut from, at most: every k-th by score of more images."""
ECE_BINS = 15
_LARGEST = np.finfo(np.float64).max
_EACH_OF_TWO = 0.0125  # Beyond each end of each of two rates, so that both hold with 95 % or more.


class UndefinedError(ValueError):
    """A metric has no value for these images. The message is the reason.

    Args:
        why: The reason.
        n: Number of images that there are.
    """

    def __init__(self, why: str, n: int = 0) -> None:
        super().__init__(why)
        self.n = n


class Curve(NamedTuple):
    """Fakes and reals that score at least as high as each distinct score, from the highest score
    down.
    """

    found: Floats
    alarms: Floats
    thresholds: Floats


def descending_order(scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the places (n,) of scores from the highest down. Equal scores keep their order.

    A float32 score and its place make one 64-bit key: first the bits of the score, changed so that
    they ascend as scores descend, then the place. Sorting the keys takes a fifth of the time of the
    stable sorts of NumPy and pyarrow.
    """
    if scores.dtype != np.float32 or np.isnan(scores).any():
        return np.argsort(-scores, kind="stable")
    bits = (scores + np.float32(0)).view(np.uint32)  # The sum makes +0 of -0.
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
        threshold: Fake is a score above it, or at it if `strict` is false.
        calibration: Makes probabilities of scores. It does not move the threshold.
    """

    scores: npt.NDArray[np.floating[Any]]
    is_fake: Bools
    threshold: float = 0.0
    strict: bool = True
    calibration: "Platt | None" = None

    @classmethod
    def from_scores(cls, scores: Any, is_fake: Any, **cut: Any) -> "ScoredImages":
        """Return the images with scores (n,) in any order."""
        numbers = np.asarray(scores)
        order = descending_order(numbers)
        return cls(numbers[order], np.asarray(is_fake, np.bool_)[order], **cut)

    @property
    def cut(self) -> dict[str, Any]:
        """Threshold, strictness, and calibration."""
        return {"threshold": self.threshold, "strict": self.strict, "calibration": self.calibration}

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, chosen: Any) -> "ScoredImages":
        """Return some of the images, by a mask or places in order."""
        places = np.asarray(chosen)
        if places.dtype == np.bool_:
            places = np.flatnonzero(places)  # Six times as fast as two selections by a mask.
        return ScoredImages(self.scores[places], self.is_fake[places], **self.cut)

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
        found: Bools = (
            self.scores > self.threshold if self.strict else self.scores >= self.threshold
        )
        return found

    @cached_property
    def found(self) -> int:
        """Number of fakes that are flagged."""
        return int(np.count_nonzero(self.flagged & self.is_fake))

    @cached_property
    def alarms(self) -> int:
        """Number of reals that are flagged."""
        return int(np.count_nonzero(self.flagged)) - self.found

    @cached_property
    def curve(self) -> Curve:
        """Counts at each distinct score, as `sklearn.metrics.confusion_matrix_at_thresholds` gives
        them. The scores are sorted already, which makes this 15 times faster.
        """
        if not len(self):
            return Curve(np.empty(0), np.empty(0), np.empty(0))
        ends = np.append(np.flatnonzero(self.scores[1:] != self.scores[:-1]), len(self) - 1)
        found = np.cumsum(self.is_fake)[ends].astype(np.float64)
        return Curve(found, ends + 1.0 - found, self.scores[ends].astype(np.float64))

    @cached_property
    def log_odds(self) -> Floats:
        """Calibrated log-odds of each image."""
        numbers = self.scores.astype(np.float64)
        if self.calibration is None:
            return numbers
        with np.errstate(over="ignore"):
            return np.clip(self.calibration(numbers), -_LARGEST, _LARGEST)

    @cached_property
    def probabilities(self) -> Floats:
        """Calibrated probability of fake of each image."""
        from scipy.special import expit

        found: Floats = expit(self.log_odds)
        return found

    def require_both(self) -> None:
        """Raise UndefinedError unless there are real and fake images."""
        if not self.n_fake or not self.n_real:
            raise UndefinedError(ONE_CLASS, len(self))


@dataclass(frozen=True)
class Resampled:
    """A sample of the images, in the groups that intervals are of.

    Attributes:
        images: The sample.
        fakes: Groups of the sampled fakes, in the order of `images`.
        reals: Groups of the sampled reals, in the order of `images`.
    """

    images: ScoredImages
    fakes: Stratum
    reals: Stratum

    @property
    def is_grouped(self) -> bool:
        """Whether a class comes in named groups."""
        return self.fakes.is_grouped or self.reals.is_grouped

    @property
    def strata(self) -> list[tuple[Stratum, Bools]]:
        """Both classes, and which images each is of; those that have an image."""
        both = [(self.fakes, self.images.is_fake), (self.reals, ~self.images.is_fake)]
        return [(stratum, mine) for stratum, mine in both if len(stratum.codes)]

    @cached_property
    def left_out(self) -> list[tuple[Floats, float, list[ScoredImages]]]:
        """Of each stratum the fraction that each group is, the scale of its variance, and the
        images without each group.
        """
        found = []
        for stratum, mine in self.strata:
            codes = np.full(len(self.images), -1)
            codes[mine] = stratum.codes
            fractions = np.bincount(stratum.codes, minlength=stratum.groups) / len(stratum.codes)
            rest = [self.images.select(codes != group) for group in range(stratum.groups)]
            found.append((fractions, stratum.scale, rest))
        return found

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
        """Return images with scores (n,) in the groups of their names (n,), or in random blocks.

        Args:
            scores: Scores in any order. Two systems with the same images get the same groups.
            is_fake: The class of each image.
            names: The generator of a fake and the source of a real image.
            totals: Number of fakes and reals that the images are a sample of.
            seed: Seed of the random blocks.
            **cut: Threshold, strictness, and calibration.
        """
        order = descending_order(scores)
        strata = []
        for mine, n in zip((is_fake, ~is_fake), totals or (None, None), strict=True):
            stratum = uncertainty.stratum_of(
                int(mine.sum()), None if names is None else names[mine], n, seed
            )
            codes = np.zeros(len(scores), np.int64)
            codes[mine] = stratum.codes
            strata.append(stratum._replace(codes=codes[order][mine[order]]))
        return Resampled(ScoredImages(scores[order], is_fake[order], **cut), *strata)

    @staticmethod
    def in_blocks(images: ScoredImages, seed: int = 0) -> "Resampled":
        """Return the images in random blocks; of many images of a class every k-th by score."""
        places = [np.flatnonzero(images.is_fake == kind) for kind in (True, False)]
        thinned = [one[:: max(1, math.ceil(len(one) / MAX_RESAMPLED))] for one in places]
        strata = [
            uncertainty.stratum_of(len(few), None, len(every), seed)
            for few, every in zip(thinned, places, strict=True)
        ]
        chosen = np.sort(np.concatenate(thinned))
        return Resampled(images.select(chosen), *strata)


@dataclass(frozen=True)
class Metric:
    """One metric of an evaluation.

    Attributes:
        name: Key in documents, such as `auc`.
        title: Name on pages and in the terminal.
        sentence: What the metric means.
        is_share: Whether people read it in per cent.
        direction: Whether more is better.
        needs: What a metric is computed from.
        value: Function from images to the value. It raises `UndefinedError` with the reason if there is
            no value.
        outcomes: For a proportion, which images are hits and which images count. `value` is then
            not needed.
        of_both: Whether a proportion is of images of both classes. If images come in groups, its
            interval is then the jackknife's.
        scale: The scale on which the jackknife works.
        interval: A function that replaces the jackknife for this metric.
        method: Name of the method of the interval.
        min_per_class: Images of each class that an interval needs.
        min_images: Images that the value needs.
        leave_out: A faster way to compute the replicates of the jackknife.
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
    interval: "Callable[[ScoredImages, float, Resampled], Ends | None] | None" = None
    method: str = uncertainty.JACKKNIFE
    min_per_class: int = uncertainty.MIN_GROUPS
    min_images: int = 1
    leave_out: "Callable[[Resampled], list[Replicates]] | None" = None

    def compute(self, images: ScoredImages) -> float:
        """Return the value. Raises UndefinedError."""
        if self.outcomes is not None:
            hits, among = self.outcomes(images)
            n = int(np.count_nonzero(among))
            return int(np.count_nonzero(hits & among)) / n
        if self.value is None:
            raise UndefinedError("not measured")
        return self.value(images)

    def count(self, images: ScoredImages) -> int:
        """Return the number of images that the metric is of. Raises UndefinedError."""
        if self.outcomes is None:
            return len(images)
        return int(np.count_nonzero(self.outcomes(images)[1]))


def measure(metric: Metric, images: ScoredImages, sample: Resampled | None = None) -> MetricValue:
    """Return the value of a metric, with an interval if there is a sample to work it out from."""
    try:
        value, n = metric.compute(images), metric.count(images)
        if n < metric.min_images:
            raise UndefinedError(f"it needs {metric.min_images} images or more; there are {n}", n)
    except UndefinedError as undefined:
        return MetricValue(n=undefined.n, why=str(undefined))
    if metric.outcomes is not None and not (sample and sample.is_grouped and metric.of_both):
        low, high = _proportion_ends(metric, images, value, n, sample)
        return MetricValue(value, low, high, n, uncertainty.CLOPPER_PEARSON)
    if sample is None:
        return MetricValue(value, n=n)
    smallest = min(len(stratum.codes) for stratum, _ in sample.strata)
    if smallest < metric.min_per_class:
        why = f"an interval needs {metric.min_per_class} images of each class; there are {smallest}"
        return MetricValue(value, n=n, why=why)
    if metric.interval is not None:
        ends = metric.interval(images, value, sample)
        return _with_ends(value, ends, n, metric.method)
    ends = jackknife_interval(metric, value, sample)
    if ends is None and metric.scale == "logit":
        few = min(
            stratum.groups if stratum.is_grouped else stratum.n for stratum, _ in sample.strata
        )
        return _with_ends(
            value, uncertainty.share_interval(value, few), n, uncertainty.CLOPPER_PEARSON
        )
    return _with_ends(value, ends, n, metric.method)


def replicates(metric: Metric, sample: Resampled) -> list[Replicates]:
    """Return the values of a metric with each group left out. Raises UndefinedError."""
    if metric.leave_out is not None:
        return metric.leave_out(sample)
    return [
        Replicates(np.array([metric.compute(one) for one in rest]), fractions, scale)
        for fractions, scale, rest in sample.left_out
    ]


def jackknife_interval(metric: Metric, value: float, sample: Resampled) -> Ends | None:
    """Return the jackknife's interval of a metric; None if it has none."""
    try:
        return uncertainty.jackknife(value, replicates(metric, sample), metric.scale)
    except UndefinedError:
        return None


def measure_difference(
    metric: Metric, a: Resampled, b: Resampled
) -> tuple[MetricValue, float | None]:
    """Return the metric of b less that of a on the same images in the same groups, and the p of no
    difference.
    """
    n = len(a.images)
    try:
        value = metric.compute(b.images) - metric.compute(a.images)
        pairs = zip(replicates(metric, a), replicates(metric, b), strict=True)
        parts = [second._replace(values=second.values - first.values) for first, second in pairs]
    except UndefinedError as undefined:
        return MetricValue(n=n, why=str(undefined)), None
    return difference(value, parts, n)


def difference(value: float, parts: list[Replicates], n: int) -> tuple[MetricValue, float | None]:
    """Return a difference with its interval, and the p of no difference, from its replicates."""
    few = min((len(part.values) for part in parts), default=0)
    if few < uncertainty.MIN_GROUPS:
        why = f"an interval needs {uncertainty.MIN_GROUPS} images of each class; there are {few}"
        return MetricValue(value, n=n, why=why), None
    ends = uncertainty.jackknife(value, parts, "plain")
    p = uncertainty.p_of_difference(value, parts)
    if ends is None:
        why = "the difference does not vary between groups of images"
        return MetricValue(value, n=n, why=why), p if value == 0 else None
    low, high = max(-1.0, ends[0]), min(1.0, ends[1])
    return MetricValue(value, low, high, n, uncertainty.JACKKNIFE), p


def _proportion_ends(
    metric: Metric,
    images: ScoredImages,
    value: float,
    n: int,
    sample: Resampled | None,
    tail: float = 0.025,
) -> Ends:
    """Return the exact interval, of as many images as the grouped ones are worth."""
    worth = float(n)
    if sample is not None and sample.is_grouped and metric.outcomes is not None:
        try:
            hits, among = metric.outcomes(sample.images)
        except UndefinedError:
            return uncertainty.proportion_interval(value * n, n, tail)
        strata = [
            (stratum._replace(codes=stratum.codes[among[mine]]), mine[among])
            for stratum, mine in sample.strata
            if among[mine].any()
        ]
        if any(stratum.is_grouped for stratum, _ in strata):
            worth = uncertainty.effective_count(hits[among], strata, value, n)
    hits_worth = round(value * n) if worth == n else value * worth
    return uncertainty.proportion_interval(hits_worth, worth, tail)


def _with_ends(value: float, ends: Ends | None, n: int, method: str) -> MetricValue:
    if ends is None:
        return MetricValue(value, n=n, why="the metric does not vary between groups of images")
    return MetricValue(value, min(value, ends[0]), max(value, ends[1]), n, method)


# ---------------------------------------------------------------- metrics at the threshold


def flagged_fakes(images: ScoredImages) -> tuple[Bools, Bools]:
    """Return the outcomes of the true-positive rate (`sklearn.metrics.recall_score`)."""
    if not images.n_fake:
        raise UndefinedError(NO_FAKES)
    return images.flagged, images.is_fake


def cleared_reals(images: ScoredImages) -> tuple[Bools, Bools]:
    """Return the outcomes of the true-negative rate, the recall of real images."""
    if not images.n_real:
        raise UndefinedError(NO_REALS)
    return ~images.flagged, ~images.is_fake


def right_images(images: ScoredImages) -> tuple[Bools, Bools]:
    """Return the outcomes of accuracy (`sklearn.metrics.accuracy_score`)."""
    if not len(images):
        raise UndefinedError(NO_IMAGES)
    return images.flagged == images.is_fake, np.ones(len(images), np.bool_)


def fakes_among_flagged(images: ScoredImages) -> tuple[Bools, Bools]:
    """Return the outcomes of precision (`sklearn.metrics.precision_score`)."""
    images.require_both()
    if not images.found + images.alarms:
        raise UndefinedError(NOTHING_FLAGGED)
    return images.is_fake, images.flagged


def balanced_accuracy(images: ScoredImages) -> float:
    """Return the mean of both rates (`sklearn.metrics.balanced_accuracy_score`)."""
    images.require_both()
    return (images.found / images.n_fake + 1 - images.alarms / images.n_real) / 2


def f1(images: ScoredImages) -> float:
    """Return the F1 of fake (`sklearn.metrics.f1_score`)."""
    images.require_both()
    return 2 * images.found / (images.n_fake + images.found + images.alarms)


def f1_even(images: ScoredImages) -> float:
    """Return the F1 of fake if there were as many real images as fakes."""
    images.require_both()
    found = images.found / images.n_fake
    return 2 * found / (1 + found + images.alarms / images.n_real)


def precision_at_prior(images: ScoredImages, prior: float) -> float:
    """Return the precision if a fraction `prior` of all images were fake."""
    images.require_both()
    if not images.found + images.alarms:
        raise UndefinedError(NOTHING_FLAGGED, len(images))
    return _precision(images.found / images.n_fake, images.alarms / images.n_real, prior)


def _precision(tpr: float, fpr: float, prior: float) -> float:
    return prior * tpr / (prior * tpr + (1 - prior) * fpr)


def _precision_ends(images: ScoredImages, value: float, sample: Resampled, prior: float) -> Ends:
    """Return the interval from the exact limits of both rates, each at 97.5 %.

    Without a false alarm among few reals the value is 1, and the interval shows how little that
    means.
    """
    ends = []
    for metric in (METRICS["tpr"], METRICS["tnr"]):
        rate = measure(metric, images)
        share = rate.value or 0.0
        ends.append(_proportion_ends(metric, images, share, rate.n, sample, _EACH_OF_TWO))
    (low_tpr, high_tpr), (low_tnr, high_tnr) = ends
    return _precision(low_tpr, 1 - low_tnr, prior), _precision(high_tpr, 1 - high_tnr, prior)


# ---------------------------------------------------------------- metrics of the ranking


def auc(images: ScoredImages) -> float:
    """Return the area under the ROC curve (`sklearn.metrics.roc_auc_score`).

    It is the fraction of pairs in which the fake scores higher; an equal pair counts half. Images of
    one generator are few against all of the other class, so the places of the smaller class are
    searched for, without a curve.
    """
    images.require_both()
    fakes, reals = images.scores[images.is_fake], images.scores[~images.is_fake]
    few, many = (fakes, reals) if len(fakes) <= len(reals) else (reals, fakes)
    won, pairs = float(_count_below(few, many).sum()), len(fakes) * len(reals)
    return (won if few is fakes else pairs - won) / pairs


def auc_without_groups(sample: Resampled) -> list[Replicates]:
    """Return the AUC without each group, from the pairs that each group wins. Raises
    UndefinedError.
    """
    sample.images.require_both()
    fakes, reals = sample.fakes, sample.reals
    is_fake = sample.images.is_fake
    found, others = sample.images.scores[is_fake], sample.images.scores[~is_fake]
    won_by_fakes = _count_below(found, others)
    lost_by_reals = len(found) - _count_below(others, found)
    total = float(won_by_fakes.sum())
    parts = []
    for stratum, pairs, opposite in (
        (fakes, won_by_fakes, len(others)),
        (reals, lost_by_reals, len(found)),
    ):
        lost = np.bincount(stratum.codes, pairs, stratum.groups)
        sizes = np.bincount(stratum.codes, minlength=stratum.groups)
        rest = np.maximum(len(stratum.codes) - sizes, 1)
        parts.append(
            Replicates(
                (total - lost) / (rest * opposite), sizes / len(stratum.codes), stratum.scale
            )
        )
    return parts


def _count_below(scores: npt.NDArray[Any], others: npt.NDArray[Any]) -> Floats:
    """Return how many others each score exceeds; an equal one counts half. Both descend."""
    below, up_to = (np.searchsorted(others[::-1], scores, side) for side in ("left", "right"))
    return (below + up_to) / 2


def average_precision(images: ScoredImages) -> float:
    """Return the precision averaged over fakes (`sklearn.metrics.average_precision_score`)."""
    images.require_both()
    return _average_precision(images.curve, images.n_fake, 1.0)


def average_precision_even(images: ScoredImages) -> float:
    """Return the average precision if there were as many real images as fakes."""
    images.require_both()
    return _average_precision(images.curve, images.n_fake, images.n_fake / images.n_real)


def _average_precision(curve: Curve, n_fake: int, weight: float) -> float:
    steps = np.diff(curve.found, prepend=0.0)
    return float(steps @ (curve.found / (curve.found + weight * curve.alarms))) / n_fake


def equal_error_rate(images: ScoredImages) -> float:
    """Return the rate at which FPR and FNR are equal on the ROC curve (`sklearn.metrics.det_curve`),
    whose points are joined by straight lines.
    """
    images.require_both()
    fpr = np.append(0.0, images.curve.alarms / images.n_real)
    surplus = fpr - 1 + np.append(0.0, images.curve.found / images.n_fake)
    place = int(np.argmax(surplus >= 0))
    way = -surplus[place - 1] / (surplus[place] - surplus[place - 1])
    return float(fpr[place - 1] + way * (fpr[place] - fpr[place - 1]))


def tpr_at_fpr(images: ScoredImages, one_in: int) -> float:
    """Return the TPR at the lowest threshold that flags no more than one real in `one_in`.

    With fewer reals than `one_in`, a threshold above all of them would have a higher rate on
    average than the metric is named after.
    """
    images.require_both()
    if images.n_real < one_in:
        raise UndefinedError(
            f"a false alarm in {one_in:,} needs {one_in:,} reals or more; there are {images.n_real:,}",
            len(images),
        )
    return found_at(images, images.n_real // one_in) / images.n_fake


def found_at(images: ScoredImages, allowed: int) -> float:
    """Return how many fakes are found with no more than this many false alarms."""
    place = int(np.searchsorted(images.curve.alarms, allowed, "right"))
    return float(images.curve.found[place - 1]) if place else 0.0


def _woodruff(images: ScoredImages, value: float, sample: Resampled, one_in: int) -> Ends:
    """Return the interval of the TPR at an FPR: the fakes' own, and how far the threshold may be off
    (Woodruff 1952).
    """
    from scipy.special import betaincinv

    curve, n = images.curve, images.n_real
    allowed = n // one_in
    place = int(np.searchsorted(curve.alarms, allowed, "right"))
    threshold = curve.thresholds[place - 1] if place else math.inf
    marked = sample.images.scores >= threshold
    ends, sizes = [], []
    for stratum, mine, share, total in (
        (sample.fakes, sample.images.is_fake, value, images.n_fake),
        (sample.reals, ~sample.images.is_fake, allowed / n, n),
    ):
        worth = float(total)
        if stratum.is_grouped:
            hits = marked[mine]
            worth = uncertainty.effective_count(
                hits, [(stratum, np.ones(len(hits), np.bool_))], share, total
            )
        ends.append(uncertainty.proportion_interval(share * worth, worth))
        sizes.append(worth)
    rate, worth = 1 / one_in, sizes[1]
    fewest = float(betaincinv(rate * worth, worth - rate * worth + 1, 0.025)) * n
    most = float(betaincinv(rate * worth + 1, worth - rate * worth, 0.975)) * n
    low = found_at(images, math.floor(fewest) - 1) / images.n_fake if fewest >= 1 else 0.0
    high = found_at(images, math.ceil(most)) / images.n_fake if most < n - 1 else 1.0
    return (
        max(0.0, value - math.hypot(value - ends[0][0], max(0.0, value - low))),
        min(1.0, value + math.hypot(ends[0][1] - value, max(0.0, high - value))),
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
    distribution instead of draws. It is never below 0.
    """
    images.require_both()
    bins = np.minimum((images.probabilities * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    total, n_fake, stated = (
        np.bincount(bins, weights, ECE_BINS)
        for weights in (None, images.is_fake, images.probabilities)
    )
    filled = total > 0
    in_bin = total[filled].astype(np.float64)
    share = n_fake[filled] / in_bin
    gap = np.abs(stated[filled] / in_bin - share)
    redrawn = _mean_of_folded(gap, np.sqrt(share * (1 - share) / in_bin))
    return max(0.0, float(in_bin @ (2 * gap - redrawn)) / len(images))


def _ece_ends(_images: ScoredImages, value: float, sample: Resampled) -> Ends | None:
    """Return the jackknife's interval, down to 0 if the error is less than two half-widths.

    An error near 0 is an absolute value of chance, which the jackknife takes for a true error.
    """
    ends = jackknife_interval(METRICS["ece"], value, sample)
    if ends is None:
        return None
    half = ends[1] - value
    return (value - half if value > 2 * half else 0.0), min(1.0, value + half)


def _mean_of_folded(mean: Floats, deviation: Floats) -> Floats:
    """Return E|X| of normal X (k,) whose mean is not negative; the mean if there is no deviation."""
    from scipy.special import erf

    with np.errstate(over="ignore", under="ignore"):
        ratio = mean / np.maximum(deviation, np.finfo(np.float64).tiny)
        folded: Floats = deviation * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + mean * erf(
            ratio / np.sqrt(2)
        )
    return folded


def oracle_accuracy(images: ScoredImages, points: int = 100) -> float:
    """Return sidbench's best accuracy over 100 thresholds, chosen on the test data itself."""
    images.require_both()
    with np.errstate(divide="ignore"):
        grid = np.linspace(0, 1, points)
        thresholds = np.log(grid) - np.log1p(-grid)
    curve = images.curve
    places = np.searchsorted(-curve.thresholds, -thresholds, "left")
    found, alarms = (np.append(0.0, one)[places] for one in (curve.found, curve.alarms))
    return float((found + images.n_real - alarms).max()) / len(images)


def _prior(name: str, words: str, one_in: int) -> Metric:
    prior = 1 / one_in
    return Metric(
        name,
        f"flags that are right if {words} are fake",
        f"Precision as it would be if one image in {one_in:,} were fake.",
        value=partial(precision_at_prior, prior=prior),
        interval=partial(_precision_ends, prior=prior),
        method=uncertainty.CLOPPER_PEARSON,
        min_per_class=1,
    )


def _at_fpr(name: str, words: str, one_in: int) -> Metric:
    return Metric(
        name,
        f"fakes found at {words} false flags",
        f"The share of fakes above a threshold that one real image in {one_in:,} passes.",
        needs="scores",
        value=partial(tpr_at_fpr, one_in=one_in),
        interval=partial(_woodruff, one_in=one_in),
        method=WOODRUFF,
        min_per_class=1,
    )


_ALL = (
    Metric(
        "tpr",
        "fakes found",
        "The true-positive rate: the share of fakes that is called fake at the threshold.",
        outcomes=flagged_fakes,
    ),
    Metric(
        "tnr",
        "real images cleared",
        "The true-negative rate: the share of real images that is not called fake.",
        outcomes=cleared_reals,
    ),
    Metric(
        "balanced_accuracy",
        "balanced accuracy",
        "The mean of both shares judged correctly, of fakes and of reals, at the threshold.",
        value=balanced_accuracy,
    ),
    Metric(
        "accuracy",
        "accuracy",
        "The share of all images judged correctly. It depends on how many of them are fake.",
        outcomes=right_images,
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
        "The share of fakes among what is called fake, with as many fakes as there are here.",
        outcomes=fakes_among_flagged,
        of_both=True,
    ),
    Metric(
        "auc",
        "ROC AUC",
        "The chance that a fake scores higher than a real image, both drawn blindly: 1 is perfect, ½ a coin.",
        is_share=False,
        needs="scores",
        value=auc,
        leave_out=auc_without_groups,
    ),
    Metric(
        "average_precision",
        "average precision",
        "Precision, averaged over all thresholds by the fakes that each finds. It depends on the share of fakes.",
        is_share=False,
        needs="scores",
        value=average_precision,
    ),
    Metric(
        "eer",
        "equal error rate",
        "The share judged wrongly where as large a share of fakes is missed as of real images flagged.",
        direction="min",
        needs="scores",
        value=equal_error_rate,
        min_per_class=MIN_FOR_EER,
    ),
    _at_fpr("tpr_at_fpr_5", "5 %", 20),
    _at_fpr("tpr_at_fpr_1", "1 %", 100),
    _at_fpr("tpr_at_fpr_01", "0.1 %", 1000),
    Metric(
        "log_loss",
        "log loss",
        "Mean cross-entropy of the stated probabilities, in nats: 0.693 is a coin, less is better.",
        is_share=False,
        direction="min",
        needs="probabilities",
        value=log_loss,
        scale="log",
    ),
    Metric(
        "brier",
        "Brier score",
        "Mean squared distance of the stated probability from what is true; 0.25 is a coin.",
        is_share=False,
        direction="min",
        needs="probabilities",
        value=brier_score,
    ),
    Metric(
        "ece",
        "calibration error, debiased",
        "How far stated probabilities lie from the share that is fake (15 bins of equal width), less what chance would give.",
        direction="min",
        needs="probabilities",
        value=expected_calibration_error,
        scale="plain",
        interval=_ece_ends,
        min_images=MIN_FOR_ECE,
    ),
    _prior("precision_at_prior_01", "0.1 %", 1000),
    _prior("precision_at_prior_1", "1 %", 100),
    _prior("precision_at_prior_10", "10 %", 10),
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
        "The best accuracy over 100 thresholds, which is chosen on the test images.",
        needs="scores",
        value=oracle_accuracy,
    ),
)
METRICS: Mapping[str, Metric] = MappingProxyType({one.name: one for one in (*_ALL, *_OTHERS)})
