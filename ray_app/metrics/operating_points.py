"""Figures at one operating point (`rates_at`, `tpr_at_fpr`, `equal_error_rate`,
`precision_at_prior`), and curves over all thresholds, thinned to what a chart can show
(`curve_points`, `precision_recall_points`, `average_precision`).
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ray_app.metrics.arrays import FigureFacts, Floats, ScoreHistogram, undefined
from ray_app.metrics.intervals import CLOPPER_PEARSON, proportion, proportion_interval

NO_FAKES, NO_REALS, ONE_CLASS = (
    "there are no fakes",
    "there are no reals",
    "it needs real and fake images",
)
_NOTHING_FLAGGED = "no image is flagged as fake"
# beyond each end of each of two rates: both lie within with 95 % or more (Bonferroni)
_EACH_OF_TWO = 0.0125


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images by what they are and, behind it, what they are taken for."""

    fake_fake: int
    fake_real: int
    real_fake: int
    real_real: int

    @classmethod
    def at(
        cls, fakes: ScoreHistogram, reals: ScoreHistogram, threshold: float, strict: bool = True
    ) -> "Confusion":
        """That of a threshold: fake is what scores above it, or so high or above where not
        `strict`.
        """
        found, alarms = (
            one.above(threshold) if strict else one.at_or_above(threshold) for one in (fakes, reals)
        )
        return cls(found, fakes.n - found, alarms, reals.n - alarms)

    @property
    def n_fake(self) -> int:
        """How many images are fake."""
        return self.fake_fake + self.fake_real

    @property
    def n_real(self) -> int:
        """How many images are real."""
        return self.real_fake + self.real_real

    @property
    def n(self) -> int:
        """How many images."""
        return self.n_fake + self.n_real


def rates_at(counts: Confusion) -> dict[str, FigureFacts]:
    """TPR, TNR, balanced accuracy, accuracy, F1 and precision of fake, by name."""
    rates = {
        "tpr": proportion(counts.fake_fake, counts.n_fake, NO_FAKES),
        "tnr": proportion(counts.real_real, counts.n_real, NO_REALS),
        "balanced_accuracy": undefined(ONE_CLASS, counts.n),
        "accuracy": proportion(
            counts.fake_fake + counts.real_real, counts.n, "there are no images"
        ),
        "f1": undefined(ONE_CLASS, counts.n),
        "precision": undefined(ONE_CLASS, counts.n),
    }
    if counts.n_fake and counts.n_real:
        tpr, tnr = counts.fake_fake / counts.n_fake, counts.real_real / counts.n_real
        rates["balanced_accuracy"] = FigureFacts(value=(tpr + tnr) / 2, n=counts.n)
        rates["f1"] = FigureFacts(
            value=2 * counts.fake_fake / (counts.n_fake + counts.fake_fake + counts.real_fake),
            n=counts.n,
        )
        rates["precision"] = proportion(
            counts.fake_fake, counts.fake_fake + counts.real_fake, _NOTHING_FLAGGED
        )
    return rates


def precision_at_prior(counts: Confusion, prior: float) -> FigureFacts:
    """What share of flagged images would be fake where a share `prior` of all images is: π·TPR /
    (π·TPR + (1 − π)·FPR).

    The interval is from the Clopper–Pearson limits of both rates, each at 97.5 %, so that they hold
    together with 95 % or more: without a single false alarm among few reals the value is 1, and the
    interval says how little that means.
    """
    if not counts.n_fake or not counts.n_real:
        return undefined(ONE_CLASS, counts.n)
    if not counts.fake_fake + counts.real_fake:
        return undefined(_NOTHING_FLAGGED, counts.n)
    fewest_found, most_found = proportion_interval(counts.fake_fake, counts.n_fake, _EACH_OF_TWO)
    fewest_alarms, most_alarms = proportion_interval(counts.real_fake, counts.n_real, _EACH_OF_TWO)
    value = _precision(counts.fake_fake / counts.n_fake, counts.real_fake / counts.n_real, prior)
    ends = (
        _precision(fewest_found, most_alarms, prior),
        _precision(most_found, fewest_alarms, prior),
    )
    return FigureFacts(value=value, interval=ends, method=CLOPPER_PEARSON, n=counts.n)


def found_at_fpr(fakes: ScoreHistogram, reals: ScoreHistogram, one_in: int) -> int:
    """How many fakes are found where no more than one real in `one_in` is flagged: never more than
    that, whatever the ties.

    Flagged is what scores above the first real that would be one too many; with fewer than `one_in`
    reals, above all of them.
    """
    return fakes.above(float(reals.ranked(reals.n - 1 - reals.n // one_in)))


def tpr_at_fpr(fakes: ScoreHistogram, reals: ScoreHistogram, one_in: int) -> FigureFacts:
    """TPR where no more than one real in `one_in` is flagged (`found_at_fpr`).

    Not defined with fewer than `one_in` reals: a threshold above all n of them lets through 1 / (n
    + 1) of further ones on average, which is more than the rate that the figure is named after. No
    interval here: the threshold is itself estimated, which Clopper and Pearson's would leave out.
    """
    n = fakes.n + reals.n
    if not fakes.n or not reals.n:
        return undefined(ONE_CLASS, n)
    if reals.n < one_in:
        return undefined(
            f"a false alarm in {one_in:,} needs {one_in:,} reals or more; there are {reals.n:,}", n
        )
    return FigureFacts(value=found_at_fpr(fakes, reals, one_in) / fakes.n, n=n)


def equal_error_rate(fakes: ScoreHistogram, reals: ScoreHistogram) -> FigureFacts:
    """The rate at which FPR and FNR are equal, on the ROC curve whose points, one for each distinct
    score, are joined by straight lines.

    Exact: FPR − FNR falls from point to point, so the line on which it passes zero is found by
    bisection.
    """
    n = fakes.n + reals.n
    if not fakes.n or not reals.n:
        return undefined(ONE_CLASS, n)
    beyond = _surplus_ends(fakes, reals)
    before = max(
        float(one.values[end - 1]) for one, end in zip((fakes, reals), beyond, strict=True) if end
    )
    after = min(
        (
            float(one.values[end])
            for one, end in zip((fakes, reals), beyond, strict=True)
            if end < len(one.values)
        ),
        default=None,
    )
    alarms, missed = reals.at_or_above(before) / reals.n, 1 - fakes.at_or_above(before) / fakes.n
    next_alarms, next_missed = (
        (0.0, 1.0)
        if after is None
        else (reals.at_or_above(after) / reals.n, 1 - fakes.at_or_above(after) / fakes.n)
    )
    way = (alarms - missed) / (alarms - missed + next_missed - next_alarms)
    return FigureFacts(value=alarms + way * (next_alarms - alarms), n=n)


def equal_error_threshold(fakes: ScoreHistogram, reals: ScoreHistogram) -> float:
    """The highest score at which, where all that score so high are flagged, FPR is no lower than
    FNR.

    There must be fakes and reals.
    """
    beyond = _surplus_ends(fakes, reals)
    return max(
        float(one.values[end - 1]) for one, end in zip((fakes, reals), beyond, strict=True) if end
    )


def averages(rates: Mapping[str, tuple[int, int]]) -> dict[str, FigureFacts]:
    """Over generators, each with the fakes found and the fakes there are: `tpr_mean` counts every
    generator alike, `tpr_weighted` images.

    OpenFake v1 prints the first and v2 the second, both as "Average TPR" (specs/detectors.md §11).
    One without an image is left out.
    """
    there = [(hits, n) for hits, n in rates.values() if n]
    total = sum(n for _, n in there)
    mean = (
        FigureFacts(value=sum(hits / n for hits, n in there) / len(there), n=total)
        if there
        else undefined(NO_FAKES)
    )
    return {
        "tpr_mean": mean,
        "tpr_weighted": proportion(sum(hits for hits, _ in there), total, NO_FAKES),
    }


def curve_points(
    fakes: ScoreHistogram, reals: ScoreHistogram, most: int = 256
) -> list[tuple[float, float, float]]:
    """The ROC curve's corners (FPR, TPR, threshold) from (0, 0) to (1, 1), no more than `most`; a
    DET curve is drawn from the same.

    A point is of the images that score at least as high as its threshold, so every point is exact;
    thinning leaves points out and moves none. Fake is what scores at the threshold or above; that
    of (0, 0) is the next number above the highest score. Where there are more points, those at even
    and at logarithmic distances from both ends of each class stay. Empty with one class. Raises
    ValueError where `most` is less than 16.
    """
    if not fakes.n or not reals.n:
        return []
    thresholds = thinned(fakes, reals, most)
    thresholds = np.concatenate([[np.nextafter(thresholds[0], np.inf)], thresholds])
    alarms, found = reals.n - reals.below(thresholds), fakes.n - fakes.below(thresholds)
    moves = np.concatenate([[True], np.diff(alarms) + np.diff(found) > 0])
    alarms, found, thresholds = alarms[moves], found[moves], thresholds[moves]
    right, up = np.diff(alarms), np.diff(found)
    corner = np.concatenate([[True], right[:-1] * up[1:] != right[1:] * up[:-1], [True]])
    points = np.column_stack([alarms / reals.n, found / fakes.n, thresholds])[corner]
    return [(fpr, tpr, threshold) for fpr, tpr, threshold in points.tolist()]


def precision_recall_points(
    fakes: ScoreHistogram, reals: ScoreHistogram, most: int = 256
) -> list[tuple[float, float]]:
    """Points (recall, precision) by rising recall, no more than `most`, thinned as `curve_points`
    are; empty with one class.
    """
    if not fakes.n or not reals.n:
        return []
    thresholds = thinned(fakes, reals, most)
    found = fakes.n - fakes.below(thresholds)
    flagged = found + reals.n - reals.below(thresholds)
    points = np.column_stack(
        [found[flagged > 0] / fakes.n, found[flagged > 0] / flagged[flagged > 0]]
    )
    return [(recall, precision) for recall, precision in points.tolist()]


def average_precision(fakes: ScoreHistogram, reals: ScoreHistogram, *, even: bool = False) -> float:
    """The share of fakes among all that score at least as high, averaged over the fakes: precision
    over recall, without interpolation.

    There must be fakes. `even`: as if there were as many real images as fakes; then there must be
    some.
    """
    found = fakes.n - fakes.passed[:-1]
    alarms = (reals.n - reals.below(fakes.values)) * (fakes.n / reals.n if even else 1)
    flagged = np.maximum(found + alarms, 1)  # a resampled histogram may end in values of no image
    return float(fakes.counts @ (found / flagged)) / fakes.n


def _precision(tpr: float, fpr: float, prior: float) -> float:
    return prior * tpr / (prior * tpr + (1 - prior) * fpr)


def _surplus_ends(fakes: ScoreHistogram, reals: ScoreHistogram) -> tuple[int, int]:
    """For the values of each class the first that, as the lowest one to be flagged, gives a lower
    FPR than FNR.
    """

    def has_fewer_alarms(value: float) -> bool:
        threshold = float(value)
        return (
            reals.at_or_above(threshold) * fakes.n
            < (fakes.n - fakes.at_or_above(threshold)) * reals.n
        )

    fakes_end, reals_end = (
        bisect_left(one.values, True, key=has_fewer_alarms) for one in (fakes, reals)
    )
    return fakes_end, reals_end


def thinned(first: ScoreHistogram, second: ScoreHistogram, most: int) -> Floats:
    """Fewer than `most` distinct values of both in descending order, with the lowest: all where
    they are few enough.
    """
    if most < 16:
        raise ValueError(f"a curve of {most} points is none; 16 are the fewest")
    if len(first.values) + len(second.values) < 2 * most:
        every = np.union1d(first.values, second.values)
        if len(every) < most:
            return every[::-1]
    budget = (most - 1) // 2
    return np.unique(
        np.concatenate([_spread_out(one, budget) for one in (first, second) if one.n])
    )[::-1]


def _spread_out(scores: ScoreHistogram, budget: int) -> Floats:
    """Scores at `budget` places of the ranking: half of them evenly, the others closer towards both
    ends, where a DET curve looks.
    """
    last = scores.n - 1
    tail = np.geomspace(1, scores.n, budget // 4) - 1
    ranks = np.concatenate([np.linspace(0, last, budget - 2 * len(tail)), tail, last - tail])
    return scores.ranked(ranks.round().astype(np.int64))
