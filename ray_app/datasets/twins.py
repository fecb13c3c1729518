"""Every row once, a real and a fake of one group side by side. Knows groups; knows nothing of batches but that they are even."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.datasets.columns import coded, fakes
from ray_app.datasets.shuffling import Places, Shuffle


@dataclass(frozen=True)
class Twins:
    """`pairs` (M, 2): twins, and the rows without one two by two; `last`: the row that is left over where there is an odd number.

    A pair always begins at an even place of the training, so no even share of a batch parts it.
    """

    pairs: Places
    last: int | None
    shuffle: Shuffle

    @classmethod
    def of(cls, rows: pa.Table, shuffle: Shuffle) -> "Twins":
        """The first real of a group with its first fake, the second with the second; what is then alone in its group stands alone."""
        groups, is_fake = coded(rows, "group")[0], fakes(rows)
        twins = _twins(groups, is_fake)
        is_alone = np.ones(len(rows), bool)
        is_alone[twins] = False
        alone = np.flatnonzero(is_alone).astype(np.int32)
        together = alone[: len(alone) // 2 * 2].reshape(-1, 2)
        pairs = np.concatenate([twins, together])
        return cls(pairs[np.argsort(pairs.min(axis=1))], int(alone[-1]) if len(alone) % 2 else None, shuffle)

    @property
    def length(self) -> int:
        """Rows of one epoch: all."""
        return self.pairs.size + (self.last is not None)

    def epoch(self, number: int) -> Places:
        """(length,) all pairs shuffled anew; a row left over is last, or first where the epoch begins at an odd place."""
        rows = self.pairs[self.shuffle.once(len(self.pairs), number)].ravel()
        if self.last is None:
            return rows
        return np.insert(rows, 0 if number % 2 else len(rows), self.last)


def _twins(groups: npt.NDArray[np.int32], is_fake: npt.NDArray[np.bool_]) -> Places:
    """(pairs, 2) a real and a fake, from the n-th of each in every group; -1 is no group."""
    real, fake = (np.flatnonzero((groups >= 0) & (is_fake == which)) for which in (False, True))
    of_real, of_fake = (groups[mine].astype(np.int64) * len(groups) + _rank(groups[mine]) for mine in (real, fake))
    _, at_real, at_fake = np.intersect1d(of_real, of_fake, assume_unique=True, return_indices=True)
    return np.stack([real[at_real], fake[at_fake]], axis=1).astype(np.int32)


def _rank(groups: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """(N,) how many before it are of the same group."""
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, counts)
    return ranks
