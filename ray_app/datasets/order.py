"""Which rows each step of a training sees: arithmetic of (seed, step). Knows counts, strata and groups; knows no image and no worker.

A training is one endless stream of epochs, cut into batches of equal size: a batch may hold the end of one epoch and the start of the
next, so that nothing is dropped and nothing padded. Whoever knows the number of a step knows its rows: there is no other state.
"""

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.datasets.config import Sampling
from ray_app.datasets.mixture import Mixture
from ray_app.datasets.shuffling import Places, Shuffle
from ray_app.datasets.twins import Twins
from ray_app.errors import ConfigError

Positions = npt.NDArray[np.int64]


class Epochs(Protocol):
    """An endless sequence of epochs of equal length; picklable and without state."""

    @property
    def length(self) -> int:
        """Rows of one epoch."""

    def epoch(self, number: int) -> Places:
        """(length,) the rows of an epoch, in order."""


class Everything:
    """Every row once an epoch."""

    def __init__(self, count: int, shuffle: Shuffle) -> None:
        self.length, self._shuffle = count, shuffle

    def epoch(self, number: int) -> Places:
        """(length,) all rows, shuffled anew."""
        return self._shuffle.once(self.length, number)


class Order:
    """The rows of every step. Pickles to little, and keeps one epoch's order in memory once it is asked for rows.

    `rows` is a labelled table, whose `input` has `label`, `generator` and `group`. `batch` images are one step over all workers.
    Raises ConfigError for sampling that these rows or this batch do not allow.
    """

    def __init__(self, rows: pa.Table, sampling: Sampling, seed: int, batch: int) -> None:
        if not len(rows):
            raise ConfigError("there are no images to train on")
        self.batch = batch
        self._width = 2 if sampling.twins else 1
        self._epochs = _epochs(rows, sampling, seed)
        self._current: tuple[int, Places] | None = None
        if batch % self._width:
            raise ConfigError(f"batch: {batch} images are no whole number of twins", hint="give an even batch")

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_current": None}

    @property
    def rows_per_epoch(self) -> int:
        """Rows of one epoch, some perhaps several times where shares are not natural."""
        return self._epochs.length

    def steps(self, epochs: float) -> int:
        """Steps in which that many epochs are seen to their end; the last one may begin the next epoch."""
        return max(1, math.ceil(epochs * self.rows_per_epoch / self.batch - 1e-9))

    def step(self, step: int) -> tuple[Positions, Positions]:
        """(batch,) rows of a step, and (batch,) the running number of each over the whole training; steps count from 0."""
        positions = np.arange(step * self.batch, (step + 1) * self.batch, dtype=np.int64)
        epochs, places = np.divmod(positions, self.rows_per_epoch)
        rows = np.empty(self.batch, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            mine = epochs == epoch
            rows[mine] = self._order_of(epoch)[places[mine]]
        return rows, positions

    def share(self, step: int, rank: int, world: int) -> tuple[Positions, Positions]:
        """The part of a step that one of `world` workers sees: equal, contiguous, together the step. Raises ConfigError where they cannot
        be equal, or would part twins.
        """
        if self.batch % (world * self._width):
            of_twins = " of twins" if self._width > 1 else ""
            hint = f"make batch a multiple of {world * self._width}, or take another number of workers"
            raise ConfigError(f"a batch of {self.batch} images cannot be shared equally by {world} workers{of_twins}", hint=hint)
        rows, positions = self.step(step)
        size = self.batch // world
        part = slice(rank * size, (rank + 1) * size)
        return rows[part], positions[part]

    def _order_of(self, epoch: int) -> Places:
        if self._current is None or self._current[0] != epoch:
            self._current = epoch, self._epochs.epoch(epoch)
        return self._current[1]


def _epochs(rows: pa.Table, sampling: Sampling, seed: int) -> Epochs:
    shuffle = Shuffle(seed, sampling.window, sampling.run)
    if sampling.classes != "natural" or sampling.generators != 1:
        if sampling.twins:
            raise ConfigError("sampling: twins are as many real as fake already, and cannot be drawn in other shares",
                              hint="leave classes natural and generators 1, or twins off")  # fmt: skip
        return Mixture.of(rows, sampling, shuffle)
    if sampling.epoch_rows is not None:
        raise ConfigError("sampling.epoch_rows: with natural shares an epoch is every row once",
                          hint="loop.steps and validation.every count steps")  # fmt: skip
    return Twins.of(rows, shuffle) if sampling.twins else Everything(len(rows), shuffle)
