"""Augmentation policies: which one changes the training images (`Augmentation`), what a policy is (`Policy`), and `make_policy`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
from pydantic import Field, field_validator, model_validator

from ray_app.config import Frozen, validate
from ray_app.errors import ConfigError
from ray_app.transforms.ops import ImageSample
from ray_app.transforms.policies import community_forensics, in_the_wild, maskclip, openfake, simple

# The fields of a class are the policy's arguments.
POLICIES: Mapping[str, type[Frozen]] = {
    "none": simple.Unchanged,
    "flips": simple.Flips,
    "community-forensics": community_forensics.CommunityForensicsPolicy,
    "openfake-v1": openfake.RealMatching,
    "openfake-v2": openfake.SocialMedia,
    "cnndetection": simple.CnnDetection,
    "maskclip": maskclip.MaskClipPolicy,
    "in-the-wild": in_the_wild.InTheWild,
}


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


class Policy(Protocol):
    """One augmentation policy. All chance comes from `rng`: the same draws give the same image, on any worker."""

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """The changed image, and mask by the same geometry."""


def make_policy(config: Augmentation, *, side: int | None, statistics: openfake.RealStatistics | None = None) -> Policy:
    """The policy that `config` names, for a network whose input is `side` pixels square (None: it takes any size).

    Policies that end in a crop make it `side` pixels, unless their arguments say otherwise. `statistics` are what openfake-v1 matches fakes
    to, by default those in the file that `config` names; the others take none. Raises ConfigError for an argument that the policy does not
    have or cannot use, and for what it needs and was not given.
    """
    policy = POLICIES[config.policy]
    where = f"augmentation {config.policy}"
    arguments: dict[str, Any] = dict(config.arguments)
    crop = policy.model_fields.get("crop")
    if crop is not None and crop.is_required() and side is not None:
        arguments.setdefault("crop", side)
    if "statistics" in policy.model_fields:
        if statistics is None and config.statistics is None:
            raise ConfigError(f"{where}: it needs statistics of real images", hint="measure them on real training images, or name an .npz")
        arguments["statistics"] = statistics or openfake.load_statistics(Path(cast(str, config.statistics)))
    return cast(Policy, validate(arguments, policy, where=where))
