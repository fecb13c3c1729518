"""Damaged coded data of JPEGs is refused, alone and inside of TIFFs; a few stray bytes or padding
after it are a flag.
"""

import io
import struct
import time
from functools import cache

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from ray_app.errors import Status
from ray_app.images import ImageRefused, decode_image, jpeg
from tests.images import tiff_writer
from tests.images.outcomes import LIMITS, outcome_of, pixels, status_of
from tests.make import images

EOI = b"\xff\xd9"
LENGTH = 512
MISSING = {Status.TRUNCATED_IMAGE, Status.CORRUPT_IMAGE}
ENCODINGS = [{}, {"subsampling": 0}, {"optimize": True}, {"progressive": True}]
ENCODINGS.append({"restart_marker_rows": 2})
RARE = [((4, 2), (1, 1), (1, 1)), ((1, 1), (2, 1), (1, 1)), ((3, 1), (1, 1), (1, 1))]


@cache
def make_photo(seed: int, width: int = 640, height: int = 480) -> Image.Image:
    """Draw noise at several scales, with fine detail in some places as in a photograph."""
    rng = np.random.default_rng(seed)

    def draw(step: int) -> np.ndarray:
        noise = rng.integers(0, 256, (height // step, width // step, 3), np.uint8)
        resized = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized).astype(float)

    detail = np.clip(draw(96)[..., :1] / 160 - 0.4, 0, 1)
    levels = draw(80) * (1 - detail / 2) + draw(1) * detail / 2
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


@cache
def make_jpeg(seed: int, **options) -> bytes:
    return images.encoded(make_photo(seed), "JPEG", **{"quality": 80 + seed % 15, **options})


def group_blocks(grey: bytes, factors: tuple[tuple[int, int], ...]) -> bytes:
    """Declare the blocks of a grey JPEG to be those of three components with any sampling factors.

    The blocks of one row of the grey image become one row of MCUs. All components use the same
    tables.
    """
    frame, blocks = jpeg._find_frame(grey), sum(across * down for across, down in factors)
    units = frame.width // 8 // blocks
    height = frame.height * max(down for _, down in factors)
    size = height, units * 8 * max(across for across, _ in factors)
    parts = [b"\xff\xd8"]
    for segment in jpeg.iter_segments(grey):
        body = segment.body
        if segment.marker == jpeg.SOF0:
            components = b"".join(
                bytes((number, h << 4 | v, 0)) for number, (h, v) in enumerate(factors, 1)
            )
            body = struct.pack(">HBHHB", 8 + len(components), 8, *size, len(factors)) + components
        elif segment.marker == jpeg.SOS:
            components = b"".join(bytes((number, 0)) for number in range(1, len(factors) + 1))
            body = struct.pack(">HB", 6 + len(components), len(factors)) + components + b"\0\x3f\0"
        elif segment.marker == jpeg.DRI:
            body = struct.pack(">HH", 4, units)
        parts.append(segment._replace(body=body).encode(grey))
    return b"".join((*parts, EOI))


@cache
def make_rare(seed: int, factors: tuple[tuple[int, int], ...], **options) -> bytes:
    """A JPEG of 12 × 60 MCUs that TurboJPEG refuses for its sampling factors."""
    width = 8 * 12 * sum(across * down for across, down in factors)
    photo = make_photo(seed, width, 480).convert("L")
    return group_blocks(images.encoded(photo, "JPEG", quality=85, **options), factors)


def largest_scan(data: bytes) -> tuple[int, int]:
    scans = [segment for segment in jpeg.iter_segments(data) if segment.marker == jpeg.SCAN]
    return max(((scan.start, scan.end) for scan in scans), key=lambda scan: scan[1] - scan[0])


def overwrite_scan(data: bytes, piece: bytes, rng: np.random.Generator) -> bytes:
    start, end = largest_scan(data)
    at = int(rng.integers(start, end - len(piece)))
    return data[:at] + piece + data[at + len(piece) :]


def is_visible(damaged: bytes, intact: bytes) -> bool:
    """Whether a damaged file is decoded to other pixels: damage of a progressive JPEG's finest scan
    hardly changes them.
    """
    outcome = outcome_of(damaged)
    if isinstance(outcome, ImageRefused):
        assert outcome.status in MISSING
        return False
    return np.abs(np.asarray(outcome.pixels).astype(int) - pixels(intact)).mean() > 2


def count_passed(files: list[bytes]) -> dict[str, int]:
    """Count the files that are decoded to other pixels after two kinds of damage."""
    rng = np.random.default_rng(58)
    passed = dict.fromkeys(("spliced", "random"), 0)
    for seed, data in enumerate(files):
        donor = make_jpeg(seed, quality=50)
        at = int(rng.integers(largest_scan(donor)[0], len(donor) - LENGTH))
        pieces = {
            "spliced": donor[at : at + LENGTH],
            "random": rng.integers(0, 255, LENGTH, np.uint8).tobytes(),
        }
        for name, piece in pieces.items():
            passed[name] += bool(is_visible(overwrite_scan(data, piece, rng), data))
    return passed


@pytest.mark.parametrize("options", ENCODINGS, ids=str)
def test_jpeg_scan_damage_is_refused(options):
    files = [make_jpeg(seed, **options) for seed in range(30)]
    assert {status_of(data) for data in files} == {Status.OK}
    passed = count_passed(files)
    assert max(passed.values()) <= 4, passed


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("factors", RARE, ids=str)
def test_jpeg_scan_damage_with_rare_sampling_is_refused(factors, options):
    files = [make_rare(seed, factors, **options) for seed in range(10)]
    for data in files:
        plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(pixels(data), plain)
    passed = count_passed(files)
    assert max(passed.values()) <= 2, passed


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
@pytest.mark.parametrize(
    "stray", [b"\x55\xaa" * 4, bytes(500), b"\x7f"], ids=["8 bytes", "zeros", "one byte"]
)
def test_few_stray_bytes_before_the_end_marker_are_a_flag(options, stray):
    data = make_jpeg(0, **options)
    image = decode_image(data[:-2] + stray + EOI, LIMITS)
    np.testing.assert_array_equal(np.asarray(image.pixels), pixels(data))
    assert image.facts.flags in ((), ("irregular_jpeg",))
    # libjpeg reads up to seven bytes ahead without a warning.
    assert image.facts.flags or len(stray) < 8


def test_many_stray_bytes_before_the_end_marker_are_refused():
    stray = np.random.default_rng(0).integers(0, 255, 40, np.uint8).tobytes()
    outcome = outcome_of(make_jpeg(0)[:-2] + stray + EOI)
    assert outcome.status == Status.CORRUPT_IMAGE
    assert outcome.detail.endswith("extraneous bytes before marker 0xd9, more than 8")


def test_zeros_in_place_of_the_last_coded_bytes_are_refused():
    for seed in range(10):
        data = make_jpeg(seed, subsampling=0)
        assert status_of(data[:-502] + bytes(500) + EOI) in MISSING


@pytest.mark.parametrize(
    ("stray", "status"),
    [(b"\x12\x34", Status.OK), (bytes(60), Status.OK), (b"\x12\x34" * 30, Status.CORRUPT_IMAGE)],
)
def test_stray_bytes_before_restart_markers_are_counted(stray, status):
    assert status_of(before_restarts(make_jpeg(0, restart_marker_rows=1), stray)) == status


def before_restarts(data: bytes, stray: bytes) -> bytes:
    start, end = largest_scan(data)
    scan = jpeg._RESTART.sub(lambda marker: stray + marker[0], data[start:end])
    return data[:start] + scan + data[end:]


def test_jpeg_of_large_tables_and_restarts_is_refused_at_once():
    data = images.encoded(make_photo(0).convert("L"), "JPEG", quality=20, restart_marker_blocks=8)
    data = before_restarts(data, b"\x12\x34")
    assert status_of(data) == Status.OK
    tables = data.index(b"\xff\xc4")
    size = int.from_bytes(data[tables + 2 : tables + 4], "big")
    table = data[tables + 4 : tables + 2 + size] * (60_000 // size)
    segment = b"\xff\xc4" + struct.pack(">H", len(table) + 2) + table
    started = time.process_time()
    assert status_of(data[:tables] + segment * 4 + data[tables:]) == Status.CORRUPT_IMAGE
    assert time.process_time() - started < 0.5


def make_tiff(strips: list[bytes], width: int, height: int, bands: int) -> bytes:
    photometric = {1: tiff_writer.BLACK_IS_ZERO, 3: tiff_writer.RGB, 4: tiff_writer.CMYK}[bands]
    tags = {256: [width], 257: [height], 258: [8] * bands, 259: [7], 262: [photometric]}
    return tiff_writer.container(tags | {277: [bands], 278: [height // len(strips)]}, strips)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_tiff_with_lossless_jpeg_strip_decodes_as_in_pillow(mode):
    image = make_photo(0).convert(mode)
    samples, bands = np.asarray(image), len(image.getbands())
    colours = mode if mode == "CMYK" else None
    strip = imagecodecs.jpeg8_encode(samples, colorspace=colours, lossless=True)
    assert jpeg._find_frame(strip).marker == jpeg.SOF3
    data = make_tiff([strip], 640, 480, bands)
    assert status_of(data) == Status.OK
    with Image.open(io.BytesIO(data)) as plain:
        np.testing.assert_array_equal(np.asarray(plain), samples)
    assert status_of(make_tiff([strip[: len(strip) // 2]], 640, 480, bands)) in MISSING


def test_lossless_jpeg_with_stray_restart_markers_is_refused():
    data = imagecodecs.jpeg8_encode(np.asarray(make_photo(0).convert("L")), lossless=True)
    start, _ = largest_scan(data)
    interval = b"\xff\xdd\0\x04" + struct.pack(">H", 640)
    at = data.index(b"\xff\xda")
    stray = b"\x12" * 99 + b"\xff\xd0"
    assert status_of(data[:at] + interval + data[at:start] + stray + data[start:]) in MISSING


@pytest.mark.parametrize("rows", [48, 480])
def test_tiff_with_a_damaged_jpeg_strip_is_refused(rows):
    def encode(seed: int) -> list[bytes]:
        photo = make_photo(seed)
        return [
            images.encoded(photo.crop((0, top, 640, top + rows)), "JPEG", keep_rgb=True)
            for top in range(0, 480, rows)
        ]

    rng = np.random.default_rng(3)
    refused = 0
    for seed in range(10):
        strips, donor = encode(seed), make_jpeg(seed + 1, quality=50)
        assert status_of(make_tiff(strips, 640, 480, 3)) == Status.OK
        start, _ = largest_scan(donor)
        strips[-1] = overwrite_scan(strips[-1], donor[start : start + LENGTH], rng)
        refused += status_of(make_tiff(strips, 640, 480, 3)) in MISSING
    assert refused >= 8


def test_tiff_whose_samples_look_like_a_damaged_jpeg_is_decoded():
    cut = np.frombuffer(make_jpeg(0)[:-2], np.uint8)[: 100 * 100].reshape(100, 100, 1)
    data = tiff_writer.tiff(cut, 8, tiff_writer.BLACK_IS_ZERO, rows=100)
    np.testing.assert_array_equal(pixels(data)[..., 0], cut[..., 0])


def test_rgb_jpeg_decodes_without_export_of_foreign_memory(monkeypatch):
    data = images.encoded(images.photo(), "JPEG")
    expected = pixels(data)
    # Pillow 12 crashes the process in `Image.fromarrow`.
    monkeypatch.delattr(Image, "fromarrow", raising=False)
    monkeypatch.setattr(jpeg, "_EXPORTS_FOREIGN_MEMORY", False)
    np.testing.assert_array_equal(pixels(data), expected)
