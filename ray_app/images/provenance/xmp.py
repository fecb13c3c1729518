"""XMP packets → the three properties that speak of origin. A parser that knows no entities, and stops where a packet gets large."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from xml.parsers import expat

MOST_ELEMENTS = 5000
_DEPTH = 3  # x:xmpmeta, rdf:RDF, rdf:Description: a property stands below them; deeper ones speak of other files
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# "
_SOURCE_TYPE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/ DigitalSourceType"
_TOOL = "http://ns.adobe.com/xap/1.0/ CreatorTool"
_MANIFEST = "http://purl.org/dc/terms/ provenance"  # C2PA 2.1, §11.4: where a manifest lies
_VOCABULARIES = ("cv.iptc.org/newscodes/digitalsourcetype/", "c2pa.org/digitalsourcetype/")


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
    said = XmpStatements()
    for packet in packets:
        with suppress(expat.ExpatError, _Enough, ValueError, LookupError):  # the last two: an encoding that nobody has
            _Properties(said).parse(packet)
    return said


def source_type(value: str) -> str:
    """The code in an address of a vocabulary of source types, or a bare code; empty for anything else."""
    code = value.strip()
    for vocabulary in _VOCABULARIES:
        code = code.removeprefix("http://" + vocabulary).removeprefix("https://" + vocabulary)
    return code if code.isascii() and code.isalpha() and len(code) <= 60 else ""


class _Properties:
    """The properties of rdf:Description elements, as attributes and as elements."""

    def __init__(self, said: XmpStatements) -> None:
        self._said = said
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
            self._said.source_types.append(code)
        elif name == _TOOL:
            self._said.tool = self._said.tool or value.strip()
        elif name == _MANIFEST and value.strip().startswith(("http://", "https://")):
            self._said.remote_manifest = True
