"""Whether metadata alone tell fakes from reals: the AUC of a small classifier on them
(`shortcut_auc`), and what that supports (`confounded`, `harmless`, `finding`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics import registry, uncertainty
from ray_app.metrics.arrays import Bools, Floats
from ray_app.metrics.values import MetricValue, undefined

FOLDS = 5
LITTLE = 0.6
"""The AUC that metadata alone may reach without harm: a shortcut is ruled out where the interval
ends at it or below.
"""
CROSS_VALIDATED = "delong, cross-validated"

_LEAST = 2 * FOLDS  # images of each class: below, a fold holds next to nothing
_MOST_CATEGORIES = 64
# Scores out of fold depend on each other, since their classifiers share images: their AUC varies
# more than DeLong's formula says, by (1 / k + held out / seen) in place of 1 / k for k folds
# (Nadeau and Bengio 2003).
_DEPENDENCE = 1 + FOLDS / (FOLDS - 1)


def shortcut_auc(
    features: Mapping[str, ArrayLike], fakes: ArrayLike, *, seed: int = 0
) -> MetricValue:
    """How well metadata alone predict fakes: the AUC of scores out of fold, of boosted trees of
    depth 3, with its 95 % interval.

    features: columns (n,), numbers (NaN: not known) or texts (None: not known). `fakes`: bool (n,).
    The interval is DeLong's with Nadeau and Bengio's (2003) variance of cross-validated figures.
    The same numbers for the same seed. Undefined with fewer than ten images of a class. Raises
    ValueError for lengths that differ.
    """
    fake = np.asarray(fakes, dtype=np.bool_)
    columns = [_column(name, values, len(fake)) for name, values in sorted(features.items())]
    fewest = min(int(fake.sum()), int((~fake).sum()))
    if fewest < _LEAST:
        return undefined(
            f"a classifier on metadata takes {_LEAST} images of each class; one has {fewest}",
            len(fake),
        )
    varying = [(column, is_text) for column, is_text in columns if _varies(column)]
    if not varying:
        return undefined("all files are alike in their metadata", len(fake))
    scores = _out_of_fold(
        np.column_stack([column for column, _ in varying]),
        [is_text for _, is_text in varying],
        fake,
        seed,
    )
    auc, interval = _cross_validated(scores, fake)
    return MetricValue(auc, *interval, n=len(fake), method=CROSS_VALIDATED)


def confounded(auc: MetricValue) -> bool:
    """Whether metadata alone are shown to tell the classes apart: the interval of `shortcut_auc`
    lies above one half.
    """
    return auc.interval is not None and auc.interval[0] > 0.5


def harmless(auc: MetricValue) -> bool:
    """Whether a shortcut is ruled out: the interval reaches down to one half, and no higher than
    LITTLE.
    """
    return auc.interval is not None and not confounded(auc) and auc.interval[1] <= LITTLE


def finding(auc: MetricValue) -> str:
    """What the interval supports, as the end of a sentence."""
    if confounded(auc):
        return "a shortcut, since the interval lies above 0.5"
    if harmless(auc):
        return "no shortcut was found"
    return (
        "too few images to say whether there is a shortcut"
        if auc.value is not None
        else f"not known: {auc.why}"
    )


def _cross_validated(scores: Floats, fake: Bools) -> tuple[float, tuple[float, float]]:
    """The AUC of scores out of fold (n,), and its interval on the logit, which stays within 0 and
    1.

    Where no such interval exists it is the exact one of as many pairs as the smaller class has
    images.
    """
    from scipy.special import expit, logit
    from scipy.stats import t

    fakes, reals = np.sort(scores[fake]), np.sort(scores[~fake])
    auc = registry.auc(registry.ScoredImages.from_scores(scores, fake))
    fewest = min(len(fakes), len(reals))
    below, upto = (np.zeros(len(scores)), np.zeros(len(scores)))
    for one, other in ((fake, reals), (~fake, fakes)):
        below[one] = np.searchsorted(other, scores[one], "left")
        upto[one] = np.searchsorted(other, scores[one], "right")
    # How often each image stands on the right side of the other class, against the mean: what it
    # adds to the AUC.
    won = (below + upto) / 2
    right = np.where(fake, won / len(reals), 1 - won / len(fakes)) - auc
    parts = right / np.where(fake, len(fakes), len(reals))
    spread = float((parts**2).sum()) * len(parts) / max(len(parts) - 1, 1)
    if fewest < 2 or not 0 < auc < 1 or spread <= 0:
        return auc, uncertainty.share_interval(auc, fewest)
    half = float(t.ppf(0.975, fewest - 1)) * math.sqrt(spread * _DEPENDENCE) / (auc * (1 - auc))
    return auc, (float(expit(logit(auc) - half)), float(expit(logit(auc) + half)))


def _out_of_fold(matrix: Floats, is_text: Sequence[bool], fake: Bools, seed: int) -> Floats:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = np.zeros(len(fake))
    # threads that wait for each other on a busy machine take longer than one that does not
    with threadpool_limits(1):
        for seen, unseen in folds.split(matrix, fake):
            # Few and shallow trees of large leaves: what they find is plain to see, and a fold
            # takes a second for 10⁵ images.
            model = HistGradientBoostingClassifier(
                max_iter=40, max_depth=3, min_samples_leaf=max(5, len(seen) // 200), categorical_features=list(is_text),
                early_stopping=False, random_state=seed,
            )  # fmt: skip
            scores[unseen] = model.fit(matrix[seen], fake[seen]).decision_function(matrix[unseen])
    return scores


def _column(name: str, values: ArrayLike, n: int) -> tuple[Floats, bool]:
    """The column as numbers, texts as codes of the most frequent ones, and whether it was texts."""
    column: NDArray[Any] = np.asarray(values)
    if column.shape != (n,):
        raise ValueError(
            f"feature {name} {column.shape} must have one value for each of {n:,} images"
        )
    if column.dtype.kind in "biuf":
        return column.astype(np.float64), False
    texts, codes, counts = np.unique(column.astype(str), return_inverse=True, return_counts=True)
    ranks = np.empty(len(texts), np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(texts))
    return np.minimum(ranks, _MOST_CATEGORIES - 1)[codes].astype(np.float64), True


def _varies(column: Floats) -> bool:
    known = column[~np.isnan(column)]
    return len(known) > 0 and (len(known) < len(column) or bool(known.min() < known.max()))
