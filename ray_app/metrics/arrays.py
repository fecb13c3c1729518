"""Define and check the arrays that metrics are computed from (`check_scores`)."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

Counts = NDArray[np.int64]


def check_scores(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    """Check scores and labels, and return them as float64 (n,) and bool (n,), True for fake.

    Raises:
        ValueError: The lengths differ, both are empty, a score is not finite, or a label is neither
            0 nor 1.
    """
    values = np.asarray(scores, dtype=np.float64)
    label_values: NDArray[Any] = np.asarray(labels)
    if values.ndim != 1 or values.shape != label_values.shape:
        raise ValueError(
            f"scores of shape {values.shape} and labels of shape {label_values.shape} must be one-dimensional and of equal length"
        )
    if not len(values):
        raise ValueError("there are no scores, so no metric is defined")
    _require_finite(values)
    if not np.isin(label_values, (0, 1)).all():
        raise ValueError(
            f"labels must be 0 (real) or 1 (fake), got {label_values[~np.isin(label_values, (0, 1))][0]!r}"
        )
    return values, label_values.astype(np.bool_)


def _require_finite(values: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{len(bad):,} of {len(values):,} scores are not finite, the first at position {bad[0]}: {values[bad[0]]}"
        )
