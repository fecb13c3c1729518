"""Provenance as data: `Provenance` and its parts (`Camera`, `Generator`, `ContentCredentials`,
`Watermark`), and the raw `MetadataBlocks` that all but the watermark come from.

Values hold no more than they may: short lines, few of them, nothing invisible.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ray_app.config import Frozen

MOST_CHARACTERS = 300  # of one value; a prompt is recognised by its start
# of one list, and characters of each of its lines: so that all of it is a few KiB
MOST_LINES, MOST_LISTED = 16, 100
# https://cv.iptc.org/newscodes/digitalsourcetype, and C2PA 2.1 §18.15.4.5: what was made, or partly
# made, by a trained model.
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
_CANONICAL = {code.casefold(): code for code in _KNOWN_SOURCE_TYPES}
# The addresses of IPTC's and C2PA's vocabulary, and the prefix that stands for IPTC's; schema.org
# puts a word behind each code.
_VOCABULARY = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:cv\.iptc\.org/newscodes|c2pa\.org)/digitalsourcetype/|digsrctype:|(https?://(?:www\.)?schema\.org/))",
    re.IGNORECASE,
)
_SCHEMA_ORG_ENDING = "DigitalSource"

NO_TRUST_LIST = "unknown: there is no trust list here; touchstone config trust update fetches it"
# Of all blocks of a file together, as `ImageLimits.max_text_bytes` has it.
MAX_TEXT_BYTES = 16 * 2**20
MOST_PACKETS = 2  # XMP: the packet, and its extension
MOST_TEXTS = 1000  # ImageMagick writes each EXIF tag of a photograph as a text
_LONGEST_KEYWORD = 40
# C2PA 2.1, §11.1.4.2: the type of the superbox that is a manifest store, in any container.
C2PA_STORE = b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"


def source_type(value: str) -> str:
    """The code in an address of a vocabulary of source types, or a bare code; empty for anything
    else.
    """
    code = value[:MOST_CHARACTERS].strip()
    if vocabulary := _VOCABULARY.match(code):
        code = code[vocabulary.end() :].removesuffix(_SCHEMA_ORG_ENDING if vocabulary[1] else "")
    code = code.partition("#")[0].partition("?")[0].strip("/ ")
    known = _CANONICAL.get(code.casefold())
    return known or (code if code.isascii() and code.isalpha() and len(code) <= 60 else "")


def plain(value: Any) -> str:
    """One line without controls, bidirectional ones included, of at most 300 characters; empty for
    what is no text or number.
    """
    if not isinstance(value, str | int | float):
        return ""
    # an integer may be larger than any float
    start = f"{value:g}" if isinstance(value, float) else str(value)[: 4 * MOST_CHARACTERS]
    return " ".join("".join(letter if letter.isprintable() else " " for letter in start).split())[
        :MOST_CHARACTERS
    ].rstrip()


def _lines(values: Any) -> tuple[str, ...]:
    statements = (
        (plain(value)[:MOST_LISTED].rstrip() for value in values[: 64 * MOST_LINES])
        if isinstance(values, list | tuple)
        else ()
    )
    return tuple(dict.fromkeys(line for line in statements if line))[:MOST_LINES]


def _whole(value: Any) -> int | None:
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
        else None
    )


Line = Annotated[
    Annotated[str, Field(max_length=MOST_CHARACTERS)] | None,
    BeforeValidator(lambda value: plain(value) or None),
]
Lines = Annotated[
    tuple[Annotated[str, Field(max_length=MOST_LISTED)], ...],
    Field(max_length=MOST_LINES),
    BeforeValidator(_lines),
]
Whole = Annotated[int | None, BeforeValidator(_whole)]


class Camera(Frozen):
    """What EXIF says took the picture. Editors keep it, and anybody can write it."""

    make: Line = None
    model: Line = None
    taken: Line = Field(
        default=None, description="local time, as EXIF writes it: 2024:05:06 07:08:09"
    )


class Generator(Frozen):
    """The program that says it made the picture with a model, and what else it says of it."""

    tool: Line = Field(examples=["Stable Diffusion web UI"])
    version: Line = None
    prompt: Line = Field(default=None, description="its first 300 characters")
    negative_prompt: Line = None
    steps: Whole = None
    sampler: Line = None
    seed: Whole = None
    model: Line = None
    model_hash: Line = None
    models: Lines = Field(default=(), description="of a graph: the checkpoints that it loads")
    nodes: Lines = Field(default=(), description="of a graph: the classes of its first nodes")


class ContentCredentials(Frozen):
    """A C2PA manifest. `trusted`: the signature is sound and its certificate leads to a trust list;
    `intact`: sound, by somebody unknown; `invalid`: the file or the manifest was changed after it
    was signed; `unreadable`: not checked, problems say why.
    """

    state: Literal["trusted", "intact", "invalid", "unreadable"]
    trust_lists: Lines = Field(
        default=(),
        description="the list that the signer is on; of one unknown, those that were asked: none = there is no trust list here",
        examples=[["C2PA trust list of 2026-11-26 (sha256 75cacc98b79e)"]],
    )
    claim_generator: Line = None
    signer: Line = None
    ai_generated: bool = Field(
        description="whether it says that all or part of the picture was made by a trained model"
    )
    source_types: Lines = ()
    remote: Literal[True] | None = Field(
        default=None, description="the file only names a manifest elsewhere; it is never fetched"
    )
    sidecar: Literal[True] | None = Field(
        default=None, description="the manifest is in a file NAME.c2pa next to the image"
    )
    problems: Lines = Field(default=(), description="C2PA validation codes, or why it was not read")


class Watermark(Frozen):
    """A mark in the pixels by which a program that makes pictures names itself: whose it is, and
    how well it was read.
    """

    of: Line = Field(examples=["Stable Diffusion XL reference code"])
    bits: int = Field(ge=0, description="how many of its bits were read as they should be")
    length: int = Field(ge=1, description="how many bits it has")
    chance: float = Field(ge=0, le=1, description="that a picture without it matches so well")


def standing(state: str, trust_lists: Sequence[str] = ()) -> str:
    """Where the signer of a manifest stands, in words, by two fields of `ContentCredentials`; empty
    where the signature is not sound.
    """
    if state == "trusted":
        return f"on the {trust_lists[0]}" if trust_lists else "on the trust list"
    if state == "intact":
        return f"not on the {', nor on the '.join(trust_lists)}" if trust_lists else NO_TRUST_LIST
    return ""


class Provenance(Frozen):
    """What a file says of its own origin; at least one thing of these."""

    camera: Camera | None = None
    software: Line = None
    generator: Generator | None = None
    digital_source_type: Lines = Field(default=(), examples=[["trainedAlgorithmicMedia"]])
    c2pa: ContentCredentials | None = None
    watermark: Watermark | None = None
    unread: Lines = Field(
        default=(),
        description="metadata that was not read since it is over a limit",
        examples=[["text “workflow”: over max_text_bytes (16777216)"]],
    )
    ai_declared: bool = Field(
        description="whether the file says of itself that a model made it, or part of it"
    )

    @classmethod
    def of(cls, **statements: Any) -> "Provenance | None":
        """The statements with what follows from them; None where there are none."""
        stated = cls(**statements, ai_declared=False)
        if stated == _NOTHING:
            return None
        by_manifest = (
            stated.c2pa is not None
            and stated.c2pa.state in ("trusted", "intact")
            and stated.c2pa.ai_generated
        )
        declared = (
            stated.generator is not None
            or by_manifest
            or not AI_SOURCE_TYPES.isdisjoint(stated.digital_source_type)
        )
        return stated.model_copy(update={"ai_declared": declared})

    def row(self) -> str:
        """JSON for a result row, without what is unsaid."""
        return self.model_dump_json(exclude_defaults=True)

    def lines(self) -> dict[str, str]:
        """The statements as short lines by name, for people and for programs that want no
        structure.
        """
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
        if c2pa is not None:
            statements["c2pa"] = "; ".join(
                filter(None, (c2pa.state, c2pa.claim_generator, ", ".join(c2pa.source_types)))
            )
            if words := standing(c2pa.state, c2pa.trust_lists):
                statements["signed_by"] = f"{c2pa.signer or 'somebody without a name'} ({words})"
        statements["unread"] = "; ".join(self.unread)
        return {name: line[:MOST_CHARACTERS] for name, line in statements.items() if line}


_NOTHING = Provenance(ai_declared=False)


@dataclass(slots=True)
class MetadataBlocks:
    """Metadata blocks of one file, as the container delimits them, up to `max_bytes` together;
    empty if there are none.

    `exif` starts with a TIFF header, `xmp` are packets, `texts` are PNG's and comments by keyword,
    `manifest_bytes` is the size of the C2PA manifest store, 0 = none. `unread` names what was left
    out for a limit.
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
        """The size of what can still be added."""
        return self.max_bytes - self._taken_bytes

    def note_unread(self, what: str) -> None:
        """Note that something was not read."""
        if len(self.unread) < MOST_LINES:
            self.unread.append(what)

    def note_over_limit(self, what: str) -> None:
        """Note that a block was not read, or not all of it, since metadata is over the limit."""
        self.note_unread(f"{what}: over max_text_bytes ({self.max_bytes})")

    def add_exif(self, block: bytes) -> None:
        """Add an EXIF block, with or without its prefix, which some writers put twice; the first of
        several counts.
        """
        if not self.exif:
            self.exif = (
                self._take("EXIF", block).removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")
            )

    def has_room(self, keyword: str, *, is_xmp: bool) -> bool:
        """Return whether another packet or text can be added; if not, note it as unread."""
        if not self.left_bytes:
            self.note_over_limit("XMP" if is_xmp else _name_text(keyword))
        elif is_xmp and len(self.xmp) == MOST_PACKETS:
            self.note_unread(f"more than {MOST_PACKETS} XMP packets")
        elif not is_xmp and len(self.texts) == MOST_TEXTS:
            self.note_unread(f"more than {MOST_TEXTS} texts")
        else:
            return True
        return False

    def add_xmp(self, packet: bytes) -> None:
        """Add an XMP packet; of a packet over the limit, what can be read up to there."""
        if self.has_room("", is_xmp=True):
            self.xmp.append(self._take("XMP", packet))

    def add_text(self, keyword: str, text: bytes, encoding: str) -> None:
        """Add a text, unless it is over the limit, which it then uses up; the first of a keyword
        counts.
        """
        if keyword in self.texts or not self.has_room(keyword, is_xmp=False):
            return
        if len(text) == len(block := self._take(_name_text(keyword), text)):
            self.texts[keyword] = block.decode(encoding, "replace")

    def charge(self, size_bytes: int) -> None:
        """Subtract bytes that were unpacked from what can still be added."""
        self._taken_bytes += min(size_bytes, self.left_bytes)

    def _take(self, what: str, block: bytes) -> bytes:
        left = self.left_bytes
        if len(block) > left:
            self.note_over_limit(what)
        self.charge(len(block))
        return block[:left]

    def add_jumbf(self, start: bytes, size: int) -> None:
        """Add a JUMBF superbox of `size` bytes by its first 48: counts if it is a C2PA manifest
        store.
        """
        if is_manifest_store(start):
            self.manifest_bytes += size


def _name_text(keyword: str) -> str:
    return f"text “{plain(keyword)[:_LONGEST_KEYWORD]}”"


def is_manifest_store(start: bytes) -> bool:
    """Whether the first 48 bytes of a JUMBF superbox are those of a C2PA manifest store."""
    header = 16 if start[:4] == b"\0\0\0\1" else 8
    return (
        start[4:8] == b"jumb"
        and start[header + 4 : header + 8] == b"jumd"
        and start[header + 8 : header + 24] == C2PA_STORE
    )
