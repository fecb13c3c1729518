"""Small autoencoders, trained for seconds on camera pictures: decoders whose upsampling layers were learned.

Knows pixels and torch. Knows nothing about cameras or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

from ray_app.simulation.decoders import Pixels, Rng, to_pixels, to_tensor


@dataclass(frozen=True)
class AutoencoderPlan:
    """`upsample` is nearest, bilinear, transposed or shuffle; `stages` doublings, `width` features, `latent` channels."""

    upsample: str
    stages: int
    width: int
    latent: int


AUTOENCODERS: dict[str, AutoencoderPlan] = {
    # seen in training
    "ae-nearest4": AutoencoderPlan("nearest", 2, 16, 12),
    "ae-nearest8": AutoencoderPlan("nearest", 3, 12, 32),
    "ae-transposed2": AutoencoderPlan("transposed", 1, 16, 2),
    "ae-shuffle4": AutoencoderPlan("shuffle", 2, 16, 12),
    "ae-bilinear2": AutoencoderPlan("bilinear", 1, 16, 2),
    # held out
    "ae-nearest2": AutoencoderPlan("nearest", 1, 24, 3),
    "ae-transposed4": AutoencoderPlan("transposed", 2, 24, 12),
    "ae-shuffle8": AutoencoderPlan("shuffle", 3, 12, 48),
}


def _upsample(kind: str, width: int) -> nn.Module:
    if kind == "transposed":
        return nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
    if kind == "shuffle":
        return nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
    smooth = nn.Upsample(scale_factor=2, mode=kind, align_corners=None if kind == "nearest" else False)
    return nn.Sequential(smooth, nn.Conv2d(width, width, 3, padding=1))


class Autoencoder(nn.Module):
    """Strided convolutions down to a latent, learned upsampling back."""

    def __init__(self, plan: AutoencoderPlan) -> None:
        super().__init__()
        self.stages, width = plan.stages, plan.width
        encoder: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1)]
        for _ in range(plan.stages - 1):
            encoder += [nn.LeakyReLU(0.1), nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)]
            width *= 2
        self.analyse = nn.Sequential(*encoder, nn.LeakyReLU(0.1), nn.Conv2d(width, plan.latent, 3, padding=1))
        decoder: list[nn.Module] = [nn.Conv2d(3 + plan.latent, width, 3, padding=1)]
        for stage in range(plan.stages):
            decoder += [nn.LeakyReLU(0.1), _upsample(plan.upsample, width)]
            if stage < plan.stages - 1:
                decoder += [nn.LeakyReLU(0.1), nn.Conv2d(width, width // 2, 3, padding=1)]
                width //= 2
        self.synthesise = nn.Sequential(*decoder, nn.LeakyReLU(0.1), nn.Conv2d(width, 3, 3, padding=1))

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, h, w) in [0, 1] → latent; its first three channels are the colours at latent size."""
        small = functional.avg_pool2d(image, 2**self.stages) - 0.5
        return torch.cat([small, self.analyse(image - 0.5)], dim=1)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent → (N, 3, h, w): learned detail on a smooth enlargement of the colours, which alone would take long to learn."""
        detail: torch.Tensor = self.synthesise(latent)
        return detail + functional.interpolate(latent[:, :3], scale_factor=2.0**self.stages, mode="bilinear") + 0.5

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, h, w) in [0, 1] → the same; h and w are multiples of 8."""
        return self.decode(self.encode(image))


@dataclass(frozen=True)
class TrainedDecoder:
    """A trained autoencoder as a decoder: called on pixels like those of `decoders`."""

    net: Autoencoder

    @torch.no_grad()
    def __call__(self, pixels: Pixels, rng: Rng) -> Pixels:
        """Encode, disturb the latent a little, decode: (h, w, 3) uint8 → the same shape; h and w are multiples of 8."""
        latent = self.net.encode(to_tensor(pixels))
        noise = torch.from_numpy(rng.standard_normal(tuple(latent.shape), dtype=np.float32))
        noise[:, :3] *= 0.2  # the colours themselves are disturbed less than the detail
        return to_pixels(self.net.decode(latent + rng.uniform(0, 0.15) * latent.std() * noise))


def train_autoencoder(plan: AutoencoderPlan, pictures: Sequence[Pixels], *, seed: int, steps: int = 300) -> TrainedDecoder:
    """Fit one autoencoder to reproduce 64-pixel crops of `pictures`: absolute error of values and of differences."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = Autoencoder(plan).to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.cat([to_tensor(_crop(pictures[int(rng.integers(len(pictures)))], rng)) for _ in range(8)])
        error = net(batch.contiguous(memory_format=torch.channels_last)) - batch
        loss = error.abs().mean() + sum(torch.diff(error, dim=axis).abs().mean() for axis in (2, 3))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return TrainedDecoder(net.to(memory_format=torch.contiguous_format).eval())


def _crop(picture: Pixels, rng: Rng, size: int = 64) -> Pixels:
    top, left = (int(rng.integers(extent - size + 1)) for extent in picture.shape[:2])
    return picture[top : top + size, left : left + size]
