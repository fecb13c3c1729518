"""Augmentation policies: which one changes the training images (`Augmentation`), what a policy is
(`Policy`), and `make_policy`.

Policies of a few steps stand here: `none`; `flips`, which leaves every pixel's value alone, for
detectors that live on traces of single pixels (touchstone-tiny); CNNDetection's (Wang et al. 2020),
which UniversalFakeDetect took over: blur, JPEG, crop. Sources: specs/detectors.md §10, §9b.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
from PIL import Image
from pydantic import Field, field_validator, model_validator

from ray_app.config import Frozen, validate
from ray_app.errors import ConfigError
from ray_app.transforms import ops
from ray_app.transforms.ops import ImageSample
from ray_app.transforms.policies import in_the_wild, papers


class Unchanged(Frozen):
    """The policy `none`: every image as it was decoded."""

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """The same sample; draws nothing."""
        return sample


class Flips(Frozen):
    """Random crop, then one of the eight ways in which a square can lie. No resampling and no
    codec.

    With `crop` the result is final; without, it keeps its size and goes through the card's
    preprocessing.
    """

    crop: int | None = Field(
        default=None,
        ge=1,
        description="side of the square, in pixels; smaller images are mirrored out to it",
    )
    turns: bool = Field(default=True, description="none to three quarter turns")
    mirror: bool = Field(
        default=True, description="left and right change places in half of the images"
    )

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """Changed as drawn from `rng`."""
        if self.crop is not None:
            sample = ops.random_crop(sample, self.crop, rng)._replace(finished=True)
        if self.turns:
            sample = ops.quarter_turned(sample, int(rng.integers(4)))
        if self.mirror and rng.random() < 0.5:
            sample = ops.mirrored(sample)
        return sample


class CnnDetection(Frozen):
    """Short side to 256, blur, JPEG, random crop of 224, mirror; the result is final. Another
    `crop` scales the 256 with it.

    The authors draw JPEG's encoder from OpenCV and Pillow, which give the same pixels
    (ray_app.transforms.ops): not drawn here.
    """

    crop: int = Field(ge=8, description="side of the random crop; by default the network's input")
    short_side: int | None = Field(
        default=None, ge=8, description="before the crop; by default crop × 256 / 224"
    )
    probability: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="of the blur, and independently of JPEG: 0.5 or 0.1 in the paper",
    )
    sigma: tuple[float, float] = Field(
        default=(0.0, 3.0), description="of the Gaussian blur, in pixels of the resized image"
    )
    quality: tuple[int, int] = Field(default=(30, 100), description="of JPEG, both ends included")

    @model_validator(mode="after")
    def _room_for_the_crop(self) -> Self:
        if self.short_side is not None and self.short_side < self.crop:
            raise ValueError(f"short_side {self.short_side} has no room for a crop of {self.crop}")
        return self

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """Changed as drawn from `rng`."""
        sample = ops.with_short_side(
            sample, self.short_side or self.crop * 256 // 224, ops.Resampling.BILINEAR, rng
        )
        image = sample.image
        if rng.random() < self.probability:
            image = _blurred(image, rng.uniform(*self.sigma))
        if rng.random() < self.probability:
            image = ops.jpeg(image, int(rng.integers(*self.quality, endpoint=True)))
        sample = ops.random_crop(sample._replace(image=image), self.crop, rng)
        return (ops.mirrored(sample) if rng.random() < 0.5 else sample)._replace(finished=True)


def _blurred(image: Image.Image, sigma: float) -> Image.Image:
    """The authors' own: scipy's filter with uint8 between and after the axes, which truncates and
    so darkens by about one grey level.
    """
    from scipy.ndimage import gaussian_filter

    return Image.fromarray(gaussian_filter(np.asarray(image), sigma=(sigma, sigma, 0)))


# The fields of a class are the policy's arguments.
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
    """`policy` by name, `arguments` for it (each policy says which it has and what they are by
    default).
    """

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
    """One augmentation policy. All chance comes from `rng`: the same draws give the same image, on
    any worker.
    """

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """The changed image, and mask by the same geometry."""


def make_policy(
    config: Augmentation, *, side: int | None, statistics: papers.RealStatistics | None = None
) -> Policy:
    """The policy that `config` names, for a network whose input is `side` pixels square (None: it
    takes any size).

    Policies that end in a crop make it `side` pixels, unless their arguments say otherwise.
    `statistics` are what openfake-v1 matches fakes to, by default those in the file that `config`
    names; the others take none. Raises ConfigError for an argument that the policy does not have or
    cannot use, and for what it needs and was not given.
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
                f"{where}: it needs statistics of real images",
                hint="measure them on real training images, or name an .npz",
            )
        arguments["statistics"] = statistics or papers.load_statistics(
            Path(cast(str, config.statistics))
        )
    return cast(Policy, validate(arguments, policy, where=where))
