"""What detectors in one process have in common is held once and run once (`share_backbones`,
`hold_equal_weights_once`).
"""

import weakref
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ray_app.detectors.detector import BACKBONE, Detector


class SharedBackbone(nn.Module):
    """A backbone that several heads ask about one batch after another: it runs for the first, the
    others get the same features.

    `asked` and `runs` count. A batch is known by being the very same tensor; its features are kept
    until the next one comes.
    """

    def __init__(self, name: str, tower: nn.Module) -> None:
        super().__init__()
        self.name, self.tower = name, tower
        self.asked = self.runs = 0
        self._batch: Any = None
        self._features: Any = None

    def forward(self, pixels: torch.Tensor) -> Any:
        """What the tower gives for this batch."""
        self.asked += 1
        if self._batch is None or self._batch() is not pixels:
            self.runs += 1
            self._features = self.tower(pixels)
            self._batch = weakref.ref(pixels)
        return self._features


def share_backbones(detectors: Iterable[Detector]) -> list[SharedBackbone]:
    """Give detectors with one backbone the same module; and let equal weights of all of them lie in
    memory once.

    One backbone is one name, one architecture and equal weights: a name alone is only what a card
    says. Precision is part of the bargain: a backbone in bf16 is not one in fp32.
    """
    detectors = list(detectors)
    shared: dict[tuple[str, ...], list[SharedBackbone]] = defaultdict(list)
    for detector in detectors:
        named = detector.card.backbone
        if named is not None:
            alike = shared[named.name, named.architecture.model_dump_json(), detector.precision]
            own = detector.network.get_submodule(BACKBONE)
            found = next((backbone for backbone in alike if _equal(backbone.tower, own)), None)
            if found is None:
                alike.append(found := SharedBackbone(named.name, own))
            detector.network.set_submodule(BACKBONE, found)
    hold_equal_weights_once(detector.network for detector in detectors)
    return [backbone for alike in shared.values() for backbone in alike]


def _equal(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(left, right)
        for left, right in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def hold_equal_weights_once(networks: Iterable[nn.Module]) -> int:
    """Point parameters with equal content at one tensor; returns the bytes saved. The networks must
    not be trained afterwards.

    A detector may carry a frozen backbone inside its own checkpoint (MaskCLIP: OpenAI's CLIP) that
    another one names as a file; where both run in one precision, it lies in memory once.
    """
    held: defaultdict[tuple[object, ...], list[torch.Tensor]] = defaultdict(list)
    saved = 0
    for network in networks:
        for parameter in network.parameters():
            # tells most apart without comparing millions of values
            first = tuple(parameter.flatten()[:8].tolist())
            alike = held[
                (parameter.shape, parameter.dtype, parameter.device, parameter.stride(), first)
            ]
            same = next(
                (
                    tensor
                    for tensor in alike
                    if tensor.data_ptr() != parameter.data_ptr() and torch.equal(tensor, parameter)
                ),
                None,
            )
            if same is not None:
                saved += parameter.nbytes
                parameter.data = same
            elif all(tensor.data_ptr() != parameter.data_ptr() for tensor in alike):
                alike.append(parameter.data)
    return saved
