"""Weight files: from a card's uri to verified files on this machine (`resolve_weights`).

A file is searched next to its card, in the cache, at the mirror, and at its origin: the Hugging Face
hub, or any URL of fsspec. Its SHA-256 is checked before it is used. `checkpoints` reads it.
"""

import functools
import hashlib
import os
import re
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray_app.config import CACHE_VARIABLE, cache_folder, config_root
from ray_app.detectors.card import HUB_URI, DetectorCard, Weights, base_name
from ray_app.detectors.checkpoints import kind_of_file
from ray_app.errors import DetectorError, describe_error

MIRROR_VARIABLE = "TOUCHSTONE_WEIGHTS_MIRROR"
_OFFLINE_VARIABLES = ("TOUCHSTONE_OFFLINE", "HF_HUB_OFFLINE")
_CHUNK_BYTES = 2**22
_HUB_SHA256 = re.compile(r"[0-9a-f]{64}")  # The name of a large file in the hub's cache.


@dataclass(frozen=True)
class WeightSet:
    """The files of one network: a detector's own, or those of a backbone.

    Attributes:
        name: The detector without its variant, or the backbone.
        weights: The card's section.
        folder: The folder of the card.
        owner: The name of the card, for messages.
    """

    name: str
    weights: Weights
    folder: Path
    owner: str

    @property
    def file_name(self) -> str:
        """The name of the file at its origin."""
        return urlsplit(self.weights.uri).path.rpartition("/")[2]

    def at(self, path: Path) -> dict[Path, str | None]:
        """Return all files with the SHA-256 that the card states, if `path` is the own file, which
        is the first.
        """
        beside = self.weights.beside.items()
        return {path: self.weights.sha256} | {path.parent / name: sha256 for name, sha256 in beside}

    def is_complete(self, path: Path) -> bool:
        """Whether the own file is at `path`, with all others in the same folder."""
        return all(file.is_file() for file in self.at(path))


def parts_of(card: DetectorCard) -> list[WeightSet]:
    """The detector's own weights first, then its backbone's. Variants of a card share their files."""
    parts = [WeightSet(base_name(card.name), card.weights, card.folder, card.name)]
    if card.backbone is not None:
        backbone = card.backbone
        parts.append(WeightSet(backbone.name, backbone.weights, backbone.folder, card.name))
    return parts


def is_offline() -> bool:
    """Whether no hub may be reached ($TOUCHSTONE_OFFLINE, $HF_HUB_OFFLINE)."""
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false") for name in _OFFLINE_VARIABLES
    )


def resolve_weights(card: DetectorCard, offline: bool | None = None) -> Path:
    """Return the card's own weights as a verified local file. All files of the card are fetched
    that are not on this machine yet.

    Args:
        card: The card of a detector.
        offline: Whether the origin may not be asked. Defaults to `is_offline`. The mirror, which
            $TOUCHSTONE_WEIGHTS_MIRROR names and `publish_weights` fills, is always asked.

    Raises:
        DetectorError: A file is missing, unreachable, or not the file that the card means.
    """
    (_, own), *_ = resolved(card, offline)
    return own


def resolved(card: DetectorCard, offline: bool | None = None) -> list[tuple[WeightSet, Path]]:
    """Return each part of a card with its own file; see `resolve_weights`."""
    return [(part, resolve_part(part, offline)) for part in parts_of(card)]


def resolve_part(part: WeightSet, offline: bool | None = None) -> Path:
    """Return a part's own file; the others are in the same folder. See `resolve_weights`."""
    offline = is_offline() if offline is None else offline
    path = _find_local(part) or _copy_from_mirror(part) or _fetch_from_origin(part, offline)
    digest_of(part, path)
    return path


def located(part: WeightSet) -> Path | None:
    """Return a part's own file if all of its files are on this machine. Nothing is hashed or
    fetched.
    """
    path = _find_local(part)
    if path is None and part.weights.uri.startswith("hf://"):
        try:
            path = _fetch_from_hub(part, offline=True)
        except DetectorError:
            return None
    return path


def missing_beside(part: WeightSet) -> tuple[Path, list[str]] | None:
    """Return a part's own file if it is here without other files of the part, and their names."""
    for path in filter(Path.is_file, _list_candidates(part)):
        if absent := [file.name for file in part.at(path) if not file.is_file()]:
            return path, absent
    return None


# Where files are on this machine.


def default_cache() -> Path:
    """$TOUCHSTONE_CACHE, else ~/.cache/touchstone/weights."""
    return Path(os.environ.get(CACHE_VARIABLE) or cache_folder("weights"))


def cached_name(part: WeightSet) -> str:
    """Return the path of a part's file in the cache and in a mirror: another uri or hash is another
    path.
    """
    weights = part.weights
    version = weights.sha256 or hashlib.sha256(weights.uri.encode()).hexdigest()
    suffix = ".safetensors" if weights.format == "safetensors" else ".pth"
    if weights.beside or weights.config:
        suffix = f"/{part.file_name}"
    return f"{part.name}-{version[:16]}{suffix}"


def cached_path(part: WeightSet) -> Path:
    """Return the path that a part's file has in this machine's cache."""
    return default_cache() / cached_name(part)


def _find_local(part: WeightSet) -> Path | None:
    return next(filter(part.is_complete, _list_candidates(part)), None)


def _list_candidates(part: WeightSet) -> list[Path]:
    uri = urlsplit(part.weights.uri)
    if uri.scheme not in ("", "file"):
        return [cached_path(part)]
    # A card travels to workers by value: on another machine the shipped weights are next to that
    # machine's own cards.
    folders = (part.folder, config_root() / "detectors", default_cache())
    return [*(folder / uri.path for folder in folders), cached_path(part)]


# SHA-256.


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; gigabytes are hashed once per process. Raises OSError."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    # Size and time identify the content.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(card: DetectorCard) -> str:
    """Return one SHA-256 for all files of a detector; that of the file if there is only one. Raises
    DetectorError.
    """
    return digest_of_all([digest_of(*one) for one in resolved(card)])


def stated_digest(card: DetectorCard) -> str | None:
    """Return what `weights_digest` gives for files that are as the card states; None if it does not
    state all of them. Touches no file.
    """
    digests = []
    for weights in (part.weights for part in parts_of(card)):
        if weights.sha256 is None or None in weights.beside.values():
            return None
        digests.append(_join_digests(weights.sha256, weights.beside))
    return digest_of_all(digests)


def verify_weights(card: DetectorCard, path: Path) -> str:
    """Return the SHA-256 of the card's own weights file. Raises DetectorError if the card states
    another.
    """
    return digest_of(parts_of(card)[0], path)


def digest_of(part: WeightSet, path: Path) -> str:
    """Return the SHA-256 of a part: of its file, or of several lines with the SHA-256 of each.
    Raises DetectorError if the card states another.
    """
    own = _check_digest(part, path, part.weights.sha256)
    beside = {
        name: _check_digest(part, path.parent / name, stated)
        for name, stated in part.weights.beside.items()
    }
    return _join_digests(own, beside)


def digest_of_all(lines: Sequence[str]) -> str:
    """Return one SHA-256 for several, each a line; the only one as it is."""
    return lines[0] if len(lines) == 1 else hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _join_digests(own: str, beside: Mapping[str, str | None]) -> str:
    return digest_of_all([own, *(f"{name} {sha256}" for name, sha256 in sorted(beside.items()))])


def _check_digest(part: WeightSet, path: Path, stated: str | None) -> str:
    digest, who = file_sha256(path), "the card says"
    path = path.resolve()  # In the hub's cache the link stays and its target has to be deleted.
    if stated is None and _HUB_SHA256.fullmatch(path.name):
        stated, who = path.name, "the hub said"
    if stated not in (None, digest):
        kind = kind_of_file(path)
        is_checkpoint = kind.name in ("torch", "safetensors")
        what, first = ("", "") if is_checkpoint else (f"; it is {kind.what}", f"{kind.hint}; or ")
        raise DetectorError(
            f"{part.owner}: {path} is not the file that the card means: sha256 {digest}, {who} {stated}{what}",
            hint=f"{first}delete it and run: touchstone detectors fetch {part.owner}",
        )
    return digest


# From elsewhere.


def _fetch_from_origin(part: WeightSet, offline: bool) -> Path:
    scheme = urlsplit(part.weights.uri).scheme
    if scheme == "hf":
        return _fetch_from_hub(part, offline)
    if scheme in ("", "file"):
        needed = ", ".join([part.file_name, *part.weights.beside])
        raise _missing(
            part,
            f"there is no such file beside the card, nor in {default_cache()}"
            + f" (needed together: {needed})" * bool(part.weights.beside),
        )
    if offline:
        raise _missing(
            part, "this machine is offline (HF_HUB_OFFLINE), and they are not in the cache"
        )
    try:
        return _copy_to_cache(part, part.weights.uri)
    except FileNotFoundError as error:
        # fsspec's HTTP client also raises this if a host does not answer.
        why = "not found" if error.__cause__ is None else describe_error(error.__cause__)
        raise _missing(part, why) from None


def _copy_from_mirror(part: WeightSet) -> Path | None:
    mirror = os.environ.get(MIRROR_VARIABLE)
    try:
        return _copy_to_cache(part, _mirror_url(part, mirror)) if mirror else None
    except FileNotFoundError:
        return None


def _mirror_url(part: WeightSet, mirror: str) -> str:
    return f"{mirror.rstrip('/')}/{cached_name(part)}"


def _copy_to_cache(part: WeightSet, url: str) -> Path:
    """Copy the files of a part, of which `url` is its own. Raises FileNotFoundError."""
    target, folder = cached_path(part), url.rpartition("/")[0]
    if config := part.weights.config:
        with suppress(FileNotFoundError):
            _download(part, f"{folder}/{config}", target.parent / config, None)
    own, *beside = part.at(target).items()
    for path, stated in beside:
        _download(part, f"{folder}/{path.name}", path, stated)
    # The part's own file comes last: if it is in the cache, all are.
    _download(part, url, *own)
    return target


def _download(part: WeightSet, url: str, target: Path, stated: str | None) -> None:
    """Copy a file to the cache, if its SHA-256 is the stated one. Raises FileNotFoundError."""
    from ray_app.storage.object_store import retrying_fsspec_for

    try:
        filesystem, path = retrying_fsspec_for(url)
        with filesystem.open(path, "rb") as source, write_aside(target) as aside:
            with aside.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
            _check_digest(part, aside, stated)
    except (DetectorError, FileNotFoundError):
        raise
    except Exception as error:  # fsspec lets every backend's own exceptions through
        raise _missing(part, describe_error(error)) from None


@contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """Yield the path of a file that takes the place of `target` when the block ends without an
    exception, so that no reader ever sees half a file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial.") as folder:
        aside = Path(folder) / target.name
        yield aside
        aside.replace(target)


def _fetch_from_hub(part: WeightSet, offline: bool) -> Path:
    config = [] if part.weights.config is None or offline else [part.weights.config]
    *_, path = (
        Path(hub_file(part, name, offline))
        for name in (*part.weights.beside, *config, part.file_name)
    )
    return path


def hub_file(part: WeightSet, name: str, offline: bool, *, dry_run: bool = False) -> Any:
    """Return the path of a file in the hub's cache, fetched if it is not there yet; in a `dry_run`
    its `DryRunFileInfo`. Raises DetectorError.
    """
    import huggingface_hub

    address = HUB_URI.fullmatch(part.weights.uri)
    assert address is not None
    repo, folder = address["repo"], address["file"].rpartition("/")[0]
    fetch = functools.partial(
        huggingface_hub.hf_hub_download,
        repo,
        name,
        subfolder=folder or None,
        revision=address["revision"],
        dry_run=dry_run,
    )
    try:
        try:
            return fetch(local_files_only=True)
        except huggingface_hub.errors.LocalEntryNotFoundError:
            if offline:
                raise
            _reach(huggingface_hub.constants.ENDPOINT)
            return fetch()
    except huggingface_hub.errors.RepositoryNotFoundError as error:  # Also if it is gated.
        why = (
            f"who accepted the terms of https://huggingface.co/{repo} and is known may have it"
            if isinstance(error, huggingface_hub.errors.GatedRepoError)
            else f"there is no {repo}, or not for everybody"
        )
        raise _missing(
            part, f"{name}: the hub says: {why}; `hf auth login`, or HF_TOKEN, says who asks"
        ) from None
    # The hub's own errors and those of its HTTP library.
    except Exception as error:
        raise _missing(
            part,
            f"offline, and {name} is not in the hub's cache"
            if offline
            else f"{name}: {describe_error(error)}",
        ) from None


def _reach(endpoint: str) -> None:
    """Raise OSError if a host is unreachable: the hub's library would try for half a minute and
    warn a dozen times.
    """
    place = urlsplit(endpoint)
    if not urllib.request.getproxies().get(place.scheme):
        socket.create_connection(
            (place.hostname or "", place.port or (443 if place.scheme == "https" else 80)),
            timeout=10,
        ).close()


def _missing(part: WeightSet, why: str) -> DetectorError:
    weights, owner = part.weights, part.owner
    if weights.fitted:
        hint = f"nobody publishes it: touchstone detectors fetch {owner}, then touchstone detectors fit {owner} LABELS --install"
        return DetectorError(f"{owner}: no weights of its head, {weights.uri}: {why}", hint=hint)
    is_own = part.name == base_name(owner)
    what = "no weights" if is_own else f"no weights of its backbone {part.name}"
    first = weights.obtain or "With a network, once:"
    return DetectorError(
        f"{owner}: {what}: {weights.uri}: {why}",
        hint=f"{first} touchstone detectors fetch {owner}",
    )


def with_kept_weights(
    card: DetectorCard, digest: str, mirrors: Sequence[str]
) -> DetectorCard | None:
    """Return the card with the weights of this digest, which its name stood for earlier.

    Args:
        card: The card as it is now.
        digest: The SHA-256 of the earlier weights.
        mirrors: Where to look for them, besides the cache.

    Returns:
        None if they are not there, or if the weights are several files.
    """
    [own, *others] = parts_of(card)
    if others or own.weights.beside:
        return None
    earlier = own.weights.model_copy(update={"sha256": digest, "unverified": None})
    part = replace(own, weights=earlier)
    kept = cached_path(part)
    for mirror in mirrors:
        if not kept.is_file():
            with suppress(FileNotFoundError):
                _copy_to_cache(part, _mirror_url(part, mirror))
    if not kept.is_file():
        return None
    return card.model_copy(update={"weights": earlier.model_copy(update={"uri": str(kept)})})


# To a mirror.


def publish_weights(card: DetectorCard, mirror: str) -> str:
    """Copy the files of a card to a bucket or shared folder, from which workers read them. Returns
    the URL of the detector's own file. Raises DetectorError.
    """
    own, *_ = [publish_part(part, mirror) for part in parts_of(card)]
    return own


def publish_part(part: WeightSet, mirror: str) -> str:
    """Copy the files of a part; see `publish_weights`."""
    from ray_app.storage.object_store import retrying_fsspec_for

    url, own = _mirror_url(part, mirror), resolve_part(part)
    config = own.parent / (part.weights.config or "")
    # The part's own file comes last: if it is there, all are.
    files = [*([config] if config.is_file() else []), *reversed(part.at(own))]
    try:
        filesystem, target = retrying_fsspec_for(url)
        folder = target.rpartition("/")[0]
        filesystem.makedirs(folder, exist_ok=True)
        for file in files:
            path = target if file == own else f"{folder}/{file.name}"
            # What is there has the same content: a name has a hash, and readers check the SHA-256.
            if not filesystem.exists(path) or filesystem.size(path) != file.stat().st_size:
                filesystem.put_file(str(file), path)
    except Exception as error:  # fsspec lets every backend's own exceptions through
        raise DetectorError(
            f"{part.owner}: cannot write weights to {url}: {describe_error(error)}"
        ) from error
    return url
