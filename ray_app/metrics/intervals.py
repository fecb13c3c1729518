"""Proportions and means of images with their 95 % intervals, as documents hold them."""

import math

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.uncertainty import CLOPPER_PEARSON, proportion_interval
from ray_app.metrics.values import MetricValue, undefined

STUDENT = "student"


def proportion(successes: int, n: int, why: str) -> MetricValue:
    """A share of n images with its Clopper–Pearson interval; of none it is not defined, and `why`
    says so.
    """
    if not n:
        return undefined(why)
    return MetricValue(
        successes / n, *proportion_interval(successes, n), n=n, method=CLOPPER_PEARSON
    )


def mean_figure(
    values: ArrayLike, why: str, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> MetricValue:
    """The mean of values (n,), each image counting once; NaN stands for an image without a value,
    and `n` counts the others.

    The 95 % interval is Student's, cut at `bounds`, outside which no value can lie. A single image
    and images that are all alike say nothing of their spread: they have none. Of no image at all
    the figure is not defined, and `why` says so.
    """
    from scipy.special import stdtrit

    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    n = len(numbers)
    if not n:
        return undefined(why)
    mean = float(numbers.mean())
    spread = float(numbers.std(ddof=1)) if n > 1 and numbers.min() < numbers.max() else 0.0
    if spread == 0:
        return MetricValue(value=mean, n=n)
    half = float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)
    return MetricValue(
        value=mean,
        low=max(bounds[0], mean - half),
        high=min(bounds[1], mean + half),
        method=STUDENT,
        n=n,
    )
