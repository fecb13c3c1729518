"""What binds two images so that they belong into one split: the same group, prompt, bytes or looks. Knows labels and hashes; no split.

Images are bound in kinds. Within a kind, images of one value are bound, and images of two values that are a pair.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.datasets.columns import coded
from ray_app.datasets.labels import plain_prompt
from ray_app.datasets.looks import near_pairs
from ray_app.datasets.prompts_alike import prompts_alike

Kind = Literal["image", "bytes", "group", "prompt", "looks"]
Codes = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.int64]

WORDS: Mapping[Kind, str] = {
    "image": "the same image twice",
    "bytes": "the same bytes",
    "group": "the same group",
    "prompt": "the same prompt, or nearly",
    "looks": "pictures that look alike",
}
_FLAT = 8  # a hash with fewer ones, or fewer zeros, is of a picture without detail, which looks like any other such


@dataclass(frozen=True)
class Bond:
    """`codes` (N,): the value of every row, -1 = none. `pairs` (P, 2): values that are nearly the same. `known`: rows that have a value."""

    kind: Kind
    codes: Codes
    pairs: Pairs

    @property
    def known(self) -> int:
        """How many rows have a value."""
        return int((self.codes >= 0).sum())


def bonds_of(rows: pa.Table, kinds: Sequence[Kind], *, prompts: float = 0.9) -> list[Bond]:
    """The bonds of these kinds, in that order. `prompts`: the share of words that nearly the same prompts share; 1 = equal ones only.

    rows: `image_id` and `input` of an index. A kind of which no row knows anything has no value and no pair.
    """
    made: Mapping[Kind, Callable[[], Bond]] = {
        "image": lambda: Bond("image", np.unique(rows["image_id"].to_numpy(), return_inverse=True)[1].astype(np.int64), _no_pairs()),
        "bytes": lambda: Bond("bytes", coded(rows, "sha256")[0].astype(np.int64), _no_pairs()),
        "group": lambda: Bond("group", coded(rows, "group")[0].astype(np.int64), _no_pairs()),
        "prompt": lambda: _of_prompts(rows, prompts),
        "looks": lambda: _of_looks(rows),
    }
    return [made[kind]() for kind in kinds]


def bound(bonds: Sequence[Bond], count: int) -> tuple[Codes, int]:
    """(count,) the number of every row's connected group, and how many groups there are: union-find over rows and their values."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    firsts, seconds, nodes = [np.empty(0, np.int64)], [np.empty(0, np.int64)], count
    for bond in bonds:
        rows = np.flatnonzero(bond.codes >= 0)
        firsts += [rows, nodes + bond.pairs[:, 0]]
        seconds += [nodes + bond.codes[rows], nodes + bond.pairs[:, 1]]
        nodes += int(bond.codes.max(initial=-1)) + 1
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    _, found = connected_components(coo_array((np.ones(len(first), np.int8), (first, second)), (nodes, nodes)), directed=False)
    names, codes = np.unique(found[:count], return_inverse=True)
    return codes.astype(np.int64), len(names)


def _of_prompts(rows: pa.Table, share: float) -> Bond:
    codes, texts = coded(rows, "prompt")
    places: dict[str, int] = {}
    values = np.array([places.setdefault(plain, len(places)) if (plain := plain_prompt(text)) else -1 for text in texts], np.int64)
    pairs = prompts_alike(list(places), share) if share < 1 else _no_pairs()
    return Bond("prompt", np.append(values, -1)[codes], pairs)


def _of_looks(rows: pa.Table) -> Bond:
    codes, texts = coded(rows, "phash")
    hashes = np.array([int(text, 16) for text in texts], np.uint64)
    ones = np.bitwise_count(hashes)
    told = np.flatnonzero((ones >= _FLAT) & (ones <= 64 - _FLAT))
    values = np.full(len(hashes) + 1, -1, np.int64)
    values[told] = np.arange(len(told))
    return Bond("looks", values[codes], near_pairs(hashes[told]))


def _no_pairs() -> Pairs:
    return np.empty((0, 2), np.int64)
