"""`Preprocessing`: how one detector wants its pixels: resize, crop, and the constants of the
normalisation.

PIL images and uint8 arrays; torch is imported only when an image is resized by it.
"""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, model_validator

from ray_app.config import Frozen, OptionalKey
from ray_app.errors import InputError, Status
from ray_app.transforms.ops import resized_rows_first

Pixels = npt.NDArray[np.uint8]
ResizeMode = Literal["exact", "fast"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# A strip one pixel high, brought to a short side of 440, would be thousands of times its own size.
# 64 Mi pixels are 192 MiB.
MAX_RESIZED_PIXELS = 2**26

# Rows of the result that the OpenCV filter works on at once.
_BAND = 64

_PILLOW_FILTER = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Resize(Frozen):
    """`squash` to size × size, bring the `short_side` to size and keep the aspect, shrink to a
    `thumbnail`, or `none`.

    A thumbnail is Pillow's, bilinear, and only of images whose longer side exceeds its size.
    `thumbnail_first` takes one of that size before the resize proper, as OpenFake's first runner
    does.
    """

    mode: Literal["none", "squash", "short_side", "thumbnail"] = "none"
    size: int | None = Field(default=None, ge=1)
    thumbnail_first: OptionalKey[int] = Field(default=None, ge=1)  # as runs before the key existed

    @model_validator(mode="after")
    def _sized(self) -> "Resize":
        if (self.size is None) != (self.mode == "none"):
            raise ValueError(
                f"mode {self.mode} {'needs' if self.size is None else 'takes no'} size"
            )
        if self.thumbnail_first and self.mode not in ("squash", "short_side"):
            raise ValueError(f"thumbnail_first goes before squash or short_side, not {self.mode}")
        return self


class Preprocessing(Frozen):
    """What the authors do to an image before their network sees it. Hashable: equal values make
    equal tensors.

    `resampler` is the library whose resize the authors used: Pillow's, rows before columns under
    every version; torchvision's on uint8 tensors (the same kernel as
    `torch.nn.functional.interpolate` with antialias); or OpenCV's INTER_LINEAR, which has no
    antialias and is reproduced bit for bit. `pad` fills an image smaller than the crop:
    torchvision's black around it, its own mirror, or, with `corner`, black to the right and below,
    of a thumbnail that always fits. `crop_rounding`: where the crop begins when as much is cut on
    either side but for a pixel: torchvision rounds half of what is cut to even, albumentations
    down.
    """

    resize: Resize = Resize()
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    resampler: Literal["pillow", "torch", "opencv"] = "pillow"
    center_crop: int | None = Field(default=None, ge=1)
    pad: Literal["black", "mirror", "corner"] = "black"
    # as runs by 0.15 and before
    crop_rounding: Literal["even", "down"] = Field(
        default="even", exclude_if=lambda way: way == "even"
    )
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @model_validator(mode="after")
    def _possible(self) -> "Preprocessing":
        if self.resize.mode == "thumbnail" and (self.filter, self.resampler) != (
            "bilinear",
            "pillow",
        ):
            raise ValueError("a thumbnail is bilinear and Pillow's")
        if self.resampler == "opencv" and self.filter != "bilinear":
            raise ValueError("of OpenCV's filters only the bilinear one is known")
        if self.pad == "corner" and (
            self.resize.mode != "thumbnail" or (self.center_crop or 0) < (self.resize.size or 0)
        ):
            raise ValueError("pad: corner goes with a thumbnail that is no larger than center_crop")
        return self

    @property
    def shape(self) -> tuple[int, int] | None:
        """(height, width) of every prepared image; None where the image's own size is kept."""
        side = self.center_crop or (self.resize.size if self.resize.mode == "squash" else None)
        return (side, side) if side else None

    def image_area(self, width: int, height: int) -> tuple[slice, slice]:
        """Rows and columns in which a prepared image of that size shows the image; what `corner`
        filled in lies outside them.
        """
        if self.pad != "corner" or not self.resize.size:
            return slice(None), slice(None)
        columns, rows = _thumbnail_size(width, height, self.resize.size)
        return slice(rows), slice(columns)

    def prepare(self, image: Image.Image, resize: ResizeMode = "exact") -> Pixels:
        """Bring one RGB image to the detector's geometry: (height, width, 3) uint8, C-contiguous,
        writable.

        `exact` resizes with the authors' library. `fast` takes torch where that is at most one grey
        level away: for bilinear filters. With bicubic ones its 16-bit weights are two away in one
        value of a million, so there `fast` is `exact`; so it is for thumbnails and for OpenCV's
        filter. Raises InputError for an image so long and thin that resizing it would not fit into
        memory.
        """
        if self.resize.mode == "thumbnail" and self.resize.size:
            return self._crop(_thumbnail(image, self.resize.size))
        if self.resize.thumbnail_first:
            image = _thumbnail(image, self.resize.thumbnail_first)
        target = self._resized(image.width, image.height)
        if target == image.size:
            return self._crop(image)
        if self.resampler == "opencv":
            return self._crop(_opencv_resize(np.asarray(image), target))
        if self.resampler == "pillow" and (resize == "exact" or self.filter == "bicubic"):
            return self._crop(_pillow_resize(image, target, self.filter))
        return self._crop(_torch_resize(image, target, self.filter))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after the resize; torchvision truncates the long side."""
        size = self.resize.size
        if size is None:
            return width, height
        if self.resize.mode == "squash":
            return size, size
        short, long = sorted((width, height))
        longer = int(size * long / short)
        if size * longer > MAX_RESIZED_PIXELS:
            raise InputError(
                Status.IMAGE_TOO_LARGE,
                f"{width} × {height}: a short side of {size} px would make it {size} × {longer}",
            )
        return (size, longer) if width <= height else (longer, size)

    def _crop(self, image: "Image.Image | Pixels") -> Pixels:
        side = self.center_crop
        if side is not None:
            width, height = (
                image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
            )
            # Python's round, half to even, is torchvision's own.
            halved = math.floor if self.crop_rounding == "down" else round
            left, top = halved(max(width - side, 0) / 2), halved(max(height - side, 0) / 2)
            right, bottom = min(left + side, width), min(top + side, height)
            image = (
                image.crop((left, top, right, bottom))
                if isinstance(image, Image.Image)
                else image[top:bottom, left:right]
            )
        pixels: Pixels = (
            np.array(image) if isinstance(image, Image.Image) else np.ascontiguousarray(image)
        )
        return (
            pixels
            if side is None or pixels.shape[:2] == (side, side)
            else _padded(pixels, side, self.pad)
        )


def _pillow_resize(
    image: Image.Image, size: tuple[int, int], mode: str, part: tuple[float, float] | None = None
) -> Image.Image:
    """Resize the image, or its upper left `part`, (width, height) in fractions of pixels."""
    if size[0] * image.height > MAX_RESIZED_PIXELS:
        raise InputError(
            Status.IMAGE_TOO_LARGE,
            f"{image.width} × {image.height}: a width of {size[0]} px would not fit into memory",
        )
    return resized_rows_first(image, size, _PILLOW_FILTER[mode], part)


def _thumbnail(image: Image.Image, size: int) -> Image.Image:
    """What `Image.thumbnail((size, size), BILINEAR)` makes of a decoded image, with rows before
    columns under every Pillow.
    """
    target = _thumbnail_size(*image.size, size)
    if target == image.size:
        return image
    width, height = image.size
    # Pillow's reducing_gap of 2.0: whole blocks are averaged as long as twice the target remains.
    factors = (int(width / target[0] / 2.0) or 1, int(height / target[1] / 2.0) or 1)
    if factors == (1, 1):
        return _pillow_resize(image, target, "bilinear")
    return _pillow_resize(
        image.reduce(factors), target, "bilinear", part=(width / factors[0], height / factors[1])
    )


def _thumbnail_size(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) of the thumbnail of an image of that size."""
    if max(width, height) <= size:
        return width, height
    aspect = width / height
    # Of the two whole numbers around the shorter side, the one that keeps the aspect better.
    if aspect <= 1:
        shorter = min(
            math.floor(size * aspect),
            math.ceil(size * aspect),
            key=lambda n: abs(aspect - n / size),
        )
        return max(shorter, 1), size
    shorter = min(
        math.floor(size / aspect),
        math.ceil(size / aspect),
        key=lambda n: abs(aspect - size / n) if n else 0,
    )
    return size, max(shorter, 1)


def _opencv_resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """cv2.resize with INTER_LINEAR on uint8: 11-bit weights, whose products lose 4 and then 16 bits
    before the last rounding.
    """
    left, right, across = _opencv_taps(pixels.shape[1], size[0], zero_outside=True)
    upper, lower, down = _opencv_taps(pixels.shape[0], size[1], zero_outside=False)
    resized = np.empty((size[1], size[0], pixels.shape[2]), np.uint8)
    # In bands: the sums take four bytes a value, and of the source only the rows that count are
    # ever widened.
    for start in range(0, size[1], _BAND):
        band = slice(start, start + _BAND)
        total = np.full(resized[band].shape, 2, np.int32)
        for rows, weights in ((upper[band], down[0, band]), (lower[band], down[1, band])):
            source = pixels[rows]
            widened = source[:, left] * across[0, :, None] + source[:, right] * across[1, :, None]
            total += ((widened >> 4) * weights[:, None, None]) >> 16
        resized[band] = total >> 2
    return resized


def _opencv_taps(
    source: int, target: int, *, zero_outside: bool
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """Both neighbours of every target pixel along one side, and their weights (2, target) in
    1/2048.
    """
    # In double, then float, as OpenCV does: the last bit decides some weights.
    at = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.intp)
    fraction = at - first.astype(np.float32)
    if zero_outside:
        fraction[(first < 0) | (first >= source - 1)] = 0
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(2048)).astype(np.int32)
    return np.clip(first, 0, source - 1), np.clip(first + 1, 0, source - 1), weights


def _torch_resize(image: Image.Image, size: tuple[int, int], mode: str) -> Pixels:
    import torch

    # The view is channels-last, for which torch has a vector kernel: several times faster than
    # Pillow or a (3, H, W) copy.
    batch = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    resized = torch.nn.functional.interpolate(
        batch, size=(size[1], size[0]), mode=mode, antialias=True, align_corners=False
    )
    pixels: Pixels = resized[0].permute(1, 2, 0).numpy()
    return pixels


def _padded(pixels: Pixels, side: int, pad: str) -> Pixels:
    before = [0 if pad == "corner" else (side - n) // 2 for n in pixels.shape[:2]]
    missing = [(first, side - n - first) for first, n in zip(before, pixels.shape, strict=False)]
    if pad == "mirror":
        return np.pad(pixels, (*missing, (0, 0)), mode="symmetric")
    return np.pad(pixels, (*missing, (0, 0)))
