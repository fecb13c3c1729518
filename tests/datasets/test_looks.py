from itertools import combinations

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ray_app.datasets import looks
from ray_app.datasets.leakage import NEAR_BITS
from ray_app.datasets.looks import near_pairs


def hashes_with_neighbours(seed, n=300):
    """Hashes of which many differ from another in 1 … 6 bits, anywhere."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    for place in range(0, n, 2):
        flipped = rng.choice(64, rng.integers(1, 7), replace=False)
        hashes[place] = hashes[place + 1] ^ np.bitwise_or.reduce(np.uint64(1) << flipped.astype(np.uint64))
    return np.unique(hashes)


def components(pairs, count):
    return connected_components(coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count)), directed=False)[1]


@pytest.mark.parametrize("at_once", [looks._AT_ONCE, 3])
@pytest.mark.parametrize("seed", range(5))
def test_every_pair_that_is_near_is_found_once(seed, at_once, monkeypatch):
    monkeypatch.setattr(looks, "_AT_ONCE", at_once)
    hashes = hashes_with_neighbours(seed)
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    wanted = [(a, b) for a, b in np.argwhere(distance <= NEAR_BITS).tolist() if a < b]
    assert len(wanted) > 50
    assert list(map(tuple, near_pairs(hashes).tolist())) == wanted


def test_few_hashes_have_no_pairs():
    assert near_pairs(np.empty(0, np.uint64)).shape == (0, 2)
    assert near_pairs(np.array([7], np.uint64)).shape == (0, 2)


def test_of_too_many_pairs_those_stay_that_connect_the_same_hashes(monkeypatch):
    base = np.array([0x0123456789ABCDEF, 0xFEDCBA9876543210], np.uint64)
    flips = np.array([0, *(1 << bit for bit in range(64)), *((1 << a) | (1 << b) for a, b in combinations(range(0, 64, 4), 2))], np.uint64)
    hashes = np.concatenate([flips ^ one for one in base])
    every = near_pairs(hashes)
    monkeypatch.setattr(looks, "_AT_ONCE", 100)
    monkeypatch.setattr(looks, "_MOST", 1_000)
    some = near_pairs(hashes)
    assert len(every) > 10_000
    assert len(some) < len(hashes) + 1_100
    assert set(map(tuple, some.tolist())) <= set(map(tuple, every.tolist()))
    assert (components(some, len(hashes)) == components(every, len(hashes))).all()
    assert len(set(components(some, len(hashes)))) == 2
