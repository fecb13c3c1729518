"""Parsers of EXIF (`read_exif`), XMP (`read_xmp`) and IPTC-IIM (`resource`, `program`), for what they state about origin alone.

Camera, software, source types, and texts in which generators write their parameters: never names, never places. XMP is parsed without
entities, up to a limit; of IPTC-IIM only the program that made the file is read.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from xml.parsers import expat

from ray_app.images.formats import Tiff, TiffEntry, TiffError
from ray_app.images.provenance.statement import MOST_BYTES

# CIPA DC-008 (Exif 3.0), tables 4 to 8.
_DESCRIPTION, _MAKE, _MODEL, _SOFTWARE = 270, 271, 272, 305
_EXIF_DIRECTORY, _TAKEN, _USER_COMMENT = 34665, 36867, 37510
_LINE_BYTES = 2000  # of a tag that is one line
_GRAPHS = ("prompt:{", "workflow:{")  # ComfyUI's, in any text tag of a WebP

MOST_RESOURCES = 200
MOST_DATASETS = 1000
_PHOTOSHOP = b"Photoshop 3.0\0"
_IPTC = 0x0404
_PROGRAM, _VERSION = (2, 65), (2, 70)

MOST_ELEMENTS = 5000
_DEPTH = 3  # x:xmpmeta, rdf:RDF, rdf:Description: a property stands below them; deeper ones speak of other files
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# "
_SOURCE_TYPE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/ DigitalSourceType"
_TOOL = "http://ns.adobe.com/xap/1.0/ CreatorTool"
_MANIFEST = "http://purl.org/dc/terms/ provenance"  # C2PA 2.1, §11.4: where a manifest lies
_VOCABULARIES = ("cv.iptc.org/newscodes/digitalsourcetype/", "c2pa.org/digitalsourcetype/")


@dataclass(slots=True)
class ExifStatements:
    """`texts`: what may be a generator's, by PNG's keywords; a person's remark is read for nothing else."""

    make: str = ""
    model: str = ""
    taken: str = ""
    software: str = ""
    texts: dict[str, str] = field(default_factory=dict)


def read_exif(block: bytes) -> ExifStatements:
    """What an EXIF block says; one bad pointer costs what lies behind it, not what was read before."""
    statements = ExifStatements()
    try:
        tiff = Tiff(block)
        tags = tiff.directory()
        for tag in (_MAKE, _MODEL, _DESCRIPTION):
            if tag in tags:
                _note(statements, tag, tiff, tags[tag])
        if _SOFTWARE in tags:
            statements.software = _text(tiff.octets(tags[_SOFTWARE], _LINE_BYTES))
        if _EXIF_DIRECTORY in tags:
            _read_inner(statements, tiff, tiff.integers(tags[_EXIF_DIRECTORY])[0])
    except (TiffError, LookupError):
        pass
    return statements


def _note(statements: ExifStatements, tag: int, tiff: Tiff, entry: TiffEntry) -> None:
    text = _text(tiff.octets(entry, MOST_BYTES))
    if text.startswith(_GRAPHS):
        name, _, graph = text.partition(":")
        statements.texts[name] = graph
    elif tag == _MAKE:
        statements.make = text
    elif tag == _MODEL:
        statements.model = text
    else:
        statements.texts["Description"] = text


def _read_inner(statements: ExifStatements, tiff: Tiff, offset: int) -> None:
    inner = tiff.directory(offset)
    if _TAKEN in inner:
        statements.taken = _text(tiff.octets(inner[_TAKEN], 32))
    if _USER_COMMENT in inner:
        statements.texts["parameters"] = _comment(tiff.octets(inner[_USER_COMMENT], MOST_BYTES))


def _comment(octets: bytes) -> str:
    code, text = octets[:8], octets[8:]
    if code != b"UNICODE\0":
        return text.decode("utf-8", "replace")
    # The standard leaves the byte order open: in the right one, Latin letters have a zero before or after them.
    return text.decode("utf-16-be" if text[::2].count(0) >= text[1::2].count(0) else "utf-16-le", "replace")


def _text(octets: bytes) -> str:
    return octets.partition(b"\0")[0].decode("utf-8", "replace")


def resource(segment: bytes) -> bytes:
    """The IPTC records in a segment of Photoshop's image resources; empty where there are none."""
    if not segment.startswith(_PHOTOSHOP):
        return b""
    at = len(_PHOTOSHOP)
    for _ in range(MOST_RESOURCES):
        if segment[at : at + 4] != b"8BIM" or at + 12 > len(segment):
            break
        name = segment[at + 6] + 1
        start = at + 6 + name + (name & 1) + 4
        size = int.from_bytes(segment[start - 4 : start], "big")
        if int.from_bytes(segment[at + 4 : at + 6], "big") == _IPTC:
            return segment[start : start + size]
        at = start + size + (size & 1)
    return b""


def program(records: bytes) -> str:
    """The originating program and its version; empty where they are not stated."""
    statements: dict[tuple[int, int], str] = {}
    at = 0
    for _ in range(MOST_DATASETS):
        size = int.from_bytes(records[at + 3 : at + 5], "big")
        if records[at : at + 1] != b"\x1c" or size & 0x8000 or at + 5 + size > len(records):
            break
        kind = (records[at + 1], records[at + 2])
        if kind in (_PROGRAM, _VERSION):
            statements.setdefault(kind, records[at + 5 : at + 5 + size].decode("utf-8", "replace"))
        at += 5 + size
    return f"{statements[_PROGRAM]} {statements.get(_VERSION, '')}" if _PROGRAM in statements else ""


@dataclass(slots=True)
class XmpStatements:
    """`source_types`: IPTC's codes, without their address."""

    tool: str = ""
    source_types: list[str] = field(default_factory=list)
    remote_manifest: bool = False


class _Enough(Exception):  # noqa: N818 - an end, not a fault
    """What follows is not read."""


def read_xmp(packets: Iterable[bytes]) -> XmpStatements:
    """What the packets say; of one that is no XML, what stands before the fault."""
    statements = XmpStatements()
    for packet in packets:
        with suppress(expat.ExpatError, _Enough, ValueError, LookupError):  # the last two: an unknown encoding
            _Properties(statements).parse(packet)
    return statements


def source_type(value: str) -> str:
    """The code in an address of a vocabulary of source types, or a bare code; empty for anything else."""
    code = value.strip()
    for vocabulary in _VOCABULARIES:
        code = code.removeprefix("http://" + vocabulary).removeprefix("https://" + vocabulary)
    return code if code.isascii() and code.isalpha() and len(code) <= 60 else ""


class _Properties:
    """The properties of rdf:Description elements, as attributes and as elements."""

    def __init__(self, statements: XmpStatements) -> None:
        self._statements = statements
        self._path: list[str] = []
        self._elements = 0
        self._text: list[str] = []

    def parse(self, packet: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = self._start, self._end, self._write
        parser.buffer_text = True
        parser.Parse(packet.strip(b"\0"), True)

    def _refuse(self, *_: object) -> None:
        raise _Enough  # no XMP has a DTD, and entities are what bombs are made of

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._elements += 1
        if self._elements > MOST_ELEMENTS:
            raise _Enough
        self._path.append(name)
        if self._is_description(self._path):
            for key, value in attributes.items():
                self._note(key, value)
        elif self._is_description(self._path[:-1]):
            self._text = []
            self._note(name, attributes.get(_RDF + "resource", ""))

    def _end(self, name: str) -> None:
        self._path.pop()
        if self._text and self._is_description(self._path):
            self._note(name, "".join(self._text))
            self._text = []

    def _write(self, text: str) -> None:
        # Also inside rdf:Bag and rdf:li of a property: their text is the property's.
        if len(self._path) > 2 and len(self._text) < 16:
            self._text.append(text[:2000])

    @staticmethod
    def _is_description(path: list[str]) -> bool:
        return 2 <= len(path) <= _DEPTH and path[-1] == _RDF + "Description" and path[-2] == _RDF + "RDF"

    def _note(self, name: str, value: str) -> None:
        if name == _SOURCE_TYPE and (code := source_type(value)):
            self._statements.source_types.append(code)
        elif name == _TOOL:
            self._statements.tool = self._statements.tool or value.strip()
        elif name == _MANIFEST and value.strip().startswith(("http://", "https://")):
            self._statements.remote_manifest = True
