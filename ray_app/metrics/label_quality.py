"""Audits of labels: in what the files of two classes differ (`class_differences`), and which labels a classifier doubts
(`confident_learning`, `crossed_probabilities`). Whether files alone tell the classes apart: `ray_app.metrics.shortcut`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics import significance
from ray_app.metrics.arrays import Bools, Floats, ScoreHistogram

STRONG, NOTABLE = 0.25, 0.1
SURE = 0.01
LEAST = 20  # images of each class of which a column must be known
_MOST_VALUES = 64

FOLDS = 5
MOST_SEEN = 20_000  # images that a fold's classifier learns from; more change no figure here
_STRENGTHS = (0.001, 0.01, 0.1, 1.0)


@dataclass(frozen=True, slots=True)
class Difference:
    """One column's. `effect`, comparable between numbers and words: the largest distance of the cumulative shares (KS), or half the sum of
    the differences of shares (total variation): the share of one class that would have to be exchanged for both to be alike.

    `value`: of words the one whose shares differ most, of numbers the place of the largest distance; `real`, `fake`: the
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
    corrected = significance.holm([one.p for one in found])
    found = [replace(one, p_holm=1.0 if p is None else p) for one, p in zip(found, corrected, strict=True)]
    return sorted(found, key=lambda one: -round(one.effect, 2))


@dataclass(frozen=True)
class ConfidentLearning:
    """`thresholds`: how sure the classifier is of real, and of fake, in the mean of those labelled so. `likely` (n,): the label that a row
    confidently belongs to, 0 real, 1 fake, -1 neither. `expected` (2, 2): how many labelled i are likely to be j, rows adding up to the
    counts of labels.
    """

    thresholds: tuple[float, float]
    likely: NDArray[np.int64]
    expected: Floats

    def suspicious(self, fakes: Bools) -> NDArray[np.int64]:
        """The rows whose confident label is not the given one."""
        return np.flatnonzero((self.likely >= 0) & (self.likely != fakes.astype(np.int64)))


def confident_learning(probabilities: ArrayLike, fakes: ArrayLike) -> ConfidentLearning:
    """Confident learning: out-of-sample probabilities of fake (n,) against labels (n,), true = fake.

    Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70 (2021), arXiv 1911.00068. The
    authors' cleanlab is under the AGPL, so the two formulas stand here. Raises ValueError where a class has no row.
    """
    chance, fake = np.asarray(probabilities, np.float64), np.asarray(fakes, np.bool_)
    if fake.all() or not fake.any():
        raise ValueError("confident learning needs both classes")
    both = np.stack([1 - chance, chance], axis=1)
    thresholds = np.array([both[~fake, 0].mean(), both[fake, 1].mean()])
    reached = np.where(both >= thresholds, both, -1.0)
    likely = np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)
    joint = np.array([[np.sum((likely == label) & (fake == given)) for label in (0, 1)] for given in (False, True)], np.float64)
    sums = joint.sum(axis=1, keepdims=True)
    shares = np.divide(joint, sums, out=np.eye(2), where=sums > 0)
    return ConfidentLearning((float(thresholds[0]), float(thresholds[1])), likely, shares * np.array([[(~fake).sum()], [fake.sum()]]))


def crossed_probabilities(features: Floats, fakes: Bools, groups: NDArray[np.int64], *, seed: int = 0) -> Floats:
    """(n,) the probability of fake by a logistic regression that saw no image of the same group; NaN where that could not be.

    features (n, d), finite, standardised here. Five folds of whole groups. How strongly weights are shrunk is chosen once, by the
    log-loss of the first fold.
    """
    random = np.random.default_rng(seed)
    names, codes = np.unique(groups, return_inverse=True)
    folds = random.permutation(len(names))[codes] % FOLDS
    chances = np.full(len(fakes), np.nan)
    from sklearn.metrics import log_loss

    strength: float | None = None
    for fold in range(FOLDS):
        seen, unseen = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(seen) > MOST_SEEN:
            seen = np.sort(random.choice(seen, MOST_SEEN, replace=False))
        if not len(unseen) or len(np.unique(fakes[seen])) < 2:
            continue
        tried = [strength] if strength is not None else list(_STRENGTHS)
        found = {one: _fitted(features[seen], fakes[seen], features[unseen], one) for one in tried}
        strength = strength or min(found, key=lambda one: float(log_loss(fakes[unseen], found[one], labels=[False, True])))
        chances[unseen] = found[strength]
    return chances


def _difference(name: str, column: NDArray[Any], fakes: Bools) -> Difference | None:
    is_text = column.dtype.kind not in "biuf"
    known = np.array([value is not None for value in column], np.bool_) if is_text else ~np.isnan(column.astype(np.float64))
    sides = column[known & ~fakes], column[known & fakes]
    if min(map(len, sides)) < LEAST:
        return None
    return _of_words(name, *sides) if is_text else _of_numbers(name, *(side.astype(np.float64) for side in sides))


def _of_numbers(name: str, reals: NDArray[Any], fakes: NDArray[Any]) -> Difference:
    real, fake = ScoreHistogram.of(reals), ScoreHistogram.of(fakes)
    drift = significance.drift_of(real, fake)
    assert drift is not None, "both sides have values"
    upto = [float(np.mean(side <= drift.at)) for side in (reals, fakes)]
    medians = significance.quantiles_of(real, (0.5,))[0], significance.quantiles_of(fake, (0.5,))[0]
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


def _fitted(seen: Floats, fakes: Bools, unseen: Floats, strength: float) -> Floats:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300)).fit(seen, fakes)
        return np.asarray(model.predict_proba(unseen)[:, 1], np.float64)
