"""Scenes before the simulated camera, as linear light (`render`), and small filters (`convolve`,
`blur`).
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

Light = NDArray[np.float32]
Plane = NDArray[np.float32]
Rng = np.random.Generator


def render(family: str, rng: Rng, height: int, width: int) -> Light:
    """A scene of the named family: (height, width, 3) float32 linear light, about 0 to 1, not
    clipped.
    """
    return np.maximum(FAMILIES[family](rng, height, width), 0.0).astype(np.float32)


def fractal(rng: Rng, height: int, width: int, slope: float) -> Light:
    """Gaussian noise with amplitude spectrum 1/f^slope, zero mean, unit deviation."""
    from scipy import fft  # imported here: importing this module must stay cheap

    rows, columns = fft.next_fast_len(height, True), fft.next_fast_len(width, True)
    spectrum = fft.rfft2(rng.standard_normal((rows, columns), dtype=np.float32))
    fy = np.fft.fftfreq(rows).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(columns).astype(np.float32)[None, :]
    power = fy * fy + fx * fx
    power[0, 0] = 1.0
    spectrum *= power ** (-slope / 2)
    spectrum[0, 0] = 0.0
    field = fft.irfft2(spectrum, s=(rows, columns))[:height, :width]
    return np.asarray(field / (field.std() + 1e-9), dtype=np.float32)


def _colour(rng: Rng, saturation: float = 0.5) -> Light:
    grey = rng.uniform(0.03, 0.9) ** 1.6
    tint = np.exp(0.6 * saturation * rng.standard_normal(3))
    return np.asarray(grey * tint / tint.mean(), dtype=np.float32)


def _palette(rng: Rng, count: int, saturation: float = 0.5) -> Light:
    return np.stack([_colour(rng, saturation) for _ in range(count)])


def _gradient(rng: Rng, height: int, width: int) -> Light:
    """A field from 0 to 1 along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    return np.asarray(0.5 + 0.35 * (np.sin(angle) * y + np.cos(angle) * x), dtype=np.float32)


def _labels(
    height: int, width: int, draw: Callable[[ImageDraw.ImageDraw], None]
) -> NDArray[np.int32]:
    canvas = Image.new("I", (width, height), 0)
    draw(ImageDraw.Draw(canvas))
    return np.asarray(canvas, dtype=np.int32)


def _textured(rng: Rng, base: Light, roughness: float, slope: float) -> Light:
    """Surface texture: the base colour times a log-normal fractal field."""
    height, width = base.shape[:2]
    field = np.exp(np.clip(roughness * fractal(rng, height, width, slope), -2, 1.5))
    return np.asarray(base * field[..., None], dtype=np.float32)


def _disc(rng: Rng, height: int, width: int, radius: float) -> list[float]:
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    return [x - radius, y - radius, x + radius, y + radius]


def leaves(rng: Rng, height: int, width: int) -> Light:
    """Dead leaves: occluding discs and boxes whose radii follow a power law."""
    count = int(rng.integers(150, 900))
    smallest = rng.uniform(2, 8)
    radii = np.minimum(smallest * rng.random(count) ** -0.6, min(height, width) / 3)

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for index, radius in enumerate(radii, start=1):
            shape = pen.ellipse if rng.random() < 0.7 else pen.rectangle
            shape(_disc(rng, height, width, float(radius)), fill=index)

    labels = _labels(height, width, draw)
    return _textured(
        rng, _palette(rng, count + 1)[labels], rng.uniform(0.0, 0.35), rng.uniform(0.6, 1.4)
    )


def clouds(rng: Rng, height: int, width: int) -> Light:
    """Sky, water, plaster: smooth gradients under fractal fields of one or two slopes."""
    first, second = _palette(rng, 2, 0.35)
    blend = np.clip(
        _gradient(rng, height, width)
        + rng.uniform(0, 0.25) * fractal(rng, height, width, rng.uniform(1.2, 2.2)),
        0,
        1,
    )
    base = first + blend[..., None] * (second - first)
    return _textured(rng, base, rng.uniform(0.0, 0.3), rng.uniform(0.4, 1.6))


def strokes(rng: Rng, height: int, width: int) -> Light:
    """Writing: lines of short strokes on paper."""
    pitch = rng.uniform(14, 50)
    weight = max(1, int(pitch / rng.uniform(6, 14)))

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for y in np.arange(pitch, height, pitch * 1.5):
            x = rng.uniform(0, pitch)
            while x < width:
                points = (
                    np.array([x, y]) + rng.uniform(-0.5, 0.5, (int(rng.integers(2, 5)), 2)) * pitch
                )
                pen.line([(float(a), float(b)) for a, b in points], fill=1, width=weight)
                x += pitch * rng.choice([0.7, 0.8, 0.9, 1.6])

    ink = _labels(height, width, draw)[..., None].astype(np.float32)
    paper = np.clip(_colour(rng, 0.15) + 0.4, 0.3, 0.95) * (
        0.6 + 0.5 * _gradient(rng, height, width)[..., None]
    )
    base = paper * (1 - ink) + ink * _colour(rng, 0.6) * 0.3
    return _textured(rng, base, rng.uniform(0.01, 0.15), rng.uniform(0.3, 1.2))


def hills(rng: Rng, height: int, width: int) -> Light:
    """Landscape: ridges behind ridges, paler with distance, rougher when near."""
    sky, far = _palette(rng, 2, 0.3)
    y = np.arange(height, dtype=np.float32)[:, None]
    out = sky * (0.6 + 0.6 * (1 - y / height))[..., None] * np.ones((height, width, 1), np.float32)
    layers = int(rng.integers(3, 7))
    grain = np.exp(0.5 * fractal(rng, height, width, rng.uniform(0.4, 1.0)))[..., None]
    for layer in range(layers):
        ridge = np.cumsum(fractal(rng, 8, width, rng.uniform(0.5, 1.2))[0]) * rng.uniform(0.2, 0.9)
        level = height * (0.25 + 0.7 * layer / layers) + ridge - ridge.mean()
        near = (layer + 1) / layers
        ground = (_colour(rng, 0.5) * near + far * (1 - near)) * (
            1 + near * (np.roll(grain, int(rng.integers(width)), axis=1) - 1)
        )
        out = np.where((y > level[None, :])[..., None], ground, out)
    return np.asarray(out, dtype=np.float32)


def fabric(rng: Rng, height: int, width: int) -> Light:
    """Weaves, stripes and zone plates: periodic content that no decoder made."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    warp = fractal(rng, height, width, 2.0) * rng.uniform(0, 12)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 24)
    phase = (np.cos(angle) * x + np.sin(angle) * y + warp) * 2 * np.pi / period
    across = (
        (-np.sin(angle) * x + np.cos(angle) * y + warp)
        * 2
        * np.pi
        / (period * rng.uniform(0.8, 1.25))
    )
    if rng.random() < 0.25:
        phase = (
            ((x - rng.uniform(0, width)) ** 2 + (y - rng.uniform(0, height)) ** 2)
            * np.pi
            / (width * rng.uniform(3, 9))
        )
    pattern = 0.5 + 0.25 * (np.sin(phase) + np.sign(np.sin(across)) * rng.uniform(0, 1))
    first, second = _palette(rng, 2, 0.5)
    base = first + np.clip(pattern, 0, 1)[..., None] * (second - first)
    return _textured(
        rng,
        base * (0.5 + _gradient(rng, height, width)[..., None]),
        rng.uniform(0.02, 0.3),
        rng.uniform(0.3, 1.2),
    )


def foliage(rng: Rng, height: int, width: int) -> Light:
    """Grass and twigs: many thin curved blades over a dark ground."""
    count = int(rng.integers(300, 1500))
    length = rng.uniform(15, 90)

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for index in range(1, count):
            start = rng.uniform(0, 1, 2) * (width, height)
            lean, bend = rng.uniform(-1.2, 1.2), rng.uniform(-0.5, 0.5)
            steps = [
                (float(start[0] + length * t * (lean + bend * t)), float(start[1] - length * t))
                for t in (0.0, 0.35, 0.7, 1.0)
            ]
            pen.line(steps, fill=index, width=int(rng.integers(1, 6)))

    labels = _labels(height, width, draw)
    palette = _palette(rng, count, 0.2) * _colour(rng, 0.6) * 2
    palette[0] *= 0.3
    return _textured(rng, palette[labels], rng.uniform(0.05, 0.3), rng.uniform(0.5, 1.4))


def pebbles(rng: Rng, height: int, width: int) -> Light:
    """Gravel and paving: the cells nearest to random points, each shaded from one side, with dark
    joints.
    """
    from scipy.spatial import cKDTree

    count = int(rng.integers(60, 1200))
    points = rng.uniform(0, 1, (count, 2)) * (height, width)
    grid = np.mgrid[0:height:2, 0:width:2].reshape(2, -1).T
    distance, nearest = cKDTree(points).query(grid, k=2)
    shape = ((height + 1) // 2, (width + 1) // 2)
    joint = np.clip((distance[:, 1] - distance[:, 0]) / rng.uniform(1.5, 6), 0.15, 1)
    slope = ((grid - points[nearest[:, 0]]) @ rng.standard_normal(2)) / np.sqrt(
        height * width / count
    )
    shading = (
        (joint * np.clip(1 + 0.4 * slope, 0.2, 2))
        .reshape(shape)
        .repeat(2, 0)
        .repeat(2, 1)[:height, :width]
    )
    labels = nearest[:, 0].reshape(shape).repeat(2, 0).repeat(2, 1)[:height, :width]
    palette = _palette(rng, count, 0.15) * _colour(rng, 0.5) * 2
    return _textured(
        rng, palette[labels] * shading[..., None], rng.uniform(0.05, 0.3), rng.uniform(0.4, 1.3)
    )


@cache
def _photograph() -> Light:
    package = find_spec("sklearn")  # found, not imported: the import alone takes seconds
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "datasets/images/flower.jpg"  # by vultilion, CC BY 2.0
    encoded = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
    return np.asarray(
        np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4),
        dtype=np.float32,
    )


def flower(rng: Rng, height: int, width: int) -> Light:
    """Crops of a photograph that scikit-learn ships, mirrored and tiled to size; its camera's
    traces are shrunk away by 0.6 to 0.8.
    """
    light = _photograph()
    scale = rng.uniform(0.6, 0.8)
    size = (round(light.shape[1] * scale), round(light.shape[0] * scale))
    planes = [
        np.asarray(Image.fromarray(light[..., c]).resize(size, Image.Resampling.BOX))
        for c in range(3)
    ]
    small = np.rot90(np.stack(planes, axis=-1), int(rng.integers(4)))
    top, left = int(rng.integers(small.shape[0])), int(rng.integers(small.shape[1]))
    rows = np.pad(np.arange(small.shape[0]), (0, height + top), mode="symmetric")[
        top : top + height
    ]
    columns = np.pad(np.arange(small.shape[1]), (0, width + left), mode="symmetric")[
        left : left + width
    ]
    return np.asarray(small[rows][:, columns] * rng.uniform(0.7, 1.3), dtype=np.float32)


FAMILIES: dict[str, Callable[[Rng, int, int], Light]] = {
    one.__name__: one for one in (leaves, clouds, fabric, strokes, hills, foliage, pebbles, flower)
}


def convolve(image: Plane, kernel: ArrayLike) -> Plane:
    """Correlate every channel with one odd-sized kernel; borders are mirrored; same shape out."""
    from scipy.ndimage import correlate

    weight = np.asarray(kernel, dtype=np.float32)
    if image.ndim == 2:
        return np.asarray(correlate(image, weight, mode="mirror"), dtype=np.float32)
    planes = [
        convolve(np.ascontiguousarray(image[..., channel]), weight)
        for channel in range(image.shape[2])
    ]
    return np.stack(planes, axis=-1)


def blur(image: Plane, sigma: float) -> Plane:
    """Gaussian blur of every channel, cut off at 3 sigma."""
    from scipy.ndimage import gaussian_filter

    sigmas = (sigma, sigma, 0)[: image.ndim]
    return np.asarray(gaussian_filter(image, sigmas, mode="mirror", truncate=3), dtype=np.float32)
