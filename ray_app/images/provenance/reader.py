"""`ProvenanceReader`: bytes of one file → its `Provenance`; `ProvenanceConfig` says whether it is
read and which certificates are trusted.

The certificates are read once and travel as text. `CredentialsReader` validates a C2PA manifest
store by that project's own library and reads what it claims; nothing is fetched.

The library is native code on hostile bytes: it is called only where a crash or a hang costs one
image (see `inference.decoder`). It is imported at the first manifest (0.13 s and 16 MiB): files
without one never see it.
"""

import io
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from PIL import Image
from pydantic import Field

from ray_app.config import Frozen
from ray_app.images.provenance import containers, generators, metadata, statement
from ray_app.images.provenance.sidecar import MAX_BYTES, get_sidecar
from ray_app.images.provenance.trust_lists import TrustList, cached_lists, own_list
from ray_app.images.provenance.watermark import read_watermark

MOST_STORE_BYTES = MAX_BYTES
MOST_VALUES = 20_000  # of a report, looked through for source types
MOST_MANIFESTS = 50  # of what a picture was made of
MOST_PROBLEMS = 4
_UNTRUSTED = "signingCredential.untrusted"
# Of a file that is as it was signed: by whom, or when, is what nobody vouches for. So stands a
# signature whose certificate ended since.
_UNCHANGED = {_UNTRUSTED, "signingCredential.expired", "timeStamp.untrusted"}
_LIST = "trust-list"
_OFFLINE = {
    "verify": {
        "verify_after_reading": True,
        "verify_trust": True,
        "remote_manifest_fetch": False,
        "ocsp_fetch": False,
    },
    # Identity assertions may name a web address; decompression is bounded, since a manifest may be
    # a Brotli bomb.
    "core": {
        "allowed_network_hosts": [],
        "decode_identity_assertions": False,
        "max_decompressed_manifest_size_in_mb": 16,
    },
    "builder": {"thumbnail": {"enabled": False}},
}
_MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "TIFF": "image/tiff", "AVIF": "image/avif",
         "HEIC": "image/heic", "BMP": "image/bmp", "JPEG2000": "image/jp2", "PNM": "image/x-portable-anymap",
         "RAW": "image/x-adobe-dng"}  # fmt: skip
_LEGACY = "com.adobe.generative-ai"  # Adobe's assertion of 2023, before source types

REMOTE = statement.ContentCredentials(
    state="unreadable", ai_generated=False, remote=True, problems=("manifest.inaccessible",)
)
_NO_CAMERA = statement.Camera()
_PREFIX = re.compile(r".*[:.]", re.DOTALL)


class ProvenancePolicy(Frozen):
    """What a reader of provenance needs: the lists whose C2PA signers are trusted, the first that
    has one counts, without any, none is; and whether pixels are looked at for watermarks.
    """

    trust_lists: tuple[TrustList, ...] = ()
    watermarks: bool = False


class ProvenanceConfig(Frozen):
    """Whether, and how, a file's own statements about its origin are read. They stand beside a
    score, never in it.
    """

    read: bool = Field(
        default=True, description="camera, generator parameters, IPTC source type, C2PA manifest"
    )
    trust_list: str | None = Field(
        default=None,
        description="PEM file of certificates, or their text, whose C2PA signatures count as trusted; `none` = no list; "
        "null = the lists that `touchstone config trust update` fetched",
    )
    watermarks: bool = Field(
        default=False,
        description="search pixels for the invisible watermarks of generators' reference codes, 3 to 5 ms per image; `check` always does",
    )

    def policy(self) -> ProvenancePolicy | None:
        """The policy that this asks for; None = do not read. Raises ConfigError where a trust list
        holds no certificates.
        """
        if not self.read:
            return None
        if self.trust_list is None:
            return ProvenancePolicy(trust_lists=cached_lists(), watermarks=self.watermarks)
        lists = () if self.trust_list == "none" else (own_list(self.trust_list),)
        return ProvenancePolicy(trust_lists=lists, watermarks=self.watermarks)


class ProvenanceReader:
    """Reads what files say of their origin, under one policy, up to `max_text_bytes` of metadata of
    a file.
    """

    def __init__(
        self, policy: ProvenancePolicy, max_text_bytes: int = statement.MAX_TEXT_BYTES
    ) -> None:
        self._credentials = CredentialsReader(policy.trust_lists)
        self._watermarks, self._max_text_bytes = policy.watermarks, max_text_bytes

    def read(
        self,
        data: bytes,
        format_name: str | None,
        *,
        native: bool = True,
        pixels: Image.Image | None = None,
    ) -> statement.Provenance | None:
        """The statements of a file of a sniffed format; None where it makes none. Never raises,
        whatever the bytes.

        Without `native`, a C2PA manifest is noted and not looked at: for files
        that killed a process before. A watermark is read from `pixels` (RGB).
        """
        found = containers.locate(data, format_name, self._max_text_bytes)
        sidecar = get_sidecar(data)
        watermark = read_watermark(pixels) if self._watermarks and pixels is not None else None
        if found == containers.NOTHING and watermark is None and not sidecar:
            return None
        exif = (
            metadata.read_exif(found.exif, self._max_text_bytes)
            if found.exif
            else metadata.ExifStatements()
        )
        if not exif.is_whole:
            found.note_over_limit("EXIF")
        xmp = metadata.read_xmp(found.xmp)
        if not xmp.is_whole:
            found.note_unread("XMP: too many elements and attributes, or too long names")
        texts = generators.merge_texts(xmp.texts, exif.texts, found.texts)
        software = (
            exif.software or texts.get("software", "") or xmp.tool or metadata.program(found.iptc)
        )
        for keyword in generators.find_complex(texts):
            found.note_unread(f"text “{keyword}”: more than {generators.MAX_VALUES} values")
            del texts[keyword]
        generator = generators.read_generator(texts, software, exif.make, exif.model)
        credentials = self._c2pa(data, format_name, found, sidecar, native=native) or (
            REMOTE if xmp.remote_manifest else None
        )
        make, model = (
            ("", "") if generators.is_generator(exif.make, exif.model) else (exif.make, exif.model)
        )
        camera = statement.Camera(make=make, model=model, taken=exif.taken)
        return statement.Provenance.of(
            camera=None if camera == _NO_CAMERA else camera,
            software=software,
            generator=generator,
            digital_source_type=xmp.source_types,
            c2pa=credentials,
            watermark=watermark,
            unread=found.unread,
        )

    def _c2pa(
        self,
        data: bytes,
        format_name: str | None,
        found: statement.MetadataBlocks,
        sidecar: bytes,
        *,
        native: bool,
    ) -> statement.ContentCredentials | None:
        """Read the manifest in the file, or else the manifest next to it."""
        if format_name is None or not (found.manifest_bytes or sidecar):
            return None
        if not native:
            return unread("not read: a process died while it worked on this file")
        if found.manifest_bytes:
            return self._credentials.read(data, format_name, found.manifest_bytes)
        return self._credentials.read_sidecar(data, format_name, sidecar)


def has_manifest(data: bytes, format_name: str | None) -> bool:
    """Return whether a file of a sniffed format has a C2PA manifest store, in it or next to it. No
    text is unpacked.
    """
    return (
        bool(get_sidecar(data))
        or containers.locate(data, format_name, max_bytes=0).manifest_bytes > 0
    )


def unread(reason: str) -> statement.ContentCredentials:
    """The statement that there is a manifest which was not looked at."""
    return statement.ContentCredentials(state="unreadable", ai_generated=False, problems=(reason,))


class CredentialsReader:
    """Reads manifests. A signature is trusted by the first of the lists that it leads to; without
    lists, none is.
    """

    def __init__(self, trust_lists: Sequence[TrustList]) -> None:
        self._lists = tuple(trust_lists)

    def read_sidecar(
        self, data: bytes, format_name: str, store: bytes
    ) -> statement.ContentCredentials:
        """Read a manifest store that is in a file next to the image. Never raises.

        Only a name binds the two files. If the signed hash is that of another file, the store says
        nothing about this image.
        """
        if not statement.is_manifest_store(store[:48]):
            stated = unread("the sidecar is not a C2PA manifest store")
        else:
            stated = self.read(data, format_name, len(store), store)
            if stated.state == "invalid":
                stated = unread(
                    f"the sidecar does not match this image: {', '.join(stated.problems)}"
                )
        return stated.model_copy(update={"sidecar": True})

    def read(
        self, data: bytes, format_name: str, store_bytes: int, store: bytes | None = None
    ) -> statement.ContentCredentials:
        """Read what the manifest store of a file says, and whether file and store are as they were
        signed. Never raises.

        Args:
            data: The file.
            format_name: Its sniffed format.
            store_bytes: The size of the manifest store.
            store: The manifest store, if it is not in the file.
        """
        if store_bytes > MOST_STORE_BYTES:
            return unread(f"a manifest store of {store_bytes} bytes is over {MOST_STORE_BYTES}")
        import c2pa

        try:
            # One list at a time: of a signer on several the library would name whichever it met
            # first, another in each process.
            for context, told in zip(self._contexts, self._told, strict=True):
                with c2pa.Reader(
                    _MIME[format_name], io.BytesIO(data), manifest_data=store, context=context
                ) as reader:
                    stated = self._stated(
                        json.loads(reader.json()), reader.get_validation_state(), told
                    )
                if stated.state != "intact":
                    break
            return stated
        # The binding lets through what it meets in its own Python beside C2paError; a manifest that
        # cannot be read is a statement.
        except (
            c2pa.C2paError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            return unread(str(error).partition("\n")[0] or type(error).__name__)

    @cached_property
    def _told(self) -> tuple[str, ...]:
        return tuple(one.told for one in self._lists) or ("",)

    @cached_property
    def _contexts(self) -> tuple[Any, ...]:
        import c2pa

        settings = [_OFFLINE | {"trust": {"anchors": _anchors(one)}} for one in self._lists] or [
            _OFFLINE
        ]
        return tuple(map(c2pa.Context.from_dict, settings))

    def _stated(
        self, report: Mapping[str, Any], validated: str | None, told: str
    ) -> statement.ContentCredentials:
        manifests = report["manifests"]
        active = manifests[report["active_manifest"]]
        signature = active.get("signature_info") or {}
        sources = list(
            dict.fromkeys(
                code for manifest in _lineage(manifests, active) for code in _source_types(manifest)
            )
        )
        results = report.get("validation_results") or {}
        problems = self._problems(results)
        state: Any = {"Trusted": "intact", "Valid": "intact", "Invalid": "invalid"}.get(
            str(validated), "unreadable"
        )
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
        deltas = [
            delta.get("validationDeltas") or {} for delta in results.get("ingredientDeltas") or []
        ]
        failures = [
            failure
            for one in (results.get("activeManifest") or {}, *deltas)
            for failure in one.get("failure") or []
        ]
        codes = dict.fromkeys(str(failure.get("code")) for failure in failures)
        # Without a trust list, that a signer is not on it says nothing.
        return [code for code in codes if self._lists or code != _UNTRUSTED]


def _anchors(one: TrustList) -> list[dict[str, str]]:
    """A list in the library's words. It takes authorities of time for signers too (c2pa-rs 0.91):
    those on the list are left out, and `_leads_to_list` looks which of both a signer leads to.
    """
    found = [
        {
            "trust_anchors": one.anchors,
            "trust_uri": _LIST,
            "trust_kind": "manifest",
            "allowed_list": "\n".join(one.signers),
        }
    ]
    if clocks := one.time_stamps_alone():
        found.append({"trust_anchors": clocks, "trust_uri": "time-stamps", "trust_kind": "tsa"})
    return [{key: text for key, text in each.items() if text} for each in found]


def _leads_to_list(results: Mapping[str, Any]) -> bool:
    """Whether the signer of the active manifest is on the list: by its anchors, or itself, which
    the library does not name.
    """
    found = (results.get("activeManifest") or {}).get("success") or []
    said = [
        str(one.get("explanation"))
        for one in found
        if one.get("code") == "signingCredential.trusted"
    ]
    return any(f"[{name}]" in text for text in said for name in (_LIST, ""))


def _generator(manifest: Mapping[str, Any]) -> Any:
    infos = manifest.get("claim_generator_info")
    if isinstance(infos, list) and infos and isinstance(infos[0], dict) and infos[0].get("name"):
        return f"{infos[0]['name']} {infos[0].get('version') or ''}"
    return manifest.get("claim_generator")


def _lineage(
    manifests: Mapping[str, Any], active: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    """The manifest, and those of what the image was made of."""
    seen: set[str] = set()
    waiting = deque([active])
    for _ in range(MOST_MANIFESTS):
        if not waiting:
            return
        manifest = waiting.popleft()
        yield manifest
        for ingredient in _list_ingredients(manifest):
            label = str(ingredient.get("active_manifest"))
            if label in manifests and label not in seen:
                seen.add(label)
                waiting.append(manifests[label])


def _source_types(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield IPTC's codes in a manifest: of actions and their parameters, of metadata in the clear,
    and of ingredients.
    """
    assertions = [
        assertion for assertion in manifest.get("assertions") or [] if isinstance(assertion, dict)
    ]
    if any(str(assertion.get("label")).startswith(_LEGACY) for assertion in assertions):
        yield "trainedAlgorithmicMedia"
    waiting: deque[Any] = deque(assertion.get("data") for assertion in assertions)
    # Only an ingredient's own texts: what a validator noted in it is about other files.
    waiting += (
        {name: value for name, value in part.items() if isinstance(value, str)}
        for part in _list_ingredients(manifest)
    )
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        value = waiting.popleft()
        if isinstance(value, list):
            waiting.extend(inner for inner in value if isinstance(inner, dict | list))
        elif isinstance(value, dict):
            for name, inner in value.items():
                if _is_source_type(name):
                    yield from filter(None, map(statement.source_type, _list_texts(inner)))
                elif isinstance(inner, dict | list):
                    waiting.append(inner)


def _is_source_type(name: str) -> bool:
    """Return whether a field has a source type: `digitalSourceType`, also behind `Iptc4xmpExt:`,
    `com.adobe.` and such prefixes.
    """
    return _PREFIX.sub("", name).replace("_", "").casefold() == "digitalsourcetype"


def _list_texts(value: Any) -> list[str]:
    """Return the texts of a field, which may have one or several, as such or as JSON-LD writes
    them.
    """
    values = value if isinstance(value, list) else [value]
    texts = (
        item.get("@id", item.get("@value")) if isinstance(item, dict) else item for item in values
    )
    return [text for text in texts if isinstance(text, str)]


def _list_ingredients(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the ingredients that the image was made of: parents and components, not what a model
    was merely shown.
    """
    for ingredient in manifest.get("ingredients") or []:
        if ingredient.get("relationship") in ("parentOf", "componentOf"):
            yield ingredient
