"""Near-duplicates that belong into one split: the same group, bytes, or prompt, or the same or
nearly the same looks.

`bonds_of` finds them, `connected_groups` joins them to groups, `leaks_of` counts those between
splits, and `leakage` images of one split that are in another too, by file, near-duplicate or group.
`near_pairs` compares perceptual hashes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datasets.labels import coded, plain_prompt, texts

Kind = Literal["image", "bytes", "group", "prompt", "looks"]
Hashes = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.int64]
Splits = npt.NDArray[np.int64]

NEAR_BITS = 4  # of 64 that may differ between perceptual hashes of one picture
_AT_ONCE = 1 << 22  # pairs that are compared at once
_EXAMPLES = 5


def leakage(splits: Mapping[str, pa.Table]) -> dict[str, Any]:
    """What every two splits share, as plain JSON.

    `checked` {sha256, phash}: whether every split has such hashes; without, nothing is known.
    `unhashed` {…}: images without one, such as unreadable ones. `pairs` {"validation in train": …}:
    how many images of the one split have their like in the other: `image_id` the same place,
    `sha256` the same bytes, `phash` within NEAR_BITS, `group` the same group; and up to five
    `examples`, uris of the former by bytes or looks.
    """
    missing = {
        name: [texts(table, name).null_count for table in splits.values()]
        for name in ("sha256", "phash")
    }
    sizes = [len(table) for table in splits.values()]
    alike = _alike(list(splits.values()))
    numbered = combinations(enumerate(splits), 2)
    return {
        "checked": {
            name: all(count < size for count, size in zip(counts, sizes, strict=True))
            for name, counts in missing.items()
        },
        "unhashed": {name: sum(counts) for name, counts in missing.items()},
        "pairs": {
            f"{held} in {other}": _shared(splits[held], splits[other], alike[number][place])
            for (place, other), (number, held) in numbered
        },
    }


def _shared(held: pa.Table, other: pa.Table, is_alike: npt.NDArray[np.bool_]) -> dict[str, Any]:
    found = {"image_id": pc.is_in(held["image_id"], other["image_id"]).to_numpy()}
    for name in ("sha256", "group"):
        found[name] = pc.is_in(
            texts(held, name), pc.drop_null(texts(other, name)), skip_nulls=True
        ).to_numpy()
    found["phash"] = is_alike
    examples = (
        held["uri"]
        .filter(pa.array(found["sha256"] | found["phash"]))
        .slice(0, _EXAMPLES)
        .to_pylist()
    )
    return {name: int(is_shared.sum()) for name, is_shared in found.items()} | {
        "examples": examples
    }


def _alike(tables: Sequence[pa.Table]) -> list[npt.NDArray[np.bool_]]:
    """Per table (tables, N): whether a row's perceptual hash is one of each table's, or near one; a
    row without a hash is like none.
    """
    rows = [(codes, _hashes(names)) for codes, names in (coded(table, "phash") for table in tables)]
    hashes = np.unique(np.concatenate([own for _, own in rows]))
    is_of = np.stack([np.isin(hashes, own) for _, own in rows])
    is_near = is_of.copy()
    for pairs in _near(hashes, NEAR_BITS):
        for one, two in (pairs.T, pairs.T[::-1]):
            for near, own in zip(is_near, is_of, strict=True):
                np.logical_or.at(near, one, own[two])
    unhashed = np.zeros((len(tables), 1), np.bool_)
    return [
        np.hstack([is_near[:, np.searchsorted(hashes, own)], unhashed])[:, codes]
        for codes, own in rows
    ]


def _hashes(texts: Sequence[str]) -> Hashes:
    return np.array([int(text, 16) for text in texts], np.uint64)


WORDS: Mapping[Kind, str] = {
    "image": "the same image twice",
    "bytes": "the same bytes",
    "group": "the same group",
    "prompt": "the same prompt",
    "looks": "pictures that look alike",
}
# a hash with fewer ones, or fewer zeros, is of a picture without detail, which looks like any other
# such
_FLAT = 8

# hashes that differ in four bits agree in at least three of seven parts: 27 bits or so, which few
# others share
_PARTS, _AGREE = 7, 3
_MOST = 1 << 23  # pairs that are kept: 128 MiB
assert _PARTS - NEAR_BITS == _AGREE


@dataclass(frozen=True)
class Bond:
    """One kind of likeness: rows of one value are bound, and so are rows of two values that are a
    pair.

    `codes` (N,): the value of every row, -1 = none. `pairs` (P, 2): values that are nearly the
    same. `known`: rows that have a value.
    """

    kind: Kind
    codes: Codes
    pairs: Pairs

    @property
    def known(self) -> int:
        """How many rows have a value."""
        return int((self.codes >= 0).sum())


def bonds_of(rows: pa.Table, kinds: Sequence[Kind]) -> list[Bond]:
    """Return the bonds of these kinds, in that order.

    rows: `image_id` and `input` of an index. A kind of which no row knows anything has no value and
    no pair.
    """
    made: Mapping[Kind, Callable[[], Bond]] = {
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
    return [made[kind]() for kind in kinds]


def connected_groups(bonds: Sequence[Bond], count: int) -> tuple[Codes, int]:
    """(count,) the number of every row's connected group, and how many groups there are: union-find
    over rows and their values.
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


def leaks_of(bonds: Sequence[Bond], splits: Splits, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each kind of bond, as plain JSON: `kind`, `what` in words, `known` (images that have such
    a value), `values` (how many values, or pairs of values, are in two splits), `images` (of them),
    `between` {"test in train": values} and `rows`, up to five [row, row of the other split].

    splits: (N,) place among `names`, -1 = in no split, and so in no leak.
    """
    return [_leaks(bond, splits, names) for bond in bonds]


def near_pairs(hashes: Hashes, bits: int = NEAR_BITS) -> Pairs:
    """(m, 2) the places of all pairs of hashes (n,), all different, that differ in at most `bits` ≤
    NEAR_BITS of their 64 bits; each pair once, the lower place first, in order.

    Hashes are sorted by every three of seven parts and compared where these agree, `_AT_ONCE` at a
    time: a million different ones take seconds, unless great numbers of them differ in few bits. k
    hashes that are all near have k² / 2 pairs; once there are more than `_MOST`, those that connect
    the same hashes stand for all, fewer than n.
    """
    found, count = [_no_pairs()], 0
    for some in _near(hashes, bits):
        found.append(some)
        count += len(some)
        if count > _MOST:
            found, count = [_connecting(np.concatenate(found), len(hashes))], 0
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _near(hashes: Hashes, bits: int) -> Iterator[Pairs]:
    """All pairs of `near_pairs`, some at a time, in no order."""
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
    hashes = _hashes(texts)
    ones = np.bitwise_count(hashes)
    detailed = np.flatnonzero((ones >= _FLAT) & (ones <= 64 - _FLAT))
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
    begun = np.concatenate([[0], np.cumsum(after[left])])
    while len(left):
        count = max(1, int(np.searchsorted(begun, begun[0] + _AT_ONCE, side="right")) - 1)
        which = np.repeat(np.arange(count), after[left[:count]])
        step = np.arange(len(which)) - (begun[:count] - begun[0])[which] + 1
        yield order[left[:count][which]], order[left[:count][which] + step]
        left, begun = left[count:], begun[count:]


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
    head: Mapping[str, Any] = {"kind": bond.kind, "what": WORDS[bond.kind], "known": bond.known}
    return {
        **head,
        "values": int(is_leak.sum()),
        "images": images,
        "between": between,
        "rows": examples[:_EXAMPLES],
    }


def _pairs(
    first: npt.NDArray[np.int64], crossing: npt.NDArray[np.int64], here: int, there: int, later: int
) -> list[list[int]]:
    """A row of each side of these crossings, that of the later split first."""
    rows = np.stack([first[crossing[:, 0], here], first[crossing[:, 1], there]], axis=1)
    return [row if here == later else row[::-1] for row in rows.tolist()]
