"""Upsampling decoders: what the last layers of a generative model leave in its pictures, on given content.

`DECODERS` have random weights; `LEARNED` are small autoencoders, trained for seconds on camera pictures of their own split
(`train_generator`) and kept in a store (`keep_generator`, `kept_generators`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from safetensors.torch import load, save
from torch import nn

from ray_app.datasets.simulation import camera, pairs
from ray_app.datasets.simulation.scenes import Rng, render
from ray_app.storage import Store

Upsample = Callable[[torch.Tensor, Rng], torch.Tensor]

_PICTURES, _SIDE_PX = 40, 448


@dataclass(frozen=True)
class Decoder:
    """A decoder of random weights: one or two doublings by one operator, with grain painted from latent noise.

    It reduces a picture to a small latent and paints it again at full size; the fine grain of the result comes from the latent and the
    upsampling, never from a sensor.

    The grain goes through the same layers as the picture and follows local contrast, so that neither the presence
    of fine detail nor its amount tells the classes apart.
    """

    upsample: Upsample

    def __call__(self, pixels: camera.Pixels, rng: Rng) -> camera.Pixels:
        """Reduce and repaint: (h, w, 3) uint8 → the same shape; h and w are multiples of 4."""
        stages = 1 if rng.random() < 0.75 else 2
        return self.painted(pixels, stages, rng)

    def painted(self, pixels: camera.Pixels, stages: int, rng: Rng, weights: Rng | None = None) -> camera.Pixels:
        """The same with so many doublings; `weights` draws those of the layers (None = `rng` does, so that no two pictures share them)."""
        image = to_tensor(pixels)
        latent = functional.interpolate(image, scale_factor=0.5**stages, mode="bilinear", antialias=True)
        lost = image - functional.interpolate(latent, scale_factor=2.0**stages, mode="bilinear")
        grain = _grain(functional.avg_pool2d(lost.abs(), 2**stages), rng)
        seed = int((weights or rng).integers(2**32))
        painted, texture = (self._paint(part, stages, np.random.default_rng(seed)) for part in (latent, grain))
        return to_pixels(painted + texture)

    def _paint(self, latent: torch.Tensor, stages: int, rng: Rng) -> torch.Tensor:
        for _ in range(stages):
            latent = self.upsample(latent, rng)
        return latent


def to_tensor(pixels: camera.Pixels) -> torch.Tensor:
    """(h, w, 3) uint8 → (1, 3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255


def to_pixels(image: torch.Tensor) -> camera.Pixels:
    """(1, 3, h, w) float → (h, w, 3) uint8, clipped and rounded."""
    return np.asarray((image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def nearest(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Repeat every sample 2×2, then a smoothing convolution."""
    return _conv(functional.interpolate(image, scale_factor=2, mode="nearest"), _mix(rng, 3, (-0.9, -0.3)))


def bilinear(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Bilinear ×2, then a convolution that may sharpen."""
    return _conv(functional.interpolate(image, scale_factor=2, mode="bilinear"), _mix(rng, 3, (-0.5, 0.8)))


def bicubic(image: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Bicubic ×2, then a convolution that may sharpen."""
    return _conv(functional.interpolate(image, scale_factor=2, mode="bicubic"), _mix(rng, 5, (-0.5, 0.5)))


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


DECODERS: dict[str, Decoder] = {
    # seen in training
    "nearest": Decoder(nearest),
    "bilinear": Decoder(bilinear),
    "transposed4": Decoder(_transposed(4, 0.08)),
    "transposed3": Decoder(_transposed(3, 0.05)),
    "shuffle": Decoder(shuffle),
    # held out
    "bicubic": Decoder(bicubic),
    "transposed5": Decoder(_transposed(5, 0.06)),
    "sinc": Decoder(zero_stuffed),
}


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
    def __call__(self, pixels: camera.Pixels, rng: Rng) -> camera.Pixels:
        """Encode, disturb the latent a little, decode: (h, w, 3) uint8 → the same shape; h and w are multiples of 8."""
        latent = self.net.encode(to_tensor(pixels))
        noise = torch.from_numpy(rng.standard_normal(tuple(latent.shape), dtype=np.float32))
        noise[:, :3] *= 0.2  # the colours themselves are disturbed less than the detail
        return to_pixels(self.net.decode(latent + rng.uniform(0, 0.15) * latent.std() * noise))


def train_autoencoder(plan: AutoencoderPlan, pictures: Sequence[camera.Pixels], *, seed: int, steps: int = 300) -> TrainedDecoder:
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


# The slow ones first: where several processes train them, none waits long for the last.
LEARNED = tuple(sorted(AUTOENCODERS, key=lambda name: -AUTOENCODERS[name].width * AUTOENCODERS[name].stages))


def train_generator(name: str, *, seed: int, steps: int) -> TrainedDecoder:
    """Train one autoencoder on pictures of its own split, so that no decoder saw scenes or cameras of another."""
    split = next(split for split in pairs.SPLITS.values() if name in split.decoders)
    rng = np.random.default_rng([seed, *name.encode()])
    pictures = [
        camera.CAMERAS[str(rng.choice(split.cameras))].shoot(render(str(rng.choice(split.scenes)), rng, _SIDE_PX, _SIDE_PX), rng)
        for _ in range(_PICTURES)
    ]
    return train_autoencoder(AUTOENCODERS[name], pictures, seed=seed, steps=steps)


def keep_generator(store: Store, name: str, *, seed: int, steps: int) -> None:
    """Train one of `LEARNED` and keep it; one that is kept already is left as it is."""
    if not store.exists(_file(name)):
        store.write(_file(name), save(train_generator(name, seed=seed, steps=steps).net.state_dict()))


def kept_generators(store: Store) -> dict[str, pairs.Decode]:
    """Every decoder of every split, by name; all of `LEARNED` have been kept in `store`."""
    return DECODERS | {name: _kept(store, name) for name in LEARNED}


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


def _upsample(kind: str, width: int) -> nn.Module:
    if kind == "transposed":
        return nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
    if kind == "shuffle":
        return nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
    smooth = nn.Upsample(scale_factor=2, mode=kind, align_corners=None if kind == "nearest" else False)
    return nn.Sequential(smooth, nn.Conv2d(width, width, 3, padding=1))


def _crop(picture: camera.Pixels, rng: Rng, size: int = 64) -> camera.Pixels:
    top, left = (int(rng.integers(extent - size + 1)) for extent in picture.shape[:2])
    return picture[top : top + size, left : left + size]


def _kept(store: Store, name: str) -> TrainedDecoder:
    net = Autoencoder(AUTOENCODERS[name])
    net.load_state_dict(load(store.read(_file(name))))
    return TrainedDecoder(net.eval())


def _file(name: str) -> str:
    return f"{name}.safetensors"
