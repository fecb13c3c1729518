"""From a card to its network: `build_network`, `load_network`. A family's module is imported when a card needs it, never before.

One from outside this tree is found by its entry point in the group `touchstone.families`: a module with `build(card)`.
"""

import importlib
import platform
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from ray_app.detectors.card import ENTRY_POINTS, FAMILIES, DetectorCard
from ray_app.detectors.weights import load_strictly, parts_of, read_state_dict, resolve_part
from ray_app.errors import DetectorError

BACKBONE = "backbone"  # the submodule that several detectors may share


def build_network(card: DetectorCard) -> nn.Module:
    """The card's network in evaluation mode, randomly initialised: (N, 3, H, W) → logits or a Prediction. No network access.

    Each module has one function `build(card)`. Its last linear layer is taken for the head (see `precision`). Raises DetectorError.
    """
    network: nn.Module = _module(card).build(card)
    return network.eval().requires_grad_(False)


def load_network(card: DetectorCard, cache_dir: Path | None = None, offline: bool | None = None) -> nn.Module:
    """The card's network with its weights: every key and shape of every file fits, or DetectorError says which does not.

    The submodule `backbone` comes from the backbone's own file where the card names one. A family may also have
    `published_keys(state, network)`, where the file's names need not be the network's; a network may have `attach(folder)`, for what
    lies beside its weights, and `reads_its_own_weights`, where another engine loads them.
    """
    network = build_network(card)
    own, *shared = parts_of(card)
    for part in shared:
        path = resolve_part(part, cache_dir, offline)
        load_strictly(network.get_submodule(BACKBONE), read_state_dict(path, part.weights), where=f"{part.owner}: {path}")
    path = resolve_part(own, cache_dir, offline)
    if not getattr(network, "reads_its_own_weights", False):
        state = own_keys(card, read_state_dict(path, own.weights), network)
        load_strictly(network, state, where=f"{own.owner}: {path}", without=f"{BACKBONE}." if shared else None)
    if callable(attach := getattr(network, "attach", None)):
        attach(path.parent)
    return network


def own_keys(card: DetectorCard, state: Mapping[str, torch.Tensor], network: nn.Module) -> Mapping[str, torch.Tensor]:
    """A file's tensors under the network's own names, where the card's family knows that files have others. Raises DetectorError."""
    published_keys = getattr(_module(card), "published_keys", None)
    return published_keys(state, network) if callable(published_keys) else state


def _module(card: DetectorCard) -> ModuleType:
    if card.family in FAMILIES:
        return importlib.import_module(FAMILIES[card.family])
    point = next(iter(entry_points(group=ENTRY_POINTS, name=card.family)), None)
    if point is None:
        raise DetectorError(f"{card.name}: no package on {platform.node()} has the family {card.family!r}",
                            hint="install it on every node of the cluster")  # fmt: skip
    try:
        module: ModuleType = point.load()
    except Exception as error:  # whatever a stranger's module raises when it is imported
        raise DetectorError(f"{card.name}: the family {card.family!r}, which is {point.value}, does not load: {error}") from error
    return module
