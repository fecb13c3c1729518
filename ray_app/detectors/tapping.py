"""What a network's head is given: the vector per image of which its last linear layer makes the logits. Knows networks and tensors only."""

from typing import Any

import torch
from torch import nn

from ray_app.errors import DetectorError


class Tap:
    """Notes what goes through a network's head, for whoever asks right after the network has run. `name`: the detector's."""

    def __init__(self, name: str, network: nn.Module) -> None:
        self._name = name
        self._given: torch.Tensor | None = None
        self._made: Any = None
        _, head = head_of(name, network)
        head.register_forward_hook(self._note)

    def taken(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, d) float32, of which the head made these logits. Raises DetectorError where it did not, or where it takes no such thing."""
        given, made = self._given, self._made
        self._given = self._made = None
        if given is None or made is not logits or given.ndim != 2:
            raise no_embedding(self._name)
        return given.float()

    def _note(self, head: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        self._given, self._made = given[0], made


def head_of(name: str, network: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer, as `lower_to_bf16` takes it for the head too, and its name. Raises DetectorError where there is none."""
    layers = [(path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise no_embedding(name)
    return layers[-1]


def no_embedding(name: str) -> DetectorError:
    """Why nothing can be kept of a detector of this name."""
    return DetectorError(
        f"{name}: its logits are not what one linear layer makes of one vector per image, so there is no embedding to keep",
        hint="leave it out of --features; detectors of the family clip-linear and common classifiers have one",
    )
