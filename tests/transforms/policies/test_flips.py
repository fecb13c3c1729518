"""The eight ways in which a square can lie, and nothing else."""

from collections import Counter

import numpy as np

from ray_app.transforms.policies.simple import Flips
from tests.transforms.given import rng, share_near, textured

SQUARE = textured(32, 32)
PIXELS = np.asarray(SQUARE.image)
EIGHT = {np.rot90(p, k).tobytes(): (k, m) for m, p in enumerate((PIXELS, PIXELS[:, ::-1])) for k in range(4)}


def drawn(policy, n=1600):
    return Counter(EIGHT[policy(SQUARE, rng(seed)).image.tobytes()] for seed in range(n))


def test_all_eight_are_equally_likely():
    counts = drawn(Flips(crop=32))
    assert len(counts) == 8
    assert all(share_near(count, 1600, 1 / 8) for count in counts.values())


def test_without_turns_or_mirror():
    assert set(drawn(Flips(turns=False), 60)) == {(0, 0), (0, 1)}
    assert set(drawn(Flips(mirror=False), 100)) == {(k, 0) for k in range(4)}
    assert set(drawn(Flips(mirror=False, turns=False), 10)) == {(0, 0)}


def test_a_crop_is_final_and_without_one_the_size_stays():
    wide = textured(50, 40)
    cut = Flips(crop=24)(wide, rng(0))
    assert (cut.image.size, cut.finished) == ((24, 24), True)
    whole = Flips(turns=False)(wide, rng(0))
    assert (whole.image.size, whole.finished) == ((50, 40), False)
