"""Simulated cameras (`CAMERAS`): linear light → lens → colour filter mosaic → noise → demosaic →
tone → 8-bit sRGB-like pixels.

`files_of_one_history` draws what happens to pictures afterwards: scale, crop, format, quality.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.simulation.scenes import Plane, Rng, blur, convolve

Pixels = NDArray[np.uint8]

_CROSS = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]], np.float32) / 4
_SQUARE = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 4
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
FILTERS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BOX,
)


def masks(height: int, width: int, corner: tuple[int, int]) -> Plane:
    """Bayer colour filter array: (height, width, 3) of 0 and 1, red at `corner` of every 2×2 cell."""
    row = (np.arange(height) + corner[0]) % 2
    column = (np.arange(width) + corner[1]) % 2
    red = np.outer(row == 0, column == 0)
    blue = np.outer(row == 1, column == 1)
    return np.stack([red, ~(red | blue), blue], axis=-1).astype(np.float32)


def bilinear(mosaic: Plane, cfa: Plane) -> Plane:
    """Every missing sample is the mean of its nearest neighbours of that colour."""
    planes = mosaic[..., None] * cfa
    return np.stack(
        [
            convolve(planes[..., 0], _SQUARE),
            convolve(planes[..., 1], _CROSS),
            convolve(planes[..., 2], _SQUARE),
        ],
        axis=-1,
    )


def _colours_from_green(mosaic: Plane, cfa: Plane, green: Plane) -> Plane:
    """Red and blue by interpolating their difference to a full green plane."""
    difference = (mosaic - green)[..., None] * cfa
    red, blue = convolve(difference[..., 0], _SQUARE), convolve(difference[..., 2], _SQUARE)
    return np.stack([green + red, green, green + blue], axis=-1)


def _directional_greens(mosaic: Plane) -> tuple[Plane, Plane, Plane, Plane]:
    tap = np.array([[-1, 2, 2, 2, -1]], np.float32) / 4
    step, bend = np.array([[0, 1, 0, -1, 0]]), np.array([[-1, 0, 2, 0, -1]])
    across = np.abs(convolve(mosaic, step)) + np.abs(convolve(mosaic, bend))
    along = np.abs(convolve(mosaic, step.T)) + np.abs(convolve(mosaic, bend.T))
    return convolve(mosaic, tap), convolve(mosaic, tap.T), across, along


def edge_directed(mosaic: Plane, cfa: Plane) -> Plane:
    """Green along the direction of the smaller gradient (Hamilton, Adams 1997), then colour
    differences.
    """
    horizontal, vertical, across, along = _directional_greens(mosaic)
    best = np.where(
        across < along, horizontal, np.where(across > along, vertical, (horizontal + vertical) / 2)
    )
    return _colours_from_green(mosaic, cfa, np.where(cfa[..., 1] > 0, mosaic, best))


def gradient_weighted(mosaic: Plane, cfa: Plane) -> Plane:
    """Green as a mean of both directions weighted by smoothed inverse gradients, then colour
    differences.
    """
    horizontal, vertical, across, along = _directional_greens(mosaic)
    weight_h, weight_v = 1 / (blur(across, 1.0) ** 2 + 1e-5), 1 / (blur(along, 1.0) ** 2 + 1e-5)
    mean = (weight_h * horizontal + weight_v * vertical) / (weight_h + weight_v)
    return _colours_from_green(mosaic, cfa, np.where(cfa[..., 1] > 0, mosaic, mean))


def constant_hue(mosaic: Plane, cfa: Plane) -> Plane:
    """Bilinear green; red and blue by interpolating their ratio to green (Cok 1987)."""
    green = convolve(mosaic * cfa[..., 1], _CROSS)
    ratio = (
        np.asarray((mosaic + 0.02) / (np.maximum(green, 0) + 0.02), dtype=np.float32)[..., None]
        * cfa
    )
    red, blue = convolve(ratio[..., 0], _SQUARE), convolve(ratio[..., 2], _SQUARE)
    return np.stack([red * (green + 0.02) - 0.02, green, blue * (green + 0.02) - 0.02], axis=-1)


def chroma_median(mosaic: Plane, cfa: Plane) -> Plane:
    """Bilinear, then the median of the colour differences in a 3×3 window (Freeman 1988)."""
    from scipy.ndimage import median_filter

    colour = bilinear(mosaic, cfa)
    green = colour[..., 1]
    red, blue = (green + median_filter(colour[..., channel] - green, 3) for channel in (0, 2))
    return np.stack([red, green, blue], axis=-1)


@dataclass(frozen=True)
class CameraModel:
    """One model of camera; ranges are drawn anew for every shot.

    `blur_px` lens blur, `gain` shot noise variance per unit of light, `read` read noise in units of
    full scale, `contrast` of the tone curve around middle grey, `sharpening` amount of the unsharp
    mask, `smoothing` strength of noise reduction (luma, chroma), 0 = off.
    """

    demosaic: Callable[[Plane, Plane], Plane]
    blur_px: tuple[float, float]
    gain: tuple[float, float]
    read: float
    contrast: tuple[float, float]
    sharpening: tuple[float, float]
    smoothing: tuple[float, float] = (0.0, 0.0)
    bits: int = 12

    def shoot(self, light: Plane, rng: Rng) -> Pixels:
        """Photograph a scene of twice the wanted size: (2h, 2w, 3) linear light → (h, w, 3) uint8."""
        sensor = self._expose(light, rng)
        corner = (int(rng.integers(2)), int(rng.integers(2)))
        white_balance = np.array([rng.uniform(1.3, 2.3), 1.0, rng.uniform(1.3, 2.1)], np.float32)
        raw = self._digitise(sensor / white_balance, rng) * white_balance
        cfa = masks(raw.shape[0], raw.shape[1], corner)
        colour = self.demosaic(np.einsum("ijk,ijk->ij", raw, cfa), cfa)
        return self._finish(np.clip(colour, 0, 1).astype(np.float32), rng)

    def _expose(self, light: Plane, rng: Rng) -> Plane:
        exposure = rng.uniform(0.10, 0.32) / (float(np.mean(light)) + 1e-3)
        image = blur(_halve(light), rng.uniform(*self.blur_px)) * exposure
        height, width = image.shape[:2]
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
        falloff = 1 - rng.uniform(0, 0.3) * (x * x + y * y) / 2
        return np.clip(image * falloff[..., None], 0, 1).astype(np.float32)

    def _digitise(self, signal: Plane, rng: Rng) -> Plane:
        gain = np.exp(rng.uniform(*np.log(self.gain)))
        deviation = np.sqrt(gain * signal + self.read**2).astype(np.float32)
        noisy = signal + deviation * rng.standard_normal(signal.shape, dtype=np.float32)
        top = 2**self.bits - 1
        # The black level is kept below zero signal, so that noise in the shadows is not folded to
        # one side.
        return np.asarray(np.round(np.clip(noisy, -0.02, 1) * top) / top, dtype=np.float32)

    def _finish(self, colour: Plane, rng: Rng) -> Pixels:
        encoded = _tone(colour, rng.uniform(*self.contrast))
        luma = encoded @ np.array([0.299, 0.587, 0.114], np.float32)
        chroma = (encoded - luma[..., None]) * rng.uniform(0.9, 1.3)
        luma_strength, chroma_strength = self.smoothing
        if chroma_strength:
            chroma = blur(chroma, rng.uniform(0.5, 1.0) * chroma_strength)
        if luma_strength:
            luma = _denoise(luma, rng.uniform(0.4, 1.0) * luma_strength)
        amount = rng.uniform(*self.sharpening)
        if amount > 0:
            luma = luma + amount * (luma - blur(luma, rng.uniform(0.6, 1.4)))
        finished = np.clip((luma[..., None] + chroma) * 255, 0, 255)
        return np.asarray(np.round(finished), dtype=np.uint8)


def _halve(image: Plane) -> Plane:
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    rows = image[0:height:2] + image[1:height:2]
    return np.asarray((rows[:, 0:width:2] + rows[:, 1:width:2]) / 4, dtype=np.float32)


def _tone(colour: Plane, contrast: float) -> Plane:
    """sRGB transfer (IEC 61966-2-1), then an S-curve through 0, 0.5 and 1."""
    encoded = np.where(
        colour <= 0.0031308, 12.92 * colour, 1.055 * np.maximum(colour, 1e-9) ** (1 / 2.4) - 0.055
    )
    curve = encoded + contrast * encoded * (1 - encoded) * (2 * encoded - 1)
    return np.asarray(curve, dtype=np.float32)


def _denoise(luma: Plane, strength: float) -> Plane:
    """Pull small deviations from a local mean towards it and leave large ones (edges) alone."""
    mean = blur(luma, 1.2)
    detail = luma - mean
    keep = 1 - strength * np.exp(-((detail / 0.03) ** 2))
    return np.asarray(mean + keep * detail, dtype=np.float32)


CAMERAS: dict[str, CameraModel] = {
    # seen in training
    "webcam": CameraModel(
        bilinear, (0.3, 0.8), (2e-4, 3e-3), 0.003, (0.0, 0.5), (0.0, 1.2), bits=10
    ),
    "reflex": CameraModel(
        edge_directed, (0.2, 0.6), (5e-5, 1e-3), 0.001, (0.0, 0.6), (0.0, 0.8), bits=14
    ),
    # held out for thresholds
    "rangefinder": CameraModel(
        constant_hue, (0.2, 0.7), (5e-5, 1e-3), 0.0015, (0.1, 0.7), (0.0, 0.8), bits=14
    ),
    # held out for the figures
    "mirrorless": CameraModel(
        gradient_weighted,
        (0.2, 0.7),
        (5e-5, 2e-3),
        0.0015,
        (0.1, 0.7),
        (0.1, 1.0),
        (0.2, 0.6),
        bits=14,
    ),
    "camcorder": CameraModel(
        chroma_median, (0.4, 0.9), (2e-4, 3e-3), 0.003, (0.1, 0.6), (0.3, 1.2), (0.4, 1.2), bits=10
    ),
}


@dataclass(frozen=True)
class SimulatedEncoding:
    """One trip through a file: `format` as Pillow names it; quality and subsampling where the
    format has them.
    """

    format: str
    quality: int = 0
    subsampling: str = "4:2:0"

    @property
    def suffix(self) -> str:
        """The ending of a file's name, with its dot."""
        return {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}[self.format]

    def encode(self, pixels: Pixels) -> bytes:
        """Bytes of the file, with no metadata."""
        options: dict[str, dict[str, Any]] = {
            "JPEG": {"quality": self.quality, "subsampling": self.subsampling},
            "WEBP": {"quality": self.quality, "method": 1},
            "PNG": {"compress_level": 1},
        }
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, self.format, **options[self.format])
        return stream.getvalue()


def files_of_one_history(
    rng: Rng, pictures: Sequence[Pixels], side: int
) -> tuple[str, list[bytes]]:
    """The ending and the bytes of a file of `side` × `side` pixels for each of some pictures of one
    size, after one and the same history.

    One in four is scaled, one in four was a JPEG before; the last file is JPEG of quality 60 to 98,
    PNG or WebP. The crop falls anywhere, so that neither the 8×8 grid of JPEG nor the grid of a
    decoder has a known place.
    """
    height, width = pictures[0].shape[:2]
    smallest = side / min(height, width)
    scale = (
        float(rng.uniform(max(smallest, 0.6), 1.25))
        if rng.random() < 0.25 and smallest < 1
        else 1.0
    )
    top, left = (int(rng.integers(round(extent * scale) - side + 1)) for extent in (height, width))
    earlier = _draw_jpeg(rng) if rng.random() < 0.25 else None
    last = draw_encoding(rng)
    resample = FILTERS[int(rng.integers(len(FILTERS)))]
    found = []
    for pixels in pictures:
        image = Image.fromarray(pixels)
        if scale != 1.0:
            image = image.resize((round(width * scale), round(height * scale)), resample)
        image = image.crop((left, top, left + side, top + side))
        if earlier is not None:
            image = Image.open(io.BytesIO(earlier.encode(np.asarray(image)))).convert("RGB")
        found.append(last.encode(np.asarray(image)))
    return last.suffix, found


def draw_encoding(rng: Rng) -> SimulatedEncoding:
    """JPEG in two of three cases, else PNG or WebP."""
    kind = rng.random()
    if kind < 0.2:
        return SimulatedEncoding("PNG")
    return SimulatedEncoding("WEBP", int(rng.integers(70, 99))) if kind < 0.32 else _draw_jpeg(rng)


def _draw_jpeg(rng: Rng) -> SimulatedEncoding:
    return SimulatedEncoding(
        "JPEG", int(rng.integers(60, 99)), SUBSAMPLINGS[int(rng.choice(3, p=[0.25, 0.25, 0.5]))]
    )
