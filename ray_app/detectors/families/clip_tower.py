"""Build CLIP's image tower and text tower with OpenAI's key names.

`build_tower` builds the image tower (`VisionTower`) from the arguments of a card. `Clip` has both
towers. `openai_names` renames the tensors of files that have transformers' names. Source: Radford
et al. 2021 (arXiv 2103.00020).
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.families.mae import headwise_attention
from ray_app.errors import DetectorError

# The key that identifies the tower in a file of transformers.
_FIRST = "embeddings.class_embedding"
_PARTS = {
    _FIRST: "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "encoder.layers.": "transformer.resblocks.",
}
_IN_A_BLOCK = {
    ".self_attn.": ".attn.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


class VisionFeatures(NamedTuple):
    """Features of a batch of N images from CLIP's image tower.

    Attributes:
        class_token: The class token of the last layer after `ln_post`, (N, width).
        taps: For each layer in `VisionTower.taps`, the input of its MLP (output of `ln_2`), (N, 1 +
            patches, width). The class token comes first.
        projected: The class token in the space shared with texts, not normalised, (N, embed_dim).
            Without a projection, the class token.
        class_tokens: The class token in the input of every layer's MLP, (N, layers, width). For
            ViT-L/14, 98 kB per image.
    """

    class_token: torch.Tensor
    taps: tuple[torch.Tensor, ...]
    projected: torch.Tensor
    class_tokens: torch.Tensor


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that OpenAI's weights were trained with."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return x σ(1.702 x), element by element."""
        return features * torch.sigmoid(1.702 * features)


class Attention(nn.Module):
    """Self-attention of tokens (N, tokens, width). The shape stays.

    One matrix projects to query, key, and value. The key names are those of
    `nn.MultiheadAttention`.

    Args:
        width: Width of the tokens.
        heads: Attention heads.
    """

    # `lower_to_bf16` stores these parameters in bf16, as it does with weights of linear layers.
    products = ("in_proj_weight", "in_proj_bias")

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(drawn(3 * width, width, std=width**-0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Apply self-attention: (N, tokens, width) → the same shape.

        `mask` (tokens, tokens) is True if the token of the row may attend to the token of the
        column. None allows all.
        """
        packed = functional.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        query, key, value = packed.view(*packed.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended, _ = headwise_attention(self, query, key, value, mask)
        mixed: torch.Tensor = self.out_proj(attended.flatten(2))
        return mixed


class ClipBlock(nn.Module):
    """Pre-norm transformer block that also returns the input of its MLP.

    (N, tokens, width) → two tensors of the same shape.

    Args:
        width: Width of the tokens.
        heads: Attention heads.
        quick_gelu: Whether the MLP has QuickGELU instead of GELU.
    """

    def __init__(self, width: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width), gelu=gelu, c_proj=nn.Linear(4 * width, width)
            )
        )

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the block's output, and the input of its MLP, which is the output of `ln_2`."""
        tokens = tokens + self.attn(self.ln_1(tokens), mask)
        normed = self.ln_2(tokens)
        return tokens + self.mlp(normed), normed


class Transformer(nn.Module):
    """Stack of transformer blocks that also returns tokens of inner layers.

    Args:
        width: Width of the tokens.
        layers: Number of blocks.
        heads: Attention heads per block.
        quick_gelu: Whether MLPs have QuickGELU instead of GELU.
    """

    def __init__(self, width: int, layers: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ClipBlock(width, heads, quick_gelu) for _ in range(layers))

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor | None = None, taps: tuple[int, ...] = ()
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
        """Run all blocks.

        Args:
            tokens: Tokens (N, tokens, width).
            mask: (tokens, tokens), True if the token of the row may attend to the token of the
                column. None allows all.
            taps: Indices of the layers for which the input of the MLP (output of `ln_2`) is
                returned.

        Returns:
            The last block's output. The inputs of the MLPs of the layers in `taps`. The first token
                of the input of every layer's MLP, (N, layers, width).
        """
        tapped, first = {}, []
        for layer, block in enumerate(self.resblocks):
            tokens, normed = block(tokens, mask)
            # A view would keep all tokens of the layer in memory.
            first.append(normed[:, 0].clone())
            if layer in taps:
                tapped[layer] = normed
        return tokens, tuple(tapped[layer] for layer in taps), torch.stack(first, dim=1)


class VisionTower(nn.Module):
    """CLIP's ViT: (N, 3, image_size, image_size), normalised → `VisionFeatures`.

    The defaults are ViT-L/14 with 303,966,208 parameters. The state dict has the keys `visual.*` of
    the published file without that prefix: 296 tensors, or 295 without the projection.

    Args:
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        width: Width of the tokens.
        layers: Number of blocks.
        heads: Heads per block.
        embed_dim: Width of the projection. None for a file without the projection.
        quick_gelu: True for OpenAI's weights, False for those of open_clip's `ViT-L-14`.
        taps: Indices of the layers whose tokens `VisionFeatures.taps` contains.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 14,
        width: int = 1024,
        layers: int = 24,
        heads: int = 16,
        embed_dim: int | None = 768,
        quick_gelu: bool,
        taps: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        scale = width**-0.5
        self.taps = tuple(taps)
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(drawn(width, std=scale))
        self.positional_embedding = nn.Parameter(
            drawn((image_size // patch_size) ** 2 + 1, width, std=scale)
        )
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, quick_gelu)
        self.ln_post: nn.Module = nn.LayerNorm(width)
        self.proj = None if embed_dim is None else nn.Parameter(drawn(width, embed_dim, std=scale))

    def forward(self, pixels: torch.Tensor) -> VisionFeatures:
        """Return the features of normalised pixels (N, 3, image_size, image_size)."""
        tokens, tapped, class_tokens = self.transformer(self.embed(pixels), taps=self.taps)
        class_token = self.ln_post(tokens[:, 0])
        return VisionFeatures(class_token, tapped, project(class_token, self.proj), class_tokens)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the input of the first block: (N, 1 + patches, width), the class token first."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        embedded: torch.Tensor = self.ln_pre(
            torch.cat([first, patches.to(first.dtype)], dim=1) + self.positional_embedding
        )
        return embedded

    @property
    def widths(self) -> dict[str, int]:
        """Widths of the features that a linear head can use, by the names that cards give them.

        The names are "class-token" and "projected".
        """
        width = len(self.class_embedding)
        return {
            "class-token": width,
            "projected": width if self.proj is None else self.proj.shape[1],
        }


class TextTower(nn.Module):
    """CLIP's text transformer: embedded tokens (N, context, width) → features (N, embed_dim).

    The features are not normalised. The input is embedded tokens instead of token ids, so it can
    contain learned prompts. The tower adds the positional embeddings. `token_embedding` embeds
    token ids. The defaults are those of ViT-L/14.

    Args:
        vocabulary: Number of token ids.
        context: Maximum number of tokens.
        width: Width of the tokens.
        layers: Number of blocks.
        heads: Heads per block.
        embed_dim: Width of the projection.
        quick_gelu: Whether MLPs have QuickGELU instead of GELU, as for OpenAI's weights.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 49408,
        context: int = 77,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        embed_dim: int = 768,
        quick_gelu: bool,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding.from_pretrained(
            drawn(vocabulary, width, std=0.02), freeze=False
        )  # type: ignore[no-untyped-call]
        self.positional_embedding = nn.Parameter(drawn(context, width, std=0.01))
        self.transformer = Transformer(width, layers, heads, quick_gelu)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(drawn(width, embed_dim, std=width**-0.5))

    def forward(self, embedded: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Return the features (N, embed_dim) of texts.

        `embedded` are the embedded tokens (N, context, width). `end` (N,) is the position of each
        text's end token.
        """
        context = embedded.shape[1]
        causal = torch.ones(context, context, dtype=torch.bool, device=embedded.device).tril()
        tokens, _, _ = self.transformer(embedded + self.positional_embedding[:context], causal)
        last = tokens[torch.arange(len(tokens), device=tokens.device), end]
        return project(self.ln_final(last), self.text_projection)


class Clip(TextTower):
    """CLIP's image and text tower, with the keys of the published file.

    Call the attribute `visual` with images, and the object itself with embedded texts, as in
    `TextTower`. The tensors of the text tower are at the top level of the state dict, next to
    `visual.*` and `logit_scale`. With the defaults, there are 427,616,513 parameters in 446
    tensors.

    Args:
        visual: The image tower.
        quick_gelu: Whether MLPs of the text tower have QuickGELU instead of GELU.
        **text: Other arguments of `TextTower`.
    """

    def __init__(self, visual: VisionTower, *, quick_gelu: bool, **text: int) -> None:
        super().__init__(quick_gelu=quick_gelu, **text)
        self.visual = visual
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def project(features: torch.Tensor, projection: torch.Tensor | None) -> torch.Tensor:
    """Return features @ projection, in fp32 even inside autocast.

    One row per image costs little in fp32, and rounding would change the score.
    """
    with torch.autocast(features.device.type, enabled=False):
        return features.float() if projection is None else features.float() @ projection.float()


def drawn(*shape: int, std: float) -> torch.Tensor:
    """Return a tensor of random numbers with standard deviation `std`, to initialise parameters.

    Their distribution is uniform, because torch imports a compiler to draw normal numbers on the
    meta device.
    """
    return nn.init.uniform_(torch.empty(shape), -std * 3**0.5, std * 3**0.5)


def build_tower(arguments: Mapping[str, Any], owner: str, where: str) -> VisionTower:
    """Build CLIP's image tower, randomly initialised.

    Args:
        arguments: The arguments of `VisionTower`.
        owner: Name of the card, for the error message.
        where: Section of the card with the arguments, for the error message.

    Returns:
        The tower.

    Raises:
        DetectorError: If an argument is unknown or missing.
    """
    try:
        return VisionTower(**arguments)
    except TypeError as error:
        raise DetectorError(
            f"{owner}: cannot build a CLIP tower from the arguments of {where}: {error}"
        ) from error


def openai_names(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Rename the tensors of CLIP's image tower from transformers' names to OpenAI's names.

    Query, key, and value projections of a layer are packed into one tensor. A tensor that is not
    part of the tower keeps its name, so that the loader reports it.

    Args:
        state: The tensors of a file.
        prefix: Text before each new name, such as "backbone.".

    Returns:
        The renamed tensors. If the file does not have transformers' names, its tensors are
            unchanged.
    """
    root = next((key.removesuffix(_FIRST) for key in state if key.endswith(_FIRST)), None)
    if root is None:
        return dict(state)
    renamed = {}
    for key, tensor in state.items():
        if key == f"{root.removesuffix('vision_model.')}visual_projection.weight":
            renamed[f"{prefix}proj"] = tensor.T.contiguous()
        else:
            name = _openai_name(key.removeprefix(root)) if key.startswith(root) else None
            renamed[key if name is None else prefix + name] = tensor
    return _pack_projections(renamed)


def _openai_name(key: str) -> str | None:
    """Return OpenAI's name of a tensor of the tower, or None if CLIP does not have it."""
    for transformers_name, openai_name in _PARTS.items():
        if key.startswith(transformers_name):
            key = openai_name + key.removeprefix(transformers_name)
            for part, name in _IN_A_BLOCK.items():
                key = key.replace(part, name)
            return key
    return None


def _pack_projections(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pack the projections of query, key, and value of a layer if all have the same shape."""
    for last in ("weight", "bias"):
        for key in [key for key in state if key.endswith(f".attn.q_proj.{last}")]:
            attention = key.removesuffix(f"q_proj.{last}")
            parts = [f"{attention}{part}_proj.{last}" for part in "qkv"]
            if all(part in state and state[part].shape == state[key].shape for part in parts):
                state[f"{attention}in_proj_{last}"] = torch.cat([state.pop(part) for part in parts])
    return state
