"""What a policy changes: one decoded image with its label and mask. Knows PIL images."""

from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image


class Sample(NamedTuple):
    """`image` RGB; `mask` of mode L and the same size, 255 where it was altered, or None; `label` 1 = fake.

    `finished`: the policy gave the image its final geometry; otherwise it goes through the card's preprocessing.
    """

    image: Image.Image
    mask: Image.Image | None
    label: int
    finished: bool = False


class Policy(Protocol):
    """One augmentation policy. All chance comes from `rng`: the same draws give the same image, on any worker."""

    def __call__(self, sample: Sample, rng: np.random.Generator, /) -> Sample:
        """The changed image, and mask by the same geometry."""
