"""The `clip-tuned` family: a linear head on a CLIP tower that was itself trained, both in one file
under the names of transformers; and the `gapl` family, whose head asks prototypes of generators.

C2P-CLIP (Tan et al., AAAI 2025, arXiv 2408.09647) trained low-rank additions, which its file has
merged into the weights. Effort (Yan et al., ICML 2025, arXiv 2411.15633) trained the smallest
singular components of the attention's weights, which its file holds apart; they are added up when
it is read, as are the low-rank additions of GAPL (Qin et al., CVPR 2026, arXiv 2512.12982). What
runs is the tower of `families.clip`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.families import clip
from ray_app.detectors.families.low_rank import merged
from ray_app.errors import DetectorError

_FIRST = "embeddings.class_embedding"  # the name by which the tower in a file is found
_HEADS = ("model.fc.", "fc.", "head.")
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


class Gapl(nn.Module):
    """(N, 3, H, W), normalised → (N, 1). `tower`: the arguments of `clip.VisionTower`; `prototypes`
    of `width` numbers, asked by `heads`.

    `alpha`: what the tower's low-rank additions in a file are scaled by.
    """

    def __init__(
        self, *, tower: Mapping[str, Any], prototypes: int, width: int, heads: int, alpha: float
    ) -> None:
        super().__init__()
        self.backbone, self.alpha = clip.VisionTower(**tower), alpha
        self.foren_proj = nn.Linear(self.backbone.widths["class-token"], width, bias=False)
        self.prototype = nn.Parameter(clip.drawn(prototypes, width, std=1.0))
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc = nn.Linear(width, 1, bias=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        trace = functional.normalize(self.foren_proj(self.backbone(pixels).class_token), dim=1)
        known = self.prototype.expand(len(trace), -1, -1)
        logits: torch.Tensor = self.fc(
            self.cross_attention(trace[:, None], known, known, need_weights=False)[0][:, 0]
        )
        return logits


def build(card: DetectorCard) -> nn.Module:
    """The network of a card: `tower` are the arguments of `clip.VisionTower`, beside `feature` and
    `normalise`. Raises DetectorError.
    """
    own: dict[str, Any] = dict(card.architecture.arguments)
    arguments = own.pop("tower", None)
    if not isinstance(arguments, Mapping):
        raise DetectorError(
            f"{card.name}: architecture.arguments has no `tower`, the arguments of CLIP's"
        )
    return clip.linear_head(
        card, clip.built_tower(arguments, card.name, "architecture.arguments.tower"), own
    )


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> Mapping[str, torch.Tensor]:
    """A file's tensors under the names of the network; what has no place there keeps its name, so
    that the loader can tell it.
    """
    root = next((key.removesuffix(_FIRST) for key in state if key.endswith(_FIRST)), None)
    if root is None:
        return state
    renamed = {}
    for key, tensor in merged(state, getattr(network, "alpha", 0)).items():
        head = next((prefix for prefix in _HEADS if key.startswith(prefix)), None)
        if head is not None:
            renamed[f"fc.{key.removeprefix(head)}"] = tensor
        elif key == f"{root.removesuffix('vision_model.')}visual_projection.weight":
            renamed["backbone.proj"] = tensor.T.contiguous()
        elif key.startswith(root):
            renamed[_in_the_tower(key.removeprefix(root)) or key] = tensor
        else:
            renamed[key] = tensor
    return _packed(renamed)


def _in_the_tower(key: str) -> str | None:
    """OpenAI's name for transformers' of a tensor of the tower; None for one that CLIP does not
    have.
    """
    for theirs, ours in _PARTS.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            for part, name in _IN_A_BLOCK.items():
                key = key.replace(part, name)
            return f"backbone.{key}"
    return None


def _packed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The projections of query, key and value as one, where a file has all three of a layer in one
    shape.
    """
    for last in ("weight", "bias"):
        for key in [key for key in state if key.endswith(f".attn.q_proj.{last}")]:
            attention = key.removesuffix(f"q_proj.{last}")
            parts = [f"{attention}{part}_proj.{last}" for part in "qkv"]
            if all(part in state and state[part].shape == state[key].shape for part in parts):
                state[f"{attention}in_proj_{last}"] = torch.cat([state.pop(part) for part in parts])
    return state
