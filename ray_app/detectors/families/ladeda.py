"""Build the `ladeda` family: detectors that average the scores of all 9 × 9 px patches.

LaDeDa9 is a ResNet-50 with most 3 × 3 convolutions reduced to 1 × 1. Tiny-LaDeDa has four
convolutions. Source: Cavia et al., arXiv 2406.09398.
"""

from typing import get_args

import torch
import torch.nn.functional as functional
from torch import nn

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.families.resnet import BottleneckBlock, Residual, residual_of
from ray_app.errors import DetectorError


class PatchNetwork(nn.Module):
    """Base class of networks that score an image by the mean of its patches' features.

    Subclasses define `features`, and the linear layer `fc` turns the mean into one logit.
    """

    fc: nn.Linear

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of all patches: (N, 3, H, W) → (N, channels, rows, columns)."""
        raise NotImplementedError

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W) → log-odds (N, 1) of fake."""
        # In float64: Tiny-LaDeDa's eight means nearly cancel in its head, and a float32 mean over
        # 126 × 126 cells moves its logit by 0.005.
        logits: torch.Tensor = self.fc(
            self.features(pixels).mean(dim=(-2, -1), dtype=torch.float64).float()
        )
        return logits

    def logit_map(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logit of every patch: pixels (N, 3, H, W) → (N, 1, rows, columns).

        The mean of these logits is the logit of the image, because the head is linear.
        """
        return functional.conv2d(
            self.features(pixels), self.fc.weight[:, :, None, None], self.fc.bias
        )


class LaDeDa9(PatchNetwork):
    """LaDeDa9: pixels (N, 3, H, W), ImageNet-normalised → log-odds (N, 1) of fake.

    The bottleneck blocks compute features of 9 × 9 px patches at every eighth pixel. Sides are at
    least 9 px, or 10 px with the residual `npr`, which drops the last row or column of an odd side.

    Args:
        residual: The filter of the pixels before the first layer, see `resnet.residual_of`.
        layers: Blocks per stage.
        width: Channels of the first layer.
    """

    def __init__(
        self, residual: Residual = "npr", *, layers: tuple[int, ...] = (3, 4, 6, 3), width: int = 64
    ) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(3, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        channels = width
        for stage, blocks in enumerate(layers):
            planes, kernel, stride = width * 2**stage, 3 if stage < 2 else 1, 2 if stage < 3 else 1
            first = BottleneckBlock(channels, planes, stride, kernel=kernel, padding=0)
            channels = 4 * planes
            rest = (
                BottleneckBlock(channels, planes, kernel=1, padding=0) for _ in range(blocks - 1)
            )
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
        self.stages = tuple(f"layer{stage + 1}" for stage in range(len(layers)))
        self.fc = nn.Linear(channels, 1)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of the 9 × 9 px patches at every eighth pixel.

        Pixels (N, 3, H, W) → (N, channels, rows, columns).
        """
        features: torch.Tensor = self.relu(
            self.bn1(self.conv2(self.conv1(residual_of(pixels, self.residual))))
        )
        for stage in self.stages:
            features = self.get_submodule(stage)(features)
        return features


class TinyBlock(nn.Module):
    """1 × 1 convolution, then 3 × 3 convolution with stride 2, each with batch norm and ReLU.

    The block has no shortcut and no padding.

    Args:
        width: Input and output channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = (
            nn.Conv2d(width, width, 3, stride=2, bias=False),
            nn.BatchNorm2d(width),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Apply the block: (N, width, H, W) → (N, width, about H/2, about W/2)."""
        result: torch.Tensor = self.relu(
            self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        )
        return result


class TinyLaDeDa(PatchNetwork):
    """Tiny-LaDeDa: pixels (N, 3, H, W), ImageNet-normalised → log-odds (N, 1) of fake.

    The network has four convolutions of eight channels and 1,297 parameters. Sides are at least 5
    px, or 6 px with the residual `npr`, which drops the last row or column of an odd side.

    Set `residual` to the filter that the weights were trained with. With a wrong filter, the logits
    are wrong but may look plausible. For example, logits of the published file trained on WildRF
    stay in the tens. Those of the file trained on ForenSynth are in the thousands.

    Args:
        residual: The filter of the pixels before the first layer, see `resnet.residual_of`.
        width: Number of channels.
    """

    def __init__(self, residual: Residual = "right_diag", *, width: int = 8) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(3, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(TinyBlock(width))
        self.fc = nn.Linear(width, 1)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of the patches at every second pixel.

        Pixels (N, 3, H, W) → (N, channels, rows, columns).
        """
        features: torch.Tensor = self.layer1(
            self.relu(self.bn1(self.conv2(self.conv1(residual_of(pixels, self.residual)))))
        )
        return features


_NETWORKS: dict[str, type[PatchNetwork]] = {"ladeda9": LaDeDa9, "tiny-ladeda": TinyLaDeDa}


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card, without weights: (N, 3, H, W) → logits (N, 1).

    The card's `architecture.name` is `ladeda9` or `tiny-ladeda`. Raises DetectorError if the name
    or the argument `residual` is unknown.
    """
    name = card.architecture.name
    if name not in _NETWORKS:
        raise DetectorError(
            f"{card.name}: unknown network {name!r} of the family ladeda",
            hint=f"use one of: {', '.join(_NETWORKS)}",
        )
    if (kind := card.architecture.arguments.get("residual", "npr")) not in get_args(Residual):
        raise DetectorError(
            f"{card.name}: unknown residual {kind!r}",
            hint=f"use one of: {', '.join(get_args(Residual))}",
        )
    return _NETWORKS[name](**card.architecture.arguments)
