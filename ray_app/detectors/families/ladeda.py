"""The `ladeda` family: detectors that see 9 × 9 px at a time and average the scores of all such
patches.

LaDeDa9 is a ResNet-50 with most 3 × 3 convolutions shrunk to 1 × 1, Tiny-LaDeDa four convolutions.
Sources: Cavia et al., arXiv 2406.09398; specs/detectors.md §8.
"""

from typing import get_args

import torch
import torch.nn.functional as functional
from torch import nn

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.families.resnet import BottleneckBlock, Residual, residual_of
from ray_app.errors import DetectorError


class PatchNetwork(nn.Module):
    """Features of patches; their mean over all patches; one logit."""

    fc: nn.Linear

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) → (N, channels, rows of patches, columns of patches)."""
        raise NotImplementedError

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch: (N, 3, H, W) → (N, 1)."""
        # In float64: Tiny-LaDeDa's eight means nearly cancel in its head, and a float32 mean over
        # 126 × 126 cells moves its logit by 0.005.
        logits: torch.Tensor = self.fc(
            self.features(pixels).mean(dim=(-2, -1), dtype=torch.float64).float()
        )
        return logits

    def logit_map(self, pixels: torch.Tensor) -> torch.Tensor:
        """What every patch says, (N, 1, rows, columns); its mean is the logit, because the head is
        linear.
        """
        return functional.conv2d(
            self.features(pixels), self.fc.weight[:, :, None, None], self.fc.bias
        )


class LaDeDa9(PatchNetwork):
    """Bottlenecks over 9 × 9 px patches at every eighth pixel; the mean over all patches; one
    logit.

    Input: (N, 3, H, W), ImageNet-normalised, sides of at least 9 px, with the residual `npr` 10: it
    drops the last line of an odd side. Output: (N, 1), log-odds of fake.
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
        """See the base class; every eighth pixel begins a patch."""
        features: torch.Tensor = self.relu(
            self.bn1(self.conv2(self.conv1(residual_of(pixels, self.residual))))
        )
        for stage in self.stages:
            features = self.get_submodule(stage)(features)
        return features


class TinyBlock(nn.Module):
    """1 × 1 and 3 × 3 with stride 2, each normalised; no shortcut, no padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = (
            nn.Conv2d(width, width, 3, stride=2, bias=False),
            nn.BatchNorm2d(width),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, width, H, W) → (N, width, about H/2, about W/2)."""
        result: torch.Tensor = self.relu(
            self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        )
        return result


class TinyLaDeDa(PatchNetwork):
    """Four convolutions of eight channels; 1,297 parameters.

    Input: (N, 3, H, W), ImageNet-normalised, sides of at least 5 px, with the residual `npr` 6: it
    drops the last line of an odd side. Output: (N, 1), log-odds of fake. `residual` has to be the
    one that the weights were trained on: another gives logits that may look plausible (the
    published WildRF file: tens, as with its own) or not (ForenSynth: thousands), and are wrong
    either way.
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
        """See the base class; every second pixel begins a patch."""
        features: torch.Tensor = self.layer1(
            self.relu(self.bn1(self.conv2(self.conv1(residual_of(pixels, self.residual)))))
        )
        return features


_NETWORKS: dict[str, type[PatchNetwork]] = {"ladeda9": LaDeDa9, "tiny-ladeda": TinyLaDeDa}


def build(card: DetectorCard) -> nn.Module:
    """The network that a card of family `ladeda` names, without weights: (N, 3, H, W) → (N, 1)
    logits. Raises DetectorError.
    """
    name = card.architecture.name
    if name not in _NETWORKS:
        raise DetectorError(
            f"{card.name}: no network of the family ladeda is called {name!r}",
            hint=f"networks: {', '.join(_NETWORKS)}",
        )
    if (kind := card.architecture.arguments.get("residual", "npr")) not in get_args(Residual):
        raise DetectorError(
            f"{card.name}: no residual is called {kind!r}",
            hint=f"residuals: {', '.join(get_args(Residual))}",
        )
    return _NETWORKS[name](**card.architecture.arguments)
