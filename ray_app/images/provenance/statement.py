"""Define the data classes for the statements of a file about its origin.

`Provenance` has the parts `Camera`, `Generator`, `AigcLabel`, `ContentCredentials`, and
`Watermark`. All parts except the watermark come from the raw `MetadataBlocks`. Values are limited
to a few short lines without invisible characters.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ray_app.config import Frozen

MAX_CHARACTERS = 300  # The maximum for one value. A prompt is recognised by its start.
# The lines of one list, and the characters of each line, so that the whole is a few KiB.
MAX_LINES, MAX_LIST_CHARACTERS = 16, 100
# https://cv.iptc.org/newscodes/digitalsourcetype, and C2PA 2.1 §18.15.4.5: images that a trained
# model generated, in whole or in part.
AI_SOURCE_TYPES = frozenset(
    {
        "trainedAlgorithmicMedia",
        "compositeWithTrainedAlgorithmicMedia",
        "compositeSynthetic",
        "trainedAlgorithmicData",
    }
)
_KNOWN_SOURCE_TYPES = AI_SOURCE_TYPES | {
    "algorithmicMedia", "algorithmicallyEnhanced", "composite", "compositeCapture", "computationalCapture", "dataDrivenMedia",
    "digitalArt", "digitalCapture", "digitalCreation", "empty", "humanEdits", "minorHumanEdits", "multiFrameComputationalCapture",
    "negativeFilm", "positiveFilm", "print", "screenCapture", "softwareImage", "virtualRecording",
}  # fmt: skip
_CANONICAL_CODES = {code.casefold(): code for code in _KNOWN_SOURCE_TYPES}
# The addresses of IPTC's and C2PA's vocabulary, and the prefix for IPTC's. schema.org appends a
# word to each code.
_VOCABULARY = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:cv\.iptc\.org/newscodes|c2pa\.org)/digitalsourcetype/|digsrctype:|(https?://(?:www\.)?schema\.org/))",
    re.IGNORECASE,
)
_SCHEMA_ORG_ENDING = "DigitalSource"

# GB 45438-2025, annex E: the content is, may be, or is suspected to be generated. By the rules on
# labels of 2025, article 6, a platform writes 2 if an uploader says so, and 3 if it finds traces.
AigcLevel = Literal["generated", "possible", "suspected"]
AIGC_LEVELS: dict[str, AigcLevel] = {"1": "generated", "2": "possible", "3": "suspected"}
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

NO_TRUST_LIST = "unknown: there is no trust list here; touchstone config trust update fetches it"
# The limit for all blocks of a file together, the default of `ImageLimits.max_text_bytes`.
MAX_TEXT_BYTES = 16 * 2**20
MAX_PACKETS = 2  # The XMP packet, and its extension.
MAX_TEXTS = 1000  # ImageMagick writes each EXIF tag of a photograph as a text.
_MAX_KEYWORD_CHARACTERS = 40
# C2PA 2.1, §11.1.4.2: the type of the superbox that is a manifest store, in any container.
C2PA_STORE = b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"


def parse_source_type(value: str) -> str:
    """Return the IPTC code of a digital source type; empty if the value is not one.

    The value may be the code itself, or its address in one of the vocabularies.
    """
    code = value[:MAX_CHARACTERS].strip()
    if vocabulary := _VOCABULARY.match(code):
        code = code[vocabulary.end() :].removesuffix(_SCHEMA_ORG_ENDING if vocabulary[1] else "")
    code = code.partition("#")[0].partition("?")[0].strip("/ ")
    canonical = _CANONICAL_CODES.get(code.casefold())
    return canonical or (code if code.isascii() and code.isalpha() and len(code) <= 60 else "")


def to_plain_line(value: Any) -> str:
    """Return a value of the metadata as one line of at most 300 characters.

    Control characters, including bidirectional ones, become blanks. The result is empty if the
    value is not a text or number.
    """
    if not isinstance(value, str | int | float):
        return ""
    # Only floats are formatted as such, because an integer may be larger than any float.
    start = f"{value:g}" if isinstance(value, float) else str(value)[: 4 * MAX_CHARACTERS]
    return " ".join("".join(letter if letter.isprintable() else " " for letter in start).split())[
        :MAX_CHARACTERS
    ].rstrip()


def _to_lines(values: Any) -> tuple[str, ...]:
    statements = (
        (to_plain_line(value)[:MAX_LIST_CHARACTERS].rstrip() for value in values[: 64 * MAX_LINES])
        if isinstance(values, list | tuple)
        else ()
    )
    return tuple(dict.fromkeys(line for line in statements if line))[:MAX_LINES]


def _to_integer(value: Any) -> int | None:
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
        else None
    )


Line = Annotated[
    Annotated[str, Field(max_length=MAX_CHARACTERS)] | None,
    BeforeValidator(lambda value: to_plain_line(value) or None),
]
Lines = Annotated[
    tuple[Annotated[str, Field(max_length=MAX_LIST_CHARACTERS)], ...],
    Field(max_length=MAX_LINES),
    BeforeValidator(_to_lines),
]
Integer = Annotated[int | None, BeforeValidator(_to_integer)]


class Camera(Frozen):
    """The camera that took the photograph, according to EXIF.

    Editors keep this statement, and anyone can write it.
    """

    make: Line = Field(default=None, description="maker of the camera")
    model: Line = Field(default=None, description="model of the camera")
    taken: Line = Field(
        default=None, description="local time, as EXIF writes it: 2024:05:06 07:08:09"
    )


class Generator(Frozen):
    """The program that generated the image according to the file, with its parameters."""

    tool: Line = Field(description="name of the program", examples=["Stable Diffusion web UI"])
    version: Line = Field(default=None, description="version of the program")
    prompt: Line = Field(default=None, description="first 300 characters of the prompt")
    negative_prompt: Line = Field(
        default=None, description="first 300 characters of the negative prompt"
    )
    steps: Integer = Field(default=None, description="number of sampling steps")
    sampler: Line = Field(default=None, description="name of the sampler")
    seed: Integer = Field(default=None, description="seed of the noise")
    model: Line = Field(default=None, description="name of the model")
    model_hash: Line = Field(
        default=None, description="hash of the model, as the program writes it"
    )
    models: Lines = Field(default=(), description="checkpoints that a graph loads")
    nodes: Lines = Field(default=(), description="classes of the first nodes of a graph")


class AigcLabel(Frozen):
    """The label that GB 45438-2025 requires of services in China for generated content."""

    level: AigcLevel = Field(
        description="`generated`: a model generated the content; `possible`: an uploader says so; `suspected`: a platform found traces"
    )
    producer: Line = Field(
        default=None, description="name or code of the service that generated the content"
    )
    propagator: Line = Field(
        default=None, description="name or code of the platform that published the content"
    )


class ContentCredentials(Frozen):
    """The content of a C2PA manifest, and the result of its validation."""

    state: Literal["trusted", "intact", "invalid", "unreadable"] = Field(
        description="`trusted`: the signature is sound, and its certificate leads to a trust list; `intact`: the signature is sound, by an "
        "unknown signer; `invalid`: the file or the manifest was changed after it was signed; `unreadable`: not checked, for the reason in "
        "`problems`"
    )
    trust_lists: Lines = Field(
        default=(),
        description="the list that the signer is on; for an unknown signer, the lists that were checked, none if there is no trust list here",
        examples=[["C2PA trust list of 2026-11-26 (sha256 75cacc98b79e)"]],
    )
    claim_generator: Line = Field(default=None, description="program that wrote the manifest")
    signer: Line = Field(default=None, description="name in the certificate of the signature")
    ai_generated: bool = Field(
        description="whether the manifest states that a trained model generated all or part of the image"
    )
    source_types: Lines = Field(default=(), description="IPTC's codes in the manifest")
    remote: Literal[True] | None = Field(
        default=None, description="the file only names a manifest elsewhere; it is never fetched"
    )
    sidecar: Literal[True] | None = Field(
        default=None, description="the manifest is in a file NAME.c2pa next to the image"
    )
    problems: Lines = Field(
        default=(), description="C2PA validation codes, or why the manifest was not read"
    )


class Watermark(Frozen):
    """An invisible mark that a generator wrote into the pixels to identify itself."""

    of: Line = Field(
        description="code whose mark it is", examples=["Stable Diffusion XL reference code"]
    )
    bits: int = Field(ge=0, description="number of bits that were read correctly")
    length: int = Field(ge=1, description="number of bits of the mark")
    chance: float = Field(
        ge=0, le=1, description="probability that an image without the mark matches as well"
    )


def describe_signer(state: str, trust_lists: Sequence[str] = ()) -> str:
    """Return a phrase that states whether the signer of a C2PA manifest is on a trust list.

    The result is empty if the signature is not valid.
    """
    if state == "trusted":
        return f"on the {trust_lists[0]}" if trust_lists else "on the trust list"
    if state == "intact":
        return f"not on the {', nor on the '.join(trust_lists)}" if trust_lists else NO_TRUST_LIST
    return ""


class Provenance(Frozen):
    """The statements of a file about its own origin, such as the camera or generator it names.

    A file without statements has no `Provenance`; see `from_statements`.
    """

    camera: Camera | None = Field(default=None, description="camera that EXIF names")
    software: Line = Field(default=None, description="program that wrote the file")
    generator: Generator | None = Field(
        default=None, description="program that generated the image, with its parameters"
    )
    digital_source_type: Lines = Field(
        default=(),
        description="IPTC's codes in XMP",
        examples=[["trainedAlgorithmicMedia"]],
    )
    aigc_label: AigcLabel | None = Field(default=None, description="label of GB 45438-2025")
    c2pa: ContentCredentials | None = Field(default=None, description="C2PA manifest")
    watermark: Watermark | None = Field(default=None, description="mark in the pixels")
    unread: Lines = Field(
        default=(),
        description="metadata that was not read because it is over a limit",
        examples=[["text “workflow”: over max_text_bytes (16777216)"]],
    )
    ai_declared: bool = Field(
        description="whether the file states that a model generated all or part of it"
    )

    @classmethod
    def from_statements(cls, **statements: Any) -> "Provenance | None":
        """Create a `Provenance` with the field `ai_declared`; None if all fields are empty."""
        provenance = cls(**statements, ai_declared=False)
        if provenance == _NO_STATEMENTS:
            return None
        is_declared_by_manifest = (
            provenance.c2pa is not None
            and provenance.c2pa.state in ("trusted", "intact")
            and provenance.c2pa.ai_generated
        )
        is_declared = (
            provenance.generator is not None
            or is_declared_by_manifest
            or not AI_SOURCE_TYPES.isdisjoint(provenance.digital_source_type)
            # The other levels are opinions of third parties on a file without a declaration.
            or (provenance.aigc_label is not None and provenance.aigc_label.level == "generated")
        )
        return provenance.model_copy(update={"ai_declared": is_declared})

    def row(self) -> str:
        """Return the statements as JSON text for the file's result row.

        Keys without a statement are left out.
        """
        return self.model_dump_json(exclude_defaults=True)

    def lines(self) -> dict[str, str]:
        """Return the statements as short lines of text for display, by name, such as `software`."""
        camera, generator, c2pa = self.camera or Camera(), self.generator, self.c2pa
        statements = {
            "make": camera.make,
            "model": camera.model,
            "taken": camera.taken,
            "software": self.software,
        }
        if generator is not None:
            statements |= {
                "generator": generator.tool,
                "prompt": generator.prompt,
                "checkpoint": generator.model or ", ".join(generator.models),
            }
        statements["digital_source_type"] = ", ".join(self.digital_source_type)
        if label := self.aigc_label:
            parties = {"producer": label.producer, "propagator": label.propagator}
            statements["aigc_label"] = "; ".join(
                [label.level, *(f"{role} {name}" for role, name in parties.items() if name)]
            )
        if c2pa is not None:
            statements["c2pa"] = "; ".join(
                filter(None, (c2pa.state, c2pa.claim_generator, ", ".join(c2pa.source_types)))
            )
            if signer_state := describe_signer(c2pa.state, c2pa.trust_lists):
                statements["signed_by"] = f"{c2pa.signer or 'an unnamed party'} ({signer_state})"
        statements["unread"] = "; ".join(self.unread)
        return {name: line[:MAX_CHARACTERS] for name, line in statements.items() if line}


_NO_STATEMENTS = Provenance(ai_declared=False)


@dataclass(slots=True)
class MetadataBlocks:
    """The metadata blocks of one file, which are not parsed yet.

    Attributes:
        exif: The EXIF block, which starts with a TIFF header.
        texts: The texts of PNG and the comments of other formats, by keyword.
        manifest_bytes: The size of the C2PA manifest store, 0 if there is none.
        unread: A description of each block that was not read because of a limit.
        max_bytes: The maximum size of all blocks together.
    """

    exif: bytes = b""
    xmp: list[bytes] = field(default_factory=list)
    iptc: bytes = b""
    texts: dict[str, str] = field(default_factory=dict)
    manifest_bytes: int = 0
    unread: list[str] = field(default_factory=list)
    max_bytes: int = field(default=MAX_TEXT_BYTES, compare=False)
    _taken_bytes: int = field(default=0, compare=False)

    @property
    def left_bytes(self) -> int:
        """The number of bytes of metadata that can still be added before the limit `max_bytes`."""
        return self.max_bytes - self._taken_bytes

    def note_unread(self, description: str) -> None:
        """Record in `unread` that a block was not read, with its description."""
        if len(self.unread) < MAX_LINES:
            self.unread.append(description)

    def note_over_limit(self, block_name: str) -> None:
        """Note in `unread` that a block, such as "EXIF", is not fully read because of the limit."""
        self.note_unread(f"{block_name}: over max_text_bytes ({self.max_bytes})")

    def add_exif(self, block: bytes) -> None:
        """Add an EXIF block, unless there is one already.

        The prefix `Exif` of the block is removed. Some programs write this prefix twice.
        """
        if not self.exif:
            self.exif = (
                self._take("EXIF", block).removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")
            )

    def has_room(self, keyword: str, *, is_xmp: bool) -> bool:
        """Return whether another XMP packet or text can be added within the limits.

        If not, note in `unread` that it was not read. `keyword` is the keyword of the text, for the
        note. It is not used for an XMP packet.
        """
        if not self.left_bytes:
            self.note_over_limit("XMP" if is_xmp else _describe_text(keyword))
        elif is_xmp and len(self.xmp) == MAX_PACKETS:
            self.note_unread(f"more than {MAX_PACKETS} XMP packets")
        elif not is_xmp and len(self.texts) == MAX_TEXTS:
            self.note_unread(f"more than {MAX_TEXTS} texts")
        else:
            return True
        return False

    def add_xmp(self, packet: bytes) -> None:
        """Add an XMP packet if `has_room` is True. Cut it if it would exceed `max_bytes`."""
        if self.has_room("", is_xmp=True):
            self.xmp.append(self._take("XMP", packet))

    def add_text(self, keyword: str, text: bytes, encoding: str) -> None:
        """Add a text, unless there is one with the same keyword already.

        A text that is longer than `left_bytes` is not added. `left_bytes` is then 0, so that no
        further blocks can be added.
        """
        if keyword in self.texts or not self.has_room(keyword, is_xmp=False):
            return
        if len(text) == len(block := self._take(_describe_text(keyword), text)):
            self.texts[keyword] = block.decode(encoding, "replace")

    def charge(self, size_bytes: int) -> None:
        """Count bytes towards the limit `max_bytes`.

        The methods that add blocks do this themselves. Call it for bytes that were unpacked but are
        not added.
        """
        self._taken_bytes += min(size_bytes, self.left_bytes)

    def _take(self, block_name: str, block: bytes) -> bytes:
        remaining_bytes = self.left_bytes
        if len(block) > remaining_bytes:
            self.note_over_limit(block_name)
        self.charge(len(block))
        return block[:remaining_bytes]

    def add_jumbf(self, start: bytes, size: int) -> None:
        """Add the size of a JUMBF superbox to `manifest_bytes` if it is a C2PA manifest store.

        JUMBF superboxes are containers for metadata. Those with other content are ignored. `start`
        has the first 48 bytes of the superbox, and `size` all its bytes.
        """
        if is_manifest_store(start):
            self.manifest_bytes += size


def _describe_text(keyword: str) -> str:
    return f"text “{to_plain_line(keyword)[:_MAX_KEYWORD_CHARACTERS]}”"


def is_manifest_store(start: bytes) -> bool:
    """Return whether the first 48 bytes of a JUMBF superbox are those of a C2PA manifest store."""
    header = 16 if start[:4] == b"\0\0\0\1" else 8
    return (
        start[4:8] == b"jumb"
        and start[header + 4 : header + 8] == b"jumd"
        and start[header + 8 : header + 24] == C2PA_STORE
    )
