"""Find images that belong in one split, because they are equal or similar.

Two images are duplicates by a criterion if they have the same group, bytes, or prompt, or if they
look equal or nearly equal. `compute_duplicate_criteria` compares images by each criterion,
`connected_groups` joins duplicates to groups, and `find_shared` finds the images of one split that
have a duplicate in another. `find_leaks` and `leakage` report these images for all splits.
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

NEAR_BITS = 4  # Bits of 64 that may differ between perceptual hashes of one image.
KIND_TEXTS: Mapping[Kind, str] = {
    "image": "the same image twice",
    "bytes": "the same bytes",
    "group": "the same group",
    "prompt": "the same prompt",
    "looks": "pictures that look alike",
}

_PAIRS_AT_ONCE = 1 << 22  # Pairs that are compared at once.
_MAX_PAIRS = 1 << 23  # Pairs that are kept in memory, 128 MiB.
_MAX_EXAMPLES = 5
# A hash with fewer ones, or fewer zeros, is of an image without detail, which looks like any other
# such image.
_MIN_BITS = 8

# Hashes that differ in four bits agree in at least three of seven parts. These have about 27 bits,
# in which few other hashes agree.
_PARTS, _AGREE = 7, 3
assert _PARTS - NEAR_BITS == _AGREE

# Names of the bonds in the document of a training.
_NAMES: Mapping[Kind, str] = {
    "image": "image_id",
    "bytes": "sha256",
    "group": "group",
    "looks": "phash",
}


@dataclass(frozen=True)
class DuplicateCriterion:
    """A property that makes images duplicates if its values are equal or nearly equal.

    Attributes:
        kind: The property: "image" (the id), "bytes" (the SHA-256), "group", "prompt", or "looks"
            (the perceptual hash).
        codes: (N,) code of each row's value, -1 if the row has no value. Equal values have equal
            codes.
        pairs: (P, 2) codes of two values that are nearly equal.
    """

    kind: Kind
    codes: Codes
    pairs: Pairs

    @property
    def known(self) -> int:
        """Number of rows that have a value to compare, such as a prompt or a hash.

        A perceptual hash whose bits are nearly all 0 or nearly all 1 does not count as a value.
        """
        return int((self.codes >= 0).sum())


def compute_duplicate_criteria(rows: pa.Table, kinds: Sequence[Kind]) -> list[DuplicateCriterion]:
    """Compute the criteria by which rows are duplicates, such as equal bytes or equal prompts.

    Args:
        rows: Rows of an index with `image_id` and `input`.
        kinds: The properties to compare, as in `DuplicateCriterion.kind`.

    Returns:
        A criterion per kind, in the same order. If no row has a value to compare, such as a hash,
        no two rows are duplicates by this criterion.
    """
    makers: Mapping[Kind, Callable[[], DuplicateCriterion]] = {
        "image": lambda: DuplicateCriterion(
            "image",
            np.unique(rows["image_id"].to_numpy(), return_inverse=True)[1].astype(np.int64),
            _no_pairs(),
        ),
        "bytes": lambda: DuplicateCriterion(
            "bytes", coded(rows, "sha256")[0].astype(np.int64), _no_pairs()
        ),
        "group": lambda: DuplicateCriterion(
            "group", coded(rows, "group")[0].astype(np.int64), _no_pairs()
        ),
        "prompt": lambda: _make_prompt_bond(rows),
        "looks": lambda: _make_looks_bond(rows),
    }
    return [makers[kind]() for kind in kinds]


def connected_groups(bonds: Sequence[DuplicateCriterion], count: int) -> tuple[Codes, int]:
    """Join rows into groups of duplicates, which should stay in one split.

    Rows are in one group if they are duplicates by any criterion, directly or through other rows.

    Args:
        bonds: The criteria by which rows are duplicates.
        count: Number of rows.

    Returns:
        The number of each row's group (count,), from 0, and how many groups there are.
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
    _, components = connected_components(
        coo_array((np.ones(len(first), np.int8), (first, second)), (nodes, nodes)), directed=False
    )
    labels_found, codes = np.unique(components[:count], return_inverse=True)
    return codes.astype(np.int64), len(labels_found)


def find_shared(bond: DuplicateCriterion, checked: Rows, other: Rows) -> Rows:
    """Return which rows of one split have a duplicate among the rows of another split.

    If more than eight million pairs of values are nearly equal, `near_pairs` drops some pairs. Some
    rows with a duplicate may then not be found. If every row is in one of the two splits and some
    rows have a duplicate, at least one of these rows is found.

    Args:
        bond: The criterion by which rows are duplicates.
        checked: (N,) whether a row is in the split to check.
        other: (N,) whether a row is in the split to compare with.

    Returns:
        (N,) whether a row is checked and has a duplicate.
    """
    is_in_other = np.zeros(int(bond.codes.max(initial=-1)) + 1, np.bool_)
    is_in_other[bond.codes[other & (bond.codes >= 0)]] = True
    is_like = np.append(is_in_other, False)
    for value, near in (bond.pairs.T, bond.pairs.T[::-1]):
        is_like[value[is_in_other[near]]] = True
    return np.asarray(checked & is_like[bond.codes])


def find_leaks(
    bonds: Sequence[DuplicateCriterion], splits: Splits, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return how many images have a duplicate in another split, for each criterion, as plain JSON.

    Args:
        bonds: The criteria by which rows are duplicates.
        splits: (N,) index of each row's split in `names`, -1 for none. A row in no split is not
            compared.
        names: Names of the splits, the training split first.

    Returns:
        One dictionary per criterion.
        `kind` and `what`: the name of the criterion, and its name for people.
        `known`: the number of rows that have a value of the criterion, such as a hash.
        `images`: the number of rows with a duplicate in another split.
        `values`: the number of distinct values of these rows.
        `between`: for a key such as "test in train", the number of rows of test with a duplicate in
        train.
        `rows`: up to five examples, each a row number and the row number of its duplicate.
    """
    return [_find_leak(bond, splits, names) for bond in bonds]


def leakage(splits: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Return how many images of a split have a duplicate in a split before it, as plain JSON.

    Args:
        splits: The labelled rows by split, the training split first.

    Returns:
        `checked`: for `sha256` and `phash`, whether every split has images with such a hash. If
        not, duplicates by this hash are not known.
        `unhashed`: for `sha256` and `phash`, the number of images without the hash.
        `pairs`: for a key such as "validation in train", a dictionary with five entries.
        `image_id`, `sha256`, `group`, and `phash` each count the validation images that have a
        duplicate in train by this property. `examples` has up to five URIs of validation images
        with equal bytes or a similar look.
    """
    names, sizes = list(splits), [len(table) for table in splits.values()]
    rows = pa.concat_tables(splits.values(), promote_options="default")
    split_index = np.repeat(np.arange(len(names)), sizes)
    bonds = compute_duplicate_criteria(rows, list(_NAMES))
    pairs: dict[str, Any] = {}
    for first, second in combinations(range(len(names)), 2):
        shared_by_kind = {
            bond.kind: find_shared(bond, split_index == second, split_index == first)
            for bond in bonds
        }
        alike = rows["uri"].filter(pa.array(shared_by_kind["bytes"] | shared_by_kind["looks"]))
        pairs[f"{names[second]} in {names[first]}"] = {
            _NAMES[kind]: int(is_shared.sum()) for kind, is_shared in shared_by_kind.items()
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
    """Find the pairs of perceptual hashes that differ in at most `bits` bits.

    The bits of a hash are divided into seven parts. Hashes that differ in up to four bits have at
    least three equal parts, so only hashes with three equal parts are compared. A million hashes
    take seconds, unless very many of them are similar: k similar hashes have k² / 2 pairs.

    All pairs are returned if there are at most eight million. Otherwise, pairs are dropped to limit
    the memory. Two hashes of a dropped pair stay connected through pairs with other hashes.

    Args:
        hashes: (n,) hashes of 64 bits, all different.
        bits: Maximum number of different bits, up to NEAR_BITS.

    Returns:
        (m, 2) the indices of the two hashes of each pair, the lower index first, sorted.
    """
    chunks, count = [_no_pairs()], 0
    for chunk in _iter_near_pairs(hashes, bits):
        chunks.append(chunk)
        count += len(chunk)
        if count > _MAX_PAIRS:
            chunks, count = [_select_spanning_pairs(np.concatenate(chunks), len(hashes))], 0
    pairs = np.concatenate(chunks)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _iter_near_pairs(hashes: Hashes, bits: int) -> Iterator[Pairs]:
    """Yield all pairs of `near_pairs` in chunks, in no order."""
    edges = np.linspace(0, 64, _PARTS + 1).astype(int)
    parts = [np.uint64((1 << int(high)) - (1 << int(low))) for low, high in pairwise(edges)]
    for part_numbers in combinations(range(_PARTS), _AGREE):
        keys = hashes & np.bitwise_or.reduce([parts[number] for number in part_numbers])
        # A pair that agrees in more parts than these is found by the first three of them.
        others = [parts[number] for number in range(part_numbers[-1]) if number not in part_numbers]
        for first, second in _iter_equal_pairs(keys):
            apart = hashes[first] ^ hashes[second]
            is_near = np.bitwise_count(apart) <= bits
            for other in others:
                is_near &= (apart & other) != 0
            yield np.sort(np.stack([first[is_near], second[is_near]], axis=1), axis=1)


def _make_prompt_bond(rows: pa.Table) -> DuplicateCriterion:
    codes, prompts = coded(rows, "prompt")
    code_by_prompt: dict[str, int] = {}
    values = np.array(
        [
            code_by_prompt.setdefault(plain, len(code_by_prompt))
            if (plain := plain_prompt(text))
            else -1
            for text in prompts
        ],
        np.int64,
    )
    return DuplicateCriterion("prompt", np.append(values, -1)[codes], _no_pairs())


def _make_looks_bond(rows: pa.Table) -> DuplicateCriterion:
    codes, hex_hashes = coded(rows, "phash")
    hashes = np.array([int(text, 16) for text in hex_hashes], np.uint64)
    ones = np.bitwise_count(hashes)
    detailed = np.flatnonzero((ones >= _MIN_BITS) & (ones <= 64 - _MIN_BITS))
    values = np.full(len(hashes) + 1, -1, np.int64)
    values[detailed] = np.arange(len(detailed))
    return DuplicateCriterion("looks", values[codes], near_pairs(hashes[detailed]))


def _no_pairs() -> Pairs:
    return np.empty((0, 2), np.int64)


def _select_spanning_pairs(pairs: Pairs, count: int) -> Pairs:
    """Return the pairs of a spanning forest of `count` nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    forest = minimum_spanning_tree(
        coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count)).tocsr()
    ).tocoo()
    return np.sort(np.stack([forest.row, forest.col], axis=1), axis=1).astype(np.int64)


def _iter_equal_pairs(keys: Hashes) -> Iterator[tuple[Pairs, Pairs]]:
    """Yield the indices of all pairs of equal keys (n,) in chunks of two arrays."""
    order = np.argsort(keys)
    ordered = keys[order]
    bounds = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [len(keys)]])
    # For each key in order, the number of equal keys that follow.
    after = np.repeat(bounds[1:], np.diff(bounds)) - np.arange(len(keys)) - 1
    left = np.flatnonzero(after)
    starts = np.concatenate([[0], np.cumsum(after[left])])
    while len(left):
        count = max(1, int(np.searchsorted(starts, starts[0] + _PAIRS_AT_ONCE, side="right")) - 1)
        which = np.repeat(np.arange(count), after[left[:count]])
        step = np.arange(len(which)) - (starts[:count] - starts[0])[which] + 1
        yield order[left[:count][which]], order[left[:count][which] + step]
        left, starts = left[count:], starts[count:]


def _find_leak(bond: DuplicateCriterion, splits: Splits, names: Sequence[str]) -> dict[str, Any]:
    between: dict[str, int] = {}
    examples: list[list[int]] = []
    is_leaking = np.zeros(len(splits), np.bool_)
    for first, second in combinations(range(len(names)), 2):
        in_first, in_second = splits == first, splits == second
        is_shared = find_shared(bond, in_second, in_first)
        if is_shared.any():
            between[f"{names[second]} in {names[first]}"] = int(is_shared.sum())
            examples += _find_examples(bond, is_shared, in_first)
        is_leaking |= is_shared | find_shared(bond, in_first, in_second)
    return {
        "kind": bond.kind,
        "what": KIND_TEXTS[bond.kind],
        "known": bond.known,
        "values": len(np.unique(bond.codes[is_leaking])),
        "images": int(is_leaking.sum()),
        "between": between,
        "rows": examples[:_MAX_EXAMPLES],
    }


def _find_examples(bond: DuplicateCriterion, is_shared: Rows, other: Rows) -> list[list[int]]:
    """Return up to five shared rows of different values, each with its duplicate."""
    shared = np.flatnonzero(is_shared)
    firsts = np.sort(np.unique(bond.codes[shared], return_index=True)[1])[:_MAX_EXAMPLES]
    examples = []
    for row in shared[firsts].tolist():
        value = bond.codes[row]
        near = bond.pairs[(bond.pairs == value).any(axis=1)]
        is_like = np.isin(bond.codes, np.append(near, value)) & other
        examples.append([row, int(np.argmax(is_like))])
    return examples
