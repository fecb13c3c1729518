"""CLIP's two towers under OpenAI's key names (`VisionTower`, `Clip`), a linear head on a feature of
a frozen backbone (`FrozenLinear`), and two families on CLIP: `clip-linear`, that head, and `rine`,
what every block says in its class token, weighed and summed.

As in CLIP-D (specs/detectors.md §2), UnivFD (§9b) and CLIP-Cues (Willi et al. 2026, arXiv
2602.12381). Constants: Radford et al. 2021 (arXiv 2103.00020), specs/localization.md §1.1 and §1.4.
The tower's weights come from the card's backbone, the head's are the card's own.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.families.mae import headwise_attention
from ray_app.errors import DetectorError

# as the files of CLIP-Cues and of DRCT name them
_TWO_LAYERS = (("layers.0", "to_logits"), ("model.fc", "fc"))
_BESIDE = "model.model."


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


class Rine(nn.Module):
    """(N, 3, H, W), normalised → (N, 1). `backbone` gives `VisionFeatures`; of them the class
    tokens of all its layers are read.

    Under the authors' key names. Source: Koutlis and Papadopoulos, ECCV 2024 (arXiv 2402.19091).
    CLIP runs once for this network and for all others that read the same one.

    `projections`: linear layers in each of both projections; `width`: theirs. `alpha` (1, layers,
    width) weighs the layers, number by number: the paper's trainable importance estimator.
    """

    def __init__(self, backbone: VisionTower, *, projections: int, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.alpha = nn.Parameter(drawn(1, len(backbone.transformer.resblocks), width, std=1.0))
        self.proj1 = nn.Sequential(
            nn.Dropout(), *_layers([backbone.widths["class-token"], *[width] * projections])
        )
        self.proj2 = nn.Sequential(nn.Dropout(), *_layers([width] * (projections + 1)))
        self.head = nn.Sequential(*_layers([width] * 3), nn.Linear(width, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        layers = self.proj1(self.backbone(pixels).class_tokens)
        summed = (self.alpha.softmax(dim=1) * layers).sum(dim=1)
        logits: torch.Tensor = self.head(self.proj2(summed))
        return logits


def _layers(widths: list[int]) -> list[nn.Module]:
    """Linear layers from width to width, each with its ReLU and the dropout of the training, which
    the published numbering counts.
    """
    return [
        layer
        for inner, outer in pairwise(widths)
        for layer in (nn.Linear(inner, outer), nn.ReLU(), nn.Dropout())
    ]


def build(card: DetectorCard) -> nn.Module:
    """The network of a card: its backbone's arguments go to `VisionTower`, its own to `Rine`, or
    are `feature` and `normalise`. Raises DetectorError.
    """
    tower = backbone_tower(card)
    own = dict(card.architecture.arguments)
    return Rine(tower, **own) if card.family == "rine" else linear_head(card, tower, own)


def backbone_tower(card: DetectorCard) -> VisionTower:
    """The tower that a card names as its backbone. Raises DetectorError."""
    if card.backbone is None:
        raise DetectorError(
            f"{card.name}: a card of family {card.family} names a backbone",
            hint="backbone: openai-clip-vit-l14",
        )
    return built_tower(card.backbone.architecture.arguments, card.name, card.backbone.name)


def built_tower(arguments: Mapping[str, Any], name: str, where: str) -> VisionTower:
    """The tower of these arguments for the card of that name; `where` they stand. Raises
    DetectorError.
    """
    try:
        return VisionTower(**arguments)
    except TypeError as error:
        raise DetectorError(
            f"{name}: no CLIP tower is built from the arguments of {where}: {error}"
        ) from error


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


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> Mapping[str, torch.Tensor]:
    """The head of a file under the network's names; two linear layers with nothing between them, as
    some files have, are one.

    Of a file that holds all of CLIP beside them, as DRCT's do, only these are taken: its CLIP is
    the backbone, which was not trained.
    """
    heads = {key: tensor for key, tensor in state.items() if not key.startswith(_BESIDE)}
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
