"""Steps of photographers and their devices: denoising, merged exposures, screens, prints, and
photographs of them.

Cameras and people do this to real photographs, so a detector that flags the result is wrong.
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
_PLAN_EDGE = 256  # pixels of the longer side on which the weights of exposures are computed
# standard deviation around one half, on the 0–1 scale (Mertens, Kautz and Van Reeth 2007)
_WELL_EXPOSED = 0.2
_LOCAL = 1 / 16  # of the longer side: how far one place's light reaches
_DISPLAY_GAMMA = 2.2
# how many times a dot's rim would fit between paper and solid ink: a scanner sees every dot over
# several of its pixels
_SOFT = 5.0

# Cyan, magenta and yellow each have their screen turned, as in offset printing, so that dots do not
# lie on dots.
_ANGLES = (15.0, 75.0, 0.0)


@register_step("denoise")
def denoise(
    image: Image.Image,
    sigma: Annotated[
        float, Field(gt=0, le=255, description="standard deviation of the noise, of 255")
    ],
    window: Annotated[int, Field(ge=3, le=31, description="side of the window in pixels")] = 5,
) -> Image.Image:
    """Denoise by Lee's (1980) local Wiener filter.

    Every value moves to the mean of its `window` × `window` neighbours by sigma² over their
    variance: level areas go smooth, edges stay.
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
    """Map tones locally: merge the image with a darker and a brighter one, each where it is well
    exposed.

    Mertens, Kautz and Van Reeth (2007), "Exposure Fusion", of exposures that are computed from the
    one picture (linear light by gamma 2.2, clipped at white), with weights blurred over a sixteenth
    of the longer side in place of their pyramid. Shadows rise, lights fall.
    """
    from scipy.ndimage import gaussian_filter

    curves = [_exposed(change) for change in (-stops, 0.0, stops)]
    plan = image.resize(ops.capped_size(image.size, _PLAN_EDGE), ops.Resampling.BOX).convert("L")
    reach = _LOCAL * max(plan.size)
    weights = [
        gaussian_filter(
            np.exp(-(((np.asarray(plan.point(curve)) / 255 - 0.5) / _WELL_EXPOSED) ** 2) / 2), reach
        )
        + 1e-6
        for curve in curves
    ]
    dark, plain, bright = (image.point(curve * 3) for curve in curves)
    lit = Image.composite(
        bright, plain, _as_mask(weights[2] / (weights[1] + weights[2]), image.size)
    )
    return Image.composite(dark, lit, _as_mask(weights[0] / sum(weights), image.size))


def _exposed(stops: float) -> list[int]:
    curve = 255 * np.minimum((np.arange(256) / 255) ** _DISPLAY_GAMMA * 2**stops, 1) ** (
        1 / _DISPLAY_GAMMA
    )
    return [round(value) for value in curve.tolist()]


def _as_mask(weights: npt.NDArray[np.float64], size: ops.Size) -> Image.Image:
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
    """Take a screenshot: the image, enlarged or shrunk to fit, between level grey bars.

    The bars take 8 to 22 % of the height at least, and are dark or light. Bilinear, as a phone's
    compositor does it; no codec.
    """
    width, height = (
        (max(screen), min(screen)) if image.width > image.height else (min(screen), max(screen))
    )
    room = width, round(height * rng.uniform(0.78, 0.92))
    grey = int(rng.integers(40)) if rng.random() < 0.5 else int(rng.integers(216, 256))
    share = min(room[0] / image.width, room[1] / image.height)
    shown = ops.resized(image, ops.scaled_size(image.size, share), "bilinear")
    frame = Image.new("RGB", (width, height), (grey,) * 3)
    frame.paste(shown, ((width - shown.width) // 2, (height - shown.height) // 2))
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
    """See the image slightly from the side: every corner is drawn within `most` of the sides.

    A projective map with Pillow's bicubic filter; the size stays, and nothing from outside the
    image is seen.
    """
    width, height = image.size
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    seen = [
        (
            x + (1, -1)[x > 0] * rng.uniform(0, most) * width,
            y + (1, -1)[y > 0] * rng.uniform(0, most) * height,
        )
        for x, y in corners
    ]
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, seen, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    given = np.linalg.solve(np.array(rows, float), np.array(values)).tolist()
    return image.transform(image.size, Image.Transform.PERSPECTIVE, given, ops.Resampling.BICUBIC)


def _check_levels(black: int, white: int) -> None:
    if black >= white:
        raise ValueError(f"{black} to {white} is not a range")


@register_step("levels", check=_check_levels)
def set_levels(
    image: Image.Image,
    black: Annotated[int, Field(ge=0, le=254, description="value of black")] = 0,
    white: Annotated[int, Field(ge=1, le=255, description="value of white")] = 255,
) -> Image.Image:
    """Reduce the contrast as paper or a screen does: the range 0–255 becomes `black` to `white`."""
    return image.point(np.rint(np.linspace(black, white, 256)).astype(int).tolist() * 3)


@register_step("halftone")
def halftone(
    image: Image.Image,
    cell: Annotated[float, Field(ge=2, le=16, description="side of a cell in pixels")],
    gain: Annotated[
        float, Field(ge=0, le=1, description="spread of dots on paper, of the full scale")
    ] = 0.15,
) -> Image.Image:
    """Print and scan: clustered dots of ink with soft rims under a cosine screen (Ulichney 1987)."""
    pixels = np.array(image)
    height, width = pixels.shape[:2]
    heights, shares = _screen()
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    for channel, angle in enumerate(_ANGLES):
        turn = math.radians(angle)
        u = (x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))) * np.float32(
            math.tau / cell
        )
        v = (y * np.float32(math.cos(turn)) - x * np.float32(math.sin(turn))) * np.float32(
            math.tau / cell
        )
        screen = np.interp(np.cos(u) + np.cos(v), heights, shares).astype(np.float32)
        ink = 1 - pixels[..., channel] / np.float32(255)
        spread = ink + np.float32(gain) * ink * (1 - ink)
        pixels[..., channel] = np.rint(255 * (1 - np.clip((spread - screen) * _SOFT + 0.5, 0, 1)))
    return Image.fromarray(pixels)


def _screen() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Heights of a cosine screen, and which share of a cell lies below each: so much ink covers so
    much paper.
    """
    wave = np.cos(np.linspace(0, math.pi, 64))
    heights = np.sort(np.add.outer(wave, wave), axis=None)
    return heights, np.linspace(0, 1, heights.size)
