"""Define steps of perturbations that photographers and their devices apply to real photographs.

The steps imitate denoising, merged exposures, screenshots, prints, and photographs of screens and
prints. A real photograph stays real after such steps, so a detector must not flag the result.
"""

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from ray_app.transforms import ops
from ray_app.transforms.registry import Rng, register_step

ScreenSide = Annotated[int, Field(ge=8, le=8192)]
# Longer side in pixels of the image on which the weights of exposures are computed.
_PLAN_EDGE = 256
# Standard deviation around one half, on the 0–1 scale (Mertens, Kautz and Van Reeth 2007).
_EXPOSURE_DEVIATION = 0.2
# Standard deviation of the blur of the weights, as a fraction of the longer side.
_BLUR_FRACTION = 1 / 16
_DISPLAY_GAMMA = 2.2
# Slope of a dot's rim between paper and solid ink. A scanner sees every dot over several pixels.
_RIM_SLOPE = 5.0

# The screens of cyan, magenta, and yellow have different angles, as in offset printing, so that dots
# do not cover each other.
_ANGLES = (15.0, 75.0, 0.0)


@register_step("denoise")
def denoise(
    image: Image.Image,
    sigma: Annotated[
        float, Field(gt=0, le=255, description="standard deviation of the noise, of 255")
    ],
    window: Annotated[int, Field(ge=3, le=31, description="side of the window in pixels")] = 5,
) -> Image.Image:
    """Remove noise as a camera does, by Lee's (1980) local Wiener filter.

    Every value moves towards the mean of its `window` × `window` neighbours, by the fraction
    `sigma`² ÷ their variance, at most 1. So level areas become smooth, and edges stay.
    """
    from scipy.ndimage import uniform_filter

    pixels = np.array(image)
    for channel in range(3):
        values = pixels[..., channel].astype(np.float32)
        mean = uniform_filter(values, window)
        variance = uniform_filter(values * values, window)
        variance -= mean * mean
        np.maximum(variance, np.float32(sigma**2), out=variance)
        values -= mean
        values *= 1 - np.float32(sigma**2) / variance
        values += mean
        pixels[..., channel] = np.clip(np.rint(values), 0, 255)
    return Image.fromarray(pixels)


@register_step("merge-exposures")
def merge_exposures(
    image: Image.Image,
    stops: Annotated[float, Field(gt=0, le=4, description="stops down and up")],
) -> Image.Image:
    """Lighten shadows and darken lights, as a phone does by merging several exposures.

    The darker and the brighter exposure are computed from the image (linear light by gamma 2.2,
    clipped at white). Well exposed pixels have more weight (Mertens, Kautz and Van Reeth 2007,
    "Exposure Fusion"). The weights are blurred over a sixteenth of the longer side instead of the
    paper's pyramid.
    """
    from scipy.ndimage import gaussian_filter

    curves = [_exposure_curve(change) for change in (-stops, 0.0, stops)]
    plan = image.resize(ops.capped_size(image.size, _PLAN_EDGE), ops.Resampling.BOX).convert("L")
    reach = _BLUR_FRACTION * max(plan.size)
    weights = [
        gaussian_filter(
            np.exp(-(((np.asarray(plan.point(curve)) / 255 - 0.5) / _EXPOSURE_DEVIATION) ** 2) / 2),
            reach,
        )
        + 1e-6
        for curve in curves
    ]
    dark, plain, bright = (image.point(curve * 3) for curve in curves)
    lit = Image.composite(
        bright, plain, _to_mask(weights[2] / (weights[1] + weights[2]), image.size)
    )
    return Image.composite(dark, lit, _to_mask(weights[0] / sum(weights), image.size))


def _exposure_curve(stops: float) -> list[int]:
    curve = 255 * np.minimum((np.arange(256) / 255) ** _DISPLAY_GAMMA * 2**stops, 1) ** (
        1 / _DISPLAY_GAMMA
    )
    return [round(value) for value in curve.tolist()]


def _to_mask(weights: npt.NDArray[np.float64], size: ops.Size) -> Image.Image:
    return Image.fromarray(np.rint(255 * weights).astype(np.uint8)).resize(
        size, ops.Resampling.BILINEAR
    )


@register_step("show", keeps_place=False)
def show_on_screen(
    image: Image.Image,
    rng: Rng,
    screen: Annotated[
        tuple[ScreenSide, ScreenSide],
        Field(description="width and height of the screen in pixels, turned as the image is"),
    ],
) -> Image.Image:
    """Imitate a screenshot: show the image on a screen, between uniform grey bars.

    The image is resized to fit the screen, which is turned to portrait or landscape like the image.
    The bars above and below the image together take at least a random 8 to 22 % of the screen's
    height. They take more for an image whose resize is limited by the width of the screen. The bars
    are dark or light. The resize is bilinear, as on a phone. The image is not compressed.
    """
    width, height = (
        (max(screen), min(screen)) if image.width > image.height else (min(screen), max(screen))
    )
    max_size = width, round(height * rng.uniform(0.78, 0.92))
    grey = int(rng.integers(40)) if rng.random() < 0.5 else int(rng.integers(216, 256))
    scale = min(max_size[0] / image.width, max_size[1] / image.height)
    resized = ops.resize(image, ops.scaled_size(image.size, scale), "bilinear")
    frame = Image.new("RGB", (width, height), (grey,) * 3)
    frame.paste(resized, ((width - resized.width) // 2, (height - resized.height) // 2))
    return frame


@register_step("tilt", keeps_place=False)
def tilt(
    image: Image.Image,
    rng: Rng,
    most: Annotated[
        float,
        Field(gt=0, le=0.2, description="largest shift of a corner, as a fraction of the sides"),
    ],
) -> Image.Image:
    """View the image slightly from the side: every corner moves within `most` of the sides.

    The projective map uses Pillow's bicubic filter. The size stays, and nothing from outside the
    image is visible.
    """
    width, height = image.size
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    moved_corners = [
        (
            x + (1, -1)[x > 0] * rng.uniform(0, most) * width,
            y + (1, -1)[y > 0] * rng.uniform(0, most) * height,
        )
        for x, y in corners
    ]
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, moved_corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    coefficients = np.linalg.solve(np.array(rows, float), np.array(values)).tolist()
    return image.transform(
        image.size, Image.Transform.PERSPECTIVE, coefficients, ops.Resampling.BICUBIC
    )


def _check_levels(black: int, white: int) -> None:
    if black >= white:
        raise ValueError(f"black must be less than white, got {black} and {white}")


@register_step("levels", check=_check_levels)
def set_levels(
    image: Image.Image,
    black: Annotated[int, Field(ge=0, le=254, description="value of black")] = 0,
    white: Annotated[int, Field(ge=1, le=255, description="value of white")] = 255,
) -> Image.Image:
    """Reduce the contrast as paper or a screen does: 0–255 is mapped to `black`–`white`."""
    return image.point(np.rint(np.linspace(black, white, 256)).astype(int).tolist() * 3)


@register_step("halftone")
def halftone(
    image: Image.Image,
    cell: Annotated[float, Field(ge=2, le=16, description="side of a cell in pixels")],
    gain: Annotated[
        float, Field(ge=0, le=1, description="spread of dots on paper, of the full scale")
    ] = 0.15,
) -> Image.Image:
    """Imitate a print that is scanned: draw each channel as a grid of dots of ink.

    Darker areas have larger dots (clustered dots by a cosine screen, Ulichney 1987). The dots have
    soft rims. The grids of the channels have different angles.
    """
    pixels = np.array(image)
    height, width = pixels.shape[:2]
    heights, fractions = _make_screen()
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    for channel, angle in enumerate(_ANGLES):
        radians = math.radians(angle)
        u = (x * np.float32(math.cos(radians)) + y * np.float32(math.sin(radians))) * np.float32(
            math.tau / cell
        )
        v = (y * np.float32(math.cos(radians)) - x * np.float32(math.sin(radians))) * np.float32(
            math.tau / cell
        )
        screen = np.interp(np.cos(u) + np.cos(v), heights, fractions).astype(np.float32)
        ink = 1 - pixels[..., channel] / np.float32(255)
        spread = ink + np.float32(gain) * ink * (1 - ink)
        pixels[..., channel] = np.rint(
            255 * (1 - np.clip((spread - screen) * _RIM_SLOPE + 0.5, 0, 1))
        )
    return Image.fromarray(pixels)


def _make_screen() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return heights of a cosine screen, and the fraction of a cell below each height.

    This is the fraction of paper that this amount of ink covers.
    """
    wave = np.cos(np.linspace(0, math.pi, 64))
    heights = np.sort(np.add.outer(wave, wave), axis=None)
    return heights, np.linspace(0, 1, heights.size)
