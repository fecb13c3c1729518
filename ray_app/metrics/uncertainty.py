"""Compute 95 % intervals of metrics.

Proportions have the exact interval of Clopper and Pearson. Most other metrics have the interval of
the delete-a-group jackknife, which computes the metric again without each group of images. If
images are grouped by name (the generator of a fake, the source of a real image), intervals also
hold for further groups. A class without such groups is cut into `BLOCKS` random blocks.
`docs/evaluation.md` states the measured coverage.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ray_app.metrics.arrays import Bools, Floats

CLOPPER_PEARSON, JACKKNIFE = "clopper-pearson", "jackknife"
BLOCKS = 30
MIN_GROUPS = 8
"""Minimum number of groups for an interval that also holds for groups outside the data.

Fewer groups show too little about how further groups differ.
"""
MAX_GROUPS = 100
"""If there are more groups, they are merged at random, which saves time and keeps the width."""
Z95 = 1.959963984540054  # The 97.5 % quantile of the normal distribution.

Interval = tuple[float, float]
Scale = Literal["logit", "log", "plain"]
Codes = npt.NDArray[np.int64]


class Stratum(NamedTuple):
    """Images of one class in groups, of which the jackknife leaves out one at a time.

    The images may be a sample of all images of the class. The two classes, fake and real,
    are sampled independently of each other.

    Attributes:
        codes: The group of each image (of the sample, if there is one), 0 … `groups` − 1.
        groups: Number of groups, or of random blocks if `is_grouped` is False.
        is_grouped: Whether the groups are generators or sources by name, so that an interval holds
            for further generators or sources. False for random blocks.
        n: Number of all images of the class, from which the sample was drawn.
    """

    codes: Codes
    groups: int
    is_grouped: bool
    n: int

    @property
    def scale(self) -> float:
        """Factor that turns the variance of a metric of the sample into that of all `n` images.

        The factor is 1 for groups by name. For random blocks, it is the number of images of the
        sample divided by `n`.
        """
        return 1.0 if self.is_grouped else len(self.codes) / max(self.n, 1)


class Replicates(NamedTuple):
    """Values of a metric with each group of images of one class left out, for the jackknife.

    Attributes:
        values: The value of the metric without each group (groups,).
        fractions: The fraction of the images of the class that each group has (groups,).
        scale: Factor of the variance, below 1 for random blocks of a sample (`Stratum.scale`).
    """

    values: Floats
    fractions: Floats
    scale: float = 1.0


def make_stratum(
    m: int, names: npt.NDArray[np.object_] | None = None, n: int | None = None, seed: int = 0
) -> Stratum:
    """Return the images of one class in groups by name, or in random blocks, for the jackknife.

    If there are fewer than `MIN_GROUPS` names, the images are cut into random blocks. Intervals
    then hold for further images of these groups, not for further groups.

    Args:
        m: Number of images of the sample.
        names: The group name of each image (m,); None for random blocks.
        n: Number of images from which the sample was drawn; None for m.
        seed: Seed of the random blocks.

    Returns:
        The groups or blocks, with the number of the group or block of each image.
    """
    random = np.random.default_rng(seed)
    total = m if n is None else n
    if names is not None and m:
        distinct, codes = np.unique(names.astype(str), return_inverse=True)
        if len(distinct) > MAX_GROUPS:
            codes = (random.permutation(len(distinct)) % MAX_GROUPS)[codes]
        if len(distinct) >= MIN_GROUPS:
            return Stratum(codes.astype(np.int64), min(len(distinct), MAX_GROUPS), True, total)
    blocks = min(BLOCKS, m)
    return Stratum(random.permutation(m) % max(blocks, 1), blocks, False, total)


def proportion_interval(successes: float, n: float, tail: float = 0.025) -> Interval:
    """Return the exact interval of a proportion (Clopper and Pearson 1934).

    Args:
        successes: Successes, which need not be a whole number if n is an effective size.
        n: Trials, or the effective number of trials.
        tail: Probability beyond each end; 0.025 gives a 95 % interval.

    Raises:
        ValueError: n is less than 1, or successes are not between 0 and n.
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= n or n < 1:
        raise ValueError(
            f"successes must be between 0 and n, and n at least 1, got {successes} of {n}"
        )
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def fraction_interval(fraction: float, n: int) -> Interval:
    """Return the exact 95 % interval of a fraction of n images (Clopper and Pearson 1934).

    The fraction need not be that of a whole number of images.
    """
    return (
        proportion_interval(math.floor(fraction * n), n)[0],
        proportion_interval(math.ceil(fraction * n), n)[1],
    )


def effective_count(
    hits: Bools, strata: Sequence[tuple[Stratum, Bools]], fraction: float, n: int
) -> float:
    """Return how many independent images would give an equally precise proportion.

    Images of one group, such as those of one generator, are similar, so they are worth fewer
    independent images. The formula is n / deff · (t / t_df)² (Korn and Graubard 1998). If all
    groups have the same proportion, every group counts as one image.

    Args:
        hits: Whether each image of a sample (m,) is a success. The sample has only images that
            count for the proportion, such as fakes for the TPR.
        strata: For each class, its groups, and a mask (m,) of its images in `hits`.
        fraction: The proportion over all images, not only the sample.
        n: Number of all images that count for the proportion.
    """
    from scipy.special import stdtrit

    variance, squares, groups = 0.0, 0.0, float(n)
    for stratum, among in strata:
        part = (
            variance_of_mean(hits[among].astype(np.float64), stratum)
            * (among.sum() / len(hits)) ** 2
        )
        degrees = max(float(among.sum()) - 1, 1.0)
        if stratum.is_grouped:
            sizes = np.bincount(stratum.codes, minlength=stratum.groups).astype(np.float64) ** 2
            degrees = max(1.0, float(sizes.sum()) ** 2 / float((sizes**2).sum()) - 1)
        variance, squares = variance + part, squares + part**2 / degrees
        if stratum.is_grouped:
            groups = min(groups, float(stratum.groups))
    if not 0 < fraction < 1 or variance <= 0:
        return max(1.0, groups)
    freedom = variance**2 / squares
    size = min(float(n), fraction * (1 - fraction) / variance)
    return max(1.0, size * (Z95 / float(stdtrit(min(freedom, 1e9), 0.975))) ** 2)


def variance_of_mean(values: Floats, stratum: Stratum) -> float:
    """Return the variance of the mean of values of the images of one class.

    If the groups are generators or sources, the variance is computed from group totals, because
    images of one group are similar. Random blocks are ignored.

    Args:
        values: A value for each image (m,).
        stratum: The groups of these images.

    Returns:
        The variance; 0 for fewer than two images.
    """
    m = len(values)
    if m < 2:
        return 0.0
    off = values - values.mean()
    if not stratum.is_grouped:
        return float(off @ off) / (m - 1) / max(stratum.n, 1)
    totals = np.bincount(stratum.codes, off, stratum.groups)
    return stratum.groups / (stratum.groups - 1) * float(totals @ totals) / m**2


def jackknife(value: float, parts: Sequence[Replicates], scale: Scale = "logit") -> Interval | None:
    """Return the 95 % interval of a metric from its jackknife replicates.

    The variances of the two classes add up. Student's t has Satterthwaite's degrees of freedom. The
    interval is None if the replicates of each class are all equal, or if a class has fewer than two
    replicates. It is also None if `scale` maps the value or a replicate to infinity, for
    example a rate of 1 on the logit scale.

    Args:
        value: The metric of all images.
        parts: Replicates of each class.
        scale: `logit` for values between 0 and 1, `log` for values above 0, `plain` otherwise.
    """
    from scipy.special import stdtrit

    to_scale, from_scale = _SCALES[scale]
    scaled_value = to_scale(np.array([value]))
    variance, squares = 0.0, 0.0
    for part in parts:
        values = to_scale(part.values)
        if not np.isfinite(values).all() or len(values) < 2:
            return None
        part_variance, freedom = _variance_and_freedom(values, part)
        variance += part_variance
        squares += part_variance**2 / freedom
    if not np.isfinite(scaled_value).all() or variance <= 0:
        return None
    half = float(stdtrit(variance**2 / squares, 0.975)) * math.sqrt(variance)
    low, high = from_scale(
        np.array([float(scaled_value[0]) - half, float(scaled_value[0]) + half])
    ).tolist()
    return low, high


def difference_p_value(value: float, parts: Sequence[Replicates]) -> float:
    """Return the two-sided p-value for no difference, from jackknife replicates of a difference."""
    from scipy.special import stdtr

    terms = [_variance_and_freedom(part.values, part) for part in parts]
    total = sum(variance for variance, _ in terms)
    if total <= 0:
        return 1.0 if value == 0 else 0.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in terms)
    return float(2 * stdtr(freedom, -abs(value) / math.sqrt(total)))


def _variance_and_freedom(values: Floats, part: Replicates) -> tuple[float, float]:
    """Return the jackknife's variance, (G − 1) / G Σ (θ₋ᵍ − mean)², and its degrees of freedom.

    Groups of unequal size count for less: the degrees of freedom are those of the expected
    contributions, G − 1 if all groups are equal.
    """
    groups = len(values)
    variance = (groups - 1) / groups * float(((values - values.mean()) ** 2).sum())
    weights = (part.fractions / (1 - part.fractions)) ** 2
    freedom = float(weights.sum()) ** 2 / float((weights**2).sum()) - 1
    return variance * part.scale, max(1.0, freedom)


def _logit(values: Floats) -> Floats:
    from scipy.special import logit

    result: Floats = logit(values)
    return result


def _expit(values: Floats) -> Floats:
    from scipy.special import expit

    result: Floats = expit(values)
    return result


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(values)


def _identity(values: Floats) -> Floats:
    return values


_SCALES: dict[Scale, tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]] = {
    "logit": (_logit, _expit),
    "log": (_log, np.exp),
    "plain": (_identity, _identity),
}


def mean_replicates(values: Floats, strata: Sequence[tuple[Stratum, Bools]]) -> list[Replicates]:
    """Return the mean of values with each group of images left out, for the jackknife.

    A class keeps its weight in the mean if one of its groups is left out, so that only the mean of
    this class changes.

    Args:
        values: A value for each image (n,), of both classes.
        strata: For each class, its groups, and a mask (n,) of its images.

    Returns:
        For each class, the means of all values without each of its groups.
    """
    means = [float(values[mask].mean()) for _, mask in strata]
    fractions = [float(mask.mean()) for _, mask in strata]
    total_mean = sum(fraction * mean for fraction, mean in zip(fractions, means, strict=True))
    parts = []
    for (stratum, mask), fraction, mean in zip(strata, fractions, means, strict=True):
        sizes = np.bincount(stratum.codes, minlength=stratum.groups)
        totals = np.bincount(stratum.codes, values[mask], stratum.groups)
        remaining_mean = (mean * len(stratum.codes) - totals) / np.maximum(
            len(stratum.codes) - sizes, 1
        )
        parts.append(
            Replicates(
                total_mean + fraction * (remaining_mean - mean),
                sizes / len(stratum.codes),
                stratum.scale,
            )
        )
    return parts
