"""A short name for a set of labelled images, the same in whatever order they are met. Knows ids and labels alone."""

import numpy as np
import numpy.typing as npt

from ray_app.evaluation.sampling import mixed

Words = npt.NDArray[np.uint64]
MODULUS = 2**64


def digest_of(image_ids: npt.NDArray[np.int64] | Words, is_fake: npt.NDArray[np.bool_]) -> int:
    """The sum of 64-bit hashes of images (n,) with their labels, modulo 2⁶⁴: that of two parts adds up to that of both.

    Each image is hashed by SplitMix64 (Steele, Lea and Flood 2014): enough against chance, not against somebody who wants two alike.
    """
    with np.errstate(over="ignore"):
        words: Words = image_ids.astype(np.uint64) + np.where(is_fake, np.uint64(0x9E3779B97F4A7C15), np.uint64(0x2545F4914F6CDD1D))
        return int(mixed(words).sum(dtype=np.uint64))
