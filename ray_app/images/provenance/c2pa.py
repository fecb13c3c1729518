"""C2PA: `CredentialsReader` validates a manifest store by the C2PA project's own library and reads what it claims; nothing is fetched.

The library is native code on hostile bytes: it is called only where a crash or a hang costs one image (see `inference.decoder`). It is
imported at the first manifest (0.13 s and 16 MiB): files without one never see it.
"""

import io
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ray_app.images.provenance import metadata, statement
from ray_app.images.provenance.trust_lists import TrustList

MOST_STORE_BYTES = 8 * 2**20  # manifests with their thumbnails take tens to hundreds of KiB
MOST_VALUES = 20_000  # of a report, looked through for source types
MOST_MANIFESTS = 50  # of what a picture was made of
MOST_PROBLEMS = 4
_UNTRUSTED = "signingCredential.untrusted"
# Of a file that is as it was signed: by whom, or when, is what nobody vouches for. So stands a signature whose certificate ended since.
_UNCHANGED = {_UNTRUSTED, "signingCredential.expired", "timeStamp.untrusted"}
_LIST = "trust-list"
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
    """Reads manifests. A signature is trusted by the first of the lists that it leads to; without lists, none is."""

    def __init__(self, trust_lists: Sequence[TrustList]) -> None:
        self._lists = tuple(trust_lists)

    def read(self, data: bytes, format_name: str, store_bytes: int) -> statement.ContentCredentials:
        """What the manifest store of a file says, and whether file and store are as they were signed. Never raises."""
        if store_bytes > MOST_STORE_BYTES:
            return unread(f"a manifest store of {store_bytes} bytes is over {MOST_STORE_BYTES}")
        import c2pa

        try:
            # One list at a time: of a signer on several the library would name whichever it met first, another in each process.
            for context, told in zip(self._contexts, self._told, strict=True):
                with c2pa.Reader(_MIME[format_name], io.BytesIO(data), context=context) as reader:
                    stated = self._stated(json.loads(reader.json()), reader.get_validation_state(), told)
                if stated.state != "intact":
                    break
            return stated
        # The binding lets through what it meets in its own Python beside C2paError; a manifest that cannot be read is a statement.
        except (c2pa.C2paError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            return unread(str(error).partition("\n")[0] or type(error).__name__)

    @cached_property
    def _told(self) -> tuple[str, ...]:
        return tuple(one.told for one in self._lists) or ("",)

    @cached_property
    def _contexts(self) -> tuple[Any, ...]:
        import c2pa

        settings = [_OFFLINE | {"trust": {"anchors": _anchors(one)}} for one in self._lists] or [_OFFLINE]
        return tuple(map(c2pa.Context.from_dict, settings))

    def _stated(self, report: Mapping[str, Any], validated: str | None, told: str) -> statement.ContentCredentials:
        manifests = report["manifests"]
        active = manifests[report["active_manifest"]]
        signature = active.get("signature_info") or {}
        sources = list(dict.fromkeys(code for manifest in _lineage(manifests, active) for code in _source_types(manifest)))
        results = report.get("validation_results") or {}
        problems = self._problems(results)
        state: Any = {"Trusted": "intact", "Valid": "intact", "Invalid": "invalid"}.get(str(validated), "unreadable")
        if validated == "Trusted" and _leads_to_list(results):
            state = "trusted"
        elif validated == "Invalid" and problems and _UNCHANGED.issuperset(problems):
            state = "intact"
        lists = {"trusted": (told,), "intact": self._told}.get(state, ())
        return statement.ContentCredentials(
            state=state,
            trust_lists=lists,
            claim_generator=_generator(active),
            signer=signature.get("issuer") or signature.get("common_name"),
            ai_generated=not statement.AI_SOURCE_TYPES.isdisjoint(sources),
            source_types=tuple(sources),
            problems=tuple(problems[:MOST_PROBLEMS]),
        )

    def _problems(self, results: Mapping[str, Any]) -> list[str]:
        deltas = [delta.get("validationDeltas") or {} for delta in results.get("ingredientDeltas") or []]
        failures = [failure for one in (results.get("activeManifest") or {}, *deltas) for failure in one.get("failure") or []]
        codes = dict.fromkeys(str(failure.get("code")) for failure in failures)
        # Without a trust list, that a signer is not on it says nothing.
        return [code for code in codes if self._lists or code != _UNTRUSTED]


def _anchors(one: TrustList) -> list[dict[str, str]]:
    """A list in the library's words. It takes authorities of time for signers too (c2pa-rs 0.91): those on the list are
    left out, and `_leads_to_list` looks which of both a signer leads to.
    """
    found = [{"trust_anchors": one.anchors, "trust_uri": _LIST, "trust_kind": "manifest", "allowed_list": "\n".join(one.signers)}]
    if clocks := one.time_stamps_alone():
        found.append({"trust_anchors": clocks, "trust_uri": "time-stamps", "trust_kind": "tsa"})
    return [{key: text for key, text in each.items() if text} for each in found]


def _leads_to_list(results: Mapping[str, Any]) -> bool:
    """Whether the signer of the active manifest is on the list: by its anchors, or itself, which the library does not name."""
    found = (results.get("activeManifest") or {}).get("success") or []
    said = [str(one.get("explanation")) for one in found if one.get("code") == "signingCredential.trusted"]
    return any(f"[{name}]" in text for text in said for name in (_LIST, ""))


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
