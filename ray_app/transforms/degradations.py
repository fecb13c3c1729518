"""Degradations of one strength each (`DEGRADATIONS`): blurs, colours, noises and tones as
robustness suites name them.

Formulas, written from papers and from the facts of ARNIQA's published levels (Agnolucci et al.
2024, arXiv 2310.14918), on which NTIRE 2026 builds (arXiv 2604.11487). All take RGB of any size, a
strength and a generator of random numbers, and give RGB of the same size.
"""

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_app.transforms import ops

Array = npt.NDArray[np.float32]
Rng = np.random.Generator
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Degradation(NamedTuple):
    """`apply` with the range its strength is from, and what the strength is."""

    apply: Callable[[Image.Image, float, Rng], Image.Image]
    low: float
    high: float
    what: str


def _values(image: Image.Image) -> Array:
    """(H, W, 3), 0–1."""
    return np.asarray(image, np.float32) / np.float32(255)


def _image(values: npt.NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values * np.float32(255)), 0, 255).astype(np.uint8))


def _filtered(image: Image.Image, kernel: npt.NDArray[np.float64]) -> Image.Image:
    """Every channel under a square kernel of odd sides, which sums to 1; outside, the outermost
    pixels go on. By Fourier transforms.
    """
    from scipy import fft

    reach = kernel.shape[0] // 2
    shape = [fft.next_fast_len(side + 2 * reach, real=True) for side in (image.height, image.width)]
    response = fft.rfft2(kernel.astype(np.float32), shape)
    inside = slice(2 * reach, 2 * reach + image.height), slice(2 * reach, 2 * reach + image.width)
    channels = [
        fft.irfft2(
            fft.rfft2(np.pad(np.asarray(one, np.float32), reach, mode="edge"), shape) * response,
            shape,
        )[inside]
        for one in image.split()
    ]
    return _image(np.stack(channels, axis=-1) / np.float32(255))


def lens_blur(image: Image.Image, radius: float, rng: Rng) -> Image.Image:
    """Out of focus: the mean over a disk of `radius` pixels, its rim by the share of each pixel
    that it covers.
    """
    reach, fine = math.ceil(radius), 9
    place = (np.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    inside = np.add.outer(place**2, place**2) <= radius**2
    kernel = inside.reshape(2 * reach + 1, fine, 2 * reach + 1, fine).mean(axis=(1, 3))
    return _filtered(image, kernel / kernel.sum())


def motion_blur(image: Image.Image, length: float, rng: Rng) -> Image.Image:
    """The mean along a line of `length` pixels in a drawn direction."""
    angle, half = rng.uniform(0, math.pi), (length - 1) / 2
    reach = math.ceil(half) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(float)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    away = np.hypot(np.maximum(np.abs(along) - half, 0), across)
    kernel = np.clip(1 - away, 0, 1)
    return _filtered(image, kernel / kernel.sum())


def glass_blur(image: Image.Image, reach: float, rng: Rng) -> Image.Image:
    """Through frosted glass, after Hendrycks and Dietterich 2019: blurred, every pixel from up to
    `reach` pixels away, blurred.
    """
    soft = ops.gaussian_taps(2 * math.ceil(reach) + 1, 0.4 + 0.2 * reach)
    pixels, most = np.asarray(ops.blurred(image, soft)), math.ceil(reach)
    for _ in range(2):
        shape = pixels.shape[:2]
        rows, columns = (
            rng.integers(-most, most, shape, np.int32, endpoint=True) for _ in range(2)
        )
        rows += np.arange(shape[0], dtype=np.int32)[:, None]
        columns += np.arange(shape[1], dtype=np.int32)
        pixels = pixels[rows.clip(0, shape[0] - 1), columns.clip(0, shape[1] - 1)]
    return ops.blurred(Image.fromarray(pixels), soft)


def pixel_jitter(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """Five times, every pixel from a place that is off by a normal deviate of `amount` pixels each
    way, bilinear.
    """
    from scipy.ndimage import map_coordinates

    values = np.asarray(image, np.float32)
    height, width = values.shape[:2]
    for _ in range(5):
        places = rng.standard_normal((2, height, width), np.float32) * np.float32(amount)
        places[0] += np.arange(height, dtype=np.float32)[:, None]
        places[1] += np.arange(width, dtype=np.float32)
        values = np.stack(
            [map_coordinates(values[..., c], places, order=1, mode="nearest") for c in range(3)],
            axis=-1,
        )
    return _image(values / np.float32(255))


def color_shift(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """Green moved by `amount` pixels in a drawn direction where there are edges, as a lens with
    chromatic aberration does.
    """
    from scipy.ndimage import gaussian_filter, sobel

    values = np.asarray(image, np.float32)
    grey = values @ _LUMA
    edges = gaussian_filter(np.hypot(sobel(grey, 0), sobel(grey, 1)), 4)
    low, high = np.percentile(edges, (1, 99))
    share = np.clip((edges - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)
    angle = rng.uniform(0, math.pi / 2)
    moved = [round(amount * part) for part in (math.sin(angle), math.cos(angle))]
    green = np.pad(values[..., 1], [(moved[0], 0), (moved[1], 0)], mode="edge")[
        : values.shape[0], : values.shape[1]
    ]
    values = values.copy()
    values[..., 1] += (green - values[..., 1]) * share
    return _image(values / np.float32(255))


def saturated(image: Image.Image, factor: float, rng: Rng) -> Image.Image:
    """HSV's saturation times `factor`: 0 is grey, below 0 the complementary colours."""
    values = _values(image)
    top = values.max(axis=-1, keepdims=True)
    return _image(top - np.float32(factor) * (top - values))


def color_jitter(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """Brightness, contrast and saturation each times a factor drawn within 1 ± `amount`."""
    light, contrast, colour = (1 + rng.uniform(-1, 1, 3) * amount).astype(np.float32)
    values = _values(image) * light
    values = (values - values.mean()) * contrast + values.mean()
    grey = (values @ _LUMA)[..., None]
    return _image(grey + (values - grey) * colour)


def color_cast(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """The channels times 1 + `amount` of a drawn direction: light of another colour."""
    way = rng.standard_normal(3)
    return _image(_values(image) * (1 + amount * way / np.linalg.norm(way)).astype(np.float32))


def channel_shift(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """A value drawn within ± `amount` of 255 added to each channel."""
    return _image(_values(image) + (rng.uniform(-1, 1, 3) * amount / 255).astype(np.float32))


def quantized(image: Image.Image, levels: float, rng: Rng) -> Image.Image:
    """`levels` equal steps per channel instead of 256, black and white kept."""
    steps = round(levels)
    table = np.arange(256) * steps // 256 * 255 / (steps - 1)
    return image.point(np.rint(table).astype(int).tolist() * 3)


def jpeg2000(image: Image.Image, ratio: float, rng: Rng) -> Image.Image:
    """Through JPEG 2000 at a compression of `ratio` to 1."""
    encoded = io.BytesIO()
    resolutions = min(8, max(int(math.log2(min(image.size))), 1))
    image.copy().save(
        encoded,
        "JPEG2000",
        quality_mode="rates",
        quality_layers=[ratio],
        num_resolutions=resolutions,
    )
    with Image.open(encoded) as decoded:
        return decoded.convert("RGB")


def impulse_noise(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    """A `share` of the values black or white, half of each."""
    pixels = np.array(image)
    drawn = rng.random(pixels.shape, np.float32)
    pixels[drawn < share / 2] = 0
    pixels[drawn > 1 - share / 2] = 255
    return Image.fromarray(pixels)


def multiplicative_noise(image: Image.Image, variance: float, rng: Rng) -> Image.Image:
    """Every value times 1 + a normal deviate of `variance`."""
    return speckled(image, math.sqrt(variance), rng)


def speckled(image: Image.Image, sigma: float, rng: Rng) -> Image.Image:
    """Every value times 1 + a normal deviate of standard deviation `sigma`."""
    values = _values(image)
    return _image(values * (1 + np.float32(sigma) * rng.standard_normal(values.shape, np.float32)))


def shot_noise(image: Image.Image, photons: float, rng: Rng) -> Image.Image:
    """Poisson noise of a sensor to which white is `photons`."""
    return _image((rng.poisson(_values(image) * photons) / photons).astype(np.float32))


def iso_noise(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """A camera at high ISO: noise of `amount` that grows with the root of the light, and half as
    much, over two pixels, in colour.
    """
    values = _values(image)
    height, width = values.shape[:2]
    grey = np.sqrt(values @ _LUMA)
    light = rng.standard_normal((height, width), np.float32) * grey
    coarse = rng.standard_normal(((height + 1) // 2, (width + 1) // 2, 3), np.float32)
    colour = coarse.repeat(2, 0).repeat(2, 1)[:height, :width] / 2
    return _image(values + np.float32(amount) * (light[..., None] + colour * grey[..., None]))


def brightened(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """By the parabola through (0, 0), (½, ½ + `amount` / 2) and (1, 1), clipped; below 0 it
    darkens.
    """
    x = np.arange(256) / 255
    return _toned(image, x + 2 * amount * x * (1 - x))


def darkened(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """The same the other way."""
    return brightened(image, -amount, rng)


def contrasted(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """By the cubic spline that takes 0.3 to 0.25 − `amount` / 4 and 0.7 to 0.75 + `amount` / 4, and
    keeps 0, ½ and 1.
    """
    from scipy.interpolate import CubicSpline

    low, high = 0.25 - amount / 4, 0.75 + amount / 4
    return _toned(
        image, CubicSpline([0, 0.3, 0.5, 0.7, 1], [0, low, 0.5, high, 1])(np.arange(256) / 255)
    )


def tone_curve(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """By a cubic Bézier curve from black to white, its two handles' heights ¼ and ¾ plus deviates
    of `amount`.
    """
    low, high = np.clip([0.25, 0.75] + rng.standard_normal(2) * amount, 0, 1)
    t = np.arange(256) / 255
    return _toned(image, 3 * (1 - t) ** 2 * t * low + 3 * (1 - t) * t**2 * high + t**3)


def _toned(image: Image.Image, curve: npt.NDArray[np.float64]) -> Image.Image:
    return image.point(np.rint(255 * np.clip(curve, 0, 1)).astype(int).tolist() * 3)


def equalized(image: Image.Image, limit: float, rng: Rng) -> Image.Image:
    """CLAHE (Zuiderveld 1994) of the luma: 8 × 8 tiles, no bin of a histogram above `limit` times
    its mean; colours move along.
    """
    grey = np.asarray(image.convert("L"))
    height, width = grey.shape
    tiles = [np.array_split(np.arange(side), min(8, side)) for side in grey.shape]
    curves = np.array(
        [
            [_equalizing(grey[np.ix_(rows, columns)], limit) for columns in tiles[1]]
            for rows in tiles[0]
        ],
        np.float32,
    )
    (up, down, v), (left, right, u) = (
        _between(parts, side) for parts, side in zip(tiles, (height, width), strict=True)
    )
    found = np.zeros(grey.shape, np.float32)
    for rows, share_down in ((up, 1 - v), (down, v)):
        for columns, share_across in ((left, 1 - u), (right, u)):
            found += share_down[:, None] * share_across * curves[rows[:, None], columns, grey]
    return _image(_values(image) + ((found - grey) / np.float32(255))[..., None])


def _equalizing(tile: npt.NDArray[np.uint8], limit: float) -> npt.NDArray[np.float64]:
    counts = np.bincount(tile.ravel(), minlength=256).astype(float)
    most = limit * counts.mean()
    spare = np.maximum(counts - most, 0).sum()
    curve: npt.NDArray[np.float64] = (
        255 * np.cumsum(np.minimum(counts, most) + spare / 256) / counts.sum()
    )
    return curve


def _between(
    parts: list[npt.NDArray[np.intp]], side: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Array]:
    """Per place the tiles before and after it, by their centres, and how far towards the latter."""
    centres = np.array([part.mean() for part in parts])
    place = np.interp(np.arange(side), centres, np.arange(len(parts)))
    first = np.floor(place).astype(np.intp)
    return first, np.minimum(first + 1, len(parts) - 1), (place - first).astype(np.float32)


def pixelated(image: Image.Image, strength: float, rng: Rng) -> Image.Image:
    """To 0.95 − `strength`^0.6 of both sides and back, by the nearest pixel."""
    small = ops.scaled_size(image.size, 0.95 - strength**0.6)
    return ops.resized(ops.resized(image, small, "nearest"), image.size, "nearest")


def moire(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """Two bent gratings of two to three pixels that beat against each other, per channel a little
    apart: `amount` of the light.
    """
    values = _values(image)
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
        one = np.cos(math.tau * along / period)
        other = np.cos(math.tau * (along * 1.06 + warp * (4 + channel)) / period)
        values[..., channel] *= 1 - np.float32(amount) * (0.5 - 0.5 * one * other)
    return _image(values)


def watermarked(image: Image.Image, amount: float, rng: Rng) -> Image.Image:
    """An invisible mark by spread spectrum (Cox et al. 1997): one drawn 8 × 8 pattern of middle
    frequencies, its sign drawn per block, `amount` of 255 at most.
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
    return _image(_values(image) + mark[..., None] * np.float32(amount / 255))


def random_crop(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    """A part with `share` of both sides, anywhere."""
    width, height = ops.scaled_size(image.size, share)
    left, top = (
        int(rng.integers(image.width - width + 1)),
        int(rng.integers(image.height - height + 1)),
    )
    return image.crop((left, top, left + width, top + height))


def random_aspect_crop(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    """A part anywhere with `share` of the area, its shape drawn from 3:4 to 4:3 of the image's own."""
    shape = math.sqrt(math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3))))
    width = min(max(round(image.width * math.sqrt(share) * shape), 1), image.width)
    height = min(max(round(image.height * math.sqrt(share) / shape), 1), image.height)
    left, top = (
        int(rng.integers(image.width - width + 1)),
        int(rng.integers(image.height - height + 1)),
    )
    return image.crop((left, top, left + width, top + height))


DEGRADATIONS = {
    "lens-blur": Degradation(lens_blur, 0.5, 64, "the disk's radius in pixels"),
    "motion-blur": Degradation(motion_blur, 1, 64, "the line's length in pixels"),
    "glass-blur": Degradation(glass_blur, 0.5, 16, "reach in pixels"),
    "pixel-jitter": Degradation(pixel_jitter, 0.01, 8, "pixels"),
    "color-shift": Degradation(color_shift, 1, 64, "pixels"),
    "saturation": Degradation(saturated, -2, 4, "factor"),
    "color-jitter": Degradation(color_jitter, 0, 1, "factors within 1 ± it"),
    "color-cast": Degradation(color_cast, 0, 1, "of the light"),
    "channel-shift": Degradation(channel_shift, 0, 255, "of 255"),
    "quantization": Degradation(quantized, 2, 256, "steps per channel"),
    "jpeg2000": Degradation(jpeg2000, 1, 1000, "compression, to 1"),
    "impulse-noise": Degradation(impulse_noise, 0, 1, "share of values"),
    "multiplicative-noise": Degradation(multiplicative_noise, 0, 4, "variance"),
    "speckle-noise": Degradation(speckled, 0, 2, "standard deviation"),
    "shot-noise": Degradation(shot_noise, 1, 10000, "photons of white"),
    "iso-noise": Degradation(iso_noise, 0, 1, "of the light"),
    "brightness": Degradation(brightened, 0, 2, "rise of the middle, times two"),
    "darkness": Degradation(darkened, 0, 1, "fall of the middle, times two"),
    "contrast": Degradation(contrasted, -1, 1, "slope, 0 being a little steeper than the image's"),
    "tone-curve": Degradation(tone_curve, 0, 1, "deviation of the handles"),
    "clahe": Degradation(equalized, 1, 64, "limit of a bin"),
    "pixelation": Degradation(pixelated, 0, 0.9, "sides shrink to 0.95 − strength^0.6"),
    "moire": Degradation(moire, 0, 1, "of the light"),
    "watermark": Degradation(watermarked, 0, 32, "of 255"),
}
"""By the name of their step those that keep every pixel's place."""

CROPS = {
    "random-crop": Degradation(random_crop, 0.05, 1, "share of the sides"),
    "random-aspect-crop": Degradation(random_aspect_crop, 0.05, 1, "share of the area"),
}
