"""Weights: from a card's uri to verified files on this machine (`resolve_weights`), and from a file
to a state dict that fits (`read_state_dict`, `load_strictly`).

Only safetensors and `torch.load(weights_only=True)`: no file can run code. torch is imported where
tensors are read.
"""

import argparse
import functools
import hashlib
import json
import os
import re
import socket
import tempfile
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ray_app.config import CACHE_VARIABLE, cache_folder, config_root
from ray_app.detectors.card import HUB_URI, DetectorCard, Weights, base_name
from ray_app.detectors.checkpoint_formats import kind_of_file, unreadable
from ray_app.errors import DetectorError, describe_error

if TYPE_CHECKING:
    import torch

MIRROR_VARIABLE = "TOUCHSTONE_WEIGHTS_MIRROR"
_OFFLINE_VARIABLES = ("TOUCHSTONE_OFFLINE", "HF_HUB_OFFLINE")
_CHUNK_BYTES = 2**22
_HUB_SHA256 = re.compile(r"[0-9a-f]{64}")  # what the hub's cache calls a large file


@dataclass(frozen=True)
class WeightSet:
    """One set of weight files of a detector: its own, or those of the backbone that it may share.
    `owner` is the card, for messages.
    """

    name: str
    weights: Weights
    folder: Path
    owner: str


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; gigabytes are hashed once per process. Raises OSError."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    # Size and time identify the content.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parts_of(card: DetectorCard) -> list[WeightSet]:
    """The detector's own weights first, then its backbone's. Variants of a card share their files."""
    own = WeightSet(base_name(card.name), card.weights, card.folder, card.name)
    backbone = card.backbone
    return (
        [own]
        if backbone is None
        else [own, WeightSet(backbone.name, backbone.weights, backbone.folder, card.name)]
    )


def is_offline() -> bool:
    """Whether no hub may be reached ($TOUCHSTONE_OFFLINE, $HF_HUB_OFFLINE)."""
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false") for name in _OFFLINE_VARIABLES
    )


def resolve_weights(card: DetectorCard, offline: bool | None = None) -> Path:
    """The card's own weights as a local file whose SHA-256 is the card's; they and the backbone's
    are fetched if they are not there yet.

    Looked for in this order: beside the card, the cache, the mirror that $TOUCHSTONE_WEIGHTS_MIRROR
    names (any fsspec URL; filled by `publish_weights`, so that workers do not storm a hub), the
    uri. Offline ($TOUCHSTONE_OFFLINE, $HF_HUB_OFFLINE) never the uri. Raises DetectorError, always
    one: missing, unreachable, or not the file that the card means.
    """
    (_, own), *_ = resolved(card, offline)
    return own


def resolved(card: DetectorCard, offline: bool | None = None) -> list[tuple[WeightSet, Path]]:
    """The same for every part of a card (see `parts_of`), each with its own file."""
    return [(part, resolve_part(part, offline)) for part in parts_of(card)]


def resolve_part(part: WeightSet, offline: bool | None = None) -> Path:
    """The same for one part; the files that must lie beside it do so."""
    found = _local(part)
    if found is None and (mirror := os.environ.get(MIRROR_VARIABLE)):
        found = _copy(part, _mirrored(part, mirror), cached_path(part), required=False)
    if found is None:
        found = _fetch(part, is_offline() if offline is None else offline)
    digest_of(part, found)
    return found


def located(part: WeightSet) -> Path | None:
    """Where a part's file lies on this machine, with all that belongs beside it; None if not. Not
    hashed, nothing fetched, no mirror.
    """
    found = _local(part)
    if found is not None or not part.weights.uri.startswith("hf://"):
        return found
    try:
        return _from_hub(part, offline=True)
    except DetectorError:
        return None


def publish_weights(card: DetectorCard, mirror: str) -> str:
    """Copy verified weights to a bucket or shared folder from which workers read them; returns the
    URL of the detector's own file.

    Raises DetectorError.
    """
    own, *_ = [publish_part(part, mirror) for part in parts_of(card)]
    return own


def publish_part(part: WeightSet, mirror: str) -> str:
    """The same for one part."""
    from ray_app.storage.object_store import retrying_fsspec_for

    url, found = _mirrored(part, mirror), resolve_part(part)
    try:
        filesystem, path = retrying_fsspec_for(url)
        folder = path.rpartition("/")[0]
        filesystem.makedirs(folder, exist_ok=True)
        config = part.weights.config
        beside = [
            *part.weights.beside,
            *([config] if config and (found.parent / config).is_file() else []),
        ]
        for name in dict.fromkeys(beside):
            _put(filesystem, found.parent / name, f"{folder}/{name}")
        _put(filesystem, found, path)
    except Exception as error:  # fsspec lets every backend's own exceptions through
        raise DetectorError(
            f"{part.owner}: cannot write weights to {url}: {describe_error(error)}"
        ) from error
    return url


def _put(filesystem: Any, file: Path, path: str) -> None:
    """Copy a file that is not there yet; a name in a mirror stands for one content, or for one that
    is checked when it is read.
    """
    if not filesystem.exists(path) or filesystem.size(path) != file.stat().st_size:
        filesystem.put_file(str(file), path)


def weights_digest(card: DetectorCard) -> str:
    """One SHA-256 for all that a detector's weights hold: the file's own where there is one file.
    Raises DetectorError.
    """
    return digest_of_all([digest_of(*one) for one in resolved(card)])


def stated_digest(card: DetectorCard) -> str | None:
    """What `weights_digest` gives for files that are as the card states; None where it does not
    state all of them. Touches no file.
    """
    digests = []
    for weights in (part.weights for part in parts_of(card)):
        if weights.sha256 is None or None in weights.beside.values():
            return None
        digests.append(_joined(weights.sha256, weights.beside))
    return digest_of_all(digests)


def digest_of_all(lines: Sequence[str]) -> str:
    """One SHA-256 for several, each a line; the digest itself where it is alone."""
    return lines[0] if len(lines) == 1 else hashlib.sha256("\n".join(lines).encode()).hexdigest()


def with_kept_weights(
    card: DetectorCard, digest: str, mirrors: Sequence[str]
) -> DetectorCard | None:
    """The card with the weights of this digest, which its name stood for earlier, where the cache
    or one of the mirrors still has them.

    None where none has, and for weights of several files.
    """
    [own, *others] = parts_of(card)
    if others or own.weights.beside:
        return None
    part = replace(
        own, weights=own.weights.model_copy(update={"sha256": digest, "unverified": None})
    )
    kept = cached_path(part)
    if not kept.is_file() and not any(
        _copy(part, _mirrored(part, mirror), kept, required=False) for mirror in mirrors
    ):
        return None
    return card.model_copy(update={"weights": part.weights.model_copy(update={"uri": str(kept)})})


def verify_weights(card: DetectorCard, path: Path) -> str:
    """The SHA-256 of the card's own weights file. Raises DetectorError where the card knows another
    one.
    """
    return digest_of(parts_of(card)[0], path)


def digest_of(part: WeightSet, path: Path) -> str:
    """The SHA-256 of a part: of its file, or of that and the digests of what lies beside. Raises
    DetectorError where one is another.
    """
    digest = _checked(part, path, part.weights.sha256)
    return _joined(
        digest,
        {
            name: _checked(part, path.parent / name, stated)
            for name, stated in part.weights.beside.items()
        },
    )


def _joined(digest: str, beside: Mapping[str, str | None]) -> str:
    """One digest for a file and those beside it."""
    return digest_of_all([digest, *(f"{name} {stated}" for name, stated in sorted(beside.items()))])


def _checked(part: WeightSet, path: Path, stated: str | None) -> str:
    digest, who = file_sha256(path), "the card says"
    path = path.resolve()  # in the hub's cache, what has to go is not the link
    if stated is None and _HUB_SHA256.fullmatch(path.name):
        stated, who = path.name, "the hub said"
    if stated not in (None, digest):
        kind = kind_of_file(path)
        what, first = (
            ("", "")
            if kind.name in ("torch", "safetensors")
            else (f"; it is {kind.what}", f"{kind.hint}; or ")
        )
        raise DetectorError(
            f"{part.owner}: {path} is not the file that the card means: sha256 {digest}, {who} {stated}{what}",
            hint=f"{first}delete it and run: touchstone detectors fetch {part.owner}",
        )
    return digest


def default_cache() -> Path:
    """$TOUCHSTONE_CACHE, else ~/.cache/touchstone/weights."""
    return Path(os.environ.get(CACHE_VARIABLE) or cache_folder("weights"))


def cached_name(part: WeightSet) -> str:
    """The path of a part's file in the cache and in a mirror: another uri or hash is another path."""
    version = part.weights.sha256 or hashlib.sha256(part.weights.uri.encode()).hexdigest()
    if part.weights.beside or part.weights.config:
        return f"{part.name}-{version[:16]}/{_file_name(part)}"
    return f"{part.name}-{version[:16]}{'.safetensors' if part.weights.format == 'safetensors' else '.pth'}"


def cached_path(part: WeightSet) -> Path:
    """Where a part's file lies in this machine's cache, if it does."""
    return default_cache() / cached_name(part)


def missing_beside(part: WeightSet) -> tuple[Path, list[str]] | None:
    """A part's own file where it lies without something that belongs beside it, and what; None
    where there is no such file.
    """
    for path in _candidates(part):
        if path.is_file() and (
            absent := [name for name in part.weights.beside if not (path.parent / name).is_file()]
        ):
            return path, absent
    return None


def _local(part: WeightSet) -> Path | None:
    needed = part.weights.beside
    whole = (
        path
        for path in _candidates(part)
        if path.is_file() and all((path.parent / name).is_file() for name in needed)
    )
    return next(whole, None)


def _candidates(part: WeightSet) -> list[Path]:
    candidates = [cached_path(part)]
    place = urlsplit(part.weights.uri)
    if place.scheme in ("", "file"):
        # A card travels to workers by value: on another machine the shipped weights lie beside that
        # machine's own cards.
        name = Path(place.path)
        candidates = [
            part.folder / name,
            config_root() / "detectors" / name,
            default_cache() / name,
            *candidates,
        ]
    return candidates


def _fetch(part: WeightSet, offline: bool) -> Path:
    uri = part.weights.uri
    scheme = urlsplit(uri).scheme
    if scheme == "hf":
        return _from_hub(part, offline)
    if scheme in ("", "file"):
        needed = ", ".join([_file_name(part), *part.weights.beside])
        raise _missing(
            part,
            f"there is no such file beside the card, nor in {default_cache()}"
            + f" (needed together: {needed})" * bool(part.weights.beside),
        )
    if offline:
        raise _missing(
            part, "this machine is offline (HF_HUB_OFFLINE), and they are not in the cache"
        )
    fetched = _copy(part, uri, cached_path(part), required=True)
    assert fetched is not None
    return fetched


def _from_hub(part: WeightSet, offline: bool) -> Path:
    place = HUB_URI.fullmatch(part.weights.uri)
    assert place is not None
    file = place["file"].rpartition("/")[2]
    config = [] if part.weights.config is None or offline else [part.weights.config]
    *_, path = (
        hub_file(part, place, name, offline) for name in (*part.weights.beside, *config, file)
    )
    return Path(path)


def hub_file(
    part: WeightSet, place: re.Match[str], file: str, offline: bool, *, dry_run: bool = False
) -> Any:
    """The path of a file in the hub's cache, fetched unless it is there; in a `dry_run` its
    `DryRunFileInfo`. Raises DetectorError.
    """
    import huggingface_hub

    folder = place["file"].rpartition("/")[0]
    try:
        fetch = functools.partial(
            huggingface_hub.hf_hub_download,
            place["repo"],
            file,
            subfolder=folder or None,
            revision=place["revision"],
        )
        try:
            return fetch(local_files_only=True, dry_run=dry_run)
        except huggingface_hub.errors.LocalEntryNotFoundError:
            if offline:
                raise
            _reach(huggingface_hub.constants.ENDPOINT)
            return fetch(dry_run=dry_run)
    except huggingface_hub.errors.RepositoryNotFoundError as error:  # also of one that is gated
        gated = f"who accepted the terms of https://huggingface.co/{place['repo']} and is known may have it"
        why = (
            gated
            if isinstance(error, huggingface_hub.errors.GatedRepoError)
            else f"there is no {place['repo']}, or not for everybody"
        )
        raise _missing(
            part, f"{file}: the hub says: {why}; `hf auth login`, or HF_TOKEN, says who asks"
        ) from None
    # the hub's own errors and its HTTP library's; a file that is cached raises none of them
    except Exception as error:
        raise _missing(
            part,
            f"offline, and {file} is not in the hub's cache"
            if offline
            else f"{file}: {describe_error(error)}",
        ) from None


def _reach(endpoint: str) -> None:
    """Raise OSError where there is no way to a host: the hub's library would try for half a minute
    and warn a dozen times.
    """
    place = urlsplit(endpoint)
    if not urllib.request.getproxies().get(place.scheme):
        socket.create_connection(
            (place.hostname or "", place.port or (443 if place.scheme == "https" else 80)),
            timeout=10,
        ).close()


def _copy(part: WeightSet, url: str, target: Path, *, required: bool) -> Path | None:
    """Copy a part's file and then what belongs beside it; None if one is absent and not required."""
    folder = url.rpartition("/")[0]
    files = [(url, target, part.weights.sha256)]
    files += [
        (f"{folder}/{name}", target.parent / name, stated)
        for name, stated in part.weights.beside.items()
    ]
    if part.weights.config:
        _download(
            part,
            f"{folder}/{part.weights.config}",
            target.parent / part.weights.config,
            None,
            required=False,
        )
    # The part's own file comes last: where it is, all are.
    copied = [
        _download(part, source, path, stated, required=required)
        for source, path, stated in reversed(files)
    ]
    return target if all(copied) else None


def _download(
    part: WeightSet, url: str, target: Path, stated: str | None, *, required: bool
) -> bool:
    """Copy `url` to `target` in one rename, so that no reader ever sees half a file; False if it is
    absent and not required.
    """
    from ray_app.storage.object_store import retrying_fsspec_for

    partial: str | None = None
    try:
        filesystem, path = retrying_fsspec_for(url)
        with filesystem.open(path, "rb") as source:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            with os.fdopen(handle, "wb") as sink:
                while chunk := source.read(_CHUNK_BYTES):
                    sink.write(chunk)
        _checked(part, Path(partial), stated)
        Path(partial).replace(target)
        return True
    except DetectorError:
        raise
    except FileNotFoundError as error:
        if not required:
            return False
        # What fsspec's HTTP calls not found may be a host that does not answer.
        raise _missing(
            part, "not found" if error.__cause__ is None else describe_error(error.__cause__)
        ) from None
    except Exception as error:  # fsspec lets every backend's own exceptions through
        raise _missing(part, describe_error(error)) from None
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _missing(part: WeightSet, why: str) -> DetectorError:
    weights = part.weights
    what = (
        "no weights"
        if part.name == base_name(part.owner)
        else f"no weights of its backbone {part.name}"
    )
    if weights.fitted:
        hint = f"nobody publishes it: touchstone detectors fetch {part.owner}, then touchstone detectors fit {part.owner} LABELS --install"
        return DetectorError(
            f"{part.owner}: no weights of its head, {weights.uri}: {why}", hint=hint
        )
    first = weights.obtain or "With a network, once:"
    return DetectorError(
        f"{part.owner}: {what}: {weights.uri}: {why}",
        hint=f"{first} touchstone detectors fetch {part.owner}",
    )


def _file_name(part: WeightSet) -> str:
    return urlsplit(part.weights.uri).path.rpartition("/")[2]


def _mirrored(part: WeightSet, mirror: str) -> str:
    return f"{mirror.rstrip('/')}/{cached_name(part)}"


def checkpoint_config(card: DetectorCard, weights: Path) -> Mapping[str, Any]:
    """What the checkpoint says of itself in the file that the card names; empty where there is
    none. Raises DetectorError.
    """
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
    """Tensors of a file under the network's own key names: unwrapped, prefixes stripped. Raises
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
        shards = sorted(
            {
                str(name)
                for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            }
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(index, "safetensors-index weights", error, name="json") from error
    return {
        key: tensor
        for shard in shards
        for key, tensor in read_safetensors(index.parent / Path(shard).name).items()
    }


def _read_torch(path: Path) -> Any:
    import torch

    # Training scripts save their arguments beside the weights: a bag of plain values.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the error below says better
        try:
            return torch.load(path, weights_only=True, map_location="cpu")
        # a damaged file fails in zip or pickle, each with exceptions of its own
        except Exception as error:
            # torch advises to open it with less care
            raise unreadable(path, "torch weights", error, name="torch") from None


_READERS = {
    "safetensors": read_safetensors,
    "safetensors-index": _read_shards,
    "torch": _read_torch,
}


def require_fit(
    network: "torch.nn.Module",
    state: "Mapping[str, torch.Tensor]",
    where: str,
    *,
    without: str | None = None,
) -> "dict[str, torch.Tensor]":
    """Refuse a state dict of which a key or a shape does not fit; the network's own tensors that it
    stands for. Raises DetectorError.

    `without` as for `load_strictly`.
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
    """Load a state dict of which every key and shape fits. Raises DetectorError that names what
    does not.

    `without`: the prefix of a submodule that is loaded from another file.
    """
    own = require_fit(network, state, where, without=without)
    network.load_state_dict(
        state, strict=without is None, assign=any(tensor.is_meta for tensor in own.values())
    )


def _renamed(state: "dict[str, torch.Tensor]", weights: Weights) -> "dict[str, torch.Tensor]":
    """Wrappers' prefixes off, what the network does not have left out, the rest of the prefixes
    off, the network's own put on.
    """
    state = _stripped(
        state, tuple(prefix for prefix in weights.strip_prefixes if prefix != weights.select)
    )
    state = _stripped(
        {key: tensor for key, tensor in state.items() if key.startswith(weights.select)},
        weights.strip_prefixes,
    )
    return {weights.prefix + key: tensor for key, tensor in state.items()}


def _stripped(
    state: "dict[str, torch.Tensor]", prefixes: tuple[str, ...]
) -> "dict[str, torch.Tensor]":
    while state and (
        prefix := next(
            (prefix for prefix in prefixes if all(key.startswith(prefix) for key in state)), None
        )
    ):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state
