"""Coded data that is missing or damaged is refused, whatever its decoder would make of it; what is
out of place elsewhere is a flag.
"""

import functools
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from ray_app.errors import Status
from ray_app.images import decode_image, jpeg
from tests.images import layouts, tiff_writer
from tests.images.outcomes import LIMITS, pixels, refusal, status_of
from tests.make import images

MISSING = {Status.TRUNCATED_IMAGE, Status.CORRUPT_IMAGE}
EOI = b"\xff\xd9"


@functools.cache
def photos(count: int = 30, **options) -> list[bytes]:
    """JPEGs of several sizes and qualities."""
    made = [images.photo(160 + 8 * n, 120 + 4 * n, seed=n) for n in range(count)]
    return [
        images.encoded(photo, "JPEG", quality=60 + n, **options) for n, photo in enumerate(made)
    ]


def scan_of(data: bytes) -> tuple[int, int]:
    """Where the coded data of a JPEG of one scan stands."""
    start = data.index(b"\xff\xda")
    return start + 2 + int.from_bytes(data[start + 2 : start + 4], "big"), data.rindex(EOI)


def halved(data: bytes) -> bytes:
    start, end = scan_of(data)
    return data[: (start + end) // 2] + EOI


def lacking_a_fifth(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = scan_of(data)
    at = start + int(rng.integers(0, (end - start) * 3 // 5))
    return data[:at] + data[at + (end - start) // 5 :]


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}], ids=str
)
def test_jpeg_that_lacks_a_half_or_a_fifth_is_refused(options):
    rng, files = np.random.default_rng(1), photos(**options)
    assert {status_of(data) for data in files} == {Status.OK}
    assert {status_of(halved(data)) for data in files} == {Status.TRUNCATED_IMAGE}
    assert sum(status_of(lacking_a_fifth(data, rng)) in MISSING for data in files) >= 28


def taller(data: bytes, times: int = 3) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    height = times * int.from_bytes(data[at : at + 2], "big")
    return images.patched(data, at, struct.pack(">H", height))


def test_jpeg_header_taller_than_its_scan_is_refused():
    outcome = refusal(taller(images.encoded(images.photo(640, 480), "JPEG")))
    assert outcome.status == Status.TRUNCATED_IMAGE
    assert 450 < int(outcome.detail.split()[1]) < 490
    assert "of 1440 rows" in outcome.detail


def test_jpeg_with_a_marker_inside_its_scan_is_refused():
    for data in photos(6):
        start, end = scan_of(data)
        at = (start + end) // 2
        assert status_of(data[:at] + b"\xff\xe7\0\4ab" + data[at:]) in MISSING


def test_jpeg_with_an_unknown_code_is_corrupt():
    data = layouts.flat_blocks(((2, 2), (1, 1), (1, 1)))
    broken = refusal(images.patched(data, scan_of(data)[0], b"\xff\0\xff\0"))
    assert (broken.status, broken.detail) == (Status.CORRUPT_IMAGE, "bad Huffman code")


def test_progressive_jpeg_without_one_of_its_scans_is_refused():
    data = images.encoded(images.photo(200, 150), "JPEG", progressive=True)
    whole = list(jpeg.iter_segments(data))
    scans = [n for n, segment in enumerate(whole) if segment.marker == jpeg.SOS]
    assert len(scans) == 10
    for left_out in scans:
        for rest in ([*whole[:left_out], *whole[left_out + 2 :]], whole[:left_out]):
            parts = b"".join(segment.encode(data) for segment in rest)
            assert status_of(b"\xff\xd8" + parts + EOI) in MISSING, left_out


def joined_restarts(data: bytes, parts: list[bytes], stray: bytes = b"") -> bytes:
    """The scan put together anew: what is coded, its restart markers, and a few bytes before each,
    as webcams and scanners leave them.
    """
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    coded = [parts[0], *(stray + b"\xff" + marker + part for marker, part in pairs)]
    start, end = scan_of(data)
    return data[:start] + b"".join(coded) + data[end:]


def split_at_restarts(data: bytes) -> list[bytes]:
    return jpeg._RESTART.split(data[slice(*scan_of(data))])


IRREGULAR = {
    "bytes between segments": lambda data: data[:20] + b"garbage" + data[20:],
    "an Adobe segment of no known transform": lambda data: (
        data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x4c" + data[20:]
    ),
    "spectral selection in a baseline scan": lambda data: data.replace(b"\0\x3f\0", b"\0\0\0"),
    "bytes before the end": lambda data: data[:-2] + b"\x55\x55\x55" + EOI,
}


@pytest.mark.parametrize("name", IRREGULAR)
def test_jpeg_that_is_irregular_outside_its_scan_is_flagged(name):
    """The flag hides no damage."""
    data = images.encoded(images.photo(160, 120), "JPEG")
    spoiled = IRREGULAR[name](data)
    assert spoiled != data
    assert "irregular_jpeg" in decode_image(spoiled, LIMITS).facts.flags
    np.testing.assert_array_equal(pixels(spoiled), pixels(data))
    if name != "bytes before the end":
        assert status_of(IRREGULAR[name](halved(data))) == Status.TRUNCATED_IMAGE
        assert status_of(IRREGULAR[name](taller(data))) == Status.TRUNCATED_IMAGE


def test_jpeg_with_stray_bytes_before_restarts_is_flagged():
    data = images.encoded(images.photo(160, 120), "JPEG", restart_marker_rows=1)
    parts = split_at_restarts(data)
    stray = joined_restarts(data, parts, b"\x12\x34")
    assert decode_image(stray, LIMITS).facts.flags == ("irregular_jpeg",)
    np.testing.assert_array_equal(pixels(stray), pixels(data))
    shortened = [*parts[:4], parts[4][: len(parts[4]) // 2], *parts[5:]]
    for damaged in (shortened, parts[:4] + parts[6:]):
        assert status_of(joined_restarts(data, damaged, b"\x12\x34")) in MISSING


@pytest.mark.parametrize("end", [b"", EOI])
def test_jpeg_with_many_fill_bytes_is_refused_at_once(end):
    """As of erased flash memory behind a header. A worker that looks at it with the interpreter's
    lock held could not be ended.
    """
    began = time.thread_time()
    assert status_of(images.jpeg()[:20] + b"\xff" * 300_000 + end) in MISSING
    assert time.thread_time() - began < 2


def test_jpeg_of_ten_thousand_segments_is_read_at_once():
    many_parts = images.encoded(images.photo(1200, 800), "JPEG", restart_marker_blocks=1)
    many_parts = joined_restarts(many_parts, split_at_restarts(many_parts), b"\x12\x34")
    few_scans = images.encoded(images.photo(), "JPEG", progressive=True)[:-2]
    began = time.thread_time()
    assert status_of(many_parts) == Status.OK
    assert status_of(few_scans + b"\xff\xda\0\2" * 2_000_000 + EOI) in MISSING
    assert time.thread_time() - began < 2


# Where zeros are black, nothing tells them from what was there.
UNCOMPRESSED = ("bmp", "tiff", "tiff_big", "ppm")
OPTIONS = {
    "tiff_lzw": {"compression": "tiff_lzw"},
    "tiff_jpeg": {"compression": "jpeg"},
    "webp_lossless": {"lossless": True},
    "webp_extended": {"icc_profile": images.srgb_profile()},
    "jpeg_progressive": {"progressive": True},
}


def with_zeros(data: bytes, there: int) -> bytes:
    return data[:there] + bytes(len(data) - there)


@pytest.mark.parametrize("name", [name for name in images.SOUND if name not in UNCOMPRESSED])
def test_file_that_ends_in_zeros_is_refused(name):
    format_name = images.SOUND[name][0].replace("HEIC", "HEIF")
    data = images.encoded(images.photo(320, 240), format_name, **OPTIONS.get(name, {}))
    assert status_of(data) == Status.OK
    for fraction in (0.5, 0.8):
        assert status_of(with_zeros(data, int(len(data) * fraction))) in MISSING


@pytest.mark.parametrize(
    ("below", "lossless"), [("white", False), ("black", True), ("green", False)]
)
def test_webp_whose_flat_half_is_coded_in_zeros_is_whole(below, lossless):
    picture = Image.new("RGB", (450, 1200), below)
    picture.paste(images.photo(450, 300))
    data = images.encoded(picture, "WEBP", lossless=lossless, method=0, quality=95)
    assert status_of(data) == Status.OK
    assert status_of(with_zeros(data, len(data) // 3)) in MISSING


def png_of_height(data: bytes, height: int) -> bytes:
    header = data[12:20] + struct.pack(">I", height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize("mode", ["1", "RGB", "I;16"])
def test_png_header_taller_than_its_data_is_truncated(mode):
    is_wide = mode == "I;16"
    picture = Image.new(mode, (64, 48), 9) if is_wide else images.photo(64, 48).convert(mode)
    data = images.encoded(picture, "PNG")
    assert status_of(data) == Status.OK
    assert status_of(png_of_height(data, 49)) == Status.TRUNCATED_IMAGE


def test_png_whose_pixels_do_not_match_their_checksum_is_corrupt():
    data = images.encoded(images.photo(), "PNG", compress_level=0)
    at = data.index(b"IDAT") + 3000
    assert status_of(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]) == Status.CORRUPT_IMAGE


SAMPLES = np.asarray(images.photo(60, 50)).astype(int)


@pytest.mark.parametrize(
    "compression", [tiff_writer.NONE, tiff_writer.LZW, tiff_writer.DEFLATE, tiff_writer.PACKBITS]
)
def test_tiff_that_lacks_strips_is_truncated(compression):
    whole = functools.partial(tiff_writer.tiff, SAMPLES, 8, tiff_writer.RGB)
    assert status_of(whole(compression=compression)) == Status.OK
    taller = whole(compression=compression, tags={257: [90]})
    assert status_of(taller) == Status.TRUNCATED_IMAGE
    rows = tiff_writer.packed(SAMPLES[:10], 8, "<", predictor=False)
    strip = tiff_writer.pressed(rows, compression)
    tags = {256: [60], 257: [50], 258: [8] * 3, 259: [compression], 262: [2], 277: [3], 278: [10]}
    for strips, expected in (
        ([strip] * 5, {Status.OK}),
        ([strip] * 3, {Status.TRUNCATED_IMAGE}),
        ([strip] * 3 + [b""] * 2, {Status.TRUNCATED_IMAGE}),
        ([strip] * 4 + [strip[: len(strip) // 2]], MISSING),
    ):
        assert status_of(tiff_writer.container(tags, strips)) in expected


def test_tiff_tags_that_are_not_used_take_no_memory():
    """Thirty that say that a million numbers are in the same place."""
    tags = {65_000: [0] * 1_000_000} | {65_001 + n: [1, 2, 3] for n in range(30)}
    data = bytearray(tiff_writer.tiff(SAMPLES, 8, tiff_writer.RGB, tags=tags))
    start = struct.unpack_from("<I", data, 4)[0] + 2
    places = range(start, start + 12 * struct.unpack_from("<H", data, start - 2)[0], 12)
    entries = {struct.unpack_from("<H", data, at)[0]: at + 2 for at in places}
    for tag in range(65_001, 65_031):
        shared = data[entries[65_000] : entries[65_000] + 10]
        data[entries[tag] : entries[tag] + 10] = shared
    tracemalloc.start()
    assert status_of(bytes(data)) == Status.OK
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6


def test_gif_and_bmp_taller_than_their_data_are_truncated():
    gif = bytearray(images.encoded(images.photo(), "GIF"))
    at = gif.index(b",\0\0\0\0\x60\0\x40\0")
    gif[8:10] = gif[at + 7 : at + 9] = struct.pack("<H", 200)
    assert status_of(bytes(gif)) == Status.TRUNCATED_IMAGE
    bmp = images.encoded(images.photo(), "BMP")
    assert status_of(bmp[:22] + struct.pack("<i", 200) + bmp[26:]) == Status.TRUNCATED_IMAGE
    runs = layouts.bmp_runs(layouts.samples(1, 8))
    assert status_of(runs[: len(runs) // 2] + b"\0\1") == Status.TRUNCATED_IMAGE


@pytest.mark.parametrize("height", [36, 37])
def test_interlaced_png_without_its_last_pass_is_truncated(height):
    data = layouts.png(layouts.samples(3, 8)[:height], 8, 2, interlaced=True)
    assert status_of(data) == Status.OK
    at = data.index(b"IDAT")
    lines = zlib.decompress(data[at + 4 : -16])
    body = images.chunk(b"IDAT", zlib.compress(lines[: -(height // 2) * (1 + 3 * layouts.WIDTH)]))
    assert status_of(data[: at - 4] + body + images.chunk(b"IEND", b"")) == Status.TRUNCATED_IMAGE
