"""Means of one number per image, with Student's interval, and what is bootstrapped over images. Knows numbers; knows no metric."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.figure import Figure, undefined

STUDENT, BOOTSTRAP = "student", "bootstrap"
DRAWS = 1000


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


def resampled(value: float, drawn: Sequence[float], n: int) -> Figure:
    """A figure of n images with the percentile interval of its bootstrap replicates; none where they are all alike, or there are none."""
    if not len(drawn) or min(drawn) == max(drawn):
        return Figure(value, n=n)
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return Figure(value, (low, high), BOOTSTRAP, n)


def ratio_figure(over: ArrayLike, under: ArrayLike, why: str) -> Figure:
    """The mean of values (n,) by the mean of other values (n,) of the same images, bootstrapped over images.

    Not defined of no image (`why` says so), and where the mean below is not above 0. Raises ValueError for lengths that differ.
    """
    pairs = np.stack([np.asarray(over, np.float64), np.asarray(under, np.float64)])
    n = pairs.shape[1]
    if not n:
        return undefined(why)
    above, below = pairs.mean(axis=1).tolist()
    if below <= 0:
        return undefined("what it is divided by is 0 on average", n)
    generator = np.random.default_rng(0)
    drawn = [pairs[:, generator.integers(n, size=n)].mean(axis=1) for _ in range(DRAWS)] if n > 1 else []
    return resampled(above / below, [float(one[0] / one[1]) for one in drawn if one[1] > 0], n)


def _student(n: int) -> float:
    """The 97.5 % point of Student's distribution for n values."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.975))
