"""Build the `clip-tuned` family: a linear head on a trained CLIP tower, both in one file.

The `gapl` family has a head that attends to prototypes of generators. C2P-CLIP (Tan et al., AAAI
2025, arXiv 2408.09647) trained low-rank additions, which its file has merged into the weights.
Effort (Yan et al., ICML 2025, arXiv 2411.15633) trained the smallest singular components of the
attention's weights, which its file stores separately. They are merged when the file is read, as are
the low-rank additions of GAPL (Qin et al., CVPR 2026, arXiv 2512.12982). The key names are those of
transformers.
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

    Args:
        tower: The arguments of `VisionTower`.
        prototypes: Number of prototypes.
        width: Width of a prototype.
        heads: Heads of the attention to the prototypes.
        alpha: Scale of the tower's low-rank additions in a file.
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
        """Score a batch of images. See the class for shapes."""
        trace = functional.normalize(self.foren_proj(self.backbone(pixels).class_token), dim=1)
        prototypes = self.prototype.expand(len(trace), -1, -1)
        logits: torch.Tensor = self.fc(
            self.cross_attention(trace[:, None], prototypes, prototypes, need_weights=False)[0][
                :, 0
            ]
        )
        return logits


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card.

    The card's `architecture.arguments` are `tower` (the arguments of `VisionTower`), `feature`, and
    `normalise`. Raises DetectorError.
    """
    head: dict[str, Any] = dict(card.architecture.arguments)
    arguments = head.pop("tower", None)
    if not isinstance(arguments, Mapping):
        raise DetectorError(
            f"{card.name}: architecture.arguments must have `tower`, the arguments of the CLIP tower"
        )
    tower = build_tower(arguments, card.name, "architecture.arguments.tower")
    return linear_head(card, tower, head)


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> Mapping[str, torch.Tensor]:
    """Rename a file's tensors to those of the network.

    All other tensors keep their names, so that the loader reports them.
    """
    renamed = {}
    for key, tensor in merged(state, getattr(network, "alpha", 0)).items():
        head = next((prefix for prefix in _HEADS if key.startswith(prefix)), None)
        renamed[key if head is None else f"fc.{key.removeprefix(head)}"] = tensor
    return openai_names(renamed, f"{BACKBONE}.")
