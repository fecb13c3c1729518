"""Which of many perceptual hashes are of pictures that look alike. Knows 64-bit numbers; reads no image."""

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from ray_app.datasets.leakage import NEAR_BITS

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]

_PARTS, _AGREE = 7, 3  # hashes that differ in four bits agree in at least three of seven parts: 27 bits or so, which few others share
_AT_ONCE = 1 << 22  # pairs that are compared at once
_MOST = 1 << 23  # pairs that are kept: 128 MiB
assert _PARTS - NEAR_BITS == _AGREE


def near_pairs(hashes: Hashes, bits: int = NEAR_BITS) -> Pairs:
    """(m, 2) the places of all pairs of hashes (n,), all different, that differ in at most `bits` ≤ NEAR_BITS of their 64 bits; each pair
    once, the lower place first, in order.

    Hashes are sorted by every three of seven parts and compared where these agree, `_AT_ONCE` at a time: a million different ones take
    seconds, unless great numbers of them differ in few bits. k hashes that are all near have k² / 2 pairs; once there are more than
    `_MOST`, those that connect the same hashes stand for all, fewer than n.
    """
    edges = np.linspace(0, 64, _PARTS + 1).astype(int)
    parts = [np.uint64((1 << int(high)) - (1 << int(low))) for low, high in pairwise(edges)]
    found, count = [np.empty((0, 2), np.int64)], 0
    for chosen in combinations(range(_PARTS), _AGREE):
        keys = hashes & np.bitwise_or.reduce([parts[number] for number in chosen])
        # A pair that agrees in more parts than these is found by the first three of them.
        others = [parts[number] for number in range(chosen[-1]) if number not in chosen]
        for first, second in _equal_keys(keys):
            apart = hashes[first] ^ hashes[second]
            is_near = np.bitwise_count(apart) <= bits
            for other in others:
                is_near &= (apart & other) != 0
            found.append(np.sort(np.stack([first[is_near], second[is_near]], axis=1), axis=1))
            count += len(found[-1])
            if count > _MOST:
                found, count = [_connecting(np.concatenate(found), len(hashes))], 0
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _connecting(pairs: Pairs, count: int) -> Pairs:
    """Of pairs of `count` places those of a spanning forest."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    forest = minimum_spanning_tree(coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count)).tocsr()).tocoo()
    return np.sort(np.stack([forest.row, forest.col], axis=1), axis=1).astype(np.int64)


def _equal_keys(keys: Hashes) -> Iterator[tuple[Pairs, Pairs]]:
    """The places of all pairs of equal keys (n,), some at a time: two rows of places each."""
    order = np.argsort(keys)
    ordered = keys[order]
    bounds = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [len(keys)]])
    after = np.repeat(bounds[1:], np.diff(bounds)) - np.arange(len(keys)) - 1  # of each key in order: how many equal ones follow
    left = np.flatnonzero(after)
    begun = np.concatenate([[0], np.cumsum(after[left])])
    while len(left):
        count = max(1, int(np.searchsorted(begun, begun[0] + _AT_ONCE, side="right")) - 1)
        which = np.repeat(np.arange(count), after[left[:count]])
        step = np.arange(len(which)) - (begun[:count] - begun[0])[which] + 1
        yield order[left[:count][which]], order[left[:count][which] + step]
        left, begun = left[count:], begun[count:]
