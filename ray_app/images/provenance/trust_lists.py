"""Read and update lists of certificates whose C2PA signatures are trusted (`TrustList`).

`update_cache` fetches the official trust list and the older interim list. `load_cached_lists`
returns the lists that were fetched. `load_own_list` returns a list that the user provides.

The user's cache has the files as they were published, under their SHA-256. `lists.json` next to
these files names the files in use, with address, time, and SHA-256. `lists.json` is replaced last,
so that it always names complete files.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError

from ray_app.config import Frozen, cache_folder
from ray_app.errors import ConfigError, InputError, TouchstoneError

UPDATE = "touchstone config trust update"
# As of 2026-11-26. Official: https://github.com/c2pa-org/conformance-public, trust-list/. Interim,
# frozen since 2026-01-01: https://opensource.contentauthenticity.org/docs/verify-known-cert-list;
# of its files, store.cfg allows the key usages that the C2PA library allows by itself.
ADDRESSES = {
    "official": "https://raw.githubusercontent.com/c2pa-org/conformance-public/main/trust-list/C2PA-TRUST-LIST.pem",
    "time-stamps": "https://raw.githubusercontent.com/c2pa-org/conformance-public/main/trust-list/C2PA-TSA-TRUST-LIST.pem",
    "interim": "https://contentcredentials.org/trust/anchors.pem",
    "interim-signers": "https://contentcredentials.org/trust/allowed.pem",
}
_HINT = "give a PEM file: one or more blocks of -----BEGIN CERTIFICATE-----"
_MAX_BYTES = 8 * 2**20  # The largest list has 0.2 MiB.
_BEGIN = "-----BEGIN CERTIFICATE-----"
_CERTIFICATE = re.compile(_BEGIN + r"[\sA-Za-z0-9+/=]+-----END CERTIFICATE-----")


class TrustList(Frozen):
    """A C2PA trust list: certificates whose signatures are trusted, as PEM text."""

    told: str = Field(description="name, date and SHA-256 of the list, for people")
    anchors: str = Field(description="certificates that the certificate of a signer must lead to")
    signers: tuple[str, ...] = Field(
        default=(), description="base64 SHA-256 of certificates that are trusted themselves"
    )
    time_stamps: str = Field(default="", description="certificates of time-stamp authorities")

    def time_stamps_alone(self) -> str:
        """Return the certificates of `time_stamps` that are not in `anchors`, as PEM text.

        `time_stamps` has the certificates of time-stamp authorities. `anchors` has the trust
        anchors of signers.
        """
        return "\n".join(
            certificate
            for certificate in _CERTIFICATE.findall(self.time_stamps)
            if certificate not in self.anchors
        )


class CachedFile(Frozen):
    """One file of a trust list in the user's cache."""

    address: str = Field(description="path or URL that the file was fetched from")
    fetched_at: str = Field(description="time of the fetch (ISO 8601)")
    sha256: str = Field(description="SHA-256 of the file, in hexadecimal digits")
    certificates: int = Field(description="number of certificates in the file")


class _Index(Frozen):
    files: Mapping[str, CachedFile]


class UpdateResult(NamedTuple):
    """The result of `update_cache` for one file.

    Attributes:
        name: The name of the file.
        file: The file that is in the cache now, None if there is none.
        failure: The reason why the file was not fetched, None if it was fetched.
    """

    name: str
    file: CachedFile | None
    failure: str | None


def update_cache(addresses: Mapping[str, str], *, offline: bool = False) -> Iterator[UpdateResult]:
    """Fetch files of trust lists into the cache, and yield the result of each.

    If a file cannot be fetched or is not a trust list, the earlier file stays in use.

    Args:
        addresses: The path or URL of each file by name (see `ADDRESSES`).
        offline: Whether to read only local files.

    Yields:
        The result for each file.

    Raises:
        ConfigError: The index `lists.json` in the cache has invalid content.
    """
    from ray_app.storage.store import (
        Store,  # Imported here, because decoder processes do not fetch.
    )

    cache = Store.open(str(cache_folder("trust")))
    for name, address in addresses.items():
        failure = None
        try:
            data = _fetch(address, offline)
            count, digest = len(parse_certificates(data, address)), hashlib.sha256(data).hexdigest()
            now = datetime.now(UTC).isoformat(timespec="seconds")
            file = CachedFile(address=address, fetched_at=now, sha256=digest, certificates=count)
            cache.write(_file_name(name, file), data)
            cache.write(
                "lists.json",
                _Index(files={**cached_files(), name: file}).model_dump_json(indent=2).encode(),
            )
        except (InputError, TouchstoneError) as error:
            failure = error.detail if isinstance(error, InputError) else error.message
        yield UpdateResult(name, cached_files().get(name), failure)


def cached_files() -> Mapping[str, CachedFile]:
    """Return the files of trust lists that are in use, by name.

    The index `lists.json` in the cache names the files. The result is empty if the index does not
    exist, because no file was fetched, or cannot be opened.

    Raises:
        ConfigError: The index was read, but has invalid content.
    """
    index = cache_folder("trust") / "lists.json"
    try:
        return _Index.model_validate_json(index.read_bytes()).files
    except OSError:
        return {}
    except ValidationError as error:
        raise _damaged(index, str(error).partition("\n")[0]) from None


def load_cached_lists() -> tuple[TrustList, ...]:
    """Return the official and the interim trust list from the cache, as far as they were fetched.

    The lists have the order in which signatures are checked against them.

    Raises:
        ConfigError: A file is damaged or was changed.
    """
    files = cached_files()
    blocks = {name: _read_cached(name, file) for name, file in files.items()}
    lists = []
    for title, parts in (
        ("C2PA trust list", ["official"]),
        ("interim trust list", ["interim", "interim-signers"]),
    ):
        if parts[0] in files:
            digests = "+".join(files[part].sha256[:12] for part in parts if part in files)
            description = f"{title} of {files[parts[0]].fetched_at[:10]} (sha256 {digests})"
            signers = tuple(
                _base64_sha256(certificate)
                for part in parts[1:]
                for certificate in blocks.get(part, ())
            )
            lists.append(TrustList(told=description, anchors="\n".join(blocks[parts[0]]), signers=signers,
                                   time_stamps="\n".join(blocks.get("time-stamps", ()))))  # fmt: skip
    return tuple(lists)


def load_own_list(path_or_text: str) -> TrustList:
    """Return a trust list that the user provides.

    Args:
        path_or_text: The path of a PEM file, or the content of a PEM file.

    Raises:
        ConfigError: The file cannot be read, or has no certificates.
    """
    try:
        data = path_or_text.encode() if _BEGIN in path_or_text else Path(path_or_text).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"provenance.trust_list: cannot read {path_or_text[:200]}: {error.strerror or error}",
            hint=_HINT,
        ) from None
    anchors = "\n".join(parse_certificates(data, f"provenance.trust_list: {path_or_text[:200]}"))
    return TrustList(
        told=f"configured trust list (sha256 {hashlib.sha256(data).hexdigest()[:12]})",
        anchors=anchors,
    )


def parse_certificates(data: bytes, where: str) -> list[str]:
    """Return the certificates of a PEM file without the text between them.

    Args:
        data: The content of the file.
        where: The name of the file, for error messages.

    Raises:
        ConfigError: The file has no certificates, or one is damaged.
    """
    import ssl

    text = data.decode("utf-8", "replace")
    blocks = _CERTIFICATE.findall(text)
    try:
        # One bad certificate would make every manifest unreadable. Report it before a run, and not
        # in each row.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(
            cadata="\n".join(blocks) or "none"
        )
    except (ssl.SSLError, ValueError):
        blocks = []
    if not blocks or text.count(_BEGIN) != len(blocks):
        raise ConfigError(f"{where}: no certificates, or one is damaged", hint=_HINT)
    return blocks


def _base64_sha256(certificate: str) -> str:
    import ssl

    return base64.b64encode(hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).digest()).decode()


def _fetch(address: str, offline: bool) -> bytes:
    from ray_app.storage.fetch import Fetcher
    from ray_app.storage.retry import RetryPolicy
    from ray_app.storage.urls import canonicalize, get_scheme, local_uri

    is_local = get_scheme(address) == "file"
    if offline and not is_local:
        raise ConfigError(
            f"{address}: cannot be fetched, because this machine is offline (TOUCHSTONE_OFFLINE or HF_HUB_OFFLINE is set)"
        )
    url = local_uri(canonicalize(address)) if is_local else address
    return Fetcher(RetryPolicy(attempts=3, deadline_s=60), signed=[address]).fetch(
        url, "", _MAX_BYTES
    )


def _file_name(name: str, file: CachedFile) -> str:
    return f"{name}-{file.sha256[:16]}.pem"


def _read_cached(name: str, file: CachedFile) -> list[str]:
    path = cache_folder("trust") / _file_name(name, file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _damaged(path, "the file was changed since it was fetched")
    return parse_certificates(data, str(path))


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"trust list {path}: {reason}", hint=f"delete {path.parent} and fetch it again: {UPDATE}"
    )
