"""How one detector wants its pixels: resize, crop, and the constants of the normalisation.

Knows PIL images and uint8 arrays. Imports torch only when an image is resized by it. Knows nothing about networks or cards.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, model_validator

from ray_app.config import Frozen
from ray_app.errors import InputError, Status

Pixels = npt.NDArray[np.uint8]
ResizeMode = Literal["exact", "fast"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# A strip one pixel high, brought to a short side of 440, would be thousands of times its own size. 64 Mi pixels are 192 MiB.
MAX_RESIZED_PIXELS = 2**26

_PILLOW_FILTER = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Resize(Frozen):
    """`squash` to size × size, bring the `short_side` to size and keep the aspect, or `none`."""

    mode: Literal["none", "squash", "short_side"] = "none"
    size: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _sized(self) -> "Resize":
        if (self.size is None) != (self.mode == "none"):
            raise ValueError(f"mode {self.mode} {'needs' if self.size is None else 'takes no'} size")
        return self


class Preprocessing(Frozen):
    """What the authors do to an image before their network sees it. Hashable: equal values make equal tensors.

    `resampler` is the library whose resize the authors used: Pillow's, or torchvision's on uint8 tensors (the same kernel as
    `torch.nn.functional.interpolate` with antialias). `pad` fills an image smaller than the crop: torchvision's black, or its own mirror.
    """

    resize: Resize = Resize()
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    resampler: Literal["pillow", "torch"] = "pillow"
    center_crop: int | None = Field(default=None, ge=1)
    pad: Literal["black", "mirror"] = "black"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def shape(self) -> tuple[int, int] | None:
        """(height, width) of every prepared image; None where the image's own size is kept."""
        side = self.center_crop or (self.resize.size if self.resize.mode == "squash" else None)
        return (side, side) if side else None

    def prepare(self, image: Image.Image, resize: ResizeMode = "exact") -> Pixels:
        """Bring one RGB image to the detector's geometry: (height, width, 3) uint8, C-contiguous, writable.

        `exact` resizes with the authors' library. `fast` takes torch where that is at most one grey level away: for bilinear filters.
        With bicubic ones its 16-bit weights are two away in one value of a million, so there `fast` is `exact`.
        Raises InputError for an image so long and thin that resizing it would not fit into memory.
        """
        target = self._resized(image.width, image.height)
        if target == image.size:
            return self._crop(image)
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
            raise InputError(Status.IMAGE_TOO_LARGE, f"{width} × {height}: a short side of {size} px would make it {size} × {longer}")
        return (size, longer) if width <= height else (longer, size)

    def _crop(self, image: "Image.Image | Pixels") -> Pixels:
        if self.center_crop is None:
            return _contiguous(image)
        side = self.center_crop
        width, height = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
        # Python's round, half to even, is torchvision's own.
        left, top = round(max(width - side, 0) / 2), round(max(height - side, 0) / 2)
        right, bottom = min(left + side, width), min(top + side, height)
        if isinstance(image, Image.Image):
            return _padded(_contiguous(image.crop((left, top, right, bottom))), side, self.pad)
        return _padded(_contiguous(image[top:bottom, left:right]), side, self.pad)


def _pillow_resize(image: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    # Rows first, then columns, as every Pillow before 13 did in one call; 13 takes the cheaper order, which rounds 3 % of the pixels of
    # some shapes differently. In two calls the order, and so the score, is the authors' under any version.
    across = image.resize((size[0], image.height), _PILLOW_FILTER[mode])
    return across.resize(size, _PILLOW_FILTER[mode])


def _torch_resize(image: Image.Image, size: tuple[int, int], mode: str) -> Pixels:
    import torch

    # The view is channels-last, for which torch has a vector kernel: several times faster than Pillow or a (3, H, W) copy.
    batch = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    resized = torch.nn.functional.interpolate(batch, size=(size[1], size[0]), mode=mode, antialias=True, align_corners=False)
    pixels: Pixels = resized[0].permute(1, 2, 0).numpy()
    return pixels


def _contiguous(image: "Image.Image | Pixels") -> Pixels:
    return np.array(image) if isinstance(image, Image.Image) else np.ascontiguousarray(image)


def _padded(pixels: Pixels, side: int, pad: str) -> Pixels:
    height, width = pixels.shape[:2]
    if height == side and width == side:
        return pixels
    missing = [((side - n) // 2, (side - n + 1) // 2) for n in (height, width)]
    if pad == "mirror":
        return np.pad(pixels, (*missing, (0, 0)), mode="symmetric")
    return np.pad(pixels, (*missing, (0, 0)))
