"""From a file of weights to a state dict that fits a network exactly. Knows formats and key names; knows no architecture.

Only safetensors and `torch.load(weights_only=True)`: no file can run code. torch is imported where tensors are read.
"""

import argparse
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_app.detectors.cards import DetectorCard, Weights
from ray_app.detectors.file_kinds import unreadable
from ray_app.errors import DetectorError

if TYPE_CHECKING:
    import torch


def checkpoint_config(card: DetectorCard, weights: Path) -> Mapping[str, Any]:
    """What the checkpoint says of itself in the file that the card names; empty where there is none. Raises DetectorError."""
    if card.weights.config is None:
        return {}
    path = weights.parent / card.weights.config
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, f"the configuration of {card.name}", error, name="json") from None
    if not isinstance(config, dict):
        raise DetectorError(f"{card.name}: {path}: not a JSON object")
    return config


def read_state_dict(path: Path, weights: Weights) -> "dict[str, torch.Tensor]":
    """Tensors of a file under the network's own key names: unwrapped, prefixes stripped. Raises DetectorError."""
    import torch

    state: Any = _READERS[weights.format](path)
    while isinstance(state, dict) and (inner := next((state[name] for name in weights.unwrap if isinstance(state.get(name), dict)), None)):
        state = inner
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DetectorError(f"{path}: no state dict, neither at the top nor under {', '.join(weights.unwrap) or '(no name given)'}")
    return _renamed(state, weights)


def read_safetensors(path: Path) -> "dict[str, torch.Tensor]":
    """Tensors by their names. Raises DetectorError for what is no safetensors file."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # its own, and those of files
        raise unreadable(path, "safetensors weights", error, name="safetensors") from error


def read_arrays(path: Path) -> dict[str, Any]:
    """The same as NumPy arrays, for those who need no torch."""
    from safetensors.numpy import load_file

    try:
        arrays: dict[str, Any] = load_file(path)
        return arrays
    except Exception as error:
        raise unreadable(path, "safetensors weights", error, name="safetensors") from error


def _read_shards(index: Path) -> "dict[str, torch.Tensor]":
    try:
        shards = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(index, "safetensors-index weights", error, name="json") from error
    return {key: tensor for shard in shards for key, tensor in read_safetensors(index.parent / Path(shard).name).items()}


def _read_torch(path: Path) -> Any:
    import torch

    # Training scripts save their arguments beside the weights: a bag of plain values.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the error below says better
        try:
            return torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # a damaged file fails in zip or pickle, each with exceptions of its own
            raise unreadable(path, "torch weights", error, name="torch") from None  # torch advises to open it with less care


_READERS = {"safetensors": read_safetensors, "safetensors-index": _read_shards, "torch": _read_torch}


def load_strictly(network: "torch.nn.Module", state: "Mapping[str, torch.Tensor]", where: str, *, without: str | None = None) -> None:
    """Load a state dict of which every key and shape fits. Raises DetectorError that names what does not.

    `without`: the prefix of a submodule that is loaded from another file.
    """
    own = {key: tensor for key, tensor in network.state_dict().items() if without is None or not key.startswith(without)}
    faults = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)}, the network has {tuple(tensor.shape)}"
            for key, tensor in own.items()
            if key in state and state[key].shape != tensor.shape
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{len(keys)} {fault} ({', '.join(keys[:3])}{', …' * (len(keys) > 3)})" for fault, keys in faults.items() if keys)
        raise DetectorError(
            f"{where}: the weights do not fit the network: {told}", hint="check architecture, unwrap and strip_prefixes in the card"
        )
    network.load_state_dict(state, strict=without is None, assign=any(tensor.is_meta for tensor in own.values()))


def _renamed(state: "dict[str, torch.Tensor]", weights: Weights) -> "dict[str, torch.Tensor]":
    """Wrappers' prefixes off, what the network does not have left out, the rest of the prefixes off, the network's own put on."""
    state = _stripped(state, tuple(prefix for prefix in weights.strip_prefixes if prefix != weights.select))
    state = _stripped({key: tensor for key, tensor in state.items() if key.startswith(weights.select)}, weights.strip_prefixes)
    return {weights.prefix + key: tensor for key, tensor in state.items()}


def _stripped(state: "dict[str, torch.Tensor]", prefixes: tuple[str, ...]) -> "dict[str, torch.Tensor]":
    while state and (prefix := next((prefix for prefix in prefixes if all(key.startswith(prefix) for key in state)), None)):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state
