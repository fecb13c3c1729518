"""One named chain of steps, and the seed with which it meets one picture. Knows PIL images; knows no list, file or worker."""

import hashlib
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from ray_app.config import Frozen
from ray_app.perturbations.steps import AnyStep


class Perturbation(Frozen):
    """Steps that are applied one after another. `name` is how rows, masks and reports call the view; it is never that of the clean one."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.,:+-]*$", max_length=64)
    steps: tuple[AnyStep, ...] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _of_a_view(cls, name: str) -> str:
        if name == "clean":
            raise ValueError("clean is what the unperturbed view is called")
        return name

    def apply(self, image: Image.Image, seed: int) -> Image.Image:
        """RGB of any size → RGB. The same pixels, seed and library versions give the same pixels, in any process and order.

        Raises what Pillow does where a codec cannot: OSError, ValueError, RuntimeError (AVIF), DecompressionBombError; and MemoryError.
        """
        rng = np.random.default_rng(seed)
        for step in self.steps:
            image = step.apply(image, rng)
        return image

    @property
    def keeps_place(self) -> bool:
        """Whether a mask of the perturbed image fits the image: not where it was cropped."""
        return all(step.keeps_place for step in self.steps)

    def facts(self) -> list[dict[str, Any]]:
        """The steps as plain JSON, without what is as always: what a run's identity says of it."""
        return [step.model_dump(mode="json", exclude_defaults=True) for step in self.steps]


def seed_of(sha256: str, name: str) -> int:
    """The seed of one file (hex SHA-256 of its bytes) in one perturbation: the first 8 bytes of SHA-256 over both, whoever asks."""
    return int.from_bytes(hashlib.sha256(f"{sha256}{name}".encode()).digest()[:8], "big")
