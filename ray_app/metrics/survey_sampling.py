"""Estimate fractions of a whole archive from labels of a stratified sample (`archive_figures`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ray_app.metrics.uncertainty import CLOPPER_PEARSON, proportion_interval
from ray_app.metrics.values import MetricValue, undefined

FIGURES = ("prevalence", "precision", "recall", "false_positive_rate")


@dataclass(frozen=True)
class LabelledStratum:
    """Images of which some, drawn at random, are labelled.

    Attributes:
        size: Number of images.
        flagged: Whether their verdict is fake.
        fakes: Images that are labelled as fake.
        reals: Images that are labelled as real.
        unsure: Drawn images that could not be labelled. They count as not drawn.
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
        """Images whose label is real or fake."""
        return self.fakes + self.reals


def archive_figures(strata: Sequence[LabelledStratum]) -> dict[str, MetricValue]:
    """Return `prevalence`, the fraction of fakes; `precision`, that among the flagged images;
    `recall`, the fraction of fakes that is flagged; and `false_positive_rate`, the fraction of
    reals that is flagged.

    Intervals of recall and of the false-positive rate have both of their counts at the worse ends,
    and so are wider than 95 % needs.
    """
    flagged = [stratum for stratum in strata if stratum.flagged]
    passed = [stratum for stratum in strata if not stratum.flagged]
    n = sum(stratum.labelled for stratum in strata)
    calls, rest = (sum(stratum.size for stratum in part) for part in (flagged, passed))
    whole, hit, missed = map(estimate_fraction, (strata, flagged, passed))
    hits, misses = (
        tuple(size * end for end in ends)
        for size, ends in ((calls, _all_ends(hit)), (rest, _all_ends(missed)))
    )
    recall = _ratios(hits, misses)
    rate = _ratios(_rest(calls, hits), _rest(rest, misses))
    figures = {"prevalence": whole, "precision": hit}
    for name, (value, low, high) in (("recall", recall), ("false_positive_rate", rate)):
        figures[name] = MetricValue(value, low, high, n, CLOPPER_PEARSON)
    reasons = {name: _missing(name, strata) for name in FIGURES}
    return {
        name: undefined(reason, n) if (reason := reasons[name]) else figure
        for name, figure in figures.items()
    }


def estimate_fraction(strata: Sequence[LabelledStratum]) -> MetricValue:
    """Return the fraction of fakes among all images of these strata.

    The estimate weighs each stratum by its size (Horvitz and Thompson 1952), which is unbiased for
    any strata. The interval is exact (Clopper and Pearson 1934), of as many images as the labels are
    worth. It holds at least the labelled fakes and at most all but the labelled reals.
    """
    total = sum(stratum.size for stratum in strata)
    n = sum(stratum.labelled for stratum in strata)
    if not total or any(stratum.size and not stratum.labelled for stratum in strata):
        return undefined("no image is labelled" if total else "there are no images", n)
    value = sum(stratum.size * stratum.fakes / stratum.labelled for stratum in strata) / total
    least = sum(stratum.fakes for stratum in strata) / total
    most = 1 - sum(stratum.reals for stratum in strata) / total
    worth = effective_labels(strata, value)
    low, high = (value, value) if math.isinf(worth) else proportion_interval(value * worth, worth)
    ends = min(max(low, least), value), max(min(high, most), value)
    return MetricValue(value, *ends, n, CLOPPER_PEARSON)


def effective_labels(strata: Sequence[LabelledStratum], value: float) -> float:
    """Return how many labels of a simple random sample know the fraction as well; infinity if every
    image is labelled.

    It is the smaller number of two: that of the estimate's variance (Korn and Graubard 1998), and
    that of the weights (Kish 1965). The former alone would take strata without a labelled fake for
    certain. Both count a stratum for less the more of its images are labelled.
    """
    total = sum(stratum.size for stratum in strata)
    variance = weights = 0.0
    for stratum in strata:
        if not stratum.size:
            continue
        share, n = stratum.fakes / stratum.labelled, stratum.labelled
        part = (stratum.size / total) ** 2 * (1 - n / stratum.size)
        weights += part / n
        variance += part * share * (1 - share) / max(n - 1, 1)
    if weights <= 0:
        return math.inf
    by_weights = 1 / weights
    by_variance = value * (1 - value) / variance if variance > 0 else math.inf
    return max(1.0, min(by_weights, by_variance))


def _all_ends(figure: MetricValue) -> tuple[float, float, float]:
    """Return the value and both ends; 0 to 1 if nothing is labelled."""
    low, high = figure.interval or (0.0, 1.0)
    return figure.value or 0.0, low, high


def _rest(total: int, counts: tuple[float, ...]) -> tuple[float, ...]:
    value, low, high = counts
    return total - value, total - high, total - low


def _ratios(part: tuple[float, ...], rest: tuple[float, ...]) -> tuple[float, float, float]:
    """Return part / (part + rest) and both of its ends, each from the worse ends of both."""
    pairs = [(part[0], rest[0]), (part[1], rest[2]), (part[2], rest[1])]
    value, low, high = (a / (a + b) if a + b > 0 else 0.0 for a, b in pairs)
    return value, low, high


def _missing(name: str, strata: Sequence[LabelledStratum]) -> str | None:
    """Return why labels show nothing of a figure, or None."""
    needed = [stratum for stratum in strata if stratum.flagged or name != "precision"]
    if not needed:
        return "no image is flagged as fake" if name == "precision" else "there are no images"
    if unseen := [stratum for stratum in needed if stratum.size and not stratum.labelled]:
        if not any(stratum.flagged for stratum in unseen) and not any(
            stratum.labelled for stratum in strata if not stratum.flagged
        ):
            return "only images flagged as fake are labelled"
        return f"no image of stratum {', '.join(stratum.name for stratum in unseen)} is labelled"
    if name == "recall" and not any(stratum.fakes for stratum in strata):
        return "no labelled image is fake"
    if name == "false_positive_rate" and not any(stratum.reals for stratum in strata):
        return "no labelled image is real"
    return None
