"""Checkpoint files: from a file to a state dict that fits its network (`read_state_dict`,
`load_strictly`), and from one that is not readable to the reason (`unreadable`).

Only safetensors and `torch.load(weights_only=True)`: no file can run code. torch is imported when
tensors are read.
"""

import argparse
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ray_app.detectors.card import DetectorCard, Weights
from ray_app.errors import DetectorError, describe_error

if TYPE_CHECKING:
    import torch

_HEAD_BYTES = 4096
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_AGAIN = "fetch it again"
_PAGE = "its link leads to a page, a login or an error: download the file itself"
_SAY = "say `format: {}` in the card's weights"
_ONLY_TENSORS = "ask its publisher for safetensors, or save its state_dict() as safetensors where you trust it: such a file can run code"


def read_state_dict(path: Path, weights: Weights) -> "dict[str, torch.Tensor]":
    """Read the tensors of a file, unwrapped, under the network's own key names. Raises
    DetectorError.
    """
    import torch

    state: Any = _READERS[weights.format](path)
    while isinstance(state, dict) and (
        inner := next(
            (state[name] for name in weights.unwrap if isinstance(state.get(name), dict)), None
        )
    ):
        state = {name: state[name] for name in weights.keep if name in state} | inner
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, torch.Tensor) for value in state.values())
    ):
        raise DetectorError(
            f"{path}: no state dict, neither at the top nor under {', '.join(weights.unwrap) or '(no name given)'}"
        )
    return _rename_keys(state, weights)


def read_safetensors(path: Path) -> "dict[str, torch.Tensor]":
    """Read tensors by their names. Raises DetectorError if the file is not a safetensors file."""
    from safetensors.torch import load_file

    with _explaining(path, "safetensors weights", "safetensors"):
        return load_file(path)


def read_arrays(path: Path) -> dict[str, Any]:
    """Read the tensors of a safetensors file as NumPy arrays, without torch. Raises DetectorError."""
    from safetensors.numpy import load_file

    with _explaining(path, "safetensors weights", "safetensors"):
        arrays: dict[str, Any] = load_file(path)
        return arrays


def _read_shards(index: Path) -> "dict[str, torch.Tensor]":
    with _explaining(index, "safetensors-index weights", "json"):
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({str(name) for name in named})
    return {
        key: tensor
        for shard in shards
        for key, tensor in read_safetensors(index.parent / Path(shard).name).items()
    }


def _read_torch(path: Path) -> Any:
    import torch

    # Training scripts save their arguments next to the weights: a namespace of plain values.
    with (
        torch.serialization.safe_globals([argparse.Namespace]),
        warnings.catch_warnings(),
        _explaining(path, "torch weights", "torch"),
    ):
        warnings.simplefilter("ignore")  # The error of `unreadable` says more.
        return torch.load(path, weights_only=True, map_location="cpu")


_READERS = {
    "safetensors": read_safetensors,
    "safetensors-index": _read_shards,
    "torch": _read_torch,
}


def _rename_keys(state: "dict[str, torch.Tensor]", weights: Weights) -> "dict[str, torch.Tensor]":
    """Remove the prefixes of wrappers, tensors of other networks, and the other prefixes, and add
    the network's own.
    """
    wrappers = tuple(prefix for prefix in weights.strip_prefixes if prefix != weights.select)
    selected = {
        key: tensor
        for key, tensor in _strip_prefixes(state, wrappers).items()
        if key.startswith(weights.select)
    }
    return {
        weights.prefix + key: tensor
        for key, tensor in _strip_prefixes(selected, weights.strip_prefixes).items()
    }


def _strip_prefixes(
    state: "dict[str, torch.Tensor]", prefixes: tuple[str, ...]
) -> "dict[str, torch.Tensor]":
    while state and (
        prefix := next(
            (prefix for prefix in prefixes if all(key.startswith(prefix) for key in state)), None
        )
    ):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def checkpoint_config(card: DetectorCard, weights: Path) -> Mapping[str, Any]:
    """Read the checkpoint's own configuration, which the card names. Empty if there is none. Raises
    DetectorError.
    """
    path = weights.parent / (card.weights.config or "")
    if not path.is_file():
        return {}
    with _explaining(path, f"the configuration of {card.name}", "json"):
        config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise DetectorError(f"{card.name}: {path}: not a JSON object")
    return config


def require_fit(
    network: "torch.nn.Module",
    state: "Mapping[str, torch.Tensor]",
    where: str,
    *,
    without: str | None = None,
) -> "dict[str, torch.Tensor]":
    """Return the tensors of a network that a state dict replaces, if every key and shape fits.

    Args:
        network: The network.
        state: The tensors of a file, under the network's names.
        where: The file, for the message.
        without: The prefix of a submodule that is loaded from another file.

    Raises:
        DetectorError: A key or a shape does not fit; the message names it.
    """
    own = {
        key: tensor
        for key, tensor in network.state_dict().items()
        if without is None or not key.startswith(without)
    }
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
        message = "; ".join(
            f"{len(keys)} {fault} ({', '.join(keys[:3])}{', …' * (len(keys) > 3)})"
            for fault, keys in faults.items()
            if keys
        )
        raise DetectorError(
            f"{where}: the weights do not fit the network: {message}",
            hint="check architecture, unwrap and strip_prefixes in the card",
        )
    return own


def load_strictly(
    network: "torch.nn.Module",
    state: "Mapping[str, torch.Tensor]",
    where: str,
    *,
    without: str | None = None,
) -> None:
    """Load a state dict into a network. Arguments and errors are those of `require_fit`."""
    own = require_fit(network, state, where, without=without)
    network.load_state_dict(
        state, strict=without is None, assign=any(tensor.is_meta for tensor in own.values())
    )


class FileKind(NamedTuple):
    """Type of a file: `name` is torch, safetensors, json, or empty for any other; `what` describes
    it, `hint` says what to do.
    """

    name: str
    what: str
    hint: str


def kind_of_file(path: Path) -> FileKind:
    """Return the type of a file, by its first bytes. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    text = head.lstrip().lower()
    if not head:
        return FileKind("", "an empty file", _AGAIN)
    if head.startswith(_LFS_POINTER):
        return FileKind(
            "",
            "a git-LFS pointer, which only names the file",
            "run `git lfs pull` in its repository",
        )
    if head.startswith(_LEGACY_TORCH) or _is_torch_zip(path):
        return FileKind("torch", "a PyTorch checkpoint", _SAY.format("torch"))
    if head[8:9] == b"{":
        return FileKind("safetensors", "a safetensors file", _SAY.format("safetensors"))
    if b'"weight_map"' in head:
        return FileKind(
            "json", "the index of a checkpoint in several files", _SAY.format("safetensors-index")
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"{")):
        return FileKind(
            "json" if text.startswith(b"{") else "", "a web page or the error of a server", _PAGE
        )
    return FileKind("", "not a safetensors file or a PyTorch checkpoint", _AGAIN)


def _is_torch_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


@contextmanager
def _explaining(
    path: Path, wanted: str, name: Literal["torch", "safetensors", "json"]
) -> Iterator[None]:
    """Turn any exception of the block into `unreadable`: a damaged file fails in zip, pickle, or
    JSON, each with exceptions of its own, and torch advises to open it with less care.
    """
    try:
        yield
    except Exception as error:
        raise unreadable(path, wanted, error, name=name) from None


def unreadable(
    path: Path, wanted: str, error: BaseException, *, name: Literal["torch", "safetensors", "json"]
) -> DetectorError:
    """Return the error for a file that cannot be read as `wanted`, of the type `name`, without
    advice to open it with less care.
    """
    try:
        kind = kind_of_file(path)
    except OSError as fault:
        return DetectorError(
            f"{path}: not readable as {wanted}: {fault.strerror or describe_error(fault)}"
        )
    if kind.name != name:
        return DetectorError(f"{path}: not readable as {wanted}: it is {kind.what}", hint=kind.hint)
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        reason = f"it holds an object of {found[1]}, and not tensors alone"
        return DetectorError(f"{path}: not readable as {wanted}: {reason}", hint=_ONLY_TENSORS)
    if "TorchScript" in str(error):
        return DetectorError(
            f"{path}: not readable as {wanted}: it is a TorchScript program", hint=_ONLY_TENSORS
        )
    reason = "" if "weights_only" in str(error) else f" ({describe_error(error)})"
    return DetectorError(
        f"{path}: not readable as {wanted}: it is damaged or not whole{reason}", hint=_AGAIN
    )
