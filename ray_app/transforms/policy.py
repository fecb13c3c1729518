"""Create the augmentation policy (`make_policy`) that a config (`Augmentation`) names.

An augmentation policy changes training images at random. This module also defines the simple
policies. `none` changes nothing. `flips` keeps every pixel's value, for detectors that depend on
traces in single pixels (touchstone-tiny). `cnndetection` is the policy of CNNDetection (Wang et al.
2020, arXiv 1912.11035): blur, JPEG, and crop. UniversalFakeDetect uses this policy, too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
from pydantic import Field, field_validator, model_validator

from ray_app.config import Frozen, validate
from ray_app.errors import ConfigError
from ray_app.transforms import ops
from ray_app.transforms.ops import ImageSample
from ray_app.transforms.policies import in_the_wild, papers


class Unchanged(Frozen):
    """The policy `none`, which does not change images."""

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """Return the sample unchanged."""
        return sample


class Flips(Frozen):
    """The augmentation policy `flips`, which keeps the values of pixels.

    The steps are a random crop, quarter turns, and mirroring. With `crop`, the result needs no
    further preprocessing. Without `crop`, the image keeps its size, and the resize and crop of the
    detector's card follow.
    """

    crop: int | None = Field(
        default=None,
        ge=1,
        description="side of the square in pixels; smaller images are extended to it by mirroring",
    )
    turns: bool = Field(default=True, description="rotate by zero to three quarter turns")
    mirror: bool = Field(default=True, description="swap left and right in half of the images")

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """Return the sample after random changes."""
        if self.crop is not None:
            sample = ops.random_crop(sample, self.crop, rng)._replace(finished=True)
        if self.turns:
            sample = ops.turn_quarters(sample, int(rng.integers(4)))
        if self.mirror and rng.random() < 0.5:
            sample = ops.mirror(sample)
        return sample


class CnnDetection(Frozen):
    """The augmentation policy `cnndetection` (Wang et al. 2020): blur, JPEG, and a random crop.

    The short side is resized to 256 pixels. Then follow blur, JPEG, a random crop to a square of
    224 pixels, and mirroring. If `crop` is not 224, the 256 pixels change in proportion, for
    example to 512 for a crop of 448. The result needs no further preprocessing.

    The authors choose JPEG's encoder at random from OpenCV and Pillow. The two give equal pixels
    (ray_app.transforms.ops), so this policy always uses Pillow.
    """

    crop: int = Field(
        ge=8,
        description="side of the random crop in pixels; by default that of the network's input",
    )
    short_side: int | None = Field(
        default=None,
        ge=8,
        description="shorter side in pixels before the crop; by default crop × 256 / 224",
    )
    probability: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="probability of the blur, and independently of JPEG; 0.5 or 0.1 in the paper",
    )
    sigma: tuple[float, float] = Field(
        default=(0.0, 3.0),
        description="range of the Gaussian blur's sigma, in pixels of the resized image",
    )
    quality: tuple[int, int] = Field(
        default=(30, 100), description="range of JPEG qualities, both ends included"
    )

    @model_validator(mode="after")
    def _check_short_side(self) -> Self:
        if self.short_side is not None and self.short_side < self.crop:
            raise ValueError(
                f"short_side must be at least `crop` ({self.crop}), got {self.short_side}"
            )
        return self

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """Return the sample after random changes."""
        sample = ops.resize_short_side(
            sample, self.short_side or self.crop * 256 // 224, ops.Resampling.BILINEAR, rng
        )
        image = sample.image
        if rng.random() < self.probability:
            image = ops.scipy_blur(image, rng.uniform(*self.sigma))
        if rng.random() < self.probability:
            image = ops.jpeg(image, int(rng.integers(*self.quality, endpoint=True)))
        sample = ops.random_crop(sample._replace(image=image), self.crop, rng)
        return (ops.mirror(sample) if rng.random() < 0.5 else sample)._replace(finished=True)


# The fields of a class are the arguments of the policy.
POLICIES: Mapping[str, type[Frozen]] = {
    "none": Unchanged,
    "flips": Flips,
    "community-forensics": papers.CommunityForensicsPolicy,
    "openfake-v1": papers.RealMatching,
    "openfake-v2": papers.SocialMedia,
    "cnndetection": CnnDetection,
    "maskclip": papers.MaskClipPolicy,
    "in-the-wild": in_the_wild.InTheWild,
}


class Augmentation(Frozen):
    """The section of a training config that selects the augmentation policy for images."""

    policy: str = Field(default="none", description="name of the policy")
    arguments: Mapping[str, Any] = Field(
        default={}, description="arguments of the policy, which has a default for each"
    )
    statistics: str | None = Field(
        default=None,
        description="only for openfake-v1: an .npz file with blur_vals and res_vals of real training images; null = measured on a sample of them",
    )

    @field_validator("policy")
    @classmethod
    def _check_policy(cls, name: str) -> str:
        if name not in POLICIES:
            raise ValueError(f"unknown policy {name!r}, use one of {', '.join(POLICIES)}")
        return name

    @model_validator(mode="after")
    def _check_statistics(self) -> Self:
        if self.statistics is not None and self.policy != "openfake-v1":
            raise ValueError(
                f"`statistics` (of real images) requires policy openfake-v1, got {self.policy}"
            )
        return self


class Policy(Protocol):
    """A function that changes a training image at random, together with its mask.

    All randomness comes from `rng`. Equal states of `rng` give equal images on any worker.
    """

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """Return the changed image, with its mask changed by the same geometry."""


def make_policy(
    config: Augmentation, *, side: int | None, statistics: papers.RealStatistics | None = None
) -> Policy:
    """Create the augmentation policy that a config names, with its arguments.

    If the policy needs an argument `crop` and the config does not set it, `side` is used.

    Args:
        config: The config.
        side: The side in pixels of the network's square input. None if the network takes any size.
        statistics: Sizes and sharpness of real images, which only openfake-v1 needs. None for those
            in the file that the config names.

    Returns:
        The policy, to be called with an image and a random number generator.

    Raises:
        ConfigError: An argument is unknown or invalid, or something that the policy needs is
            missing.
    """
    policy = POLICIES[config.policy]
    where = f"augmentation {config.policy}"
    arguments: dict[str, Any] = dict(config.arguments)
    crop = policy.model_fields.get("crop")
    if crop is not None and crop.is_required() and side is not None:
        arguments.setdefault("crop", side)
    if "statistics" in policy.model_fields:
        if statistics is None and config.statistics is None:
            raise ConfigError(
                f"{where} needs statistics of real images (their sizes and sharpness)",
                hint="set `statistics` of the augmentation to an .npz file with blur_vals and res_vals, such as real_statistics.npz of a training",
            )
        arguments["statistics"] = statistics or papers.load_statistics(
            Path(cast(str, config.statistics))
        )
    return cast(Policy, validate(arguments, policy, where=where))
