"""HEIC files as telephones write them, put together from pictures of pillow-heif's: tiles in a
grid, turned, with a depth map.

ISO/IEC 23008-12 (HEIF): each picture is an item of the `meta` box with a place in the file and
properties that it may share with others.
"""

import struct
from dataclasses import dataclass, field

from PIL import Image

from tests.make.images import encoded

DEPTH = b"urn:mpeg:hevc:2015:auxid:2\0"


@dataclass
class Heif:
    """Items (number from 1, kind, data, properties by their place from 1) and references (kind,
    from, to).
    """

    items: list[tuple[bytes, bytes, list[int]]] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)
    properties: list[bytes] = field(default_factory=list)
    references: list[tuple[bytes, int, list[int]]] = field(default_factory=list)
    primary: int = 1

    def property(self, data: bytes) -> int:
        if data not in self.properties:
            self.properties.append(data)
        return 1 + self.properties.index(data)

    def add(self, kind: bytes, data: bytes, properties: list[bytes]) -> int:
        self.items.append((kind, data, [self.property(one) for one in properties]))
        return len(self.items)

    def file(self) -> bytes:
        head, meta = box(b"ftyp", b"heic\0\0\0\0mif1heicMiHBmiaf"), self._meta(0)
        data = box(b"mdat", b"".join(data for _, data, _ in self.items))
        return head + self._meta(len(head) + len(meta) + 8) + data

    def _meta(self, start: int) -> bytes:
        count, entries, places, uses = struct.pack(">H", len(self.items)), b"", b"", b""
        for number, (kind, data, used) in enumerate(self.items, 1):
            version = 2 << 24 | (number in self.hidden)
            entries += box(b"infe", struct.pack(">IHH4sB", version, number, 0, kind, 0))
            places += struct.pack(">HHHII", number, 0, 1, start, len(data))
            uses += struct.pack(">HB", number, len(used)) + bytes(128 | one for one in used)
            start += len(data)
        references = b"".join(
            box(kind, struct.pack(f">HH{len(to)}H", source, len(to), *to))
            for kind, source, to in self.references
        )
        uses = full(b"ipma", struct.pack(">I", len(self.items)) + uses)
        boxes = [
            full(b"hdlr", struct.pack(">I4s12sB", 0, b"pict", b"", 0)),
            full(b"pitm", struct.pack(">H", self.primary)),
            full(b"iinf", count + entries),
            full(b"iref", references) if references else b"",
            box(b"iprp", box(b"ipco", b"".join(self.properties)) + uses),
            full(b"iloc", b"\x44\0" + count + places),
        ]
        return full(b"meta", b"".join(boxes))


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind: bytes, body: bytes, version: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24) + body)


def ispe(width: int, height: int) -> bytes:
    return full(b"ispe", struct.pack(">II", width, height))


def coded(image: Image.Image, **options) -> tuple[bytes, bytes]:
    """The HEVC data of one picture, and the property that a decoder needs for it."""
    data = encoded(image, "HEIF", **options)
    at = data.index(b"hvcC") - 4
    config = data[at : at + struct.unpack_from(">I", data, at)[0]]
    at = data.index(b"mdat") - 4
    return data[at + 8 : at + struct.unpack_from(">I", data, at)[0]], config


def tiled(
    image: Image.Image, tile: int, *, turns: int = 0, depth: Image.Image | None = None
) -> bytes:
    """`image` cut into square tiles, shown after so many quarter turns to the left, with a depth
    map beside it if wanted.
    """
    made = Heif()
    columns, rows = -(-image.width // tile), -(-image.height // tile)
    tiles = []
    for row in range(rows):
        for column in range(columns):
            left, top = column * tile, row * tile
            piece = image.crop((left, top, left + tile, top + tile))
            payload, config = coded(piece, quality=90)
            tiles.append(made.add(b"hvc1", payload, [config, ispe(tile, tile)]))
    made.hidden.update(tiles)
    layout = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, image.width, image.height)
    turn = [box(b"irot", bytes([turns]))] if turns else []
    made.primary = made.add(b"grid", layout, [ispe(image.width, image.height), *turn])
    made.references.append((b"dimg", made.primary, tiles))
    if depth is not None:
        payload, config = coded(depth, quality=90)
        number = made.add(b"hvc1", payload, [config, ispe(*depth.size), full(b"auxC", DEPTH)])
        made.references.append((b"auxl", number, [made.primary]))
    return made.file()
