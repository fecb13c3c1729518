"""The families of timm's networks by timm's own names: `timm-classifier`, any image classifier;
`embedding`, a network whose last layer gives an embedding that was trained by contrast, and a
linear layer on it, under DRCT's key names; `b-free`, a vision transformer on five large crops of an
image at its own size, the mean of their logits. Nothing is downloaded.

Sources: Chen et al., ICML 2024 (PMLR 235, pages 7621–7639); Guillaro et al., CVPR 2025 (arXiv
2412.17671). The authors of the latter embed patches of the whole image and cut the five crops out
of those; here the crops are cut out of the pixels at whole patches and embedded after, which is the
same and costs less of a large image.
"""

import math
from typing import Any

import timm
import torch
from torch import nn

from ray_app.detectors.card import DetectorCard
from ray_app.errors import DetectorError


class EmbeddingClassifier(nn.Module):
    """(N, 3, H, W), normalised → (N, logits). `model` gives (N, width) in the place of its classes;
    `fc` is the head on it.
    """

    def __init__(self, model: nn.Module, width: int, logits: int) -> None:
        super().__init__()
        self.model, self.fc = model, nn.Linear(width, logits)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        logits: torch.Tensor = self.fc(self.model(pixels))
        return logits


class FiveCrops(nn.Module):
    """(N, 3, H, W), normalised, H and W at least one patch → (N, logits): `network` on the centre
    and the four corners, averaged.

    What is left of a side beyond whole patches is not seen. An image with a side shorter than the
    crop is repeated from its upper left corner until it fills one crop; its longer side, if it has
    one, ends there too.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.patch = int(network.patch_embed.patch_size[0])
        self.side = int(network.patch_embed.img_size[0])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score images of one size; see the class."""
        pixels = self._filled(pixels)
        bottom, right = (length - self.side for length in pixels.shape[2:])
        centre = tuple(rest // self.patch // 2 * self.patch for rest in (bottom, right))
        corners = [centre, (0, 0), (bottom, 0), (bottom, right), (0, right)]
        places = list(dict.fromkeys(corners))  # where a side is the crop's own, some are one
        crops = [
            pixels[..., top : top + self.side, left : left + self.side] for top, left in places
        ]
        logits = self.network(torch.cat(crops)).float().unflatten(0, (len(places), len(pixels)))
        mean: torch.Tensor = logits[[places.index(corner) for corner in corners]].mean(dim=0)
        return mean

    def _filled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Whole patches alone; and where these are too few for a crop, one crop of repetitions."""
        height, width = (length // self.patch * self.patch for length in pixels.shape[2:])
        pixels = pixels[..., :height, :width]
        if min(height, width) >= self.side:
            return pixels
        times = [math.ceil(self.side / length) for length in (height, width)]
        return pixels.repeat(1, 1, *times)[..., : self.side, : self.side]


def build(card: DetectorCard) -> nn.Module:
    """The network of the card: `architecture.name` is timm's, `arguments` go to
    `timm.create_model`, but for an `embedding`'s `width`.
    """
    arguments = dict(card.architecture.arguments)
    if card.family != "embedding":
        network: nn.Module = timm.create_model(
            card.architecture.name, pretrained=False, num_classes=card.output.logits, **arguments
        )
        return FiveCrops(network) if card.family == "b-free" else network
    width = arguments.pop("width", None)
    if not isinstance(width, int) or width < 1:
        raise DetectorError(
            f"{card.name}: architecture.arguments: width: numbers in the embedding, at least 1, not {width!r}"
        )
    model = timm.create_model(
        card.architecture.name, pretrained=False, num_classes=width, **arguments
    )
    return EmbeddingClassifier(model, width, card.output.logits)
