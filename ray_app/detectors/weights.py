"""Weights: from a card's uri to a verified file, and from the file to a state dict that fits a network exactly.

Knows files, hubs, hashes and key names. Knows nothing about architectures. torch is imported only where tensors are read.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ray_app.config import config_root
from ray_app.detectors.cards import HUB_URI, DetectorCard, Weights
from ray_app.errors import DetectorError

if TYPE_CHECKING:
    import torch

CACHE_VARIABLE = "TOUCHSTONE_CACHE"
MIRROR_VARIABLE = "TOUCHSTONE_WEIGHTS_MIRROR"
_OFFLINE_VARIABLES = ("TOUCHSTONE_OFFLINE", "HF_HUB_OFFLINE")
_CHUNK_BYTES = 2**22


def resolve_weights(card: DetectorCard, cache_dir: Path | None = None, offline: bool | None = None) -> Path:
    """The card's weights as a local file whose SHA-256 is the card's, fetched into the cache if they are not there yet.

    Looked for in this order: beside the card, the cache, the mirror that $TOUCHSTONE_WEIGHTS_MIRROR names (any fsspec URL; filled by
    `publish_weights`, so that workers do not storm a hub), the uri. Offline ($TOUCHSTONE_OFFLINE, $HF_HUB_OFFLINE) never the uri.
    Raises DetectorError, always one: missing, unreachable, or not the file that the card means.
    """
    cache = cache_dir or default_cache()
    if offline is None:
        offline = any(os.environ.get(name, "").lower() not in ("", "0", "false") for name in _OFFLINE_VARIABLES)
    found = _local(card, cache)
    if found is None and os.environ.get(MIRROR_VARIABLE):
        found = _download(_mirrored(card, os.environ[MIRROR_VARIABLE]), cache / cached_name(card), card, required=False)
    if found is None:
        found = _fetch(card, cache, offline)
    verify_weights(card, found)
    return found


def publish_weights(card: DetectorCard, mirror: str) -> str:
    """Copy verified weights to a bucket or shared folder from which workers read them; returns the URL. Raises DetectorError."""
    import fsspec

    url = _mirrored(card, mirror)
    try:
        filesystem, path = fsspec.url_to_fs(url)
        filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        filesystem.put_file(str(resolve_weights(card)), path)
    except DetectorError:
        raise
    except Exception as error:  # fsspec lets every backend's own exceptions through
        raise DetectorError(f"{card.name}: cannot write weights to {url}: {_said(error)}") from error
    return url


def verify_weights(card: DetectorCard, path: Path) -> str:
    """The SHA-256 of a weights file. Raises DetectorError where the card knows another one."""
    digest = _sha256(path)
    if card.weights.sha256 not in (None, digest):
        raise DetectorError(
            f"{card.name}: {path} is not the file that the card means: sha256 {digest}, the card says {card.weights.sha256}",
            hint=f"delete it and run: touchstone detectors fetch {card.name}",
        )
    return digest


def default_cache() -> Path:
    """$TOUCHSTONE_CACHE, else ~/.cache/touchstone/weights."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "touchstone" / "weights")


def cached_name(card: DetectorCard) -> str:
    """The file name of a card's weights in the cache and in a mirror: another uri or hash is another file."""
    version = card.weights.sha256 or hashlib.sha256(card.weights.uri.encode()).hexdigest()
    return f"{card.name}-{version[:16]}{'.safetensors' if card.weights.format == 'safetensors' else '.pth'}"


def checkpoint_config(card: DetectorCard, weights: Path) -> Mapping[str, Any]:
    """What the checkpoint says of itself in the file that the card names; empty where there is none. Raises DetectorError."""
    if card.weights.config is None:
        return {}
    path = weights.parent / card.weights.config
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DetectorError(f"{card.name}: {path}: {error}") from None
    if not isinstance(config, dict):
        raise DetectorError(f"{card.name}: {path}: not a JSON object")
    return config


def read_state_dict(path: Path, weights: Weights) -> "dict[str, torch.Tensor]":
    """Tensors of a file under the network's own key names: unwrapped, prefixes stripped. Raises DetectorError.

    Only safetensors and `torch.load(weights_only=True)`: no file can run code.
    """
    import torch

    try:
        if weights.format == "safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file fails in zip, pickle or safetensors, each with exceptions of its own
        raise DetectorError(f"{path}: not readable as {weights.format} weights: {_said(error)}") from error
    while isinstance(state, dict) and (inner := next((state[name] for name in weights.unwrap if isinstance(state.get(name), dict)), None)):
        state = inner
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DetectorError(f"{path}: no state dict, neither at the top nor under {', '.join(weights.unwrap) or '(no name given)'}")
    return _stripped(state, weights.strip_prefixes)


def load_strictly(network: "torch.nn.Module", state: "Mapping[str, torch.Tensor]", where: str) -> None:
    """Load a state dict of which every key and shape fits. Raises DetectorError that names what does not."""
    own = network.state_dict()
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
    network.load_state_dict(state)


def _local(card: DetectorCard, cache: Path) -> Path | None:
    candidates = [cache / cached_name(card)]
    parts = urlsplit(card.weights.uri)
    if parts.scheme in ("", "file"):
        # A card travels to workers by value: on another machine the shipped weights lie beside that machine's own cards.
        name = Path(parts.path)
        candidates = [card.folder / name, config_root() / "detectors" / name, cache / name, *candidates]
    return next((path for path in candidates if path.is_file()), None)


def _fetch(card: DetectorCard, cache: Path, offline: bool) -> Path:
    uri = card.weights.uri
    scheme = urlsplit(uri).scheme
    if scheme == "hf":
        return _from_hub(card, cache, offline)
    if scheme in ("", "file") or offline:
        raise _missing(
            card, "offline, and not in the cache" if scheme not in ("", "file") else f"no such file beside the card nor in {cache}"
        )
    fetched = _download(uri, cache / cached_name(card), card, required=True)
    assert fetched is not None
    return fetched


def _from_hub(card: DetectorCard, cache: Path, offline: bool) -> Path:
    place = HUB_URI.fullmatch(card.weights.uri)
    assert place is not None
    folder, _, file = place["file"].rpartition("/")
    path = _hub_file(card, place["repo"], place["revision"], folder, file, cache, offline)
    if card.weights.config is not None and not offline:
        _hub_file(card, place["repo"], place["revision"], folder, card.weights.config, cache, offline)
    return path


def _hub_file(card: DetectorCard, repo: str, revision: str, folder: str, file: str, cache: Path, offline: bool) -> Path:
    import huggingface_hub

    hub_cache = None if cache == default_cache() else cache / "hub"
    try:
        path = huggingface_hub.hf_hub_download(
            repo, file, subfolder=folder or None, revision=revision, cache_dir=hub_cache, local_files_only=offline
        )
    except Exception as error:  # the hub's own errors and its HTTP library's; a file that is cached raises none of them
        raise _missing(card, f"offline, and {file} is not in the hub's cache" if offline else f"{file}: {_said(error)}") from None
    return Path(path)


def _download(url: str, target: Path, card: DetectorCard, *, required: bool) -> Path | None:
    """Copy `url` to `target` in one rename, so that no reader ever sees half a file; None if it is absent and not required."""
    import fsspec

    partial: str | None = None
    try:
        with fsspec.open(url, "rb") as source:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            with os.fdopen(handle, "wb") as sink:
                while chunk := source.read(_CHUNK_BYTES):
                    sink.write(chunk)
        verify_weights(card, Path(partial))
        Path(partial).replace(target)
        return target
    except DetectorError:
        raise
    except FileNotFoundError as error:
        if not required:
            return None
        raise _missing(card, f"not found: {_said(error)}") from None
    except Exception as error:  # fsspec lets every backend's own exceptions through
        raise _missing(card, f"{url}: {_said(error)}") from None
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _missing(card: DetectorCard, why: str) -> DetectorError:
    weights = card.weights
    first = weights.obtain or "With a network, once:"
    hint = f"{first} touchstone detectors fetch {card.name}"
    return DetectorError(f"{card.name}: no weights: {weights.uri}: {why}", hint=hint)


def _mirrored(card: DetectorCard, mirror: str) -> str:
    return f"{mirror.rstrip('/')}/{cached_name(card)}"


def _stripped(state: "dict[str, torch.Tensor]", prefixes: tuple[str, ...]) -> "dict[str, torch.Tensor]":
    while prefix := next((prefix for prefix in prefixes if all(key.startswith(prefix) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
