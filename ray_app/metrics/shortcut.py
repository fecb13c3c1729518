"""Measure whether file metadata alone separate fakes from reals (`shortcut_auc`).

If they do, a detector may have learned the metadata, such as the file size, instead of the content.
The measure is the AUC of a small classifier that sees only the metadata. `confounded`, `harmless`,
and `finding` interpret the AUC.
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
MAX_HARMLESS_AUC = 0.6
"""Maximum AUC of metadata alone that is harmless.

A shortcut is ruled out if the upper end of the interval is not above it.
"""
CROSS_VALIDATED = "delong, cross-validated"

# Minimum images of each class. With fewer, a fold has too few images.
_MIN_PER_CLASS = 2 * FOLDS
_MAX_CATEGORIES = 64
# Scores out of fold are dependent, because their classifiers share training images. For k folds,
# the variance of their AUC has (1 / k + held out / training) in place of DeLong's 1 / k (Nadeau and
# Bengio 2003).
_DEPENDENCE = 1 + FOLDS / (FOLDS - 1)


def shortcut_auc(
    features: Mapping[str, ArrayLike], fakes: ArrayLike, *, seed: int = 0
) -> MetricValue:
    """Return the AUC of a classifier that sees only metadata, with its 95 % interval.

    The classifier is boosted trees of depth 3, and the scores are out of fold. The interval is
    DeLong's with Nadeau and Bengio's (2003) variance of cross-validated metrics. Equal seeds give
    equal results.

    Args:
        features: Columns (n,) of numbers (NaN if unknown) or texts (None if unknown), by name.
        fakes: Whether each image is fake (n,), bool.
        seed: Seed of the folds.

    Returns:
        The AUC. It is undefined with fewer than ten images of a class, or if all files have equal
        metadata.

    Raises:
        ValueError: The lengths differ.
    """
    fake = np.asarray(fakes, dtype=np.bool_)
    columns = [_encode_column(name, values, len(fake)) for name, values in sorted(features.items())]
    min_count = min(int(fake.sum()), int((~fake).sum()))
    if min_count < _MIN_PER_CLASS:
        return undefined(
            f"a classifier on metadata needs {_MIN_PER_CLASS} images of each class; one class has {min_count}",
            len(fake),
        )
    varying = [(column, is_text) for column, is_text in columns if _varies(column)]
    if not varying:
        return undefined("all files have equal metadata", len(fake))
    scores = _score_out_of_fold(
        np.column_stack([column for column, _ in varying]),
        [is_text for _, is_text in varying],
        fake,
        seed,
    )
    auc, interval = _measure_cross_validated(scores, fake)
    return MetricValue(auc, *interval, n=len(fake), method=CROSS_VALIDATED)


def confounded(auc: MetricValue) -> bool:
    """Return whether metadata alone separate fakes from reals, by the result of `shortcut_auc`.

    They do if the whole interval of the AUC is above one half.
    """
    return auc.interval is not None and auc.interval[0] > 0.5


def harmless(auc: MetricValue) -> bool:
    """Return whether the result of `shortcut_auc` rules out a shortcut.

    A shortcut is metadata, such as the file size, that separates fakes from reals. The AUC rules it
    out if the interval begins at or below one half and ends at or below MAX_HARMLESS_AUC.
    """
    return auc.interval is not None and not confounded(auc) and auc.interval[1] <= MAX_HARMLESS_AUC


def finding(auc: MetricValue) -> str:
    """Return the conclusion from the result of `shortcut_auc`, as the end of a sentence.

    An example is "no shortcut was found".
    """
    if confounded(auc):
        return "a shortcut, since the interval lies above 0.5"
    if harmless(auc):
        return "no shortcut was found"
    return (
        "too few images to say whether there is a shortcut"
        if auc.value is not None
        else f"not known: {auc.why}"
    )


def _measure_cross_validated(scores: Floats, fake: Bools) -> tuple[float, tuple[float, float]]:
    """Return the AUC of scores out of fold (n,), and its interval.

    The interval is computed on the logit, so it stays within 0 and 1. If it does not exist there,
    it is the exact one for as many pairs as the smaller class has images.
    """
    from scipy.special import expit, logit
    from scipy.stats import t

    fakes, reals = np.sort(scores[fake]), np.sort(scores[~fake])
    auc = registry.auc(registry.ScoredImages.from_scores(scores, fake))
    min_count = min(len(fakes), len(reals))
    below, upto = (np.zeros(len(scores)), np.zeros(len(scores)))
    for mask, others in ((fake, reals), (~fake, fakes)):
        below[mask] = np.searchsorted(others, scores[mask], "left")
        upto[mask] = np.searchsorted(others, scores[mask], "right")
    # How often each image is on the correct side of the other class, less the mean, is its
    # contribution to the AUC.
    won = (below + upto) / 2
    right = np.where(fake, won / len(reals), 1 - won / len(fakes)) - auc
    parts = right / np.where(fake, len(fakes), len(reals))
    variance = float((parts**2).sum()) * len(parts) / max(len(parts) - 1, 1)
    if min_count < 2 or not 0 < auc < 1 or variance <= 0:
        return auc, uncertainty.fraction_interval(auc, min_count)
    half = (
        float(t.ppf(0.975, min_count - 1)) * math.sqrt(variance * _DEPENDENCE) / (auc * (1 - auc))
    )
    return auc, (float(expit(logit(auc) - half)), float(expit(logit(auc) + half)))


def _score_out_of_fold(matrix: Floats, is_text: Sequence[bool], fake: Bools, seed: int) -> Floats:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = np.zeros(len(fake))
    # Threads that wait for each other on a busy machine take longer than a single thread.
    with threadpool_limits(1):
        for training, held_out in folds.split(matrix, fake):
            # A few shallow trees with large leaves find only plain differences, and a fold takes a
            # second for 10⁵ images.
            model = HistGradientBoostingClassifier(
                max_iter=40, max_depth=3, min_samples_leaf=max(5, len(training) // 200), categorical_features=list(is_text),
                early_stopping=False, random_state=seed,
            )  # fmt: skip
            scores[held_out] = model.fit(matrix[training], fake[training]).decision_function(
                matrix[held_out]
            )
    return scores


def _encode_column(name: str, values: ArrayLike, n: int) -> tuple[Floats, bool]:
    """Return a column of metadata as numbers, and whether it has texts.

    Texts become codes in the order of their frequency. Texts beyond the 63 most frequent ones share
    a code.
    """
    column: NDArray[Any] = np.asarray(values)
    if column.shape != (n,):
        raise ValueError(
            f"feature {name} must have one value for each of {n:,} images, got shape {column.shape}"
        )
    if column.dtype.kind in "biuf":
        return column.astype(np.float64), False
    distinct, codes, counts = np.unique(column.astype(str), return_inverse=True, return_counts=True)
    ranks = np.empty(len(distinct), np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(distinct))
    return np.minimum(ranks, _MAX_CATEGORIES - 1)[codes].astype(np.float64), True


def _varies(column: Floats) -> bool:
    present = column[~np.isnan(column)]
    return len(present) > 0 and (len(present) < len(column) or bool(present.min() < present.max()))
