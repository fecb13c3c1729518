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
from ray_app.images import ImageRefused, decode_image, jpeg
from tests.images import factory, layouts, tiff_writer
from tests.images.outcomes import LIMITS, outcome_of, status_of

MISSING = {Status.TRUNCATED_IMAGE, Status.CORRUPT_IMAGE}
EOI = b"\xff\xd9"


@functools.cache
def photos(**options) -> list[bytes]:
    """Thirty JPEGs of several sizes and qualities."""
    return [
        factory.encoded(
            factory.photo(160 + 8 * n, 120 + 4 * n, seed=n), "JPEG", quality=60 + n, **options
        )
        for n in range(30)
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
def test_of_thirty_jpegs_all_that_lack_a_half_and_28_that_lack_a_fifth_are_refused(options):
    rng = np.random.default_rng(1)
    assert {status_of(data) for data in photos(**options)} == {Status.OK}
    assert [status_of(halved(data)) for data in photos(**options)] == [Status.TRUNCATED_IMAGE] * 30
    assert sum(status_of(lacking_a_fifth(data, rng)) in MISSING for data in photos(**options)) >= 28


def taller(data: bytes, times: int = 3) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return factory.patched(
        data, at, struct.pack(">H", times * int.from_bytes(data[at : at + 2], "big"))
    )


def test_a_header_that_is_taller_than_its_scan_is_refused_and_says_how_much_is_there():
    data = factory.encoded(factory.photo(640, 480), "JPEG")
    outcome = outcome_of(taller(data))
    assert isinstance(outcome, ImageRefused)
    assert outcome.status == Status.TRUNCATED_IMAGE
    assert 450 < int(outcome.detail.split()[1]) < 490
    assert "of 1440 rows" in outcome.detail


def test_a_marker_inside_a_scan_and_a_code_that_no_table_has_are_refused():
    for data in photos()[:6]:
        start, end = scan_of(data)
        at = (start + end) // 2
        assert status_of(data[:at] + b"\xff\xe7\0\4ab" + data[at:]) in MISSING
    data = layouts.flat_blocks(((2, 2), (1, 1), (1, 1)))
    broken = outcome_of(factory.patched(data, scan_of(data)[0], b"\xff\0\xff\0"))
    assert (broken.status, broken.detail) == (Status.CORRUPT_IMAGE, "bad Huffman code")


def test_a_progressive_jpeg_without_any_one_of_its_scans_is_refused():
    data = factory.encoded(factory.photo(200, 150), "JPEG", progressive=True)
    whole = list(jpeg.segments(data))
    scans = [n for n, segment in enumerate(whole) if segment.marker == jpeg.SOS]
    assert len(scans) == 10
    for left_out in scans:
        for rest in ([*whole[:left_out], *whole[left_out + 2 :]], whole[:left_out]):
            assert (
                status_of(b"\xff\xd8" + b"".join(segment.encoded(data) for segment in rest) + EOI)
                in MISSING
            ), left_out


def joined_restarts(data: bytes, parts: list[bytes], stray: bytes = b"") -> bytes:
    """The scan put together anew: what is coded, its restart markers, and a few bytes before each,
    as webcams and scanners leave them.
    """
    coded = parts[0] + b"".join(
        stray + b"\xff" + marker + part
        for marker, part in zip(parts[1::2], parts[2::2], strict=True)
    )
    return data[: scan_of(data)[0]] + coded + data[scan_of(data)[1] :]


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
def test_what_is_out_of_place_outside_the_scan_is_a_flag_and_hides_no_damage(name):
    data = factory.encoded(factory.photo(160, 120), "JPEG")
    spoiled = IRREGULAR[name](data)
    assert spoiled != data
    image = decode_image(spoiled, LIMITS)
    assert "irregular_jpeg" in image.facts.flags
    np.testing.assert_array_equal(
        np.asarray(image.pixels), np.asarray(decode_image(data, LIMITS).pixels)
    )
    if name != "bytes before the end":
        assert status_of(IRREGULAR[name](halved(data))) == Status.TRUNCATED_IMAGE
        assert status_of(IRREGULAR[name](taller(data))) == Status.TRUNCATED_IMAGE


def test_stray_bytes_before_restart_markers_are_a_flag_and_hide_no_damage():
    data = factory.encoded(factory.photo(160, 120), "JPEG", restart_marker_rows=1)
    parts = split_at_restarts(data)
    image = decode_image(joined_restarts(data, parts, b"\x12\x34"), LIMITS)
    assert image.facts.flags == ("irregular_jpeg",)
    np.testing.assert_array_equal(
        np.asarray(image.pixels), np.asarray(decode_image(data, LIMITS).pixels)
    )
    shortened = [*parts[:4], parts[4][: len(parts[4]) // 2], *parts[5:]]
    without_one = parts[:4] + parts[6:]
    for damaged in (shortened, without_one):
        assert status_of(joined_restarts(data, damaged, b"\x12\x34")) in MISSING


@pytest.mark.parametrize("end", [b"", EOI])
def test_a_long_run_of_fill_bytes_costs_no_more_than_its_length(end):
    """As of erased flash memory behind a header. A worker that looks at it with the interpreter's
    lock held could not be ended.
    """
    began = time.thread_time()
    assert status_of(factory.jpeg()[:20] + b"\xff" * 300_000 + end) in MISSING
    assert time.thread_time() - began < 2


def test_ten_thousand_restarts_and_segments_cost_no_more_than_a_picture():
    many_parts = factory.encoded(factory.photo(1200, 800), "JPEG", restart_marker_blocks=1)
    many_parts = joined_restarts(many_parts, split_at_restarts(many_parts), b"\x12\x34")
    many_scans = (
        factory.encoded(factory.photo(), "JPEG", progressive=True)[:-2]
        + b"\xff\xda\0\2" * 2_000_000
        + EOI
    )
    began = time.thread_time()
    assert status_of(many_parts) == Status.OK
    assert status_of(many_scans) in MISSING
    assert time.thread_time() - began < 2


# where zeros are black, and nothing tells them from what was there
UNCOMPRESSED = ("bmp", "tiff", "tiff_big", "ppm")


@pytest.mark.parametrize("name", [name for name in factory.SOUND if name not in UNCOMPRESSED])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_zeros_in_place_of_the_rest_are_refused(name, share):
    picture = factory.photo(320, 240)
    options = {
        "tiff_lzw": {"compression": "tiff_lzw"},
        "tiff_jpeg": {"compression": "jpeg"},
        "webp_lossless": {"lossless": True},
    }
    options |= {
        "webp_extended": {"icc_profile": factory.srgb_profile()},
        "jpeg_progressive": {"progressive": True},
    }
    format_name = {"HEIC": "HEIF"}.get(factory.SOUND[name][0], factory.SOUND[name][0])
    data = factory.encoded(picture, format_name, **options.get(name, {}))
    there = int(len(data) * share)
    assert status_of(data) == Status.OK
    assert status_of(data[:there] + bytes(len(data) - there)) in MISSING


@pytest.mark.parametrize(
    ("below", "lossless"), [("white", False), ("black", True), ("green", False)]
)
def test_a_webp_whose_flat_half_is_coded_in_zeros_is_whole(below, lossless):
    picture = Image.new("RGB", (450, 1200), below)
    picture.paste(factory.photo(450, 300))
    data = factory.encoded(picture, "WEBP", lossless=lossless, method=0, quality=95)
    assert status_of(data) == Status.OK
    assert status_of(data[: len(data) // 3] + bytes(len(data) - len(data) // 3)) in MISSING


def png_of_height(data: bytes, height: int) -> bytes:
    header = data[12:20] + struct.pack(">I", height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize("mode", ["1", "RGB", "I;16"])
def test_a_png_whose_header_is_taller_than_its_data_is_refused(mode):
    picture = (
        Image.new("I;16", (64, 48), 9) if mode == "I;16" else factory.photo(64, 48).convert(mode)
    )
    data = factory.encoded(picture, "PNG")
    assert status_of(data) == Status.OK
    assert status_of(png_of_height(data, 49)) == Status.TRUNCATED_IMAGE


def test_a_png_whose_pixel_data_does_not_match_its_checksum_is_corrupt():
    data = factory.encoded(factory.photo(), "PNG", compress_level=0)
    at = data.index(b"IDAT") + 3000
    assert status_of(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]) == Status.CORRUPT_IMAGE


SAMPLES = np.asarray(factory.photo(60, 50)).astype(int)


@pytest.mark.parametrize(
    "compression", [tiff_writer.NONE, tiff_writer.LZW, tiff_writer.DEFLATE, tiff_writer.PACKBITS]
)
def test_a_tiff_that_lacks_strips_is_truncated(compression):
    assert (
        status_of(tiff_writer.tiff(SAMPLES, 8, tiff_writer.RGB, compression=compression))
        == Status.OK
    )
    assert (
        status_of(
            tiff_writer.tiff(SAMPLES, 8, tiff_writer.RGB, compression=compression, tags={257: [90]})
        )
        == Status.TRUNCATED_IMAGE
    )
    strip = tiff_writer.pressed(
        tiff_writer.packed(SAMPLES[:10], 8, "<", predictor=False), compression
    )
    tags = {256: [60], 257: [50], 258: [8] * 3, 259: [compression], 262: [2], 277: [3], 278: [10]}
    assert status_of(tiff_writer.container(tags, [strip] * 5)) == Status.OK
    assert status_of(tiff_writer.container(tags, [strip] * 3)) == Status.TRUNCATED_IMAGE
    assert status_of(tiff_writer.container(tags, [strip] * 3 + [b""] * 2)) == Status.TRUNCATED_IMAGE
    assert (
        status_of(tiff_writer.container(tags, [strip] * 4 + [strip[: len(strip) // 2]])) in MISSING
    )


def test_tags_that_nobody_asks_for_are_not_unpacked():
    """Thirty that say that a million numbers stand in the same place."""
    values = [0] * 1_000_000
    data = bytearray(
        tiff_writer.tiff(
            SAMPLES,
            8,
            tiff_writer.RGB,
            tags={65_000: values} | {65_001 + n: [1, 2, 3] for n in range(30)},
        )
    )
    start = struct.unpack_from("<I", data, 4)[0]
    entries = {
        struct.unpack_from("<H", data, at)[0]: at
        for at in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12)
    }
    for tag in range(65_001, 65_031):
        data[entries[tag] + 2 : entries[tag] + 12] = data[
            entries[65_000] + 2 : entries[65_000] + 12
        ]
    tracemalloc.start()
    assert status_of(bytes(data)) == Status.OK
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6


def test_headers_of_gif_and_bmp_that_are_taller_than_their_data_are_truncated():
    gif = bytearray(factory.encoded(factory.photo(), "GIF"))
    at = gif.index(b",\0\0\0\0\x60\0\x40\0")
    gif[8:10] = gif[at + 7 : at + 9] = struct.pack("<H", 200)
    assert status_of(bytes(gif)) == Status.TRUNCATED_IMAGE
    bmp = factory.encoded(factory.photo(), "BMP")
    assert status_of(bmp[:22] + struct.pack("<i", 200) + bmp[26:]) == Status.TRUNCATED_IMAGE
    runs = layouts.bmp_runs(layouts.samples(1, 8))
    assert status_of(runs[: len(runs) // 2] + b"\0\1") == Status.TRUNCATED_IMAGE


@pytest.mark.parametrize("height", [36, 37])
def test_an_interlaced_png_without_its_last_pass_is_refused(height):
    data = layouts.png(layouts.samples(3, 8)[:height], 8, 2, interlaced=True)
    assert status_of(data) == Status.OK
    at = data.index(b"IDAT")
    lines = zlib.decompress(data[at + 4 : -16])
    body = factory.chunk(b"IDAT", zlib.compress(lines[: -(height // 2) * (1 + 3 * layouts.WIDTH)]))
    assert status_of(data[: at - 4] + body + factory.chunk(b"IEND", b"")) == Status.TRUNCATED_IMAGE
