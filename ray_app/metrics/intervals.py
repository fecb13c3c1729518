"""Compute fractions and means of images with 95 % intervals (`proportion`, `mean_figure`)."""

import math

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.uncertainty import CLOPPER_PEARSON, proportion_interval
from ray_app.metrics.values import MetricValue, undefined

STUDENT = "student"


def proportion(successes: int, n: int, reason: str) -> MetricValue:
    """Return a fraction of n images with its Clopper–Pearson interval.

    Args:
        successes: Number of successes.
        n: Number of images.
        reason: Reason why the value is undefined if n is 0.
    """
    if not n:
        return undefined(reason)
    return MetricValue(
        successes / n, *proportion_interval(successes, n), n=n, method=CLOPPER_PEARSON
    )


def mean_figure(
    values: ArrayLike, reason: str, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> MetricValue:
    """Return the mean of values with its 95 % interval.

    The interval is Student's, clipped to `bounds`. A single value, or values that are all equal,
    have no interval.

    Args:
        values: A value for each image (n,). Images with NaN are left out, also from `n` of the
            result.
        reason: Reason why the mean is undefined if no value is left.
        bounds: The range of possible values.
    """
    from scipy.special import stdtrit

    present = np.asarray(values, dtype=np.float64)
    present = present[~np.isnan(present)]
    n = len(present)
    if not n:
        return undefined(reason)
    mean = float(present.mean())
    deviation = float(present.std(ddof=1)) if n > 1 and present.min() < present.max() else 0.0
    if deviation == 0:
        return MetricValue(value=mean, n=n)
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return MetricValue(
        value=mean,
        low=max(bounds[0], mean - half),
        high=min(bounds[1], mean + half),
        method=STUDENT,
        n=n,
    )
