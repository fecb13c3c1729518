"""Community Forensics' policy (Park and Owens 2025): a bag of eleven operations, drawn anew for every image. specs/detectors.md §7a."""

from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ray_app.config import Frozen
from ray_app.transforms import ops
from ray_app.transforms.ops import ImageSample

Rng = np.random.Generator

_ANY_FILTER = (
    ops.Resampling.NEAREST,
    ops.Resampling.BILINEAR,
    ops.Resampling.BICUBIC,
    ops.Resampling.LANCZOS,
    ops.Resampling.HAMMING,
    ops.Resampling.BOX,
)


class CommunityForensicsPolicy(Frozen):
    """Short side to 440, every operation none to two times in random order, random crop of 384; the result is final.

    Another `crop` scales the 440 with it (256 for 224, as the authors have). They draw JPEG's encoder from OpenCV and Pillow, which give
    the same pixels (ray_app.transforms.ops): not drawn here.
    """

    crop: int = Field(ge=8, description="side of the final crop and of those in the bag; by default the network's input")
    short_side: int | None = Field(default=None, ge=8, description="before the bag; by default crop × 440 / 384")
    repeats: tuple[int, int] = Field(default=(0, 2), description="fewest and most times of each operation")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.short_side is not None and self.short_side < self.crop:
            raise ValueError(f"short_side {self.short_side} has no room for a crop of {self.crop}")
        if not 0 <= self.repeats[0] <= self.repeats[1]:
            raise ValueError(f"repeats {self.repeats} are no range")
        return self

    def __call__(self, sample: ImageSample, rng: Rng, /) -> ImageSample:
        """Changed as drawn from `rng`."""
        sample = ops.with_short_side(sample, self.short_side or self.crop * 440 // 384, ops.Resampling.BILINEAR, rng)
        for name in self.draw(rng):
            sample = OPERATIONS[name](sample, self.crop, rng)
        return ops.random_crop(sample, self.crop, rng)._replace(finished=True)

    def draw(self, rng: Rng) -> list[str]:
        """The names of the operations for one image, in the order in which they are applied."""
        repeats = rng.integers(*self.repeats, size=len(OPERATIONS), endpoint=True)
        return [str(name) for name in rng.permutation(np.repeat(list(OPERATIONS), repeats))]


def _resize(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    short = int(rng.integers(crop + 1, round(crop * 1.228), endpoint=True))
    return ops.with_short_side(sample, short, _one_of((ops.Resampling.BILINEAR, ops.Resampling.BICUBIC), rng), rng)


def _resized_crop(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    part = ops.random_part(sample, (0.9, 1.0), (3 / 4, 4 / 3), rng)
    return ops.resize_sample(part, (crop, crop), _one_of(_ANY_FILTER, rng))


def _translate(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    across, down = (round(rng.uniform(-0.1, 0.1) * n) for n in sample.image.size)
    return ops.transformed(sample, lambda image: image.transform(image.size, Image.Transform.AFFINE, (1, 0, -across, 0, 1, -down)))


def _shear(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    # 3 seconds to import, so not before it is used.
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import affine

    angles = [float(angle) for angle in rng.uniform(-15, 15, size=2)]

    def sheared(image: Image.Image, mode: InterpolationMode) -> Image.Image:
        result: Image.Image = affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=angles, interpolation=mode, fill=None)
        return result

    return ops.transformed(
        sample, lambda image: sheared(image, InterpolationMode.BILINEAR), lambda mask: sheared(mask, InterpolationMode.NEAREST)
    )


def _pad(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    width, height = sample.image.size
    left, right, above, below = (int(rng.uniform(0, 0.05) * n) for n in (width, width, height, height))
    grey = int(rng.integers(256))

    def framed(image: Image.Image, colour: int | tuple[int, ...]) -> Image.Image:
        frame = Image.new(image.mode, (left + width + right, above + height + below), colour)
        frame.paste(image, (left, above))
        return frame

    padded = ops.transformed(sample, lambda image: framed(image, (grey,) * 3), lambda mask: framed(mask, 0))
    return ops.resize_sample(padded, (width, height), ops.Resampling.BILINEAR)


def _cut_out(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    """Half of the times a grey box; the mask no longer says that what it covers was altered."""
    if rng.random() >= 0.5:
        return sample
    width, height = sample.image.size
    grey = int(rng.integers(256))
    box = ops.drawn_box((width, height), (0.02, 0.06), (1 / 3.3, 1 / 0.3), rng)
    if box is None:
        return sample

    def painted(image: Image.Image, colour: int | tuple[int, ...]) -> Image.Image:
        copy = image.copy()
        copy.paste(colour, box)
        return copy

    return ops.transformed(sample, lambda image: painted(image, (grey,) * 3), lambda mask: painted(mask, 0))


def _one_of(filters: tuple[ops.Resampling, ...], rng: Rng) -> ops.Resampling:
    return filters[int(rng.integers(len(filters)))]


OPERATIONS: Mapping[str, Callable[[ImageSample, int, Rng], ImageSample]] = {
    "jpeg": lambda sample, crop, rng: sample._replace(image=ops.jpeg(sample.image, int(rng.integers(75, 100, endpoint=True)))),
    "resize": _resize,
    "crop": ops.random_crop,
    "mirror": lambda sample, crop, rng: ops.mirrored(sample) if rng.random() < 0.5 else sample,
    "upend": lambda sample, crop, rng: ops.flipped_vertically(sample) if rng.random() < 0.5 else sample,
    "resized-crop": _resized_crop,
    "rotate": lambda sample, crop, rng: ops.rotated(sample, rng.uniform(-15, 15), ops.Resampling.BILINEAR),
    "translate": _translate,
    "shear": _shear,
    "pad": _pad,
    "cut-out": _cut_out,
}
