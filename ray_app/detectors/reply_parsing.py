"""What a reply in words says about an image, read as the authors of the published baseline read it. Knows text only."""

import math
from typing import Literal

Answer = Literal["real", "fake", "unknown"]

SCORES: dict[Answer, float] = {"real": -1.0, "fake": 1.0, "unknown": math.nan}


def answer_of(reply: str) -> Answer:
    """Which answer a reply gives, in the published order (specs/detectors.md §5).

    "real" is looked for first, anywhere, so that "not real" and "unreal" are real; then "ai" and "generated", inside other words too.
    """
    said = reply.lower()
    if "real" in said:
        return "real"
    return "fake" if "ai" in said or "generated" in said else "unknown"


def score_of(reply: str) -> float:
    """+1 for fake, −1 for real, NaN where the reply says neither."""
    return SCORES[answer_of(reply)]
