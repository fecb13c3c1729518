"""The masked autoencoder's image encoder (`MaeVit`, ViT-B/16), with windows and relative positions
as a dense backbone; `headwise_attention` for CPUs; `fused_maps` and `predicted_in_fp32` of decoders
that say where.

Keys are those of the published MAE encoder; the tables of relative positions come on top.
Constants: He et al. 2021 (arXiv 2111.06377), Li et al. 2022 (arXiv 2112.01526, decomposed
positions), specs/localization.md §1.1 (4) with golden/maskclip.md §6.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

EPS = 1e-6  # MAE's LayerNorm; the goldens cannot see it, weights trained with it can
# MAE was trained on 224 px: a table of 14 × 14 positions and one of the class token
PRETRAINED_GRID = 14
WINDOW = 14
GLOBAL_BLOCKS = (2, 5, 8, 11)
# in one window: from here on a bias for all heads would take gigabytes (12 heads of 64² tokens: 0.8
# GB an image)
MANY_TOKENS = 2048


class MaeVit(nn.Module):
    """Tokens of an image, (N, 3, S, S) → (N, S/16, S/16, width), no class token, no final norm. By
    default 85,856,256 parameters.

    Never called as a whole, because something is added between blocks: `embed`, then each of
    `blocks`.
    """

    def __init__(
        self,
        *,
        image_size: int = 512,
        patch_size: int = 16,
        width: int = 768,
        heads: int = 12,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        grid = image_size // patch_size
        depth = GLOBAL_BLOCKS[-1] + 1
        self.grid = grid
        self.pos_embed = nn.Parameter(torch.zeros(1, PRETRAINED_GRID**2 + 1, width))
        self.patch_embed = nn.Sequential(
            OrderedDict(proj=nn.Conv2d(3, width, patch_size, stride=patch_size))
        )
        self.blocks = nn.ModuleList(
            MaeBlock(
                width,
                heads,
                grid if layer in GLOBAL_BLOCKS else WINDOW,
                drop_path * layer / (depth - 1),
            )
            for layer in range(depth)
        )

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """The tokens before the first block; the table of positions, less the class token's, is
        enlarged to the image's grid.
        """
        table = torch.unflatten(
            self.pos_embed[:, 1:], 1, (PRETRAINED_GRID, PRETRAINED_GRID)
        ).permute(0, 3, 1, 2)
        positions = functional.interpolate(
            table, size=(self.grid, self.grid), mode="bicubic", align_corners=False
        )
        tokens: torch.Tensor = self.patch_embed(pixels) + positions
        return tokens.permute(0, 2, 3, 1)


class MaeBlock(nn.Module):
    """One pre-norm block on a map of tokens, (N, H, W, width) → the same. In training a branch is
    dropped at the given rate per image.
    """

    def __init__(self, width: int, heads: int, side: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = WindowAttention(width, heads, side)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(width, 4 * width), gelu=nn.GELU(), fc2=nn.Linear(4 * width, width)
            )
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attend, then think."""
        tokens = tokens + self._dropped(self.attn(self.norm1(tokens)))
        return tokens + self._dropped(self.mlp(self.norm2(tokens)))

    def _dropped(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        kept = branch.new_empty(len(branch), 1, 1, 1).bernoulli_(1 - self.drop_path)
        return branch * kept / (1 - self.drop_path)


class WindowAttention(nn.Module):
    """Self-attention within windows of side × side tokens, with decomposed relative positions; (N,
    H, W, width) → the same.

    The map is padded at the bottom and the right to whole windows, and pads take part. One window
    of the map's size is global attention.
    """

    offsets: torch.Tensor

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        offsets = [[query - key + side - 1 for key in range(side)] for query in range(side)]
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attend; see the class."""
        height, width = tokens.shape[1:3]
        windows, shape = self._windows(self.qkv(tokens))
        query, key, value = torch.unflatten(windows, -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.side**2 < MANY_TOKENS:
            attended = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=self.relative_bias(query)
            )
        else:
            heads = zip(
                *(part.flatten(0, 1)[:, None, None].unbind() for part in (query, key, value)),
                strict=True,
            )
            single = [
                functional.scaled_dot_product_attention(q, k, v, attn_mask=self.relative_bias(q))
                for q, k, v in heads
            ]
            attended = torch.cat(single).view_as(value)
        joined = (
            attended.permute(0, 2, 1, 3)
            .reshape(*shape, -1)
            .transpose(2, 3)
            .flatten(3, 4)
            .flatten(1, 2)
        )
        mixed: torch.Tensor = self.proj(joined[:, :height, :width])
        return mixed

    def relative_bias(self, query: torch.Tensor) -> torch.Tensor:
        """What a query, not scaled, says of a key's row and column relative to its own: (N, heads,
        side², width) → (…, side², side²).
        """
        query = torch.unflatten(query, 2, (self.side, self.side))
        rows = torch.einsum("nhyxd,ykd->nhyxk", query, self.rel_pos_h[self.offsets])
        columns = torch.einsum("nhyxd,xkd->nhyxk", query, self.rel_pos_w[self.offsets])
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)

    def _windows(self, packed: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        """(N, H, W, C) → (N · windows, side², C), and the shape (N, rows, columns, side, side) that
        leads back.
        """
        count, height, width, channels = packed.shape
        rows, columns = -(-height // self.side), -(-width // self.side)
        if (height, width) != (rows * self.side, columns * self.side):
            # A pad is zero where it enters the projection, so its query, key and value are the
            # bias: no product is spent on it.
            padded = (
                self.qkv.bias.to(packed.dtype)
                .expand(count, rows * self.side, columns * self.side, channels)
                .clone()
            )
            padded[:, :height, :width] = packed
            packed = padded
        cut = packed.view(count, rows, self.side, columns, self.side, channels).transpose(2, 3)
        return cut.reshape(-1, self.side**2, channels), (count, rows, columns, self.side, self.side)


def fused_maps(
    maps: Iterable[torch.Tensor], convolution: nn.Conv2d, size: Sequence[int]
) -> torch.Tensor:
    """A 1 × 1 convolution over maps (N, C, ·, ·) that were enlarged to `size` and laid side by
    side: (N, width, *size).

    It is linear and bilinear weights sum to one, so each map goes through its part of the
    convolution first, at its own size: what is enlarged has fewer channels, and no map of all
    channels is ever held.
    """
    weight, bias = convolution.parameters()
    fused, first = bias[:, None, None], 0
    for features in maps:  # each is let go before the next is made
        last = first + features.shape[1]
        narrow = functional.conv2d(features, weight[:, first:last])
        fused, first = (
            fused + functional.interpolate(narrow, size=size, mode="bilinear", align_corners=False),
            last,
        )
    assert first == weight.shape[1]
    return fused


def predicted_in_fp32(convolution: nn.Conv2d, features: torch.Tensor) -> torch.Tensor:
    """A last 1 × 1 convolution to one number per place: it costs nothing in fp32, and bf16 would
    leave 8 bits of the logit.
    """
    with torch.autocast(features.device.type, enabled=False):
        weight, bias = (parameter.float() for parameter in convolution.parameters())
        return functional.conv2d(features.float(), weight, bias)


def headwise_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the signature of transformers' registry: (N, heads, tokens, width) → (N, tokens,
    heads, width).

    In bf16 on a CPU the scores of a single head (1024² × 2 bytes) stay in the cache, and oneDNN's
    matrix products beat torch's fused kernel, which computes bf16 at the speed of fp32: 14 against
    37 ms for 12 heads of 1024 tokens. Everywhere else, and where something learns (the way back
    through a head at a time is far slower): the fused kernel.
    """
    learns = query.requires_grad or key.requires_grad or value.requires_grad
    if (
        query.device.type == "cpu"
        and query.dtype is torch.bfloat16
        and attention_mask is None
        and not learns
        and not dropout
    ):
        scaled = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        attended = torch.empty_like(value)
        for image in range(query.shape[0]):
            for head in range(query.shape[1]):
                scores = scaled[image, head] @ key[image, head].transpose(0, 1)
                attended[image, head] = scores.softmax(-1) @ value[image, head]
    else:
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
        )
    return attended.transpose(1, 2), None
