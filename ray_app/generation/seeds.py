"""One number per image, and everything that is drawn from it: the same on any machine, in any batch. Knows hashes and nothing else."""

import hashlib
import random


def seed_of(base: int, index: int) -> int:
    """The seed of image `index` of a job: 63 bits of SHA-256 over both, so that no two images of a job share one, nor two jobs theirs."""
    return _word(f"touchstone:{base}:{index}") >> 1


def pick(seed: int, what: str, number: int) -> int:
    """0 … number − 1, drawn from a seed for one purpose; draws for different purposes know nothing of each other."""
    return _word(f"{what}:{seed}") % number


def randomness(seed: int, what: str) -> random.Random:
    """Many draws for one purpose."""
    return random.Random(_word(f"{what}:{seed}"))


def _word(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
