"""Images whose line ends were converted, as by FTP in ASCII mode, are refused and the reason is
given.
"""

import time

import numpy as np
import pytest
from PIL import Image

from ray_app.errors import Status
from ray_app.images import formats
from tests.images.outcomes import outcome_of, refusal, status_of
from tests.make import images

CODED = {
    "jpeg": ("JPEG", {"quality": 75}),
    "jpeg-100": ("JPEG", {"quality": 100, "subsampling": 0}),
    "jpeg-progressive": ("JPEG", {"progressive": True}),
    "jpeg-restarts": ("JPEG", {"restart_marker_rows": 1}),
    "webp": ("WEBP", {}),
    "webp-lossless": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "avif": ("AVIF", {}),
    "heic": ("HEIF", {}),
    "jpeg2000": ("JPEG2000", {"no_jp2": True}),
}


@pytest.mark.parametrize("name", CODED)
def test_coded_image_with_converted_line_ends_is_refused(name):
    format_name, options = CODED[name]
    for seed in range(2):
        data = images.encoded(images.photo(480, 360, seed), format_name, **options)
        assert status_of(data) == Status.OK
        outcome = refusal(data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
        assert outcome.status == Status.CORRUPT_IMAGE
        assert outcome.detail.startswith("its line ends were converted, as by FTP in ASCII mode")


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_png_with_converted_line_ends_is_described(line_end):
    data = images.png()
    assert "FTP" in outcome_of(data.replace(b"\r\n", b"\n").replace(b"\n", line_end)).detail


def test_small_jpeg_with_crlf_in_its_comment_is_decoded():
    comment = {"comment": b"two\r\nlines\r\n" * 20}
    grey = Image.new("L", (16, 16), 99)
    data = images.encoded(grey, "JPEG", optimize=True, quality=30, **comment)
    assert data.count(b"\n") == data.count(b"\r\n") == 40
    assert status_of(data) == Status.OK


def test_stripes_whose_coded_data_has_only_crlf_are_decoded():
    columns = np.zeros((256, 256), np.uint8)
    columns[:, ::6] = 255
    data = images.encoded(Image.fromarray(columns), "JPEG", quality=47, optimize=True)
    assert data.count(b"\n") == data.count(b"\r\n") > 40
    assert status_of(data) == Status.OK


@pytest.mark.parametrize("encoding", ["utf-8", "cp1251"])
@pytest.mark.parametrize("format_name", ["GIF", "JPEG"])
def test_flat_image_with_crlf_in_its_comment_is_decoded(format_name, encoding):
    lines = ["Фото: Иван", "Место: Москва", "Год: 2020", "Права защищены", "Ещё строка", "Конец"]
    text, red = "\r\n".join(lines).encode(encoding), Image.new("RGB", (32, 32), (200, 20, 20))
    for comment in (text, text * 20):
        assert status_of(images.encoded(red, format_name, comment=comment)) == Status.OK


@pytest.mark.parametrize("unit", [b"\r\n", b"\r", b"\xff\r\n"])
def test_search_for_line_ends_of_a_large_file_is_bounded(unit):
    data = unit * (30_000_000 // len(unit))
    began = time.thread_time()
    formats.are_line_ends_converted(data)
    assert time.thread_time() - began < 1
