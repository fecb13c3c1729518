"""Read the structure of AVIF and HEIC files, which consist of boxes (ISO 14496-12).

`iter_boxes` yields the boxes. The box `meta` lists the items of the file: coded images, tiles,
EXIF, and XMP. `iter_items_in` yields these items. `find_coded_items` finds coded images, and
`find_foreign_kinds` finds images that the decoders cannot read. Limits on the number of boxes and
items keep a hostile file from taking long.
"""

from collections.abc import Iterator
from typing import NamedTuple

MAX_BOXES = 1000
MAX_ITEMS = 1000  # A 50-megapixel HEIC of tiles has 200.
XMP_ITEM = b"xmp"
_CODED = (b"av01", b"hvc1")


class BmffBox(NamedTuple):
    """A box of a file: its type, and the start and the end of its content."""

    kind: bytes
    start: int
    end: int


class _Fields:
    """Reads integers one after another; behind the end they are 0."""

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self._data, self.position, self._end = data, position, end

    def take(self, size: int) -> int:
        """Return the next `size` bytes as one number."""
        self.position += size
        return (
            int.from_bytes(self._data[self.position - size : self.position], "big")
            if self.position <= self._end
            else 0
        )

    @property
    def is_past_end(self) -> bool:
        """Whether more bytes were read than exist."""
        return self.position > self._end


def iter_boxes(data: bytes, position: int, end: int) -> Iterator[BmffBox]:
    """Yield the boxes (ISO 14496-12) between two positions of a file.

    The search ends at a box that exceeds the end, or after 1,000 boxes (`MAX_BOXES`).

    Args:
        data: The file.
        position: The start of the first box.
        end: The position at which the last box ends.
    """
    for _ in range(MAX_BOXES):
        if position + 8 > end:
            return
        size, kind, start = (
            int.from_bytes(data[position : position + 4], "big"),
            data[position + 4 : position + 8],
            position + 8,
        )
        if size == 1:
            size, start = int.from_bytes(data[position + 8 : position + 16], "big"), position + 16
        stop = end if size == 0 else position + size
        if not start <= stop <= end:
            return
        yield BmffBox(kind, start, stop)
        position = stop


def find_coded_items(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of each coded image of an AVIF or HEIC, including tiles and thumbnails.

    Images whose data is divided into several pieces are left out.
    """
    yield from ((start, size) for kind, start, size in _iter_items(data) if kind in _CODED)


def find_foreign_kinds(data: bytes) -> list[str]:
    """Return the types of the items of an AVIF or HEIC file if none is an image to decode.

    Call this for an error message that names the unreadable content. Items with EXIF or XMP are
    left out.

    Args:
        data: The file.

    Returns:
        The types, sorted. Empty if the file has at least one image that the decoders can read.
    """
    kinds = {kind for kind, _, _ in _iter_items(data)} - {b"Exif", XMP_ITEM}
    return [] if kinds & {*_CODED} else sorted(kind.decode("ascii", "replace") for kind in kinds)


def _iter_items(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    meta = next((box for box in iter_boxes(data, 0, len(data)) if box.kind == b"meta"), None)
    return iter(()) if meta is None else iter_items_in(data, meta)


def iter_items_in(data: bytes, meta: BmffBox) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, offset, and size of each item that a `meta` box lists.

    Items are, for example, coded images, tiles, EXIF, and XMP. Items that the file stores in
    several pieces are left out, and text items other than XMP.

    Args:
        data: The file.
        meta: The `meta` box, from `iter_boxes`.
    """
    inner = {box.kind: box for box in iter_boxes(data, meta.start + 4, meta.end)}
    if not {b"iinf", b"iloc"} <= inner.keys():
        return
    kinds = dict(_item_kinds(data, inner[b"iinf"]))
    idat = inner.get(b"idat")
    for item, method, start, size in _item_locations(data, inner[b"iloc"]):
        start, end = (
            (start, len(data))
            if method == 0
            else (idat.start + start, idat.end)
            if method == 1 and idat
            else (0, 0)
        )
        if item in kinds and 0 < size <= end - start:
            yield kinds[item], start, size


def _item_kinds(data: bytes, iinf: BmffBox) -> Iterator[tuple[int, bytes]]:
    """Yield (item id, item type); of text items, only XMP."""
    # The version, the flags, and the number of items precede the first box.
    first = iinf.start + (6 if data[iinf.start : iinf.start + 1] == b"\0" else 8)
    for index, box in enumerate(iter_boxes(data, first, iinf.end)):
        if index >= MAX_ITEMS:
            return
        if box.kind != b"infe" or box.end - box.start < 12:
            continue
        fields = _Fields(data, box.start, box.end)
        version, _ = fields.take(1), fields.take(3)
        item, _, kind = (
            fields.take(4 if version == 3 else 2),
            fields.take(2),
            fields.take(4).to_bytes(4, "big"),
        )
        if kind != b"mime":
            yield item, kind
        elif (
            b"application/rdf+xml"
            in data[fields.position : min(box.end, fields.position + 512)].split(b"\0")[1:2]
        ):
            yield item, XMP_ITEM


def _item_locations(data: bytes, iloc: BmffBox) -> Iterator[tuple[int, int, int, int]]:
    """Yield (item id, construction method, offset, size) of items in one piece."""
    fields = _Fields(data, iloc.start, iloc.end)
    version, _ = fields.take(1), fields.take(3)
    sizes, bases = fields.take(1), fields.take(1)
    index_size = bases & 15 if version in (1, 2) else 0
    wide = 4 if version == 2 else 2
    for _ in range(min(fields.take(wide), MAX_ITEMS)):
        item = fields.take(wide)
        method = fields.take(2) & 15 if version in (1, 2) else 0
        fields.take(2)  # The file that holds the item, which is this file.
        base, extents = fields.take(bases >> 4), fields.take(2)
        if extents != 1:
            fields.position += extents * (index_size + (sizes >> 4) + (sizes & 15))
            continue
        fields.take(index_size)
        offset, size = fields.take(sizes >> 4), fields.take(sizes & 15)
        if fields.is_past_end:
            return
        yield item, method, base + offset, size
