"""Items of AVIF and HEIC (`meta` box, ISO 14496-12 §8.11): coded pictures, EXIF and XMP; and C2PA in a `uuid` box."""

from collections.abc import Iterator
from typing import NamedTuple

from ray_app.images.provenance.found import MOST_BYTES, Found

MOST_BOXES = 1000
MOST_ITEMS = 1000  # a 50-megapixel HEIC of tiles has 200
# C2PA 2.1, annex A.5.1.
_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_PURPOSE = b"manifest\0"
_XMP = b"xmp"
_CODED = (b"av01", b"hvc1")


class Box(NamedTuple):
    """A box's type and where its content stands."""

    kind: bytes
    start: int
    end: int


class Fields:
    """Integers read one after another; past the end they are 0."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self.at, self._end = data, at, end

    def take(self, size: int) -> int:
        """The next `size` bytes as one number."""
        self.at += size
        return int.from_bytes(self._data[self.at - size : self.at], "big") if self.at <= self._end else 0

    @property
    def is_over(self) -> bool:
        """Whether more was taken than there is."""
        return self.at > self._end


def find(data: bytes) -> Found:
    """The metadata of an AVIF or HEIC."""
    found, items = Found(), False
    for box in _boxes(data, 0, len(data)):
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


def _boxes(data: bytes, at: int, end: int) -> Iterator[Box]:
    for _ in range(MOST_BOXES):
        if at + 8 > end:
            return
        size, kind, start = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        stop = end if size == 0 else at + size
        if not start <= stop <= end:
            return
        yield Box(kind, start, stop)
        at = stop


def coded_items(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the coded pictures of an AVIF or HEIC stand, tiles and thumbnails too: (offset, size) of each that lies in one piece."""
    meta = next((box for box in _boxes(data, 0, len(data)) if box.kind == b"meta"), None)
    if meta is not None:
        yield from ((start, size) for kind, start, size in _items(data, meta) if kind in _CODED)


def foreign_kinds(data: bytes) -> list[str]:
    """What the items of an AVIF or HEIC are where none of them is a picture that its decoders know; empty where one is."""
    meta = next((box for box in _boxes(data, 0, len(data)) if box.kind == b"meta"), None)
    kinds = {kind for kind, _, _ in _items(data, meta)} - {b"Exif", _XMP} if meta is not None else set()
    return [] if kinds & {*_CODED} else sorted(kind.decode("ascii", "replace") for kind in kinds)


def _take_items(found: Found, data: bytes, meta: Box) -> None:
    for kind, start, size in _items(data, meta):
        if size > MOST_BYTES:
            continue
        block = data[start : start + size]
        if kind == b"Exif":
            found.add_exif(block[4 + int.from_bytes(block[:4], "big") :])  # an offset to the TIFF header comes first
        elif kind == _XMP:
            found.add_xmp(block)


def _items(data: bytes, meta: Box) -> Iterator[tuple[bytes, int, int]]:
    """(kind, offset, size) of the items that lie within the file, each in one piece."""
    inner = {box.kind: box for box in _boxes(data, meta.start + 4, meta.end)}
    if not {b"iinf", b"iloc"} <= inner.keys():
        return
    kinds = dict(_item_kinds(data, inner[b"iinf"]))
    held = inner.get(b"idat")
    for item, method, start, size in _item_places(data, inner[b"iloc"]):
        start, end = (start, len(data)) if method == 0 else (held.start + start, held.end) if method == 1 and held else (0, 0)
        if item in kinds and 0 < size <= end - start:
            yield kinds[item], start, size


def _item_kinds(data: bytes, iinf: Box) -> Iterator[tuple[int, bytes]]:
    """(item id, its type; of text, XMP alone)."""
    first = iinf.start + (6 if data[iinf.start : iinf.start + 1] == b"\0" else 8)  # version and flags, and how many
    for number, box in enumerate(_boxes(data, first, iinf.end)):
        if number >= MOST_ITEMS:
            return
        if box.kind != b"infe" or box.end - box.start < 12:
            continue
        fields = Fields(data, box.start, box.end)
        version, _ = fields.take(1), fields.take(3)
        item, _, kind = fields.take(4 if version == 3 else 2), fields.take(2), fields.take(4).to_bytes(4, "big")
        if kind != b"mime":
            yield item, kind
        elif b"application/rdf+xml" in data[fields.at : min(box.end, fields.at + 512)].split(b"\0")[1:2]:
            yield item, _XMP


def _item_places(data: bytes, iloc: Box) -> Iterator[tuple[int, int, int, int]]:
    """(item id, construction method, offset, size) of items that lie in one piece."""
    fields = Fields(data, iloc.start, iloc.end)
    version, _ = fields.take(1), fields.take(3)
    sizes, bases = fields.take(1), fields.take(1)
    index_size = bases & 15 if version in (1, 2) else 0
    wide = 4 if version == 2 else 2
    for _ in range(min(fields.take(wide), MOST_ITEMS)):
        item = fields.take(wide)
        method = fields.take(2) & 15 if version in (1, 2) else 0
        fields.take(2)  # the file that holds it: this one
        base, extents = fields.take(bases >> 4), fields.take(2)
        if extents != 1:
            fields.at += extents * (index_size + (sizes >> 4) + (sizes & 15))
            continue
        fields.take(index_size)
        offset, size = fields.take(sizes >> 4), fields.take(sizes & 15)
        if fields.is_over:
            return
        yield item, method, base + offset, size
