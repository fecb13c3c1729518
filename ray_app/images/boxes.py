"""Boxes of AVIF and HEIC (ISO 14496-12): `boxes`, the items of a `meta` box (`items_in`), and what those items are (`coded_items`,
`foreign_kinds`); and headers of JPEG XL before decoding: `read_jxl_header` gives size, bits and animation (ISO/IEC 18181-1 §D, 18181-2).

Within limits, whatever the bytes are. JPEG XL's is our own because no library at hand gives them without decoding, and a file of thirty
bytes may claim a gigapixel.
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
        return int.from_bytes(self._data[self.at - size : self.at], "big") if self.at <= self._end else 0

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
    """Where the coded pictures of an AVIF or HEIC stand, tiles and thumbnails too: (offset, size) of each that lies in one piece."""
    yield from ((start, size) for kind, start, size in _items_of(data) if kind in _CODED)


def foreign_kinds(data: bytes) -> list[str]:
    """What the items of an AVIF or HEIC are where none of them is a picture that its decoders know; empty where one is."""
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
        start, end = (start, len(data)) if method == 0 else (held.start + start, held.end) if method == 1 and held else (0, 0)
        if item in kinds and 0 < size <= end - start:
            yield kinds[item], start, size


def _item_kinds(data: bytes, iinf: BmffBox) -> Iterator[tuple[int, bytes]]:
    """(item id, its type; of text, XMP alone)."""
    first = iinf.start + (6 if data[iinf.start : iinf.start + 1] == b"\0" else 8)  # version and flags, and how many
    for number, box in enumerate(boxes(data, first, iinf.end)):
        if number >= MOST_ITEMS:
            return
        if box.kind != b"infe" or box.end - box.start < 12:
            continue
        fields = _Fields(data, box.start, box.end)
        version, _ = fields.take(1), fields.take(3)
        item, _, kind = fields.take(4 if version == 3 else 2), fields.take(2), fields.take(4).to_bytes(4, "big")
        if kind != b"mime":
            yield item, kind
        elif b"application/rdf+xml" in data[fields.at : min(box.end, fields.at + 512)].split(b"\0")[1:2]:
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


CODESTREAM, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


class JxlHeader(NamedTuple):
    """`size`: (width, height), turned as the file asks. `bits`: per sample, 8 where it does not say."""

    size: tuple[int, int]
    bits: int
    is_animated: bool


def read_jxl_header(data: bytes) -> JxlHeader:
    """Of a codestream, or of the first one in a container. Raises EOFError where it ends early, ValueError where there is none."""
    bits = _Bits(_codestream(data))
    width, height = _size(bits)
    if bits.flag():  # the usual: 8 bits, upright, one picture
        return JxlHeader((width, height), 8, False)
    orientation, is_animated = 1, False
    if bits.flag():
        orientation = 1 + bits.number(3)
        if bits.flag():  # the size that it is meant to be shown in
            _size(bits)
        if bits.flag():
            _skip_preview(bits)
        is_animated = bits.flag()
        if is_animated:
            bits.choice((100, 0), (1000, 0), (1, 10), (1, 30))
            bits.choice((1, 0), (1001, 0), (1, 8), (1, 10))
            bits.choice((0, 0), (0, 3), (0, 16), (0, 32))
            bits.flag()
    is_float = bits.flag()
    depth = bits.choice((32, 0), (16, 0), (24, 0), (1, 6)) if is_float else bits.choice((8, 0), (10, 0), (12, 0), (1, 6))
    return JxlHeader((height, width) if orientation > 4 else (width, height), depth, is_animated)


class _Bits:
    """Numbers of a codestream, least significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def number(self, bits: int) -> int:
        if bits > self._left:
            raise EOFError("the JPEG XL header is cut off")
        found = self._value & ((1 << bits) - 1)
        self._value >>= bits
        self._left -= bits
        return found

    def flag(self) -> bool:
        return bool(self.number(1))

    def choice(self, *ways: tuple[int, int]) -> int:
        """One of four ways to write a number, each an offset and how many bits are added to it."""
        offset, bits = ways[self.number(2)]
        return offset + self.number(bits)


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.flag()

    def side() -> int:
        return 8 * (1 + bits.number(5)) if is_small else bits.choice((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    ratio = bits.number(3)
    if not ratio:
        return side(), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


def _skip_preview(bits: _Bits) -> None:
    is_divided = bits.flag()

    def side() -> int:
        return bits.choice((16, 0), (32, 0), (1, 5), (33, 9)) if is_divided else bits.choice((1, 6), (65, 8), (321, 10), (1345, 12))

    side()
    if not bits.number(3):
        side()


def _codestream(data: bytes) -> bytes:
    """The first bytes of the codestream, after its mark."""
    if data.startswith(CONTAINER):
        at = len(CONTAINER)
        for _ in range(MOST_BOXES):
            size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            header = 16 if size == 1 else 8
            size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
            if kind in (b"jxlc", b"jxlp"):
                data = data[at + header + 4 * (kind == b"jxlp") :][:64]
                break
            if len(data) < at + header or not kind:
                raise EOFError("the JPEG XL container is cut off before its picture")
            if size < header:
                raise ValueError("a JPEG XL container without a picture")
            at += size
    if not data.startswith(CODESTREAM):
        raise ValueError("no JPEG XL codestream")
    return data[2:64]
