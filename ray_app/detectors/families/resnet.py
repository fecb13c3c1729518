"""A ResNet of bottlenecks in plain torch (`ResNetBody`), and the families that differ from it in
what they let it see: `corvi` whole images, `npr` differences of neighbouring pixels, `wavelet` the
diagonal detail, `frequency` the high frequencies. Under the authors' key names.

timm's own brings torchvision with it, which takes longer to import than torch. Source: He et al.,
CVPR 2016 (arXiv 1512.03385), the stride on the 3 × 3 convolution.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import nn

from ray_app.detectors.families.residual import Tiling, feature_map, mean_features, require_tile


class BottleneckBlock(nn.Module):
    """1 × 1, `kernel` × `kernel` with the stride, 1 × 1, beside a shortcut: (N, channels, H, W) →
    (N, 4 × width, ⌈H/stride⌉, ⌈W/stride⌉).

    Without `padding` the map is smaller, and the shortcut loses as many lines at the bottom and
    right.
    """

    def __init__(
        self, channels: int, width: int, stride: int = 1, *, kernel: int = 3, padding: int = 1
    ) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = (
            nn.Conv2d(width, width, kernel, stride, padding=padding, bias=False),
            nn.BatchNorm2d(width),
        )
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.act = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Add both ways; see the class for shapes."""
        shortcut = features if self.downsample is None else self.downsample(features)
        features = self.act(self.bn1(self.conv1(features)))
        features = self.act(self.bn2(self.conv2(features)))
        features = self.bn3(self.conv3(features))
        features += shortcut[..., : features.shape[-2], : features.shape[-1]]
        result: torch.Tensor = self.act(features)
        return result


def bottleneck_stages(
    layers: Sequence[int], channels: Sequence[int], stem: int = 64
) -> Iterator[tuple[str, nn.Module]]:
    """`layer1`, `layer2`, … after a stem of so many channels: so many bottlenecks each, so wide;
    all but the first halve the map.

    Raises ValueError where these differ in number.
    """
    given = stem
    for stage, (blocks, width) in enumerate(zip(layers, channels, strict=True)):
        first = BottleneckBlock(given, width, stride=2 if stage else 1)
        given = 4 * width
        yield (
            f"layer{stage + 1}",
            nn.Sequential(first, *(BottleneckBlock(given, width) for _ in range(blocks - 1))),
        )


class ResNetBody(nn.Module):
    """A stem of 64 channels and stages (see `bottleneck_stages`), by default those of a ResNet-50.

    `stride`: of the stem's convolution (`kernel` × `kernel` px, of `given` maps) and of its
    pooling.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        channels: Sequence[int] = (64, 128, 256, 512),
        *,
        given: int = 3,
        kernel: int = 7,
        stride: int = 2,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = (
            nn.Conv2d(given, 64, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(64),
        )
        self.act1, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride, padding=1)
        for name, stage in bottleneck_stages(layers, channels):
            self.add_module(name, stage)
        self.parts = (
            "conv1",
            "bn1",
            "act1",
            "maxpool",
            *(f"layer{stage + 1}" for stage in range(len(layers))),
        )

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, given, H, W) → (N, 4 × the last of `channels`, rows, columns)."""
        return self.through(self.parts, pixels)

    def through(self, parts: Sequence[str], features: torch.Tensor) -> torch.Tensor:
        """What some parts of it, one after another, make of features."""
        for name in parts:
            features = self.get_submodule(name)(features)
        return features


HALF = ((3, 4), (64, 128))  # the first half of a ResNet-50: `layers` and `channels`


# of the wavelet's six taps only the middle two are not zero: two pixels more on every side, three
# where the side is odd
_BORDER = 2


def diagonal_detail(pixels: torch.Tensor) -> torch.Tensor:
    """The diagonal band of one step of the wavelet bior1.3: (N, C, H, W) → (N, C, (H + 5) // 2, (W
    + 5) // 2).

    Its high pass is Haar's, so that a value is half of what the two diagonals of a 2 × 2 cell
    differ by; beyond its edge the image is mirrored, the outermost line included.
    """
    for axis in (-2, -1):
        pixels = pixels.index_select(axis, _mirrored(pixels.shape[axis], pixels.device))
    upper, lower = pixels[..., ::2, :], pixels[..., 1::2, :]
    across = upper - lower
    return (across[..., ::2] - across[..., 1::2]) / 2


def _mirrored(side: int, device: torch.device) -> torch.Tensor:
    """Which pixel stands at −2, −1, …: an even number of them, with two or three beyond the end."""
    at = torch.arange(-_BORDER, side + _BORDER + side % 2, device=device) % (2 * side)
    return torch.where(at < side, at, 2 * side - 1 - at)


class Wavelet(ResNetBody):
    """Diagonal detail brought back to the image's size, a 3 × 3 stem, ResNet-50's layer1 and
    layer2, mean, two logits: real, fake.

    SAFE: Li et al., KDD 2025 (arXiv 2408.06741). Input: (N, 3, H, W) of any size, colours from 0 to
    1. Output: (N, 2).
    """

    def __init__(self) -> None:
        super().__init__(*HALF, kernel=3)
        self.fc1 = nn.Linear(512, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        # In the pixels' own precision whatever surrounds it: of a difference of neighbours bf16
        # keeps next to nothing.
        with torch.autocast(pixels.device.type, enabled=False):
            detail = functional.interpolate(
                diagonal_detail(pixels), pixels.shape[-2:], mode="bilinear", antialias=True
            )
        logits: torch.Tensor = self.fc1(self.features(detail).mean(dim=(-2, -1)))
        return logits


_SPACE, _CHANNELS = (-2, -1), (1,)


def high_pass(features: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Without the lowest half of the band along each of `dims` at once, and without what is then
    negative; any shape, the same in float32.

    Cut are the frequencies from −n // 4 to n // 4 − 1 cycles, of which only the first has no
    partner of the other sign. The authors drop the imaginary part that it leaves; cutting both
    halfway is the same, and a real transform does.
    """
    # In full precision whatever surrounds it: there is no Fourier transform of bf16.
    with torch.autocast(features.device.type, enabled=False):
        spectrum = torch.fft.rfftn(features.float(), dim=dims)
        low: list[torch.Tensor] = []
        for sign in (1, -1):
            box = torch.ones((1,) * features.ndim, device=features.device)
            for dim in dims:
                side = features.shape[dim]
                cycles = sign * torch.fft.fftfreq(side, 1 / side, device=features.device).round()
                if dim == dims[-1]:
                    cycles = cycles[: spectrum.shape[dim]]
                shape = [1] * features.ndim
                shape[dim] = -1
                box = box * ((cycles >= -(side // 4)) & (cycles < side // 4)).view(shape)
            low.append(box)
        kept = torch.fft.irfftn(
            spectrum * (1 - (low[0] + low[1]) / 2),
            s=[features.shape[dim] for dim in dims],
            dim=dims,
        )
        return functional.relu_(kept)


def spectrum_convolved(
    features: torch.Tensor, real: nn.Module, imaginary: nn.Module
) -> torch.Tensor:
    """One 1 × 1 convolution of the real parts of the features' spectrum, one of the imaginary
    parts, back to the image: the same shape.

    The real parts are the spectrum of what is even in the features around the origin, the imaginary
    ones of what is odd, so that nothing has to be transformed. What is then negative is cut.
    """
    turned = features.flip(_SPACE).roll((1, 1), _SPACE)
    mixed: torch.Tensor = real((features + turned) / 2) + imaginary((features - turned) / 2)
    return functional.relu_(mixed)


class FreqNet(nn.Module):
    """High frequencies of the image, then of features, between 1 × 1 convolutions and ResNet-50's
    layer1 and layer2; mean; one logit.

    Tan et al., AAAI 2024 (arXiv 2403.07240). Input: (N, 3, H, W), ImageNet-normalised, H and W at
    least 2. Output: (N, 1), log-odds of fake. `weight1` and `bias1` are the first of four 1 × 1
    convolutions, of which the second and the fourth halve the map; `realconv1` and `imagconv1` work
    on the spectrum behind it.
    """

    def __init__(self) -> None:
        super().__init__()
        for number, (given, wide) in enumerate(
            ((3, 64), (64, 64), (256, 256), (256, 256)), start=1
        ):
            conv = nn.Conv2d(given, wide, 1)
            setattr(self, f"weight{number}", conv.weight)
            setattr(self, f"bias{number}", conv.bias)
            self.add_module(f"realconv{number}", nn.Conv2d(wide, wide, 1, bias=False))
            self.add_module(f"imagconv{number}", nn.Conv2d(wide, wide, 1, bias=False))
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for name, stage in bottleneck_stages(*HALF):
            self.add_module(name, stage)
        self.fc1 = nn.Linear(512, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        features = self.maxpool(self._mixed(self._mixed(pixels, 1), 2))
        features = self._mixed(self._mixed(self.get_submodule("layer1")(features), 3), 4)
        features = self.get_submodule("layer2")(features)
        logits: torch.Tensor = self.fc1(features.mean(dim=(-2, -1)))
        return logits

    def _mixed(self, features: torch.Tensor, number: int) -> torch.Tensor:
        weight, bias = self.get_parameter(f"weight{number}"), self.get_parameter(f"bias{number}")
        features = functional.relu_(
            functional.conv2d(high_pass(features, _SPACE), weight, bias, stride=2 - number % 2)
        )
        if number < 3:
            features = high_pass(features, _CHANNELS)
        return spectrum_convolved(
            features,
            self.get_submodule(f"realconv{number}"),
            self.get_submodule(f"imagconv{number}"),
        )


Residual = Literal["npr", "raw", "x_grad", "y_grad", "left_diag", "right_diag"]

# 3 × 3, cross-correlated with every channel by itself.
_GRADIENTS = {
    "x_grad": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "y_grad": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "left_diag": ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)),
    "right_diag": ((-2, -1, 0), (-1, 0, 1), (0, 1, 2)),
}

# A cell of 8 × 8 px sees 43 px to either side: conv1 1, maxpool 2, layer1 3 × 4, layer2 4 + 3 × 8.
STRIDE, HALO = 8, 48  # a map of corvi's is as small: layer2, layer3 and layer4 halve it


def upsampling_residual(pixels: torch.Tensor) -> torch.Tensor:
    """Every 2 × 2 cell minus its upper left pixel: (N, C, H, W) → (N, C, H, W) for even sides; of
    odd ones the last line is dropped.
    """
    height, width = (side // 2 * 2 for side in pixels.shape[-2:])
    even = pixels[..., :height:2, :width:2]
    return pixels[..., :height, :width] - even.repeat_interleave(2, dim=-2).repeat_interleave(
        2, dim=-1
    )


def residual_of(pixels: torch.Tensor, kind: Residual) -> torch.Tensor:
    """The residual of that kind, (N, C, H, W): `npr` the upsampling residual, `raw` the pixels,
    else a gradient with zeros outside.
    """
    if kind == "npr":
        return upsampling_residual(pixels)
    if kind == "raw":
        return pixels
    channels = pixels.shape[1]
    kernel = torch.tensor(_GRADIENTS[kind], dtype=pixels.dtype, device=pixels.device)
    # In the pixels' own precision whatever surrounds it: of a difference of neighbours bf16 keeps
    # next to nothing.
    with torch.autocast(pixels.device.type, enabled=False):
        return functional.conv2d(
            pixels, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels
        )


class Npr(ResNetBody):
    """Neighbouring-pixel residual × 2/3, a 3 × 3 stem, ResNet-50's layer1 and layer2, mean, one
    logit.

    Tan et al., CVPR 2024 (arXiv 2312.10461); specs/detectors.md §8b, §9a. Input: (N, 3, H, W) of
    any size, ImageNet-normalised; of an odd side the last line is dropped, and a side of 1 px
    leaves nothing to say (NaN). Output: (N, 1), log-odds of fake. `tile`: pixels of a tile's side,
    at least 8, cut down to a multiple of 8.
    """

    def __init__(self, *, tile: int = 1536) -> None:
        super().__init__(*HALF, kernel=3)
        require_tile(tile, STRIDE)
        self.fc1 = nn.Linear(512, 1)
        self.tiling = Tiling(tile, STRIDE, HALO)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        height, width = (side // 2 * 2 for side in pixels.shape[-2:])
        if not height or not width:
            return pixels.new_full((len(pixels), 1), torch.nan)
        logits: torch.Tensor = self.fc1(
            mean_features(self._map, pixels[..., :height, :width], self.tiling)
        )
        return logits

    def _map(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.features(upsampling_residual(pixels) * (2 / 3))


_HALVING = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2.0")
# Pixels of a tile's side; the halo adds 112 and so makes 1.8 pixels of one. A CPU's process stays
# below 2 GiB; a GPU has room to spare.
TILE = {"cpu": 320, "cuda": 1536}


class Corvi(ResNetBody):
    """ResNet with stride 1 in `conv1` and `maxpool`; the mean of its features; one logit.

    Corvi et al., ICASSP 2023 (arXiv 2211.00680); specs/detectors.md §3. Input: (N, 3, H, W) of any
    size, ImageNet-normalised. Output: (N, 1), log-odds of fake. Images larger than a tile go
    through in tiles whose halo is the receptive field, so that the logit is that of the uncut
    image. `tile`: pixels of a tile's side without its halo, at least 8, cut down to a multiple of
    8; by default `TILE`.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        channels: Sequence[int] = (64, 128, 256, 512),
        *,
        tile: int | None = None,
    ) -> None:
        super().__init__(layers, channels, stride=1)
        if tile is not None:
            require_tile(tile, STRIDE)
        self.fc = nn.Linear(4 * channels[-1], 1)
        self.tile, self.layers = tile, tuple(layers)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) → (N, channels, ⌈H/8⌉, ⌈W/8⌉)."""
        # layer1's maps are as large as the image and 256 deep, but see only 7 px around: up to the
        # block that halves them they are made in tiles of their own, of which even a window's halo
        # makes more than one.
        halo = _whole(receptive_radius((self.layers[0], 1)), 2)
        rest = [*(f"layer2.{block}" for block in range(1, self.layers[1])), "layer3", "layer4"]
        return self.through(
            rest,
            feature_map(
                partial(self.through, _HALVING), pixels, Tiling(self._tile(pixels), 2, halo)
            ),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        logits: torch.Tensor = self.fc(mean_features(self.features, pixels, self._tiling(pixels)))
        return logits

    def logit_map(self, pixels: torch.Tensor) -> torch.Tensor:
        """What every 8 × 8 px cell says, (N, 1, ⌈H/8⌉, ⌈W/8⌉); its mean is the logit, because the
        head is linear.
        """
        return feature_map(self._logits, pixels, self._tiling(pixels))

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(
            self.features(pixels).float(), self.fc.weight[:, :, None, None], self.fc.bias
        )

    def _tiling(self, pixels: torch.Tensor) -> Tiling:
        return Tiling(self._tile(pixels), STRIDE, _whole(receptive_radius(self.layers), STRIDE))

    def _tile(self, pixels: torch.Tensor) -> int:
        return self.tile or TILE.get(pixels.device.type, TILE["cpu"])


def receptive_radius(layers: Sequence[int]) -> int:
    """How many pixels a cell sees to either side of its own first one: 56 for ResNet-50, a field of
    113 × 113.
    """
    radius, step = 3 + 1, 1  # conv1 7 × 7, maxpool 3 × 3
    for stage, blocks in enumerate(layers):
        radius += step  # the first block's 3 × 3 still works at the stage's input
        step *= 2 if stage else 1
        radius += (blocks - 1) * step
    return radius


def _whole(pixels: int, stride: int) -> int:
    return -(-pixels // stride) * stride
