"""Build a ResNet of bottlenecks in plain torch (`ResNetBody`) and the families based on it.

The families differ in the input of the ResNet. The input of `corvi` (`Corvi`) is the pixels, that
of `npr` (`Npr`) differences of neighbouring pixels. `wavelet` (`Wavelet`) uses diagonal detail,
`frequency` (`FreqNet`) high frequencies. The key names are the authors'.

timm's own ResNet imports torchvision, which takes longer than torch. Source: He et al., CVPR 2016
(arXiv 1512.03385), with the stride on the 3 × 3 convolution.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import nn

from ray_app.detectors.families.residual import Tiling, feature_map, mean_features, require_tile


class BottleneckBlock(nn.Module):
    """Bottleneck of three convolutions (1 × 1, `kernel` × `kernel`, 1 × 1) with a shortcut.

    (N, channels, H, W) → (N, 4 × width, ⌈H/stride⌉, ⌈W/stride⌉). Without `padding`, the map is
    smaller, and the shortcut loses the same number of lines at the bottom and right.

    Args:
        channels: Input channels.
        width: Channels of the middle convolution.
        stride: Stride of the middle convolution.
        kernel: Side of the middle kernel.
        padding: Padding of the middle convolution.
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
        """Apply the block: (N, channels, H, W) → (N, 4 × width, ⌈H/stride⌉, ⌈W/stride⌉).

        Without padding, the result is smaller.
        """
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
    """Yield the stages of a ResNet with their names, such as `layer1`.

    All but the first stage halve the map.

    Args:
        layers: Blocks per stage.
        channels: Width of the blocks per stage.
        stem: Channels of the stem.

    Yields:
        The name of a stage and its blocks.

    Raises:
        ValueError: If `layers` and `channels` differ in length.
    """
    in_channels = stem
    for stage, (blocks, width) in enumerate(zip(layers, channels, strict=True)):
        first = BottleneckBlock(in_channels, width, stride=2 if stage else 1)
        in_channels = 4 * width
        yield (
            f"layer{stage + 1}",
            nn.Sequential(first, *(BottleneckBlock(in_channels, width) for _ in range(blocks - 1))),
        )


class ResNetBody(nn.Module):
    """Body of a ResNet: a stem of 64 channels, and `bottleneck_stages`. The default is a ResNet-50.

    Args:
        layers: Blocks per stage.
        channels: Width of the blocks per stage.
        given: Input channels.
        kernel: Side of the stem's kernel.
        stride: Stride of the stem's convolution and of its pooling.
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
        """Return the features: (N, C, H, W) → (N, 4 × the last of `channels`, rows, columns)."""
        return self.through(self.parts, pixels)

    def through(self, parts: Sequence[str], features: torch.Tensor) -> torch.Tensor:
        """Apply submodules, given by name, to features one after the other."""
        for name in parts:
            features = self.get_submodule(name)(features)
        return features


HALF = ((3, 4), (64, 128))  # `layers` and `channels` of the first half of a ResNet-50.


# Only the middle two of the wavelet's six taps are not zero. The border is two pixels on every side,
# and three if the side is odd.
_BORDER = 2


def diagonal_detail(pixels: torch.Tensor) -> torch.Tensor:
    """Compute the diagonal detail of an image: one band of the wavelet bior1.3.

    (N, C, H, W) → (N, C, (H + 5) // 2, (W + 5) // 2). A value is half of the difference between the
    two diagonals of a 2 × 2 cell. The image is mirrored beyond its edge, including the outermost
    line.
    """
    for axis in (-2, -1):
        pixels = pixels.index_select(axis, _mirror_indices(pixels.shape[axis], pixels.device))
    upper, lower = pixels[..., ::2, :], pixels[..., 1::2, :]
    across = upper - lower
    return (across[..., ::2] - across[..., 1::2]) / 2


def _mirror_indices(side: int, device: torch.device) -> torch.Tensor:
    """Return the indices of the mirrored pixels from −2 to two or three beyond the end.

    Their number is even.
    """
    index = torch.arange(-_BORDER, side + _BORDER + side % 2, device=device) % (2 * side)
    return torch.where(index < side, index, 2 * side - 1 - index)


class Wavelet(ResNetBody):
    """SAFE's network: pixels (N, 3, H, W), 0 to 1, any size → logits (N, 2) of real and fake.

    Source: Li et al., KDD 2025 (arXiv 2408.06741). The network computes `diagonal_detail` of the
    image and resizes it to the image's size. A 3 × 3 stem, layer1 and layer2 of a ResNet-50, the
    mean, and a linear layer follow.
    """

    def __init__(self) -> None:
        super().__init__(*HALF, kernel=3)
        self.fc1 = nn.Linear(512, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W), 0 to 1 → logits (N, 2) of real and fake."""
        # Not in bf16, which keeps almost nothing of a difference of neighbours.
        with torch.autocast(pixels.device.type, enabled=False):
            detail = functional.interpolate(
                diagonal_detail(pixels), pixels.shape[-2:], mode="bilinear", antialias=True
            )
        logits: torch.Tensor = self.fc1(self.features(detail).mean(dim=(-2, -1)))
        return logits


_SPACE, _CHANNELS = (-2, -1), (1,)


def high_pass(features: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Remove the low frequencies of features, then clip negative values to 0.

    A frequency is removed if it is low along all of `dims` at once. Low means −(n // 4) to n // 4 −
    1 cycles for n values. The authors use a complex Fourier transform and drop the imaginary part.
    The real transform used here gives the same result. If only one of a frequency and its negative
    is low, both are halved.

    Args:
        features: Features of any shape.
        dims: The dimensions to transform, such as rows and columns.

    Returns:
        Features of the same shape, float32.
    """
    # Not in bf16, which has no Fourier transform.
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
        filtered = torch.fft.irfftn(
            spectrum * (1 - (low[0] + low[1]) / 2),
            s=[features.shape[dim] for dim in dims],
            dim=dims,
        )
        return functional.relu_(filtered)


def convolve_spectrum(
    features: torch.Tensor, real: nn.Module, imaginary: nn.Module
) -> torch.Tensor:
    """Convolve the real and imaginary parts of the spectrum of features, and transform back.

    The spectrum is the Fourier transform over rows and columns. Its real part is the transform of
    the features' even part around the origin, and its imaginary part that of their odd part. A
    1 × 1 convolution mixes only channels. It is therefore applied to the even or odd part directly,
    and no transform is computed. Negative results are clipped to 0.

    Args:
        features: Features (N, C, H, W).
        real: 1 × 1 convolution of the real parts.
        imaginary: 1 × 1 convolution of the imaginary parts.

    Returns:
        Features of the same height and width.
    """
    flipped = features.flip(_SPACE).roll((1, 1), _SPACE)
    mixed: torch.Tensor = real((features + flipped) / 2) + imaginary((features - flipped) / 2)
    return functional.relu_(mixed)


class FreqNet(nn.Module):
    """FreqNet: pixels (N, 3, H, W), ImageNet-normalised → log-odds (N, 1) of fake.

    Source: Tan et al., AAAI 2024 (arXiv 2403.07240). H and W are at least 2. Four steps remove low
    frequencies from the image or from features. The order is: steps 1 and 2, a max pooling, layer1
    of a ResNet-50, steps 3 and 4, layer2, the mean, and a linear layer.

    The names of the parameters are those of the authors' file. In step 1, `weight1` and `bias1` are
    a 1 × 1 convolution, and `realconv1` and `imagconv1` convolve the spectrum of its output. The
    other steps have the numbers 2 to 4. The convolutions of steps 2 and 4 halve the map.
    """

    def __init__(self) -> None:
        super().__init__()
        for number, (in_channels, out_channels) in enumerate(
            ((3, 64), (64, 64), (256, 256), (256, 256)), start=1
        ):
            conv = nn.Conv2d(in_channels, out_channels, 1)
            setattr(self, f"weight{number}", conv.weight)
            setattr(self, f"bias{number}", conv.bias)
            self.add_module(
                f"realconv{number}", nn.Conv2d(out_channels, out_channels, 1, bias=False)
            )
            self.add_module(
                f"imagconv{number}", nn.Conv2d(out_channels, out_channels, 1, bias=False)
            )
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for name, stage in bottleneck_stages(*HALF):
            self.add_module(name, stage)
        self.fc1 = nn.Linear(512, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W), normalised → log-odds (N, 1) of fake."""
        features = self.maxpool(self._mix(self._mix(pixels, 1), 2))
        features = self._mix(self._mix(self.get_submodule("layer1")(features), 3), 4)
        features = self.get_submodule("layer2")(features)
        logits: torch.Tensor = self.fc1(features.mean(dim=(-2, -1)))
        return logits

    def _mix(self, features: torch.Tensor, number: int) -> torch.Tensor:
        weight, bias = self.get_parameter(f"weight{number}"), self.get_parameter(f"bias{number}")
        features = functional.relu_(
            functional.conv2d(high_pass(features, _SPACE), weight, bias, stride=2 - number % 2)
        )
        if number < 3:
            features = high_pass(features, _CHANNELS)
        return convolve_spectrum(
            features,
            self.get_submodule(f"realconv{number}"),
            self.get_submodule(f"imagconv{number}"),
        )


Residual = Literal["npr", "raw", "x_grad", "y_grad", "left_diag", "right_diag"]

# 3 × 3 kernels, cross-correlated with each channel separately.
_GRADIENTS = {
    "x_grad": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "y_grad": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "left_diag": ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)),
    "right_diag": ((-2, -1, 0), (-1, 0, 1), (0, 1, 2)),
}

# A cell of 8 × 8 px depends on 43 px to either side: conv1 1, maxpool 2, layer1 3 × 4, layer2
# 4 + 3 × 8.
STRIDE, HALO = 8, 48  # Corvi has the same stride, because layer2, layer3, and layer4 halve its map.


def upsampling_residual(pixels: torch.Tensor) -> torch.Tensor:
    """Subtract from each pixel the upper left pixel of its 2 × 2 cell.

    The residual shows traces of upsampling by two. (N, C, H, W) → (N, C, H, W) for even sides. The
    last row or column of an odd side is dropped.
    """
    height, width = (side // 2 * 2 for side in pixels.shape[-2:])
    even = pixels[..., :height:2, :width:2]
    return pixels[..., :height, :width] - even.repeat_interleave(2, dim=-2).repeat_interleave(
        2, dim=-1
    )


def residual_of(pixels: torch.Tensor, kind: Residual) -> torch.Tensor:
    """Filter pixels (N, C, H, W) before the first layer of a network, and return the residual.

    Args:
        pixels: The pixels.
        kind: "npr" is the `upsampling_residual`, and "raw" returns the pixels unchanged. Any other
            kind is a gradient, horizontal for "x_grad", vertical for "y_grad", or diagonal. For a
            gradient, pixels outside the image count as 0.

    Returns:
        The residual (N, C, H, W). With "npr", the last row or column of an odd side is missing.
    """
    if kind == "npr":
        return upsampling_residual(pixels)
    if kind == "raw":
        return pixels
    channels = pixels.shape[1]
    kernel = torch.tensor(_GRADIENTS[kind], dtype=pixels.dtype, device=pixels.device)
    # Not in bf16, which keeps almost nothing of a difference of neighbours.
    with torch.autocast(pixels.device.type, enabled=False):
        return functional.conv2d(
            pixels, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels
        )


class Npr(ResNetBody):
    """NPR's network: pixels (N, 3, H, W), ImageNet-normalised, any size → log-odds (N, 1) of fake.

    Source: Tan et al., CVPR 2024 (arXiv 2312.10461). The input of the ResNet is the
    `upsampling_residual` (differences of neighbouring pixels), times 2/3. A 3 × 3 stem, layer1 and
    layer2 of a ResNet-50, the mean, and a linear layer follow. The last row or column of an odd
    side is dropped, and a side of 1 px gives NaN. Large images are processed in tiles.

    Args:
        tile: Side of a tile in pixels, at least 8, rounded down to a multiple of 8.
    """

    def __init__(self, *, tile: int = 1536) -> None:
        super().__init__(*HALF, kernel=3)
        require_tile(tile, STRIDE)
        self.fc1 = nn.Linear(512, 1)
        self.tiling = Tiling(tile, STRIDE, HALO)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W), normalised → log-odds (N, 1) of fake."""
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
# Side of a tile in pixels. The halo adds 112, which makes 1.8 times as many pixels. A CPU process stays
# below 2 GiB, and a GPU has enough memory.
TILE = {"cpu": 320, "cuda": 1536}


class Corvi(ResNetBody):
    """Corvi's network: pixels (N, 3, H, W), ImageNet-normalised, any size → log-odds (N, 1).

    The log-odds are those of fake. Source: Corvi et al., ICASSP 2023 (arXiv 2211.00680). The
    network is a ResNet with stride 1 in `conv1` and `maxpool`, the mean of its features, and a
    linear layer. Large images are processed in overlapping tiles, and the logit is that of the
    uncut image.

    Args:
        layers: Blocks per stage.
        channels: Width of the blocks per stage.
        tile: Side of a tile in pixels without the overlap, at least 8, rounded down to a multiple
            of 8. None means 320 on a CPU and 1536 on a GPU (`TILE`).
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
        """Return the features: (N, 3, H, W) → (N, channels, ⌈H/8⌉, ⌈W/8⌉)."""
        # layer1's maps are as large as the image and have 256 channels, but depend on only 7 px
        # around. Up to the block that halves them, they are computed in tiles of their own, and a
        # window with its halo has more than one of these.
        halo = _round_up(receptive_radius((self.layers[0], 1)), 2)
        remaining_parts = [
            *(f"layer2.{block}" for block in range(1, self.layers[1])),
            "layer3",
            "layer4",
        ]
        return self.through(
            remaining_parts,
            feature_map(
                partial(self.through, _HALVING), pixels, Tiling(self._tile(pixels), 2, halo)
            ),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W), normalised → log-odds (N, 1) of fake."""
        logits: torch.Tensor = self.fc(mean_features(self.features, pixels, self._tiling(pixels)))
        return logits

    def logit_map(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logit of every 8 × 8 px cell, a map of the areas that look fake.

        Pixels (N, 3, H, W) → (N, 1, ⌈H/8⌉, ⌈W/8⌉). The mean of these logits is the logit of the
        image, because the head is linear.
        """
        return feature_map(self._logits, pixels, self._tiling(pixels))

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(
            self.features(pixels).float(), self.fc.weight[:, :, None, None], self.fc.bias
        )

    def _tiling(self, pixels: torch.Tensor) -> Tiling:
        return Tiling(self._tile(pixels), STRIDE, _round_up(receptive_radius(self.layers), STRIDE))

    def _tile(self, pixels: torch.Tensor) -> int:
        return self.tile or TILE.get(pixels.device.type, TILE["cpu"])


def receptive_radius(layers: Sequence[int]) -> int:
    """Return the radius in pixels of the receptive field of a `Corvi` network's features.

    A position of the feature map belongs to a cell of 8 × 8 pixels. The radius is counted from the
    upper left pixel of the cell to every side. It is 56 for ResNet-50, so the features depend on
    113 × 113 pixels.

    Args:
        layers: Blocks per stage of the ResNet.

    Returns:
        The radius.
    """
    radius, step = 3 + 1, 1  # conv1 7 × 7, maxpool 3 × 3
    for stage, blocks in enumerate(layers):
        radius += step  # The first block's 3 × 3 still has the resolution of the stage's input.
        step *= 2 if stage else 1
        radius += (blocks - 1) * step
    return radius


def _round_up(pixels: int, stride: int) -> int:
    return -(-pixels // stride) * stride
