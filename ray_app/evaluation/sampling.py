"""Some rows of a run, the same whatever order they came in: those whose ids hash lowest. Knows ids; knows nothing of what rows hold."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MOST = 100_000


def hashed(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """One number for each id, (n,), a different one for each."""
    return mixed(ids.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15))


def mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014) of words (n,), which gives no two the same."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Sample:
    """The rows, no more than `most`, of which nothing else is lower. Tables must have `image_id` and equal columns."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._orders: list[npt.NDArray[np.uint64]] = []
        self._tables: list[pa.Table] = []
        self._count = 0
        self._limit: np.uint64 | None = None

    def wanted(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Which of some rows may belong to it, so that only of those the columns are made."""
        orders = hashed(ids)
        return np.flatnonzero(orders < self._limit) if self._limit is not None else np.arange(len(ids))

    def add(self, rows: pa.Table) -> None:
        """Offer rows."""
        if len(rows):
            self._orders.append(hashed(rows["image_id"].to_numpy()))
            self._tables.append(rows)
            self._count += len(rows)
            if self._count > 2 * self._most:
                self._settle()

    def merge(self, other: "Sample") -> None:
        """Offer what another has kept."""
        self.add(other.rows())

    def rows(self) -> pa.Table:
        """The rows in the order of their hashes; a table without columns where none was ever offered."""
        self._settle()
        return self._tables[0] if self._tables else pa.table({})

    def _settle(self) -> None:
        if not self._tables:
            return
        orders = np.concatenate(self._orders)
        kept = np.argsort(orders, kind="stable")[: self._most]
        rows = pa.concat_tables(self._tables, promote_options="default").take(pa.array(kept)).combine_chunks()
        self._orders, self._tables, self._count = [orders[kept]], [rows], len(kept)
        if len(kept) == self._most:
            self._limit = self._orders[0][-1]
