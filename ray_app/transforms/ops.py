"""Provide the image operations from which perturbations and augmentation policies are built.

They are blur, codecs, resizes and crops, noise and tone, and geometry of an image with its mask.
Random numbers come only from a generator that the caller passes. The operations equal those of the
libraries that the papers used, to the pixel. If Pillow replaces OpenCV, torchvision, or scipy, the
function's docstring or a comment mentions it.
"""

import io
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, features

Taps = npt.NDArray[np.float64]

# OpenCV's fixed kernels for small sizes without a sigma (getGaussianKernel).
_SMALL_KERNELS = {1: (1.0,), 3: (0.25, 0.5, 0.25), 5: (0.0625, 0.25, 0.375, 0.25, 0.0625),
          7: (0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125)}  # fmt: skip

# Maximum length of a side in pixels.
_MAX_SIDE = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65535}

Filter = Literal["nearest", "bilinear", "bicubic", "lanczos", "lanczos-or-bicubic"]
Size = tuple[int, int]

MAX_PIXELS = 2**26  # 192 MiB of RGB.
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Rows per band, so that the noise of a large image is never in memory as a whole.
_BAND = 256

Box = tuple[int, int, int, int]
Resampling = Image.Resampling
Change = Callable[[Image.Image], Image.Image]

# A longer strip is cropped before it is enlarged to a short side of hundreds of pixels. Otherwise a
# strip of 1 × 100,000 pixels would not fit into memory.
_MAX_ASPECT = 16

Mask = npt.NDArray[np.bool_]


def gaussian_taps(size: int, sigma: float) -> Taps:
    """Compute the weights of a Gaussian blur along one axis.

    Args:
        size: Number of weights, odd.
        sigma: Standard deviation in pixels.

    Returns:
        The weights (`size`,), which sum to 1.
    """
    taps = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    normalised: Taps = taps / taps.sum()
    return normalised


def blur(image: Image.Image, taps: Taps) -> Image.Image:
    """Blur an image by the weights `taps` along both axes of every channel.

    The result is computed in float and rounded once. Outside its border, the image is continued by
    mirroring it at its outermost pixels.
    """
    from scipy.ndimage import correlate1d

    down = correlate1d(np.asarray(image), taps, axis=0, output=np.float32, mode="mirror")
    across = correlate1d(down, taps, axis=1, mode="mirror")
    return Image.fromarray((across + np.float32(0.5)).astype(np.uint8))


def opencv_taps(size: int) -> Taps:
    """Return the weights of OpenCV's Gaussian blur with a kernel of `size` (odd) and no sigma.

    From size 9 on, OpenCV derives sigma from the size: 0.3 · ((size − 1) / 2 − 1) + 0.8. For smaller
    sizes it has fixed weights.
    """
    if size in _SMALL_KERNELS:
        return np.array(_SMALL_KERNELS[size])
    return gaussian_taps(size, 0.3 * ((size - 1) * 0.5 - 1) + 0.8)


def scipy_blur(image: Image.Image, sigma: float) -> Image.Image:
    """Apply `scipy.ndimage.gaussian_filter` to each channel as uint8.

    The authors of CNNDetection, and papers that build on it, call it in this way. The filter blurs
    along one axis and then along the other, and rounds down each time. So the image becomes up to
    two grey levels darker.
    """
    from scipy.ndimage import gaussian_filter

    pixels = np.array(image)
    for channel in range(pixels.shape[2]):
        pixels[:, :, channel] = gaussian_filter(np.ascontiguousarray(pixels[:, :, channel]), sigma)
    return Image.fromarray(pixels)


# Pillow's JPEG also replaces OpenCV's: for qualities 30 to 100 they give equal pixels (Pillow 13.0,
# OpenCV 5.0).
def jpeg(image: Image.Image, quality: int, *, swap_channels: bool = False) -> Image.Image:
    """Compress an RGB image as JPEG with halved chroma (4:2:0), and decode it again.

    An image with a side of over 65,500 pixels, the limit of JPEG, is returned unchanged.

    Args:
        image: The image.
        quality: Quality of the codec, 1 to 100.
        swap_channels: Whether to swap red and blue for the codec. This happens if RGB pixels are
            passed to OpenCV, which expects BGR: red instead of blue then loses most.
    """
    if not swap_channels:
        return _recompress(image, "JPEG", quality=quality)
    red, green, blue = image.split()
    blue, green, red = _recompress(
        Image.merge("RGB", (blue, green, red)), "JPEG", quality=quality
    ).split()
    return Image.merge("RGB", (red, green, blue))


def webp(image: Image.Image, quality: int, *, method: int = 4) -> Image.Image:
    """Compress an RGB image as lossy WebP, and decode it again.

    An image with a side of over 16,383 pixels, the limit of WebP, is returned unchanged.

    Args:
        image: The image.
        quality: Quality of the codec, 1 to 100.
        method: Effort, 0 (fastest) to 6.
    """
    return _recompress(image, "WEBP", quality=quality, method=method)


def lossless_webp(image: Image.Image) -> Image.Image:
    """Encode an RGB image as lossless WebP and decode it again. The pixels do not change."""
    return _recompress(image, "WEBP", lossless=True, method=0)


def avif(image: Image.Image, quality: int) -> Image.Image:
    """Compress an RGB image as AVIF at its second highest speed, and decode it again.

    The encoder uses one thread, so that the pixels do not depend on the number of cores. An image
    with a side of over 65,535 pixels, the limit of AVIF, is returned unchanged.
    """
    return _recompress(image, "AVIF", quality=quality, speed=9, max_threads=1)


def has_avif() -> bool:
    """Return whether this Pillow was built with AVIF."""
    return bool(features.check("avif"))


def _recompress(image: Image.Image, codec: str, **options: Any) -> Image.Image:
    if max(image.size) > _MAX_SIDE[codec]:
        return image
    encoded = io.BytesIO()
    # Pillow stores the options of `save` on the image itself. Without the copy, two threads that
    # save one image would mix their options.
    image.copy().save(encoded, codec, **options)
    with Image.open(encoded) as decoded:
        return decoded.convert("RGB")


def resize(image: Image.Image, size: Size, method: Filter) -> Image.Image:
    """Resize an image to (width, height) with a filter of Pillow.

    Every version of Pillow resizes rows before columns here; see `resize_rows_first`. If the result
    would have more than 2²⁶ pixels (`MAX_PIXELS`), the image is returned unchanged.

    Args:
        image: The image.
        size: Width and height.
        method: The filter. `lanczos-or-bicubic` is Lanczos if the width shrinks, else bicubic.
    """
    if size == image.size or size[0] * size[1] > MAX_PIXELS:
        return image
    if method == "lanczos-or-bicubic":
        method = "lanczos" if size[0] < image.width else "bicubic"
    return resize_rows_first(image, size, _FILTERS[method])


def scaled_size(size: Size, scale: float) -> Size:
    """Return width and height times `scale`, rounded half to even, and at least one pixel each."""
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def capped_size(size: Size, long_edge: int) -> Size:
    """Return the size of an image after its longer side is shrunk to at most `long_edge`.

    The aspect ratio is kept. A size that is small enough is returned unchanged.
    """
    return scaled_size(size, min(long_edge / max(size), 1.0))


def fitted_size(size: Size, screen: Size) -> Size:
    """Compute the size to which an image shrinks to fit a screen, keeping the aspect ratio.

    The screen is turned to portrait or landscape like the image.

    Args:
        size: Width and height of the image.
        screen: Width and height of the screen, in any order.

    Returns:
        Width and height. They equal `size` if the image fits already.
    """
    scale = min(max(screen) / max(size), min(screen) / min(size), 1.0)
    return scaled_size(size, scale)


def centre_crop(image: Image.Image, fraction: float) -> Image.Image:
    """Crop the centre of an image, with a given fraction of its width and of its height."""
    width, height = scaled_size(image.size, fraction)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def random_square(
    image: Image.Image, low: int, high: int, fraction: float, rng: np.random.Generator
) -> Image.Image:
    """Crop to a square with a random side at a random position.

    The maximum side is the short side of the image, or `high` if that is less. The minimum side is
    `fraction` of the maximum, or `low` if that is more. If the short side is below `low`, the side
    is the short side.

    Args:
        image: The image.
        low: Minimum side in pixels.
        high: Maximum side in pixels.
        fraction: Minimum side as a fraction of the maximum side.
        rng: Random number generator.
    """
    max_side = min(*image.size, high)
    min_side = min(max(int(max_side * fraction), low), max_side)
    side = int(rng.integers(min_side, max_side, endpoint=True))
    left, top = (int(rng.integers(0, n - side, endpoint=True)) for n in image.size)
    return image.crop((left, top, left + side, top + side))


def add_noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Add Gaussian noise to every value, rounding and clipping once.

    Args:
        image: The image.
        sigma: Standard deviation on the 0–255 scale.
        rng: Random number generator.
    """
    pixels = np.array(image)
    for start in range(0, len(pixels), _BAND):
        band = pixels[start : start + _BAND]
        noise = rng.standard_normal(band.shape, np.float32)
        band[:] = np.clip(np.rint(band + noise * np.float32(sigma)), 0, 255)
    return Image.fromarray(pixels)


def apply_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Raise pixel values, scaled to 0–1, to the power of `gamma`. A `gamma` above 1 darkens."""
    curve = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(int).tolist()
    return image.point(curve * len(image.getbands()))


def sharpen(image: Image.Image, percent: int, radius: float) -> Image.Image:
    """Apply Pillow's unsharp mask without a threshold.

    Args:
        image: The image.
        percent: Strength in percent.
        radius: Radius in pixels.
    """
    return image.filter(ImageFilter.UnsharpMask(radius=radius, percent=percent, threshold=0))


class ImageSample(NamedTuple):
    """A training image with its mask and label, as augmentation policies take and return it.

    Attributes:
        image: The RGB image.
        mask: An image of mode L and equal size, 255 for pixels that a generator altered, and 0 for
            others. None for an image without a mask.
        label: 1 for fake, 0 for real.
        finished: Whether a policy gave the image its final size. If not, the image is then resized
            and cropped as the detector's card requires.
    """

    image: Image.Image
    mask: Image.Image | None
    label: int
    finished: bool = False


# The functions below transform an image together with its mask. The geometry of the mask is the
# same, but with the nearest pixel instead of a filter, so it stays 0 or 255.
def transform_sample(
    sample: ImageSample, change: Change, change_mask: Change | None = None
) -> ImageSample:
    """Apply a function from image to image to a training image and to its mask.

    Args:
        sample: The image and its mask.
        change: Transforms the image.
        change_mask: Transforms the mask. None to use `change`.

    Returns:
        The sample with the new image and mask.
    """
    mask = sample.mask and (change_mask or change)(sample.mask)
    return sample._replace(image=change(sample.image), mask=mask)


def resize_sample(sample: ImageSample, size: Size, filter: Resampling) -> ImageSample:
    """Resize an image and its mask to (width, height), ignoring the aspect ratio.

    Args:
        sample: The image and its mask.
        size: Width and height.
        filter: Filter of Pillow for the image. The mask is resized by the nearest pixel.
    """
    return transform_sample(
        sample,
        lambda image: image.resize(size, filter),
        lambda mask: mask.resize(size, Resampling.NEAREST),
    )


def crop_sample(sample: ImageSample, box: Box) -> ImageSample:
    """Crop an image and its mask to the box (left, upper, right, lower), in pixels."""
    return transform_sample(sample, lambda image: image.crop(box))


def turn_quarters(sample: ImageSample, quarters: int) -> ImageSample:
    """Rotate an image and its mask anticlockwise by `quarters` quarter turns."""
    turns = (
        None,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_180,
        Image.Transpose.ROTATE_270,
    )
    turn = turns[quarters % 4]
    return sample if turn is None else transform_sample(sample, lambda image: image.transpose(turn))


def mirror(sample: ImageSample) -> ImageSample:
    """Swap left and right of an image and its mask."""
    return transform_sample(sample, lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def flip_vertically(sample: ImageSample) -> ImageSample:
    """Swap top and bottom of an image and its mask."""
    return transform_sample(sample, lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM))


def rotate(sample: ImageSample, degrees: float, filter: Resampling) -> ImageSample:
    """Rotate an image and its mask anticlockwise about the centre, keeping their size.

    Pixels from outside are black in the image, and 0 (unaltered) in the mask.

    Args:
        sample: The image and its mask.
        degrees: Angle in degrees.
        filter: Filter of Pillow for the image. The mask is rotated by the nearest pixel.
    """
    return transform_sample(
        sample,
        lambda image: image.rotate(degrees, filter),
        lambda mask: mask.rotate(degrees, Resampling.NEAREST),
    )


def random_crop(sample: ImageSample, side: int, rng: np.random.Generator) -> ImageSample:
    """Crop an image and its mask to `side` × `side` pixels at a random position.

    A smaller image is first extended by mirroring.

    Args:
        sample: The image and its mask.
        side: Side in pixels.
        rng: Random number generator.
    """
    if min(sample.image.size) < side:
        sample = transform_sample(sample, lambda image: _extend_by_mirroring(image, side))
    width, height = sample.image.size
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    return crop_sample(sample, (left, top, left + side, top + side))


def resize_short_side(
    sample: ImageSample, short: int, filter: Resampling, rng: np.random.Generator
) -> ImageSample:
    """Resize the shorter side of an image and its mask to `short`, the longer one in proportion.

    The new length of the longer side is rounded down, as by torchvision's Resize. A strip that is
    more than 16 times as long as wide is first cropped to a random part 16 times as long.

    Args:
        sample: The image and its mask.
        short: Shorter side in pixels.
        filter: Filter of Pillow for the image.
        rng: Random number generator.
    """
    width, height = sample.image.size
    max_length = _MAX_ASPECT * min(width, height)
    if max(width, height) > max_length:
        start = int(rng.integers(max(width, height) - max_length + 1))
        sample = crop_sample(
            sample,
            (start, 0, start + max_length, height)
            if width > height
            else (0, start, width, start + max_length),
        )
        width, height = sample.image.size
    size = (
        (short, int(short * height / width))
        if width <= height
        else (int(short * width / height), short)
    )
    return sample if size == (width, height) else resize_sample(sample, size, filter)


def crop_random_part(
    sample: ImageSample,
    area_range: tuple[float, float],
    ratio_range: tuple[float, float],
    rng: np.random.Generator,
) -> ImageSample:
    """Crop an image and its mask to a random part, as torchvision's RandomResizedCrop does.

    The part is the result of `draw_box`. If that is None, the part is the largest centred part with
    an allowed aspect ratio. The part is not resized.

    Args:
        sample: The image and its mask.
        area_range: Minimum and maximum fraction of the area.
        ratio_range: Minimum and maximum of width ÷ height.
        rng: Random number generator.
    """
    width, height = sample.image.size
    box = draw_box((width, height), area_range, ratio_range, rng)
    if box is None:
        crop_width, crop_height = (
            min(width, round(height * ratio_range[1])),
            min(height, round(width / ratio_range[0])),
        )
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        box = left, top, left + crop_width, top + crop_height
    return crop_sample(sample, box)


def draw_box(
    size: Size,
    area_range: tuple[float, float],
    ratio_range: tuple[float, float],
    rng: np.random.Generator,
) -> Box | None:
    """Draw the box of a random crop, with a random area and aspect ratio.

    Args:
        size: Width and height of the image.
        area_range: Minimum and maximum fraction of the area.
        ratio_range: Minimum and maximum of width ÷ height, which is drawn on a log scale.
        rng: Random number generator.

    Returns:
        The box as (left, upper, right, lower) in pixels. None if ten drawn boxes exceed the image.
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*area_range)
        ratio = math.exp(rng.uniform(math.log(ratio_range[0]), math.log(ratio_range[1])))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = (
                int(rng.integers(width - box_width + 1)),
                int(rng.integers(height - box_height + 1)),
            )
            return left, top, left + box_width, top + box_height
    return None


def _extend_by_mirroring(image: Image.Image, side: int) -> Image.Image:
    pixels = np.asarray(image)
    missing = [max(side - n, 0) for n in pixels.shape[:2]]
    pad = [(n // 2, n - n // 2) for n in missing] + [(0, 0)] * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, pad, mode="symmetric"))


def edge_map(mask: Mask, width: int = 7) -> Mask:
    """Return which pixels of a mask are near its outline, as booleans (H, W).

    A band along the outline is marked: the pixels that are in both the mask and its inverse after
    each is dilated by a cross of `width` pixels. The border of the array is not an outline. So a
    mask that touches the border has no edge along it, and an empty or full mask has no edge.
    MaskCLIP's reference code rejects a side that is not longer than `width`. This function accepts
    such a side.

    Args:
        mask: The mask (H, W).
        width: Size of the dilating cross in pixels, odd.

    Raises:
        ValueError: The width is even or not positive.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(
            f"width (of the edge of a mask, in pixels) must be odd and positive, got {width}"
        )
    return _dilate(mask, width // 2) & _dilate(~mask, width // 2)


def _dilate(mask: Mask, reach: int) -> Mask:
    result = mask.copy()
    for step in range(1, reach + 1):
        result[step:] |= mask[:-step]
        result[:-step] |= mask[step:]
        result[:, step:] |= mask[:, :-step]
        result[:, :-step] |= mask[:, step:]
    return result


def resize_rows_first(
    image: Image.Image,
    size: tuple[int, int],
    filter: Image.Resampling,
    part: tuple[float, float] | None = None,
) -> Image.Image:
    """Resize an image, or its upper left part, along the rows first and then along the columns.

    Pillow before 13 always resizes in this order, and rounds in between. Pillow 13 chooses the
    order that is less work, which differs for tall images whose aspect ratio changes. Two calls
    keep the order of the Pillow versions with which the detectors' authors measured. The
    intermediate image is `size[0]` wide and as high as the image.

    Args:
        image: The image.
        size: Width and height of the result.
        filter: Filter of Pillow.
        part: Width and height of the upper left part, which may be fractions of pixels. None for
            the whole image.
    """
    width, height = part or image.size
    across = image.resize((size[0], image.height), filter, box=(0, 0, width, image.height))
    return across.resize(size, filter, box=(0, 0, size[0], height))
