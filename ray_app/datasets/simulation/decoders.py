"""Upsampling decoders of random weights (`DECODERS`), and pictures as they paint them (`repaint`): the traces of a generative model."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as functional

from ray_app.datasets.simulation.camera import Pixels
from ray_app.datasets.simulation.scenes import Rng

Upsample = Callable[[torch.Tensor, Rng], torch.Tensor]


def repaint(name: str, pixels: Pixels, rng: Rng, *, stages: int | None = None, weights: Rng | None = None) -> Pixels:
    """A picture reduced to a small latent and painted again at full size: (h, w, 3) uint8 → the same shape; h and w are multiples of 4.

    Its grain comes from latent noise, never from a sensor; it goes through the same layers as the picture and follows local contrast, so
    that neither the presence of fine detail nor its amount tells the classes apart. `stages`: doublings, None = mostly one, sometimes two;
    `weights` draws those of the layers (None = `rng` does, so that no two pictures share them).
    """
    if stages is None:
        stages = 1 if rng.random() < 0.75 else 2
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255
    latent = functional.interpolate(image, scale_factor=0.5**stages, mode="bilinear", antialias=True)
    lost = image - functional.interpolate(latent, scale_factor=2.0**stages, mode="bilinear")
    grain = _grain(functional.avg_pool2d(lost.abs(), 2**stages), rng)
    seed = int((weights or rng).integers(2**32))
    parts = []
    for part in (latent, grain):
        layers = np.random.default_rng(seed)
        for _ in range(stages):
            part = DECODERS[name](part, layers)
        parts.append(part)
    painted = (parts[0] + parts[1])[0].clamp(0, 1) * 255
    return np.asarray(painted.round().byte().permute(1, 2, 0).numpy())


def _interpolated(mode: str, size: int, sharp: tuple[float, float]) -> Upsample:
    """×2 by PyTorch's interpolation, then a convolution that smooths or sharpens."""
    return lambda image, rng: _conv(functional.interpolate(image, scale_factor=2, mode=mode), _mix(rng, size, sharp))


def shuffle(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Sub-pixel convolution: four near-bilinear filters, one per output phase, with uneven gains."""
    phases = []
    for row in (-0.25, 0.25):
        for column in (-0.25, 0.25):
            grid = np.mgrid[-1:2, -1:2].astype(np.float64)
            tap = np.exp(-(((grid[0] - row) ** 2 + (grid[1] - column) ** 2) / rng.uniform(0.25, 0.7)))
            tap *= np.exp(0.1 * rng.standard_normal((3, 3)))
            weight = np.zeros((3, 3, 3, 3), np.float32)
            weight[range(3), range(3)] = tap / tap.sum() * (1 + 0.01 * rng.standard_normal())
            phases.append(_conv(image, torch.from_numpy(weight)))
    stacked = torch.stack(phases, dim=2)
    return functional.pixel_shuffle(stacked.flatten(1, 2), 2)


def zero_stuffed(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Samples on an empty grid, filled in by a windowed sinc of random length."""
    reach = int(rng.integers(2, 5))
    places = np.arange(-2 * reach + 1, 2 * reach)
    tap = np.sinc(places / 2) * np.cos(np.pi * places / (4 * reach))
    weight = torch.from_numpy((np.outer(tap, tap) / tap.sum() ** 2 * 4).astype(np.float32))[None, None].repeat(3, 1, 1, 1)
    grid = torch.zeros(*image.shape[:2], 2 * image.shape[2], 2 * image.shape[3])
    grid[..., ::2, ::2] = image
    edge = len(places) // 2
    return functional.conv2d(functional.pad(grid, (edge,) * 4, mode="reflect"), weight, groups=3)


def _transposed(size: int, spread: float) -> Upsample:
    def upsample(image: torch.Tensor, rng: Rng) -> torch.Tensor:
        ramp = 1 - np.abs(np.arange(size) - (size - 1) / 2) / (size / 2)
        weight = np.zeros((3, 3, size, size), np.float32)
        for colour in range(3):
            tap = np.outer(ramp, ramp) * np.exp(spread * rng.standard_normal((size, size)))
            weight[colour, colour] = 4 * tap / tap.sum()  # mean gain 1; the gain of each of the four phases is left uneven
        margin = (size - 2) // 2 + 1
        padded = functional.pad(image, (1, 1, 1, 1), mode="replicate")
        out = functional.conv_transpose2d(padded, torch.from_numpy(weight), stride=2)
        return out[..., margin : margin + 2 * image.shape[-2], margin : margin + 2 * image.shape[-1]]

    return upsample


def _grain(lost: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Latent noise as strong as the detail that the latent lost there (times 0 to 0.8), partly shared by the colours."""
    amount = functional.avg_pool2d(lost.mean(dim=1, keepdim=True), 5, 1, 2) * rng.uniform(0.0, 0.8)
    shared = rng.standard_normal((1, 1, *amount.shape[2:]), dtype=np.float32)
    own = rng.standard_normal((1, 3, *amount.shape[2:]), dtype=np.float32)
    return amount * torch.from_numpy(shared + rng.uniform(0, 1.0) * own)


DECODERS: dict[str, Upsample] = {
    # seen in training
    "nearest": _interpolated("nearest", 3, (-0.9, -0.3)),
    "bilinear": _interpolated("bilinear", 3, (-0.5, 0.8)),
    "transposed4": _transposed(4, 0.08),
    "transposed3": _transposed(3, 0.05),
    "shuffle": shuffle,
    # held out
    "bicubic": _interpolated("bicubic", 5, (-0.5, 0.5)),
    "transposed5": _transposed(5, 0.06),
    "sinc": zero_stuffed,
}


def _mix(rng: Rng, size: int, sharp: tuple[float, float]) -> torch.Tensor:
    """A 3→3 convolution of gain 1: a random soft or sharp stencil per colour, slightly leaking between colours."""
    centre = size // 2
    distance = np.hypot(*np.mgrid[-centre : size - centre, -centre : size - centre])
    weight = np.zeros((3, 3, size, size), np.float32)
    for out in range(3):
        soft = np.exp(-0.5 * (distance / rng.uniform(0.5, 1.0)) ** 2) * np.exp(0.15 * rng.standard_normal((size, size)))
        stencil = -rng.uniform(*sharp) * soft / soft.sum()
        stencil[centre, centre] += 1 - stencil.sum()
        leak = 0.05 * rng.standard_normal((3, size, size)) * soft
        weight[out] = leak - leak.mean(axis=(1, 2), keepdims=True)
        weight[out, out] += stencil
    return torch.from_numpy(weight)


def _conv(image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    reach = weight.shape[-1] // 2
    return functional.conv2d(functional.pad(image, (reach,) * 4, mode="replicate"), weight)
