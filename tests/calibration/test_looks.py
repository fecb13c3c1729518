import numpy as np
import pytest

from ray_app.calibration import looks
from ray_app.calibration.looks import near_pairs
from ray_app.datasets.leakage import NEAR_BITS


def hashes_with_neighbours(seed, n=300):
    """Hashes of which many differ from another in 1 … 6 bits, anywhere."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    for place in range(0, n, 2):
        flipped = rng.choice(64, rng.integers(1, 7), replace=False)
        hashes[place] = hashes[place + 1] ^ np.bitwise_or.reduce(np.uint64(1) << flipped.astype(np.uint64))
    return np.unique(hashes)


@pytest.mark.parametrize("at_once", [looks._AT_ONCE, 3])
@pytest.mark.parametrize("seed", range(5))
def test_every_pair_that_is_near_is_found_once(seed, at_once, monkeypatch):
    monkeypatch.setattr(looks, "_AT_ONCE", at_once)
    hashes = hashes_with_neighbours(seed)
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    wanted = {(a, b) for a, b in np.argwhere(distance <= NEAR_BITS).tolist() if a < b}
    found = [tuple(sorted(pair)) for pair in near_pairs(hashes).tolist()]
    assert len(wanted) > 50
    assert sorted(found) == sorted(wanted)


def test_few_hashes_have_no_pairs():
    assert near_pairs(np.empty(0, np.uint64)).shape == (0, 2)
    assert near_pairs(np.array([7], np.uint64)).shape == (0, 2)
