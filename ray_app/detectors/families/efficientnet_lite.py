"""EfficientNet-Lite in plain torch (Tan and Le, ICML 2019, arXiv 1905.11946;
github.com/tensorflow/tpu), under timm's names of tensors.

timm's own needs torchvision, which takes longer to import than an image takes to score.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

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
    """`efficientnet_lite0` to `4`, or with the padding that Google's weights were trained with
    `tf_efficientnet_lite0` to `4`. Without `norms`, a convolution's bias is in the place of the
    batch norm that is folded into it. `classes`: of the classifier; none with 0. `widths`: channels
    of every stage, and of the last convolution. Raises ValueError for another name.
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
