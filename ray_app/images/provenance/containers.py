"""Metadata blocks of each container format: `locate` them in JPEG, PNG, WebP, GIF, TIFF, AVIF and
HEIC; `coded_items` of the last two.

By the structure of the container, within limits; nothing is decoded but compressed texts of PNG.
What is over a limit is noted as unread.
"""

import itertools
from collections.abc import Callable

from ray_app.images import jpeg, png
from ray_app.images.boxes import XMP_ITEM, BmffBox, boxes, items_in
from ray_app.images.formats import Tiff, TiffError, gif_blocks
from ray_app.images.provenance import metadata
from ray_app.images.provenance.statement import MAX_TEXT_BYTES, MetadataBlocks

# a manifest of 8 MiB takes 128; a hostile file could hold millions of empty ones
MOST_SEGMENTS = 4000
_XMP, _EXTENDED = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_APP1, _APP11, _APP13, _COMMENT = 0xE1, 0xEB, 0xED, 0xFE
_JUMBF_HEADER = 8  # "JP", box instance (2), packet number (4): ISO 19566-5, annex D

MOST_CHUNKS = 200_000  # of a PNG: 512 MiB of pixels in libpng's usual 8 KiB pieces are 65,536
MOST_RIFF_CHUNKS = 10_000  # of a WebP, which has one for each frame
_XMP_KEYWORD = b"XML:com.adobe.xmp"

MOST_BLOCKS = 200_000  # of a GIF, of at most 255 bytes each: 51 MB of frames and texts
_COMMENT_LABEL, _APPLICATION = 0xFE, 0xFF

# C2PA 2.1, annex A.5.1.
_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_PURPOSE = b"manifest\0"

_XMP_TAG, _IPTC, _C2PA = 700, 33723, 52545
_MOST_IPTC_BYTES = 256 * 1024

NOTHING = MetadataBlocks()  # of a file that says nothing of its origin


def locate(data: bytes, format_name: str | None, max_bytes: int = MAX_TEXT_BYTES) -> MetadataBlocks:
    """Find the metadata of a sniffed format (see `images.formats`), up to `max_bytes`: of any
    bytes, in bounded time, never raises.
    """
    found = MetadataBlocks(max_bytes=max_bytes)
    if format_name in _WALKERS:
        _WALKERS[format_name](data, found)
    return found


# Segments up to the first scan: EXIF and XMP (APP1), C2PA (APP11), IPTC (APP13), comment.
def _find_in_jpeg(data: bytes, found: MetadataBlocks) -> None:
    extended: _Extended | None = None
    for number, (marker, body, _, end) in enumerate(jpeg.segments(data, MOST_SEGMENTS + 1)):
        if marker == jpeg.SOS or end > len(data):
            break
        if number == MOST_SEGMENTS:
            found.note_unread(f"what follows {MOST_SEGMENTS} segments")
            break
        body = body[2:]
        if marker == _APP1 and body.startswith(_EXTENDED):
            extended = extended or _Extended(found)
            extended.add(body[len(_EXTENDED) :])
        elif marker in (_APP1, _APP11, _APP13, _COMMENT):
            _take_segment(found, marker, body)
    if extended is not None and (packet := extended.packet()):
        found.add_xmp(packet)


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
        # a second one is not searched: there may be thousands
        found.iptc = metadata.resource(body) or b"\0"
    elif marker == _COMMENT:
        found.add_text("comment", body, "utf-8")


class _Extended:
    """XMP that did not fit one segment: pieces with a digest, the full length and their offset (XMP
    part 3, §1.1.3.1).
    """

    def __init__(self, found: MetadataBlocks) -> None:
        self._found = found
        self._digest, self._packet, self._missing = b"", bytearray(), 0

    def add(self, piece: bytes) -> None:
        digest, body = piece[:32], piece[40:]
        full, offset = int.from_bytes(piece[32:36], "big"), int.from_bytes(piece[36:40], "big")
        if not self._digest:
            self._digest = digest
            if full > self._found.left_bytes:
                self._found.note_over_limit("extended XMP")
            else:
                self._packet, self._missing = bytearray(full), full
        if digest == self._digest and offset + len(body) <= len(self._packet):
            self._packet[offset : offset + len(body)] = body
            self._missing -= len(body)

    def packet(self) -> bytes:
        return bytes(self._packet) if self._missing == 0 else b""


# Chunks: text (tEXt, zTXt, iTXt with XMP), eXIf, and C2PA's caBX.
def _find_in_png(data: bytes, found: MetadataBlocks) -> None:
    for number, (kind, start, end) in enumerate(png.chunks(data)):
        if end + 4 > len(data):
            break
        if number == MOST_CHUNKS:
            found.note_unread(f"what follows {MOST_CHUNKS} chunks")
            break
        if kind == b"IDAT":
            continue
        if kind == b"eXIf":
            found.add_exif(data[start:end])
        elif kind == b"caBX":
            found.add_jumbf(data[start : start + 48], end - start)
        elif kind in png.TEXT_KINDS:
            _add_text(found, kind, data[start:end])


def _add_text(found: MetadataBlocks, kind: bytes, body: bytes) -> None:
    text = png.read_text(kind, body)
    keyword = text.keyword[:79].decode("latin-1")
    if keyword in found.texts:
        return  # The first counts, and unpacking the others would take hours in a hostile file.
    is_xmp = kind == b"iTXt" and text.keyword == _XMP_KEYWORD
    if not found.has_room(keyword, is_xmp=is_xmp):
        return
    unpacked, size_bytes = text.unpack(found.left_bytes + 1)
    if size_bytes > len(unpacked):
        found.charge(size_bytes)
    if is_xmp:
        found.add_xmp(unpacked)
    else:
        found.add_text(keyword, unpacked, "utf-8" if kind == b"iTXt" else "latin-1")


def _find_in_webp(data: bytes, found: MetadataBlocks) -> None:
    at = 12
    for number in itertools.count():
        if at + 8 > len(data):
            break
        if number == MOST_RIFF_CHUNKS:
            found.note_unread(f"what follows {MOST_RIFF_CHUNKS} chunks")
            break
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        start = at + 8
        at = start + size + (size & 1)
        if start + size > len(data):
            break
        if kind == b"EXIF":
            found.add_exif(data[start : start + size])
        elif kind == b"XMP ":
            found.add_xmp(data[start : start + size])
        elif kind == b"C2PA":
            found.add_jumbf(data[start : start + 48], size)


# Extensions before the first frame and after it as far as the limit goes: comment, XMP, C2PA.
def _find_in_gif(data: bytes, found: MetadataBlocks) -> None:
    for is_image, label, start, end in gif_blocks(data, MOST_BLOCKS):
        if end is None and data.endswith(b";"):  # The file has its end, so the limit was reached.
            found.note_unread(f"what follows {MOST_BLOCKS} blocks")
        elif not is_image and end is not None:
            _take_extension(found, data, label, start, end)


def _take_extension(found: MetadataBlocks, data: bytes, label: int, start: int, end: int) -> None:
    if label == _COMMENT_LABEL:
        found.add_text("comment", _joined(data, start, end), "utf-8")
    elif label == _APPLICATION and data[start] == 11:
        name, body = data[start + 1 : start + 12], start + 12
        if name == b"XMP DataXMP":
            # The packet is not cut into blocks: its letters are read as lengths, and a run-out of
            # 257 bytes ends any such reading.
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


# Items of AVIF and HEIC (`meta` box, ISO 14496-12 §8.11): coded pictures, EXIF and XMP; and C2PA in
# a `uuid` box.
def _find_in_boxes(data: bytes, found: MetadataBlocks) -> None:
    items = False
    for box in boxes(data, 0, len(data)):
        if box.kind == b"meta" and not items:
            items = True  # a file has one; a hostile one could have a thousand, each full of items
            _take_items(found, data, box)
        elif box.kind == b"uuid" and data[box.start : box.start + 16] == _C2PA_BOX:
            # version and flags, purpose, offset of a Merkle tree
            store = box.start + 20 + len(_PURPOSE) + 8
            if data[box.start + 20 : box.start + 20 + len(_PURPOSE)] == _PURPOSE:
                found.add_jumbf(data[store : store + 48], box.end - store)
        elif box.kind == b"jumb":
            found.add_jumbf(data[box.start - 8 : box.start + 40], box.end - box.start + 8)


def _take_items(found: MetadataBlocks, data: bytes, meta: BmffBox) -> None:
    for kind, start, size in items_in(data, meta):
        if kind == b"Exif":
            found.add_exif(
                data[start + 4 + int.from_bytes(data[start : start + 4], "big") : start + size]
            )  # the TIFF header's offset first
        elif kind == XMP_ITEM:
            found.add_xmp(data[start : start + size])


# A TIFF file is an EXIF block itself, and holds XMP, IPTC and C2PA as values of tags.
def _find_in_tiff(data: bytes, found: MetadataBlocks) -> None:
    try:
        tiff = Tiff(data)
        tags = tiff.directory()
    except TiffError:
        return
    found.exif = data
    if _XMP_TAG in tags:
        found.add_xmp(tiff.octets(tags[_XMP_TAG], found.left_bytes + 1))
    if _IPTC in tags:
        found.iptc = tiff.octets(tags[_IPTC], _MOST_IPTC_BYTES)
    if _C2PA in tags:
        found.add_jumbf(tiff.octets(tags[_C2PA], 48), tags[_C2PA].number)


_WALKERS: dict[str, Callable[[bytes, MetadataBlocks], None]] = {
    "JPEG": _find_in_jpeg,
    "PNG": _find_in_png,
    "WEBP": _find_in_webp,
    "GIF": _find_in_gif,
    "TIFF": _find_in_tiff,
    "AVIF": _find_in_boxes,
    "HEIC": _find_in_boxes,
}
