"""Metadata blocks of each container format: `locate` them in JPEG, PNG, WebP, GIF, TIFF, AVIF and HEIC; `coded_items` of the last two.

By the structure of the container, within limits; nothing is decoded but compressed texts of PNG, up to a limit.
"""

import zlib
from collections.abc import Callable

from ray_app.images import jpeg
from ray_app.images.boxes import XMP_ITEM, BmffBox, boxes, items_in
from ray_app.images.formats import Tiff, TiffError, gif_blocks
from ray_app.images.provenance import metadata
from ray_app.images.provenance.statement import MOST_BYTES, MOST_TEXTS, MetadataBlocks

MOST_SEGMENTS = 4000  # a manifest of 8 MiB takes 128; a hostile file could hold millions of empty ones
_XMP, _EXTENDED = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_APP1, _APP11, _APP13, _COMMENT = 0xE1, 0xEB, 0xED, 0xFE
_JUMBF_HEADER = 8  # "JP", box instance (2), packet number (4): ISO 19566-5, annex D

MOST_CHUNKS = 10_000  # 32 MiB of pixels in libpng's usual 8 KiB pieces are 4,096
MOST_INFLATED = 2**20  # of all texts together
_XMP_KEYWORD = "XML:com.adobe.xmp"

MOST_BLOCKS = 10_000  # of a GIF, of at most 255 bytes each: 2.5 MB of frames
_COMMENT_LABEL, _APPLICATION = 0xFE, 0xFF

# C2PA 2.1, annex A.5.1.
_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_PURPOSE = b"manifest\0"

_XMP_TAG, _IPTC, _C2PA = 700, 33723, 52545

NOTHING = MetadataBlocks()  # of a file that says nothing of its origin


def locate(data: bytes, format_name: str | None) -> MetadataBlocks:
    """The metadata of a sniffed format (see `images.formats`): total on any bytes, in bounded time, never raises."""
    walker = _WALKERS.get(format_name or "")
    return MetadataBlocks() if walker is None else walker(data)


# Segments up to the first scan: EXIF and XMP (APP1), C2PA (APP11), IPTC (APP13), comment.
def find_in_jpeg(data: bytes) -> MetadataBlocks:
    """The metadata of a JPEG."""
    found = MetadataBlocks()
    extended: _Extended | None = None
    for marker, body, _, end in jpeg.segments(data, MOST_SEGMENTS):
        if marker == jpeg.SOS or end > len(data):
            break
        body = body[2:]
        if marker == _APP1 and body.startswith(_EXTENDED):
            extended = extended or _Extended()
            extended.add(body[len(_EXTENDED) :])
        elif marker in (_APP1, _APP11, _APP13, _COMMENT):
            _take_segment(found, marker, body)
    if extended is not None and (packet := extended.packet()):
        found.add_xmp(packet)
    return found


def _take_segment(found: MetadataBlocks, marker: int, body: bytes) -> None:
    if marker == _APP1:
        if body.startswith(b"Exif\0"):
            found.add_exif(body)
        elif body.startswith(_XMP):
            found.add_xmp(body[len(_XMP) :])
    elif marker == _APP11 and body.startswith(b"JP"):
        if body[4:8] == b"\0\0\0\1":
            found.add_jumbf(body[_JUMBF_HEADER : _JUMBF_HEADER + 48], len(body) - _JUMBF_HEADER)
        elif found.manifest_bytes:
            found.manifest_bytes += len(body) - _JUMBF_HEADER
    elif marker == _APP13 and not found.iptc:
        found.iptc = metadata.resource(body) or b"\0"  # a second one is not searched: there may be thousands
    elif marker == _COMMENT and "comment" not in found.texts:
        found.add_text("comment", body.decode("utf-8", "replace"))


class _Extended:
    """XMP that did not fit one segment: pieces with a digest, the full length and their offset (XMP part 3, §1.1.3.1)."""

    def __init__(self) -> None:
        self._digest, self._packet, self._missing = b"", bytearray(), 0

    def add(self, piece: bytes) -> None:
        digest, body = piece[:32], piece[40:]
        full, offset = int.from_bytes(piece[32:36], "big"), int.from_bytes(piece[36:40], "big")
        if not self._digest and full <= MOST_BYTES:
            self._digest, self._packet, self._missing = digest, bytearray(full), full
        if digest == self._digest and offset + len(body) <= len(self._packet):
            self._packet[offset : offset + len(body)] = body
            self._missing -= len(body)

    def packet(self) -> bytes:
        return bytes(self._packet) if self._missing == 0 else b""


# Chunks: text (tEXt, zTXt, iTXt with XMP), eXIf, and C2PA's caBX.
def find_in_png(data: bytes) -> MetadataBlocks:
    """The metadata of a PNG."""
    found, budget, texts = MetadataBlocks(), MOST_INFLATED, 0
    at = 8
    for _ in range(MOST_CHUNKS):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        start = at + 8
        at = start + size + 4
        if at > len(data) or kind == b"IEND":
            break
        if kind == b"IDAT":
            continue
        if kind == b"eXIf":
            found.add_exif(data[start : start + min(size, MOST_BYTES)])
        elif kind == b"caBX":
            found.add_jumbf(data[start : start + 48], size)
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and size <= MOST_INFLATED and texts < MOST_TEXTS:
            texts += 1
            budget -= _add_text(found, kind, data[start : start + size], min(budget, MOST_BYTES + 1))
            if budget <= 0:
                break
    return found


def _add_text(found: MetadataBlocks, kind: bytes, body: bytes, most: int) -> int:
    """Bytes of text, inflated where they are compressed."""
    keyword, _, rest = body.partition(b"\0")
    is_compressed = kind == b"zTXt"
    if kind == b"zTXt":
        rest = rest[1:]  # the method
    elif kind == b"iTXt":
        is_compressed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # flag and method, language, translated keyword
    text = _inflated(rest, most) if is_compressed else rest[:most]
    name = keyword[:79].decode("latin-1")
    if kind == b"iTXt" and name == _XMP_KEYWORD:
        found.add_xmp(text)
    elif len(text) <= MOST_BYTES:
        found.add_text(name, text.decode("utf-8" if kind == b"iTXt" else "latin-1", "replace"))
    return len(text)


def _inflated(data: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error:
        return b""


def find_in_webp(data: bytes) -> MetadataBlocks:
    """The metadata of a WebP."""
    found = MetadataBlocks()
    at = 12
    for _ in range(MOST_CHUNKS):
        if at + 8 > len(data):
            break
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        start = at + 8
        at = start + size + (size & 1)
        if start + size > len(data):
            break
        if kind == b"EXIF":
            found.add_exif(data[start : start + min(size, MOST_BYTES)])
        elif kind == b"XMP " and size <= MOST_BYTES:
            found.add_xmp(data[start : start + size])
        elif kind == b"C2PA":
            found.add_jumbf(data[start : start + 48], size)
    return found


# Extensions before the first frame and after it as far as the limit goes: comment, XMP, C2PA.
def find_in_gif(data: bytes) -> MetadataBlocks:
    """The metadata of a GIF."""
    found = MetadataBlocks()
    for is_image, label, start, end in gif_blocks(data, MOST_BLOCKS):
        if not is_image and end is not None:
            _take_extension(found, data, label, start, end)
    return found


def _take_extension(found: MetadataBlocks, data: bytes, label: int, start: int, end: int) -> None:
    if label == _COMMENT_LABEL and end - start <= MOST_BYTES:
        found.add_text("comment", _joined(data, start, end).decode("utf-8", "replace"))
    elif label == _APPLICATION and data[start] == 11:
        name, body = data[start + 1 : start + 12], start + 12
        if name == b"XMP DataXMP" and end - body <= MOST_BYTES:
            # The packet is not cut into blocks: its letters are read as lengths, and a run-out of 257 bytes ends any such reading.
            packet = data[body:end]
            found.add_xmp(packet[: packet.rfind(b">") + 1])
        elif name.startswith(b"C2PA_GIF"):
            found.add_jumbf(data[body + 1 : body + 49], end - body)


def _joined(data: bytes, at: int, end: int) -> bytes:
    pieces = []
    while at < end:
        pieces.append(data[at + 1 : at + 1 + data[at]])
        at += data[at] + 1
    return b"".join(pieces)


# Items of AVIF and HEIC (`meta` box, ISO 14496-12 §8.11): coded pictures, EXIF and XMP; and C2PA in a `uuid` box.
def find_in_boxes(data: bytes) -> MetadataBlocks:
    """The metadata of an AVIF or HEIC."""
    found, items = MetadataBlocks(), False
    for box in boxes(data, 0, len(data)):
        if box.kind == b"meta" and not items:
            items = True  # a file has one; a hostile one could have a thousand, each full of items
            _take_items(found, data, box)
        elif box.kind == b"uuid" and data[box.start : box.start + 16] == _C2PA_BOX:
            store = box.start + 20 + len(_PURPOSE) + 8  # version and flags, purpose, offset of a Merkle tree
            if data[box.start + 20 : box.start + 20 + len(_PURPOSE)] == _PURPOSE:
                found.add_jumbf(data[store : store + 48], box.end - store)
        elif box.kind == b"jumb":
            found.add_jumbf(data[box.start - 8 : box.start + 40], box.end - box.start + 8)
    return found


def _take_items(found: MetadataBlocks, data: bytes, meta: BmffBox) -> None:
    for kind, start, size in items_in(data, meta):
        if size > MOST_BYTES:
            continue
        block = data[start : start + size]
        if kind == b"Exif":
            found.add_exif(block[4 + int.from_bytes(block[:4], "big") :])  # an offset to the TIFF header comes first
        elif kind == XMP_ITEM:
            found.add_xmp(block)


# A TIFF file is an EXIF block itself, and holds XMP, IPTC and C2PA as values of tags.
def find_in_tiff(data: bytes) -> MetadataBlocks:
    """The metadata of a TIFF's first page."""
    found = MetadataBlocks()
    try:
        tiff = Tiff(data)
        tags = tiff.directory()
    except TiffError:
        return found
    found.exif = data
    if _XMP_TAG in tags:
        found.add_xmp(tiff.octets(tags[_XMP_TAG], MOST_BYTES + 1))
    if _IPTC in tags:
        found.iptc = tiff.octets(tags[_IPTC], MOST_BYTES)
    if _C2PA in tags:
        found.add_jumbf(tiff.octets(tags[_C2PA], 48), tags[_C2PA].number)
    return found


_WALKERS: dict[str, Callable[[bytes], MetadataBlocks]] = {
    "JPEG": find_in_jpeg,
    "PNG": find_in_png,
    "WEBP": find_in_webp,
    "GIF": find_in_gif,
    "TIFF": find_in_tiff,
    "AVIF": find_in_boxes,
    "HEIC": find_in_boxes,
}
