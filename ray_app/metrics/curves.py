"""Compute curves of scored images for charts, with a limited number of points.

The curves are ROC (`roc_points`), precision and recall (`precision_recall_points`), risk and
coverage (`risk_coverage`), and `reliability`. Every point is exact. If there are too many points,
some are left out, but none is moved.
"""

from typing import Any, NamedTuple

import numpy as np

from ray_app.metrics import uncertainty
from ray_app.metrics.arrays import Counts, Floats
from ray_app.metrics.registry import NO_IMAGES, ScoredImages
from ray_app.metrics.values import MetricValue, undefined

MIN_IN_BIN = 20
"""Minimum images in a bin of a reliability diagram; with fewer, the interval is too wide."""


class RiskCoverage(NamedTuple):
    """Risk–coverage curve: the errors among the images on which a detector is most confident.

    Attributes:
        points: Points (coverage, risk) of the curve.
        aurc: The area under the curve (Geifman and El-Yaniv 2017).
    """

    points: list[tuple[float, float]]
    aurc: MetricValue


def roc_points(images: ScoredImages, max_points: int = 256) -> list[tuple[float, float, float]]:
    """Return corners (FPR, TPR, threshold) of the ROC curve from (0, 0) to (1, 1).

    A point has the rates for the images that score at least as high as its threshold. The threshold
    of (0, 0) is the next number above the highest score.

    Args:
        images: The images. If a class is missing, the result is empty.
        max_points: Maximum number of points.

    Raises:
        ValueError: `max_points` is less than 17.
    """
    if max_points < 17:
        raise ValueError(f"max_points must be at least 17, got {max_points}")
    if not images.n_fake or not images.n_real:
        return []
    curve = images.curve
    indices = _thin((curve.true_positives, curve.false_positives), max_points - 1)
    above_all = np.nextafter(curve.thresholds[0], np.inf)
    hits = np.append(0.0, curve.true_positives[indices])
    alarms = np.append(0.0, curve.false_positives[indices])
    thresholds = np.append(above_all, curve.thresholds[indices])
    right, up = np.diff(alarms), np.diff(hits)
    is_corner = np.concatenate([[True], right[:-1] * up[1:] != right[1:] * up[:-1], [True]])
    points = np.column_stack([alarms / images.n_real, hits / images.n_fake, thresholds])
    return [(fpr, tpr, threshold) for fpr, tpr, threshold in points[is_corner].tolist()]


def precision_recall_points(
    images: ScoredImages, max_points: int = 256
) -> list[tuple[float, float]]:
    """Return points (recall, precision) of the precision–recall curve, by rising recall.

    Args:
        images: The images. If a class is missing, the result is empty.
        max_points: Maximum number of points.

    Raises:
        ValueError: `max_points` is less than 16.
    """
    if not images.n_fake or not images.n_real:
        return []
    curve = images.curve
    indices = _thin((curve.true_positives, curve.false_positives), max_points)
    hits, flagged = (
        curve.true_positives[indices],
        curve.true_positives[indices] + curve.false_positives[indices],
    )
    return list(zip((hits / images.n_fake).tolist(), (hits / flagged).tolist(), strict=True))


def risk_coverage(images: ScoredImages, max_points: int = 128) -> RiskCoverage:
    """Return how the fraction of errors rises with the fraction of images that are decided.

    Confidence is the distance of a score from the threshold. The images with the highest confidence
    are decided first. Coverage is the fraction of images with at least a certain confidence, and
    risk is the fraction of errors among them. Images of equal confidence are one point. The area
    under the curve is the mean, over all images, of the risk at the image's confidence.

    Args:
        images: The images.
        max_points: Maximum number of points.

    Raises:
        ValueError: `max_points` is less than 16.
    """
    n = len(images)
    if not n:
        return RiskCoverage([], undefined(NO_IMAGES))
    covered, errors = _count_by_confidence(images)
    risk = errors / covered
    area = float(np.diff(covered, prepend=0.0) @ risk) / n
    indices = _thin((covered - errors, errors), max_points)
    points = list(zip((covered[indices] / n).tolist(), risk[indices].tolist(), strict=True))
    reason = "no interval is computed for this metric"
    return RiskCoverage(points, MetricValue(value=area, n=n, why=reason))


def reliability(images: ScoredImages, bins: int = 10) -> list[dict[str, Any]]:
    """Return the bins of a reliability diagram: P(fake) against the fraction of fakes.

    The bins have equal numbers of images, except that images of equal probability are in one bin.

    Args:
        images: The images.
        bins: Maximum number of bins. Each has at least `MIN_IN_BIN` images if there are that many.

    Returns:
        For each bin its lowest and highest probability (`low`, `high`), its number of images (`n`),
        their mean `probability`, and the fraction of fakes (`fake_share`) with its exact
        `interval`.
    """
    order = np.argsort(images.probabilities, kind="stable")
    probabilities, is_fake = images.probabilities[order], images.is_fake[order]
    n, start = len(images), 0
    rows = []
    for remaining_bins in range(min(bins, max(1, n // MIN_IN_BIN)), 0, -1):
        if start == n:
            break
        last = (
            start - (start - n) // remaining_bins - 1
        )  # The number of images per remaining bin is rounded up.
        end = int(np.searchsorted(probabilities, probabilities[last], "right"))
        if n - end < MIN_IN_BIN:
            end = n
        inside, fakes = probabilities[start:end], int(is_fake[start:end].sum())
        rows.append(
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
    return rows


def _count_by_confidence(images: ScoredImages) -> tuple[Floats, Floats]:
    """Count images and errors from the highest confidence down.

    Returns:
        For each distinct confidence, the number of images with at least this confidence, and the
        number of errors among them.
    """
    negative_confidence = -np.abs(images.scores.astype(np.float64) - images.threshold)
    order = np.argsort(negative_confidence, kind="stable")
    errors = np.cumsum((images.flagged != images.is_fake)[order], dtype=np.float64)
    negative_confidence = negative_confidence[order]
    last_indices = np.append(
        np.flatnonzero(negative_confidence[1:] != negative_confidence[:-1]), len(images) - 1
    )
    return last_indices + 1.0, errors[last_indices]


def _thin(counts: tuple[Floats, Floats], max_points: int) -> Counts:
    """Return the indices of the curve points to keep, including the first and the last one.

    Args:
        counts: For each of two kinds of images, how many have come in at each index, ascending.
        max_points: Maximum number of indices. If there are more, half of those that stay are evenly
            spaced by the images of a kind, and the others are denser towards both ends.
    """
    if max_points < 16:
        raise ValueError(f"max_points must be at least 16, got {max_points}")
    if len(counts[0]) <= max_points:
        return np.arange(len(counts[0]))
    index_parts = []
    budget = max_points // 2
    for passed in counts:
        n = passed[-1]
        if n:
            tail = np.geomspace(1, n, budget // 4)
            even = np.linspace(1, n, budget - 2 * len(tail))
            ranks = np.concatenate([even, tail, n + 1 - tail]).round()
            index_parts.append(np.searchsorted(passed, ranks, "left"))
    return np.unique(np.concatenate(index_parts))
