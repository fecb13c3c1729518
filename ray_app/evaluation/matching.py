"""Rows of a run beside labels: those that have one go on with their truth, the others are counted. Knows labels; knows no score."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.evaluation.joining import LabelIndex, Labels, Truth


@dataclass
class Joined(ABC):
    """What a pass over a run counts of its join with labels. `used`: which labels of an index have a row; `others`: rows without a label,
    `other`: one of them by its key.
    """

    used: npt.NDArray[np.bool_] | None = None
    others: int = 0
    other: str | None = None

    @property
    @abstractmethod
    def joined(self) -> int:
        """How many rows are labelled."""

    @property
    def unused(self) -> int:
        """How many labels of the index have no row."""
        return 0 if self.used is None else int(len(self.used) - self.used.sum())

    def begin(self, labels: Labels) -> None:
        """Before the first row, no label of an index has one."""
        if isinstance(labels, LabelIndex):
            self.used = np.zeros(len(labels.words), np.bool_)

    def matched(self, labels: Labels, table: pa.Table) -> tuple[pa.Table, Truth]:
        """The rows of a table that are labelled, and their truth."""
        truth = labels.truth(table)
        found = np.flatnonzero(truth.codes >= 0)
        if len(found) < len(table):
            self.others += len(table) - len(found)
            if self.other is None:
                self.other = _shown(labels, table, int(np.argmin(truth.codes)))
            table, truth = table.take(pa.array(found)), Truth(truth.codes[found], truth.groups, truth.places[found])
        if self.used is not None:
            self.used[truth.places] = True
        return table, truth


def _shown(labels: Labels, table: pa.Table, row: int) -> str:
    """One row's key as people read it: the labels' own, else its place."""
    if isinstance(labels, LabelIndex):
        shown = labels.key.texts(table.slice(row, 1))[0].as_py()
        if shown is not None:
            return str(shown).replace("\0", "/")
    return "/".join(str(part) for part in (table["uri"][row].as_py(), table["member"][row].as_py()) if part is not None)
