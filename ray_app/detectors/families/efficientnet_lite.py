"""Build EfficientNet-Lite in plain torch, with timm's tensor names.

timm's own implementation needs torchvision, which takes longer to import than an image takes to
score. Sources: Tan and Le, ICML 2019 (arXiv 1905.11946); github.com/tensorflow/tpu.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Per stage: blocks, kernel, stride, expansion within a block, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Scales of channels and blocks of lite0 to lite4.
_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))
_STEM, _HEAD = 32, 1280  # Channels, in all sizes.
_NAME = re.compile(r"(tf_)?efficientnet_lite([0-4])")


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's padding: each side of the output is ⌈input side / stride⌉.

    If the padding of a side is odd, the additional line is at the bottom or at the right.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve: (N, C, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
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
    """Inverted bottleneck: expand the channels, convolve each channel separately, project.

    If `wider` is 1, as in the first stage, the block does not expand.

    Args:
        channels: Input channels.
        out: Output channels.
        kernel: Side of the kernel.
        stride: Stride of the channelwise convolution.
        wider: Factor by which the block expands the number of channels.
        like: The network whose methods `conv` and `norm` build the layers of the block.

    Attributes:
        pairs: Names of each convolution and the batch norm after it, such as ("conv_dw", "bn2").
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
        self.pairs = tuple((conv, f"bn{index}") for index, conv in enumerate(shapes, start=1))
        for (conv, norm), (in_channels, out_channels, size) in zip(
            self.pairs, shapes.values(), strict=True
        ):
            is_depthwise = conv == "conv_dw"
            self.add_module(
                conv,
                like.conv(
                    in_channels,
                    out_channels,
                    size,
                    stride if is_depthwise else 1,
                    within if is_depthwise else 1,
                ),
            )
            self.add_module(norm, like.norm(out_channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Apply the block: (N, channels, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        shortcut = features
        for index, (conv, norm) in enumerate(self.pairs):
            features = self.get_submodule(norm)(self.get_submodule(conv)(features))
            if index < len(self.pairs) - 1:
                features = functional.relu6(features, inplace=True)
        return features + shortcut if self.adds else features


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite 0 to 4.

    Args:
        name: `efficientnet_lite0` to `4`, or `tf_efficientnet_lite0` to `4` for the padding of
            Google's weights. Any other name raises ValueError.
        norms: Whether the network has batch norms. If it has none, its convolutions have biases,
            into which the norms of a file are folded.
        classes: Number of classes. 0 builds no classifier.

    Attributes:
        widths: Channels of every stage and of the last convolution.
    """

    def __init__(self, name: str, *, norms: bool, classes: int = 0) -> None:
        super().__init__()
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"name must be efficientnet_lite0 to efficientnet_lite4, with or without the prefix tf_, got {name!r}"
            )
        self._same, self._norms = bool(match[1]), norms
        channel_scale, depth_scale = _SCALES[int(match[2])]
        self.conv_stem, self.bn1 = self.conv(3, _STEM, 3, 2, 1), self.norm(_STEM)
        stages, widths, channels = [], [], _STEM
        for index, (blocks, kernel, stride, wider, base) in enumerate(_STAGES):
            n_blocks = blocks if index in (0, len(_STAGES) - 1) else math.ceil(blocks * depth_scale)
            widths.append(_round_channels(base * channel_scale))
            stage = []
            for block in range(n_blocks):
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
        """Build a convolution with the padding of this network.

        Args:
            channels: Input channels.
            out: Output channels.
            kernel: Side of the kernel.
            stride: Stride.
            groups: Groups.
        """
        kind, padding = (SameConv2d, 0) if self._same and stride > 1 else (nn.Conv2d, kernel // 2)
        return kind(channels, out, kernel, stride, padding, groups=groups, bias=not self._norms)

    def norm(self, channels: int) -> nn.Module:
        """Build a batch norm, or an identity if the network has no norms."""
        return (
            nn.BatchNorm2d(channels, eps=1e-3 if self._same else 1e-5)
            if self._norms
            else nn.Identity()
        )

    def maps(self, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the features after every stage and after the last convolution.

        (N, 3, H, W) → each (N, channels, h, w).
        """
        features = functional.relu6(self.bn1(self.conv_stem(pixels)), inplace=True)
        for stage in self.blocks:
            features = stage(features)
            yield features
        yield functional.relu6(self.bn2(self.conv_head(features)), inplace=True)

    @torch.no_grad()
    def folded(self) -> dict[str, torch.Tensor]:
        """Return the state dict for a network without batch norms that gives the same results.

        Each batch norm is folded into the convolution before it. The classifier is left out. The
        network must have been built with `norms=True`.
        """
        state = {}
        for where, conv, norm in self._pairs():
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            state[f"{where}.weight"] = conv.weight * scale.reshape(-1, 1, 1, 1)
            state[f"{where}.bias"] = norm.bias - norm.running_mean * scale
        return state

    def _pairs(self) -> Iterator[tuple[str, Any, Any]]:
        """Yield each convolution's name, the convolution, and the batch norm after it."""
        blocks = [
            (f"{prefix}.", block)
            for prefix, block in self.named_modules()
            if isinstance(block, LiteBlock)
        ]
        inner = [
            (prefix + conv, prefix + norm) for prefix, block in blocks for conv, norm in block.pairs
        ]
        for conv, norm in [("conv_stem", "bn1"), *inner, ("conv_head", "bn2")]:
            yield conv, self.get_submodule(conv), self.get_submodule(norm)


def _round_channels(channels: float) -> int:
    """Round to the nearest multiple of 8, but never down by more than 10 %."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
