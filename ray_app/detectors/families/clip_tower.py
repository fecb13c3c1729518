"""CLIP's two towers under OpenAI's key names: `build_tower` makes the image's `VisionTower` of the
arguments in a card, `Clip` is both.

`openai_names` renames the tensors of files that have transformers' names. Constants: Radford et al.
2021 (arXiv 2103.00020), specs/localization.md §1.1 and §1.4.
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

# The name by which the tower in a file of transformers is found.
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
    """What a vision tower tells of a batch.

    `class_token` (N, width): after `ln_post`. `taps`: per requested layer, in that order, the
    output of its `ln_2` (before the MLP), (N, 1 + patches, width). `projected` (N, embed_dim): the
    class token in the space shared with texts, not normalised; without a projection the class token
    as it is. `class_tokens` (N, layers, width): the class token of every layer's `ln_2`, 98 kB an
    image.
    """

    class_token: torch.Tensor
    taps: tuple[torch.Tensor, ...]
    projected: torch.Tensor
    class_tokens: torch.Tensor


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that OpenAI's weights were trained with."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """x σ(1.702 x), element by element."""
        return features * torch.sigmoid(1.702 * features)


class Attention(nn.Module):
    """Self-attention with packed projections: (N, tokens, width) → the same. Keys as
    `nn.MultiheadAttention` names them.
    """

    # `lower_to_bf16` stores these like the weights of a linear layer, which they are but for their
    # names.
    products = ("in_proj_weight", "in_proj_bias")

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(drawn(3 * width, width, std=width**-0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attend; `mask` (tokens, tokens) is true where a row may look at a column."""
        packed = functional.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        query, key, value = packed.view(*packed.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended, _ = headwise_attention(self, query, key, value, mask)
        mixed: torch.Tensor = self.out_proj(attended.flatten(2))
        return mixed


class ClipBlock(nn.Module):
    """One pre-norm transformer block: (N, tokens, width) → the same, and what its MLP was given."""

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
        """The block's output, and the output of `ln_2`."""
        tokens = tokens + self.attn(self.ln_1(tokens), mask)
        normed = self.ln_2(tokens)
        return tokens + self.mlp(normed), normed


class Transformer(nn.Module):
    """A stack of blocks that can be tapped on the way."""

    def __init__(self, width: int, layers: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ClipBlock(width, heads, quick_gelu) for _ in range(layers))

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor | None = None, taps: tuple[int, ...] = ()
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
        """The last block's output, the `ln_2` outputs of the layers in `taps`, and the first token
        of every layer's: (N, layers, width).
        """
        tapped, first = {}, []
        for layer, block in enumerate(self.resblocks):
            tokens, normed = block(tokens, mask)
            # a view would keep all tokens of the layer in memory
            first.append(normed[:, 0].clone())
            if layer in taps:
                tapped[layer] = normed
        return tokens, tuple(tapped[layer] for layer in taps), torch.stack(first, dim=1)


class VisionTower(nn.Module):
    """CLIP's ViT: (N, 3, image_size, image_size), normalised → `VisionFeatures`. The defaults are
    ViT-L/14: 303,966,208 parameters.

    State dict: `visual.*` of the published file without that prefix, 296 tensors. `quick_gelu`:
    true for OpenAI's weights, false for those of open_clip's `ViT-L-14`. `embed_dim`: null for a
    file without the projection, 295 tensors.
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
        self.ln_post = nn.LayerNorm(width)
        self.proj = None if embed_dim is None else nn.Parameter(drawn(width, embed_dim, std=scale))

    def forward(self, pixels: torch.Tensor) -> VisionFeatures:
        """Run the tower; see the class for shapes."""
        tokens, tapped, class_tokens = self.transformer(self.embed(pixels), taps=self.taps)
        class_token = self.ln_post(tokens[:, 0])
        return VisionFeatures(class_token, tapped, project(class_token, self.proj), class_tokens)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the first block is given: (N, 1 + patches, width), the class token first."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        embedded: torch.Tensor = self.ln_pre(
            torch.cat([first, patches.to(first.dtype)], dim=1) + self.positional_embedding
        )
        return embedded

    @property
    def widths(self) -> dict[str, int]:
        """Numbers per image of the features that a linear head reads, by the names that cards give
        them.
        """
        width = self.ln_post.normalized_shape[0]
        return {
            "class-token": width,
            "projected": width if self.proj is None else self.proj.shape[1],
        }


class TextTower(nn.Module):
    """CLIP's text transformer: embedded tokens → (N, embed_dim), not normalised. The defaults are
    those beside ViT-L/14.

    Takes embedded tokens, (N, context, width) before the positional embeddings, so that learned
    prompts can stand among them; `token_embedding` makes them from token ids.
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
        """Embed texts; `end` (N,) holds the position of each text's end token, where it is read
        off.
        """
        context = embedded.shape[1]
        causal = torch.ones(context, context, dtype=torch.bool, device=embedded.device).tril()
        tokens, _, _ = self.transformer(embedded + self.positional_embedding[:context], causal)
        last = tokens[torch.arange(len(tokens), device=tokens.device), end]
        return project(self.ln_final(last), self.text_projection)


class Clip(TextTower):
    """Both towers as published: the text tower's tensors at the top level, `visual.*` and
    `logit_scale` beside them.

    With the defaults 427,616,513 parameters in 446 tensors. Called, it is its text tower; `visual`
    is called for images.
    """

    def __init__(self, visual: VisionTower, *, quick_gelu: bool, **text: int) -> None:
        super().__init__(quick_gelu=quick_gelu, **text)
        self.visual = visual
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def project(features: torch.Tensor, projection: torch.Tensor | None) -> torch.Tensor:
    """features @ projection in fp32 whatever precision surrounds it: one row per image costs
    nothing, and rounding would move the score.
    """
    with torch.autocast(features.device.type, enabled=False):
        return features.float() if projection is None else features.float() @ projection.float()


def drawn(*shape: int, std: float) -> torch.Tensor:
    """Random numbers of standard deviation `std`; uniform, for normal ones on the meta device torch
    imports a compiler.
    """
    return nn.init.uniform_(torch.empty(shape), -std * 3**0.5, std * 3**0.5)


def build_tower(arguments: Mapping[str, Any], owner: str, where: str) -> VisionTower:
    """Build the tower of these arguments, randomly initialised.

    Args:
        arguments: The arguments of `VisionTower`.
        owner: The card, for the message.
        where: What the arguments are part of, for the message.

    Raises:
        DetectorError: There are other arguments.
    """
    try:
        return VisionTower(**arguments)
    except TypeError as error:
        raise DetectorError(
            f"{owner}: no CLIP tower is built from the arguments of {where}: {error}"
        ) from error


def openai_names(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Rename the tensors of a tower from transformers' names to OpenAI's, after a prefix. All other
    tensors keep their names, so that the loader reports them.
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
    """Return OpenAI's name of a tensor of the tower. None if CLIP does not have it."""
    for theirs, ours in _PARTS.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            for part, name in _IN_A_BLOCK.items():
                key = key.replace(part, name)
            return key
    return None


def _pack_projections(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pack the projections of query, key, and value of a layer into one, if all three have one
    shape.
    """
    for last in ("weight", "bias"):
        for key in [key for key in state if key.endswith(f".attn.q_proj.{last}")]:
            attention = key.removesuffix(f"q_proj.{last}")
            parts = [f"{attention}{part}_proj.{last}" for part in "qkv"]
            if all(part in state and state[part].shape == state[key].shape for part in parts):
                state[f"{attention}in_proj_{last}"] = torch.cat([state.pop(part) for part in parts])
    return state
