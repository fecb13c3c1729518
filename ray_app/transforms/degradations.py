"""Define steps of perturbations that have one parameter, `strength`.

A step is a function that changes an image. The steps are blurs, changes of colour and tone, noises,
compression, and crops. Robustness suites apply steps of these names at several strengths, called
levels. The formulas are from papers and from the published levels of ARNIQA (Agnolucci et al. 2024,
arXiv 2310.14918), on which NTIRE 2026 builds (arXiv 2604.11487).
"""

import io
import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from ray_app.transforms import ops
from ray_app.transforms.registry import Rng, register_step

Array = npt.NDArray[np.float32]
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _to_values(image: Image.Image) -> Array:
    """Return the pixels (H, W, 3) as values of 0–1."""
    return np.asarray(image, np.float32) / np.float32(255)


def _to_image(values: npt.NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values * np.float32(255)), 0, 255).astype(np.uint8))


def _filter(image: Image.Image, kernel: npt.NDArray[np.float64]) -> Image.Image:
    """Apply a square kernel of odd sides, which sums to 1, to every channel.

    The outermost pixels are repeated outside. The computation uses Fourier transforms.
    """
    from scipy import fft

    reach = kernel.shape[0] // 2
    shape = [fft.next_fast_len(side + 2 * reach, real=True) for side in (image.height, image.width)]
    response = fft.rfft2(kernel.astype(np.float32), shape)
    inside = slice(2 * reach, 2 * reach + image.height), slice(2 * reach, 2 * reach + image.width)
    channels = [
        fft.irfft2(
            fft.rfft2(np.pad(np.asarray(channel, np.float32), reach, mode="edge"), shape)
            * response,
            shape,
        )[inside]
        for channel in image.split()
    ]
    return _to_image(np.stack(channels, axis=-1) / np.float32(255))


@register_step("lens-blur")
def blur_by_lens(
    image: Image.Image,
    strength: Annotated[float, Field(ge=0.5, le=64, description="radius of the disk in pixels")],
) -> Image.Image:
    """Blur an image like a lens that is out of focus, by the mean over a disk of pixels.

    A pixel at the rim has as much weight as the fraction of it that the disk covers.
    """
    reach, fine = math.ceil(strength), 9
    coordinates = (np.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    inside = np.add.outer(coordinates**2, coordinates**2) <= strength**2
    kernel = inside.reshape(2 * reach + 1, fine, 2 * reach + 1, fine).mean(axis=(1, 3))
    return _filter(image, kernel / kernel.sum())


@register_step("motion-blur")
def blur_by_motion(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=1, le=64, description="length of the line in pixels")],
) -> Image.Image:
    """Blur an image like a moving camera, by the mean along a line in a random direction."""
    angle, half = rng.uniform(0, math.pi), (strength - 1) / 2
    reach = math.ceil(half) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(float)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    distance = np.hypot(np.maximum(np.abs(along) - half, 0), across)
    kernel = np.clip(1 - distance, 0, 1)
    return _filter(image, kernel / kernel.sum())


@register_step("glass-blur")
def blur_by_glass(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0.5, le=16, description="reach in pixels")],
) -> Image.Image:
    """Blur an image as through frosted glass (Hendrycks and Dietterich 2019).

    The image is blurred, its pixels are displaced twice, and it is blurred again. A displaced pixel
    takes the value of a random pixel up to `strength` pixels (rounded up) away along each axis.
    """
    taps = ops.gaussian_taps(2 * math.ceil(strength) + 1, 0.4 + 0.2 * strength)
    pixels, max_offset = np.asarray(ops.blur(image, taps)), math.ceil(strength)
    for _ in range(2):
        shape = pixels.shape[:2]
        rows, columns = (
            rng.integers(-max_offset, max_offset, shape, np.int32, endpoint=True) for _ in range(2)
        )
        rows += np.arange(shape[0], dtype=np.int32)[:, None]
        columns += np.arange(shape[1], dtype=np.int32)
        pixels = pixels[rows.clip(0, shape[0] - 1), columns.clip(0, shape[1] - 1)]
    return ops.blur(Image.fromarray(pixels), taps)


@register_step("pixel-jitter")
def jitter_pixels(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0.01, le=8, description="standard deviation in pixels")],
) -> Image.Image:
    """Move every pixel by a random offset, five times in a row.

    Offsets are normally distributed with the standard deviation `strength`, in pixels.
    """
    from scipy.ndimage import map_coordinates

    values = np.asarray(image, np.float32)
    height, width = values.shape[:2]
    for _ in range(5):
        positions = rng.standard_normal((2, height, width), np.float32) * np.float32(strength)
        positions[0] += np.arange(height, dtype=np.float32)[:, None]
        positions[1] += np.arange(width, dtype=np.float32)
        values = np.stack(
            [map_coordinates(values[..., c], positions, order=1, mode="nearest") for c in range(3)],
            axis=-1,
        )
    return _to_image(values / np.float32(255))


@register_step("color-shift")
def shift_colours(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=1, le=64, description="distance in pixels")],
) -> Image.Image:
    """Shift green in a random direction at edges, as a lens with chromatic aberration does."""
    from scipy.ndimage import gaussian_filter, sobel

    values = np.asarray(image, np.float32)
    grey = values @ _LUMA
    edges = gaussian_filter(np.hypot(sobel(grey, 0), sobel(grey, 1)), 4)
    low, high = np.percentile(edges, (1, 99))
    weight = np.clip((edges - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)
    angle = rng.uniform(0, math.pi / 2)
    offsets = [round(strength * part) for part in (math.sin(angle), math.cos(angle))]
    green = np.pad(values[..., 1], [(offsets[0], 0), (offsets[1], 0)], mode="edge")[
        : values.shape[0], : values.shape[1]
    ]
    values = values.copy()
    values[..., 1] += (green - values[..., 1]) * weight
    return _to_image(values / np.float32(255))


@register_step("saturation")
def saturate(
    image: Image.Image,
    strength: Annotated[
        float,
        Field(ge=-2, le=4, description="factor; 0 is grey, below 0 are the complementary colours"),
    ],
) -> Image.Image:
    """Multiply the saturation of all colours in HSV by `strength`."""
    values = _to_values(image)
    top = values.max(axis=-1, keepdims=True)
    return _to_image(top - np.float32(strength) * (top - values))


@register_step("color-jitter")
def jitter_colours(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0, le=1, description="factors are within 1 ± strength")],
) -> Image.Image:
    """Multiply brightness, contrast, and saturation, each by a random factor."""
    light, contrast, colour = (1 + rng.uniform(-1, 1, 3) * strength).astype(np.float32)
    values = _to_values(image) * light
    values = (values - values.mean()) * contrast + values.mean()
    grey = (values @ _LUMA)[..., None]
    return _to_image(grey + (values - grey) * colour)


@register_step("color-cast")
def cast_colour(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0, le=1, description="fraction of the light")],
) -> Image.Image:
    """Tint the image: multiply red, green, and blue by different random factors.

    The factors are 1 + `strength` times the components of a random unit vector.
    """
    direction = rng.standard_normal(3)
    return _to_image(
        _to_values(image)
        * (1 + strength * direction / np.linalg.norm(direction)).astype(np.float32)
    )


@register_step("channel-shift")
def shift_channels(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0, le=255, description="largest shift, of 255")],
) -> Image.Image:
    """Add a random value, from −`strength` to `strength`, to all pixels of each colour channel."""
    return _to_image(
        _to_values(image) + (rng.uniform(-1, 1, 3) * strength / 255).astype(np.float32)
    )


@register_step("quantization")
def quantise(
    image: Image.Image,
    strength: Annotated[float, Field(ge=2, le=256, description="steps per channel")],
) -> Image.Image:
    """Reduce each colour channel to `strength` equally spaced values. Black and white stay."""
    steps = round(strength)
    table = np.arange(256) * steps // 256 * 255 / (steps - 1)
    return image.point(np.rint(table).astype(int).tolist() * 3)


@register_step("jpeg2000")
def compress_jpeg2000(
    image: Image.Image,
    strength: Annotated[
        float, Field(ge=1, le=1000, description="compression ratio: 40 for 40 to 1")
    ],
) -> Image.Image:
    """Compress the image as JPEG 2000 at the ratio `strength`, and decode it again."""
    encoded = io.BytesIO()
    resolutions = min(8, max(int(math.log2(min(image.size))), 1))
    image.copy().save(
        encoded,
        "JPEG2000",
        quality_mode="rates",
        quality_layers=[strength],
        num_resolutions=resolutions,
    )
    with Image.open(encoded) as decoded:
        return decoded.convert("RGB")


@register_step("impulse-noise")
def add_impulse_noise(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0, le=1, description="fraction of the values")],
) -> Image.Image:
    """Set a random fraction of the channel values to black or white, with equal probability."""
    pixels = np.array(image)
    noise = rng.random(pixels.shape, np.float32)
    pixels[noise < strength / 2] = 0
    pixels[noise > 1 - strength / 2] = 255
    return Image.fromarray(pixels)


@register_step("multiplicative-noise")
def add_multiplicative_noise(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0, le=4, description="variance of the factor")],
) -> Image.Image:
    """Multiply every value by 1 + Gaussian noise, given by its variance."""
    return add_speckle_noise(image, rng, math.sqrt(strength))


@register_step("speckle-noise")
def add_speckle_noise(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0, le=2, description="standard deviation of the factor")],
) -> Image.Image:
    """Multiply every value by 1 + Gaussian noise, given by its standard deviation."""
    values = _to_values(image)
    return _to_image(
        values * (1 + np.float32(strength) * rng.standard_normal(values.shape, np.float32))
    )


@register_step("shot-noise")
def add_shot_noise(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=1, le=10000, description="photons of white")],
) -> Image.Image:
    """Add the Poisson noise of a camera's sensor, in which white is `strength` photons."""
    return _to_image((rng.poisson(_to_values(image) * strength) / strength).astype(np.float32))


@register_step("iso-noise")
def add_iso_noise(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0, le=1, description="fraction of the light")],
) -> Image.Image:
    """Add the noise of a camera at high ISO, which grows with the square root of the light.

    Colour noise is added with half the strength, in blocks of 2 × 2 pixels.
    """
    values = _to_values(image)
    height, width = values.shape[:2]
    grey = np.sqrt(values @ _LUMA)
    light = rng.standard_normal((height, width), np.float32) * grey
    coarse = rng.standard_normal(((height + 1) // 2, (width + 1) // 2, 3), np.float32)
    colour = coarse.repeat(2, 0).repeat(2, 1)[:height, :width] / 2
    return _to_image(values + np.float32(strength) * (light[..., None] + colour * grey[..., None]))


@register_step("brightness")
def brighten(
    image: Image.Image,
    strength: Annotated[float, Field(ge=0, le=2, description="rise of the middle, times two")],
) -> Image.Image:
    """Brighten by a tone curve: the parabola through (0, 0), (½, ½ + `strength` / 2), and (1, 1).

    The result is clipped.
    """
    return _bend_tones(image, strength)


@register_step("darkness")
def darken(
    image: Image.Image,
    strength: Annotated[float, Field(ge=0, le=1, description="fall of the middle, times two")],
) -> Image.Image:
    """Darken by a tone curve: the parabola through (0, 0), (½, ½ − `strength` / 2), and (1, 1).

    The result is clipped.
    """
    return _bend_tones(image, -strength)


def _bend_tones(image: Image.Image, rise: float) -> Image.Image:
    x = np.arange(256) / 255
    return _apply_curve(image, x + 2 * rise * x * (1 - x))


@register_step("contrast")
def change_contrast(
    image: Image.Image,
    strength: Annotated[
        float, Field(ge=-1, le=1, description="slope; 0 is a little steeper than the image")
    ],
) -> Image.Image:
    """Raise or lower the contrast by a smooth tone curve, a cubic spline.

    The curve maps 0.3 to 0.25 − `strength` / 4 and 0.7 to 0.75 + `strength` / 4, and keeps 0, ½,
    and 1.
    """
    from scipy.interpolate import CubicSpline

    low, high = 0.25 - strength / 4, 0.75 + strength / 4
    return _apply_curve(
        image, CubicSpline([0, 0.3, 0.5, 0.7, 1], [0, low, 0.5, high, 1])(np.arange(256) / 255)
    )


@register_step("tone-curve")
def bend_tones(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0, le=1, description="standard deviation of the handles")],
) -> Image.Image:
    """Change brightness by a random smooth tone curve, a cubic Bézier curve from black to white.

    The heights of its two control points are ¼ and ¾ plus Gaussian noise with the standard
    deviation `strength`.
    """
    low, high = np.clip([0.25, 0.75] + rng.standard_normal(2) * strength, 0, 1)
    t = np.arange(256) / 255
    return _apply_curve(image, 3 * (1 - t) ** 2 * t * low + 3 * (1 - t) * t**2 * high + t**3)


def _apply_curve(image: Image.Image, curve: npt.NDArray[np.float64]) -> Image.Image:
    return image.point(np.rint(255 * np.clip(curve, 0, 1)).astype(int).tolist() * 3)


@register_step("clahe")
def equalise(
    image: Image.Image,
    strength: Annotated[
        float, Field(ge=1, le=64, description="limit of a bin, in means of the histogram")
    ],
) -> Image.Image:
    """Raise local contrast by CLAHE (Zuiderveld 1994) on 8 × 8 tiles of the luma.

    The change of the luma is added to red, green, and blue. `strength` limits the contrast: a bin
    of a tile's histogram has up to `strength` times the mean count.
    """
    grey = np.asarray(image.convert("L"))
    height, width = grey.shape
    tiles = [np.array_split(np.arange(side), min(8, side)) for side in grey.shape]
    curves = np.array(
        [
            [_equalise_tile(grey[np.ix_(rows, columns)], strength) for columns in tiles[1]]
            for rows in tiles[0]
        ],
        np.float32,
    )
    (up, down, v), (left, right, u) = (
        _interpolate_tiles(parts, side) for parts, side in zip(tiles, (height, width), strict=True)
    )
    equalised = np.zeros(grey.shape, np.float32)
    for rows, weight_down in ((up, 1 - v), (down, v)):
        for columns, weight_across in ((left, 1 - u), (right, u)):
            equalised += weight_down[:, None] * weight_across * curves[rows[:, None], columns, grey]
    return _to_image(_to_values(image) + ((equalised - grey) / np.float32(255))[..., None])


def _equalise_tile(tile: npt.NDArray[np.uint8], limit: float) -> npt.NDArray[np.float64]:
    counts = np.bincount(tile.ravel(), minlength=256).astype(float)
    max_count = limit * counts.mean()
    excess = np.maximum(counts - max_count, 0).sum()
    curve: npt.NDArray[np.float64] = (
        255 * np.cumsum(np.minimum(counts, max_count) + excess / 256) / counts.sum()
    )
    return curve


def _interpolate_tiles(
    parts: list[npt.NDArray[np.intp]], side: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Array]:
    """Return the tiles before and after each position, and the weight of the latter.

    Distances are measured between the centres of the tiles.
    """
    centres = np.array([part.mean() for part in parts])
    position = np.interp(np.arange(side), centres, np.arange(len(parts)))
    first = np.floor(position).astype(np.intp)
    return first, np.minimum(first + 1, len(parts) - 1), (position - first).astype(np.float32)


@register_step("pixelation")
def pixelate(
    image: Image.Image,
    strength: Annotated[
        float, Field(ge=0, le=0.9, description="sides shrink to 0.95 − strength^0.6")
    ],
) -> Image.Image:
    """Pixelate the image: shrink it and enlarge it again, both by the nearest pixel.

    The sides shrink to 0.95 − `strength`^0.6 of their length.
    """
    small = ops.scaled_size(image.size, 0.95 - strength**0.6)
    return ops.resize(ops.resize(image, small, "nearest"), image.size, "nearest")


@register_step("moire")
def add_moire(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0, le=1, description="fraction of the light")],
) -> Image.Image:
    """Add a moiré pattern: darken by two interfering gratings, one of which is bent.

    The gratings have periods of two to three pixels. Their bend differs between the channels.
    """
    values = _to_values(image)
    height, width = values.shape[:2]
    y, x = (np.arange(side, dtype=np.float32) / max(height, width) for side in (height, width))
    period, angle, bend = rng.uniform(2.2, 3.2), rng.uniform(0, math.pi), rng.uniform(0.5, 2, 2)
    warp = np.add.outer(
        np.sin(y * np.float32(math.tau * bend[0])), np.cos(x * np.float32(math.tau * bend[1]))
    ).astype(np.float32)
    along = np.add.outer(y * np.float32(math.sin(angle)), x * np.float32(math.cos(angle))) * max(
        height, width
    )
    for channel in range(3):
        first = np.cos(math.tau * along / period)
        second = np.cos(math.tau * (along * 1.06 + warp * (4 + channel)) / period)
        values[..., channel] *= 1 - np.float32(strength) * (0.5 - 0.5 * first * second)
    return _to_image(values)


@register_step("watermark")
def add_watermark(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0, le=32, description="largest change, of 255")],
) -> Image.Image:
    """Add an invisible watermark by spread spectrum (Cox et al. 1997).

    The watermark is a random 8 × 8 pattern of middle frequencies, with a random sign per block of 8
    × 8 pixels.
    """
    from scipy.fft import idctn

    order = np.add.outer(np.arange(8), np.arange(8))
    pattern = idctn(
        np.where((order >= 3) & (order <= 6), rng.standard_normal((8, 8)), 0), norm="ortho"
    )
    pattern = (pattern / np.abs(pattern).max()).astype(np.float32)
    height, width = image.height, image.width
    signs = rng.choice(np.array([-1, 1], np.float32), ((height + 7) // 8, (width + 7) // 8))
    mark = np.kron(signs, pattern)[:height, :width]
    return _to_image(_to_values(image) + mark[..., None] * np.float32(strength / 255))


@register_step("random-crop", keeps_place=False)
def crop_anywhere(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0.05, le=1, description="fraction of both sides")],
) -> Image.Image:
    """Crop to a part at a random position, with `strength` of the width and of the height."""
    width, height = ops.scaled_size(image.size, strength)
    left, top = (
        int(rng.integers(image.width - width + 1)),
        int(rng.integers(image.height - height + 1)),
    )
    return image.crop((left, top, left + width, top + height))


@register_step("random-aspect-crop", keeps_place=False)
def crop_another_shape(
    image: Image.Image,
    rng: Rng,
    strength: Annotated[float, Field(ge=0.05, le=1, description="fraction of the area")],
) -> Image.Image:
    """Crop to a part at a random position, with another aspect ratio than the image.

    Width ÷ height of the part is 3/4 to 4/3 times that of the image, at random. `strength` is the
    fraction of the area.
    """
    shape = math.sqrt(math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3))))
    width = min(max(round(image.width * math.sqrt(strength) * shape), 1), image.width)
    height = min(max(round(image.height * math.sqrt(strength) / shape), 1), image.height)
    left, top = (
        int(rng.integers(image.width - width + 1)),
        int(rng.integers(image.height - height + 1)),
    )
    return image.crop((left, top, left + width, top + height))
