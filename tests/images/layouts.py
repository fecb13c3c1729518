"""One picture in every layout of the formats that are read: what the decoder is compared with
libvips on. TIFF's are in `tiff_writer`.
"""

import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import pyvips
import simplejpeg
from PIL import Image
from PIL.Image import Transpose

from tests.images import factory, tiff_writer
from tests.images.tiff_writer import (
    BLACK_IS_ZERO,
    CMYK,
    COMPLEX,
    DEFLATE,
    FLOAT,
    LAB,
    LZW,
    NONE,
    PACKBITS,
    PALETTE,
    RGB,
    SIGNED,
    WHITE_IS_ZERO,
    YCBCR,
    tiff,
)

WIDTH, HEIGHT = 45, 37  # no multiple of a tile, a byte or a unit
# Adam7: x, y, steps
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


class Cell(NamedTuple):
    """One file: how it is made, how far decoders may lie apart (levels), what it shows where its
    maker knows, whether libvips does.
    """

    name: str
    make: Callable[[], bytes]
    tolerance: int = 0
    is_read: bool = True
    truth: Callable[[], np.ndarray] | None = None
    asks_libvips: bool = True


@cache
def samples(count: int, bits: int) -> np.ndarray:
    """Height × width × count integers of so many bits: waves with a little noise."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = np.stack(
        [
            np.sin(x / (5 + band)) * 0.25 + np.cos(y / (7 - band)) * 0.2 + 0.5
            for band in range(count)
        ],
        -1,
    )
    noise = np.random.default_rng(count).normal(0, 0.02, waves.shape)
    return np.round((waves + noise).clip(0, 1) * (2**bits - 1)).astype(np.int64)


def cells() -> Iterator[Cell]:
    """All of them."""
    for family in (tiffs, other_tiffs, pngs, jpegs, bmps, others):
        yield from family()


# Photometric, samples, extra samples; the bits that are read, chunky and planar.
_TIFFS: tuple[tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = (
    (WHITE_IS_ZERO, 1, (), (1, 2, 4, 8, 16), ()),
    (BLACK_IS_ZERO, 1, (), (1, 2, 4, 8, 12, 16), ()),
    (BLACK_IS_ZERO, 2, (0,), (8,), (1, 2, 4, 8, 12, 16)),
    (BLACK_IS_ZERO, 2, (1,), (8,), ()),
    (BLACK_IS_ZERO, 2, (2,), (8,), ()),
    (RGB, 3, (), (8, 16), (8, 16)),
    (RGB, 4, (0,), (8, 16), (8, 16)),
    (RGB, 4, (1,), (8, 16), (8, 16)),
    (RGB, 4, (2,), (8, 16), (8, 16)),
    (RGB, 5, (2, 0), (8,), ()),
    (PALETTE, 1, (), (1, 2, 4, 8), ()),
    (PALETTE, 2, (0,), (8,), (1, 2, 4, 8)),
    (PALETTE, 2, (2,), (8,), ()),
    (CMYK, 4, (), (8, 16), (8, 16)),
    (CMYK, 5, (0,), (8,), (8, 16)),
    (CMYK, 5, (2,), (), ()),
    (YCBCR, 3, (), (8,), (8,)),
    (LAB, 3, (), (8,), ()),
)


def tiffs() -> Iterator[Cell]:
    """Photometrics × samples × bits × planes × compressions × predictors × tiles × byte orders ×
    sizes of offset.
    """
    packings = (
        (NONE, False),
        (PACKBITS, False),
        (LZW, False),
        (LZW, True),
        (DEFLATE, False),
        (DEFLATE, True),
    )
    for photometric, count, extra, chunky, planar in _TIFFS:
        for bits, is_planar in itertools.product((1, 2, 4, 8, 12, 16, 32), (False, True)):
            if (
                (is_planar and count == 1)
                or (photometric == PALETTE and bits > 8)
                or (photometric in (YCBCR, LAB) and bits != 8)
            ):
                continue
            is_known = bits in (planar if is_planar else chunky)
            for (compression, predictor), tile, order, big in itertools.product(
                packings, (0, 16), "<>", (False, True)
            ):
                if (predictor and (bits < 8 or bits == 12)) or (
                    not is_known and (compression != NONE or tile)
                ):
                    continue
                little_only = bits == 12 or (bits == 16 and photometric == WHITE_IS_ZERO)
                is_read = is_known and not (order == ">" and (big or little_only))
                name = f"tiff-{photometric}-{count}{extra}-{bits}-{'planar' if is_planar else 'chunky'}-{compression}{'p' * predictor}"
                options = {
                    "order": order,
                    "big": big,
                    "planar": is_planar,
                    "compression": compression,
                    "predictor": predictor,
                    "tile": tile,
                }
                yield _tiff_cell(
                    f"{name}-tile{tile}-{order}{'big' * big}",
                    photometric,
                    count,
                    bits,
                    extra,
                    is_read,
                    options,
                )


def _tiff_cell(name, photometric, count, bits, extra, is_read, options) -> Cell:
    tags = {}
    if photometric == PALETTE:
        tags = {320: np.random.default_rng(bits).integers(0, 65536, 3 << bits).tolist()}
    if photometric == YCBCR:
        tags = {530: [1, 1]}

    def shown() -> np.ndarray:
        values, colours = samples(count, bits), count - len(extra)
        # signed, and weak: littlecms and libvips differ in the white that strong colours are
        # relative to
        if photometric == LAB:
            return np.concatenate(
                [values[..., :1] // 2 + 64, (values[..., 1:] - 128) // 12 % 256], -1
            )
        if 1 not in extra:
            return values
        alpha = values[..., colours:]  # the colours are multiplied by it
        return np.concatenate(
            [
                np.round(values[..., :colours] * (alpha[..., :1] / (2**bits - 1))).astype(np.int64),
                alpha,
            ],
            -1,
        )

    return Cell(
        name,
        lambda: tiff(shown(), bits, photometric, extra=extra, tags=tags, **options),
        6 if photometric == LAB else 2 if photometric == YCBCR or {1, 2} & set(extra) else 0,
        is_read,
        lambda: _shown(shown(), bits, photometric, extra, tags.get(320)),
        # libvips leaves YCbCr as it is, and any further sample it shows as it stands in the file.
        asks_libvips=photometric != YCBCR and extra in ((), (2,)),
    )


def _shown(
    shown: np.ndarray,
    bits: int,
    photometric: int,
    extra: tuple[int, ...],
    colour_map: list[int] | None,
) -> np.ndarray:
    """What is to be seen, in RGB: the high 8 bits, alpha on white."""
    eight = shown >> (bits - 8) if bits > 8 else shown * (255 // (2**bits - 1))
    colours = shown.shape[2] - len(extra)
    if photometric == PALETTE:
        rgb = (np.array(colour_map).reshape(3, -1) >> 8)[:, shown[..., 0]].transpose(1, 2, 0)
    elif photometric in (CMYK, YCBCR):
        mode = "CMYK" if photometric == CMYK else "YCbCr"
        rgb = np.asarray(
            Image.fromarray(
                np.ascontiguousarray(eight[..., :colours].astype(np.uint8)), mode
            ).convert("RGB")
        ).astype(int)
    elif photometric == LAB:
        signed = eight[..., 1:].astype(np.uint8).view(np.int8)
        lab = np.concatenate([eight[..., :1] / 2.55, signed], -1).astype(np.float32)
        rgb = (
            pyvips.Image.new_from_array(lab, interpretation="lab")
            .colourspace("srgb")
            .numpy()
            .astype(int)
        )
    else:
        grey = 255 - eight if photometric == WHITE_IS_ZERO else eight
        rgb = np.repeat(grey[..., :1], 3, axis=-1) if colours == 1 else grey[..., :3]
    alpha = eight[..., colours : colours + 1]
    if extra[:1] == (1,):
        return rgb + 255 - alpha
    return np.round((rgb * alpha + 255 * (255 - alpha)) / 255) if extra[:1] == (2,) else rgb


def other_tiffs() -> Iterator[Cell]:
    """Fax and JPEG codes, orientations, maps of 8 bits, tiles under the tags of strips, samples
    without a scale.
    """
    one_bit = picture("1")
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield Cell(
            f"tiff-{compression}",
            partial(factory.encoded, one_bit, "TIFF", compression=compression),
        )
    rgb, grey = samples(3, 8), samples(1, 8)
    # with chroma halved, and in full
    for tile, quality in itertools.product((False, True), (75, 95)):
        options = {"compression": "jpeg", "tile": tile, "Q": quality}
        yield Cell(
            f"tiff-jpeg-tile{tile:d}-{quality}", partial(vips_image(rgb).tiffsave_buffer, **options)
        )
    ways = (None, Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM,
            Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)  # fmt: skip
    for (orientation, way), compression in itertools.product(enumerate(ways, 1), (NONE, LZW)):
        seen = np.asarray(picture("RGB") if way is None else picture("RGB").transpose(way))
        make = partial(tiff, rgb, 8, RGB, compression=compression, tags={274: [orientation]})
        yield Cell(
            f"tiff-orientation-{orientation}-{compression}",
            make,
            truth=lambda seen=seen: seen,
            asks_libvips=False,
        )
    colour_map = np.random.default_rng(8).integers(0, 256, 768)
    make = partial(tiff, grey, 8, PALETTE, tags={320: colour_map.tolist()})
    yield Cell(
        "tiff-palette-8-bit-map",
        make,
        truth=lambda: colour_map.reshape(3, -1)[:, grey[..., 0]].transpose(1, 2, 0),
    )
    make = partial(tiff, grey, 8, WHITE_IS_ZERO, tile=16, places=tiff_writer.STRIPS)
    yield Cell("tiff-tiles-as-strips", make, truth=lambda: np.repeat(255 - grey, 3, axis=-1))
    for kind, values, bits in (
        (SIGNED, grey, 8),
        (SIGNED, grey, 16),
        (FLOAT, grey / 255, 32),
        (COMPLEX, grey, 32),
    ):
        yield Cell(
            f"tiff-format{kind}-{bits}",
            partial(tiff, values, bits, BLACK_IS_ZERO, sample_format=kind),
            is_read=False,
        )


def pngs() -> Iterator[Cell]:
    """Colour types × bits × interlace × colour keys; small sizes, split pixel data and chunks of
    metadata, as PngSuite has them.
    """
    for colour, depths in (
        (0, (1, 2, 4, 8, 16)),
        (2, (8, 16)),
        (3, (1, 2, 4, 8)),
        (4, (8, 16)),
        (6, (8, 16)),
    ):
        for depth, interlaced, keyed in itertools.product(depths, (False, True), (False, True)):
            if keyed and colour in (4, 6):
                continue
            extra = (
                _png_palette(depth, keyed)
                if colour == 3
                else _png_key(colour, depth)
                if keyed
                else ()
            )
            tolerance = 1 if colour in (4, 6) or (keyed and colour == 3) else 0
            shown = samples({0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour], depth)
            name = f"png-{colour}-{depth}{'-adam7' * interlaced}{'-trns' * keyed}"
            yield Cell(
                name,
                partial(png, shown, depth, colour, interlaced=interlaced, extra=extra),
                tolerance,
            )
        yield from _png_variants(colour, max(depths))


def _png_variants(colour: int, depth: int) -> Iterator[Cell]:
    shown = samples({0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour], depth)
    palette = _png_palette(depth, False) if colour == 3 else ()
    tolerance = 1 if colour in (4, 6) else 0
    for width, height, interlaced in itertools.product((2, 3, 5, 9), (2, 4, 8), (False, True)):
        make = partial(
            png, shown[:height, :width], depth, colour, interlaced=interlaced, extra=palette
        )
        yield Cell(f"png-{colour}-{width}x{height}{'-adam7' * interlaced}", make, tolerance)
    whole = png(shown, depth, colour, extra=palette)
    for piece_bytes in (1, 64):
        yield Cell(
            f"png-{colour}-idat-{piece_bytes}",
            partial(_split_png, png(shown, depth, colour, extra=palette), piece_bytes),
            tolerance,
        )
    for name, chunk in _png_chunks(colour, depth).items():
        yield Cell(
            f"png-{colour}-{name}",
            partial(png, shown, depth, colour, extra=(*palette, chunk)),
            tolerance,
        )
        whole = png(shown, depth, colour, extra=palette)
        yield Cell(
            f"png-{colour}-{name}-after",
            partial(factory.patched_after, whole, len(whole) - 12, chunk),
            tolerance,
        )


def _split_png(data: bytes, piece_bytes: int) -> bytes:
    """The same with its pixel data in many chunks, and with empty ones among them."""
    at = data.index(b"IDAT")
    body = data[at + 4 : -16]
    pieces = [
        factory.chunk(b"IDAT", body[start : start + piece_bytes])
        for start in range(0, len(body), piece_bytes)
    ]
    return data[: at - 4] + factory.chunk(b"IDAT", b"").join([b"", *pieces]) + data[-12:]


def _png_chunks(colour: int, depth: int) -> dict[str, bytes]:
    chunks = {
        "gAMA": struct.pack(">I", 45455),
        "cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
        "sBIT": bytes([5] * {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[colour]),
        "bKGD": bytes({0: 2, 2: 6, 3: 1, 4: 2, 6: 6}[colour]),
        "pHYs": struct.pack(">IIB", 1, 4, 0),
        "tIME": struct.pack(">H5B", 2000, 1, 1, 12, 34, 56),
        "sPLT": b"six-cube\0\x08" + bytes(36),
        "tEXt": b"Title\0PngSuite",
        "zTXt": b"Disclaimer\0\0" + zlib.compress(b"Freeware."),
        "iTXt": b"Title\0\0\0en\0Title\0PngSuite",
        "eXIf": factory.exif(1)[6:],
        "iCCP": b"sRGB\0\0" + zlib.compress(factory.srgb_profile()),
        "cICP": b"\1\x0d\0\1",
        "prVt": bytes(100),
    }
    if colour == 3:
        chunks["hIST"] = bytes(2 << depth)
    if colour in (2, 6):
        chunks["PLTE"] = bytes(range(216))
    return {name: factory.chunk(name.encode(), body) for name, body in chunks.items()}


def png(
    shown: np.ndarray,
    depth: int,
    colour: int,
    *,
    interlaced: bool = False,
    extra: tuple[bytes, ...] = (),
) -> bytes:
    """A PNG of samples (height × width × samples)."""
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    lines = b""
    for left, top, across, down in passes:
        part = shown[top::down, left::across]
        rows = (
            [tiff_writer.packed(row[None], depth, ">", predictor=False) for row in part]
            if part.size
            else []
        )
        lines += b"".join(b"\0" + row for row in rows)
    header = factory.chunk(
        b"IHDR",
        struct.pack(">IIBBBBB", shown.shape[1], shown.shape[0], depth, colour, 0, 0, interlaced),
    )
    body = factory.chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + factory.chunk(b"IEND", b"")


def _png_palette(depth: int, keyed: bool) -> tuple[bytes, ...]:
    rng = np.random.default_rng(depth)
    palette = factory.chunk(b"PLTE", rng.integers(0, 256, 3 << depth, dtype=np.uint8).tobytes())
    return (
        (
            palette,
            factory.chunk(b"tRNS", rng.integers(0, 256, 1 << depth, dtype=np.uint8).tobytes()),
        )
        if keyed
        else (palette,)
    )


def _png_key(colour: int, depth: int) -> tuple[bytes, ...]:
    key = (
        samples({0: 1, 2: 3}[colour], depth).max(axis=(0, 1))
        if colour == 0
        else samples(3, depth)[HEIGHT // 2, WIDTH // 2]
    )
    return (factory.chunk(b"tRNS", key.astype(">u2").tobytes()),)


def jpegs() -> Iterator[Cell]:
    """Subsampling × progressive × grey × CMYK, YCCK, RGB × restart markers; rare sampling."""
    for mode, progressive, restarts in itertools.product(
        ("RGB", "L", "CMYK"), (False, True), (0, 1, 3)
    ):
        for subsampling in (0, 1, 2) if mode == "RGB" else (-1,):
            options = {
                "progressive": progressive,
                "restart_marker_blocks": restarts,
                "subsampling": subsampling,
                "quality": 85,
            }
            name = f"jpeg-{mode}-{subsampling}{'-progressive' * progressive}-rst{restarts}"
            yield Cell(name, partial(factory.encoded, picture(mode), "JPEG", **options))
    yield Cell("jpeg-adobe-rgb", partial(factory.encoded, picture("RGB"), "JPEG", keep_rgb=True))
    yield Cell("jpeg-ycck", factory.ycck)
    for sampling in ("440", "411"):
        yield Cell(
            f"jpeg-{sampling}",
            partial(simplejpeg.encode_jpeg, np.asarray(picture("RGB")), colorsubsampling=sampling),
        )
    for factors in (
        ((4, 2), (1, 1), (1, 1)),
        ((3, 1), (1, 1), (1, 1)),
        ((2, 2), (2, 1), (1, 2)),
        ((1, 1), (2, 2), (1, 1)),
    ):
        yield Cell(f"jpeg-sampling-{factors}", partial(flat_blocks, factors))


def flat_blocks(
    factors: tuple[tuple[int, int], ...], size: tuple[int, int] = (WIDTH, HEIGHT)
) -> bytes:
    """A baseline JPEG of any sampling factors, in flat blocks: the encoders at hand know the usual
    factors alone.

    One table of DC codes ("0": no change, "10": a change by 16 to 31) and one of AC codes ("0": the
    end of the block).
    """
    across, down = 8 * max(h for h, _ in factors), 8 * max(v for _, v in factors)
    rng, bits = np.random.default_rng(9), ""
    for unit in range(-(-size[0] // across) * -(-size[1] // down)):
        for h, v in factors:
            # up and down in turns
            change = int(rng.integers(16, 32)) if unit % 2 == 0 else 31 - int(rng.integers(16, 32))
            bits += f"10{change:05b}0" + "00" * (h * v - 1)
    bits = bits.ljust(-(-len(bits) // 8) * 8, "1")
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    parts = b"".join(bytes((number, h << 4 | v, 0)) for number, (h, v) in enumerate(factors, 1))
    tables = b"\0" + bytes((1, 1, *[0] * 14, 0, 5)) + b"\x10" + bytes((1, *[0] * 15, 0))
    scan = b"".join(bytes((number, 0)) for number in range(1, len(factors) + 1))
    segments = (
        (b"\xdb", b"\0" + bytes([8] * 64)),
        (b"\xc0", struct.pack(">BHHB", 8, size[1], size[0], len(factors)) + parts),
        (b"\xc4", tables),
        (b"\xda", bytes((len(factors),)) + scan + bytes((0, 63, 0))),
    )
    return (
        b"\xff\xd8"
        + b"".join(
            b"\xff" + kind + struct.pack(">H", 2 + len(body)) + body for kind, body in segments
        )
        + coded
        + b"\xff\xd9"
    )


def bmps() -> Iterator[Cell]:
    """Bits × top-down, run lengths, bit fields; libvips reads none, but whoever wrote them knows
    what they show.
    """
    for mode in ("1", "L", "P"):
        shown = picture("RGB").quantize(60) if mode == "P" else picture(mode)
        make = partial(factory.encoded, shown, "BMP")
        yield Cell(
            f"bmp-{mode}",
            make,
            truth=lambda shown=shown: np.asarray(shown.convert("RGB")),
            asks_libvips=False,
        )
    rgb, grey = samples(3, 8), samples(1, 8)
    for top_down in (False, True):
        lines = np.pad(
            rgb[..., ::-1].astype(np.uint8).reshape(HEIGHT, -1), ((0, 0), (0, -3 * WIDTH % 4))
        )
        body = (lines if top_down else lines[::-1]).tobytes()
        yield Cell(
            f"bmp-24{'-top-down' * top_down}",
            partial(_bmp, body, 24, height=-HEIGHT if top_down else HEIGHT),
            truth=lambda: rgb,
        )
    yield Cell("bmp-rle8", partial(bmp_runs, grey), truth=lambda: np.repeat(grey, 3, axis=-1))
    rgb_565 = np.stack([samples(3, 5)[..., 0], samples(3, 6)[..., 1], samples(3, 5)[..., 2]], -1)
    packed = (rgb_565[..., 0] << 11 | rgb_565[..., 1] << 5 | rgb_565[..., 2]).astype("<u2")
    body = np.pad(packed[::-1], ((0, 0), (0, WIDTH % 2))).tobytes()
    seen = np.stack([rgb_565[..., band] * 255 // top for band, top in enumerate((31, 63, 31))], -1)
    for masks in ((0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1E)):
        make = partial(_bmp, body, 16, struct.pack("<III", *masks), compression=3)
        yield Cell(
            f"bmp-bitfields-{masks[2]:x}", make, is_read=masks[2] == 0x1F, truth=lambda: seen
        )


def bmp_runs(grey: np.ndarray) -> bytes:
    lines = b"".join(
        b"".join(bytes((1, value)) for value in row) + b"\0\0" for row in grey[::-1, :, 0].tolist()
    )
    return _bmp(
        lines + b"\0\1",
        8,
        b"".join(bytes((level, level, level, 0)) for level in range(256)),
        compression=1,
    )


def _bmp(
    body: bytes, bits: int, before: bytes = b"", *, compression: int = 0, height: int = HEIGHT
) -> bytes:
    start, colours = 54 + len(before), len(before) // 4 if bits <= 8 else 0
    header = struct.pack(
        "<IiiHHIIiiII", 40, WIDTH, height, 1, bits, compression, len(body), 0, 0, colours, 0
    )
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + before + body


def others() -> Iterator[Cell]:
    """WebP lossy, lossless, with alpha; GIF; AVIF of 8, 10 and 12 bits."""
    for mode, lossless, quality in itertools.product(("RGB", "RGBA"), (False, True), (30, 90)):
        make = partial(factory.encoded, picture(mode), "WEBP", lossless=lossless, quality=quality)
        yield Cell(
            f"webp-{mode}{'-lossless' * lossless}-{quality}", make, 1 if mode == "RGBA" else 0
        )
    for mode, interlace in itertools.product(("P", "L", "1"), (False, True)):
        shown = picture("RGB").quantize(60) if mode == "P" else picture(mode)
        yield Cell(
            f"gif-{mode}{'-interlaced' * interlace}",
            partial(factory.encoded, shown, "GIF", interlace=interlace),
        )
    yield Cell(
        "gif-transparent",
        partial(factory.encoded, picture("RGB").quantize(60), "GIF", transparency=7),
    )
    for bits, subsampling in itertools.product((8, 10, 12), ("on", "off")):
        options = {"compression": "av1", "bitdepth": bits, "Q": 90, "subsample_mode": subsampling}
        # Two libraries convert YCbCr, and spread shared chroma, each in its own way.
        yield Cell(
            f"avif-{bits}-{subsampling}",
            partial(vips_image(samples(3, 8)).heifsave_buffer, **options),
            40 if subsampling == "on" else 3,
        )


def picture(mode: str) -> Image.Image:
    """The samples as Pillow's image; RGBA has an alpha of its own."""
    shown = Image.fromarray(samples(4, 8).astype(np.uint8), "RGBA")
    return (
        shown if mode == "RGBA" else Image.fromarray(samples(3, 8).astype(np.uint8)).convert(mode)
    )


def vips_image(shown: np.ndarray) -> pyvips.Image:
    """The samples as libvips's image."""
    return pyvips.Image.new_from_array(shown.astype(np.uint8))
