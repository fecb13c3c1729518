"""What a file says of its own origin: camera, software, prompt, declared source. Anybody can write or remove that; none is verified.

Reads the bytes and what the decoder already read beside the pixels; decodes nothing. Never reads names of people or places.
"""

import html
import re
from collections.abc import Mapping
from typing import Any

from ray_app.images.sniff import sniff_format
from ray_app.images.tiff import Tiff, TiffError

MOST_CHARACTERS = 300  # of one value; a prompt is recognised by its start
MOST_BYTES = 256 * 1024  # read of EXIF or XMP: a JPEG segment holds 64 KiB, and a hostile one could make many of them
MOST_SOURCE_TYPES = 4

# CIPA DC-008 (Exif 3.0), table 4 to 8.
_FIRST_TAGS = {"make": 271, "model": 272, "software": 305}
_EXIF_DIRECTORY, _TAKEN, _USER_COMMENT = 34665, 36867, 37510

# The PNG text that Stable Diffusion's web interface, ComfyUI and NovelAI write, by our name for it.
_TEXTS = {"parameters": "parameters", "prompt": "prompt", "workflow": "workflow", "description": "Description", "comment": "Comment"}
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")
_CREATOR_TOOL = re.compile(rb"""CreatorTool(?:\s*=\s*["']([^"'<>]{1,1200})["']|>([^<>]{1,1200})<)""")

# https://cv.iptc.org/newscodes/digitalsourcetype: stands in XMP and, in the clear, in C2PA's assertions.
_SOURCE_TYPE = b"iptc.org/newscodes/digitalsourcetype/"
_NAME = re.compile(rb"[A-Za-z]{1,60}")

# The UUID that opens a C2PA manifest store in any container (C2PA 2.1, §11.1.4: "c2pa", then ISO 19566-5's suffix).
_C2PA = b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"

KEYS = ("make", "model", "software", "taken", *_TEXTS, "creator_tool", "digital_source_type", "c2pa")


def origin_of(data: bytes, beside: Mapping[Any, Any]) -> dict[str, str]:
    """Claims of an encoded file about its origin, by names from KEYS: each one printable line of at most 300 characters.

    `beside` is `DecodedImage.beside` of the same file. Malformed metadata is left out; nothing is ever raised for it.
    """
    exif = data if sniff_format(data) == "TIFF" else _exif_block(beside)
    claims = _of_texts(beside) | _of_exif(exif) | _of_bytes(data, _xmp(beside))
    cleaned = {key: plain(claims[key]) for key in KEYS if key in claims}
    return {key: value for key, value in cleaned.items() if value}


def plain(text: str) -> str:
    """One line without controls, bidirectional ones included, of at most 300 characters."""
    start = text[: 4 * MOST_CHARACTERS]
    return " ".join("".join(letter if letter.isprintable() else " " for letter in start).split())[:MOST_CHARACTERS].rstrip()


def _exif_block(beside: Mapping[Any, Any]) -> bytes:
    block = beside.get("exif")
    return block[:MOST_BYTES].removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0") if isinstance(block, bytes) else b""


def _of_exif(block: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    # One bad pointer costs what lies behind it, not what was read before.
    try:
        tiff = Tiff(block)
        tags = tiff.first_directory()
        found = {name: _ascii(tiff.octets(tags[tag], MOST_BYTES)) for name, tag in _FIRST_TAGS.items() if tag in tags}
        inner = tiff.directory(tiff.integers(tags[_EXIF_DIRECTORY])[0])
        if _TAKEN in inner:
            found["taken"] = _ascii(tiff.octets(inner[_TAKEN], 32))
        if _USER_COMMENT in inner:
            found |= _of_user_comment(tiff.octets(inner[_USER_COMMENT], MOST_BYTES))
    except (TiffError, LookupError):
        pass
    return found


def _of_user_comment(comment: bytes) -> dict[str, str]:
    """Generation parameters, which JPEG and WebP files keep where people write remarks; a person's remark is nobody's business."""
    code, text = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        # The standard leaves the byte order open: in the right one, Latin letters have a zero before or after them.
        words = text.decode("utf-16-be" if text[::2].count(0) >= text[1::2].count(0) else "utf-16-le", "replace")
    else:
        words = text.decode("utf-8", "replace")
    return {"parameters": words} if "Steps: " in words and "Sampler: " in words else {}


def _of_texts(beside: Mapping[Any, Any]) -> dict[str, str]:
    texts = {name: beside.get(key) for name, key in (_TEXTS | {"software": "Software"}).items()}
    return {name: str(text) for name, text in texts.items() if isinstance(text, str)}


def _xmp(beside: Mapping[Any, Any]) -> bytes:
    for packet in map(beside.get, _XMP_KEYS):
        if isinstance(packet, bytes | str) and packet:
            start = packet[:MOST_BYTES]
            return start.encode("utf-8", "replace") if isinstance(start, str) else start
    return b""


def _of_bytes(data: bytes, xmp: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    if tool := _CREATOR_TOOL.search(xmp):
        found["creator_tool"] = html.unescape((tool[1] or tool[2]).decode("utf-8", "replace"))
    if types := dict.fromkeys(_source_types(xmp) + _source_types(data)):
        found["digital_source_type"] = ", ".join(list(types)[:MOST_SOURCE_TYPES])
    if _C2PA in data:
        found["c2pa"] = "manifest present, not verified"
    return found


def _source_types(text: bytes) -> list[str]:
    types: list[str] = []
    at = text.find(_SOURCE_TYPE)
    while at >= 0 and len(types) < MOST_SOURCE_TYPES:
        at += len(_SOURCE_TYPE)
        if name := _NAME.match(text, at):
            types.append(name[0].decode("ascii"))
        at = text.find(_SOURCE_TYPE, at)
    return types


def _ascii(octets: bytes) -> str:
    return octets.partition(b"\0")[0].decode("utf-8", "replace")
