"""Find, fetch, and verify weight files: from a card's uri to files on this machine.

Start at `resolve_weights`. It searches for a file next to its card, in the cache, on the mirror,
and at its origin. The origin is the Hugging Face hub or any fsspec URL. The mirror is a bucket or
shared folder with copies, which $TOUCHSTONE_WEIGHTS_MIRROR names. The SHA-256 of a file is checked
before the file is used. The module `checkpoints` reads the files.
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
from ray_app.detectors.card import HUB_URI, DetectorCard, Weights, strip_variant
from ray_app.detectors.checkpoints import (
    detect_file_kind,
    explaining_access,
    make_access_error,
)
from ray_app.errors import DetectorError, describe_error

MIRROR_VARIABLE = "TOUCHSTONE_WEIGHTS_MIRROR"
_OFFLINE_VARIABLES = ("TOUCHSTONE_OFFLINE", "HF_HUB_OFFLINE")
_CHUNK_BYTES = 2**22
_HUB_SHA256 = re.compile(r"[0-9a-f]{64}")  # The name of a large file in the hub's cache.


@dataclass(frozen=True)
class WeightSet:
    """The weight files of one network: a detector's own files, or those of its backbone.

    A backbone is a part of a network that several detectors share. One of the files is the main
    file, which the card's `uri` names. The other files must be in the same folder. Other functions
    call a weight set a part of a detector.

    Attributes:
        name: Name of the detector without its variant, or name of the backbone.
        folder: Folder of the card, to which a relative `uri` is relative.
        owner: Name of the detector card, for messages.
    """

    name: str
    weights: Weights
    folder: Path
    owner: str

    @property
    def file_name(self) -> str:
        """File name of the main file at its origin, such as `model.safetensors`."""
        return urlsplit(self.weights.uri).path.rpartition("/")[2]

    def at(self, path: Path) -> dict[Path, str | None]:
        """List the files of the set next to a main file, which comes first, with their SHA-256.

        The SHA-256 is None if the card states none.
        """
        others = self.weights.beside.items()
        return {path: self.weights.sha256} | {path.parent / name: sha256 for name, sha256 in others}

    def is_complete(self, path: Path) -> bool:
        """Return whether the main file is at `path` and all others are in the same folder."""
        return all(map(_is_file, self.at(path)))


def list_parts(card: DetectorCard) -> list[WeightSet]:
    """Return the weight sets of a card: the detector's own, then that of its backbone, if any.

    A weight set is the files of one network. The weight set of a variant has the name of the
    detector without `:VARIANT`, but may have other files.
    """
    parts = [WeightSet(strip_variant(card.name), card.weights, card.folder, card.name)]
    if card.backbone is not None:
        backbone = card.backbone
        parts.append(WeightSet(backbone.name, backbone.weights, backbone.folder, card.name))
    return parts


def is_offline() -> bool:
    """Return whether the environment forbids downloads of weights from their origin.

    It does if $TOUCHSTONE_OFFLINE or $HF_HUB_OFFLINE is set to a value other than 0 or false.
    Weights are still copied from the mirror that $TOUCHSTONE_WEIGHTS_MIRROR names.
    """
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false") for name in _OFFLINE_VARIABLES
    )


def resolve_weights(card: DetectorCard, offline: bool | None = None) -> Path:
    """Return the path of a detector's own main weight file on this machine, after verification.

    Missing files are fetched, with those of the card's backbone. Call `resolve_parts` if you also
    need the path of the backbone. If `offline`, by default `is_offline()`, files are fetched only
    from the mirror in $TOUCHSTONE_WEIGHTS_MIRROR, which `publish_weights` fills. Raises
    DetectorError if a file is missing, unreachable, or has another SHA-256 than the card.
    """
    (_, path), *_ = resolve_parts(card, offline)
    return path


def resolve_parts(card: DetectorCard, offline: bool | None = None) -> list[tuple[WeightSet, Path]]:
    """Return each weight set of a card with its verified main file, and fetch missing files.

    The detector's own set comes first, then that of its backbone. `offline` and errors are those of
    `resolve_weights`.
    """
    return [(part, resolve_part(part, offline)) for part in list_parts(card)]


def resolve_part(part: WeightSet, offline: bool | None = None) -> Path:
    """Return the verified main file of a weight set, and fetch missing files.

    The other files are in the same folder. `offline` and errors are those of `resolve_weights`.
    """
    offline = is_offline() if offline is None else offline
    path = _find_local(part) or _copy_from_mirror(part) or _fetch_from_origin(part, offline)
    verify_part(part, path)
    return path


def find_local_file(part: WeightSet) -> Path | None:
    """Return the main file of a weight set if all of its files are on this machine, else None.

    Nothing is hashed or fetched.
    """
    path = _find_local(part)
    if path is None and part.weights.uri.startswith("hf://"):
        try:
            path = _fetch_from_hub(part, offline=True)
        except DetectorError:
            return None
    return path


def find_missing_files(part: WeightSet) -> tuple[Path, list[str]] | None:
    """Find a main file of a weight set on this machine that lacks other files, and name them.

    The result is None if no file is missing, or if the main file is missing too.
    """
    for path in filter(_is_file, _list_candidates(part)):
        if missing := [file.name for file in part.at(path) if not _is_file(file)]:
            return path, missing
    return None


# Where files are on this machine.


def default_cache() -> Path:
    """Return the cache folder of weights: $TOUCHSTONE_CACHE, else ~/.cache/touchstone/weights."""
    return Path(os.environ.get(CACHE_VARIABLE) or cache_folder("weights"))


def cached_name(part: WeightSet) -> str:
    """Return the path of a weight set's main file relative to the cache or to a mirror.

    The path is like `npr-0123456789abcdef.pth`, or `npr-0123456789abcdef/FILE` if the card names
    further files or a configuration. The digits are the first of the main file's SHA-256 or, if the
    card states none, of a hash of its uri.
    """
    weights = part.weights
    version = weights.sha256 or hashlib.sha256(weights.uri.encode()).hexdigest()
    suffix = ".safetensors" if weights.format == "safetensors" else ".pth"
    if weights.beside or weights.config:
        suffix = f"/{part.file_name}"
    return f"{part.name}-{version[:16]}{suffix}"


def cached_path(part: WeightSet) -> Path:
    """Return the path that a weight set's main file has in this machine's cache."""
    return default_cache() / cached_name(part)


def is_shipped(path: Path) -> bool:
    """Return whether a weight file comes with this package, so that every machine has it."""
    return path.parent in _list_shipped_folders()


def _list_shipped_folders() -> list[Path]:
    return [config_root() / kind for kind in ("detectors", "backbones")]


def _find_local(part: WeightSet) -> Path | None:
    return next(filter(part.is_complete, _list_candidates(part)), None)


def _list_candidates(part: WeightSet) -> list[Path]:
    uri = urlsplit(part.weights.uri)
    if uri.scheme not in ("", "file"):
        return [cached_path(part)]
    # A card travels to workers by value: on another machine the shipped weights are next to that
    # machine's own cards.
    folders = (part.folder, *_list_shipped_folders(), default_cache())
    return [*(folder / uri.path for folder in folders), cached_path(part)]


def _is_file(path: Path) -> bool:
    # A worker may not be allowed to search the folder that the card has on the driver.
    return os.path.isfile(path)


def _require_access(part: WeightSet) -> None:
    """Raise DetectorError if a file may be where this user may not search."""
    for path in _list_candidates(part):
        with explaining_access(part.owner, path), suppress(FileNotFoundError, NotADirectoryError):
            path.stat()


# SHA-256.


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex.

    The result is cached in this process, until the size or modification time of the file changes.
    Raises OSError if the file is not readable.
    """
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    # Size and time identify the content.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(card: DetectorCard) -> str:
    """Return one SHA-256 in hex for all weight files of a detector.

    For several files, the result is computed from the SHA-256 of each file. Errors are those of
    `resolve_weights`.
    """
    return combine_digests([verify_part(*file) for file in resolve_parts(card)])


def combine_stated_digests(card: DetectorCard) -> str | None:
    """Return one SHA-256 for all weight files of a card, without reading any file.

    It is computed from the SHA-256 values that the card states. It equals `weights_digest` if the
    files are those of the card. Returns None if the card does not state the SHA-256 of every file.
    """
    digests = []
    for weights in (part.weights for part in list_parts(card)):
        if weights.sha256 is None or None in weights.beside.values():
            return None
        digests.append(_join_digests(weights.sha256, weights.beside))
    return combine_digests(digests)


def verify_weights(card: DetectorCard, path: Path) -> str:
    """Verify the detector's main file and the files next to it, and return their SHA-256 in hex.

    Raises DetectorError if a file has another SHA-256 than the card.
    """
    return verify_part(list_parts(card)[0], path)


def verify_part(part: WeightSet, path: Path) -> str:
    """Verify the files of a weight set by their SHA-256, and return one SHA-256 for all of them.

    If the card states no SHA-256 for a file in the cache of the Hugging Face hub, the hub's own
    SHA-256 is used. For several files, the result is computed from the SHA-256 of each file. Raises
    DetectorError if a file has another SHA-256.
    """
    main = _check_digest(part, path, part.weights.sha256)
    others = {
        name: _check_digest(part, path.parent / name, expected)
        for name, expected in part.weights.beside.items()
    }
    return _join_digests(main, others)


def combine_digests(lines: Sequence[str]) -> str:
    """Return one SHA-256 for several digests, which are hashed as lines of text.

    A single digest is returned unchanged.
    """
    return lines[0] if len(lines) == 1 else hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _join_digests(main: str, beside: Mapping[str, str | None]) -> str:
    return combine_digests([main, *(f"{name} {sha256}" for name, sha256 in sorted(beside.items()))])


def _check_digest(part: WeightSet, path: Path, expected: str | None) -> str:
    with explaining_access(part.owner, path):
        digest, source = hash_file(path), "the card states"
    path = path.resolve()  # In the hub's cache, the target of the link has to be deleted.
    if expected is None and _HUB_SHA256.fullmatch(path.name):
        expected, source = path.name, "the hub states"
    if expected not in (None, digest):
        kind = detect_file_kind(path)
        is_checkpoint = kind.name in ("torch", "safetensors")
        description, advice = (
            ("", "") if is_checkpoint else (f"; it is {kind.what}", f"{kind.hint}; or ")
        )
        raise DetectorError(
            f"{part.owner}: {path} is not the file that the card means: sha256 {digest}, {source} {expected}{description}",
            hint=f"{advice}delete it and run: touchstone detectors fetch {part.owner}",
        )
    return digest


# Fetch from a mirror or from the origin.


def _fetch_from_origin(part: WeightSet, offline: bool) -> Path:
    scheme = urlsplit(part.weights.uri).scheme
    if scheme == "hf":
        return _fetch_from_hub(part, offline)
    _require_access(part)
    if scheme in ("", "file"):
        needed = ", ".join([part.file_name, *part.weights.beside])
        raise _missing(
            part,
            f"file not found next to the card or in {default_cache()}"
            + f" (required together: {needed})" * bool(part.weights.beside),
        )
    if offline:
        raise _missing(
            part, "this machine is offline (HF_HUB_OFFLINE), and the file is not in the cache"
        )
    try:
        return _copy_to_cache(part, part.weights.uri)
    except FileNotFoundError as error:
        # fsspec's HTTP client also raises this if a host does not answer.
        reason = "not found" if error.__cause__ is None else describe_error(error.__cause__)
        raise _missing(part, reason) from None


def _copy_from_mirror(part: WeightSet) -> Path | None:
    mirror = os.environ.get(MIRROR_VARIABLE)
    try:
        return _copy_to_cache(part, _mirror_url(part, mirror)) if mirror else None
    except FileNotFoundError:
        return None


def _mirror_url(part: WeightSet, mirror: str) -> str:
    return f"{mirror.rstrip('/')}/{cached_name(part)}"


def _copy_to_cache(part: WeightSet, url: str) -> Path:
    """Copy the files of a part to the cache. `url` is that of the main file.

    Raises FileNotFoundError.
    """
    target, folder = cached_path(part), url.rpartition("/")[0]
    if config := part.weights.config:
        with suppress(FileNotFoundError):
            _download(part, f"{folder}/{config}", target.parent / config, None)
    main, *others = part.at(target).items()
    for path, expected in others:
        _download(part, f"{folder}/{path.name}", path, expected)
    # The main file comes last, so if it is in the cache, all files are.
    _download(part, url, *main)
    return target


def _download(part: WeightSet, url: str, target: Path, expected: str | None) -> None:
    """Copy a file to the cache if it has the expected SHA-256. None accepts any SHA-256.

    Raises FileNotFoundError.
    """
    from ray_app.storage.object_store import retrying_fsspec_for

    try:
        filesystem, path = retrying_fsspec_for(url)
        with filesystem.open(path, "rb") as source, write_aside(target) as aside:
            with aside.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
            _check_digest(part, aside, expected)
    except (DetectorError, FileNotFoundError):
        raise
    except Exception as error:  # fsspec passes on the exceptions of every backend.
        # Only errors of this machine's file system have a file name.
        if isinstance(error, PermissionError) and error.filename:
            raise make_access_error(part.owner, error.filename, error) from None
        raise _missing(part, describe_error(error)) from None


@contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, which replaces `target` after the block.

    If the `with` block raises an exception, `target` stays as it is. Readers of `target` never see
    a partly written file.
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
    """Return the path of a file in the Hugging Face hub's cache, and fetch the file if missing.

    The uri of the weight set is an hf:// URL. If `dry_run`, nothing is fetched, and the hub's
    `DryRunFileInfo` is returned. Raises DetectorError if the file is not available.
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
        reason = (
            f"access requires a login and accepted terms: https://huggingface.co/{repo}"
            if isinstance(error, huggingface_hub.errors.GatedRepoError)
            else f"repository {repo} does not exist or is private"
        )
        raise _missing(part, f"{name}: {reason}; log in with `hf auth login` or HF_TOKEN") from None
    # The hub's own errors and the errors of its HTTP library.
    except Exception as error:
        raise _missing(
            part,
            f"offline, and {name} is not in the hub's cache"
            if offline
            else f"{name}: {describe_error(error)}",
        ) from None


def _reach(endpoint: str) -> None:
    """Raise OSError if a host is unreachable.

    The hub's library would retry for half a minute and log a dozen warnings.
    """
    url = urlsplit(endpoint)
    if not urllib.request.getproxies().get(url.scheme):
        socket.create_connection(
            (url.hostname or "", url.port or (443 if url.scheme == "https" else 80)),
            timeout=10,
        ).close()


def _missing(part: WeightSet, reason: str) -> DetectorError:
    weights, owner = part.weights, part.owner
    if weights.fitted:
        hint = f"fit it, since it is not published: touchstone detectors fetch {owner}, then touchstone detectors fit {owner} LABELS --install"
        return DetectorError(f"{owner}: no weights of its head, {weights.uri}: {reason}", hint=hint)
    is_head = part.name == strip_variant(owner)
    subject = "no weights" if is_head else f"no files of its part {part.name}"
    first = weights.obtain or "run once with network access:"
    return DetectorError(
        f"{owner}: {subject}: {weights.uri}: {reason}",
        hint=f"{first} touchstone detectors fetch {owner}",
    )


def use_earlier_weights(
    card: DetectorCard, digest: str, mirrors: Sequence[str]
) -> DetectorCard | None:
    """Return a card with the weights that a scoring run was started with, found by their SHA-256.

    A run that is resumed needs these weights, even if the card names other weights by now. The
    cache is searched first. The result is None if no such file is available, or if the card has
    several weight files or a backbone, because `digest` is then not that of one file.
    """
    [main, *others] = list_parts(card)
    if others or main.weights.beside:
        return None
    earlier = main.weights.model_copy(update={"sha256": digest, "unverified": None})
    part = replace(main, weights=earlier)
    path = cached_path(part)
    for mirror in mirrors:
        if not _is_file(path):
            with suppress(FileNotFoundError):
                _copy_to_cache(part, _mirror_url(part, mirror))
    if not _is_file(path):
        return None
    return card.model_copy(update={"weights": earlier.model_copy(update={"uri": str(path)})})


# Publish to a mirror.


def publish_weights(card: DetectorCard, mirror: str) -> str:
    """Copy the weight files of a card to a mirror, and return the URL of its main file there.

    Workers read them from the mirror, a shared folder or the fsspec URL of a bucket. Files that are
    not on this machine are fetched first.
    """
    url, *_ = [publish_part(part, mirror) for part in list_parts(card)]
    return url


def publish_part(part: WeightSet, mirror: str) -> str:
    """Copy the files of a weight set to a mirror, and return the URL of its main file there.

    Files that are not on this machine are fetched first.
    """
    from ray_app.storage.object_store import retrying_fsspec_for

    url, main = _mirror_url(part, mirror), resolve_part(part)
    config = main.parent / (part.weights.config or "")
    # The main file comes last, so if it is on the mirror, all files are.
    files = [*([config] if config.is_file() else []), *reversed(part.at(main))]
    try:
        filesystem, target = retrying_fsspec_for(url)
        folder = target.rpartition("/")[0]
        filesystem.makedirs(folder, exist_ok=True)
        for file in files:
            path = target if file == main else f"{folder}/{file.name}"
            # An existing file has the same content: its name contains a hash, and readers check the
            # SHA-256.
            if not filesystem.exists(path) or filesystem.size(path) != file.stat().st_size:
                filesystem.put_file(str(file), path)
    except Exception as error:  # fsspec passes on the exceptions of every backend.
        raise DetectorError(
            f"{part.owner}: cannot write weights to {url}: {describe_error(error)}",
            hint="check that this place exists, and that your credentials allow writing there",
        ) from error
    return url
