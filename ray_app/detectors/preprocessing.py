"""Prepare an image for a detector (`Preprocessing`): resize, crop, and normalisation constants.

The module works on PIL images and uint8 arrays. torch is imported only if it resizes an image.
"""

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, model_validator

from ray_app.config import Frozen, OptionalKey
from ray_app.errors import InputError, Status
from ray_app.transforms.ops import resize_rows_first

if TYPE_CHECKING:
    import torch

Pixels = npt.NDArray[np.uint8]
ResizeMode = Literal["exact", "fast"]
RequestedResize = Literal["auto", "exact", "fast"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# An image one pixel high, resized to a short side of 440, would grow by a factor of thousands.
# 64 Mi pixels are 192 MiB.
MAX_RESIZED_PIXELS = 2**26

# Rows of the result that the OpenCV filter computes at once.
_BAND = 64

_PILLOW_FILTER = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Resize(Frozen):
    """How an image is resized before it is cropped."""

    mode: Literal["none", "squash", "short_side", "thumbnail"] = Field(
        default="none",
        description="`squash` resizes to size × size. `short_side` resizes the shorter side to size and "
        "keeps the aspect ratio. `thumbnail` shrinks images with a longer side above size, with "
        "Pillow's bilinear thumbnail. `none` keeps the size",
    )
    size: int | None = Field(
        default=None, ge=1, description="size in pixels. Required unless the mode is `none`"
    )
    # Identities of older runs lack the key, so null is left out.
    thumbnail_first: OptionalKey[int] = Field(
        default=None,
        ge=1,
        description="size of a thumbnail to make before the resize, as in OpenFake's first runner",
    )

    @model_validator(mode="after")
    def _check_size(self) -> "Resize":
        if (self.size is None) != (self.mode == "none"):
            raise ValueError(
                f"size must {'be set' if self.size is None else 'not be set'} for mode {self.mode}"
            )
        if self.thumbnail_first and self.mode not in ("squash", "short_side"):
            raise ValueError(f"thumbnail_first requires mode squash or short_side, got {self.mode}")
        return self


class Preprocessing(Frozen):
    """How an image becomes the input of a detector's network, as in the authors' own code.

    The steps are resize, crop or pad, and normalisation by mean and standard deviation. Objects are
    hashable. Equal objects turn an image into equal tensors.
    """

    resize: Resize = Field(default=Resize(), description="how the image is resized")
    filter: Literal["bilinear", "bicubic"] = Field(
        default="bilinear", description="filter of the resize"
    )
    resampler: Literal["pillow", "torch", "opencv"] = Field(
        default="pillow",
        description="library whose resize the authors used: Pillow (rows before columns under every "
        "version), torch (torchvision on uint8 tensors, the same kernel as "
        "`torch.nn.functional.interpolate` with antialias), or OpenCV's INTER_LINEAR (no "
        "antialias, reproduced bit for bit)",
    )
    center_crop: int | None = Field(
        default=None,
        ge=1,
        description="side of the square that is cropped from the centre, in pixels. null crops nothing",
    )
    pad: Literal["black", "mirror", "corner"] = Field(
        default="black",
        description="how an image smaller than the crop is filled: `black` around it as in torchvision, its "
        "`mirror` image, or with `corner` black to the right and below, for a thumbnail that "
        "always fits",
    )
    # Runs of 0.15 and before lack the key, so its default is left out.
    crop_rounding: Literal["even", "down"] = Field(
        default="even",
        exclude_if=lambda way: way == "even",
        description="how the first pixel of the crop is rounded if the two margins cannot be equal: to "
        "`even` as in torchvision, or `down` as in albumentations",
    )
    mean: tuple[float, float, float] = Field(
        default=IMAGENET_MEAN, description="mean per channel, for values from 0 to 1"
    )
    std: tuple[float, float, float] = Field(
        default=IMAGENET_STD, description="standard deviation per channel, for values from 0 to 1"
    )

    @model_validator(mode="after")
    def _check_combination(self) -> "Preprocessing":
        if self.resize.mode == "thumbnail" and (self.filter, self.resampler) != (
            "bilinear",
            "pillow",
        ):
            raise ValueError(
                f"mode thumbnail requires filter bilinear and resampler pillow, got {self.filter} and {self.resampler}"
            )
        if self.resampler == "opencv" and self.filter != "bilinear":
            raise ValueError(f"resampler opencv requires filter bilinear, got {self.filter}")
        if self.pad == "corner" and (
            self.resize.mode != "thumbnail" or (self.center_crop or 0) < (self.resize.size or 0)
        ):
            raise ValueError(
                "pad: corner requires resize.mode thumbnail and resize.size at most center_crop, "
                f"got {self.resize.mode}, size {self.resize.size}, and center_crop {self.center_crop}"
            )
        return self

    @property
    def shape(self) -> tuple[int, int] | None:
        """(height, width) of every prepared image, or None if it depends on the image."""
        side = self.center_crop or (self.resize.size if self.resize.mode == "squash" else None)
        return (side, side) if side else None

    def image_area(self, width: int, height: int) -> tuple[slice, slice]:
        """Return the area of a prepared image that is not padding, for example to cut a mask.

        Only the padding of `pad` "corner", at the bottom and right, is left out. For any other
        value of `pad`, the result is the whole image, with its padding.

        Args:
            width: Width of the original image in pixels.
            height: Height of the original image in pixels.

        Returns:
            The rows and the columns of the area, as slices.
        """
        if self.pad != "corner" or not self.resize.size:
            return slice(None), slice(None)
        columns, rows = _thumbnail_size(width, height, self.resize.size)
        return slice(rows), slice(columns)

    def with_resize(self, resize: ResizeMode) -> "Preprocessing":
        """Return the preprocessing with the kernel of a resize mode.

        Args:
            resize: "exact" keeps the library on the card. "fast" replaces Pillow by torch, which
                takes a fifth of the time. One value in 500 differs, by one grey level and rarely by
                two, because torch rounds its weights to 16 bits. Thumbnails and other libraries are
                kept.
        """
        is_replaced = self.resampler == "pillow" and self.resize.mode in ("squash", "short_side")
        if resize == "exact" or not is_replaced:
            return self
        return self.model_copy(update={"resampler": "torch"})

    def prepare(self, image: Image.Image) -> Pixels:
        """Resize and crop an RGB image to the network's input.

        Returns:
            Pixels (height, width, 3) uint8, C-contiguous and writable.

        Raises:
            InputError: If the image is so long and thin that the resized image would not fit into
                memory.
        """
        if self.resize.mode == "thumbnail" and self.resize.size:
            return self._crop(_thumbnail(image, self.resize.size))
        if self.resize.thumbnail_first:
            image = _thumbnail(image, self.resize.thumbnail_first)
        target = self._target_size(image.width, image.height)
        if target == image.size:
            return self._crop(image)
        if self.resampler == "opencv":
            return self._crop(_opencv_resize(np.asarray(image), target))
        if self.resampler == "torch":
            return self._crop(_torch_resize(image, target, self.filter))
        return self._crop(_pillow_resize(image, target, self.filter))

    def _target_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after the resize. torchvision truncates the long side."""
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
                f"{width} × {height}: resized to {size} × {longer} px, it would exceed the limit of {MAX_RESIZED_PIXELS:,} pixels",
            )
        return (size, longer) if width <= height else (longer, size)

    def _crop(self, image: "Image.Image | Pixels") -> Pixels:
        side = self.center_crop
        if side is not None:
            width, height = (
                image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
            )
            # torchvision uses Python's round, which rounds half to even.
            round_half = math.floor if self.crop_rounding == "down" else round
            left, top = round_half(max(width - side, 0) / 2), round_half(max(height - side, 0) / 2)
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
            else _pad(pixels, side, self.pad)
        )


def choose_resize(resize: RequestedResize, precision: Literal["bf16", "fp32"]) -> ResizeMode:
    """Return the resize mode for a detector. `auto` is fast if the detector runs in bf16.

    On average, bf16 moves the scores of a detector by more than the fast resize does.
    """
    if resize != "auto":
        return resize
    return "fast" if precision == "bf16" else "exact"


def _pillow_resize(
    image: Image.Image, size: tuple[int, int], mode: str, part: tuple[float, float] | None = None
) -> Image.Image:
    """Resize the image, or its upper left `part`, which is (width, height) in fractional pixels."""
    _require_memory(image, size)
    return resize_rows_first(image, size, _PILLOW_FILTER[mode], part)


def _require_memory(image: Image.Image, size: tuple[int, int]) -> None:
    """Raise InputError if the image with resized rows, before its columns are, is too large."""
    if size[0] * image.height > MAX_RESIZED_PIXELS:
        raise InputError(
            Status.IMAGE_TOO_LARGE,
            f"{image.width} × {image.height}: resized to a width of {size[0]} px, it would not fit into memory",
        )


def _thumbnail(image: Image.Image, size: int) -> Image.Image:
    """Return the result of `Image.thumbnail((size, size), BILINEAR)` for a decoded image.

    Rows are resized before columns under every version of Pillow.
    """
    target = _thumbnail_size(*image.size, size)
    if target == image.size:
        return image
    width, height = image.size
    # Pillow's reducing_gap of 2.0: whole blocks are averaged while the image stays at least twice the
    # target.
    factors = (int(width / target[0] / 2.0) or 1, int(height / target[1] / 2.0) or 1)
    if factors == (1, 1):
        return _pillow_resize(image, target, "bilinear")
    return _pillow_resize(
        image.reduce(factors), target, "bilinear", part=(width / factors[0], height / factors[1])
    )


def _thumbnail_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Return (width, height) of the thumbnail of an image with the given size."""
    if max(width, height) <= size:
        return width, height
    aspect = width / height
    # The shorter side is the rounded value, up or down, that keeps the aspect ratio better.
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
    """Reproduce cv2.resize with INTER_LINEAR on uint8.

    OpenCV uses 11-bit weights, and shifts their products right by 4 and then 16 bits before the
    last rounding.
    """
    left, right, across = _opencv_taps(pixels.shape[1], size[0], zero_outside=True)
    upper, lower, down = _opencv_taps(pixels.shape[0], size[1], zero_outside=False)
    resized = np.empty((size[1], size[0], pixels.shape[2]), np.uint8)
    # Bands limit memory: sums take four bytes per value, and only the source rows of the band are
    # widened.
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
    """Return both neighbours of each target pixel along one side, and their weights in 1/2048."""
    # Double precision first, then float, as in OpenCV: the last bit affects some weights.
    positions = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(positions).astype(np.intp)
    fraction = positions - first.astype(np.float32)
    if zero_outside:
        fraction[(first < 0) | (first >= source - 1)] = 0
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(2048)).astype(np.int32)
    return np.clip(first, 0, source - 1), np.clip(first + 1, 0, source - 1), weights


def _torch_resize(image: Image.Image, size: tuple[int, int], mode: str) -> Pixels:
    import torch

    _require_memory(image, size)
    # torch has a vector kernel for channels-last images, and recognises them by all four strides.
    batch = _share_pixels(image).unsqueeze(0).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        batch, size=(size[1], size[0]), mode=mode, antialias=True, align_corners=False
    )
    pixels: Pixels = resized[0].permute(1, 2, 0)[..., :3].numpy()
    return pixels


def _share_pixels(image: Image.Image) -> "torch.Tensor":
    """Return an RGB image as a tensor (height, width, 3 or 4), without a copy if possible.

    Pillow keeps four bytes for each pixel of an RGB image.
    """
    import pyarrow as pa
    import torch
    from torch.utils.dlpack import from_dlpack

    try:
        stored = pa.array(image)
    except ValueError:  # Pillow keeps an image of over 16 MiB in several pieces.
        return torch.from_numpy(np.array(image))
    values: torch.Tensor = from_dlpack(stored.flatten())
    return values.view(image.height, image.width, 4)


def _pad(pixels: Pixels, side: int, pad: str) -> Pixels:
    margins = [0 if pad == "corner" else (side - n) // 2 for n in pixels.shape[:2]]
    missing = [(first, side - n - first) for first, n in zip(margins, pixels.shape, strict=False)]
    if pad == "mirror":
        return np.pad(pixels, (*missing, (0, 0)), mode="symmetric")
    return np.pad(pixels, (*missing, (0, 0)))
