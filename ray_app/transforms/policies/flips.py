"""The policy `flips`, which leaves every pixel's value alone: for detectors that live on traces of single pixels (touchstone-tiny)."""

import numpy as np
from pydantic import Field

from ray_app.config import Frozen
from ray_app.transforms import ops, policy


class Flips(Frozen):
    """Random crop, then one of the eight ways in which a square can lie. No resampling and no codec.

    With `crop` the result is final; without, it keeps its size and goes through the card's preprocessing.
    """

    crop: int | None = Field(default=None, ge=1, description="side of the square, in pixels; smaller images are mirrored out to it")
    turns: bool = Field(default=True, description="none to three quarter turns")
    mirror: bool = Field(default=True, description="left and right change places in half of the images")

    def __call__(self, sample: policy.ImageSample, rng: np.random.Generator, /) -> policy.ImageSample:
        """Changed as drawn from `rng`."""
        if self.crop is not None:
            sample = ops.random_crop(sample, self.crop, rng)._replace(finished=True)
        if self.turns:
            sample = ops.quarter_turned(sample, int(rng.integers(4)))
        if self.mirror and rng.random() < 0.5:
            sample = ops.mirrored(sample)
        return sample
