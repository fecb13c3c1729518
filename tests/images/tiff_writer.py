"""TIFFs of every layout, written from samples: what no image library writes in full. TIFF 6.0,
section by section.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Literal

import imagecodecs
import numpy as np

SHORT, LONG, LONG8 = 3, 4, 16
NONE, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
UNSIGNED, SIGNED, FLOAT, COMPLEX = 1, 2, 3, 5
STRIPS, TILES = (273, 279), (324, 325)  # tags: where they stand, how long they are


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    order: Literal["<", ">"] = "<",
    big: bool = False,
    planar: bool = False,
    compression: int = NONE,
    predictor: bool = False,
    tile: int = 0,
    rows: int = 10,
    extra: tuple[int, ...] = (),
    sample_format: int = UNSIGNED,
    tags: dict[int, list[int]] | None = None,
    places: tuple[int, int] | None = None,
) -> bytes:
    """A TIFF of `samples` (height × width × samples, integers or floats), in strips of `rows` or in
    tiles of `tile` × `tile`.

    `places` are the tags for where these stand and how long they are, where they are to be others
    than the usual ones.
    """
    height, width, count = samples.shape
    planes = [samples[..., plane : plane + 1] for plane in range(count)] if planar else [samples]
    pieces = [
        pressed(packed(piece, bits, order, predictor), compression)
        for plane in planes
        for piece in _cut(plane, tile, rows)
    ]
    placed: dict[int, list[int]] = {
        256: [width], 257: [height], 258: [bits] * count, 259: [compression], 262: [photometric], 277: [count], 284: [2 if planar else 1],
        339: [sample_format] * count,
    }  # fmt: skip
    placed |= {338: list(extra)} if extra else {}
    placed |= {317: [2]} if predictor else {}
    placed |= {322: [tile], 323: [tile]} if tile else {278: [rows]}
    places = places or (TILES if tile else STRIPS)
    return container(placed | (tags or {}), pieces, order=order, big=big, places=places)


def container(
    tags: dict[int, list[int]],
    pieces: list[bytes],
    *,
    order: str = "<",
    big: bool = False,
    places: tuple[int, int] = (273, 279),
) -> bytes:
    """One directory of integer tags around strips or tiles that are packed already."""
    at, ends, kind, entry = (16, "Q", LONG8, "HHQ8s") if big else (8, "I", LONG, "HHI4s")
    offsets, body = [], b""
    for piece in pieces:
        offsets.append(at + len(body))
        body += piece + b"\0" * (len(piece) % 2)
    here = tags | {places[0]: offsets, places[1]: [len(piece) for piece in pieces]}
    entries = b""
    for tag, values in sorted(here.items()):
        wide = SHORT if max(values) < 65536 else kind
        packed = struct.pack(f"{order}{len(values)}{'H' if wide == SHORT else ends}", *values)
        if len(packed) > struct.calcsize(ends):
            place = struct.pack(order + ends, at + len(body))
            packed, body = place, body + packed + b"\0" * (len(packed) % 2)
        entries += struct.pack(order + entry, tag, wide, len(values), packed)
    magic = struct.pack(order + "HHH", 43, 8, 0) if big else struct.pack(order + "H", 42)
    start = (b"II" if order == "<" else b"MM") + magic + struct.pack(order + ends, at + len(body))
    count = struct.pack(order + ("Q" if big else "H"), len(here))
    return start + body + count + entries + bytes(struct.calcsize(ends))


def _cut(plane: np.ndarray, tile: int, rows: int) -> Iterator[np.ndarray]:
    height, width, _ = plane.shape
    if not tile:
        yield from (plane[top : top + rows] for top in range(0, height, rows))
        return
    padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
    for top in range(0, height, tile):
        yield from (padded[top : top + tile, left : left + tile] for left in range(0, width, tile))


def packed(piece: np.ndarray, bits: int, order: str, predictor: bool) -> bytes:
    if predictor:
        piece = np.diff(piece.astype(np.int64), axis=1, prepend=0) % 2**bits
    if piece.dtype.kind == "f":
        return piece.astype(f"{order}f{bits // 8}").tobytes()
    if bits >= 8 and bits & (bits - 1) == 0:
        return (piece.astype(np.int64) % 2**bits).astype(f"{order}u{bits // 8}").tobytes()
    rows = piece.reshape(len(piece), -1).astype(np.uint64)
    each = (rows[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint64)) & 1
    return np.packbits(each.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def pressed(data: bytes, compression: int) -> bytes:
    packers = {DEFLATE: zlib.compress, LZW: imagecodecs.lzw_encode}
    packers[PACKBITS] = imagecodecs.packbits_encode
    return bytes(packers[compression](data)) if compression in packers else data
