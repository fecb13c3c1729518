"""The sample order of a training (`SampleOrder`): which rows each step sees, by arithmetic of
(seed, step).

An epoch is every row once (`Everything`), strata in given shares (`Mixture`), or reals beside their
fake twins (`Twins`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.datasets import config, labels
from ray_app.errors import ConfigError

Places = npt.NDArray[np.int32]

_ORDER = 5  # apart from what else is drawn from the same seed

Shares = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, without their whole parts, fill 0 … 1 most evenly

Positions = npt.NDArray[np.int64]


class SampleOrder:
    """The rows of every step. Pickles to little, and keeps one epoch's order in memory once rows
    are read.

    A training is one endless stream of epochs, cut into batches of equal size: a batch may hold the
    end of one epoch and the start of the next, so that nothing is dropped and nothing padded. The
    number of a step decides its rows: there is no other state.

    `rows` is a labelled table, whose `input` has `label`, `generator` and `group`. `batch` images
    are one step over all workers. Raises ConfigError for sampling that these rows or this batch do
    not allow.
    """

    def __init__(self, rows: pa.Table, sampling: config.Sampling, seed: int, batch: int) -> None:
        if not len(rows):
            raise ConfigError("there are no images to train on")
        self.batch = batch
        self._width = 2 if sampling.twins else 1
        self._epochs = _epochs(rows, sampling, seed)
        self._current: tuple[int, Places] | None = None
        if batch % self._width:
            raise ConfigError(
                f"batch: {batch} images are no whole number of twins", hint="give an even batch"
            )

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_current": None}

    @property
    def rows_per_epoch(self) -> int:
        """Rows of one epoch, some perhaps several times where shares are not natural."""
        return self._epochs.length

    def steps(self, epochs: float) -> int:
        """Steps in which that many epochs are seen to their end; the last one may begin the next
        epoch.
        """
        return max(1, math.ceil(epochs * self.rows_per_epoch / self.batch - 1e-9))

    def step(self, step: int) -> tuple[Positions, Positions]:
        """(batch,) rows of a step, and (batch,) the running number of each over the whole training;
        steps count from 0.
        """
        positions = np.arange(step * self.batch, (step + 1) * self.batch, dtype=np.int64)
        epochs, places = np.divmod(positions, self.rows_per_epoch)
        rows = np.empty(self.batch, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            if self._current is None or self._current[0] != epoch:
                self._current = epoch, self._epochs.epoch(epoch)
            mine = epochs == epoch
            rows[mine] = self._current[1][places[mine]]
        return rows, positions

    def share(self, step: int, rank: int, world: int) -> tuple[Positions, Positions]:
        """The part of a step that one of `world` workers sees: equal, contiguous, together the
        step. Raises ConfigError where they cannot be equal, or would part twins.
        """
        if self.batch % (world * self._width):
            of_twins = " of twins" if self._width > 1 else ""
            hint = (
                f"make batch a multiple of {world * self._width}, or take another number of workers"
            )
            raise ConfigError(
                f"a batch of {self.batch} images cannot be shared equally by {world} workers{of_twins}",
                hint=hint,
            )
        rows, positions = self.step(step)
        size = self.batch // world
        part = slice(rank * size, (rank + 1) * size)
        return rows[part], positions[part]


@dataclass(frozen=True)
class Shuffle:
    """`window` null: every order is as likely. Otherwise runs of `run` neighbours are shuffled, and
    then what lies within `window`.
    """

    seed: int
    window: int | None = None
    run: int = 256

    def generator(self, *which: int) -> np.random.Generator:
        """Chance for one purpose, the same for every call."""
        return np.random.default_rng([self.seed, _ORDER, len(which), *which])

    def once(self, count: int, *which: int) -> Places:
        """(count,) 0 … count − 1, each once."""
        return self._ordered(count, self.generator(*which))

    def several(self, count: int, times: int, *which: int) -> Places:
        """(times × count,) 0 … count − 1 again and again, each time in an order of its own."""
        rng = self.generator(*which)
        if count <= self.run:  # no neighbours to keep, and perhaps very many times
            return np.asarray(
                rng.permuted(np.tile(np.arange(count, dtype=np.int32), (times, 1)), axis=1).ravel()
            )
        return np.concatenate([self._ordered(count, rng) for _ in range(times)])

    def _ordered(self, count: int, rng: np.random.Generator) -> Places:
        if self.window is None:
            return rng.permutation(np.arange(count, dtype=np.int32))
        runs = rng.permutation(np.arange(0, count, self.run, dtype=np.int32))
        order = (runs[:, None] + np.arange(self.run, dtype=np.int32)).ravel()
        order = order[order < count]
        whole = count // self.window * self.window
        order[:whole] = rng.permuted(order[:whole].reshape(-1, self.window), axis=1).ravel()
        rng.shuffle(order[whole:])
        return order


@dataclass(frozen=True)
class Everything:
    """Every row once an epoch, of `length` rows."""

    length: int
    shuffle: Shuffle

    def epoch(self, number: int) -> Places:
        """(length,) all rows, shuffled anew."""
        return self.shuffle.once(self.length, number)


@dataclass(frozen=True)
class Mixture:
    """`strata`: the rows of each; `shares`: of the epoch, in the same order, together 1. `length`:
    rows of an epoch.

    Each stratum walks through its own endless sequence of permutations, so that all its rows come
    equally often, and takes up in an epoch where it stopped in the one before. How many it gives to
    an epoch is its share rounded up or down, in turns: a share of less than one row an epoch comes
    every few epochs, not never.
    """

    strata: Sequence[Places]
    shares: Shares
    length: int
    shuffle: Shuffle

    @classmethod
    def of(cls, rows: pa.Table, sampling: config.Sampling, shuffle: Shuffle) -> "Mixture":
        """Strata of a labelled table, real before fake, each class's generators in the order of
        their first rows.
        """
        generators, names = labels.coded(rows, "generator")
        is_fake = labels.fakes(rows)
        keys = is_fake * (len(names) + 1) + generators + 1
        found, counts = np.unique(keys, return_counts=True)
        strata = np.split(np.argsort(keys, kind="stable").astype(np.int32), np.cumsum(counts)[:-1])
        return cls(
            strata,
            mixed_shares(counts, found > len(names), sampling),
            sampling.epoch_rows or len(rows),
            shuffle,
        )

    def epoch(self, number: int) -> Places:
        """(length,) the rows of an epoch, each stratum's spread evenly over it."""
        draws = self.draws(number)
        walks = zip(self._count_before(number).tolist(), draws.tolist(), strict=True)
        rows = np.concatenate(
            [
                self._walked(stratum, start, count)
                for stratum, (start, count) in enumerate(walks)
                if count
            ]
        )
        within = np.arange(self.length) - np.repeat(np.cumsum(draws) - draws, draws)
        times = (within + self.shuffle.generator(number).random(self.length)) / np.repeat(
            draws, draws
        )
        ordered: Places = rows[np.argsort(times, kind="stable")]
        return ordered

    def draws(self, number: int) -> Counts:
        """Return the number of rows per stratum (strata,) in an epoch: less than one away from its
        share, and right in the mean of epochs.
        """
        return self._count_before(number + 1) - self._count_before(number)

    def _count_before(self, number: int) -> Counts:
        """Return the number of rows per stratum (strata,) in all epochs before this one.

        The ends of strata in an epoch are fractions. They are rounded up if they reach the threshold
        of the epoch.
        """
        # the same on processors that round otherwise
        ends = np.concatenate([[0.0], np.cumsum(self.shares) * self.length]).round(6)
        ends[-1] = self.length
        thresholds = np.sort(np.arange(1, number + 1) * _GOLDEN % 1)
        rounded_up = np.searchsorted(thresholds, ends % 1, side="left")
        return np.asarray(np.diff(number * np.floor(ends).astype(np.int64) + rounded_up), np.int64)

    def _walked(self, stratum: int, start: int, count: int) -> Places:
        """Rows start … start + count of a stratum's endless sequence, which is made in pieces of
        about an epoch.
        """
        rows = self.strata[stratum]
        times = max(1, round(self.shares[stratum] * self.length / len(rows)))
        first, last = start // (times * len(rows)), (start + count - 1) // (times * len(rows))
        pieces = [
            self.shuffle.several(len(rows), times, stratum, piece)
            for piece in range(first, last + 1)
        ]
        begin = start - first * times * len(rows)
        return rows[np.concatenate(pieces)[begin : begin + count]]


@dataclass(frozen=True)
class Twins:
    """`pairs` (M, 2): twins, and the rows without one two by two; `last`: the row that is left over
    where there is an odd number.

    A pair always begins at an even place of the training, so no even share of a batch parts it.
    """

    pairs: Places
    last: int | None
    shuffle: Shuffle

    @classmethod
    def of(cls, rows: pa.Table, shuffle: Shuffle) -> "Twins":
        """The first real of a group with its first fake, the second with the second; what is then
        alone in its group stands alone.
        """
        groups, is_fake = labels.coded(rows, "group")[0], labels.fakes(rows)
        twins = _twins(groups, is_fake)
        is_alone = np.ones(len(rows), bool)
        is_alone[twins] = False
        alone = np.flatnonzero(is_alone).astype(np.int32)
        together = alone[: len(alone) // 2 * 2].reshape(-1, 2)
        pairs = np.concatenate([twins, together])
        return cls(
            pairs[np.argsort(pairs.min(axis=1))],
            int(alone[-1]) if len(alone) % 2 else None,
            shuffle,
        )

    @property
    def length(self) -> int:
        """Rows of one epoch: all."""
        return self.pairs.size + (self.last is not None)

    def epoch(self, number: int) -> Places:
        """(length,) all pairs shuffled anew; a row left over is last, or first where the epoch
        begins at an odd place.
        """
        rows = self.pairs[self.shuffle.once(len(self.pairs), number)].ravel()
        if self.last is None:
            return rows
        return np.insert(rows, 0 if number % 2 else len(rows), self.last)


def mixed_shares(
    counts: Counts, is_fake: npt.NDArray[np.bool_], sampling: config.Sampling
) -> Shares:
    """(strata,) the share of each of an epoch: its class's, divided within the class in proportion
    to count ** generators.
    """
    shares: Shares = np.power(counts, sampling.generators, dtype=np.float64)
    classes = [is_fake == fake for fake in (False, True) if (is_fake == fake).any()]
    for mine in classes:
        whole = (
            1 / len(classes)
            if sampling.classes == "balanced"
            else counts[mine].sum() / counts.sum()
        )
        shares[mine] *= whole / shares[mine].sum()
    return shares


def _twins(groups: npt.NDArray[np.int32], is_fake: npt.NDArray[np.bool_]) -> Places:
    """(pairs, 2) a real and a fake, from the n-th of each in every group; -1 is no group."""
    real, fake = (np.flatnonzero((groups >= 0) & (is_fake == which)) for which in (False, True))
    of_real, of_fake = (
        groups[mine].astype(np.int64) * len(groups) + _rank(groups[mine]) for mine in (real, fake)
    )
    _, at_real, at_fake = np.intersect1d(of_real, of_fake, assume_unique=True, return_indices=True)
    return np.stack([real[at_real], fake[at_fake]], axis=1).astype(np.int32)


def _rank(groups: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """(N,) how many before it are of the same group."""
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, counts)
    return ranks


def _epochs(rows: pa.Table, sampling: config.Sampling, seed: int) -> Everything | Mixture | Twins:
    """An endless sequence of epochs of equal length, picklable and without state."""
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
