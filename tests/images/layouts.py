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

from tests.images import tiff_writer
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
from tests.make import images

WIDTH, HEIGHT = 45, 37  # no multiple of a tile, a byte or a unit
# Adam7: x, y, steps
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
ADAM7.append((0, 1, 1, 2))


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
    bands = [
        np.sin(x / (5 + band)) * 0.25 + np.cos(y / (7 - band)) * 0.2 + 0.5 for band in range(count)
    ]
    waves = np.stack(bands, -1)
    noise = np.random.default_rng(count).normal(0, 0.02, waves.shape)
    return np.round((waves + noise).clip(0, 1) * (2**bits - 1)).astype(np.int64)


def cells(step: int = 1) -> Iterator[Cell]:
    """All of them, or of the products of TIFF's options each `step`-th."""
    yield from itertools.islice(tiffs(), 0, None, step)
    for family in (other_tiffs, pngs, jpegs, bmps, others):
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
    predicted = [(LZW, False), (LZW, True), (DEFLATE, False), (DEFLATE, True)]
    packings = [(NONE, False), (PACKBITS, False), *predicted]
    ways = list(itertools.product(packings, (0, 16), "<>", (False, True)))
    for (photometric, count, extra, *known), bits, planar, (
        packing,
        tile,
        order,
        big,
    ) in itertools.product(_TIFFS, (1, 2, 4, 8, 12, 16, 32), (False, True), ways):
        is_known, (compression, predictor) = bits in known[planar], packing
        if (
            (planar and count == 1)
            or (photometric == PALETTE and bits > 8)
            or (photometric in (YCBCR, LAB) and bits != 8)
            or (predictor and (bits < 8 or bits == 12))
            or (not is_known and (compression != NONE or tile))
        ):
            continue
        little_only = bits == 12 or (bits == 16 and photometric == WHITE_IS_ZERO)
        is_read = is_known and not (order == ">" and (big or little_only))
        planes = "planar" if planar else "chunky"
        name = f"tiff-{photometric}-{count}{extra}-{bits}-{planes}-{compression}{'p' * predictor}"
        options = {"order": order, "big": big, "planar": planar, "compression": compression}
        options |= {"predictor": predictor, "tile": tile}
        name += f"-tile{tile}-{order}{'big' * big}"
        yield _tiff_cell(name, photometric, count, bits, extra, is_read, options)


def _tiff_cell(name, photometric, count, bits, extra, is_read, options) -> Cell:
    tags = {}
    if photometric == PALETTE:
        tags = {320: np.random.default_rng(bits).integers(0, 65536, 3 << bits).tolist()}
    if photometric == YCBCR:
        tags = {530: [1, 1]}

    def shown() -> np.ndarray:
        values, colours = samples(count, bits), count - len(extra)
        # Signed, and weak: littlecms and libvips differ in the white that strong colours are
        # relative to.
        if photometric == LAB:
            weak = (values[..., 1:] - 128) // 12 % 256
            return np.concatenate([values[..., :1] // 2 + 64, weak], -1)
        if 1 not in extra:
            return values
        alpha = values[..., colours:]  # the colours are multiplied by it
        mixed = np.round(values[..., :colours] * (alpha[..., :1] / (2**bits - 1)))
        return np.concatenate([mixed.astype(np.int64), alpha], -1)

    return Cell(
        name,
        lambda: tiff(shown(), bits, photometric, extra=extra, tags=tags, **options),
        6 if photometric == LAB else 2 if photometric == YCBCR or {1, 2} & set(extra) else 0,
        is_read,
        lambda: _shown(shown(), bits, photometric, extra, tags.get(320)),
        # libvips leaves YCbCr as it is, and any further sample it shows as it stands in the file.
        asks_libvips=photometric != YCBCR and extra in ((), (2,)),
    )


def _shown(shown, bits, photometric, extra, colour_map) -> np.ndarray:
    """What is to be seen, in RGB: the high 8 bits, alpha on white."""
    eight = shown >> (bits - 8) if bits > 8 else shown * (255 // (2**bits - 1))
    colours = shown.shape[2] - len(extra)
    if photometric == PALETTE:
        rgb = (np.array(colour_map).reshape(3, -1) >> 8)[:, shown[..., 0]].transpose(1, 2, 0)
    elif photometric in (CMYK, YCBCR):
        mode = "CMYK" if photometric == CMYK else "YCbCr"
        inks = np.ascontiguousarray(eight[..., :colours].astype(np.uint8))
        rgb = np.asarray(Image.fromarray(inks, mode).convert("RGB")).astype(int)
    elif photometric == LAB:
        signed = eight[..., 1:].astype(np.uint8).view(np.int8)
        lab = np.concatenate([eight[..., :1] / 2.55, signed], -1).astype(np.float32)
        image = pyvips.Image.new_from_array(lab, interpretation="lab")
        rgb = image.colourspace("srgb").numpy().astype(int)
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
    for compression in ("group3", "group4", "tiff_ccitt"):
        make = partial(images.encoded, picture("1"), "TIFF", compression=compression)
        yield Cell(f"tiff-{compression}", make)
    rgb, grey = samples(3, 8), samples(1, 8)
    # With chroma halved, and in full.
    for tile, quality in itertools.product((False, True), (75, 95)):
        options = {"compression": "jpeg", "tile": tile, "Q": quality}
        make = partial(vips_image(rgb).tiffsave_buffer, **options)
        yield Cell(f"tiff-jpeg-tile{tile:d}-{quality}", make)
    ways = (None, Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM,
            Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)  # fmt: skip
    for (orientation, way), compression in itertools.product(enumerate(ways, 1), (NONE, LZW)):
        seen = np.asarray(picture("RGB") if way is None else picture("RGB").transpose(way))
        make = partial(tiff, rgb, 8, RGB, compression=compression, tags={274: [orientation]})
        name, truth = f"tiff-orientation-{orientation}-{compression}", lambda seen=seen: seen
        yield Cell(name, make, truth=truth, asks_libvips=False)
    colour_map = np.random.default_rng(8).integers(0, 256, 768)
    make = partial(tiff, grey, 8, PALETTE, tags={320: colour_map.tolist()})
    seen = colour_map.reshape(3, -1)[:, grey[..., 0]].transpose(1, 2, 0)
    yield Cell("tiff-palette-8-bit-map", make, truth=lambda: seen)
    make = partial(tiff, grey, 8, WHITE_IS_ZERO, tile=16, places=tiff_writer.STRIPS)
    yield Cell("tiff-tiles-as-strips", make, truth=lambda: np.repeat(255 - grey, 3, axis=-1))
    kinds = (SIGNED, grey, 8), (SIGNED, grey, 16), (FLOAT, grey / 255, 32), (COMPLEX, grey, 32)
    for kind, values, bits in kinds:
        make = partial(tiff, values, bits, BLACK_IS_ZERO, sample_format=kind)
        yield Cell(f"tiff-format{kind}-{bits}", make, is_read=False)


SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's colour type
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def pngs() -> Iterator[Cell]:
    """Colour types × bits × interlace × colour keys; small sizes, split pixel data and chunks of
    metadata, as PngSuite has them.
    """
    for colour, depths in DEPTHS.items():
        for depth, interlaced, keyed in itertools.product(depths, (False, True), (False, True)):
            if keyed and colour in (4, 6):
                continue
            extra = _png_palette(depth, keyed) if colour == 3 else ()
            if keyed and colour != 3:
                extra = _png_key(colour, depth)
            shown = samples(SAMPLES[colour], depth)
            yield Cell(
                f"png-{colour}-{depth}{'-adam7' * interlaced}{'-trns' * keyed}",
                partial(png, shown, depth, colour, interlaced=interlaced, extra=extra),
                1 if colour in (4, 6) or (keyed and colour == 3) else 0,
            )
        yield from _png_variants(colour, max(depths))


def _png_variants(colour: int, depth: int) -> Iterator[Cell]:
    shown = samples(SAMPLES[colour], depth)
    palette = _png_palette(depth, False) if colour == 3 else ()
    tolerance = 1 if colour in (4, 6) else 0
    made = partial(png, depth=depth, colour=colour)
    whole = made(shown, extra=palette)
    for width, height, interlaced in itertools.product((2, 3, 5, 9), (2, 4, 8), (False, True)):
        make = partial(made, shown[:height, :width], interlaced=interlaced, extra=palette)
        yield Cell(f"png-{colour}-{width}x{height}{'-adam7' * interlaced}", make, tolerance)
    for piece_bytes in (1, 64):
        make = partial(_split_png, whole, piece_bytes)
        yield Cell(f"png-{colour}-idat-{piece_bytes}", make, tolerance)
    for name, chunk in _png_chunks(colour, depth).items():
        make = partial(made, shown, extra=(*palette, chunk))
        yield Cell(f"png-{colour}-{name}", make, tolerance)
        make = partial(images.patched_after, whole, len(whole) - 12, chunk)
        yield Cell(f"png-{colour}-{name}-after", make, tolerance)


def _split_png(data: bytes, piece_bytes: int) -> bytes:
    """The same with its pixel data in many chunks, and with empty ones among them."""
    at = data.index(b"IDAT")
    body = data[at + 4 : -16]
    starts = range(0, len(body), piece_bytes)
    pieces = [images.chunk(b"IDAT", body[start : start + piece_bytes]) for start in starts]
    return data[: at - 4] + images.chunk(b"IDAT", b"").join([b"", *pieces]) + data[-12:]


def _png_chunks(colour: int, depth: int) -> dict[str, bytes]:
    chunks = {
        "gAMA": struct.pack(">I", 45455),
        "cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
        "sBIT": bytes([5] * (3 if colour == 3 else SAMPLES[colour])),
        "bKGD": bytes({0: 2, 2: 6, 3: 1, 4: 2, 6: 6}[colour]),
        "pHYs": struct.pack(">IIB", 1, 4, 0),
        "tIME": struct.pack(">H5B", 2000, 1, 1, 12, 34, 56),
        "sPLT": b"six-cube\0\x08" + bytes(36),
        "tEXt": b"Title\0PngSuite",
        "zTXt": b"Disclaimer\0\0" + zlib.compress(b"Freeware."),
        "iTXt": b"Title\0\0\0en\0Title\0PngSuite",
        "eXIf": images.exif(1)[6:],
        "iCCP": b"sRGB\0\0" + zlib.compress(images.srgb_profile()),
        "cICP": b"\1\x0d\0\1",
        "prVt": bytes(100),
    }
    if colour == 3:
        chunks["hIST"] = bytes(2 << depth)
    if colour in (2, 6):
        chunks["PLTE"] = bytes(range(216))
    return {name: images.chunk(name.encode(), body) for name, body in chunks.items()}


def png(shown: np.ndarray, depth: int, colour: int, *, interlaced=False, extra=()) -> bytes:
    """A PNG of samples (height × width × samples)."""
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    parts = [shown[top::down, left::across] for left, top, across, down in passes]
    rows = [row[None] for part in parts if part.size for row in part]
    lines = [b"\0" + tiff_writer.packed(row, depth, ">", predictor=False) for row in rows]
    size = shown.shape[1], shown.shape[0]
    header = images.chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced))
    body = images.chunk(b"IDAT", zlib.compress(b"".join(lines))) + images.chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body


def _png_palette(depth: int, keyed: bool) -> tuple[bytes, ...]:
    rng = np.random.default_rng(depth)
    palette, alpha = (
        rng.integers(0, 256, count << depth, dtype=np.uint8).tobytes() for count in (3, 1)
    )
    chunks = images.chunk(b"PLTE", palette), images.chunk(b"tRNS", alpha)
    return chunks if keyed else chunks[:1]


def _png_key(colour: int, depth: int) -> tuple[bytes, ...]:
    key = samples(SAMPLES[colour], depth)
    key = key.max(axis=(0, 1)) if colour == 0 else key[HEIGHT // 2, WIDTH // 2]
    return (images.chunk(b"tRNS", key.astype(">u2").tobytes()),)


def jpegs() -> Iterator[Cell]:
    """Subsampling × progressive × grey × CMYK, YCCK, RGB × restart markers; rare sampling."""
    for mode, progressive, restarts in itertools.product(
        ("RGB", "L", "CMYK"), (False, True), (0, 1, 3)
    ):
        for subsampling in (0, 1, 2) if mode == "RGB" else (-1,):
            options = {"progressive": progressive, "restart_marker_blocks": restarts}
            options |= {"subsampling": subsampling, "quality": 85}
            name = f"jpeg-{mode}-{subsampling}{'-progressive' * progressive}-rst{restarts}"
            yield Cell(name, partial(images.encoded, picture(mode), "JPEG", **options))
    yield Cell("jpeg-adobe-rgb", partial(images.encoded, picture("RGB"), "JPEG", keep_rgb=True))
    yield Cell("jpeg-ycck", images.ycck)
    pixels = np.asarray(picture("RGB"))
    for sampling in ("440", "411"):
        make = partial(simplejpeg.encode_jpeg, pixels, colorsubsampling=sampling)
        yield Cell(f"jpeg-{sampling}", make)
    for luma, *chroma in ((42, 11, 11), (31, 11, 11), (22, 21, 12), (11, 22, 11)):
        factors = tuple(divmod(factor, 10) for factor in (luma, *chroma))
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
    coded_segments = (
        b"\xff" + kind + struct.pack(">H", 2 + len(body)) + body for kind, body in segments
    )
    return b"".join([b"\xff\xd8", *coded_segments, coded, b"\xff\xd9"])


def bmps() -> Iterator[Cell]:
    """Bits × top-down, run lengths, bit fields; libvips reads none, but whoever wrote them knows
    what they show.
    """
    for mode in ("1", "L", "P"):
        shown = picture("RGB").quantize(60) if mode == "P" else picture(mode)
        make = partial(images.encoded, shown, "BMP")
        seen = np.asarray(shown.convert("RGB"))
        yield Cell(f"bmp-{mode}", make, truth=lambda seen=seen: seen, asks_libvips=False)
    rgb, grey = samples(3, 8), samples(1, 8)
    flat = rgb[..., ::-1].astype(np.uint8).reshape(HEIGHT, -1)
    lines = np.pad(flat, ((0, 0), (0, -3 * WIDTH % 4)))
    for top_down in (False, True):
        body = (lines if top_down else lines[::-1]).tobytes()
        make = partial(_bmp, body, 24, height=-HEIGHT if top_down else HEIGHT)
        yield Cell(f"bmp-24{'-top-down' * top_down}", make, truth=lambda: rgb)
    yield Cell("bmp-rle8", partial(bmp_runs, grey), truth=lambda: np.repeat(grey, 3, axis=-1))
    rgb_565 = np.stack([samples(3, 5)[..., 0], samples(3, 6)[..., 1], samples(3, 5)[..., 2]], -1)
    packed = (rgb_565[..., 0] << 11 | rgb_565[..., 1] << 5 | rgb_565[..., 2]).astype("<u2")
    body = np.pad(packed[::-1], ((0, 0), (0, WIDTH % 2))).tobytes()
    seen = np.stack([rgb_565[..., band] * 255 // top for band, top in enumerate((31, 63, 31))], -1)
    for masks in ((0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1E)):
        make = partial(_bmp, body, 16, struct.pack("<III", *masks), compression=3)
        name, is_read = f"bmp-bitfields-{masks[2]:x}", masks[2] == 0x1F
        yield Cell(name, make, is_read=is_read, truth=lambda: seen)


def bmp_runs(grey: np.ndarray) -> bytes:
    rows = grey[::-1, :, 0].tolist()
    lines = b"".join(b"".join(bytes((1, value)) for value in row) + b"\0\0" for row in rows)
    palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    return _bmp(lines + b"\0\1", 8, palette, compression=1)


def _bmp(body: bytes, bits: int, before: bytes = b"", *, compression=0, height=HEIGHT) -> bytes:
    start, colours = 54 + len(before), len(before) // 4 if bits <= 8 else 0
    facts = (40, WIDTH, height, 1, bits, compression, len(body), 0, 0, colours, 0)
    head = struct.pack("<IHHI", start + len(body), 0, 0, start)
    return b"BM" + head + struct.pack("<IiiHHIIiiII", *facts) + before + body


def others() -> Iterator[Cell]:
    """WebP lossy, lossless, with alpha; GIF; AVIF of 8, 10 and 12 bits."""
    for mode, lossless, quality in itertools.product(("RGB", "RGBA"), (False, True), (30, 90)):
        make = partial(images.encoded, picture(mode), "WEBP", lossless=lossless, quality=quality)
        name = f"webp-{mode}{'-lossless' * lossless}-{quality}"
        yield Cell(name, make, 1 if mode == "RGBA" else 0)
    for mode, interlace in itertools.product(("P", "L", "1"), (False, True)):
        shown = picture("RGB").quantize(60) if mode == "P" else picture(mode)
        make = partial(images.encoded, shown, "GIF", interlace=interlace)
        yield Cell(f"gif-{mode}{'-interlaced' * interlace}", make)
    make = partial(images.encoded, picture("RGB").quantize(60), "GIF", transparency=7)
    yield Cell("gif-transparent", make)
    for bits, subsampling in itertools.product((8, 10, 12), ("on", "off")):
        options = {"compression": "av1", "bitdepth": bits, "Q": 90, "subsample_mode": subsampling}
        make = partial(vips_image(samples(3, 8)).heifsave_buffer, **options)
        # Two libraries convert YCbCr, and spread shared chroma, each in its own way.
        yield Cell(f"avif-{bits}-{subsampling}", make, 40 if subsampling == "on" else 3)


def picture(mode: str) -> Image.Image:
    """The samples as Pillow's image; RGBA has an alpha of its own."""
    if mode == "RGBA":
        return Image.fromarray(samples(4, 8).astype(np.uint8), "RGBA")
    return Image.fromarray(samples(3, 8).astype(np.uint8)).convert(mode)


def vips_image(shown: np.ndarray) -> pyvips.Image:
    """The samples as libvips's image."""
    return pyvips.Image.new_from_array(shown.astype(np.uint8))
