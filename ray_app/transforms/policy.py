"""Augmentation policies: which one changes the training images (`Augmentation`), what it changes (`ImageSample`, `Policy`), and
`make_policy`.

`RealStatistics`: how large and how sharp real training images are, for OpenFake's first policy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, cast
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, field_validator, model_validator

from ray_app.config import Frozen, validate
from ray_app.errors import ConfigError

# Each has a class in `_CLASSES`, which `make_policy` imports.
POLICIES = (
    "none",
    "flips",
    "community-forensics",
    "openfake-v1",
    "openfake-v2",
    "cnndetection",
    "maskclip",
    "in-the-wild",
)

# Module and class of each. The fields of a class are the policy's arguments.
_CLASSES = {
    "none": ("policy", "Unchanged"),
    "flips": ("policies.flips", "Flips"),
    "community-forensics": ("policies.community_forensics", "CommunityForensicsPolicy"),
    "openfake-v1": ("policies.openfake", "RealMatching"),
    "openfake-v2": ("policies.openfake", "SocialMedia"),
    "cnndetection": ("policies.cnndetection", "CnnDetection"),
    "maskclip": ("policies.maskclip", "MaskClipPolicy"),
    "in-the-wild": ("policies.in_the_wild", "InTheWild"),
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


class ImageSample(NamedTuple):
    """`image` RGB; `mask` of mode L and the same size, 255 where it was altered, or None; `label` 1 = fake.

    `finished`: the policy gave the image its final geometry; otherwise it goes through the card's preprocessing.
    """

    image: Image.Image
    mask: Image.Image | None
    label: int
    finished: bool = False


class Policy(Protocol):
    """One augmentation policy. All chance comes from `rng`: the same draws give the same image, on any worker."""

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """The changed image, and mask by the same geometry."""


@dataclass(frozen=True)
class RealStatistics:
    """`areas_px` (n,) int64 and `sharpness` (m,) float64 of real images; the policy draws from each on its own."""

    areas_px: npt.NDArray[np.int64]
    sharpness: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, values, least in (("areas", self.areas_px, 1), ("sharpness", self.sharpness, 0)):
            if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or values.min() < least:
                raise ConfigError(f"statistics of real images: {name} must be one list of numbers from {least} on, with at least one")


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the luma, in grey levels squared: the measure of blur in `real_train_stats.npz`.

    The 3 × 3 Laplacian (0 1 0, 1 −4 1, 0 1 0) with the border mirrored at its pixels' centres, as OpenCV's. specs/detectors.md §1b.
    """
    luma = np.pad(np.asarray(image.convert("L"), np.int16), 1, mode="reflect")
    centre = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * centre
    return float(laplacian.var(dtype=np.float64))


def load_statistics(path: Path) -> RealStatistics:
    """Read the authors' form: .npz with `blur_vals` (m,) and `res_vals` (n, 2) of (height, width). Raises ConfigError naming the file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            blur, sizes = arrays["blur_vals"].astype(np.float64), arrays["res_vals"].astype(np.int64)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise ConfigError(f"{path}: no statistics of real images: {error}", hint="an .npz with blur_vals and res_vals") from error
    if sizes.ndim != 2 or sizes.shape[1] != 2:
        raise ConfigError(f"{path}: res_vals must be (n, 2) heights and widths, but its shape is {sizes.shape}")
    return RealStatistics(areas_px=sizes.prod(axis=1), sharpness=blur)


def save_statistics(path: Path, statistics: RealStatistics) -> None:
    """Write what `load_statistics` reads; a size is kept as its area × 1, which is all that the policy asks of it."""
    sizes = np.stack([statistics.areas_px, np.ones_like(statistics.areas_px)], axis=1)
    np.savez(path, blur_vals=statistics.sharpness, res_vals=sizes)


class Unchanged(Frozen):
    """The policy `none`: every image as it was decoded."""

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """The same sample; draws nothing."""
        return sample


def make_policy(config: Augmentation, *, side: int | None, statistics: RealStatistics | None = None) -> Policy:
    """The policy that `config` names, for a network whose input is `side` pixels square (None: it takes any size).

    Policies that end in a crop make it `side` pixels, unless their arguments say otherwise. `statistics` are what openfake-v1 matches fakes
    to, by default those in the file that `config` names; the others take none. Raises ConfigError for an argument that the policy does not
    have or cannot use, and for what it needs and was not given.
    """
    module, name = _CLASSES[config.policy]
    policy: type[Frozen] = getattr(import_module(f"ray_app.transforms.{module}"), name)
    where = f"augmentation {config.policy}"
    arguments: dict[str, Any] = dict(config.arguments)
    crop = policy.model_fields.get("crop")
    if crop is not None and crop.is_required() and side is not None:
        arguments.setdefault("crop", side)
    if "statistics" in policy.model_fields:
        if statistics is None and config.statistics is None:
            raise ConfigError(f"{where}: it needs statistics of real images", hint="measure them on real training images, or name an .npz")
        arguments["statistics"] = statistics or load_statistics(Path(cast(str, config.statistics)))
    return cast(Policy, validate(arguments, policy, where=where))
