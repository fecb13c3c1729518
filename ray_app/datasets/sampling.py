"""Compute the order of samples in a training run: `SampleOrder` returns the rows of each step.

The order is computed from the seed and the number of the step alone. There are three kinds of
epochs. `FullEpochSampler` has every row once. `MixedSampler` has given fractions of real and fake
images and of generators. `PairedSampler` has each real image next to its twin, a fake image of the
same group, such as the same prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.datasets import config, labels
from ray_app.errors import ConfigError

Indices = npt.NDArray[np.int32]

_ORDER = 5  # Random stream of this module, apart from others of the same seed.

Fractions = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# The fractional parts of multiples of the golden ratio fill 0 … 1 most evenly.
_GOLDEN = (5**0.5 - 1) / 2

Positions = npt.NDArray[np.int64]


class SampleOrder:
    """Decides which rows of the training data each step of a training reads.

    A training is one endless sequence of epochs, cut into batches of equal size. A batch may hold
    the end of one epoch and the start of the next, so that no row is dropped or padded. The number
    of a step alone decides its rows, so a training can resume at any step.

    Args:
        rows: A labelled table. Its column `input` is a struct with `label`, `generator`, and `group`.
        sampling: The section `sampling` of the training's config.
        seed: Seed of the order.
        batch: Images of a step, over all workers.

    Raises:
        ConfigError: The rows or the batch size do not allow this sampling.
    """

    def __init__(self, rows: pa.Table, sampling: config.Sampling, seed: int, batch: int) -> None:
        if not len(rows):
            raise ConfigError(
                "there are no images to train on",
                hint="check that the sources in `data.train` have labelled images that are not held out",
            )
        self.batch = batch
        self._width = 2 if sampling.twins else 1
        self._epochs = _make_epochs(rows, sampling, seed)
        self._current: tuple[int, Indices] | None = None
        if batch % self._width:
            raise ConfigError(
                f"batch must be even if sampling.twins is set, got {batch}",
                hint="set loop.batch to an even number",
            )

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_current": None}

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows of an epoch.

        If classes are balanced or generators are weighted, an epoch may repeat rows or leave out
        rows. Otherwise it has every row once.
        """
        return self._epochs.length

    def count_steps(self, epochs: float) -> int:
        """Return the number of steps that complete the given number of epochs.

        The last step may also contain rows of the next epoch.
        """
        return max(1, math.ceil(epochs * self.rows_per_epoch / self.batch - 1e-9))

    def select_rows(self, step: int) -> tuple[Positions, Positions]:
        """Return the rows of a step, and their positions in the whole training.

        Args:
            step: Number of the step, from 0.

        Returns:
            The row numbers (batch,), and the positions (batch,). The position of a row is the
            number of rows that the training reads before it.
        """
        positions = np.arange(step * self.batch, (step + 1) * self.batch, dtype=np.int64)
        epochs, indices = np.divmod(positions, self.rows_per_epoch)
        rows = np.empty(self.batch, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            if self._current is None or self._current[0] != epoch:
                self._current = epoch, self._epochs.epoch(epoch)
            is_epoch = epochs == epoch
            rows[is_epoch] = self._current[1][indices[is_epoch]]
        return rows, positions

    def shard(self, step: int, rank: int, world: int) -> tuple[Positions, Positions]:
        """Return one worker's part of the rows of a step. The parts are equal and contiguous.

        Args:
            step: Number of the step, from 0.
            rank: Rank of the worker.
            world: Number of workers.

        Returns:
            The row numbers and their positions, as `select_rows` returns them.

        Raises:
            ConfigError: The parts cannot be equal, or would separate twins: a real image and a fake
                that have to be in the batch of one worker.
        """
        if self.batch % (world * self._width):
            of_twins = " of twins" if self._width > 1 else ""
            hint = (
                f"make batch a multiple of {world * self._width}, or use another number of workers"
            )
            raise ConfigError(
                f"a batch of {self.batch} images cannot be divided equally among {world} workers{of_twins}",
                hint=hint,
            )
        rows, positions = self.select_rows(step)
        size = self.batch // world
        part = slice(rank * size, (rank + 1) * size)
        return rows[part], positions[part]


@dataclass(frozen=True)
class Shuffle:
    """Shuffles row numbers by a seed, either fully or with neighbouring rows kept close.

    Neighbouring rows are often in one file, so that keeping them close makes reading faster.

    Attributes:
        seed: The seed.
        window: None for a full shuffle. Otherwise, the rows are cut into pieces of `run`
            neighbouring rows, and the order of the pieces is shuffled. Then each `window`
            consecutive rows of this order are shuffled.
        run: Number of neighbouring rows in a piece. It is used only if `window` is set.
    """

    seed: int
    window: int | None = None
    run: int = 256

    def generator(self, *which: int) -> np.random.Generator:
        """Return a new random generator for a purpose, such as the order of an epoch.

        Args:
            *which: Numbers that name the purpose, such as the number of the epoch.

        Returns:
            A generator that is always in the same state for equal numbers.
        """
        return np.random.default_rng([self.seed, _ORDER, len(which), *which])

    def permute(self, count: int, *which: int) -> Indices:
        """Return 0 … count − 1 in random order (count,).

        Args:
            count: Number of rows.
            *which: Numbers, such as the number of the epoch. Equal numbers give an equal order.
        """
        return self._shuffle(count, self.generator(*which))

    def permute_repeatedly(self, count: int, times: int, *which: int) -> Indices:
        """Return 0 … count − 1 repeated `times` times, each time in a new order (times × count,).

        Args:
            count: Number of rows.
            times: Number of repetitions.
            *which: Numbers, such as the index of a stratum. Equal numbers give equal orders.
        """
        rng = self.generator(*which)
        # One run has no neighbours to keep together. It may repeat very often, so numpy loops.
        if count <= self.run:
            return np.asarray(
                rng.permuted(np.tile(np.arange(count, dtype=np.int32), (times, 1)), axis=1).ravel()
            )
        return np.concatenate([self._shuffle(count, rng) for _ in range(times)])

    def _shuffle(self, count: int, rng: np.random.Generator) -> Indices:
        if self.window is None:
            return rng.permutation(np.arange(count, dtype=np.int32))
        runs = rng.permutation(np.arange(0, count, self.run, dtype=np.int32))
        order = (runs[:, None] + np.arange(self.run, dtype=np.int32)).ravel()
        order = order[order < count]
        in_windows = count // self.window * self.window
        order[:in_windows] = rng.permuted(
            order[:in_windows].reshape(-1, self.window), axis=1
        ).ravel()
        rng.shuffle(order[in_windows:])
        return order


@dataclass(frozen=True)
class FullEpochSampler:
    """A sampler whose epochs have every row once.

    Attributes:
        length: Rows of an epoch.
        shuffle: Draws the random order of the rows.
    """

    length: int
    shuffle: Shuffle

    def epoch(self, number: int) -> Indices:
        """Return the numbers of all rows (length,) in the order of the epoch `number`."""
        return self.shuffle.permute(self.length, number)


@dataclass(frozen=True)
class MixedSampler:
    """A sampler for balanced classes or weighted generators.

    A stratum is the rows of one generator in one class, real or fake. Each stratum gets a fixed
    fraction of an epoch. All rows of a stratum appear equally often, because epochs take them from
    an endless sequence of permutations. Each epoch continues the sequence where the epoch before
    stopped.

    The number of rows of a stratum in an epoch is rounded up in some epochs and down in others. So
    a stratum of less than one row per epoch appears every few epochs instead of never.

    Attributes:
        strata: The rows of each stratum.
        fractions: The fraction of each stratum, in the same order; they sum to 1.
        length: Rows of an epoch.
        shuffle: Draws the random order of the rows.
    """

    strata: Sequence[Indices]
    fractions: Fractions
    length: int
    shuffle: Shuffle

    @classmethod
    def from_table(
        cls, rows: pa.Table, sampling: config.Sampling, shuffle: Shuffle
    ) -> "MixedSampler":
        """Create a sampler with a stratum for each generator of real and of fake images.

        Strata of real images come first. Generators are in the order of their first rows.

        Args:
            rows: A labelled table.
            sampling: The section `sampling` of the training's config.
            shuffle: Draws the random order of the rows.
        """
        generators, names = labels.coded(rows, "generator")
        is_fake = labels.fakes(rows)
        keys = is_fake * (len(names) + 1) + generators + 1
        present_keys, counts = np.unique(keys, return_counts=True)
        strata = np.split(np.argsort(keys, kind="stable").astype(np.int32), np.cumsum(counts)[:-1])
        return cls(
            strata,
            compute_fractions(counts, present_keys > len(names), sampling),
            sampling.epoch_rows or len(rows),
            shuffle,
        )

    def epoch(self, number: int) -> Indices:
        """Return the row numbers of an epoch (length,), in the order in which they are read.

        The rows of each generator are spread evenly over the epoch.
        """
        draws = self.draws(number)
        walks = zip(self._count_before(number).tolist(), draws.tolist(), strict=True)
        rows = np.concatenate(
            [
                self._continue_walk(stratum, start, count)
                for stratum, (start, count) in enumerate(walks)
                if count
            ]
        )
        within = np.arange(self.length) - np.repeat(np.cumsum(draws) - draws, draws)
        times = (within + self.shuffle.generator(number).random(self.length)) / np.repeat(
            draws, draws
        )
        ordered: Indices = rows[np.argsort(times, kind="stable")]
        return ordered

    def draws(self, number: int) -> Counts:
        """Return the number of rows that an epoch has of each stratum (strata,).

        A stratum is the rows of one generator in one class. The result differs from
        `fractions` × `length` by less than one row, and is equal to it on average over all epochs.
        `number` is the index of the epoch, from 0.
        """
        return self._count_before(number + 1) - self._count_before(number)

    def _count_before(self, number: int) -> Counts:
        """Return the number of rows per stratum (strata,) in all epochs before this one.

        The ends of strata in an epoch are fractions. They are rounded up if they reach the
        threshold of the epoch.
        """
        # Rounding to 6 digits gives the same result on processors that round differently.
        bounds = np.concatenate([[0.0], np.cumsum(self.fractions) * self.length]).round(6)
        bounds[-1] = self.length
        thresholds = np.sort(np.arange(1, number + 1) * _GOLDEN % 1)
        rounded_up = np.searchsorted(thresholds, bounds % 1, side="left")
        return np.asarray(
            np.diff(number * np.floor(bounds).astype(np.int64) + rounded_up), np.int64
        )

    def _continue_walk(self, stratum: int, start: int, count: int) -> Indices:
        """Return rows start … start + count of a stratum's endless sequence.

        The sequence is made in pieces of about an epoch.
        """
        rows = self.strata[stratum]
        times = max(1, round(self.fractions[stratum] * self.length / len(rows)))
        first, last = start // (times * len(rows)), (start + count - 1) // (times * len(rows))
        chunks = [
            self.shuffle.permute_repeatedly(len(rows), times, stratum, chunk)
            for chunk in range(first, last + 1)
        ]
        offset = start - first * times * len(rows)
        return rows[np.concatenate(chunks)[offset : offset + count]]


@dataclass(frozen=True)
class PairedSampler:
    """A sampler that puts a real image and its twin next to each other.

    A twin is a fake image of the same group, such as the same prompt or scene. A pair always begins
    at an even position in the sequence of all epochs. So it is not separated if a batch is divided
    into parts of even size.

    Attributes:
        pairs: Row numbers (M, 2). A pair is a real image and its twin, or two rows without a twin.
        last: The row that is in no pair. None if the number of rows is even.
        shuffle: Draws the random order of the rows.
    """

    pairs: Indices
    last: int | None
    shuffle: Shuffle

    @classmethod
    def from_table(cls, rows: pa.Table, shuffle: Shuffle) -> "PairedSampler":
        """Create a sampler that pairs the n-th real image of each group with its n-th fake.

        A group is rows with an equal label `group`, such as the images of one prompt. Rows that
        remain in a group have no twin.
        """
        groups, is_fake = labels.coded(rows, "group")[0], labels.fakes(rows)
        twins = _find_twins(groups, is_fake)
        is_alone = np.ones(len(rows), bool)
        is_alone[twins] = False
        alone = np.flatnonzero(is_alone).astype(np.int32)
        leftover_pairs = alone[: len(alone) // 2 * 2].reshape(-1, 2)
        pairs = np.concatenate([twins, leftover_pairs])
        return cls(
            pairs[np.argsort(pairs.min(axis=1))],
            int(alone[-1]) if len(alone) % 2 else None,
            shuffle,
        )

    @property
    def length(self) -> int:
        """Number of rows of one epoch, which has all rows."""
        return self.pairs.size + (self.last is not None)

    def epoch(self, number: int) -> Indices:
        """Return the row numbers of the epoch `number` (length,), pair after pair.

        If the number of rows is odd, the row without a partner comes last in even epochs and first
        in odd epochs. So pairs always begin at an even position in the sequence of all epochs.
        """
        rows = self.pairs[self.shuffle.permute(len(self.pairs), number)].ravel()
        if self.last is None:
            return rows
        return np.insert(rows, 0 if number % 2 else len(rows), self.last)


def compute_fractions(
    counts: Counts, is_fake: npt.NDArray[np.bool_], sampling: config.Sampling
) -> Fractions:
    """Return the fraction of an epoch (strata,) that each stratum gets.

    A stratum is the rows of one generator in one class, real or fake. Balanced classes get
    equal fractions. Otherwise a class gets its fraction of all rows. The fraction of a class is
    divided among its strata in proportion to n ** `sampling.generators` for a stratum of n rows.

    Args:
        counts: Number of rows of each stratum (strata,).
        is_fake: Whether a stratum is fake (strata,).
        sampling: The section `sampling` of the training's config.
    """
    fractions: Fractions = np.power(counts, sampling.generators, dtype=np.float64)
    classes = [is_fake == fake for fake in (False, True) if (is_fake == fake).any()]
    for in_class in classes:
        class_fraction = (
            1 / len(classes)
            if sampling.classes == "balanced"
            else counts[in_class].sum() / counts.sum()
        )
        fractions[in_class] *= class_fraction / fractions[in_class].sum()
    return fractions


def _find_twins(groups: npt.NDArray[np.int32], is_fake: npt.NDArray[np.bool_]) -> Indices:
    """Return pairs (pairs, 2) of the n-th real and the n-th fake of every group; -1 is no group."""
    real, fake = (np.flatnonzero((groups >= 0) & (is_fake == which)) for which in (False, True))
    real_keys, fake_keys = (
        groups[class_rows].astype(np.int64) * len(groups) + _rank_in_group(groups[class_rows])
        for class_rows in (real, fake)
    )
    _, real_indices, fake_indices = np.intersect1d(
        real_keys, fake_keys, assume_unique=True, return_indices=True
    )
    return np.stack([real[real_indices], fake[fake_indices]], axis=1).astype(np.int32)


def _rank_in_group(groups: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return how many earlier rows have the same group (N,)."""
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, counts)
    return ranks


def _make_epochs(
    rows: pa.Table, sampling: config.Sampling, seed: int
) -> FullEpochSampler | MixedSampler | PairedSampler:
    """Return an endless sequence of epochs of equal length, picklable and without state."""
    shuffle = Shuffle(seed, sampling.window, sampling.run)
    if sampling.classes != "natural" or sampling.generators != 1:
        if sampling.twins:
            raise ConfigError("sampling.twins pairs real and fake images, so sampling.classes must be natural and sampling.generators 1",
                              hint="set classes to natural and generators to 1, or twins to false")  # fmt: skip
        return MixedSampler.from_table(rows, sampling, shuffle)
    if sampling.epoch_rows is not None:
        raise ConfigError("sampling.epoch_rows cannot be set with natural fractions, because an epoch then has every row once",
                          hint="remove sampling.epoch_rows, and set loop.steps and validation.every to count in steps")  # fmt: skip
    return (
        PairedSampler.from_table(rows, shuffle)
        if sampling.twins
        else FullEpochSampler(len(rows), shuffle)
    )
