"""The `frozen-linear` family: one linear layer on a feature of a frozen backbone that timm or transformers builds.

After Zhou et al. 2026 (arXiv 2602.01738) and arXiv 2509.12995: on images of the world a linear head on frozen features of a current
vision foundation model beats detectors made for the task. A backbone is named `timm/NAME`, or `transformers/CLASS` for a CLIP-like class
that ends in VisionModelWithProjection. Built from a configuration, never from a hub.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
import transformers
from torch import nn

from ray_app.detectors.card import Backbone, DetectorCard
from ray_app.detectors.detector import BACKBONE
from ray_app.detectors.families.clip import FrozenLinear
from ray_app.detectors.families.transformers import quietly, unknown_keys, use_headwise_attention
from ray_app.errors import DetectorError

_INNER = "network"  # the library's own network in `LibraryBackbone`
_PROJECTING = "VisionModelWithProjection"


class BackboneFeatures(NamedTuple):
    """What a backbone tells of a batch: `pooled` (N, width), as the library pools its tokens, and `projected` (N, d), what its own last
    layer makes of that for texts or classes; where it has none, the same as `pooled`.
    """

    pooled: torch.Tensor
    projected: torch.Tensor


class LibraryBackbone(nn.Module):
    """A library's own network, (N, 3, H, W) → `BackboneFeatures`. Its files hold the names of `network`: see `published_keys`.

    `widths`: numbers per image of each feature.
    """

    widths: Mapping[str, int]

    def __init__(self, network: Any, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.network, self.widths = network, widths


class TimmBackbone(LibraryBackbone):
    """A network of timm's. Where it has position embeddings and `dynamic_img_size`, it takes images of any size that its patches divide:
    timm resamples its position embeddings (bicubic, antialiased), or its rotary ones follow the grid.
    """

    def __init__(self, network: Any) -> None:
        pooled = int(network.head_hidden_size)
        super().__init__(network, {"pooled": pooled, "projected": int(network.num_classes) or pooled})

    def forward(self, pixels: torch.Tensor) -> BackboneFeatures:
        """Run the network; see the class."""
        tokens = self.network.forward_features(pixels)
        pooled = self.network.forward_head(tokens, pre_logits=True)
        return BackboneFeatures(pooled, self.network.forward_head(tokens) if self.network.num_classes else pooled)


class ProjectingBackbone(LibraryBackbone):
    """A vision tower of transformers' with its projection: `pooled` is the class token after the last norm, `projected` lies in the space
    shared with texts, not normalised. Other sizes than the configuration's go by position embeddings that transformers resamples (bicubic).
    """

    def __init__(self, network: Any) -> None:
        super().__init__(network, {"pooled": network.config.hidden_size, "projected": network.config.projection_dim})

    def forward(self, pixels: torch.Tensor) -> BackboneFeatures:
        """Run the network; see the class."""
        pooled = self.network.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
        return BackboneFeatures(pooled, self.network.visual_projection(pooled))


def build(card: DetectorCard) -> nn.Module:
    """The network of a card: its backbone by `build_backbone`, its own arguments are `feature` and `normalise`. Raises DetectorError."""
    if card.backbone is None:
        raise DetectorError(f"{card.name}: a card of family {card.family} names a backbone", hint="backbone: perception-encoder-l14")
    own: dict[str, Any] = dict(card.architecture.arguments)
    backbone = build_backbone(card.backbone)
    if own.get("feature") not in backbone.widths or not isinstance(own.get("normalise"), bool) or len(own) != 2:
        raise DetectorError(f"{card.name}: architecture.arguments are `feature` (pooled or projected) and `normalise` (true or false)")
    return FrozenLinear(backbone, width=backbone.widths[own["feature"]], **own, logits=card.output.logits)


def build_backbone(backbone: Backbone) -> LibraryBackbone:
    """The network that a backbone's `architecture` names, with its arguments, randomly initialised. Raises DetectorError."""
    library, _, name = backbone.architecture.name.partition("/")
    arguments = dict(backbone.architecture.arguments)
    try:
        if library == "timm":
            return TimmBackbone(timm.create_model(name, pretrained=False, **arguments))
        if library == "transformers" and name.endswith(_PROJECTING) and hasattr(transformers, name):
            return ProjectingBackbone(_of_transformers(name, arguments, backbone.name))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise DetectorError(f"{backbone.name}: {library} cannot build {name}: {error}") from error
    raise DetectorError(
        f"{backbone.name}: architecture.name {backbone.architecture.name!r} is neither timm/NAME nor transformers/…{_PROJECTING}"
    )


def published_keys(state: Mapping[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """A file's tensors under the names of a backbone, or of a detector with one: files hold those of the library's own network."""
    outer = "" if isinstance(network, LibraryBackbone) else f"{BACKBONE}."
    inner = f"{outer}{_INNER}."
    return {
        inner + key.removeprefix(outer) if key.startswith(outer) and not key.startswith(inner) else key: tensor
        for key, tensor in state.items()
    }


def _of_transformers(name: str, arguments: Mapping[str, Any], where: str) -> Any:
    kind: Any = getattr(transformers, name)
    with quietly():
        if unknown := list(unknown_keys(arguments, kind.config_class().to_dict())):
            raise DetectorError(f"{where}: architecture.arguments: unknown keys for {name}: {', '.join(unknown)}")
        network = kind(kind.config_class(**arguments))
    use_headwise_attention(network)
    return network
