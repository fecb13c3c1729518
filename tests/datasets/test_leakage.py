import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.datasets import near_duplicates
from ray_app.datasets.near_duplicates import near

WORDS = st.integers(0, 2**64 - 1)


def flipped(value: int, bits: list[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, max_size=20), st.lists(st.lists(st.integers(0, 63), max_size=7), max_size=20), st.integers(0, 4))
def test_near_hashes_are_those_that_comparing_all_with_all_finds(others, changes, bits):
    hashes = [flipped(others[number % len(others)], change) for number, change in enumerate(changes if others else [])]
    expected = [any((one ^ other).bit_count() <= bits for other in others) for one in hashes]
    assert near(np.array(hashes, np.uint64), np.array(others, np.uint64), bits).tolist() == expected


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_pairs_are_compared_in_portions(monkeypatch, at_once):
    monkeypatch.setattr(near_duplicates, "_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    others = rng.integers(0, 4, 50).astype(np.uint64)  # all alike in most of their parts
    hashes = np.concatenate([others[:5] ^ np.uint64(7 << 40), others[:5] ^ np.uint64(0xFFFF << 20)])
    assert near(hashes, others).tolist() == [True] * 5 + [False] * 5
