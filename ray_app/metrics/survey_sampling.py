"""Estimate the fraction of fakes and error rates from labels of a sample (`archive_figures`).

The estimates are for all images of an archive that have a verdict. The sample is stratified: random
images are drawn from each stratum, a part of the archive with one verdict and a range of scores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ray_app.metrics.uncertainty import CLOPPER_PEARSON, proportion_interval
from ray_app.metrics.values import MetricValue, undefined

FIGURES = ("prevalence", "precision", "recall", "false_positive_rate")


@dataclass(frozen=True)
class LabelledStratum:
    """A stratum of an archive: images with one verdict, of which a random sample is labelled.

    Attributes:
        size: Number of images.
        flagged: Whether the verdict on these images is fake.
        fakes: Number of images labelled as fake.
        reals: Number of images labelled as real.
        unsure: Number of sampled images that could not be labelled. They count as not sampled.
        name: Name in messages.
    """

    size: int
    flagged: bool
    fakes: int = 0
    reals: int = 0
    unsure: int = 0
    name: str = ""

    @property
    def labelled(self) -> int:
        """Number of images whose label is real or fake."""
        return self.fakes + self.reals


def archive_figures(strata: Sequence[LabelledStratum]) -> dict[str, MetricValue]:
    """Estimate the prevalence of fakes and the error rates of a run from labelled strata.

    A run scored an archive, and flagged the images whose verdict is fake. Recall and the
    false-positive rate are each computed from two estimated counts. Their intervals combine the
    worse ends of both counts, so they are wider than 95 % requires.

    Returns:
        `prevalence`, the fraction of fakes; `precision`, the fraction of fakes among the flagged
        images; `recall`, the fraction of fakes that are flagged; and `false_positive_rate`, the
        fraction of reals that are flagged.
    """
    flagged = [stratum for stratum in strata if stratum.flagged]
    passed = [stratum for stratum in strata if not stratum.flagged]
    n = sum(stratum.labelled for stratum in strata)
    n_flagged, n_passed = (sum(stratum.size for stratum in part) for part in (flagged, passed))
    prevalence, precision, missed = map(estimate_fraction, (strata, flagged, passed))
    hits, misses = (
        tuple(size * bound for bound in bounds)
        for size, bounds in (
            (n_flagged, _value_and_interval(precision)),
            (n_passed, _value_and_interval(missed)),
        )
    )
    recall = _ratio_bounds(hits, misses)
    rate = _ratio_bounds(_subtract(n_flagged, hits), _subtract(n_passed, misses))
    metrics = {"prevalence": prevalence, "precision": precision}
    for name, (value, low, high) in (("recall", recall), ("false_positive_rate", rate)):
        metrics[name] = MetricValue(value, low, high, n, CLOPPER_PEARSON)
    reasons = {name: _missing_reason(name, strata) for name in FIGURES}
    return {
        name: undefined(reason, n) if (reason := reasons[name]) else metric
        for name, metric in metrics.items()
    }


def estimate_fraction(strata: Sequence[LabelledStratum]) -> MetricValue:
    """Estimate the fraction of fakes among all images of some strata, from labels of a sample.

    The estimate weighs each stratum by its size (Horvitz and Thompson 1952), which is unbiased for
    any strata. The interval is exact (Clopper and Pearson 1934), for the effective number of labels
    (`effective_labels`). It is clipped to the fractions that the labels allow: all images labelled
    fake are fake, and all images labelled real are real.
    """
    total = sum(stratum.size for stratum in strata)
    n = sum(stratum.labelled for stratum in strata)
    if not total or any(stratum.size and not stratum.labelled for stratum in strata):
        return undefined("no image is labelled" if total else "there are no images", n)
    value = sum(stratum.size * stratum.fakes / stratum.labelled for stratum in strata) / total
    min_fraction = sum(stratum.fakes for stratum in strata) / total
    max_fraction = 1 - sum(stratum.reals for stratum in strata) / total
    n_effective = effective_labels(strata, value)
    low, high = (
        (value, value)
        if math.isinf(n_effective)
        else proportion_interval(value * n_effective, n_effective)
    )
    interval = min(max(low, min_fraction), value), max(min(high, max_fraction), value)
    return MetricValue(value, *interval, n, CLOPPER_PEARSON)


def effective_labels(strata: Sequence[LabelledStratum], value: float) -> float:
    """Return the number of labels in a simple random sample that would be equally informative.

    The number determines the width of the interval of an estimated fraction.

    It is infinity if every image is labelled. Otherwise it is the smaller of two effective sizes:
    by the variance of the estimate (Korn and Graubard 1998), and by the weights of the strata (Kish
    1965). The first alone would treat strata without a labelled fake as certain. The more images of
    a stratum are labelled, the less it contributes to the variance and to the weights.

    Args:
        strata: The strata with their numbers of labels.
        value: The estimated fraction of fakes among all images of the strata.

    Returns:
        The number of labels, which need not be a whole number.
    """
    total = sum(stratum.size for stratum in strata)
    variance = weights = 0.0
    for stratum in strata:
        if not stratum.size:
            continue
        fraction, n = stratum.fakes / stratum.labelled, stratum.labelled
        part = (stratum.size / total) ** 2 * (1 - n / stratum.size)
        weights += part / n
        variance += part * fraction * (1 - fraction) / max(n - 1, 1)
    if weights <= 0:
        return math.inf
    by_weights = 1 / weights
    by_variance = value * (1 - value) / variance if variance > 0 else math.inf
    return max(1.0, min(by_weights, by_variance))


def _value_and_interval(metric: MetricValue) -> tuple[float, float, float]:
    """Return the value and both ends of the interval; 0 to 1 if nothing is labelled."""
    low, high = metric.interval or (0.0, 1.0)
    return metric.value or 0.0, low, high


def _subtract(total: int, counts: tuple[float, ...]) -> tuple[float, ...]:
    value, low, high = counts
    return total - value, total - high, total - low


def _ratio_bounds(part: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, float, float]:
    """Return part / (part + other) with both ends, each from the worse ends of both."""
    pairs = [(part[0], other[0]), (part[1], other[2]), (part[2], other[1])]
    value, low, high = (a / (a + b) if a + b > 0 else 0.0 for a, b in pairs)
    return value, low, high


def _missing_reason(name: str, strata: Sequence[LabelledStratum]) -> str | None:
    """Return the reason why the labels do not give a metric, or None."""
    needed = [stratum for stratum in strata if stratum.flagged or name != "precision"]
    if not needed:
        return "no image is flagged as fake" if name == "precision" else "there are no images"
    if unlabelled := [stratum for stratum in needed if stratum.size and not stratum.labelled]:
        if not any(stratum.flagged for stratum in unlabelled) and not any(
            stratum.labelled for stratum in strata if not stratum.flagged
        ):
            return "only images flagged as fake are labelled"
        return (
            f"no image of stratum {', '.join(stratum.name for stratum in unlabelled)} is labelled"
        )
    if name == "recall" and not any(stratum.fakes for stratum in strata):
        return "no labelled image is fake"
    if name == "false_positive_rate" and not any(stratum.reals for stratum in strata):
        return "no labelled image is real"
    return None
