"""Whose C2PA signatures count: `update_cache` fetches the official trust list and the older interim
one, `cached_lists` are those that were fetched, `own_list` is one that the user names; each is a
`TrustList`.

A file lies in the user's cache as it was published, under its SHA-256; `lists.json` beside them
names those in use, with address, time and SHA-256, and is replaced last, so that it always names
whole files.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

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
_HINT = "a PEM file: one or more blocks of -----BEGIN CERTIFICATE-----"
_MOST_BYTES = 8 * 2**20  # the largest list has 0.2 MiB
_BEGIN = "-----BEGIN CERTIFICATE-----"
_CERTIFICATE = re.compile(_BEGIN + r"[\sA-Za-z0-9+/=]+-----END CERTIFICATE-----")


class TrustList(Frozen):
    """Certificates as PEM text: `anchors`, to which a signer's must lead, and `time_stamps`,
    authorities of time. `signers`: Base64 SHA-256 of certificates that are trusted themselves.
    `told`: its name, date and SHA-256, for people.
    """

    told: str
    anchors: str
    signers: tuple[str, ...] = ()
    time_stamps: str = ""

    def time_stamps_alone(self) -> str:
        """The authorities of time that are no anchors."""
        return "\n".join(
            one for one in _CERTIFICATE.findall(self.time_stamps) if one not in self.anchors
        )


class CachedFile(Frozen):
    """One file of a list: where it came from and when (ISO 8601), its SHA-256, and how many
    certificates it has.
    """

    address: str
    fetched_at: str
    sha256: str
    certificates: int


class _Index(Frozen):
    files: Mapping[str, CachedFile]


class Updated(NamedTuple):
    """What became of one file: as it is in the cache now (None = it is not there), and why it was
    not fetched (None = it was).
    """

    name: str
    file: CachedFile | None
    failure: str | None


def update_cache(addresses: Mapping[str, str], *, offline: bool = False) -> Iterator[Updated]:
    """Fetch files by name (see `ADDRESSES`; from a path or any URL that Touchstone reads) into the
    cache, each as it comes.

    One that cannot be fetched, or is no list, leaves the earlier one in use. `offline`: only files
    of this machine are read.
    """
    from ray_app.storage.store import Store  # here: decoder processes read what others fetched

    cache = Store.open(str(cache_folder("trust")))
    for name, address in addresses.items():
        failure = None
        try:
            data = _fetched(address, offline)
            found, digest = len(certificates(data, address)), hashlib.sha256(data).hexdigest()
            now = datetime.now(UTC).isoformat(timespec="seconds")
            file = CachedFile(address=address, fetched_at=now, sha256=digest, certificates=found)
            cache.write(_file_name(name, file), data)
            cache.write(
                "lists.json",
                _Index(files={**cached_files(), name: file}).model_dump_json(indent=2).encode(),
            )
        except (InputError, TouchstoneError) as error:
            failure = error.detail if isinstance(error, InputError) else error.message
        yield Updated(name, cached_files().get(name), failure)


def cached_files() -> Mapping[str, CachedFile]:
    """The files in use by name; empty where nothing was fetched, or may not be read. Raises
    ConfigError for a damaged index.
    """
    index = cache_folder("trust") / "lists.json"
    try:
        return _Index.model_validate_json(index.read_bytes()).files
    except OSError:
        return {}
    except ValidationError as error:
        raise _damaged(index, str(error).partition("\n")[0]) from None


def cached_lists() -> tuple[TrustList, ...]:
    """The official list and the interim one, as far as they were fetched, in the order in which
    they count. Raises ConfigError.
    """
    files = cached_files()
    blocks = {name: _cached(name, file) for name, file in files.items()}
    found = []
    for words, parts in (
        ("C2PA trust list", ["official"]),
        ("interim trust list", ["interim", "interim-signers"]),
    ):
        if parts[0] in files:
            digests = "+".join(files[part].sha256[:12] for part in parts if part in files)
            told = f"{words} of {files[parts[0]].fetched_at[:10]} (sha256 {digests})"
            signers = tuple(
                _base64_sha256(one) for part in parts[1:] for one in blocks.get(part, ())
            )
            found.append(TrustList(told=told, anchors="\n".join(blocks[parts[0]]), signers=signers,
                                   time_stamps="\n".join(blocks.get("time-stamps", ()))))  # fmt: skip
    return tuple(found)


def own_list(named: str) -> TrustList:
    """A list of the user's: a PEM file, or its text. Raises ConfigError where it holds no
    certificates.
    """
    try:
        data = named.encode() if _BEGIN in named else Path(named).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"provenance.trust_list: {error.strerror or error}: {named[:200]}", hint=_HINT
        ) from None
    anchors = "\n".join(certificates(data, f"provenance.trust_list: {named[:200]}"))
    return TrustList(
        told=f"configured trust list (sha256 {hashlib.sha256(data).hexdigest()[:12]})",
        anchors=anchors,
    )


def certificates(data: bytes, where: str) -> list[str]:
    """The certificates of a PEM file, without the remarks between them. Raises ConfigError where
    there are none, or one is damaged.
    """
    import ssl

    text = data.decode("utf-8", "replace")
    blocks = _CERTIFICATE.findall(text)
    try:
        # One bad certificate would make every manifest unreadable: better reported before a run
        # than in each of its rows.
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


def _fetched(address: str, offline: bool) -> bytes:
    from ray_app.storage.fetch import Fetcher
    from ray_app.storage.retry import RetryPolicy
    from ray_app.storage.urls import canonical, local_uri, scheme_of

    is_local = scheme_of(address) == "file"
    if offline and not is_local:
        raise ConfigError(
            f"{address}: this machine is offline (TOUCHSTONE_OFFLINE, HF_HUB_OFFLINE)"
        )
    place = local_uri(canonical(address)) if is_local else address
    return Fetcher(RetryPolicy(attempts=3, deadline_s=60), signed=[address]).fetch(
        place, "", _MOST_BYTES
    )


def _file_name(name: str, file: CachedFile) -> str:
    return f"{name}-{file.sha256[:16]}.pem"


def _cached(name: str, file: CachedFile) -> list[str]:
    path = cache_folder("trust") / _file_name(name, file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _damaged(path, "it was changed since it was fetched")
    return certificates(data, str(path))


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"trust list {path}: {why}", hint=f"delete {path.parent} and fetch it again: {UPDATE}"
    )
