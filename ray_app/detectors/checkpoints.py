"""Read checkpoint files as state dicts that fit their networks, and write tensors as such a file.

`read_state_dict` reads a file, `load_strictly` loads its tensors into a network, and `unreadable`
explains why a file cannot be read. `write_safetensors` writes a file. Files are read only as
safetensors or with `torch.load(weights_only=True)`, so no file can run code. torch is imported when
tensors are read.
"""

import argparse
import json
import logging
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

_log = logging.getLogger(__name__)

_HEAD_BYTES = 4096
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_FETCH_AGAIN = "fetch it again"
_DOWNLOAD_FILE = "download the file itself: its link leads to a page, a login, or an error"
_MAKE_READABLE = "make the file and its folders readable (chmod), or set another cache: HF_HOME for the hub's files, TOUCHSTONE_CACHE for others"
_SET_FORMAT = "set `format: {}` in the card's weights"
_SAVE_AS_SAFETENSORS = "ask its publisher for safetensors or, if you trust it, save its state_dict() as safetensors: such a file can run code"


def read_state_dict(path: Path, weights: Weights) -> "dict[str, torch.Tensor]":
    """Read the state dict of a checkpoint file, with the key names of the network.

    A warning is logged if the file also has averaged weights that `weights.unwrap` does not name.
    Raises DetectorError if the file is unreadable or contains no state dict.
    """
    import torch

    state: Any = _READERS[weights.format](path)
    while isinstance(state, dict) and (
        wrapper := next(
            (name for name in weights.unwrap if isinstance(state.get(name), dict)), None
        )
    ):
        _warn_of_averages(path, state, wrapper, weights)
        state = {name: state[name] for name in weights.keep if name in state} | state[wrapper]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, torch.Tensor) for value in state.values())
    ):
        raise DetectorError(
            f"{path}: no state dict (tensors by name) found at the top level or under the keys of `unwrap`: {', '.join(weights.unwrap) or '(none)'}",
            hint="add the key of the file that holds the state dict to `unwrap` of the weights in the card",
        )
    return _rename_keys(state, weights)


def _warn_of_averages(path: Path, state: Mapping[str, Any], wrapper: str, weights: Weights) -> None:
    """Log the averaged weights (EMA) of a checkpoint that the card does not name.

    timm loads them by default, and its training script prints their accuracy.
    """
    averages = [
        name
        for name, value in state.items()
        if name not in weights.unwrap and "ema" in str(name).split("_") and isinstance(value, dict)
    ]
    if averages:
        _log.warning(
            "%s: reading `%s`, but the file also has averaged weights, `%s`: name both in `unwrap` of the card, the ones to read first",
            path,
            wrapper,
            "`, `".join(averages),
        )


def read_safetensors(path: Path) -> "dict[str, torch.Tensor]":
    """Read the tensors of a safetensors file, by name.

    Raises DetectorError if the file is unreadable.
    """
    from safetensors.torch import load_file

    with _explaining(path, "safetensors weights", "safetensors"):
        return load_file(path)


def write_safetensors(
    path: Path, tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name as a safetensors file that other users can read as the umask allows.

    safetensors 0.8 gives every file the mode 0600.
    """
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, dict(metadata) if metadata else None)
    # Some file systems have one mode for all files and refuse a change.
    if path.stat().st_mode != mode:
        path.chmod(mode)


def read_arrays(path: Path) -> dict[str, Any]:
    """Read the tensors of a safetensors file as NumPy arrays, by name, without torch.

    Raises DetectorError if the file is unreadable.
    """
    from safetensors.numpy import load_file

    with _explaining(path, "safetensors weights", "safetensors"):
        arrays: dict[str, Any] = load_file(path)
        return arrays


def _read_shards(index: Path) -> "dict[str, torch.Tensor]":
    with _explaining(index, "safetensors-index weights", "json"):
        file_names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({str(name) for name in file_names})
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
        warnings.simplefilter("ignore")  # The error of `unreadable` explains more.
        return torch.load(path, weights_only=True, map_location="cpu")


def _read_packed(path: Path) -> "dict[str, torch.Tensor]":
    from ray_app.detectors.packed_weights import unpack

    return unpack(read_safetensors(path))


_READERS = {
    "safetensors": read_safetensors,
    "safetensors-6bit": _read_packed,
    "safetensors-index": _read_shards,
    "torch": _read_torch,
}


def _rename_keys(state: "dict[str, torch.Tensor]", weights: Weights) -> "dict[str, torch.Tensor]":
    """Strip wrapper prefixes, select the network's tensors, and add the network's own prefix."""
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
    """Read the configuration next to a checkpoint that the card's `weights.config` names.

    It may have the labels of the logits. Call `fake_index` to check that it does not contradict the
    card. The result is empty if the card names no file or the file does not exist. Raises
    DetectorError if the file is unreadable.
    """
    path = weights.parent / (card.weights.config or "")
    if not path.is_file():
        return {}
    with _explaining(path, f"the configuration of {card.name}", "json"):
        config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise DetectorError(
            f"{card.name}: {path}: expected a JSON object, got {type(config).__name__}",
            hint="correct weights.config in the card, which names this file",
        )
    return config


def require_fit(
    network: "torch.nn.Module",
    state: "Mapping[str, torch.Tensor]",
    where: str,
    *,
    without: str | None = None,
) -> "dict[str, torch.Tensor]":
    """Check that a state dict has exactly the keys and shapes of a network.

    Returns the tensors that the network has now, without the submodule of the prefix `without`,
    which is loaded from another file. Raises DetectorError with the name if a key or shape does not
    fit.
    """
    tensors = {
        key: tensor
        for key, tensor in network.state_dict().items()
        if without is None or not key.startswith(without)
    }
    problems = {
        "missing": [key for key in tensors if key not in state],
        "unexpected": [key for key in state if key not in tensors],
        "of another shape": [
            f"{key} {tuple(state[key].shape)}, the network has {tuple(tensor.shape)}"
            for key, tensor in tensors.items()
            if key in state and state[key].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        message = "; ".join(
            f"{len(keys)} {problem} ({', '.join(keys[:3])}{', …' * (len(keys) > 3)})"
            for problem, keys in problems.items()
            if keys
        )
        raise DetectorError(
            f"{where}: the weights do not fit the network: {message}",
            hint="check architecture, unwrap and strip_prefixes in the card",
        )
    return tensors


def load_strictly(
    network: "torch.nn.Module",
    state: "Mapping[str, torch.Tensor]",
    where: str,
    *,
    without: str | None = None,
) -> None:
    """Load a state dict into a network, if it has exactly the keys and shapes of the network.

    The submodule of the prefix `without` is loaded from another file. Raises DetectorError with the
    name if a key or shape does not fit.
    """
    tensors = require_fit(network, state, where, without=without)
    network.load_state_dict(
        state, strict=without is None, assign=any(tensor.is_meta for tensor in tensors.values())
    )


@contextmanager
def explaining_access(owner: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which opens a file of `owner`, into a DetectorError."""
    try:
        yield
    except OSError as error:
        raise make_access_error(owner, path, error) from None


def make_access_error(owner: str, path: Path, error: OSError) -> DetectorError:
    """Return the error for a file of `owner` that cannot be opened."""
    return DetectorError(
        f"{owner}: {path}: {error.strerror or describe_error(error)}", hint=_hint_at_access(error)
    )


def _hint_at_access(error: OSError) -> str:
    is_denied = isinstance(error, PermissionError)
    return _MAKE_READABLE if is_denied else "check the disk, or replace the file"


class FileKind(NamedTuple):
    """The type of a file, which a user gave as a checkpoint or its configuration.

    Attributes:
        name: "torch", "safetensors", "json", or "" for any other type.
        hint: Instruction for the user who gave a file of this type as a checkpoint.
    """

    name: str
    what: str
    hint: str


def detect_file_kind(path: Path) -> FileKind:
    """Detect the type of a file by its first bytes. Raises OSError if it is not readable."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    text = head.lstrip().lower()
    if not head:
        return FileKind("", "an empty file", _FETCH_AGAIN)
    if head.startswith(_LFS_POINTER):
        return FileKind(
            "",
            "a Git LFS pointer instead of the file",
            "run `git lfs pull` in its repository",
        )
    if head.startswith(_LEGACY_TORCH) or _is_torch_zip(path):
        return FileKind("torch", "a PyTorch checkpoint", _SET_FORMAT.format("torch"))
    if head[8:9] == b"{":
        return FileKind("safetensors", "a safetensors file", _SET_FORMAT.format("safetensors"))
    if b'"weight_map"' in head:
        return FileKind(
            "json",
            "the index of a checkpoint in several files",
            _SET_FORMAT.format("safetensors-index"),
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"{")):
        return FileKind(
            "json" if text.startswith(b"{") else "", "a web page or a server error", _DOWNLOAD_FILE
        )
    return FileKind("", "not a safetensors file or a PyTorch checkpoint", _FETCH_AGAIN)


def _is_torch_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


@contextmanager
def _explaining(
    path: Path, expected: str, name: Literal["torch", "safetensors", "json"]
) -> Iterator[None]:
    """Turn any exception of the block into the DetectorError that `unreadable` returns.

    A damaged file raises various exceptions of zip, pickle, or JSON, and torch's message advises to
    open the file without `weights_only`.
    """
    try:
        yield
    except Exception as error:
        raise unreadable(path, expected, error, name=name) from None


def unreadable(
    path: Path,
    expected: str,
    error: BaseException,
    *,
    name: Literal["torch", "safetensors", "json"],
) -> DetectorError:
    """Return the error for a checkpoint or configuration file that cannot be read.

    The message states the reason, for example that the file is a Git LFS pointer. A hint states how
    to correct it. The text of torch's own error is left out if it
    advises to open the file without `weights_only`, because the file could then run code.
    """
    try:
        kind = detect_file_kind(path)
    except OSError as os_error:
        return DetectorError(
            f"{path}: not readable as {expected}: {os_error.strerror or describe_error(os_error)}",
            hint=_hint_at_access(os_error),
        )
    if kind.name != name:
        return DetectorError(
            f"{path}: not readable as {expected}: it is {kind.what}", hint=kind.hint
        )
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        reason = f"it contains an object of {match[1]} in addition to tensors"
        return DetectorError(
            f"{path}: not readable as {expected}: {reason}", hint=_SAVE_AS_SAFETENSORS
        )
    if "TorchScript" in str(error):
        return DetectorError(
            f"{path}: not readable as {expected}: it is a TorchScript program",
            hint=_SAVE_AS_SAFETENSORS,
        )
    reason = "" if "weights_only" in str(error) else f" ({describe_error(error)})"
    return DetectorError(
        f"{path}: not readable as {expected}: it is damaged or incomplete{reason}",
        hint=_FETCH_AGAIN,
    )
