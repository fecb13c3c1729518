"""Build the families `timm-classifier`, `embedding`, and `b-free`, whose networks are timm's.

Networks have timm's own names, and nothing is downloaded. `timm-classifier` is any image
classifier. `embedding` is a linear layer on an embedding from contrastive training, with the key
names of DRCT (Chen et al., ICML 2024, PMLR 235, pages 7621–7639).

`b-free` scores five crops of an image at its own size with a vision transformer, and averages their
logits (Guillaro et al., CVPR 2025, arXiv 2412.17671). The authors embed the patches of the whole
image and then cut the crops. Here the crops are cut first, at whole patches. The result is the same
and costs less for a large image.
"""

import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from ray_app.detectors.card import DetectorCard
from ray_app.errors import DetectorError


class EmbeddingClassifier(nn.Module):
    """Linear head on an embedding (N, width): (N, 3, H, W), normalised → (N, logits)."""

    def __init__(self, model: nn.Module, width: int, logits: int) -> None:
        super().__init__()
        self.model, self.fc = model, nn.Linear(width, logits)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W), normalised → (N, logits)."""
        logits: torch.Tensor = self.fc(self.model(pixels))
        return logits


class FiveCrops(nn.Module):
    """Mean logits of five crops: pixels (N, 3, H, W), normalised → (N, logits).

    The crops are the centre and the four corners. H and W are at least one patch. Pixels beyond
    whole patches are not used. If a side is shorter than the crop, there is only one crop. The
    image is repeated to the right and below until it fills this crop, and a longer side is cut. The
    network is a vision transformer of timm, whose input size is the size of a crop.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.patch = int(network.patch_embed.patch_size[0])
        self.side = int(network.patch_embed.img_size[0])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score images of one size: pixels (N, 3, H, W), normalised → mean logits (N, logits)."""
        pixels = self._fill(pixels)
        bottom, right = (length - self.side for length in pixels.shape[2:])
        centre = tuple(margin // self.patch // 2 * self.patch for margin in (bottom, right))
        corners = [centre, (0, 0), (bottom, 0), (bottom, right), (0, right)]
        # Crops coincide if a side of the image is that of the crop.
        positions = list(dict.fromkeys(corners))
        crops = [
            pixels[..., top : top + self.side, left : left + self.side] for top, left in positions
        ]
        logits = self.network(torch.cat(crops)).float().unflatten(0, (len(positions), len(pixels)))
        mean: torch.Tensor = logits[[positions.index(corner) for corner in corners]].mean(dim=0)
        return mean

    def _fill(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return whole patches only, or one crop of repetitions if these are too few for a crop."""
        height, width = (length // self.patch * self.patch for length in pixels.shape[2:])
        pixels = pixels[..., :height, :width]
        if min(height, width) >= self.side:
            return pixels
        times = [math.ceil(self.side / length) for length in (height, width)]
        return pixels.repeat(1, 1, *times)[..., : self.side, : self.side]


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card of the family `timm-classifier`, `embedding`, or `b-free`.

    `architecture.name` is a name of timm. `architecture.arguments` are the arguments of
    `timm.create_model`. For `embedding`, they also have `width`, the width of the embedding. Raises
    DetectorError if `width` is invalid.
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
            f"{card.name}: architecture.arguments: width must be a whole number of at least 1, got {width!r}"
        )
    model = timm.create_model(
        card.architecture.name, pretrained=False, num_classes=width, **arguments
    )
    return EmbeddingClassifier(model, width, card.output.logits)


def published_keys(state: Mapping[str, torch.Tensor], network: Any) -> Mapping[str, torch.Tensor]:
    """Rename the tensors of a file by an earlier timm (see `rename_earlier_keys`)."""
    if isinstance(network, FiveCrops):
        return rename_earlier_keys(state, network.network, "network.")
    if isinstance(network, EmbeddingClassifier):
        return rename_earlier_keys(state, network.model, "model.")
    return rename_earlier_keys(state, network)


def rename_earlier_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module, prefix: str = ""
) -> Mapping[str, torch.Tensor]:
    """Rename the tensors of a file by an earlier timm, and drop those that are now computed.

    timm's own function for this is `checkpoint_filter_fn` of the module that defines the network.
    Its result is not used if it has tensors of other sizes than the file: it also resamples tables
    of positions, and a file for another image size must not fit. `prefix` precedes the keys of the
    network in `state`.
    """
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    own = {key: tensor for key, tensor in state.items() if key.startswith(prefix)}
    found = {key.removeprefix(prefix): tensor for key, tensor in own.items()}
    expected = network.state_dict().keys()
    if convert is None or found.keys() == expected:
        return state
    try:
        renamed = convert(dict(found), network)
    except Exception:  # It requires a file of its family. The loader reports what does not fit.
        return state
    is_closer = len(renamed.keys() ^ expected) < len(found.keys() ^ expected)
    if not is_closer or _count_sizes(renamed) - _count_sizes(found):
        return state
    others = {key: tensor for key, tensor in state.items() if key not in own}
    return others | {prefix + key: tensor for key, tensor in renamed.items()}


def _count_sizes(state: Mapping[str, torch.Tensor]) -> Counter[int]:
    return Counter(tensor.numel() for tensor in state.values())
