"""Build the image encoder of a masked autoencoder (`MaeVit`, ViT-B/16), for mask networks.

Most of its blocks attend within windows, and all have relative positions. The families `iml-vit`
and `maskclip` use the encoder. `fused_maps` and `predicted_in_fp32` are for the decoders that turn
its tokens into masks. `headwise_attention` is a faster attention for bf16 on CPUs.

The keys are those of the published MAE encoder, with additional tables of relative positions.
Sources: He et al. 2021 (arXiv 2111.06377), Li et al. 2022 (arXiv 2112.01526, decomposed positions).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

EPS = 1e-6  # MAE's LayerNorm. Golden scores do not depend on it, but trained weights do.
# MAE was trained on 224 px, with a table of 14 × 14 positions and one for the class token.
PRETRAINED_GRID = 14
WINDOW = 14
GLOBAL_BLOCKS = (2, 5, 8, 11)
# Tokens in a window from which heads are computed one by one. A bias for all heads would take
# gigabytes (12 heads of 64² tokens: 0.8 GB per image).
MANY_TOKENS = 2048


class MaeVit(nn.Module):
    """Image encoder: pixels (N, 3, S, S) → tokens (N, S/16, S/16, width).

    The encoder has no class token and no final norm. It has no `forward`, because callers add
    values to the tokens between blocks. Call `embed`, then each of the modules in `blocks`. The
    defaults have 85,856,256 parameters.

    Args:
        image_size: Side S of the image in pixels.
        patch_size: Side of a patch in pixels.
        width: Width of the tokens.
        heads: Heads per block.
        drop_path: Rate at which the last block skips attention or MLP in training. The rate rises
            linearly from 0 in the first block.
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
        """Return the tokens before the first block: pixels (N, 3, S, S) → (N, S/16, S/16, width).

        The pretrained position embeddings are resampled to the image's grid and added.
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
    """Pre-norm transformer block on a map of tokens: (N, H, W, width) → the same shape.

    In training, attention and MLP are each skipped at random for single images, at the rate
    `drop_path`.

    Args:
        width: Width of the tokens.
        heads: Attention heads.
        side: Side of an attention window, in tokens.
        drop_path: Rate at which attention and MLP are skipped in training.
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
        """Apply attention and MLP, each with a residual: (N, H, W, width) → the same shape."""
        tokens = tokens + self._drop_branch(self.attn(self.norm1(tokens)))
        return tokens + self._drop_branch(self.mlp(self.norm2(tokens)))

    def _drop_branch(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        mask = branch.new_empty(len(branch), 1, 1, 1).bernoulli_(1 - self.drop_path)
        return branch * mask / (1 - self.drop_path)


class WindowAttention(nn.Module):
    """Self-attention within windows of side × side tokens: (N, H, W, width) → the same shape.

    `relative_bias` is added to the attention scores (decomposed relative positions). The map is
    padded at the bottom and the right to whole windows, and the padding takes part in the
    attention. If `side` is the side of the map, the attention is global.

    Args:
        width: Width of the tokens.
        heads: Attention heads.
        side: Side of a window, in tokens.
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
        """Apply the attention to a map of tokens: (N, H, W, width) → the same shape."""
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
            outputs = [
                functional.scaled_dot_product_attention(q, k, v, attn_mask=self.relative_bias(q))
                for q, k, v in heads
            ]
            attended = torch.cat(outputs).view_as(value)
        merged = (
            attended.permute(0, 2, 1, 3)
            .reshape(*shape, -1)
            .transpose(2, 3)
            .flatten(3, 4)
            .flatten(1, 2)
        )
        mixed: torch.Tensor = self.proj(merged[:, :height, :width])
        return mixed

    def relative_bias(self, query: torch.Tensor) -> torch.Tensor:
        """Return the bias that is added to the attention scores of each query and key of a window.

        It depends on the query and on the relative row and column of the key.

        Args:
            query: Queries (N, heads, side², width per head), not scaled.

        Returns:
            The bias (N, heads, side², side²).
        """
        query = torch.unflatten(query, 2, (self.side, self.side))
        rows = torch.einsum("nhyxd,ykd->nhyxk", query, self.rel_pos_h[self.offsets])
        columns = torch.einsum("nhyxd,xkd->nhyxk", query, self.rel_pos_w[self.offsets])
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)

    def _windows(self, packed: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Split into windows: (N, H, W, C) → (N · windows, side², C).

        Also returns the shape (N, rows, columns, side, side) that inverts the split.
        """
        count, height, width, channels = packed.shape
        rows, columns = -(-height // self.side), -(-width // self.side)
        if (height, width) != (rows * self.side, columns * self.side):
            # Padding is zero before the projection, so its query, key, and value are the bias and
            # need no product.
            padded = (
                self.qkv.bias.to(packed.dtype)
                .expand(count, rows * self.side, columns * self.side, channels)
                .clone()
            )
            padded[:, :height, :width] = packed
            packed = padded
        windows = packed.view(count, rows, self.side, columns, self.side, channels).transpose(2, 3)
        return windows.reshape(-1, self.side**2, channels), (
            count,
            rows,
            columns,
            self.side,
            self.side,
        )


def fused_maps(
    maps: Iterable[torch.Tensor], convolution: nn.Conv2d, size: Sequence[int]
) -> torch.Tensor:
    """Enlarge feature maps to one size, concatenate them, and apply a 1 × 1 convolution.

    To save memory, the steps are in another order: each map first goes through its part of the
    convolution. The results are then enlarged and added. This is equal, because the convolution is
    linear and bilinear weights sum to one.

    Args:
        maps: Maps (N, C, ·, ·). Their channels together are the input channels of the convolution.
        convolution: The 1 × 1 convolution.
        size: Height and width of the result.

    Returns:
        The output of the convolution (N, width, *size).
    """
    weight, bias = convolution.parameters()
    fused, first = bias[:, None, None], 0
    for features in maps:  # A generator can free each map before it computes the next.
        last = first + features.shape[1]
        narrow = functional.conv2d(features, weight[:, first:last])
        fused, first = (
            fused + functional.interpolate(narrow, size=size, mode="bilinear", align_corners=False),
            last,
        )
    assert first == weight.shape[1]
    return fused


def predicted_in_fp32(convolution: nn.Conv2d, features: torch.Tensor) -> torch.Tensor:
    """Apply the last 1 × 1 convolution of a network, which has one output channel, in fp32.

    fp32 costs little for one channel, and bf16 would leave 8 bits of the logit.
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
    """Compute attention one head after the other in bf16 on a CPU, which is faster there.

    The signature is that of transformers' attention registry. The scores of a single head (1024² ×
    2 bytes) stay in the cache. oneDNN's matrix products are faster than torch's fused kernel, which
    computes bf16 at the speed of fp32. For 12 heads of 1024 tokens, this function takes 14 ms, and
    the fused kernel takes 37 ms.

    The fused kernel is used on other devices, for other types than bf16, and with a mask or
    dropout. It is also used in training, because backpropagation head by head is far slower.

    Args:
        module: Not used.
        query: Queries (N, heads, tokens, width).
        key: Keys (N, heads, tokens, width).
        value: Values (N, heads, tokens, width).
        attention_mask: Mask of the scores. None allows all.
        scaling: Factor of the scores. None means width ** -0.5.
        dropout: Rate of dropout.
        **unused: Not used.

    Returns:
        The output (N, tokens, heads, width), and None.
    """
    is_training = query.requires_grad or key.requires_grad or value.requires_grad
    if (
        query.device.type == "cpu"
        and query.dtype is torch.bfloat16
        and attention_mask is None
        and not is_training
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
