"""Images of two splits that are bound: how many, and the first of them by name. Knows bonds and splits; reads no image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.datasets.bonds import WORDS, Bond

Splits = npt.NDArray[np.int64]
_EXAMPLES = 5


def leaks_of(bonds: Sequence[Bond], splits: Splits, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each kind of bond, as plain JSON: `kind`, `what` in words, `known` (images that have such a value), `values` (how many values, or
    pairs of values, are in two splits), `images` (of them), `between` {"test in train": values} and `rows`, up to five
    [row, row of the other split].

    splits: (N,) place among `names`, -1 = in no split, and so in no leak.
    """
    return [_leaks(bond, splits, names) for bond in bonds]


def _leaks(bond: Bond, splits: Splits, names: Sequence[str]) -> dict[str, Any]:
    used = np.flatnonzero((bond.codes >= 0) & (splits >= 0))
    count = int(bond.codes.max(initial=-1)) + 1
    first = np.full((count, len(names)), -1, np.int64)  # a row of every value in every split
    first[bond.codes[used][::-1], splits[used][::-1]] = used[::-1]
    crossing = np.concatenate([np.stack([np.arange(count)] * 2, axis=1), bond.pairs])
    between: dict[str, int] = {}
    examples: list[list[int]] = []
    leaking = np.zeros(count, np.bool_)
    is_leak = np.zeros(len(crossing), np.bool_)
    for one in range(len(names)):
        for other in range(one + 1, len(names)):
            found = np.zeros(len(crossing), np.bool_)
            for here, there in ((one, other), (other, one)):
                both = (first[crossing[:, 0], here] >= 0) & (first[crossing[:, 1], there] >= 0)
                examples += _pairs(first, crossing[both & ~found][:_EXAMPLES], here, there, other)
                found |= both
            if found.any():
                between[f"{names[other]} in {names[one]}"] = int(found.sum())
            is_leak |= found
    leaking[crossing[is_leak].ravel()] = True
    images = int(leaking[bond.codes[used]].sum())
    told: Mapping[str, Any] = {"kind": bond.kind, "what": WORDS[bond.kind], "known": bond.known}
    return {**told, "values": int(is_leak.sum()), "images": images, "between": between, "rows": examples[:_EXAMPLES]}


def _pairs(first: npt.NDArray[np.int64], crossing: npt.NDArray[np.int64], here: int, there: int, later: int) -> list[list[int]]:
    """A row of each side of these crossings, that of the later split first."""
    rows = np.stack([first[crossing[:, 0], here], first[crossing[:, 1], there]], axis=1)
    return [row if here == later else row[::-1] for row in rows.tolist()]
