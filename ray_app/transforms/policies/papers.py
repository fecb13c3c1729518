"""The policies of papers: OpenFake's two, fakes made more like real photographs (v1) and what
social media do to a picture (v2); MaskCLIP's; Community Forensics' (Park and Owens 2025,
specs/detectors.md §7a).

OpenFake's are from the authors' code: specs/detectors.md §1b, §1c. Pillow stands for OpenCV in v1
and for torchvision in v2, which itself hands such images to Pillow. `RealStatistics`: how large and
how sharp real training images are, which v1 matches fakes to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance
from pydantic import Field, InstanceOf, field_validator, model_validator

from ray_app.config import Frozen
from ray_app.errors import ConfigError
from ray_app.transforms import ops
from ray_app.transforms.ops import ImageSample

Rng = np.random.Generator

# int(255 · √0.0005), of the code; the paper's variance alone would give 5.7.
_NOISE = 5


@dataclass(frozen=True)
class RealStatistics:
    """`areas_px` (n,) int64 and `sharpness` (m,) float64 of real images; the policy draws from each
    on its own.
    """

    areas_px: npt.NDArray[np.int64]
    sharpness: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, values, least in (("areas", self.areas_px, 1), ("sharpness", self.sharpness, 0)):
            if (
                values.ndim != 1
                or not len(values)
                or not np.isfinite(values).all()
                or values.min() < least
            ):
                raise ConfigError(
                    f"statistics of real images: {name} must be one list of numbers from {least} on, with at least one"
                )


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the luma, in grey levels squared: the measure of blur in
    `real_train_stats.npz`.

    The 3 × 3 Laplacian (0 1 0, 1 −4 1, 0 1 0) with the border mirrored at its pixels' centres, as
    OpenCV's. specs/detectors.md §1b.
    """
    luma = np.pad(np.asarray(image.convert("L"), np.int16), 1, mode="reflect")
    centre = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * centre
    return float(laplacian.var(dtype=np.float64))


def load_statistics(path: Path) -> RealStatistics:
    """Read the authors' form: .npz with `blur_vals` (m,) and `res_vals` (n, 2) of (height, width).
    Raises ConfigError naming the file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            blur, sizes = (
                arrays["blur_vals"].astype(np.float64),
                arrays["res_vals"].astype(np.int64),
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise ConfigError(
            f"{path}: no statistics of real images: {error}",
            hint="an .npz with blur_vals and res_vals",
        ) from error
    if sizes.ndim != 2 or sizes.shape[1] != 2:
        raise ConfigError(
            f"{path}: res_vals must be (n, 2) heights and widths, but its shape is {sizes.shape}"
        )
    return RealStatistics(areas_px=sizes.prod(axis=1), sharpness=blur)


def save_statistics(path: Path, statistics: RealStatistics) -> None:
    """Write what `load_statistics` reads; a size is kept as its area × 1, which is all that the
    policy asks of it.
    """
    sizes = np.stack([statistics.areas_px, np.ones_like(statistics.areas_px)], axis=1)
    np.savez(path, blur_vals=statistics.sharpness, res_vals=sizes)


class RealMatching(Frozen):
    """v1, on fakes alone; a real image stays as it is. The result goes through the card's
    preprocessing.

    Each with `probability`, in this order: the area of a real image drawn from `statistics`, by a
    bilinear resize; a blur of σ = 0.3 where the fake is more than 1.2 times as sharp as a real one,
    drawn anew; noise of σ = 5; JPEG of quality 70 to 94. As in the authors' code, JPEG takes RGB
    for BGR, and the noise is in red alone: OpenCV's `randn` reads one deviation as (5, 0, 0, 0).
    """

    statistics: InstanceOf[RealStatistics]
    probability: float = Field(
        default=0.2, ge=0, le=1, description="of each of the four steps, independently"
    )

    def __call__(self, sample: ImageSample, rng: Rng, /) -> ImageSample:
        """Changed as drawn from `rng`."""
        if sample.label == 0:
            return sample
        if rng.random() < self.probability:
            sample = _with_area(sample, int(rng.choice(self.statistics.areas_px)))
        image = sample.image
        if rng.random() < self.probability and sharpness(image) > 1.2 * rng.choice(
            self.statistics.sharpness
        ):
            image = ops.blurred(image, ops.gaussian_taps(3, 0.3))
        if rng.random() < self.probability:
            image = _noisy(image, rng)
        if rng.random() < self.probability:
            image = ops.jpeg(image, int(rng.integers(70, 95)), swapped=True)
        return sample._replace(image=image)


def _with_area(sample: ImageSample, area: int) -> ImageSample:
    width, height = sample.image.size
    scale = (area / (width * height)) ** 0.5
    return ops.resize_sample(
        sample, (max(int(width * scale), 1), max(int(height * scale), 1)), ops.Resampling.BILINEAR
    )


def _noisy(image: Image.Image, rng: Rng) -> Image.Image:
    pixels = np.array(image)
    noise = np.rint(rng.normal(0, _NOISE, pixels.shape[:2])).astype(np.int16)
    pixels[..., 0] = (pixels[..., 0] + noise).clip(0, 255)
    return Image.fromarray(pixels)


class SocialMedia(Frozen):
    """v2, on both classes: crop, colours, rotation, mirror, blur, and last one trip through a
    codec. The result is final.

    `avif` null: where this Pillow has it. Its place is else taken by WebP, as in the reference; one
    training should not mix the two.
    """

    crop: int = Field(ge=8, description="side of the resized crop; by default the network's input")
    largest: int = Field(
        default=2048,
        ge=8,
        description="images with a longer side are shrunk to it before anything else",
    )
    avif: bool | None = Field(default=None, description="whether AVIF is among the codecs")

    @field_validator("avif")
    @classmethod
    def _can(cls, wanted: bool | None) -> bool | None:
        if wanted and not ops.has_avif():
            raise ValueError(
                "this Pillow has no AVIF; install pillow 11.3 or newer, or set it to false"
            )
        return wanted

    def __call__(self, sample: ImageSample, rng: Rng, /) -> ImageSample:
        """Changed as drawn from `rng`."""
        sample = _at_most(sample, self.largest)
        sample = ops.resize_sample(
            ops.random_part(sample, (0.5, 1.0), (0.5, 2.0), rng),
            (self.crop, self.crop),
            ops.Resampling.BILINEAR,
        )
        if rng.random() < 0.8:
            sample = sample._replace(image=_coloured(sample.image, rng))
        if rng.random() < 0.5:
            sample = ops.rotated(sample, rng.uniform(-15, 15), ops.Resampling.NEAREST)
        if rng.random() < 0.1:
            sample = ops.mirrored(sample)
        if rng.random() < 0.5:
            sample = sample._replace(
                image=ops.blurred(sample.image, ops.gaussian_taps(5, rng.uniform(0.1, 0.5)))
            )
        image = compressed(
            sample.image, rng, with_avif=ops.has_avif() if self.avif is None else self.avif
        )
        return sample._replace(image=image, finished=True)


def compressed(image: Image.Image, rng: Rng, *, with_avif: bool) -> Image.Image:
    """One of OpenFake's five ways through a codec, of the same size: JPEG (a second time in 0.3 of
    them) 0.45, WebP 0.20 (0.05 of them lossless), AVIF 0.10, a long edge of 720 to 1080 with JPEG
    0.10, none 0.15.

    Compression comes after the crop, so a network of up to 720 pixels never sees the shrinking;
    larger ones get it enlarged back.
    """
    way = rng.choice(
        ["jpeg", "webp", "avif", "small-jpeg", "none"], p=[0.45, 0.20, 0.10, 0.10, 0.15]
    )
    if way == "jpeg":
        image = ops.jpeg(image, _quality(55, 95, rng))
        return ops.jpeg(image, _quality(50, 85, rng)) if rng.random() < 0.3 else image
    if way == "webp":
        return (
            ops.lossless_webp(image)
            if rng.random() < 0.05
            else ops.webp(image, _quality(65, 90, rng), method=0)
        )
    if way == "avif":
        return (
            ops.avif(image, _quality(40, 80, rng))
            if with_avif
            else ops.webp(image, _quality(65, 90, rng))
        )
    if way == "small-jpeg":
        edge, size = int(rng.integers(720, 1080, endpoint=True)), image.size
        if max(size) > edge:
            image = image.resize(
                (int(size[0] * edge / max(size)), int(size[1] * edge / max(size))),
                ops.Resampling.BICUBIC,
            )
        image = ops.jpeg(image, _quality(65, 85, rng))
        return image if image.size == size else image.resize(size, ops.Resampling.BICUBIC)
    return image


def _quality(least: int, most: int, rng: Rng) -> int:
    return int(rng.integers(least, most, endpoint=True))


def _at_most(sample: ImageSample, largest: int) -> ImageSample:
    if max(sample.image.size) <= largest:
        return sample
    image = sample.image.copy()
    image.thumbnail((largest, largest), ops.Resampling.LANCZOS)
    return sample._replace(
        image=image, mask=sample.mask and sample.mask.resize(image.size, ops.Resampling.NEAREST)
    )


def _coloured(image: Image.Image, rng: Rng) -> Image.Image:
    """Brightness × 0.7 to 1.3, contrast and saturation × 0.5 to 1.5, in random order."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = rng.uniform((0.7, 0.5, 0.5), (1.3, 1.5, 1.5))
    for kind in rng.permutation(3):
        image = kinds[kind](image).enhance(factors[kind])
    return image


# One draw of a width from 3 to 7, even ones rounded up.
_KERNELS: tuple[npt.NDArray[np.float64], ...] = tuple(
    np.array(taps) / sum(taps)
    for taps in (
        (1, 2, 1),
        (1, 4, 6, 4, 1),
        (1, 4, 6, 4, 1),
        (2, 7, 14, 18, 14, 7, 2),
        (2, 7, 14, 18, 14, 7, 2),
    )
)


class MaskClipPolicy(Frozen):
    """For image and mask together: scale, flips, light, JPEG, quarter turns, blur
    (specs/localization.md §1.7); then the card's squash to 512.

    The reference, without arguments, is albumentations 1.3 on OpenCV. The same here: no antialias
    when shrinking, the nearest mask pixel rounded down, a JPEG that takes RGB for BGR, and OpenCV's
    fixed kernels for a Gaussian of 3, 5 and 7 pixels. Within one grey level: torchvision's bilinear
    filter.
    """

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """Changed as drawn from `rng`."""
        sample = _scaled(sample, rng.uniform(0.8, 1.2))
        if rng.random() < 0.5:
            sample = ops.mirrored(sample)
        if rng.random() < 0.5:
            sample = ops.flipped_vertically(sample)
        image = _lit(
            sample.image, brightness=rng.uniform(-0.1, 0.1), contrast=rng.uniform(-0.1, 0.1)
        )
        if rng.random() < 0.2:
            image = ops.jpeg(image, int(rng.integers(70, 100, endpoint=True)), swapped=True)
        sample = sample._replace(image=image)
        if rng.random() < 0.5:
            sample = ops.quarter_turned(sample, int(rng.integers(4)))
        if rng.random() < 0.2:
            sample = sample._replace(
                image=ops.blurred(sample.image, _KERNELS[int(rng.integers(len(_KERNELS)))])
            )
        return sample


def _scaled(sample: ImageSample, factor: float) -> ImageSample:
    # 3 seconds to import, so not before it is used.
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    width, height = sample.image.size
    size = [max(int(height * factor), 1), max(int(width * factor), 1)]

    def scaled(image: Image.Image, mode: InterpolationMode) -> Image.Image:
        planes = torch.from_numpy(np.array(image).reshape(height, width, -1)).permute(2, 0, 1)
        pixels = resize(planes, size, mode, antialias=False).permute(1, 2, 0).numpy()
        return Image.fromarray(pixels if image.mode == "RGB" else pixels[..., 0])

    return ops.transformed(
        sample,
        lambda image: scaled(image, InterpolationMode.BILINEAR),
        lambda mask: scaled(mask, InterpolationMode.NEAREST),
    )


def _lit(image: Image.Image, *, brightness: float, contrast: float) -> Image.Image:
    """Grey level × (1 + contrast) + brightness × 255, clipped and truncated."""
    levels = np.arange(256, dtype=np.float32) * np.float32(1 + contrast) + np.float32(
        brightness * 255
    )
    return image.point(levels.clip(0, 255).astype(np.uint8).tolist() * 3)


_ANY_FILTER = (
    ops.Resampling.NEAREST,
    ops.Resampling.BILINEAR,
    ops.Resampling.BICUBIC,
    ops.Resampling.LANCZOS,
    ops.Resampling.HAMMING,
    ops.Resampling.BOX,
)


class CommunityForensicsPolicy(Frozen):
    """Short side to 440, every operation none to two times in random order, random crop of 384; the
    result is final.

    Another `crop` scales the 440 with it (256 for 224, as the authors have). They draw JPEG's
    encoder from OpenCV and Pillow, which give the same pixels (ray_app.transforms.ops): not drawn
    here.
    """

    crop: int = Field(
        ge=8,
        description="side of the final crop and of those in the bag; by default the network's input",
    )
    short_side: int | None = Field(
        default=None, ge=8, description="before the bag; by default crop × 440 / 384"
    )
    repeats: tuple[int, int] = Field(
        default=(0, 2), description="fewest and most times of each operation"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.short_side is not None and self.short_side < self.crop:
            raise ValueError(f"short_side {self.short_side} has no room for a crop of {self.crop}")
        if not 0 <= self.repeats[0] <= self.repeats[1]:
            raise ValueError(f"repeats {self.repeats} are no range")
        return self

    def __call__(self, sample: ImageSample, rng: Rng, /) -> ImageSample:
        """Changed as drawn from `rng`."""
        sample = ops.with_short_side(
            sample, self.short_side or self.crop * 440 // 384, ops.Resampling.BILINEAR, rng
        )
        for name in self.draw(rng):
            sample = OPERATIONS[name](sample, self.crop, rng)
        return ops.random_crop(sample, self.crop, rng)._replace(finished=True)

    def draw(self, rng: Rng) -> list[str]:
        """The names of the operations for one image, in the order in which they are applied."""
        repeats = rng.integers(*self.repeats, size=len(OPERATIONS), endpoint=True)
        return [str(name) for name in rng.permutation(np.repeat(list(OPERATIONS), repeats))]


def _resize(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    short = int(rng.integers(crop + 1, round(crop * 1.228), endpoint=True))
    return ops.with_short_side(
        sample, short, _one_of((ops.Resampling.BILINEAR, ops.Resampling.BICUBIC), rng), rng
    )


def _resized_crop(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    part = ops.random_part(sample, (0.9, 1.0), (3 / 4, 4 / 3), rng)
    return ops.resize_sample(part, (crop, crop), _one_of(_ANY_FILTER, rng))


def _translate(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    across, down = (round(rng.uniform(-0.1, 0.1) * n) for n in sample.image.size)
    return ops.transformed(
        sample,
        lambda image: image.transform(
            image.size, Image.Transform.AFFINE, (1, 0, -across, 0, 1, -down)
        ),
    )


def _shear(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    # 3 seconds to import, so not before it is used.
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import affine

    angles = [float(angle) for angle in rng.uniform(-15, 15, size=2)]

    def sheared(image: Image.Image, mode: InterpolationMode) -> Image.Image:
        result: Image.Image = affine(
            image,
            angle=0.0,
            translate=[0, 0],
            scale=1.0,
            shear=angles,
            interpolation=mode,
            fill=None,
        )
        return result

    return ops.transformed(
        sample,
        lambda image: sheared(image, InterpolationMode.BILINEAR),
        lambda mask: sheared(mask, InterpolationMode.NEAREST),
    )


def _pad(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    width, height = sample.image.size
    left, right, above, below = (
        int(rng.uniform(0, 0.05) * n) for n in (width, width, height, height)
    )
    grey = int(rng.integers(256))

    def framed(image: Image.Image, colour: int | tuple[int, ...]) -> Image.Image:
        frame = Image.new(image.mode, (left + width + right, above + height + below), colour)
        frame.paste(image, (left, above))
        return frame

    padded = ops.transformed(
        sample, lambda image: framed(image, (grey,) * 3), lambda mask: framed(mask, 0)
    )
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

    return ops.transformed(
        sample, lambda image: painted(image, (grey,) * 3), lambda mask: painted(mask, 0)
    )


def _one_of(filters: tuple[ops.Resampling, ...], rng: Rng) -> ops.Resampling:
    return filters[int(rng.integers(len(filters)))]


OPERATIONS: Mapping[str, Callable[[ImageSample, int, Rng], ImageSample]] = {
    "jpeg": lambda sample, crop, rng: sample._replace(
        image=ops.jpeg(sample.image, int(rng.integers(75, 100, endpoint=True)))
    ),
    "resize": _resize,
    "crop": ops.random_crop,
    "mirror": lambda sample, crop, rng: ops.mirrored(sample) if rng.random() < 0.5 else sample,
    "upend": lambda sample, crop, rng: (
        ops.flipped_vertically(sample) if rng.random() < 0.5 else sample
    ),
    "resized-crop": _resized_crop,
    "rotate": lambda sample, crop, rng: ops.rotated(
        sample, rng.uniform(-15, 15), ops.Resampling.BILINEAR
    ),
    "translate": _translate,
    "shear": _shear,
    "pad": _pad,
    "cut-out": _cut_out,
}
