"""Curves of scored images with as many points as a chart can show: ROC (`roc_points`), precision and
recall (`precision_recall_points`), risk and coverage (`risk_coverage`), and `reliability`.

Every point is exact. Curves of many images leave points out, and move none.
"""

from typing import Any, NamedTuple

import numpy as np

from ray_app.metrics import uncertainty
from ray_app.metrics.arrays import Counts, Floats
from ray_app.metrics.registry import NO_IMAGES, ScoredImages
from ray_app.metrics.values import MetricValue, undefined

FEWEST_IN_BIN = 20
"""Images of a bin of a reliability diagram: the interval of fewer says next to nothing."""


class RiskCoverage(NamedTuple):
    """The errors among the images of which a detector is most sure.

    Attributes:
        points: Coverage and risk.
        aurc: The area under the curve (Geifman and El-Yaniv 2017).
    """

    points: list[tuple[float, float]]
    aurc: MetricValue


def roc_points(images: ScoredImages, most: int = 256) -> list[tuple[float, float, float]]:
    """Return corners (FPR, TPR, threshold) of the ROC curve from (0, 0) to (1, 1).

    A point is of the images that score at least as high as its threshold. The threshold of (0, 0)
    is the next number above the highest score.

    Args:
        images: The images. Images of one class have no curve.
        most: The number of points, at most.
    """
    if not images.n_fake or not images.n_real:
        return []
    curve = images.curve
    kept = _thin((curve.found, curve.alarms), most - 1)
    above_all = np.nextafter(curve.thresholds[0], np.inf)
    found = np.append(0.0, curve.found[kept])
    alarms = np.append(0.0, curve.alarms[kept])
    thresholds = np.append(above_all, curve.thresholds[kept])
    right, up = np.diff(alarms), np.diff(found)
    is_corner = np.concatenate([[True], right[:-1] * up[1:] != right[1:] * up[:-1], [True]])
    points = np.column_stack([alarms / images.n_real, found / images.n_fake, thresholds])
    return [(fpr, tpr, threshold) for fpr, tpr, threshold in points[is_corner].tolist()]


def precision_recall_points(images: ScoredImages, most: int = 256) -> list[tuple[float, float]]:
    """Return points (recall, precision) by rising recall.

    Args:
        images: The images. Images of one class have no curve.
        most: The number of points, at most.
    """
    if not images.n_fake or not images.n_real:
        return []
    curve = images.curve
    kept = _thin((curve.found, curve.alarms), most)
    found, flagged = curve.found[kept], curve.found[kept] + curve.alarms[kept]
    return list(zip((found / images.n_fake).tolist(), (found / flagged).tolist(), strict=True))


def risk_coverage(images: ScoredImages, most: int = 128) -> RiskCoverage:
    """Return how the fraction of errors rises with the fraction of images that are decided.

    Confidence is the distance of a score from the threshold. Coverage is the fraction of images that
    are at least so sure, and risk is the fraction of errors among them. Images of one confidence
    come in together. The area is the mean, over all images, of the risk at their own confidence.

    Args:
        images: The images.
        most: The number of points, at most.
    """
    n = len(images)
    if not n:
        return RiskCoverage([], undefined(NO_IMAGES))
    covered, errors = _count_by_confidence(images)
    risk = errors / covered
    area = float(np.diff(covered, prepend=0.0) @ risk) / n
    kept = _thin((covered - errors, errors), most)
    points = list(zip((covered[kept] / n).tolist(), risk[kept].tolist(), strict=True))
    why = "no interval is computed for this metric"
    return RiskCoverage(points, MetricValue(value=area, n=n, why=why))


def reliability(images: ScoredImages, bins: int = 10) -> list[dict[str, Any]]:
    """Return bins of equally many images by their probability of fake.

    Images of one probability are in one bin.

    Args:
        images: The images.
        bins: The number of bins, at most. Each has `FEWEST_IN_BIN` images if there are as many.

    Returns:
        For each bin its least and greatest probability (`low`, `high`), its images (`n`), their
        mean `probability`, and the fraction of fakes (`fake_share`) with its exact `interval`.
    """
    order = np.argsort(images.probabilities, kind="stable")
    probabilities, is_fake = images.probabilities[order], images.is_fake[order]
    n, start = len(images), 0
    found = []
    for left in range(min(bins, max(1, n // FEWEST_IN_BIN)), 0, -1):
        if start == n:
            break
        last = start - (start - n) // left - 1  # The fraction of what is left is rounded up.
        end = int(np.searchsorted(probabilities, probabilities[last], "right"))
        if n - end < FEWEST_IN_BIN:
            end = n
        inside, fakes = probabilities[start:end], int(is_fake[start:end].sum())
        found.append(
            {
                "low": float(inside[0]),
                "high": float(inside[-1]),
                "n": len(inside),
                "probability": float(inside.mean()),
                "fake_share": fakes / len(inside),
                "interval": list(uncertainty.proportion_interval(fakes, len(inside))),
            }
        )
        start = end
    return found


def _count_by_confidence(images: ScoredImages) -> tuple[Floats, Floats]:
    """Return how many images are at least so sure, and how many of those are errors, for each
    distinct confidence from the highest down.
    """
    doubt = -np.abs(images.scores.astype(np.float64) - images.threshold)
    order = np.argsort(doubt, kind="stable")
    errors = np.cumsum((images.flagged != images.is_fake)[order], dtype=np.float64)
    doubt = doubt[order]
    ends = np.append(np.flatnonzero(doubt[1:] != doubt[:-1]), len(images) - 1)
    return ends + 1.0, errors[ends]


def _thin(counts: tuple[Floats, Floats], most: int) -> Counts:
    """Return the places of a curve that are kept, with the first and the last one.

    Args:
        counts: For each of two kinds of images, how many have come in at each place, ascending.
        most: The number of places, at most. If there are more, half of those that stay are evenly
            spaced by the images of a kind, and the others are closer towards both ends.
    """
    if most < 16:
        raise ValueError(f"a curve needs 16 points or more, not {most}")
    if len(counts[0]) <= most:
        return np.arange(len(counts[0]))
    kept = []
    budget = most // 2
    for passed in counts:
        n = passed[-1]
        if n:
            tail = np.geomspace(1, n, budget // 4)
            even = np.linspace(1, n, budget - 2 * len(tail))
            ranks = np.concatenate([even, tail, n + 1 - tail]).round()
            kept.append(np.searchsorted(passed, ranks, "left"))
    return np.unique(np.concatenate(kept))
