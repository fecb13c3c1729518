"""Can fakes be told by what their files look like from outside? A tiny classifier on metadata alone. Knows columns; knows no file.

Where it can, a detector's figures may say how well it reads formats and sizes: the headline is confounded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics.arrays import Bools, Floats
from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.metrics.intervals import auc_of

CONFOUNDED = 0.6  # the AUC above which metadata alone tell too much
FOLDS = 5
_LEAST = 2 * FOLDS  # images of each class: below, a fold holds next to nothing
_MOST_CATEGORIES = 64


def shortcut_auc(features: Mapping[str, ArrayLike], fakes: ArrayLike, groups: ArrayLike | None = None, *, seed: int = 0) -> Figure:
    """How well metadata alone tell fakes: the AUC of scores out of fold, of boosted trees of depth 3, with DeLong's interval.

    features: columns (n,), numbers (NaN: not known) or texts (None: not known). `fakes`: bool (n,). `groups` (n,): images of one group
    stay in one of the five folds; they are heeded only where each class has five groups or more. The same numbers for the same seed.
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
    scores = _out_of_fold(matrix, [is_text for _, is_text in varying], fake, _heeded(groups, fake), seed)
    found = auc_of(ScoreHistogram.of(scores[fake]), ScoreHistogram.of(scores[~fake]))
    return Figure(found.value, (found.low, found.high), "delong", len(fake))


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


def _heeded(groups: ArrayLike | None, fake: Bools) -> NDArray[np.int64] | None:
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
