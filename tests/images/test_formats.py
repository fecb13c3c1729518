import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from ray_app.images import ImageLimits, decode_image, formats, sniff_format
from ray_app.images.formats import MAX_PAGES, describe_unsupported
from tests.make import images


def encoded(format_name, **options):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    stream = io.BytesIO()
    picture.save(stream, format_name, **options)
    return stream.getvalue()


def quality_of(data):
    return decode_image(data, ImageLimits()).facts.quality


def test_quality_of_libjpeg_is_read():
    for quality in range(1, 101):
        assert quality_of(encoded("JPEG", quality=quality)) == quality


def test_quality_of_other_tables_is_that_of_the_same_loss():
    # libjpeg's steps at 86 sum to 1,033, those to 1,024
    assert quality_of(encoded("JPEG", qtables=[[16] * 64, [16] * 64])) == 86


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04rest", "ZIP"),
        (b"\xef\xbb\xbf  <svg width='1'>", "SVG"),
        ("é".encode() * 1000, "text"),
        (b"\0\0\0\x18ftypisom", "video"),
        (b"\0\1\2\3", "00 01 02 03"),
    ],
)  # fmt: skip
def test_file_that_is_not_an_image_is_described(data, words):
    assert sniff_format(data) is None
    assert words in describe_unsupported(data)


def test_heif_brand_is_decided_by_the_codec():
    assert sniff_format(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") == "AVIF"
    assert sniff_format(b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf") == "HEIC"
    assert sniff_format(b"\0\0\0\x1cftypheic\0\0\0\0mif1avifmiaf") == "HEIC"


def test_gif_of_millions_of_tiny_blocks_is_counted_at_once():
    head = b"GIF89a\1\0\1\0\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02"
    started = time.process_time()
    assert formats.count_gif_frames(head + b"\1\0" * 8_000_000) == 1
    assert formats.count_gif_frames(head + b"\1\7" * 8_000_000) == 1
    assert time.process_time() - started < 1


def test_tiff_pages_are_counted_within_a_bound():
    assert formats.count_tiff_pages(images.frames("TIFF", 5)) == 5
    # 4 000 directories without an entry, each leading to the next.
    chain = b"".join(struct.pack("<HI", 0, 8 + 6 * (n + 1)) for n in range(4000))
    assert formats.count_tiff_pages(b"II*\0\x08\0\0\0" + chain) == MAX_PAGES
    in_a_circle = b"II*\0\x08\0\0\0" + struct.pack("<HI", 0, 8)
    assert formats.count_tiff_pages(in_a_circle) == 1
