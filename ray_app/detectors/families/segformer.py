"""SegFormer's mix transformer, one stage (`MixStage`): overlapping patches, attention to a shrunk map, a convolution inside the MLP.

Key names of the published encoders (MiT). Source: Xie et al. 2021 (arXiv 2105.15203).
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

EPS = 1e-6  # of the blocks' norms; the others keep torch's 1e-5


class PatchEmbed(nn.Module):
    """(N, channels, H, W) → a smaller map of tokens (N, h, w, width): patches of 7 every 4 pixels, or of 3 every 2."""

    def __init__(self, channels: int, width: int, patch: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=stride, padding=patch // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Embed."""
        tokens: torch.Tensor = self.norm(self.proj(features).permute(0, 2, 3, 1))
        return tokens


class ShrunkAttention(nn.Module):
    """Tokens (N, h, w, width) attend to a map that is `ratio` times smaller on each side."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.sr: nn.Module | None = None
        if ratio > 1:
            self.sr, self.norm = nn.Conv2d(width, width, ratio, stride=ratio), nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attend; the shape stays."""
        read = tokens if self.sr is None else self.norm(self.sr(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        key, value = torch.unflatten(self.kv(read.flatten(1, 2)), -1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = torch.unflatten(self.q(tokens.flatten(1, 2)), -1, (self.heads, -1)).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(query, key, value)
        mixed: torch.Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return mixed.view_as(tokens)


class MixMlp(nn.Module):
    """An MLP of four times the width that also looks at a token's eight neighbours, (N, h, w, width) → the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Think."""
        mixed = self.dwconv["dwconv"](self.fc1(tokens).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        thought: torch.Tensor = self.fc2(functional.gelu(mixed))
        return thought


class MixBlock(nn.Module):
    """One pre-norm block, (N, h, w, width) → the same."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=EPS), ShrunkAttention(width, heads, ratio)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=EPS), MixMlp(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attend, then think."""
        tokens = tokens + self.attn(self.norm1(tokens))
        attended: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return attended


class MixStage:
    """One stage's parts, `embed`, `blocks` and `norm`, which checkpoints name side by side, and how they follow each other (`run`)."""

    def __init__(self, channels: int, width: int, *, heads: int, depth: int, ratio: int, first: bool) -> None:
        self.embed = PatchEmbed(channels, width, 7 if first else 3, 4 if first else 2)
        self.blocks = nn.ModuleList(MixBlock(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)

    @staticmethod
    def run(features: torch.Tensor, embed: nn.Module, blocks: Any, norm: nn.Module) -> torch.Tensor:
        """(N, channels, H, W) → (N, width, h, w)."""
        tokens = embed(features)
        for block in blocks:
            tokens = block(tokens)
        normed: torch.Tensor = norm(tokens)
        return normed.permute(0, 3, 1, 2)
