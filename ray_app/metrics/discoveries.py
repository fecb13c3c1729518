"""Lists of fakes with few false ones among them, from scores of known reals alone. Knows scores; knows no runs and no files.

Conformal p-values (Vovk, Gammerman and Shafer 2005) against reals that nothing was fitted on, and the procedure of Benjamini and Hochberg
(1995) over them. Such p-values share their references and so depend on each other, but positively, and the procedure keeps its promise
(Bates, Candès, Lei, Romano and Sesia 2023, "Testing for outliers with conformal p-values", theorem 2): of what it lists, the expected
share of reals is at most the rate, if the archive's reals score like the references.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics.arrays import Floats

Counts = NDArray[np.int64]
_NEARLY = 1 - 1e-9  # candidates by floating point are looked at again with whole numbers


@dataclass(frozen=True)
class References:
    """Scores of known reals, ascending, float64 (n,), n ≥ 1."""

    scores: Floats

    @classmethod
    def of(cls, scores: ArrayLike) -> "References":
        """Those of scores (n,) in any order. Raises ValueError where there are none, or some are not finite."""
        ordered = np.sort(np.asarray(scores, np.float64))
        if not len(ordered) or not np.isfinite(ordered).all():
            raise ValueError("references are finite scores, and at least one")
        return cls(ordered)

    @property
    def n(self) -> int:
        """How many reals."""
        return len(self.scores)

    def reached(self, scores: Floats) -> Counts:
        """How many of the reals score as high as each of some scores (m,), or higher: int64 (m,)."""
        return self.n - np.searchsorted(self.scores, scores, "left")

    def p_values(self, scores: Floats) -> Floats:
        """(1 + reals that score so high) / (n + 1) of each score (m,)."""
        return (1 + self.reached(scores)) / (self.n + 1)

    def counted(self, scores: Floats) -> Counts:
        """How many of some scores (m,) no real reaches, how many one does, …: int64 (n + 1,). Those of pieces of an archive add up."""
        return np.bincount(self.reached(scores), minlength=self.n + 1)


@dataclass(frozen=True)
class Discoveries:
    """What a list at a rate consists of: the images whose score is above `above`.

    `tested` images were looked at, `count` of them are on the list; the greatest p-value on it is `p_value` (None: the list is empty).
    """

    rate: float
    n_references: int
    tested: int
    count: int
    above: float
    p_value: float | None


def discoveries(references: References, counts: ArrayLike, rate: float) -> Discoveries:
    """Those among images that `References.counted` has counted: by Benjamini and Hochberg at a rate between 0 and 1, exactly.

    A p-value can only be one of n + 1 numbers, so that counts of each are all there is to know, and their sums all there is to do.
    """
    at = np.asarray(counts, np.int64)
    share = Fraction(str(rate))
    if not 0 < share < 1 or len(at) != references.n + 1:
        raise ValueError(f"a rate is between 0 and 1, and counts are {references.n + 1}: {rate}, {len(at)}")
    tested, upto = int(at.sum()), np.cumsum(at)
    near = np.flatnonzero((at > 0) & ((1.0 + np.arange(len(at))) * tested * _NEARLY <= rate * (references.n + 1.0) * upto))
    whole = ((place, int(upto[place])) for place in near[::-1].tolist())
    found = next(((place, listed) for place, listed in whole if (1 + place) * tested <= share * (references.n + 1) * listed), None)
    if found is None:
        return Discoveries(rate, references.n, tested, 0, np.inf, None)
    reached, count = found
    above = float(references.scores[references.n - 1 - reached]) if reached < references.n else -np.inf
    return Discoveries(rate, references.n, tested, count, above, (1 + reached) / (references.n + 1))


def fewest_listed(references: References, tested: int, rate: float) -> int:
    """How many of the images tested must score above every real, for a list of any: with too few references no list can be."""
    return int(-(-tested // (Fraction(str(rate)) * (references.n + 1))))
