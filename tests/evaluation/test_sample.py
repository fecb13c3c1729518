import numpy as np

from ray_app.evaluation.accumulate import MODULUS, digest_of


def test_the_digest_is_of_a_set():
    rng = np.random.default_rng(1)
    ids, fake = rng.integers(-(2**63), 2**63 - 1, 1000), rng.random(1000) < 0.5
    turn = rng.permutation(1000)
    whole = digest_of(ids, fake)
    assert digest_of(ids[turn], fake[turn]) == whole
    assert (digest_of(ids[:300], fake[:300]) + digest_of(ids[300:], fake[300:])) % MODULUS == whole
    assert digest_of(ids[:0], fake[:0]) == 0


def test_it_is_splitmix64():
    """The first output for the seed 1234567 is published with the reference implementation."""
    assert digest_of(np.array([1234567]), np.array([True])) == 6457827717110365317
