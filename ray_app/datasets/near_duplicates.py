"""Images that belong into one split: the same group, bytes, or prompt, or the same or nearly the
same looks.

`bonds_of` finds them, `connected_groups` joins them to groups, and `find_shared` finds the images of
one split that have a like in another. `find_leaks` and `leakage` report that for all splits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.datasets.labels import coded, plain_prompt, texts

Kind = Literal["image", "bytes", "group", "prompt", "looks"]
Hashes = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.int64]
Splits = npt.NDArray[np.int64]
Rows = npt.NDArray[np.bool_]

NEAR_BITS = 4  # of 64 that may differ between perceptual hashes of one image
WORDS: Mapping[Kind, str] = {
    "image": "the same image twice",
    "bytes": "the same bytes",
    "group": "the same group",
    "prompt": "the same prompt",
    "looks": "pictures that look alike",
}

_PAIRS_AT_ONCE = 1 << 22  # pairs that are compared at once
_MAX_PAIRS = 1 << 23  # pairs that are kept: 128 MiB
_MAX_EXAMPLES = 5
# A hash with fewer ones, or fewer zeros, is of an image without detail, which looks like any other
# such image.
_MIN_BITS = 8

# Hashes that differ in four bits agree in at least three of seven parts: 27 bits or so, which few
# others share.
_PARTS, _AGREE = 7, 3
assert _PARTS - NEAR_BITS == _AGREE

# The names of the bonds in the document of a training.
_NAMES: Mapping[Kind, str] = {
    "image": "image_id",
    "bytes": "sha256",
    "group": "group",
    "looks": "phash",
}


@dataclass(frozen=True)
class Bond:
    """One kind of likeness: rows of one value are bound, and so are rows of two near values.

    Attributes:
        kind: How the rows are alike.
        codes: (N,) value of every row, -1 for none.
        pairs: (P, 2) values that are nearly the same.
    """

    kind: Kind
    codes: Codes
    pairs: Pairs

    @property
    def known(self) -> int:
        """Number of rows that have a value."""
        return int((self.codes >= 0).sum())


def bonds_of(rows: pa.Table, kinds: Sequence[Kind]) -> list[Bond]:
    """Return the bonds of these kinds, in that order.

    rows: `image_id` and `input` of an index. A kind of which no row knows anything has no value and
    no pair.
    """
    makers: Mapping[Kind, Callable[[], Bond]] = {
        "image": lambda: Bond(
            "image",
            np.unique(rows["image_id"].to_numpy(), return_inverse=True)[1].astype(np.int64),
            _no_pairs(),
        ),
        "bytes": lambda: Bond("bytes", coded(rows, "sha256")[0].astype(np.int64), _no_pairs()),
        "group": lambda: Bond("group", coded(rows, "group")[0].astype(np.int64), _no_pairs()),
        "prompt": lambda: _of_prompts(rows),
        "looks": lambda: _of_looks(rows),
    }
    return [makers[kind]() for kind in kinds]


def connected_groups(bonds: Sequence[Bond], count: int) -> tuple[Codes, int]:
    """Return (count,) the number of every row's connected group, and how many groups there are.
    Rows and their values are the nodes of the graph.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    firsts, seconds, nodes = [np.empty(0, np.int64)], [np.empty(0, np.int64)], count
    for bond in bonds:
        rows = np.flatnonzero(bond.codes >= 0)
        firsts += [rows, nodes + bond.pairs[:, 0]]
        seconds += [nodes + bond.codes[rows], nodes + bond.pairs[:, 1]]
        nodes += int(bond.codes.max(initial=-1)) + 1
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    _, found = connected_components(
        coo_array((np.ones(len(first), np.int8), (first, second)), (nodes, nodes)), directed=False
    )
    names, codes = np.unique(found[:count], return_inverse=True)
    return codes.astype(np.int64), len(names)


def find_shared(bond: Bond, held: Rows, other: Rows) -> Rows:
    """Return (N,) which rows of `held` have the value of a row of `other`, or a near value.

    Of more than eight million near pairs `near_pairs` keeps those that connect the same values: then
    a few rows may be missing, but never all.
    """
    is_in_other = np.zeros(int(bond.codes.max(initial=-1)) + 1, np.bool_)
    is_in_other[bond.codes[other & (bond.codes >= 0)]] = True
    is_like = np.append(is_in_other, False)
    for value, near in (bond.pairs.T, bond.pairs.T[::-1]):
        is_like[value[is_in_other[near]]] = True
    return np.asarray(held & is_like[bond.codes])


def find_leaks(bonds: Sequence[Bond], splits: Splits, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the splits share by each bond, as plain JSON.

    Args:
        bonds: The bonds of the rows.
        splits: (N,) index of each row's split in `names`, -1 for none. A row in no split leaks
            nothing.
        names: The splits, what is learnt from first.

    Returns:
        For each bond `kind`, `what` in words, `known` (rows that have a value), `images` (rows that
        have a like in another split), `values` (distinct values of them), `between` (for each
        "test in train" the rows of test that have a like in train), and `rows`, up to five pairs of
        a row and its like in the other split.
    """
    return [_find_leak(bond, splits, names) for bond in bonds]


def leakage(splits: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Return what every two splits of a training share, as plain JSON.

    Returns:
        `checked` (for `sha256` and `phash` whether every split has such hashes; without, nothing is
        known), `unhashed` (images without one), and `pairs`: for each "validation in train" how
        many images of validation have a like in train by `image_id`, `sha256`, `group`, and `phash`
        (within NEAR_BITS), and `examples`, up to five URIs of those alike by bytes or looks.
    """
    names, sizes = list(splits), [len(table) for table in splits.values()]
    rows = pa.concat_tables(splits.values(), promote_options="default")
    place = np.repeat(np.arange(len(names)), sizes)
    bonds = bonds_of(rows, list(_NAMES))
    pairs: dict[str, Any] = {}
    for other, held in combinations(range(len(names)), 2):
        shared = {bond.kind: find_shared(bond, place == held, place == other) for bond in bonds}
        alike = rows["uri"].filter(pa.array(shared["bytes"] | shared["looks"]))
        pairs[f"{names[held]} in {names[other]}"] = {
            _NAMES[kind]: int(is_shared.sum()) for kind, is_shared in shared.items()
        } | {"examples": alike.slice(0, _MAX_EXAMPLES).to_pylist()}
    missing = {
        name: [texts(table, name).null_count for table in splits.values()]
        for name in ("sha256", "phash")
    }
    return {
        "checked": {
            name: all(count < size for count, size in zip(counts, sizes, strict=True))
            for name, counts in missing.items()
        },
        "unhashed": {name: sum(counts) for name, counts in missing.items()},
        "pairs": pairs,
    }


def near_pairs(hashes: Hashes, bits: int = NEAR_BITS) -> Pairs:
    """Return (m, 2) the indices of all pairs of hashes that differ in at most `bits` bits.

    Hashes are sorted by every three of seven parts and compared if these agree, `_PAIRS_AT_ONCE` at a
    time: a million hashes take seconds, unless great numbers of them differ in few bits. k hashes
    that are all near have k² / 2 pairs. Once there are more than `_MAX_PAIRS`, the pairs that connect
    the same hashes are kept, fewer than n.

    Args:
        hashes: (n,) hashes of 64 bits, all different.
        bits: At most NEAR_BITS.

    Returns:
        Each pair once and in order, the lower index first.
    """
    found, count = [_no_pairs()], 0
    for some in _near(hashes, bits):
        found.append(some)
        count += len(some)
        if count > _MAX_PAIRS:
            found, count = [_connecting(np.concatenate(found), len(hashes))], 0
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _near(hashes: Hashes, bits: int) -> Iterator[Pairs]:
    """Yield all pairs of `near_pairs`, some at a time, in no order."""
    edges = np.linspace(0, 64, _PARTS + 1).astype(int)
    parts = [np.uint64((1 << int(high)) - (1 << int(low))) for low, high in pairwise(edges)]
    for chosen in combinations(range(_PARTS), _AGREE):
        keys = hashes & np.bitwise_or.reduce([parts[number] for number in chosen])
        # A pair that agrees in more parts than these is found by the first three of them.
        others = [parts[number] for number in range(chosen[-1]) if number not in chosen]
        for first, second in _equal_keys(keys):
            apart = hashes[first] ^ hashes[second]
            is_near = np.bitwise_count(apart) <= bits
            for other in others:
                is_near &= (apart & other) != 0
            yield np.sort(np.stack([first[is_near], second[is_near]], axis=1), axis=1)


def _of_prompts(rows: pa.Table) -> Bond:
    codes, texts = coded(rows, "prompt")
    places: dict[str, int] = {}
    values = np.array(
        [
            places.setdefault(plain, len(places)) if (plain := plain_prompt(text)) else -1
            for text in texts
        ],
        np.int64,
    )
    return Bond("prompt", np.append(values, -1)[codes], _no_pairs())


def _of_looks(rows: pa.Table) -> Bond:
    codes, texts = coded(rows, "phash")
    hashes = np.array([int(text, 16) for text in texts], np.uint64)
    ones = np.bitwise_count(hashes)
    detailed = np.flatnonzero((ones >= _MIN_BITS) & (ones <= 64 - _MIN_BITS))
    values = np.full(len(hashes) + 1, -1, np.int64)
    values[detailed] = np.arange(len(detailed))
    return Bond("looks", values[codes], near_pairs(hashes[detailed]))


def _no_pairs() -> Pairs:
    return np.empty((0, 2), np.int64)


def _connecting(pairs: Pairs, count: int) -> Pairs:
    """Of pairs of `count` places those of a spanning forest."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    forest = minimum_spanning_tree(
        coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count)).tocsr()
    ).tocoo()
    return np.sort(np.stack([forest.row, forest.col], axis=1), axis=1).astype(np.int64)


def _equal_keys(keys: Hashes) -> Iterator[tuple[Pairs, Pairs]]:
    """The places of all pairs of equal keys (n,), some at a time: two rows of places each."""
    order = np.argsort(keys)
    ordered = keys[order]
    bounds = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [len(keys)]])
    # of each key in order: how many equal ones follow
    after = np.repeat(bounds[1:], np.diff(bounds)) - np.arange(len(keys)) - 1
    left = np.flatnonzero(after)
    starts = np.concatenate([[0], np.cumsum(after[left])])
    while len(left):
        count = max(1, int(np.searchsorted(starts, starts[0] + _PAIRS_AT_ONCE, side="right")) - 1)
        which = np.repeat(np.arange(count), after[left[:count]])
        step = np.arange(len(which)) - (starts[:count] - starts[0])[which] + 1
        yield order[left[:count][which]], order[left[:count][which] + step]
        left, starts = left[count:], starts[count:]


def _find_leak(bond: Bond, splits: Splits, names: Sequence[str]) -> dict[str, Any]:
    between: dict[str, int] = {}
    examples: list[list[int]] = []
    is_leaking = np.zeros(len(splits), np.bool_)
    for other, held in combinations(range(len(names)), 2):
        in_other, in_held = splits == other, splits == held
        is_shared = find_shared(bond, in_held, in_other)
        if is_shared.any():
            between[f"{names[held]} in {names[other]}"] = int(is_shared.sum())
            examples += _examples(bond, is_shared, in_other)
        is_leaking |= is_shared | find_shared(bond, in_other, in_held)
    return {
        "kind": bond.kind,
        "what": WORDS[bond.kind],
        "known": bond.known,
        "values": len(np.unique(bond.codes[is_leaking])),
        "images": int(is_leaking.sum()),
        "between": between,
        "rows": examples[:_MAX_EXAMPLES],
    }


def _examples(bond: Bond, is_shared: Rows, other: Rows) -> list[list[int]]:
    """Return up to five shared rows of different values, each with its like in the other split."""
    shared = np.flatnonzero(is_shared)
    firsts = np.sort(np.unique(bond.codes[shared], return_index=True)[1])[:_MAX_EXAMPLES]
    examples = []
    for row in shared[firsts].tolist():
        value = bond.codes[row]
        near = bond.pairs[(bond.pairs == value).any(axis=1)]
        is_like = np.isin(bond.codes, np.append(near, value)) & other
        examples.append([row, int(np.argmax(is_like))])
    return examples
