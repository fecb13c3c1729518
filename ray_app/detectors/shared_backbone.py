"""Share equal weights and backbones among the detectors of a process.

Start at `share_backbones`. A shared backbone runs once per batch. Equal weights are in memory only
once (`share_equal_weights`).
"""

import weakref
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ray_app.detectors.detector import BACKBONE, Detector


class SharedBackbone(nn.Module):
    """Backbone that several detectors share, and that runs once per batch.

    A backbone computes features that the detectors' own layers use. The first detector that
    requests the features of a batch runs the backbone, and other detectors get the stored features.
    They must pass the same tensor object: an equal tensor counts as another batch. The features are
    kept until the next batch.

    Attributes:
        name: Name of the backbone.
        tower: The backbone's network.
        asked: Number of times that features were requested.
        runs: Number of times that the backbone was executed.
    """

    def __init__(self, name: str, tower: nn.Module) -> None:
        super().__init__()
        self.name, self.tower = name, tower
        self.asked = self.runs = 0
        self._batch: Any = None
        self._features: Any = None

    def forward(self, pixels: torch.Tensor) -> Any:
        """Return the backbone's features of a batch, and run the backbone only if needed."""
        self.asked += 1
        if self._batch is None or self._batch() is not pixels:
            self.runs += 1
            self._features = self.tower(pixels)
            self._batch = weakref.ref(pixels)
        return self._features


def share_backbones(detectors: Iterable[Detector]) -> list[SharedBackbone]:
    """Give detectors with the same backbone the same module, and store equal weights once.

    Backbones are the same if name, architecture, precision, and weights are equal. The name alone
    is not enough, because a card may state any name.

    Args:
        detectors: The detectors, which are changed in place.

    Returns:
        The shared backbones.
    """
    detectors = list(detectors)
    shared: dict[tuple[str, ...], list[SharedBackbone]] = defaultdict(list)
    for detector in detectors:
        backbone_card = detector.card.backbone
        if backbone_card is not None:
            candidates = shared[
                backbone_card.name, backbone_card.architecture.model_dump_json(), detector.precision
            ]
            tower = detector.network.get_submodule(BACKBONE)
            match = next(
                (backbone for backbone in candidates if _have_equal_weights(backbone.tower, tower)),
                None,
            )
            if match is None:
                candidates.append(match := SharedBackbone(backbone_card.name, tower))
            detector.network.set_submodule(BACKBONE, match)
    share_equal_weights(detector.network for detector in detectors)
    return [backbone for candidates in shared.values() for backbone in candidates]


def _have_equal_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(left, right)
        for left, right in zip(
            first.state_dict().values(), second.state_dict().values(), strict=True
        )
    )


def share_equal_weights(networks: Iterable[nn.Module]) -> int:
    """Make parameters with equal content share one tensor, to save memory.

    For example, MaskCLIP's checkpoint contains OpenAI's CLIP, which other detectors load from a
    separate file. The networks must not be trained afterwards.

    Args:
        networks: The networks, which are changed in place. Only tensors of the same precision are
            shared.

    Returns:
        The bytes saved.
    """
    tensors_by_key: defaultdict[tuple[object, ...], list[torch.Tensor]] = defaultdict(list)
    saved_bytes = 0
    for network in networks:
        for parameter in network.parameters():
            # The first values distinguish most tensors without comparing millions of values.
            first_values = tuple(parameter.flatten()[:8].tolist())
            candidates = tensors_by_key[
                (
                    parameter.shape,
                    parameter.dtype,
                    parameter.device,
                    parameter.stride(),
                    first_values,
                )
            ]
            match = next(
                (
                    tensor
                    for tensor in candidates
                    if tensor.data_ptr() != parameter.data_ptr() and torch.equal(tensor, parameter)
                ),
                None,
            )
            if match is not None:
                saved_bytes += parameter.nbytes
                parameter.data = match
            elif all(tensor.data_ptr() != parameter.data_ptr() for tensor in candidates):
                candidates.append(parameter.data)
    return saved_bytes
