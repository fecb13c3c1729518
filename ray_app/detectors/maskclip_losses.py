"""What MaskCLIP is trained on: three losses, and which of its tensors learn. Knows tensors only.

Constants: specs/localization.md §1.2 and §1.6.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

EDGE_WEIGHT = 20.0
LEARNING = ("aggregator", "prompt", "vit_model")  # parts of the names of what learns; the rest is CLIP


class Losses(NamedTuple):
    """`detection`: cross-entropy of real and fake. `mask`: binary cross-entropy per pixel. `edge`: the same along edges, times 20."""

    detection: torch.Tensor
    mask: torch.Tensor
    edge: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """What is minimised."""
        return self.detection + self.mask + self.edge


def losses(
    logits: torch.Tensor, mask_logits: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor, edges: torch.Tensor | None = None
) -> Losses:
    """The losses of a batch, in fp32 and on logits throughout, so that mixed precision is safe.

    `logits` (N, 2) and `mask_logits` (N, S, S) of `MaskClip.logits`; `labels` (N,) int64, 1 = fake; `masks` and `edges` (N, S, S) of 0
    and 1. The edge term is the mean over all pixels of all images, those without an edge too.
    """
    with torch.autocast(mask_logits.device.type, enabled=False):
        pixels = functional.binary_cross_entropy_with_logits(mask_logits.float(), masks.float(), reduction="none")
        edge = pixels.new_zeros(()) if edges is None else EDGE_WEIGHT * (pixels * edges).mean()
        return Losses(functional.cross_entropy(logits.float(), labels), pixels.mean(), edge)


def trainable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Freeze CLIP, let everything else learn: what learns, by name (332 tensors, at the published sizes 119,212,225 numbers)."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(part in name for part in LEARNING))
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
