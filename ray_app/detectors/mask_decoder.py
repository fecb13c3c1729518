"""From a map of tokens to a map of logits: a pyramid of four scales, fused, with a text's answer added everywhere.

Knows layers and tensors. Knows nothing about CLIP, MAE, cards or files. Keys and constants: specs/localization.md §1.1 (6) and §1.4.
"""

import torch
from torch import nn
from torch.nn import functional

EPS = 1e-6
HEADS = 8


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W), place by place."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise; shape and memory layout stay."""
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MaskDecoder(nn.Module):
    """A token map (N, tokens_width, G, G) and a text feature (width) → logits (N, 1, 4G, 4G). By default 6,088,385 parameters."""

    def __init__(self, tokens_width: int = 768, width: int = 256) -> None:
        super().__init__()
        half, quarter = tokens_width // 2, tokens_width // 4
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        twice = [nn.ConvTranspose2d(tokens_width, half, 2, stride=2), ChannelNorm(half), nn.GELU()]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *scaled, nn.Conv2d(channels, width, 1), ChannelNorm(width), nn.Conv2d(width, width, 3, padding=1), ChannelNorm(width)
            )
            for scaled, channels in (
                ([*twice, nn.ConvTranspose2d(half, quarter, 2, stride=2)], quarter),
                ([nn.ConvTranspose2d(tokens_width, half, 2, stride=2)], half),
                ([], tokens_width),
                ([nn.MaxPool2d(2)], tokens_width),
            )
        )
        self.linear_fuse = nn.Conv2d(len(self.stages) * width, width, 1)
        self.norm = ChannelNorm(width)
        self.dropout = nn.Dropout(0.1)
        self.predict = nn.Conv2d(width, 1, 1)

    def forward(self, tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Decode; see the class for shapes."""
        fused = self.fuse(tokens)
        features = self.dropout(self.norm(fused + self.answer(fused, text)[:, :, None, None]))
        with torch.autocast(features.device.type, enabled=False):
            # One number per place: it costs nothing in fp32, and bf16 would leave 8 bits of the logit.
            weight, bias = (parameter.float() for parameter in self.predict.parameters())
            return functional.conv2d(features.float(), weight, bias)

    def fuse(self, tokens: torch.Tensor) -> torch.Tensor:
        """The pyramid joined at four times the tokens' resolution: (N, width, 4G, 4G).

        Published as a 1 × 1 convolution over the four enlarged scales side by side. It is linear and bilinear weights sum to one, so
        each scale goes through its part of the convolution first, at its own size, and what is enlarged has a quarter of the channels.
        """
        size = [4 * side for side in tokens.shape[2:]]
        weight, bias = self.linear_fuse.parameters()
        fused = bias[:, None, None]
        for stage, part in zip(self.stages, weight.chunk(len(self.stages), dim=1), strict=True):
            scale = functional.conv2d(stage(tokens), part)
            fused = fused + functional.interpolate(scale, size=size, mode="bilinear", align_corners=False)
        return fused

    def answer(self, fused: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """What the text finds in the whole map, by cross-attention with one query: (N, width)."""
        places = fused.flatten(2).transpose(1, 2)
        key, value = torch.unflatten(self.to_kv(places), -1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query = self.to_q(text).view(1, HEADS, 1, -1).expand(len(fused), -1, -1, -1)
        attended = functional.scaled_dot_product_attention(query, key, value)
        answer: torch.Tensor = self.proj(attended.flatten(1))
        return answer
