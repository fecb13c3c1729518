"""Boxes of AVIF and HEIC (ISO 14496-12): `boxes`, the items of a `meta` box (`items_in`), and what
those items are (`coded_items`, `foreign_kinds`). Within limits, whatever the bytes are.
"""

from collections.abc import Iterator
from typing import NamedTuple

MOST_BOXES = 1000
MOST_ITEMS = 1000  # a 50-megapixel HEIC of tiles has 200
XMP_ITEM = b"xmp"
_CODED = (b"av01", b"hvc1")


class BmffBox(NamedTuple):
    """A box's type and where its content stands."""

    kind: bytes
    start: int
    end: int


class _Fields:
    """Integers read one after another; past the end they are 0."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self.at, self._end = data, at, end

    def take(self, size: int) -> int:
        """The next `size` bytes as one number."""
        self.at += size
        return (
            int.from_bytes(self._data[self.at - size : self.at], "big")
            if self.at <= self._end
            else 0
        )

    @property
    def is_over(self) -> bool:
        """Whether more was taken than there is."""
        return self.at > self._end


def boxes(data: bytes, at: int, end: int) -> Iterator[BmffBox]:
    """The boxes that lie side by side from `at` to `end`; one that does not fit there ends them."""
    for _ in range(MOST_BOXES):
        if at + 8 > end:
            return
        size, kind, start = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        stop = end if size == 0 else at + size
        if not start <= stop <= end:
            return
        yield BmffBox(kind, start, stop)
        at = stop


def coded_items(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the coded pictures of an AVIF or HEIC stand, tiles and thumbnails too: (offset, size)
    of each that lies in one piece.
    """
    yield from ((start, size) for kind, start, size in _items_of(data) if kind in _CODED)


def foreign_kinds(data: bytes) -> list[str]:
    """What the items of an AVIF or HEIC are where none of them is a picture that its decoders know;
    empty where one is.
    """
    kinds = {kind for kind, _, _ in _items_of(data)} - {b"Exif", XMP_ITEM}
    return [] if kinds & {*_CODED} else sorted(kind.decode("ascii", "replace") for kind in kinds)


def _items_of(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    meta = next((box for box in boxes(data, 0, len(data)) if box.kind == b"meta"), None)
    return iter(()) if meta is None else items_in(data, meta)


def items_in(data: bytes, meta: BmffBox) -> Iterator[tuple[bytes, int, int]]:
    """(kind, offset, size) of the items that lie within the file, each in one piece."""
    inner = {box.kind: box for box in boxes(data, meta.start + 4, meta.end)}
    if not {b"iinf", b"iloc"} <= inner.keys():
        return
    kinds = dict(_item_kinds(data, inner[b"iinf"]))
    held = inner.get(b"idat")
    for item, method, start, size in _item_places(data, inner[b"iloc"]):
        start, end = (
            (start, len(data))
            if method == 0
            else (held.start + start, held.end)
            if method == 1 and held
            else (0, 0)
        )
        if item in kinds and 0 < size <= end - start:
            yield kinds[item], start, size


def _item_kinds(data: bytes, iinf: BmffBox) -> Iterator[tuple[int, bytes]]:
    """(item id, its type; of text, XMP alone)."""
    # version and flags, and how many
    first = iinf.start + (6 if data[iinf.start : iinf.start + 1] == b"\0" else 8)
    for number, box in enumerate(boxes(data, first, iinf.end)):
        if number >= MOST_ITEMS:
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
            in data[fields.at : min(box.end, fields.at + 512)].split(b"\0")[1:2]
        ):
            yield item, XMP_ITEM


def _item_places(data: bytes, iloc: BmffBox) -> Iterator[tuple[int, int, int, int]]:
    """(item id, construction method, offset, size) of items that lie in one piece."""
    fields = _Fields(data, iloc.start, iloc.end)
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
