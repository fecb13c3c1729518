"""The mean of one number per image, with Student's interval. Knows numbers; knows neither images nor metrics."""

import math

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.figure import Figure, undefined

STUDENT = "student"


def mean_figure(values: ArrayLike, why: str, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Figure:
    """The mean of values (n,), each image counting once; NaN stands for an image without a value, and `n` counts the others.

    The 95 % interval is Student's, cut at `bounds`, outside which no value can lie. A single image and images that are all alike say
    nothing of their spread: they have none. Of no image at all the figure is not defined, and `why` says so.
    """
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    n = len(numbers)
    if not n:
        return undefined(why)
    mean = float(numbers.mean())
    spread = float(numbers.std(ddof=1)) if n > 1 and numbers.min() < numbers.max() else 0.0
    if spread == 0:
        return Figure(mean, n=n)
    half = _student(n) * spread / math.sqrt(n)
    return Figure(mean, (max(bounds[0], mean - half), min(bounds[1], mean + half)), STUDENT, n)


def _student(n: int) -> float:
    """The 97.5 % point of Student's distribution for n values."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.975))
