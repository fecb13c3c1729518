from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ray_app.datasets import near_duplicates
from ray_app.datasets.near_duplicates import (
    NEAR_BITS,
    DuplicateCriterion,
    compute_duplicate_criteria,
    connected_groups,
    leakage,
    near_pairs,
)
from tests.make.datasets import labelled


def real(**fields):
    return {"label": "real", "generator": "real", **fields}


def test_prompts_and_detailed_looks_bind_images():
    rows = labelled([
        real(prompt="A red  Cube"), real(prompt="a red cube"), real(prompt="a blue cube"), real(),
        real(phash="0123456789abcdef"), real(phash="0123456789abcdee"), real(phash="8000000000000000"), real(phash="8000000000000000"),
    ])  # fmt: skip
    prompt, looks = compute_duplicate_criteria(rows, ["prompt", "looks"])
    assert prompt.codes.tolist() == [0, 0, 1, -1, -1, -1, -1, -1]
    assert looks.codes.tolist() == [-1] * 4 + [0, 1, -1, -1]
    assert looks.pairs.tolist() == [[0, 1]]
    assert prompt.known == 3


def hashes_with_neighbours(seed, n=300):
    """Hashes of which many differ from another in 1 … 6 bits, anywhere."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    for place in range(0, n, 2):
        flipped = rng.choice(64, rng.integers(1, 7), replace=False)
        hashes[place] = hashes[place + 1] ^ np.bitwise_or.reduce(
            np.uint64(1) << flipped.astype(np.uint64)
        )
    return np.unique(hashes)


def components(pairs, count):
    return connected_components(
        coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count)), directed=False
    )[1]


@pytest.mark.parametrize("at_once", [near_duplicates._PAIRS_AT_ONCE, 3])
def test_each_near_pair_is_found_once(at_once, monkeypatch):
    monkeypatch.setattr(near_duplicates, "_PAIRS_AT_ONCE", at_once)
    hashes = hashes_with_neighbours(0)
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    wanted = [(a, b) for a, b in np.argwhere(distance <= NEAR_BITS).tolist() if a < b]
    assert len(wanted) > 50
    assert list(map(tuple, near_pairs(hashes).tolist())) == wanted
    assert near_pairs(hashes[:1]).shape == near_pairs(hashes[:0]).shape == (0, 2)


def test_leakage_finds_the_rows_that_comparing_all_hashes_finds():
    mixed = np.random.default_rng(1).permutation(hashes_with_neighbours(9))
    hashes, others = mixed[::2], mixed[1::2]
    expected = (np.bitwise_count(hashes[:, None] ^ others[None, :]) <= NEAR_BITS).any(axis=1)
    assert 50 < expected.sum() < len(hashes) - 20
    held, other = (
        labelled([real(), *(real(phash=f"{one:016x}") for one in some)])
        for some in (hashes, others)
    )
    unhashed = {"train": held.slice(0, 1), "test": other.slice(0, 1)}
    for tables, count in (({"train": other, "test": held}, expected.sum()), (unhashed, 0)):
        assert leakage(tables)["pairs"]["test in train"]["phash"] == count


def test_pairs_over_the_limit_connect_the_same_hashes(monkeypatch):
    base = np.array([0x0123456789ABCDEF, 0xFEDCBA9876543210], np.uint64)
    one_bit = [1 << bit for bit in range(64)]
    two_bits = [a | b for a, b in combinations(one_bit[::4], 2)]
    flips = np.array([0, *one_bit, *two_bits], np.uint64)
    hashes = np.concatenate([flips ^ one for one in base])
    every = near_pairs(hashes)
    monkeypatch.setattr(near_duplicates, "_PAIRS_AT_ONCE", 100)
    monkeypatch.setattr(near_duplicates, "_MAX_PAIRS", 1_000)
    some = near_pairs(hashes)
    assert len(every) > 10_000
    assert len(some) < len(hashes) + 1_100
    assert set(map(tuple, some.tolist())) <= set(map(tuple, every.tolist()))
    assert (components(some, len(hashes)) == components(every, len(hashes))).all()
    assert len(set(components(some, len(hashes)))) == 2


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(-1, 5), min_size=8, max_size=8), max_size=3),
    st.lists(st.tuples(*[st.integers(0, 5)] * 2)),
)
def test_groups_are_the_components_of_rows_and_what_they_share(codes, pairs):
    """Nodes: eight rows, and six things of each kind that rows may share (-1: none); pairs bind two
    things of one kind.
    """
    bonds, edges = [], [(row, row) for row in range(8)]
    for kind, shared in enumerate(codes):
        known = pairs if max(shared) == 5 else []
        bonds.append(
            DuplicateCriterion("group", np.array(shared), np.array(known, np.int64).reshape(-1, 2))
        )
        edges += [(row, 8 + 6 * kind + code) for row, code in enumerate(shared) if code >= 0]
        edges += [(8 + 6 * kind + one, 8 + 6 * kind + other) for one, other in known]
    expected = components(np.array(edges), 8 + 6 * len(codes))[:8]
    found, count = connected_groups(bonds, 8)
    assert count == len(set(expected.tolist()))
    assert np.array_equal(found[:, None] == found, expected[:, None] == expected)
