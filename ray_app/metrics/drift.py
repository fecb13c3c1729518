"""Compare distributions: two score histograms by Kolmogorov–Smirnov and the population stability
index (`drift_of`), and an archive with the images of a calibration (`find_shifts`).
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.arrays import Counts, Floats, ScoreHistogram

BINS = 10
_PIECE = 2**18  # scores that are looked at together

NOTICED_PSI = 0.1  # under it a population counts as stable (Siddiqi 2006, Credit Risk Scorecards)
LIMIT_PSI = 0.25  # from it as another one (there too)
# The index of a small archive is large by chance alone. This is the probability that any property of
# an archive without a difference is noticed.
NOTICED_P = 0.001

_HALF = 0.5  # added to each bin, so that the index of an empty one is finite
FRACTIONS = np.linspace(0, 1, 101)  # of fakes, in the mixtures that are tried


@dataclass(frozen=True, slots=True)
class Drift:
    """`ks`: the largest distance of the cumulative shares, 0 … 1, at score `at`. `psi`: the
    stability index. `p`s: of no drift at all.
    """

    ks: float
    ks_p: float
    at: float
    psi: float
    psi_p: float

    def row(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def drift_of(first: ScoreHistogram, second: ScoreHistogram) -> Drift | None:
    """All of it; None where one has no score. The images need not be the same; where they are, both
    p are too cautious.
    """
    if not first.n or not second.n:
        return None
    ks, ks_p, at = kolmogorov_smirnov(first, second)
    psi, psi_p = stability_index(first, second)
    return Drift(ks, ks_p, at, psi, psi_p)


@dataclass(frozen=True, slots=True)
class Shift:
    """How far an archive is from the images of a calibration in one property.

    Attributes:
        psi: Population stability index of the archive and a mixture of reals and fakes.
        chance: The index that chance alone exceeds in less than `NOTICED_P` of all archives, for
            all properties together.
        fakes: Fraction of fakes in the mixture.
        images: Number of images of the archive that have the property.
    """

    psi: float
    chance: float
    fakes: float
    images: int

    @property
    def limit(self) -> float:
        """The largest index that is not noticed."""
        return max(NOTICED_PSI, self.chance)

    @property
    def is_noticed(self) -> bool:
        """Whether the difference is large, and not chance."""
        return self.psi > self.limit

    @property
    def is_beyond(self) -> bool:
        """Whether the difference is so large that nothing known of the calibration holds."""
        return self.psi > max(LIMIT_PSI, self.chance)

    @property
    def is_conclusive(self) -> bool:
        """Whether the archive has images enough to show a difference of `LIMIT_PSI`."""
        return self.chance < LIMIT_PSI


def find_shifts(
    counts: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], *, score: str = "score"
) -> dict[str, Shift]:
    """Compare an archive with mixtures of a calibration's reals and fakes.

    An archive may have any fraction of fakes, and its files then have the properties of fakes in
    that fraction. An index against the calibration images as they are would call an archive unlike
    for its fraction of fakes alone. So each property is compared at the fraction that explains it
    best, among those at which the score is not noticed. Without this bound, reals that have become
    like fakes would pass for fakes.

    Args:
        counts: Per property, the images in each of its bins (k,): of the archive, of the reals,
            and of the fakes. Some property counts every image.
        score: The property that bounds the fraction of fakes.

    Returns:
        The shift in each property that both the archive and the reals have.
    """
    n_real = max((np.sum(real) for _, real, _ in counts.values()), default=0)
    n_fake = max((np.sum(fake) for _, _, fake in counts.values()), default=0)
    tested = {name: bins for name, bins in counts.items() if np.any(bins[0]) and np.any(bins[1])}
    if not tested:
        return {}
    fractions = FRACTIONS if n_fake else FRACTIONS[:1]
    per_real, per_fake = (1 - fractions) / n_real, fractions / max(n_fake, 1)
    p = NOTICED_P / len(tested)  # Bonferroni
    indices, chances, excess = dict[str, Floats](), dict[str, Floats](), dict[str, Floats]()
    for name, bins in tested.items():
        archive, real, fake = (np.asarray(images, np.float64) for images in bins)
        indices[name] = _mixture_indices(archive, real, fake, per_real, per_fake)
        chances[name] = _chance_indices(archive, real, fake, per_real, per_fake, p)
        excess[name] = indices[name] / np.maximum(NOTICED_PSI, chances[name])
    possible = np.ones(len(fractions), bool)
    if score in tested:
        possible = excess[score] <= max(1.0, excess[score].min())
    shifts = {}
    for name, bins in tested.items():
        best = int(np.where(possible, excess[name], np.inf).argmin())
        shifts[name] = Shift(
            psi=float(indices[name][best]),
            chance=float(chances[name][best]),
            fakes=float(fractions[best]),
            images=int(np.sum(bins[0])),
        )
    return shifts


def kolmogorov_smirnov(first: ScoreHistogram, second: ScoreHistogram) -> tuple[float, float, float]:
    """The two-sample statistic, its two-sided p, and the score at which the shares are farthest
    apart.

    p is scipy's asymptotic one: Kolmogorov's distribution of as many images as nm / (n + m). With
    ties it is too large rather than too small. Raises ValueError where one has no score.
    """
    from scipy.stats import kstwo

    n, m = _sizes(first, second)
    distance, at = 0.0, float(min(first.values[0], second.values[0]))
    for one, other in ((first, second), (second, first)):
        # A piece at a time: of 10⁷ distinct scores, arrays of all of them would be most of the
        # memory.
        for start in range(0, len(one.values), _PIECE):
            values = one.values[start : start + _PIECE]
            apart = np.abs(
                one.passed[start + 1 : start + 1 + len(values)] / one.n
                - _up_to(other, values) / other.n
            )
            place = int(apart.argmax())
            if apart[place] > distance:
                distance, at = float(apart[place]), float(values[place])
    p = float(kstwo.sf(distance, max(1, round(n * m / (n + m))))) if distance > 0 else 1.0
    return distance, min(1.0, p), at


def stability_index(
    first: ScoreHistogram, second: ScoreHistogram, bins: int = BINS
) -> tuple[float, float]:
    """The population stability index over bins of equal count of both together, and the p of its
    being 0. Symmetric.

    A bin counts half an image more than it has, so that an empty one stays finite. Below 0.1 is
    usually called stable, above 0.25 a change. Without drift it is about χ² of (bins − 1) over nm /
    (n + m) (Yurdakul 2018): in small runs it is large by chance alone. Fewer bins are left where
    scores tie. Raises ValueError where one has no score.
    """
    from scipy.stats import chi2

    n, m = _sizes(first, second)
    ends = np.unique(
        [
            _first_reached(first, second, math.ceil(share * (n + m) / bins))
            for share in range(1, bins)
        ]
    )
    counts = [np.diff(_up_to(one, ends), prepend=0, append=one.n) for one in (first, second)]
    filled = counts[0] + counts[1] > 0  # after the highest score there may be no image
    if filled.sum() < 2:
        return 0.0, 1.0
    index = float(_index(*(_halved(one[filled]) for one in counts)))
    return index, float(chi2.sf(index * n * m / (n + m), int(filled.sum()) - 1))


def quantiles_of(scores: ScoreHistogram, shares: tuple[float, ...]) -> list[float]:
    """The scores under or at which these shares of the images are, shares in (0, 1]. Raises
    ValueError where there is no score.
    """
    if not scores.n:
        raise ValueError("no score, no quantile")
    upto = np.cumsum(scores.counts)
    places = np.searchsorted(upto, [math.ceil(share * upto[-1] - 1e-9) for share in shares])
    found: list[float] = scores.values[places].tolist()
    return found


def _sizes(first: ScoreHistogram, second: ScoreHistogram) -> tuple[int, int]:
    n, m = first.n, second.n
    if not n or not m:
        raise ValueError(f"drift needs scores on both sides; there are {n:,} and {m:,}")
    return n, m


def _up_to(scores: ScoreHistogram, values: ArrayLike) -> Counts:
    """How many images score so high or lower, for each of some values."""
    return scores.passed[np.searchsorted(scores.values, values, "right")]


def _first_reached(first: ScoreHistogram, second: ScoreHistogram, images: int) -> float:
    """The lowest score at or under which there are so many images of both together."""

    def reached(value: float) -> int:
        return int(_up_to(first, value)) + int(_up_to(second, value))

    ends = [(one.values, bisect_left(one.values, images, key=reached)) for one in (first, second)]
    return min(float(values[end]) for values, end in ends if end < len(values))


def _mixture_indices(
    archive: Floats, real: Floats, fake: Floats, per_real: Floats, per_fake: Floats
) -> Floats:
    """Return the stability index for each mixture (s,), from the weights of one real and one fake.

    The weights are of all images, so that a property that only some images have, such as the JPEG
    quality, has as many reals and fakes as the mixture has.
    """
    expected = np.outer(per_real, real + _HALF) + np.outer(per_fake, fake + _HALF)
    return _index(_halved(archive), expected / expected.sum(axis=1, keepdims=True))


def _chance_indices(
    archive: Floats, real: Floats, fake: Floats, per_real: Floats, per_fake: Floats, p: float
) -> Floats:
    """Return for each mixture (s,) the index that chance alone exceeds with probability `p`.

    Without a difference the index is about χ² of (bins − 1) times 1/n + 1/m, for samples of n and m
    images (Yurdakul 2018). The mixture is a sample as well: its 1/m is at most that of its reals and
    fakes in their fractions.
    """
    from scipy.stats import chi2

    bins = int(((archive + real + fake) > 0).sum())
    if bins < 2:
        return np.zeros(len(per_real))
    reals, fakes = per_real * real.sum(), per_fake * fake.sum()
    total = reals + fakes
    fraction = np.divide(fakes, total, out=np.zeros(len(total)), where=total > 0)
    spread = 1 / archive.sum() + (1 - fraction) / real.sum() + fraction / max(fake.sum(), 1.0)
    return np.asarray(spread * chi2.isf(p, bins - 1))


def _index(first: Floats, second: Floats) -> Floats:
    """Return the population stability index of fractions per bin (…, k)."""
    return np.asarray(((first - second) * np.log(first / second)).sum(axis=-1))


def _halved(counts: Floats | Counts) -> Floats:
    """Return the fractions of the bins, each with half an image more than it has."""
    more = np.asarray(counts, np.float64) + _HALF
    return np.asarray(more / more.sum())
