"""Audits of labels: in what the files of two classes differ (`class_differences`), which labels a classifier doubts (`confident_learning`,
`crossed_probabilities`), and how well metadata alone predicts the label (`shortcut_auc`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics import detection, significance
from ray_app.metrics.arrays import Bools, Floats, MetricEstimate, ScoreHistogram, undefined

STRONG, NOTABLE = 0.25, 0.1
SURE = 0.01
LEAST = 20  # images of each class of which a column must be known
_MOST_VALUES = 64

FOLDS = 5
MOST_SEEN = 20_000  # images that a fold's classifier learns from; more change no figure here
_STRENGTHS = (0.001, 0.01, 0.1, 1.0)

# The AUC above which metadata alone predict too much: a detector's figures may then show how well it reads formats and sizes.
CONFOUNDED = 0.6
_LEAST = 2 * FOLDS  # images of each class: below, a fold holds next to nothing
_MOST_CATEGORIES = 64


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


def shortcut_auc(features: Mapping[str, ArrayLike], fakes: ArrayLike, groups: ArrayLike | None = None, *, seed: int = 0) -> MetricEstimate:
    """How well metadata alone predicts fakes: the AUC of scores out of fold, of boosted trees of depth 3, with DeLong's interval.

    features: columns (n,), numbers (NaN: not known) or texts (None: not known). `fakes`: bool (n,). `groups` (n,): images of one group
    stay in one of the five folds; they are used only where each class has five groups or more. The same numbers for the same seed.
    Undefined with fewer than ten images of a class. Raises ValueError for lengths that differ.
    """
    fake = np.asarray(fakes, dtype=np.bool_)
    columns = [_column(name, values, len(fake)) for name, values in sorted(features.items())]
    fewest = min(int(fake.sum()), int((~fake).sum()))
    if fewest < _LEAST:
        return undefined(f"a classifier on metadata takes {_LEAST} images of each class; one has {fewest}", len(fake))
    varying = [(column, is_text) for column, is_text in columns if _varies(column)]
    if not varying:
        return undefined("all files are alike in their metadata", len(fake))
    matrix = np.column_stack([column for column, _ in varying])
    scores = _out_of_fold(matrix, [is_text for _, is_text in varying], fake, _used_groups(groups, fake), seed)
    return detection.auc_figure(ScoreHistogram.of(scores[fake]), ScoreHistogram.of(scores[~fake]))


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


def _out_of_fold(matrix: Floats, is_text: Sequence[bool], fake: Bools, groups: NDArray[np.int64] | None, seed: int) -> Floats:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
    from threadpoolctl import threadpool_limits

    folds = (StratifiedKFold if groups is None else StratifiedGroupKFold)(FOLDS, shuffle=True, random_state=seed)
    scores = np.zeros(len(fake))
    for seen, unseen in folds.split(matrix, fake, groups):
        if len(np.unique(fake[seen])) < 2:
            continue
        # Few and shallow trees of large leaves: what they find is plain to see, and a fold takes a second for 10⁵ images.
        model = HistGradientBoostingClassifier(
            max_iter=40, max_depth=3, min_samples_leaf=max(5, len(seen) // 200), categorical_features=list(is_text),
            early_stopping=False, random_state=seed,
        )  # fmt: skip
        with threadpool_limits(1):  # threads that wait for each other on a busy machine take longer than one that does not
            scores[unseen] = model.fit(matrix[seen], fake[seen]).decision_function(matrix[unseen])
    return scores


def _used_groups(groups: ArrayLike | None, fake: Bools) -> NDArray[np.int64] | None:
    if groups is None:
        return None
    codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    if len(codes) != len(fake):
        raise ValueError(f"{len(codes):,} groups for {len(fake):,} images")
    return codes if min(len(np.unique(codes[fake])), len(np.unique(codes[~fake]))) >= FOLDS else None


def _column(name: str, values: ArrayLike, n: int) -> tuple[Floats, bool]:
    """The column as numbers, texts as codes of the most frequent ones, and whether it was texts."""
    column: NDArray[Any] = np.asarray(values)
    if column.shape != (n,):
        raise ValueError(f"feature {name} {column.shape} must have one value for each of {n:,} images")
    if column.dtype.kind in "biuf":
        return column.astype(np.float64), False
    texts, codes, counts = np.unique(column.astype(str), return_inverse=True, return_counts=True)
    ranks = np.empty(len(texts), np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(texts))
    return np.minimum(ranks, _MOST_CATEGORIES - 1)[codes].astype(np.float64), True


def _varies(column: Floats) -> bool:
    known = column[~np.isnan(column)]
    return len(known) > 0 and (len(known) < len(column) or bool(known.min() < known.max()))
