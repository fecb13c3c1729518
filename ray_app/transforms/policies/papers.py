"""Define augmentation policies that papers describe, following the authors' code.

`RealMatching` is the policy of OpenFake v1, which makes fakes more like real photographs.
`SocialMedia` is the policy of OpenFake v2, which imitates what social media do to images.
`MaskClipPolicy` is the policy of MaskCLIP. `CommunityForensicsPolicy` is the policy of Community
Forensics (Park and Owens 2025, arXiv 2411.04125). `RealStatistics` has the sizes and the sharpness
of real training images, to which `RealMatching` makes fakes more similar.

In `RealMatching`, Pillow replaces OpenCV. In `SocialMedia`, Pillow replaces torchvision, which
itself calls Pillow for such images.
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

# int(255 · √0.0005) in the code; the paper's variance alone would give 5.7.
_NOISE = 5


@dataclass(frozen=True)
class RealStatistics:
    """Sizes and sharpness of real images, to which `RealMatching` makes fakes more similar.

    The policy draws an area and a sharpness independently of each other.

    Attributes:
        areas_px: Areas in pixels, int64 (n,).
        sharpness: Sharpness, float64 (m,).
    """

    areas_px: npt.NDArray[np.int64]
    sharpness: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, values, min_value in (
            ("areas", self.areas_px, 1),
            ("sharpness", self.sharpness, 0),
        ):
            if (
                values.ndim != 1
                or not len(values)
                or not np.isfinite(values).all()
                or values.min() < min_value
            ):
                raise ConfigError(
                    f"statistics of real images: {name} must be a non-empty list of numbers of at least {min_value}"
                )


def sharpness(image: Image.Image) -> float:
    """Return the sharpness of an image: the variance of the Laplacian of its luma.

    The unit is grey levels squared. OpenFake's file `real_train_stats.npz` has this measure. The
    kernel of the Laplacian is (0 1 0, 1 −4 1, 0 1 0). Outside the image, pixels are mirrored
    without repeating the outermost pixel, which is the default of OpenCV.
    """
    luma = np.pad(np.asarray(image.convert("L"), np.int16), 1, mode="reflect")
    centre = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * centre
    return float(laplacian.var(dtype=np.float64))


def load_statistics(path: Path) -> RealStatistics:
    """Read sizes and sharpness of real images from a file in the format of OpenFake's authors.

    The format is .npz with `blur_vals` (m,), the sharpness, and `res_vals` (n, 2) of (height,
    width).

    Raises:
        ConfigError: The file cannot be read, or its arrays are invalid.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            blur, sizes = (
                arrays["blur_vals"].astype(np.float64),
                arrays["res_vals"].astype(np.int64),
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise ConfigError(
            f"{path}: cannot read statistics of real images: {error}",
            hint="give an .npz file with blur_vals and res_vals, or remove `statistics` to measure them on training images",
        ) from error
    if sizes.ndim != 2 or sizes.shape[1] != 2:
        raise ConfigError(f"{path}: res_vals must have the shape (n, 2), got {sizes.shape}")
    return RealStatistics(areas_px=sizes.prod(axis=1), sharpness=blur)


def save_statistics(path: Path, statistics: RealStatistics) -> None:
    """Write sizes and sharpness of real images to a file that `load_statistics` reads.

    A size is stored as its area × 1, because the policy needs only the area.
    """
    sizes = np.stack([statistics.areas_px, np.ones_like(statistics.areas_px)], axis=1)
    np.savez(path, blur_vals=statistics.sharpness, res_vals=sizes)


class RealMatching(Frozen):
    """The augmentation policy of OpenFake v1, which makes fakes more like real photographs.

    Real images stay unchanged. A fake gets four changes in this order, each with `probability`.
    First, a bilinear resize gives it the area of a random real image of `statistics`. Second, a
    blur of σ = 0.3 follows if the fake is more than 1.2 times as sharp as a random real image.
    Third is noise of σ = 5, and fourth JPEG of quality 70 to 94. The resize and crop of the
    detector's card follow.

    As in the authors' code, JPEG treats RGB as BGR, and the noise is in red alone: OpenCV's `randn`
    reads one deviation as (5, 0, 0, 0).
    """

    statistics: InstanceOf[RealStatistics] = Field(
        description="sizes and sharpness of real training images"
    )
    probability: float = Field(
        default=0.2, ge=0, le=1, description="probability of each of the four steps, independently"
    )

    def __call__(self, sample: ImageSample, rng: Rng, /) -> ImageSample:
        """Return the sample after random changes; real images stay unchanged."""
        if sample.label == 0:
            return sample
        if rng.random() < self.probability:
            sample = _resize_to_area(sample, int(rng.choice(self.statistics.areas_px)))
        image = sample.image
        if rng.random() < self.probability and sharpness(image) > 1.2 * rng.choice(
            self.statistics.sharpness
        ):
            image = ops.blur(image, ops.gaussian_taps(3, 0.3))
        if rng.random() < self.probability:
            image = _add_red_noise(image, rng)
        if rng.random() < self.probability:
            image = ops.jpeg(image, int(rng.integers(70, 95)), swap_channels=True)
        return sample._replace(image=image)


def _resize_to_area(sample: ImageSample, area: int) -> ImageSample:
    width, height = sample.image.size
    scale = (area / (width * height)) ** 0.5
    return ops.resize_sample(
        sample, (max(int(width * scale), 1), max(int(height * scale), 1)), ops.Resampling.BILINEAR
    )


def _add_red_noise(image: Image.Image, rng: Rng) -> Image.Image:
    pixels = np.array(image)
    noise = np.rint(rng.normal(0, _NOISE, pixels.shape[:2])).astype(np.int16)
    pixels[..., 0] = (pixels[..., 0] + noise).clip(0, 255)
    return Image.fromarray(pixels)


class SocialMedia(Frozen):
    """The augmentation policy of OpenFake v2, which imitates what social media do to images.

    It changes real and fake images. The steps are a crop, changes of colour, rotation, mirroring,
    blur, and at last a compression such as JPEG. The result needs no further preprocessing. If this
    Pillow cannot write AVIF, WebP replaces it, as in the authors' code. Set `avif` to false if
    only some machines of a training can write AVIF.
    """

    crop: int = Field(
        ge=8,
        description="side of the resized crop in pixels; by default that of the network's input",
    )
    largest: int = Field(
        default=2048,
        ge=8,
        description="maximum longer side in pixels; longer images are first shrunk to it",
    )
    avif: bool | None = Field(
        default=None, description="whether AVIF is among the codecs; null = if this Pillow has it"
    )

    @field_validator("avif")
    @classmethod
    def _check_avif(cls, avif: bool | None) -> bool | None:
        if avif and not ops.has_avif():
            raise ValueError(
                "this Pillow has no AVIF; install pillow 11.3 or newer, or set avif to false"
            )
        return avif

    def __call__(self, sample: ImageSample, rng: Rng, /) -> ImageSample:
        """Return the sample after random changes."""
        sample = _shrink(sample, self.largest)
        sample = ops.resize_sample(
            ops.crop_random_part(sample, (0.5, 1.0), (0.5, 2.0), rng),
            (self.crop, self.crop),
            ops.Resampling.BILINEAR,
        )
        if rng.random() < 0.8:
            sample = sample._replace(image=_jitter_colours(sample.image, rng))
        if rng.random() < 0.5:
            sample = ops.rotate(sample, rng.uniform(-15, 15), ops.Resampling.NEAREST)
        if rng.random() < 0.1:
            sample = ops.mirror(sample)
        if rng.random() < 0.5:
            sample = sample._replace(
                image=ops.blur(sample.image, ops.gaussian_taps(5, rng.uniform(0.1, 0.5)))
            )
        image = compress(
            sample.image, rng, with_avif=ops.has_avif() if self.avif is None else self.avif
        )
        return sample._replace(image=image, finished=True)


def compress(image: Image.Image, rng: Rng, *, with_avif: bool) -> Image.Image:
    """Compress an image by a random method of OpenFake's five, and decode it again.

    The methods have these probabilities:

    - JPEG: 0.45. A fraction of 0.3 of these images is compressed twice.
    - WebP: 0.20. A fraction of 0.05 of these images is compressed without loss.
    - AVIF: 0.10.
    - A resize to a long edge of 720 to 1080, with JPEG: 0.10. The image is enlarged again.
    - No compression: 0.15.

    The image keeps its size. The policy compresses after its crop. So for a network with an input
    of up to 720 pixels, the resize has no effect.

    Args:
        image: The image.
        rng: Random number generator.
        with_avif: Whether to use AVIF. If not, WebP replaces it.
    """
    method = rng.choice(
        ["jpeg", "webp", "avif", "small-jpeg", "none"], p=[0.45, 0.20, 0.10, 0.10, 0.15]
    )
    if method == "jpeg":
        image = ops.jpeg(image, _draw_quality(55, 95, rng))
        return ops.jpeg(image, _draw_quality(50, 85, rng)) if rng.random() < 0.3 else image
    if method == "webp":
        return (
            ops.lossless_webp(image)
            if rng.random() < 0.05
            else ops.webp(image, _draw_quality(65, 90, rng), method=0)
        )
    if method == "avif":
        return (
            ops.avif(image, _draw_quality(40, 80, rng))
            if with_avif
            else ops.webp(image, _draw_quality(65, 90, rng))
        )
    if method == "small-jpeg":
        edge, size = int(rng.integers(720, 1080, endpoint=True)), image.size
        if max(size) > edge:
            image = image.resize(
                (int(size[0] * edge / max(size)), int(size[1] * edge / max(size))),
                ops.Resampling.BICUBIC,
            )
        image = ops.jpeg(image, _draw_quality(65, 85, rng))
        return image if image.size == size else image.resize(size, ops.Resampling.BICUBIC)
    return image


def _draw_quality(low: int, high: int, rng: Rng) -> int:
    return int(rng.integers(low, high, endpoint=True))


def _shrink(sample: ImageSample, largest: int) -> ImageSample:
    if max(sample.image.size) <= largest:
        return sample
    image = sample.image.copy()
    image.thumbnail((largest, largest), ops.Resampling.LANCZOS)
    return sample._replace(
        image=image, mask=sample.mask and sample.mask.resize(image.size, ops.Resampling.NEAREST)
    )


def _jitter_colours(image: Image.Image, rng: Rng) -> Image.Image:
    """Change brightness × 0.7–1.3, and contrast and saturation × 0.5–1.5, in random order."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = rng.uniform((0.7, 0.5, 0.5), (1.3, 1.5, 1.5))
    for kind in rng.permutation(3):
        image = kinds[kind](image).enhance(factors[kind])
    return image


# A width is drawn from 3 to 7, and even ones are rounded up.
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
    """The augmentation policy of MaskCLIP, for an image and its mask together.

    The steps are scale, flips, light, JPEG, quarter turns, and blur. The resize to 512 × 512 by the
    detector's card follows. The policy has no arguments.

    The result equals that of the authors' library, albumentations 1.3 on OpenCV, in these details:
    no antialiasing when shrinking, masks resized by the nearest pixel (coordinates rounded down), a
    JPEG that treats RGB as BGR, and OpenCV's fixed kernels for a Gaussian of 3, 5, and 7 pixels.
    Only torchvision's bilinear filter differs from OpenCV's, by up to one grey level.
    """

    def __call__(self, sample: ImageSample, rng: np.random.Generator, /) -> ImageSample:
        """Return the sample after random changes."""
        sample = _scale(sample, rng.uniform(0.8, 1.2))
        if rng.random() < 0.5:
            sample = ops.mirror(sample)
        if rng.random() < 0.5:
            sample = ops.flip_vertically(sample)
        image = _adjust_light(
            sample.image, brightness=rng.uniform(-0.1, 0.1), contrast=rng.uniform(-0.1, 0.1)
        )
        if rng.random() < 0.2:
            image = ops.jpeg(image, int(rng.integers(70, 100, endpoint=True)), swap_channels=True)
        sample = sample._replace(image=image)
        if rng.random() < 0.5:
            sample = ops.turn_quarters(sample, int(rng.integers(4)))
        if rng.random() < 0.2:
            sample = sample._replace(
                image=ops.blur(sample.image, _KERNELS[int(rng.integers(len(_KERNELS)))])
            )
        return sample


def _scale(sample: ImageSample, factor: float) -> ImageSample:
    # Imported here because this takes 3 seconds.
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    width, height = sample.image.size
    size = [max(int(height * factor), 1), max(int(width * factor), 1)]

    def scaled(image: Image.Image, mode: InterpolationMode) -> Image.Image:
        planes = torch.from_numpy(np.array(image).reshape(height, width, -1)).permute(2, 0, 1)
        pixels = resize(planes, size, mode, antialias=False).permute(1, 2, 0).numpy()
        return Image.fromarray(pixels if image.mode == "RGB" else pixels[..., 0])

    return ops.transform_sample(
        sample,
        lambda image: scaled(image, InterpolationMode.BILINEAR),
        lambda mask: scaled(mask, InterpolationMode.NEAREST),
    )


def _adjust_light(image: Image.Image, *, brightness: float, contrast: float) -> Image.Image:
    """Return grey level × (1 + contrast) + brightness × 255, clipped and truncated."""
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
    """The augmentation policy of Community Forensics. Its result needs no further preprocessing.

    The short side is resized to 440 pixels. Then each of the operations in `OPERATIONS` is applied
    zero to two times, in random order. At last, a random square of 384 pixels is cropped. If `crop`
    is not 384, the 440 pixels change in proportion, for example to 256 for a crop of 224. The
    authors do this, too.

    The authors choose JPEG's encoder at random from OpenCV and Pillow. The two give equal pixels
    (ray_app.transforms.ops), so this policy always uses Pillow.
    """

    crop: int = Field(
        ge=8,
        description="side in pixels of the final crop and of the operations' crops; by default that of the network's input",
    )
    short_side: int | None = Field(
        default=None,
        ge=8,
        description="shorter side in pixels before the operations; by default crop × 440 / 384",
    )
    repeats: tuple[int, int] = Field(
        default=(0, 2), description="minimum and maximum number of times of each operation"
    )

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if self.short_side is not None and self.short_side < self.crop:
            raise ValueError(
                f"short_side must be at least `crop` ({self.crop}), got {self.short_side}"
            )
        if not 0 <= self.repeats[0] <= self.repeats[1]:
            raise ValueError(
                f"repeats must be an ascending range [minimum, maximum] from 0 or more, got {list(self.repeats)}"
            )
        return self

    def __call__(self, sample: ImageSample, rng: Rng, /) -> ImageSample:
        """Return the sample after random changes."""
        sample = ops.resize_short_side(
            sample, self.short_side or self.crop * 440 // 384, ops.Resampling.BILINEAR, rng
        )
        for name in self.draw(rng):
            sample = OPERATIONS[name](sample, self.crop, rng)
        return ops.random_crop(sample, self.crop, rng)._replace(finished=True)

    def draw(self, rng: Rng) -> list[str]:
        """Draw the operations for one image, and return their names in the order of application.

        The names are keys of `OPERATIONS`. A name may occur several times.
        """
        repeats = rng.integers(*self.repeats, size=len(OPERATIONS), endpoint=True)
        return [str(name) for name in rng.permutation(np.repeat(list(OPERATIONS), repeats))]


def _resize(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    short = int(rng.integers(crop + 1, round(crop * 1.228), endpoint=True))
    return ops.resize_short_side(
        sample, short, _choose_filter((ops.Resampling.BILINEAR, ops.Resampling.BICUBIC), rng), rng
    )


def _resized_crop(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    part = ops.crop_random_part(sample, (0.9, 1.0), (3 / 4, 4 / 3), rng)
    return ops.resize_sample(part, (crop, crop), _choose_filter(_ANY_FILTER, rng))


def _translate(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    across, down = (round(rng.uniform(-0.1, 0.1) * n) for n in sample.image.size)
    return ops.transform_sample(
        sample,
        lambda image: image.transform(
            image.size, Image.Transform.AFFINE, (1, 0, -across, 0, 1, -down)
        ),
    )


def _shear(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    # Imported here because this takes 3 seconds.
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

    return ops.transform_sample(
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

    padded = ops.transform_sample(
        sample, lambda image: framed(image, (grey,) * 3), lambda mask: framed(mask, 0)
    )
    return ops.resize_sample(padded, (width, height), ops.Resampling.BILINEAR)


def _cut_out(sample: ImageSample, crop: int, rng: Rng) -> ImageSample:
    """Paint a grey box in half of the cases; the mask treats its pixels as unaltered."""
    if rng.random() >= 0.5:
        return sample
    width, height = sample.image.size
    grey = int(rng.integers(256))
    box = ops.draw_box((width, height), (0.02, 0.06), (1 / 3.3, 1 / 0.3), rng)
    if box is None:
        return sample

    def painted(image: Image.Image, colour: int | tuple[int, ...]) -> Image.Image:
        copy = image.copy()
        copy.paste(colour, box)
        return copy

    return ops.transform_sample(
        sample, lambda image: painted(image, (grey,) * 3), lambda mask: painted(mask, 0)
    )


def _choose_filter(filters: tuple[ops.Resampling, ...], rng: Rng) -> ops.Resampling:
    return filters[int(rng.integers(len(filters)))]


OPERATIONS: Mapping[str, Callable[[ImageSample, int, Rng], ImageSample]] = {
    "jpeg": lambda sample, crop, rng: sample._replace(
        image=ops.jpeg(sample.image, int(rng.integers(75, 100, endpoint=True)))
    ),
    "resize": _resize,
    "crop": ops.random_crop,
    "mirror": lambda sample, crop, rng: ops.mirror(sample) if rng.random() < 0.5 else sample,
    "upend": lambda sample, crop, rng: (
        ops.flip_vertically(sample) if rng.random() < 0.5 else sample
    ),
    "resized-crop": _resized_crop,
    "rotate": lambda sample, crop, rng: ops.rotate(
        sample, rng.uniform(-15, 15), ops.Resampling.BILINEAR
    ),
    "translate": _translate,
    "shear": _shear,
    "pad": _pad,
    "cut-out": _cut_out,
}
