"""A ResNet of bottlenecks in plain torch, under torchvision's names of tensors: its body (`ResNetBody`), its stages, its blocks.

timm's own brings torchvision with it, which takes longer to import than torch. Source: He et al., CVPR 2016 (arXiv 1512.03385), the stride
on the 3 × 3 convolution.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn


class BottleneckBlock(nn.Module):
    """1 × 1, `kernel` × `kernel` with the stride, 1 × 1, beside a shortcut: (N, channels, H, W) → (N, 4 × width, ⌈H/stride⌉, ⌈W/stride⌉).

    Without `padding` the map is smaller, and the shortcut loses as many lines at the bottom and right.
    """

    def __init__(self, channels: int, width: int, stride: int = 1, *, kernel: int = 3, padding: int = 1) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, kernel, stride, padding=padding, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.act = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Add both ways; see the class for shapes."""
        shortcut = features if self.downsample is None else self.downsample(features)
        features = self.act(self.bn1(self.conv1(features)))
        features = self.act(self.bn2(self.conv2(features)))
        features = self.bn3(self.conv3(features))
        features += shortcut[..., : features.shape[-2], : features.shape[-1]]
        result: torch.Tensor = self.act(features)
        return result


def bottleneck_stages(layers: Sequence[int], channels: Sequence[int], stem: int = 64) -> Iterator[tuple[str, nn.Module]]:
    """`layer1`, `layer2`, … after a stem of so many channels: so many bottlenecks each, so wide; all but the first halve the map.

    Raises ValueError where these differ in number.
    """
    given = stem
    for stage, (blocks, width) in enumerate(zip(layers, channels, strict=True)):
        first = BottleneckBlock(given, width, stride=2 if stage else 1)
        given = 4 * width
        yield f"layer{stage + 1}", nn.Sequential(first, *(BottleneckBlock(given, width) for _ in range(blocks - 1)))


class ResNetBody(nn.Module):
    """A stem of 64 channels and stages (see `bottleneck_stages`), by default those of a ResNet-50.

    `stride`: of the stem's convolution (`kernel` × `kernel` px, of `given` maps) and of its pooling.
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
        self.conv1, self.bn1 = nn.Conv2d(given, 64, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(64)
        self.act1, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride, padding=1)
        for name, stage in bottleneck_stages(layers, channels):
            self.add_module(name, stage)
        self.parts = ("conv1", "bn1", "act1", "maxpool", *(f"layer{stage + 1}" for stage in range(len(layers))))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, given, H, W) → (N, 4 × the last of `channels`, rows, columns)."""
        return self.through(self.parts, pixels)

    def through(self, parts: Sequence[str], features: torch.Tensor) -> torch.Tensor:
        """What some parts of it, one after another, make of features."""
        for name in parts:
            features = self.get_submodule(name)(features)
        return features


HALF = ((3, 4), (64, 128))  # the first half of a ResNet-50: `layers` and `channels`
