"""What a detector's score of a single image must be: published by its authors (`GoldenScore`), or of an image by formula (`FormulaScore`,
`formula_image`). Without torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag

from ray_app.config import Frozen
from ray_app.detectors.preprocessing import Pixels


class GoldenScore(Frozen):
    """P(fake) that the authors published for one image, known by the sha256 of its file."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    probability: float = Field(ge=0, le=1)
    tolerance: float = Field(gt=0)
    source: str


class FormulaScore(Frozen):
    """The log-odds that the card's weights give, in fp32, for an image that needs no file: `formula_image` of this size."""

    image: Literal["formula"]
    width: int = Field(default=640, ge=1, le=4096)
    height: int = Field(default=480, ge=1, le=4096)
    logit: float
    tolerance: float = Field(gt=0)
    source: str


def _golden_kind(described: Any) -> str:
    return "(formula)" if isinstance(described, FormulaScore) or (isinstance(described, Mapping) and "image" in described) else "(file)"


Golden = Annotated[Annotated[GoldenScore, Tag("(file)")] | Annotated[FormulaScore, Tag("(formula)")], Discriminator(_golden_kind)]
"""What a score must be, on an image that the authors published or on one made by formula."""


def formula_image(width: int, height: int) -> Pixels:
    """(height, width, 3) uint8 RGB by integers alone, so that every machine makes the same: 7x + 13y + ⌊xy / 31⌋, 3x + 5y and
    ⌊x² / 17⌋ + 11y, each modulo 256, at column x and row y.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    planes = (x * 7 + y * 13 + (x * y) // 31, x * 3 + y * 5, x * x // 17 + y * 11)
    return np.stack([plane % 256 for plane in planes], axis=-1).astype(np.uint8)
