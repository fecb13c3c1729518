"""Parse EXIF, XMP, and IPTC-IIM blocks for statements about a file's origin.

`read_exif` reads EXIF, and `read_xmp` reads XMP. `find_iptc` and `read_program` read IPTC-IIM.

Camera, software, source types, and texts in which generators write their parameters are read. Names
of people and places are never read. XMP is parsed without entities, up to a limit. From IPTC-IIM,
only the program that wrote the file is read.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from xml.parsers import expat

from ray_app.images.formats import Tiff, TiffEntry, TiffError
from ray_app.images.provenance.statement import MAX_TEXT_BYTES, UUID, parse_source_type

# CIPA DC-008 (Exif 3.0), tables 4 to 8.
_DESCRIPTION, _MAKE, _MODEL, _SOFTWARE, _ARTIST = 270, 271, 272, 305, 315
_EXIF_DIRECTORY, _TAKEN, _USER_COMMENT = 34665, 36867, 37510
_ASCII = 2
_LINE_BYTES = 2000  # The maximum for a tag that is one line.
_LINES = (_DESCRIPTION, _MAKE, _MODEL, _SOFTWARE)
# ComfyUI and its nodes write JSON behind a name into any text tag, from Model downwards:
# `prompt:{…}`, `Workflow: {…}`.
_LABEL = re.compile(r"\s*([A-Za-z_][\w .-]{0,60}?)\s*:\s*(?={|\[\s*[\[{\"])")
_LABEL_BYTES = 80
_UUID = re.compile(UUID)

# Codes of UserComment (Exif 3.0, table 9) without their padding. Some programs write none.
_CODES = {b"ASCII": "utf-8", b"UNICODE": "utf-16", b"JIS": "iso2022_jp", b"": "utf-8"}
_CODE_BYTES = 8
_GUESS_BYTES = 65_536  # The byte order is guessed from this number of bytes.

MAX_RESOURCES = 200
MAX_DATASETS = 1000
_PHOTOSHOP = b"Photoshop 3.0\0"
_IPTC = 0x0404
_PROGRAM, _VERSION = (2, 65), (2, 70)

# “<” and “=”: parsing 1 million elements and attributes takes a second. The longest histories of
# Photoshop have 100,000 elements, each with five attributes.
MAX_XMP_MARKS = 1_000_000
_MAX_ADDRESS_BYTES = 300  # Expat copies the address of a namespace into each name of it.
_MAX_ATTRIBUTES = 10_000  # In a long element, because expat cannot be stopped within an element.
_CHUNK_BYTES = 1 << 20  # An exception in a handler stops expat at the end of a chunk.
_LONG_VALUE = re.compile(
    rb"=\s*(?=\"[^\"]{%d}|'[^']{%d})" % (_MAX_ADDRESS_BYTES, _MAX_ADDRESS_BYTES)
)
_UTF_16 = {
    "utf-16-le": re.compile(rb"\xff\xfe|<\0[^\0]\0"),
    "utf-16-be": re.compile(rb"\xfe\xff|\0<\0[^\0]"),
}
_MARKUP = "<='\""
# Properties are below x:xmpmeta, rdf:RDF, and rdf:Description. Deeper properties concern other
# files.
_DEPTH = 3
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# "
_IPTC_EXTENSION = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/ "
# The second name was used until 2012.
_SOURCE_TYPES = (_IPTC_EXTENSION + "DigitalSourceType", _IPTC_EXTENSION + "DigitalSourceFileType")
_TOOL, _XMP_SOFTWARE = (
    "http://ns.adobe.com/xap/1.0/ CreatorTool",
    "http://ns.adobe.com/tiff/1.0/ Software",
)
_MANIFEST = "http://purl.org/dc/terms/ provenance"  # C2PA 2.1, §11.4: the address of a manifest.
# Properties in which generators write, by the names under which PNG has them.
_TEXTS = {
    "http://ns.adobe.com/exif/1.0/ UserComment": "parameters",
    "http://purl.org/dc/elements/1.1/ description": "Description",
    "http://ns.adobe.com/photoshop/1.0/ Credit": "Credit",
    # IPTC Photo Metadata Standard 2025.1.
    _IPTC_EXTENSION + "AISystemUsed": "AISystemUsed",
    _IPTC_EXTENSION + "AISystemVersionUsed": "AISystemVersionUsed",
    _IPTC_EXTENSION + "AIPromptInformation": "AIPromptInformation",
    "http://www.tc260.org.cn/ns/AIGC/1.0/ AIGC": "AIGC",  # GB 45438-2025.
}
_ROOT_ELEMENT, _DESCRIPTION_ELEMENT, _ITEM_ELEMENT = _RDF + "RDF", _RDF + "Description", _RDF + "li"
_READ = frozenset({*_SOURCE_TYPES, _TOOL, _XMP_SOFTWARE, _MANIFEST, *_TEXTS})
_PROPERTY_NAMES = sorted({name.rpartition(" ")[2].encode() for name in _READ})
_MAX_SOURCE_TYPES = 64
_Start = Callable[[str, Mapping[str, str]], None]


@dataclass(slots=True)
class ExifStatements:
    """The statements of an EXIF block about the origin of its file.

    Attributes:
        taken: The local time at which the photograph was taken, as EXIF writes it.
        texts: Texts in which a generator may have written its parameters, by the keyword that PNG
            uses, such as `parameters`. A text may also be a person's remark.
        is_whole: Whether all texts were read in full.
        left_bytes: The number of bytes of texts that `read_exif` may still read. It starts at
            `max_bytes` and falls with each text.
    """

    make: str = ""
    model: str = ""
    taken: str = ""
    software: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    is_whole: bool = True
    left_bytes: int = MAX_TEXT_BYTES


def read_exif(block: bytes, max_bytes: int = MAX_TEXT_BYTES) -> ExifStatements:
    """Read the statements of an EXIF block about the origin of its file.

    If the block is damaged, the statements before the damage are returned. `max_bytes` limits all
    texts together.
    """
    statements = ExifStatements(left_bytes=max_bytes)
    try:
        tiff = Tiff(block)
        tags = tiff.directory()
        for tag, entry in tags.items():
            if tag in _LINES or entry.kind == _ASCII:
                _note(statements, tag, tiff, entry)
        if _EXIF_DIRECTORY in tags:
            _read_inner(statements, tiff, tiff.read_integers(tags[_EXIF_DIRECTORY])[0])
    except (TiffError, LookupError):
        pass
    return statements


def _note(statements: ExifStatements, tag: int, tiff: Tiff, entry: TiffEntry) -> None:
    start = _decode_text(tiff.read_bytes(entry, _LABEL_BYTES))
    label = _LABEL.match(start)
    keyword = label[1] if label else "parameters" if start.lstrip().startswith("{") else ""
    text = ""
    if tag == _DESCRIPTION or (keyword and keyword not in statements.texts):
        text = _decode_text(_read_limited(statements, tiff, entry))
    if tag == _DESCRIPTION:
        statements.texts["Description"] = text
    if text and keyword:
        statements.texts.setdefault(keyword, text.partition(":")[2] if label else text)
    elif keyword:
        return
    elif tag == _MAKE:
        statements.make = _decode_text(tiff.read_bytes(entry, _LINE_BYTES))
    elif tag == _MODEL:
        statements.model = _decode_text(tiff.read_bytes(entry, _LINE_BYTES))
    elif tag == _SOFTWARE:
        statements.software = _decode_text(tiff.read_bytes(entry, _LINE_BYTES))
    elif tag == _ARTIST and _UUID.fullmatch(start):  # Any other value is the name of a person.
        statements.texts["Artist"] = start


def _read_inner(statements: ExifStatements, tiff: Tiff, offset: int) -> None:
    inner = tiff.directory(offset)
    if _TAKEN in inner:
        statements.taken = _decode_text(tiff.read_bytes(inner[_TAKEN], 32))
    if _USER_COMMENT in inner:
        _add_comment(
            statements, _decode_comment(_read_limited(statements, tiff, inner[_USER_COMMENT]))
        )


def _read_limited(statements: ExifStatements, tiff: Tiff, entry: TiffEntry) -> bytes:
    """Read a text up to the bytes that are left for all texts.

    Many tags may refer to the same bytes.
    """
    value = tiff.read_bytes(entry, statements.left_bytes + 1)
    statements.is_whole &= len(value) <= statements.left_bytes
    value = value[: statements.left_bytes]
    statements.left_bytes -= len(value)
    return value


def _add_comment(statements: ExifStatements, comment: str) -> None:
    label = _LABEL.match(comment[:_LABEL_BYTES])
    if label is not None:
        statements.texts.setdefault(label[1], comment.partition(":")[2])
    else:
        statements.texts["parameters"] = comment


def _decode_comment(data: bytes) -> str:
    """Decode a UserComment.

    Its first eight bytes are dropped only if they are the code of a character set.
    """
    code = data[:_CODE_BYTES].rstrip(b"\0 ").upper()
    encoding, text = (_CODES[code], data[_CODE_BYTES:]) if code in _CODES else ("utf-8", data)
    start = text[:_GUESS_BYTES].rstrip(b"\0")
    if start.count(0) * 4 > len(start) or start.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"  # The code may be wrong.
    elif encoding == "utf-16" and _is_utf_8(text):
        encoding = "utf-8"
    return text.decode(
        _guess_byte_order(start) if encoding == "utf-16" else encoding, "replace"
    ).strip("\0\ufeff")


def _guess_byte_order(start: bytes) -> str:
    # The standard leaves the byte order open. Latin letters have a zero byte before them in
    # big-endian order, and after them in little-endian order.
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    return "utf-16-be" if start[::2].count(0) >= start[1::2].count(0) else "utf-16-le"


def _is_utf_8(text: bytes) -> bool:
    try:
        return "\0" not in text.decode()
    except UnicodeDecodeError:
        return False


def _decode_text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "replace")


def find_iptc(segment: bytes) -> bytes:
    """Return the IPTC-IIM records in a JPEG segment with Photoshop's image resources.

    The result is empty if the segment has none.
    """
    if not segment.startswith(_PHOTOSHOP):
        return b""
    position = len(_PHOTOSHOP)
    for _ in range(MAX_RESOURCES):
        if segment[position : position + 4] != b"8BIM" or position + 12 > len(segment):
            break
        name = segment[position + 6] + 1
        start = position + 6 + name + (name & 1) + 4
        size = int.from_bytes(segment[start - 4 : start], "big")
        if int.from_bytes(segment[position + 4 : position + 6], "big") == _IPTC:
            return segment[start : start + size]
        position = start + size + (size & 1)
    return b""


def read_program(records: bytes) -> str:
    """Return the program and its version from records of `find_iptc`, "" if not stated."""
    statements: dict[tuple[int, int], str] = {}
    position = 0
    for _ in range(MAX_DATASETS):
        size = int.from_bytes(records[position + 3 : position + 5], "big")
        if (
            records[position : position + 1] != b"\x1c"
            or size & 0x8000
            or position + 5 + size > len(records)
        ):
            break
        kind = (records[position + 1], records[position + 2])
        if kind in (_PROGRAM, _VERSION):
            statements.setdefault(
                kind, records[position + 5 : position + 5 + size].decode("utf-8", "replace")
            )
        position += 5 + size
    return (
        f"{statements[_PROGRAM]} {statements.get(_VERSION, '')}" if _PROGRAM in statements else ""
    )


@dataclass(slots=True)
class XmpStatements:
    """The statements of XMP packets about the origin of their file.

    Attributes:
        tool: The program that created the image.
        software: The program that wrote the file.
        source_types: The digital source types as codes of IPTC, without the address of the
            vocabulary.
        remote_manifest: Whether the packets name a C2PA manifest that is stored elsewhere.
        texts: Texts in which a generator may have written its parameters, by the keyword that PNG
            uses, such as `parameters`.
        is_whole: Whether all packets were read.
    """

    tool: str = ""
    software: str = ""
    source_types: list[str] = field(default_factory=list)
    remote_manifest: bool = False
    texts: dict[str, str] = field(default_factory=dict)
    is_whole: bool = True


class _StopParsing(Exception):  # noqa: N818 - it signals an end, not an error
    """Raised to leave the remaining packet unread."""


def read_xmp(packets: Iterable[bytes]) -> XmpStatements:
    """Read the statements of XMP packets about the origin of their file.

    If a packet is not valid XML, the statements before the error are returned.
    """
    statements = XmpStatements()
    for packet in packets:
        encoding = next((name for name, start in _UTF_16.items() if start.match(packet)), None)
        text = packet.decode(encoding, "replace").encode() if encoding else packet
        if text.isascii() and not any(name in text for name in _PROPERTY_NAMES):
            # A depth map may have megabytes, and parsing takes longer than searching a few names.
            continue
        # An unknown encoding raises ValueError or LookupError.
        with suppress(expat.ExpatError, _StopParsing, ValueError, LookupError):
            _Properties(statements).parse(text, "utf-8" if encoding else None)
    return statements


def _has_long_address(packet: bytes) -> bool:
    """Return whether a namespace has, or may have, an address over the limit.

    It may have one if the name before the address is too long to be read completely.
    """
    for value in _LONG_VALUE.finditer(packet):
        name = packet[max(value.start() - _MAX_ADDRESS_BYTES, 0) : value.start()].split()[-1:]
        if not name or name[0].startswith(b"xmlns") or len(name[0]) == _MAX_ADDRESS_BYTES:
            return True
    return False


def _split_packet(packet: bytes) -> Iterator[bytes]:
    """Split a packet at starts of elements, so that expat reads no start of an element twice."""
    position = 0
    while position < len(packet):
        end = packet.find(b"<", position + _CHUNK_BYTES)
        yield packet[position : end if end >= 0 else len(packet)]
        position = end if end >= 0 else len(packet)


class _Properties:
    """Reads the properties of rdf:Description elements, as attributes and as elements.

    All other elements are skipped quickly. The handlers change during the parse: outside of
    descriptions, in a description, in a property that is read, and in a property that is skipped.
    """

    def __init__(self, statements: XmpStatements) -> None:
        self._statements = statements
        self._path: list[str] = []  # The path to a description.
        self._depth = 0  # The depth within a property.
        self._property, self._text = "", list[str]()
        self._mark_count = 0  # In the chunks so far.

    def parse(self, packet: bytes, encoding: str | None) -> None:
        packet = packet.strip(b"\0")
        self._parser = expat.ParserCreate(encoding, " ")
        self._parser.XmlDeclHandler = self._check_encoding
        self._parser.StartDoctypeDeclHandler = self._reject_dtd
        self._parser.buffer_text = True
        self._handle(self._start_outside, self._end_outside)
        try:
            if len(packet) > _CHUNK_BYTES // 16 and _has_long_address(packet):
                self._stop()
            for chunk in _split_packet(packet):
                self._mark_count += chunk.count(b"<") + chunk.count(b"=")
                if (
                    self._mark_count > MAX_XMP_MARKS
                    or chunk.count(b"=", _CHUNK_BYTES) > _MAX_ATTRIBUTES
                ):
                    self._stop()
                self._parser.Parse(chunk, False)
            self._parser.Parse(b"", True)
        finally:
            # The parser refers to this object, so both would wait for a garbage collection.
            del self._parser

    def _reject_dtd(self, *_: object) -> None:
        raise _StopParsing  # XMP never has a DTD, and entity bombs need one.

    def _check_encoding(self, _: str, encoding: str | None, __: int) -> None:
        if (
            encoding
            and not encoding.casefold().startswith("utf")
            and _MARKUP.encode(encoding) != _MARKUP.encode()
        ):
            raise _StopParsing  # The limits are checked in bytes of ASCII.

    def _handle(
        self, start: _Start, end: Callable[[str], None], write: Callable[[str], None] | None = None
    ) -> None:
        (
            self._parser.StartElementHandler,
            self._parser.EndElementHandler,
            self._parser.CharacterDataHandler,
        ) = start, end, write

    def _stop(self) -> None:
        self._statements.is_whole = False
        raise _StopParsing

    def _start_outside(self, name: str, attributes: Mapping[str, str]) -> None:
        self._path.append(name)
        if (
            name == _DESCRIPTION_ELEMENT
            and 2 <= len(self._path) <= _DEPTH
            and self._path[-2] == _ROOT_ELEMENT
        ):
            for key, value in attributes.items():
                self._note(key, value)
            self._handle(self._start_property, self._end_description)

    def _end_outside(self, _: str) -> None:
        self._path.pop()

    def _end_description(self, _: str) -> None:
        self._path.pop()
        self._handle(self._start_outside, self._end_outside)

    def _start_property(self, name: str, attributes: Mapping[str, str]) -> None:
        self._depth = 1
        if name in _READ:
            self._property, self._text = name, []
            self._note(name, attributes.get(_RDF + "resource", ""))
            self._handle(self._start_inner, self._end_inner, self._text.append)
        else:
            self._handle(self._start_inner, self._end_unread)

    def _start_inner(self, *_: object) -> None:
        self._depth += 1

    def _end_inner(self, name: str) -> None:
        """Add the text of an rdf:Bag and its items to the text of the property."""
        self._depth -= 1
        if name == _ITEM_ELEMENT:
            self._text.append("\n")
        elif not self._depth:
            self._note(self._property, "".join(self._text))
            self._handle(self._start_property, self._end_description)

    def _end_unread(self, _: str) -> None:
        self._depth -= 1
        if not self._depth:
            self._handle(self._start_property, self._end_description)

    def _note(self, name: str, value: str) -> None:
        statements = self._statements
        if name in _SOURCE_TYPES:
            remaining = _MAX_SOURCE_TYPES - len(statements.source_types)
            statements.source_types += filter(
                None, map(parse_source_type, value.split("\n")[:remaining])
            )
        elif name == _TOOL:
            statements.tool = statements.tool or value.strip()
        elif name == _XMP_SOFTWARE:
            statements.software = statements.software or value.strip()
        elif name == _MANIFEST and value.strip().startswith(("http://", "https://")):
            statements.remote_manifest = True
        elif name in _TEXTS and value.strip():
            statements.texts.setdefault(_TEXTS[name], value.strip())
