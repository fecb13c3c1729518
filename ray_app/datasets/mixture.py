"""Strata of rows, one per class and generator, drawn in asked shares. Knows shares and counts; knows nothing of batches.

Each stratum walks through its own endless sequence of permutations, so that all its rows come equally often, and takes up in an epoch
where it stopped in the one before. How many it gives to an epoch is its share rounded up or down, in turns: a share of less than one
row an epoch comes every few epochs, not never.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.datasets.columns import coded, fakes
from ray_app.datasets.config import Sampling
from ray_app.datasets.shuffling import Places, Shuffle

Shares = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, without their whole parts, fill 0 … 1 most evenly


@dataclass(frozen=True)
class Mixture:
    """`strata`: the rows of each; `shares`: of the epoch, in the same order, together 1. See `Order` for `length` and `epoch`."""

    strata: Sequence[Places]
    shares: Shares
    length: int
    shuffle: Shuffle

    @classmethod
    def of(cls, rows: pa.Table, sampling: Sampling, shuffle: Shuffle) -> "Mixture":
        """Strata of a labelled table, real before fake, each class's generators in the order of their first rows."""
        generators, names = coded(rows, "generator")
        is_fake = fakes(rows)
        keys = is_fake * (len(names) + 1) + generators + 1
        found, counts = np.unique(keys, return_counts=True)
        strata = np.split(np.argsort(keys, kind="stable").astype(np.int32), np.cumsum(counts)[:-1])
        return cls(strata, mixed_shares(counts, found > len(names), sampling), sampling.epoch_rows or len(rows), shuffle)

    def epoch(self, number: int) -> Places:
        """(length,) the rows of an epoch, each stratum's spread evenly over it."""
        draws = self.draws(number)
        walks = zip(self._begun(number).tolist(), draws.tolist(), strict=True)
        rows = np.concatenate([self._walked(stratum, start, count) for stratum, (start, count) in enumerate(walks) if count])
        within = np.arange(self.length) - np.repeat(np.cumsum(draws) - draws, draws)
        times = (within + self.shuffle.generator(number).random(self.length)) / np.repeat(draws, draws)
        ordered: Places = rows[np.argsort(times, kind="stable")]
        return ordered

    def draws(self, number: int) -> Counts:
        """(strata,) how many rows of each are in an epoch: less than one away from its share, and right in the mean of epochs."""
        return self._begun(number + 1) - self._begun(number)

    def _begun(self, number: int) -> Counts:
        """(strata,) how many rows of each come in all epochs before this one.

        An epoch is cut where a stratum's share of it ends, at fractions that are rounded up if they reach what is drawn for the epoch.
        """
        ends = np.concatenate([[0.0], np.cumsum(self.shares) * self.length]).round(6)  # the same on processors that round otherwise
        ends[-1] = self.length
        thresholds = np.sort(np.arange(1, number + 1) * _GOLDEN % 1)
        rounded_up = np.searchsorted(thresholds, ends % 1, side="left")
        return np.asarray(np.diff(number * np.floor(ends).astype(np.int64) + rounded_up), np.int64)

    def _walked(self, stratum: int, start: int, count: int) -> Places:
        """Rows start … start + count of a stratum's endless sequence, which is made in pieces of about an epoch."""
        rows = self.strata[stratum]
        times = max(1, round(self.shares[stratum] * self.length / len(rows)))
        first, last = start // (times * len(rows)), (start + count - 1) // (times * len(rows))
        pieces = [self.shuffle.several(len(rows), times, stratum, piece) for piece in range(first, last + 1)]
        begin = start - first * times * len(rows)
        return rows[np.concatenate(pieces)[begin : begin + count]]


def mixed_shares(counts: Counts, is_fake: npt.NDArray[np.bool_], sampling: Sampling) -> Shares:
    """(strata,) the share of each of an epoch: its class's, divided within the class in proportion to count ** generators."""
    shares: Shares = np.power(counts, sampling.generators, dtype=np.float64)
    classes = [is_fake == fake for fake in (False, True) if (is_fake == fake).any()]
    for mine in classes:
        whole = 1 / len(classes) if sampling.classes == "balanced" else counts[mine].sum() / counts.sum()
        shares[mine] *= whole / shares[mine].sum()
    return shares
