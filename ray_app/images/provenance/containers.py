"""Find the metadata blocks of JPEG, PNG, WebP, GIF, TIFF, AVIF and HEIC files (`locate`).

Blocks are found by the structure of the container, within limits. Nothing is decoded except
compressed texts of PNG. Blocks over a limit are noted as unread.
"""

import itertools
from collections.abc import Callable

from ray_app.images import jpeg, png
from ray_app.images.boxes import XMP_ITEM, BmffBox, iter_boxes, iter_items_in
from ray_app.images.formats import Tiff, TiffError, iter_gif_blocks
from ray_app.images.provenance import metadata
from ray_app.images.provenance.statement import MAX_TEXT_BYTES, MetadataBlocks

# A manifest of 8 MiB takes 128 segments; a hostile file could hold millions of empty segments.
MAX_SEGMENTS = 4000
_XMP, _EXTENDED = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_APP1, _APP11, _APP13, _COMMENT = 0xE1, 0xEB, 0xED, 0xFE
_JUMBF_HEADER = 8  # "JP", box instance (2), packet number (4): ISO 19566-5, annex D

MAX_CHUNKS = 200_000  # In a PNG. 512 MiB of pixels in libpng's usual 8 KiB chunks are 65,536.
MAX_RIFF_CHUNKS = 10_000  # In a WebP, which has one for each frame.
_XMP_KEYWORD = b"XML:com.adobe.xmp"

MAX_BLOCKS = 200_000  # In a GIF. 51 MB of frames and texts, at 255 bytes per block.
_COMMENT_LABEL, _APPLICATION = 0xFE, 0xFF

# C2PA 2.1, annex A.5.1.
_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_PURPOSE = b"manifest\0"

_XMP_TAG, _IPTC, _C2PA = 700, 33723, 52545
_MAX_IPTC_BYTES = 256 * 1024

NOTHING = MetadataBlocks()  # For a file that states nothing about its origin.


def locate(data: bytes, format_name: str | None, max_bytes: int = MAX_TEXT_BYTES) -> MetadataBlocks:
    """Find the metadata blocks of a file: EXIF, XMP, IPTC-IIM, texts, and a C2PA manifest.

    The time is bounded, and no exception is raised for any bytes.

    Args:
        data: The file.
        format_name: The sniffed format (`images.formats`), None if unknown.
        max_bytes: The maximum size of all blocks together.
    """
    blocks = MetadataBlocks(max_bytes=max_bytes)
    if format_name in _WALKERS:
        _WALKERS[format_name](data, blocks)
    return blocks


# Segments up to the first scan: EXIF and XMP (APP1), C2PA (APP11), IPTC (APP13), comment.
def _find_in_jpeg(data: bytes, blocks: MetadataBlocks) -> None:
    extended: _ExtendedXmp | None = None
    for index, (marker, body, _, end) in enumerate(jpeg.iter_segments(data, MAX_SEGMENTS + 1)):
        if marker == jpeg.SOS or end > len(data):
            break
        if index == MAX_SEGMENTS:
            blocks.note_unread(f"what follows {MAX_SEGMENTS} segments")
            break
        body = body[2:]
        if marker == _APP1 and body.startswith(_EXTENDED):
            extended = extended or _ExtendedXmp(blocks)
            extended.add(body[len(_EXTENDED) :])
        elif marker in (_APP1, _APP11, _APP13, _COMMENT):
            _add_segment(blocks, marker, body)
    if extended is not None and (packet := extended.packet()):
        blocks.add_xmp(packet)


def _add_segment(blocks: MetadataBlocks, marker: int, body: bytes) -> None:
    if marker == _APP1:
        if body.startswith(b"Exif\0"):
            blocks.add_exif(body)
        elif body.startswith(_XMP):
            blocks.add_xmp(body[len(_XMP) :])
    elif marker == _APP11 and body.startswith(b"JP"):
        if body[4:8] == b"\0\0\0\1":
            blocks.add_jumbf(body[_JUMBF_HEADER : _JUMBF_HEADER + 48], len(body) - _JUMBF_HEADER)
        elif blocks.manifest_bytes:
            blocks.manifest_bytes += len(body) - _JUMBF_HEADER
    elif marker == _APP13 and not blocks.iptc:
        # Only the first segment is searched, because there may be thousands.
        blocks.iptc = metadata.find_iptc(body) or b"\0"
    elif marker == _COMMENT:
        blocks.add_text("comment", body, "utf-8")


class _ExtendedXmp:
    """XMP that did not fit into one segment (XMP part 3, §1.1.3.1).

    Each part has a digest, the full length, and its offset.
    """

    def __init__(self, blocks: MetadataBlocks) -> None:
        self._blocks = blocks
        self._digest, self._packet, self._missing = b"", bytearray(), 0

    def add(self, part: bytes) -> None:
        digest, body = part[:32], part[40:]
        full, offset = int.from_bytes(part[32:36], "big"), int.from_bytes(part[36:40], "big")
        if not self._digest:
            self._digest = digest
            if full > self._blocks.left_bytes:
                self._blocks.note_over_limit("extended XMP")
            else:
                self._packet, self._missing = bytearray(full), full
        if digest == self._digest and offset + len(body) <= len(self._packet):
            self._packet[offset : offset + len(body)] = body
            self._missing -= len(body)

    def packet(self) -> bytes:
        return bytes(self._packet) if self._missing == 0 else b""


# Chunks: text (tEXt, zTXt, iTXt with XMP), eXIf, and C2PA's caBX.
def _find_in_png(data: bytes, blocks: MetadataBlocks) -> None:
    for index, (kind, start, end) in enumerate(png.iter_chunks(data)):
        if end + 4 > len(data):
            break
        if index == MAX_CHUNKS:
            blocks.note_unread(f"what follows {MAX_CHUNKS} chunks")
            break
        if kind == b"IDAT":
            continue
        if kind == b"eXIf":
            blocks.add_exif(data[start:end])
        elif kind == b"caBX":
            blocks.add_jumbf(data[start : start + 48], end - start)
        elif kind in png.TEXT_KINDS:
            _add_text(blocks, kind, data[start:end])


def _add_text(blocks: MetadataBlocks, kind: bytes, body: bytes) -> None:
    text = png.read_text(kind, body)
    keyword = text.keyword[:79].decode("latin-1")
    if keyword in blocks.texts:
        return  # The first counts, and unpacking the others would take hours in a hostile file.
    is_xmp = kind == b"iTXt" and text.keyword == _XMP_KEYWORD
    if not blocks.has_room(keyword, is_xmp=is_xmp):
        return
    unpacked, size_bytes = text.unpack(blocks.left_bytes + 1)
    if size_bytes > len(unpacked):
        blocks.charge(size_bytes)
    if is_xmp:
        blocks.add_xmp(unpacked)
    else:
        blocks.add_text(keyword, unpacked, "utf-8" if kind == b"iTXt" else "latin-1")


def _find_in_webp(data: bytes, blocks: MetadataBlocks) -> None:
    position = 12
    for index in itertools.count():
        if position + 8 > len(data):
            break
        if index == MAX_RIFF_CHUNKS:
            blocks.note_unread(f"what follows {MAX_RIFF_CHUNKS} chunks")
            break
        kind, size = (
            data[position : position + 4],
            int.from_bytes(data[position + 4 : position + 8], "little"),
        )
        start = position + 8
        position = start + size + (size & 1)
        if start + size > len(data):
            break
        if kind == b"EXIF":
            blocks.add_exif(data[start : start + size])
        elif kind == b"XMP ":
            blocks.add_xmp(data[start : start + size])
        elif kind == b"C2PA":
            blocks.add_jumbf(data[start : start + 48], size)


# Extensions before the first frame and after it as far as the limit goes: comment, XMP, C2PA.
def _find_in_gif(data: bytes, blocks: MetadataBlocks) -> None:
    for is_image, label, start, end in iter_gif_blocks(data, MAX_BLOCKS):
        if end is None and data.endswith(b";"):  # The file has its end, so the limit was reached.
            blocks.note_unread(f"what follows {MAX_BLOCKS} blocks")
        elif not is_image and end is not None:
            _add_extension(blocks, data, label, start, end)


def _add_extension(blocks: MetadataBlocks, data: bytes, label: int, start: int, end: int) -> None:
    if label == _COMMENT_LABEL:
        blocks.add_text("comment", _join_sub_blocks(data, start, end), "utf-8")
    elif label == _APPLICATION and data[start] == 11:
        name, body = data[start + 1 : start + 12], start + 12
        if name == b"XMP DataXMP":
            # The packet is not cut into blocks. Its letters are read as lengths, and a trailer of
            # 257 bytes ends any such reading.
            packet = data[body:end]
            blocks.add_xmp(packet[: packet.rfind(b">") + 1])
        elif name.startswith(b"C2PA_GIF"):
            blocks.add_jumbf(data[body + 1 : body + 49], end - body)


def _join_sub_blocks(data: bytes, position: int, end: int) -> bytes:
    parts = []
    while position < end:
        parts.append(data[position + 1 : position + 1 + data[position]])
        position += data[position] + 1
    return b"".join(parts)


# Items of AVIF and HEIC (`meta` box, ISO 14496-12 §8.11): coded images, EXIF and XMP; and C2PA in
# a `uuid` box.
def _find_in_boxes(data: bytes, blocks: MetadataBlocks) -> None:
    has_items = False
    for box in iter_boxes(data, 0, len(data)):
        if box.kind == b"meta" and not has_items:
            has_items = (
                True  # A file has one; a hostile file could have a thousand, each full of items.
            )
            _add_items(blocks, data, box)
        elif box.kind == b"uuid" and data[box.start : box.start + 16] == _C2PA_BOX:
            # The version and flags, the purpose, and the offset of a Merkle tree.
            store = box.start + 20 + len(_PURPOSE) + 8
            if data[box.start + 20 : box.start + 20 + len(_PURPOSE)] == _PURPOSE:
                blocks.add_jumbf(data[store : store + 48], box.end - store)
        elif box.kind == b"jumb":
            blocks.add_jumbf(data[box.start - 8 : box.start + 40], box.end - box.start + 8)


def _add_items(blocks: MetadataBlocks, data: bytes, meta: BmffBox) -> None:
    for kind, start, size in iter_items_in(data, meta):
        if kind == b"Exif":
            blocks.add_exif(
                data[start + 4 + int.from_bytes(data[start : start + 4], "big") : start + size]
            )  # The offset of the TIFF header precedes it.
        elif kind == XMP_ITEM:
            blocks.add_xmp(data[start : start + size])


# A TIFF file is an EXIF block itself, and holds XMP, IPTC and C2PA as values of tags.
def _find_in_tiff(data: bytes, blocks: MetadataBlocks) -> None:
    try:
        tiff = Tiff(data)
        tags = tiff.directory()
    except TiffError:
        return
    blocks.exif = data
    if _XMP_TAG in tags:
        blocks.add_xmp(tiff.read_bytes(tags[_XMP_TAG], blocks.left_bytes + 1))
    if _IPTC in tags:
        blocks.iptc = tiff.read_bytes(tags[_IPTC], _MAX_IPTC_BYTES)
    if _C2PA in tags:
        blocks.add_jumbf(tiff.read_bytes(tags[_C2PA], 48), tags[_C2PA].value_count)


_WALKERS: dict[str, Callable[[bytes, MetadataBlocks], None]] = {
    "JPEG": _find_in_jpeg,
    "PNG": _find_in_png,
    "WEBP": _find_in_webp,
    "GIF": _find_in_gif,
    "TIFF": _find_in_tiff,
    "AVIF": _find_in_boxes,
    "HEIC": _find_in_boxes,
}
