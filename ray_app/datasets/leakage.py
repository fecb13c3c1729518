"""Leakage between splits (`leakage`): images of one that are in another too, by file, near-duplicate (`near`) or group."""

from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datasets.labels import texts

Hashes = npt.NDArray[np.uint64]

NEAR_BITS = 4  # of 64 that may differ between perceptual hashes of one picture
_BANDS = 5  # hashes that differ in four bits agree in at least one of five parts
_AT_ONCE = 1 << 22  # pairs that are compared at once
_EXAMPLES = 5


def leakage(splits: Mapping[str, pa.Table]) -> dict[str, Any]:
    """What every two splits share, as plain JSON.

    `checked` {sha256, phash}: whether every split has such hashes; without, nothing is known. `unhashed` {…}: images without one, such as
    unreadable ones. `pairs` {"validation in train": …}: how many images of the one split have their like in the other: `image_id` the
    same place, `sha256` the same bytes, `phash` within NEAR_BITS, `group` the same group; and up to five `examples`, uris of the former
    by bytes or looks.
    """
    missing = {name: [texts(table, name).null_count for table in splits.values()] for name in ("sha256", "phash")}
    sizes = [len(table) for table in splits.values()]
    return {
        "checked": {name: all(count < size for count, size in zip(counts, sizes, strict=True)) for name, counts in missing.items()},
        "unhashed": {name: sum(counts) for name, counts in missing.items()},
        "pairs": {f"{held} in {other}": _shared(splits[held], splits[other]) for other, held in combinations(splits, 2)},
    }


def near(hashes: Hashes, others: Hashes, bits: int = NEAR_BITS) -> npt.NDArray[np.bool_]:
    """(N,) whether one of the others differs from a hash in at most `bits` ≤ 4 of its 64 bits."""
    is_near = np.zeros(len(hashes), bool)
    edges = np.linspace(0, 64, _BANDS + 1).astype(np.uint64)
    for low, high in pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        part = (others >> low) & mask
        order = np.argsort(part)
        mine = (hashes >> low) & mask
        first, last = (np.searchsorted(part[order], mine, side=side) for side in ("left", "right"))
        _compare(is_near, hashes, others[order], first, last, bits)
    return is_near


def _shared(held: pa.Table, other: pa.Table) -> dict[str, Any]:
    found = {"image_id": pc.is_in(held["image_id"], other["image_id"]).to_numpy()}
    for name in ("sha256", "group"):
        found[name] = pc.is_in(texts(held, name), pc.drop_null(texts(other, name)), skip_nulls=True).to_numpy()
    found["phash"] = _alike(texts(held, "phash"), texts(other, "phash"))
    examples = held["uri"].filter(pa.array(found["sha256"] | found["phash"])).slice(0, _EXAMPLES).to_pylist()
    return {name: int(is_shared.sum()) for name, is_shared in found.items()} | {"examples": examples}


def _alike(held: pa.ChunkedArray, other: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    (values, codes), (others, _) = _hashes(held), _hashes(other)
    return np.append(near(values, others), False)[codes]  # a row without a hash, -1, is like none


def _hashes(texts: pa.ChunkedArray) -> tuple[Hashes, npt.NDArray[np.int32]]:
    """All different hashes, and (N,) the place of every row's, -1 where there is none."""
    encoded = texts.dictionary_encode().combine_chunks()
    values = np.array([int(text, 16) for text in encoded.dictionary.to_pylist()], np.uint64)
    return values, encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)


def _compare(
    is_near: npt.NDArray[np.bool_],
    hashes: Hashes,
    others: Hashes,
    first: npt.NDArray[np.intp],
    last: npt.NDArray[np.intp],
    bits: int,
) -> None:
    """Mark each hash that is near to one of others[first … last]."""
    todo = np.flatnonzero((last > first) & ~is_near)
    begun = np.concatenate([[0], np.cumsum((last - first)[todo])])
    while len(todo):
        count = max(1, int(np.searchsorted(begun, begun[0] + _AT_ONCE, side="right")) - 1)
        some, lengths = todo[:count], (last - first)[todo[:count]]
        which = np.repeat(np.arange(count), lengths)
        against = np.arange(len(which)) - (begun[:count] - begun[0])[which] + first[some][which]
        distance = np.bitwise_count(hashes[some][which] ^ others[against])
        is_near[some[np.unique(which[distance <= bits])]] = True
        todo, begun = todo[count:], begun[count:]
