"""A training as the engine reports it, with figures of scores that look like a network's."""

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from tests.reports.example import DOCUMENTS

_FACTS = json.loads((DOCUMENTS / "training.json").read_text(encoding="utf-8"))


def picture(seed: int, side: int = 96) -> bytes:
    """Return a small JPEG of soft colours."""
    coarse = np.random.default_rng(seed).integers(30, 230, (5, 5, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(data, "JPEG")
    return data.getvalue()


def example_facts(**changes: Any) -> dict[str, Any]:
    drawn = {"mistakes": [one | {"jpeg": picture(0)} for one in _FACTS["mistakes"]]}
    return _FACTS | drawn | changes
