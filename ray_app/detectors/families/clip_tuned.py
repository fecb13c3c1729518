"""Build the families `clip-tuned` and `gapl`: a trained CLIP image tower with a head.

Tower and head are in one file. In `clip-tuned`, the head is a linear layer. In `gapl` (Qin et al.,
CVPR 2026, arXiv 2512.12982), it attends to prototypes, learned vectors.

The published methods trained only a part of the tower. The file of C2P-CLIP (Tan et al., AAAI 2025,
arXiv 2408.09647) has this part merged into the weights. The files of Effort (Yan et al., ICML 2025,
arXiv 2411.15633) and GAPL store it separately, as low-rank factors, and `published_keys` merges it.
The files have transformers' key names.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.detector import BACKBONE
from ray_app.detectors.families.clip_tower import VisionTower, build_tower, drawn, openai_names
from ray_app.detectors.families.frozen import linear_head
from ray_app.detectors.families.low_rank import merged
from ray_app.errors import DetectorError

_HEADS = ("model.fc.", "fc.", "head.")


class Gapl(nn.Module):
    """GAPL's network: pixels (N, 3, H, W), normalised → logits (N, 1).

    CLIP's class token attends to prototypes, which are learned vectors. A linear layer scores the
    result.

    Args:
        tower: The arguments of `VisionTower`.
        prototypes: Number of prototypes.
        width: Width of a prototype.
        heads: Heads of the attention to the prototypes.
        alpha: The alpha of LoRA: `published_keys` merges low-rank factors into the tower with the
            scale alpha / rank.
    """

    def __init__(
        self, *, tower: Mapping[str, Any], prototypes: int, width: int, heads: int, alpha: float
    ) -> None:
        super().__init__()
        self.backbone, self.alpha = VisionTower(**tower), alpha
        self.foren_proj = nn.Linear(self.backbone.widths["class-token"], width, bias=False)
        self.prototype = nn.Parameter(drawn(prototypes, width, std=1.0))
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc = nn.Linear(width, 1, bias=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W), normalised → logits (N, 1)."""
        trace = functional.normalize(self.foren_proj(self.backbone(pixels).class_token), dim=1)
        prototypes = self.prototype.expand(len(trace), -1, -1)
        logits: torch.Tensor = self.fc(
            self.cross_attention(trace[:, None], prototypes, prototypes, need_weights=False)[0][
                :, 0
            ]
        )
        return logits


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card of the family `clip-tuned`.

    The card's `architecture.arguments` has three keys: `tower`, `feature`, and `normalise`. `tower`
    has the arguments of `VisionTower`. The other two are arguments of `FrozenLinear`. Raises
    DetectorError if an argument is invalid.
    """
    head: dict[str, Any] = dict(card.architecture.arguments)
    arguments = head.pop("tower", None)
    if not isinstance(arguments, Mapping):
        raise DetectorError(
            f"{card.name}: architecture.arguments must have the key `tower`, a mapping with the arguments of the CLIP tower"
        )
    tower = build_tower(arguments, card.name, "architecture.arguments.tower")
    return linear_head(card, tower, head)


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> Mapping[str, torch.Tensor]:
    """Merge low-rank factors of a file into its weights, and rename its tensors for the network.

    Tensors that the network does not know keep their names, so that the loader reports them.
    """
    renamed = {}
    for key, tensor in merged(state, getattr(network, "alpha", 0)).items():
        head = next((prefix for prefix in _HEADS if key.startswith(prefix)), None)
        renamed[key if head is None else f"fc.{key.removeprefix(head)}"] = tensor
    return openai_names(renamed, f"{BACKBONE}.")
