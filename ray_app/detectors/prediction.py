"""What networks give and what detectors make of it. Knows tensors only."""

from typing import NamedTuple

import torch


class Prediction(NamedTuple):
    """A network's answer for a batch; a network that only classifies gives its logits alone.

    `logits`: (N, 1 or 2); NaN where a reply says neither. `masks`: (N, H, W) probabilities that a pixel was altered, at the network's
    own size. `replies`: one text per image, from a detector that answers in words.
    """

    logits: torch.Tensor
    masks: torch.Tensor | None = None
    replies: tuple[str, ...] | None = None


class Reading(NamedTuple):
    """A detector's answer for a batch. `scores`: (N,) float32 log-odds of fake, NaN = none. `masks`: (N, H, W) uint8, round(255 p).

    `embeddings`: (N, d) float32, of a detector that was told to keep them.
    """

    scores: torch.Tensor
    masks: torch.Tensor | None = None
    replies: tuple[str, ...] | None = None
    embeddings: torch.Tensor | None = None
