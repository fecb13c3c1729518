"""Read the provenance of an image file: what it states about its own origin (`ProvenanceReader`).

`ProvenanceConfig` sets whether provenance is read and which certificates are trusted. The
certificates are read once and passed on as text. `CredentialsReader` reads a C2PA manifest store,
the signed part of the metadata, and checks its signature. Nothing is fetched.

The library of the C2PA project is native code that reads hostile bytes. It is called only in
processes in which a crash or a hang loses no more than one image (see `inference.decoder`). It is
imported at the first manifest (0.13 s and 16 MiB), so files without a manifest never load it.
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
from ray_app.images.provenance.trust_lists import TrustList, load_cached_lists, load_own_list
from ray_app.images.provenance.watermark import read_watermark

MAX_STORE_BYTES = MAX_BYTES
MAX_VALUES = 20_000  # In a report, which are searched for source types.
MAX_MANIFESTS = 50  # Including those of the ingredients of an image.
MAX_PROBLEMS = 4
_UNTRUSTED = "signingCredential.untrusted"
# Problems of a file that is as it was signed, but whose signer or time is not vouched for. A
# signature whose certificate has expired since is one of them.
_UNCHANGED = {_UNTRUSTED, "signingCredential.expired", "timeStamp.untrusted"}
_LIST_URI = "trust-list"
_OFFLINE = {
    "verify": {
        "verify_after_reading": True,
        "verify_trust": True,
        "remote_manifest_fetch": False,
        "ocsp_fetch": False,
    },
    # Identity assertions may name a web address. Decompression is limited, because a manifest may
    # be a Brotli bomb.
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
_LEGACY_ASSERTION = "com.adobe.generative-ai"  # Adobe's assertion of 2023, before source types

REMOTE = statement.ContentCredentials(
    state="unreadable", ai_generated=False, remote=True, problems=("manifest.inaccessible",)
)
_NO_CAMERA = statement.Camera()
_PREFIX = re.compile(r".*[:.]", re.DOTALL)


class ProvenancePolicy(Frozen):
    """The settings of a `ProvenanceReader`, with the trusted certificates as text.

    It names no files, so it can be sent to processes on other machines.
    """

    trust_lists: tuple[TrustList, ...] = Field(
        default=(),
        description="lists whose C2PA signers are trusted; the first list with a signer counts, "
        "without lists no signer is trusted",
    )
    watermarks: bool = Field(
        default=False, description="whether pixels are searched for watermarks"
    )


class ProvenanceConfig(Frozen):
    """The settings for reading a file's statements about its origin.

    The statements are shown with a score and never change it.
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
        """Return the settings for `ProvenanceReader`, with the certificates from the trust lists.

        The result is None if `read` is False, so that no statements are read. Raises ConfigError if
        a trust list has no certificates.
        """
        if not self.read:
            return None
        if self.trust_list is None:
            return ProvenancePolicy(trust_lists=load_cached_lists(), watermarks=self.watermarks)
        lists = () if self.trust_list == "none" else (load_own_list(self.trust_list),)
        return ProvenancePolicy(trust_lists=lists, watermarks=self.watermarks)


class ProvenanceReader:
    """Reads the statements that files contain about their origin."""

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
        """Read the statements of a file about its origin. Never raise an exception.

        The statements are camera, software, generator, source type, C2PA manifest, and watermark.
        The result is None if there are none. Use `native=False` for a file that crashed a process
        before; its C2PA manifest is then noted as unread. A watermark is searched for in `pixels`
        (RGB).
        """
        blocks = containers.locate(data, format_name, self._max_text_bytes)
        sidecar = get_sidecar(data)
        watermark = read_watermark(pixels) if self._watermarks and pixels is not None else None
        if blocks == containers.NOTHING and watermark is None and not sidecar:
            return None
        exif = (
            metadata.read_exif(blocks.exif, self._max_text_bytes)
            if blocks.exif
            else metadata.ExifStatements()
        )
        if not exif.is_whole:
            blocks.note_over_limit("EXIF")
        xmp = metadata.read_xmp(blocks.xmp)
        if not xmp.is_whole:
            blocks.note_unread("XMP: too many elements and attributes, or too long names")
        texts = generators.merge_texts(xmp.texts, exif.texts, blocks.texts)
        software = (
            exif.software
            or texts.get("software", "")
            or xmp.tool
            or xmp.software
            or metadata.read_program(blocks.iptc)
        )
        for keyword in generators.find_complex(texts):
            blocks.note_unread(f"text “{keyword}”: more than {generators.MAX_VALUES} values")
            del texts[keyword]
        generator = generators.read_generator(texts, software, exif.make, exif.model)
        credentials = self._read_credentials(data, format_name, blocks, sidecar, native=native) or (
            REMOTE if xmp.remote_manifest else None
        )
        make, model = (
            ("", "") if generators.is_generator(exif.make, exif.model) else (exif.make, exif.model)
        )
        camera = statement.Camera(make=make, model=model, taken=exif.taken)
        return statement.Provenance.from_statements(
            camera=None if camera == _NO_CAMERA else camera,
            software=software,
            generator=generator,
            digital_source_type=xmp.source_types,
            aigc_label=generators.read_aigc_label(texts),
            c2pa=credentials,
            watermark=watermark,
            unread=blocks.unread,
        )

    def _read_credentials(
        self,
        data: bytes,
        format_name: str | None,
        blocks: statement.MetadataBlocks,
        sidecar: bytes,
        *,
        native: bool,
    ) -> statement.ContentCredentials | None:
        """Read the manifest in the file, or else the manifest in the sidecar."""
        if format_name is None or not (blocks.manifest_bytes or sidecar):
            return None
        if not native:
            return build_unread("not read: a process died while it worked on this file")
        if blocks.manifest_bytes:
            return self._credentials.read(data, format_name, blocks.manifest_bytes)
        return self._credentials.read_sidecar(data, format_name, sidecar)


def has_manifest(data: bytes, format_name: str | None) -> bool:
    """Return whether a file or its sidecar has a C2PA manifest store: signed Content Credentials.

    The store is not checked. Compressed texts are not unpacked for this.
    """
    return (
        bool(get_sidecar(data))
        or containers.locate(data, format_name, max_bytes=0).manifest_bytes > 0
    )


def build_unread(reason: str) -> statement.ContentCredentials:
    """Return the `ContentCredentials` of a C2PA manifest that was not read.

    The state is `unreadable`. `reason` is a text for the user, the only entry of `problems`.
    """
    return statement.ContentCredentials(state="unreadable", ai_generated=False, problems=(reason,))


class CredentialsReader:
    """Reads C2PA manifests, the signed statements of files, and checks their signatures.

    A signature is checked against the lists in order. If there are none, no signature is trusted.
    """

    def __init__(self, trust_lists: Sequence[TrustList]) -> None:
        self._lists = tuple(trust_lists)

    def read_sidecar(
        self, data: bytes, format_name: str, store: bytes
    ) -> statement.ContentCredentials:
        """Read a C2PA manifest store from a sidecar, a file next to the image.

        Only their names connect the two files. A store that is not valid for the image, for example
        because it has the hash of another file, states nothing about this image. The state of the
        result is then `unreadable`. Errors are noted in the result, and no exception is raised.
        """
        if not statement.is_manifest_store(store[:48]):
            credentials = build_unread("the sidecar is not a C2PA manifest store")
        else:
            credentials = self.read(data, format_name, len(store), store)
            if credentials.state == "invalid":
                credentials = build_unread(
                    f"the sidecar does not match this image: {', '.join(credentials.problems)}"
                )
        return credentials.model_copy(update={"sidecar": True})

    def read(
        self, data: bytes, format_name: str, store_bytes: int, store: bytes | None = None
    ) -> statement.ContentCredentials:
        """Read the C2PA manifest store of a file, and check its signature.

        If the file or the store was changed after signing, the state of the result is `invalid`.
        Errors are noted in the result, and no exception is raised. A store above MAX_STORE_BYTES is
        not read; the state is then `unreadable`. `store` is None if it is in the file.
        """
        if store_bytes > MAX_STORE_BYTES:
            return build_unread(
                f"a manifest store of {store_bytes} bytes is over {MAX_STORE_BYTES}"
            )
        import c2pa

        try:
            # Lists are used one at a time. If a signer is on several lists, the library would name
            # any of them, a different one in each process.
            for context, list_name in zip(self._contexts, self._list_names, strict=True):
                with c2pa.Reader(
                    _MIME[format_name], io.BytesIO(data), manifest_data=store, context=context
                ) as reader:
                    credentials = self._build_credentials(
                        json.loads(reader.json()), reader.get_validation_state(), list_name
                    )
                if credentials.state != "intact":
                    break
            return credentials
        # The binding also raises errors of its own Python code. A manifest that cannot be read is a
        # statement, too.
        except (
            c2pa.C2paError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            return build_unread(str(error).partition("\n")[0] or type(error).__name__)

    @cached_property
    def _list_names(self) -> tuple[str, ...]:
        return tuple(trust_list.told for trust_list in self._lists) or ("",)

    @cached_property
    def _contexts(self) -> tuple[Any, ...]:
        import c2pa

        settings = [
            _OFFLINE | {"trust": {"anchors": _to_anchors(trust_list)}} for trust_list in self._lists
        ] or [_OFFLINE]
        return tuple(map(c2pa.Context.from_dict, settings))

    def _build_credentials(
        self, report: Mapping[str, Any], validated: str | None, list_name: str
    ) -> statement.ContentCredentials:
        manifests = report["manifests"]
        active = manifests[report["active_manifest"]]
        signature = active.get("signature_info") or {}
        sources = list(
            dict.fromkeys(
                code
                for manifest in _iter_lineage(manifests, active)
                for code in _iter_source_types(manifest)
            )
        )
        results = report.get("validation_results") or {}
        problems = self._find_problems(results)
        state: Any = {"Trusted": "intact", "Valid": "intact", "Invalid": "invalid"}.get(
            str(validated), "unreadable"
        )
        if validated == "Trusted" and _leads_to_list(results):
            state = "trusted"
        elif validated == "Invalid" and problems and _UNCHANGED.issuperset(problems):
            state = "intact"
        lists = {"trusted": (list_name,), "intact": self._list_names}.get(state, ())
        return statement.ContentCredentials(
            state=state,
            trust_lists=lists,
            claim_generator=_read_claim_generator(active),
            signer=signature.get("issuer") or signature.get("common_name"),
            ai_generated=not statement.AI_SOURCE_TYPES.isdisjoint(sources),
            source_types=tuple(sources),
            problems=tuple(problems[:MAX_PROBLEMS]),
        )

    def _find_problems(self, results: Mapping[str, Any]) -> list[str]:
        deltas = [
            delta.get("validationDeltas") or {} for delta in results.get("ingredientDeltas") or []
        ]
        failures = [
            failure
            for results_part in (results.get("activeManifest") or {}, *deltas)
            for failure in results_part.get("failure") or []
        ]
        codes = dict.fromkeys(str(failure.get("code")) for failure in failures)
        # Without a trust list, it means nothing that a signer is not on it.
        return [code for code in codes if self._lists or code != _UNTRUSTED]


def _to_anchors(trust_list: TrustList) -> list[dict[str, str]]:
    """Return a trust list in the library's format.

    The library also accepts time-stamp authorities as signers (c2pa-rs 0.91). So authorities that
    are also anchors are listed as anchors only, and `_leads_to_list` checks which entry a signer
    leads to.
    """
    anchors = [
        {
            "trust_anchors": trust_list.anchors,
            "trust_uri": _LIST_URI,
            "trust_kind": "manifest",
            "allowed_list": "\n".join(trust_list.signers),
        }
    ]
    if clocks := trust_list.time_stamps_alone():
        anchors.append({"trust_anchors": clocks, "trust_uri": "time-stamps", "trust_kind": "tsa"})
    return [{key: text for key, text in entry.items() if text} for entry in anchors]


def _leads_to_list(results: Mapping[str, Any]) -> bool:
    """Return whether the signer of the active manifest is on the list.

    The signer may lead to an anchor, or be on the list itself, in which case the library names no
    entry.
    """
    successes = (results.get("activeManifest") or {}).get("success") or []
    explanations = [
        str(success.get("explanation"))
        for success in successes
        if success.get("code") == "signingCredential.trusted"
    ]
    return any(f"[{name}]" in text for text in explanations for name in (_LIST_URI, ""))


def _read_claim_generator(manifest: Mapping[str, Any]) -> Any:
    infos = manifest.get("claim_generator_info")
    if isinstance(infos, list) and infos and isinstance(infos[0], dict) and infos[0].get("name"):
        return f"{infos[0]['name']} {infos[0].get('version') or ''}"
    return manifest.get("claim_generator")


def _iter_lineage(
    manifests: Mapping[str, Any], active: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    """Yield the manifest, and the manifests of the ingredients that the image was composed of."""
    labels: set[str] = set()
    queue = deque([active])
    for _ in range(MAX_MANIFESTS):
        if not queue:
            return
        manifest = queue.popleft()
        yield manifest
        for ingredient in _list_ingredients(manifest):
            label = str(ingredient.get("active_manifest"))
            if label in manifests and label not in labels:
                labels.add(label)
                queue.append(manifests[label])


def _iter_source_types(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield IPTC's codes in a manifest.

    They are in actions and their parameters, in unencrypted metadata, and in ingredients.
    """
    assertions = [
        assertion for assertion in manifest.get("assertions") or [] if isinstance(assertion, dict)
    ]
    if any(str(assertion.get("label")).startswith(_LEGACY_ASSERTION) for assertion in assertions):
        yield "trainedAlgorithmicMedia"
    queue: deque[Any] = deque(assertion.get("data") for assertion in assertions)
    # Only an ingredient's own texts count; a validator's notes in it concern other files.
    queue += (
        {name: value for name, value in part.items() if isinstance(value, str)}
        for part in _list_ingredients(manifest)
    )
    for _ in range(MAX_VALUES):
        if not queue:
            return
        value = queue.popleft()
        if isinstance(value, list):
            queue.extend(inner for inner in value if isinstance(inner, dict | list))
        elif isinstance(value, dict):
            for name, inner in value.items():
                if _is_source_type(name):
                    yield from filter(None, map(statement.parse_source_type, _list_texts(inner)))
                elif isinstance(inner, dict | list):
                    queue.append(inner)


def _is_source_type(name: str) -> bool:
    """Return whether a field is a source type: `digitalSourceType`, with any prefix.

    Prefixes are `Iptc4xmpExt:`, `com.adobe.` and similar.
    """
    return _PREFIX.sub("", name).replace("_", "").casefold() == "digitalsourcetype"


def _list_texts(value: Any) -> list[str]:
    """Return the one or several texts of a field.

    They may be plain texts, or objects of JSON-LD.
    """
    values = value if isinstance(value, list) else [value]
    texts = (
        item.get("@id", item.get("@value")) if isinstance(item, dict) else item for item in values
    )
    return [text for text in texts if isinstance(text, str)]


def _list_ingredients(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the ingredients that the image was composed of: parents and components.

    Images that a model only got as input are left out.
    """
    for ingredient in manifest.get("ingredients") or []:
        if ingredient.get("relationship") in ("parentOf", "componentOf"):
            yield ingredient
