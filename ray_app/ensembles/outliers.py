"""Limit scores that are far from all others, so that a few images do not decide a fit."""

import logging
import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)

# At either end of the scores of a class, this many images or this fraction may be outliers.
OUTLIERS, OUTLIER_FRACTION = 2, 0.01


def limit_outliers(scores: Floats, fake: npt.NDArray[np.bool_]) -> Floats:
    """Move scores (n,) that are outside of the range of all others by more than its length.

    They are moved to this limit, and a warning is logged. A logistic regression minimises a sum of log-odds, in which one
    score of 10⁷ outweighs all images, so that all others would get the same probability. The range
    covers both classes, each without its few lowest and highest scores. So it does not depend on
    the fraction of fakes.
    """
    ranges = [_find_range(scores[fake == label]) for label in (False, True)]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if low == high:
        return scores
    limited: Floats = np.clip(scores, 2 * low - high, 2 * high - low)
    if moved := np.flatnonzero(limited != scores).tolist():
        _log.warning(
            "%d of %d scores are far outside of the range of all others (%.3g to %.3g), such as %.3g: the fit counts them as %.3g",
            len(moved),
            len(scores),
            low,
            high,
            scores[moved[0]],
            limited[moved[0]],
        )
    return limited


def _find_range(scores: Floats) -> tuple[float, float]:
    """Return the lowest and the highest score of a class, apart from its possible outliers."""
    n = len(scores)
    skipped = min(max(OUTLIERS, math.ceil(OUTLIER_FRACTION * n)), (n - 1) // 2)
    ordered = np.sort(scores)
    return float(ordered[skipped]), float(ordered[n - 1 - skipped])
