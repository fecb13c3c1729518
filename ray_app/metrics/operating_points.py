"""Means over generators (`averages`), and curves over all thresholds, thinned to what a chart can
show (`curve_points`, `precision_recall_points`).
"""

from collections.abc import Mapping

import numpy as np

from ray_app.metrics.arrays import Floats, ScoreHistogram
from ray_app.metrics.intervals import proportion
from ray_app.metrics.registry import NO_FAKES
from ray_app.metrics.values import MetricValue, undefined


def averages(rates: Mapping[str, tuple[int, int]]) -> dict[str, MetricValue]:
    """Over generators, each with the fakes found and the fakes there are: `tpr_mean` counts every
    generator alike, `tpr_weighted` images.

    OpenFake v1 prints the first and v2 the second, both as "Average TPR" (specs/detectors.md §11).
    One without an image is left out.
    """
    there = [(hits, n) for hits, n in rates.values() if n]
    total = sum(n for _, n in there)
    mean = (
        MetricValue(value=sum(hits / n for hits, n in there) / len(there), n=total)
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
