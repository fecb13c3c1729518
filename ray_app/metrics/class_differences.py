"""In what do the files of two classes differ, and how strongly: one column at a time. Knows columns and labels; knows no file.

`effect` is comparable between numbers and words: the largest distance of the cumulative shares (KS), or half the sum of the differences of
shares (total variation): the share of one class that would have to be exchanged for both to be alike.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_app.metrics.arrays import Bools
from ray_app.metrics.drift import drift_of, quantiles_of
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.metrics.paired import holm

STRONG, NOTABLE = 0.25, 0.1
SURE = 0.01
LEAST = 20  # images of each class of which a column must be known
_MOST_VALUES = 64


@dataclass(frozen=True, slots=True)
class Difference:
    """One column's. `value`: of words the one whose shares differ most, of numbers the place of the largest distance; `real`, `fake`: the
    shares that have the value, or no more than it. `psi`, `medians` (real, fake): of numbers. `p_holm`: corrected for all columns.
    """

    name: str
    n_real: int
    n_fake: int
    effect: float
    p: float
    value: str | float
    real: float
    fake: float
    psi: float | None = None
    medians: tuple[float, float] | None = None
    p_holm: float = 1.0

    @property
    def strength(self) -> str:
        """`strong`, `notable` or `none`: what is within chance is none."""
        if self.p_holm > SURE or self.effect < NOTABLE:
            return "none"
        return "strong" if self.effect >= STRONG else "notable"

    def row(self) -> dict[str, Any]:
        """As plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__} | {
            "medians": list(self.medians) if self.medians else None,
            "strength": self.strength,
        }


def class_differences(columns: Mapping[str, NDArray[Any]], fakes: Bools) -> list[Difference]:
    """The differences of columns (n,), the strongest first, of those alike to a hundredth the first given: numbers (NaN: not known) or
    objects, texts or None. A column that is known of fewer than LEAST images of a class is left out.
    """
    found = [one for name, column in columns.items() if (one := _difference(name, column, fakes)) is not None]
    corrected = holm([one.p for one in found])
    found = [replace(one, p_holm=1.0 if p is None else p) for one, p in zip(found, corrected, strict=True)]
    return sorted(found, key=lambda one: -round(one.effect, 2))


def _difference(name: str, column: NDArray[Any], fakes: Bools) -> Difference | None:
    is_text = column.dtype.kind not in "biuf"
    known = np.array([value is not None for value in column], np.bool_) if is_text else ~np.isnan(column.astype(np.float64))
    sides = column[known & ~fakes], column[known & fakes]
    if min(map(len, sides)) < LEAST:
        return None
    return _of_words(name, *sides) if is_text else _of_numbers(name, *(side.astype(np.float64) for side in sides))


def _of_numbers(name: str, reals: NDArray[Any], fakes: NDArray[Any]) -> Difference:
    real, fake = ScoreHistogram.of(reals), ScoreHistogram.of(fakes)
    drift = drift_of(real, fake)
    assert drift is not None, "both sides have values"
    upto = [float(np.mean(side <= drift.at)) for side in (reals, fakes)]
    medians = quantiles_of(real, (0.5,))[0], quantiles_of(fake, (0.5,))[0]
    return Difference(name, len(reals), len(fakes), drift.ks, drift.ks_p, drift.at, upto[0], upto[1], drift.psi, medians)


def _of_words(name: str, reals: NDArray[Any], fakes: NDArray[Any]) -> Difference:
    from scipy.stats import chi2_contingency

    counts = [Counter(map(str, side)) for side in (reals, fakes)]
    values = [value for value, _ in (counts[0] + counts[1]).most_common(_MOST_VALUES)]
    table = np.array([[count[value] for value in values] + [count.total() - sum(count[value] for value in values)] for count in counts])
    table = table[:, table.sum(axis=0) > 0]
    shares = table / table.sum(axis=1, keepdims=True)
    apart = shares[1] - shares[0]
    most = max(range(len(values)), key=lambda place: (round(abs(apart[place]), 9), apart[place]))  # of two that mirror, the fakes' own
    p = float(chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0
    effect = float(np.abs(apart).sum() / 2)
    return Difference(name, len(reals), len(fakes), effect, p, values[most], float(shares[0][most]), float(shares[1][most]))
