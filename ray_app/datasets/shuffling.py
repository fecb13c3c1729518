"""Numbers in a new order, for a seed and further numbers: all at once, or in runs that keep neighbours near. Knows nothing of rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int32]

_ORDER = 5  # apart from what else is drawn from the same seed


@dataclass(frozen=True)
class Shuffle:
    """`window` null: every order is as likely. Otherwise runs of `run` neighbours are shuffled, and then what lies within `window`."""

    seed: int
    window: int | None = None
    run: int = 256

    def generator(self, *which: int) -> np.random.Generator:
        """Chance for one purpose, the same whenever it is asked for."""
        return np.random.default_rng([self.seed, _ORDER, len(which), *which])

    def once(self, count: int, *which: int) -> Places:
        """(count,) 0 … count − 1, each once."""
        return self._ordered(count, self.generator(*which))

    def several(self, count: int, times: int, *which: int) -> Places:
        """(times × count,) 0 … count − 1 again and again, each time in an order of its own."""
        rng = self.generator(*which)
        if count <= self.run:  # no neighbours to keep, and perhaps very many times
            return np.asarray(rng.permuted(np.tile(np.arange(count, dtype=np.int32), (times, 1)), axis=1).ravel())
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
