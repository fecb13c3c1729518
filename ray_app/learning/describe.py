"""The section `describe` of a recipe: a predictor of prompts. No torch: read in milliseconds."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from ray_app.config import Frozen
from ray_app.detectors import Preprocessing


class Describe(Frozen):
    """Which of the tiers is made (see `profiling.cards.DescriberCard`), of what size, and how it searches.

    `retrieval` keeps the embeddings of the training images with their prompts; `prefix` learns from the same embeddings, `captioner` from
    pixels: as `preprocessing` says or, where that is null, as `start` or else the recipe's detector is given them. `architecture`: as on
    a describer's card, without what the tokenizer decides: for prefix `{config: …}` of GPT-2, for captioner `{model: …, config: …}`.
    `start`: a describer's card, shipped or a path, to begin with instead: its architecture, tokenizer, weights and prefix. `vocabulary`:
    at most so many tokens of a byte-level BPE tokenizer that is trained on the training prompts, where no `start` brings one.
    """

    tier: Literal["retrieval", "prefix", "captioner"] = "prefix"
    start: str | None = None
    architecture: Mapping[str, Any] = {}
    preprocessing: Preprocessing | None = None
    vocabulary: int = Field(default=8000, ge=258)
    prefix: int = Field(default=10, ge=1)
    beams: int = Field(default=3, ge=1)
    no_repeat: int = Field(default=3, ge=0)
    most_tokens: int = Field(default=77, ge=1)

    @model_validator(mode="after")
    def _has_a_network(self) -> "Describe":
        if self.tier != "retrieval" and bool(self.architecture) == bool(self.start):
            raise ValueError(f"give one of architecture and start (tier: {self.tier})")
        if self.tier == "retrieval" and (self.architecture or self.start):
            raise ValueError("retrieval has no network: leave out architecture and start")
        return self
