"""The `gapl` family: what a tuned CLIP sees of an image, attending to prototypes of generators.

Under the authors' key names but for the tower's. Source: Qin et al., CVPR 2026 (arXiv 2512.12982).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.families import clip, clip_tuned, low_rank


class Gapl(nn.Module):
    """(N, 3, H, W), normalised → (N, 1). `tower`: the arguments of `clip.VisionTower`; `prototypes` of `width` numbers, asked by `heads`.

    `alpha`: what the tower's low-rank additions in a file are scaled by.
    """

    def __init__(self, *, tower: Mapping[str, Any], prototypes: int, width: int, heads: int, alpha: float) -> None:
        super().__init__()
        self.backbone = clip.VisionTower(**tower)
        self.foren_proj = nn.Linear(self.backbone.widths["class-token"], width, bias=False)
        self.prototype = nn.Parameter(clip.drawn(prototypes, width, std=1.0))
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc = nn.Linear(width, 1, bias=False)
        self.alpha = alpha

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        trace = functional.normalize(self.foren_proj(self.backbone(pixels).class_token), dim=1)
        known = self.prototype.expand(len(trace), -1, -1)
        mixed, _ = self.cross_attention(trace[:, None], known, known, need_weights=False)
        logits: torch.Tensor = self.fc(mixed[:, 0])
        return logits


def published_keys(state: Mapping[str, torch.Tensor], network: Gapl) -> Mapping[str, torch.Tensor]:
    """A file's tensors under the names of the network, the tower's additions added up."""
    return clip_tuned.published_keys(low_rank.merged(state, network.alpha), network)
