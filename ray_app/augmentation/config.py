"""Which policy changes the training images, and with what numbers. No torch, no pixels."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from ray_app.config import Frozen

# Each is a module-level class of this room, found by `make_policy`.
POLICIES = (
    "none",
    "flips",
    "community-forensics",
    "openfake-v1",
    "openfake-v2",
    "cnndetection",
    "maskclip",
)


class Augmentation(Frozen):
    """`policy` by name, `arguments` for it (each policy says which it has and what they are by default)."""

    policy: str = "none"
    arguments: Mapping[str, Any] = {}
    statistics: str | None = Field(
        default=None,
        description="openfake-v1 alone: an .npz with blur_vals and res_vals of real training images; null = measured on a sample of them",
    )

    @field_validator("policy")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in POLICIES:
            raise ValueError(f"no policy {name!r}; there are {', '.join(POLICIES)}")
        return name

    @model_validator(mode="after")
    def _statistics_are_of_use(self) -> Self:
        if self.statistics is not None and self.policy != "openfake-v1":
            raise ValueError(f"statistics are for openfake-v1; {self.policy} takes none")
        return self
