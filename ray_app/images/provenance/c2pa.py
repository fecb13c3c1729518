"""C2PA: `CredentialsReader` validates a manifest store by the C2PA project's own library and reads what it claims; nothing is fetched.

The library is native code on hostile bytes: it is called only where a crash or a hang costs one image (see `inference.decoder`). It is
imported at the first manifest (0.13 s and 16 MiB): files without one never see it.
"""

import io
import json
from collections import deque
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from ray_app.images.provenance import metadata, statement

MOST_STORE_BYTES = 8 * 2**20  # manifests with their thumbnails take tens to hundreds of KiB
MOST_VALUES = 20_000  # of a report, looked through for source types
MOST_MANIFESTS = 50  # of what a picture was made of
MOST_PROBLEMS = 4
_UNTRUSTED = "signingCredential.untrusted"
_OFFLINE = {
    "verify": {"verify_after_reading": True, "verify_trust": True, "remote_manifest_fetch": False, "ocsp_fetch": False},
    # Identity assertions may name a web address; decompression is bounded, since a manifest may be a Brotli bomb.
    "core": {"allowed_network_hosts": [], "decode_identity_assertions": False, "max_decompressed_manifest_size_in_mb": 16},
    "builder": {"thumbnail": {"enabled": False}},
}
_MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "TIFF": "image/tiff", "AVIF": "image/avif",
         "HEIC": "image/heic"}  # fmt: skip

REMOTE = statement.ContentCredentials(state="unreadable", ai_generated=False, remote=True, problems=("manifest.inaccessible",))


def unread(reason: str) -> statement.ContentCredentials:
    """The statement that there is a manifest which was not looked at."""
    return statement.ContentCredentials(state="unreadable", ai_generated=False, problems=(reason,))


class CredentialsReader:
    """Reads manifests; only signatures that lead to `trust_list` (PEM text) are trusted; without one, none is."""

    def __init__(self, trust_list: str | None) -> None:
        self._trust_list = trust_list

    def read(self, data: bytes, format_name: str, store_bytes: int) -> statement.ContentCredentials:
        """What the manifest store of a file says, and whether file and store are as they were signed. Never raises."""
        if store_bytes > MOST_STORE_BYTES:
            return unread(f"a manifest store of {store_bytes} bytes is over {MOST_STORE_BYTES}")
        import c2pa

        try:
            with c2pa.Reader(_MIME[format_name], io.BytesIO(data), context=self._context) as reader:
                report = json.loads(reader.json())
                state = reader.get_validation_state()
            return self._stated(report, state)
        # The binding lets through what it meets in its own Python beside C2paError; a manifest that cannot be read is a statement.
        except (c2pa.C2paError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            return unread(str(error).partition("\n")[0] or type(error).__name__)

    @cached_property
    def _context(self) -> Any:
        import c2pa

        trust = {} if self._trust_list is None else {"trust": {"trust_anchors": self._trust_list}}
        return c2pa.Context.from_dict(_OFFLINE | trust)

    def _stated(self, report: Mapping[str, Any], state: str | None) -> statement.ContentCredentials:
        manifests = report["manifests"]
        active = manifests[report["active_manifest"]]
        signature = active.get("signature_info") or {}
        sources = list(dict.fromkeys(code for manifest in _lineage(manifests, active) for code in _source_types(manifest)))
        return statement.ContentCredentials(
            state=self._named(state),
            claim_generator=_generator(active),
            signer=signature.get("issuer") or signature.get("common_name"),
            ai_generated=not statement.AI_SOURCE_TYPES.isdisjoint(sources),
            source_types=tuple(sources),
            problems=tuple(self._problems(report.get("validation_results") or {})),
        )

    def _named(self, state: str | None) -> Any:
        if state == "Trusted" and self._trust_list is not None:
            return "trusted"
        return {"Trusted": "intact", "Valid": "intact", "Invalid": "invalid"}.get(str(state), "unreadable")

    def _problems(self, results: Mapping[str, Any]) -> list[str]:
        deltas = [delta.get("validationDeltas") or {} for delta in results.get("ingredientDeltas") or []]
        failures = [failure for one in (results.get("activeManifest") or {}, *deltas) for failure in one.get("failure") or []]
        codes = dict.fromkeys(str(failure.get("code")) for failure in failures)
        # Without a trust list, that a signer is not on it says nothing.
        return [code for code in codes if self._trust_list is not None or code != _UNTRUSTED][:MOST_PROBLEMS]


def _generator(manifest: Mapping[str, Any]) -> Any:
    infos = manifest.get("claim_generator_info")
    if isinstance(infos, list) and infos and isinstance(infos[0], dict) and infos[0].get("name"):
        return f"{infos[0]['name']} {infos[0].get('version') or ''}"
    return manifest.get("claim_generator")


def _lineage(manifests: Mapping[str, Any], active: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The manifest, and those of what the picture was made of: parents and components, not what a model was merely shown."""
    seen: set[str] = set()
    waiting = deque([active])
    for _ in range(MOST_MANIFESTS):
        if not waiting:
            return
        manifest = waiting.popleft()
        yield manifest
        for ingredient in manifest.get("ingredients") or []:
            label = ingredient.get("active_manifest")
            if ingredient.get("relationship") in ("parentOf", "componentOf") and label in manifests and label not in seen:
                seen.add(label)
                waiting.append(manifests[label])


def _source_types(manifest: Mapping[str, Any]) -> Iterator[str]:
    """IPTC's codes in the assertions of a manifest: of actions, and of metadata in the clear."""
    waiting: deque[Any] = deque(assertion.get("data") for assertion in manifest.get("assertions") or [])
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        value = waiting.popleft()
        if isinstance(value, dict):
            for name, inner in value.items():
                if (
                    isinstance(inner, str)
                    and name.rpartition(":")[2].casefold() == "digitalsourcetype"
                    and (code := metadata.source_type(inner))
                ):
                    yield code
                elif isinstance(inner, dict | list):
                    waiting.append(inner)
        elif isinstance(value, list):
            waiting.extend(inner for inner in value if isinstance(inner, dict | list))
