"""The arrays that metrics are computed from, checked (`checked`)."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

Counts = NDArray[np.int64]


def checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    """Scores as float64 (n,) and whether each is of a fake, bool (n,).

    Raises ValueError for lengths that differ, no scores at all, scores that are not finite, and
    labels other than 0 and 1.
    """
    numbers = np.asarray(scores, dtype=np.float64)
    marks: NDArray[Any] = np.asarray(labels)
    if numbers.ndim != 1 or numbers.shape != marks.shape:
        raise ValueError(
            f"scores {numbers.shape} and labels {marks.shape} must be two rows of one length"
        )
    if not len(numbers):
        raise ValueError("there are no scores")
    _require_finite(numbers)
    if not np.isin(marks, (0, 1)).all():
        raise ValueError(
            f"labels must be 0 (real) or 1 (fake), not {marks[~np.isin(marks, (0, 1))][0]!r}"
        )
    return numbers, marks.astype(np.bool_)


def _require_finite(numbers: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise ValueError(
            f"{len(bad):,} of {len(numbers):,} scores are not finite, the first at position {bad[0]}: {numbers[bad[0]]}"
        )
