"""Drift of scores, and of what files are like: Kolmogorov–Smirnov and the population stability
index of two score histograms (`drift_of`), and how far an archive is from any mixture of a
population's reals and fakes (`shift_of`, `most_fakes`).
"""

import math
from bisect import bisect_left
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.arrays import Counts, Floats, ScoreHistogram

BINS = 10
_PIECE = 2**18  # scores that are looked at together

NOTICED_PSI = 0.1  # under it a population counts as stable (Siddiqi 2006, Credit Risk Scorecards)
LIMIT_PSI = 0.25  # from it as another one (there too)
# so that small archives, whose index is large by chance alone, are not suspected; after Holm over
# the properties
NOTICED_P = 0.001

_SPARSE = 5.0  # images that a bin of the test has at least
_CLOSE = 1e-9


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


@dataclass(frozen=True)
class Shift:
    """How one property of an archive differs from the best mixture of a population's reals and
    fakes.

    `psi`: population stability index over the bins; `ks`: the largest distance of the cumulated
    shares at a bin's end, of words half the sum of all differences; `p`: of no difference, by χ²;
    `share`: of fakes in that mixture; `n`: images of the archive; `tells`: whether so few images
    could show a difference at the limit at all.
    """

    psi: float
    ks: float
    p: float
    share: float
    n: int
    tells: bool

    def noticed(self, p: float | None = None) -> bool:
        """Whether it is a difference, and no chance; `p` corrected for how many were looked at."""
        return self.psi > NOTICED_PSI and (self.p if p is None else p) < NOTICED_P

    def beyond(self, p: float | None = None) -> bool:
        """Whether it is so large that nothing known of the population holds for the archive."""
        return self.psi > LIMIT_PSI and self.noticed(p)


def shift_of(
    archive: ArrayLike,
    real: ArrayLike,
    fake: ArrayLike,
    *,
    most_fakes: float = 1.0,
    ordered: bool = True,
) -> Shift:
    """Compare counts (k,) of an archive with those of a population's reals and fakes over the same
    bins.

    More fakes than the population had are no shift: both are compared at the share of fakes at
    which they fit best. `most_fakes`: no larger share of fakes explains the archive; `ordered`:
    whether bins follow each other (numbers) or not (words). Raises ValueError where the archive or
    the reals have no image.
    """
    counts = np.stack([np.asarray(one, np.float64) for one in (archive, real, fake)])
    n, n_real, _ = counts.sum(axis=1)
    if not n or not n_real:
        raise ValueError(
            f"a shift needs images on both sides; there are {n:,.0f} and {n_real:,.0f}"
        )
    share, expected = _mixed(counts, most_fakes)
    found = _halved(counts[0])
    apart = counts[0] / n - _mixture(share, *(_shares(one) for one in counts[1:]))
    x2, freedom = _distance(counts, most_fakes)
    return Shift(
        psi=float(((found - expected) * np.log(found / expected)).sum()),
        ks=float(np.abs(np.cumsum(apart)).max() if ordered else np.abs(apart).sum() / 2),
        p=_survival(x2, freedom),
        share=share,
        n=int(n),
        tells=_survival(LIMIT_PSI * n * n_real / (n + n_real), len(counts[0]) - 1) < NOTICED_P,
    )


def most_fakes(archive: ArrayLike, real: ArrayLike, fake: ArrayLike) -> float:
    """The largest share of fakes that an archive's scores allow: that whose likelihood ratio to the
    best one has a p of `NOTICED_P`.

    Archive and population count as one sample of nm / (n + m) images, for the shares in each bin
    are known no better.
    """
    from scipy.stats import chi2

    counts = np.stack([np.asarray(one, np.float64) for one in (archive, real, fake)])
    n, m = counts[0].sum(), counts[1:].sum()
    if not n or not counts[2].sum():
        return 1.0
    reals, fakes = _halved(counts[1]), _halved(counts[2])
    best = _best_share(counts[0], reals, fakes, 1.0)
    allowed = chi2.isf(2 * NOTICED_P, 1) / 2 * n * (n + m) / (n * m)

    def worse(share: float) -> float:
        return float(
            (counts[0] * np.log(_mixture(best, reals, fakes) / _mixture(share, reals, fakes))).sum()
        )

    low, high = best, 1.0
    if worse(high) <= allowed:
        return 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if worse(middle) <= allowed else (low, middle)
    return high


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
    share_a, share_b = (_halved(one[filled]) for one in counts)
    index = float(((share_a - share_b) * np.log(share_a / share_b)).sum())
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


def _mixed(counts: Floats, most: float) -> tuple[float, Floats]:
    """The best share of fakes, and the shares (k,) of the bins in that mixture; no bin is empty."""
    reals, fakes = _halved(counts[1]), _halved(counts[2])
    share = _best_share(counts[0], reals, fakes, most) if counts[2].sum() else 0.0
    return share, _mixture(share, reals, fakes)


def _best_share(archive: Floats, reals: Floats, fakes: Floats, most: float) -> float:
    """The share of fakes ≤ `most` at which an archive is likeliest: its log-likelihood is concave,
    so that its slope is halved down.
    """
    low, high = 0.0, most
    while high - low > _CLOSE:
        middle = (low + high) / 2
        rises = (archive * (fakes - reals) / _mixture(middle, reals, fakes)).sum() > 0
        low, high = (middle, high) if rises else (low, middle)
    return low if low > _CLOSE else 0.0


def _distance(counts: Floats, most: float) -> tuple[float, int]:
    """The squared distance of archive and mixture in units of its covariance, a χ², and its degrees
    of freedom.

    All three samples are drawn ones: their multinomial covariances add up. The share of fakes is
    the one that brings the distance down most (generalised least squares); since its bound may keep
    it from that, no degree is taken away: p is too large rather than too small.
    """
    counts = _merged(counts)
    if counts.shape[1] == 1:
        return 0.0, 0
    totals = np.maximum(counts.sum(axis=1), 1)
    share, expected = _mixed(counts, most)
    fakes_of = counts[0] * share * _halved(counts[2]) / expected
    pooled = _halved(counts[1] + counts[0] - fakes_of), _halved(counts[2] + fakes_of)
    likely = _mixture(share, *pooled), *pooled
    weights = (1 / totals[0], (1 - share) ** 2 / totals[1], share**2 / totals[2])
    spread = sum(
        weight * (np.diag(one) - np.outer(one, one))
        for weight, one in zip(weights, likely, strict=True)
    )[:-1, :-1]
    found, reals, fakes = (counts / totals[:, None])[:, :-1]
    apart, lean = found - reals, fakes - reals
    bent = np.linalg.solve(spread, np.stack([apart, lean], axis=1))
    differ = float(lean @ bent[:, 1])
    share = float(np.clip(lean @ bent[:, 0] / differ, 0, most)) if share and differ else 0.0
    left = apart - share * lean
    return float(left @ (bent[:, 0] - share * bent[:, 1])), counts.shape[1] - 1


def _merged(counts: Floats) -> Floats:
    """The bins (3, k), neighbours put together until each would have a few images of the smaller of
    archive and reals.
    """
    n, n_real, _ = counts.sum(axis=1)
    images = (counts[0] + counts[1]) / (n + n_real) * min(n, n_real)
    ends, gathered = [], 0.0
    for place, one in enumerate(images.tolist()):
        gathered += one
        if gathered >= _SPARSE:
            ends.append(place + 1)
            gathered = 0.0
    # what is left at the end belongs to the last
    return np.add.reduceat(counts, [0, *ends[:-1]], axis=1)


def _survival(x2: float, freedom: int) -> float:
    from scipy.stats import chi2

    return float(chi2.sf(x2, freedom)) if freedom else 1.0


def _mixture(share: float, reals: Floats, fakes: Floats) -> Floats:
    return (1 - share) * reals + share * fakes


def _shares(counts: Floats) -> Floats:
    total = counts.sum()
    return counts / total if total else counts


def _halved(counts: Floats | Counts) -> Floats:
    """Shares of the bins, each with half an image more than it has."""
    return _shares(np.asarray(counts, np.float64) + 0.5)
