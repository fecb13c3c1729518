"""Pictures as cameras, scanners and screens of this year make them: let in by a run, not by the
endpoint, and bombs by neither.
"""

from contextlib import closing

import pytest
from PIL import Image

from ray_app.errors import Status
from ray_app.images import BatchLimits, ImageLimits, ImageRefused, peek_image
from ray_app.inference.decoder_pool import DecoderProcess
from tests.make import images


def page(width: int, height: int, mode: str = "1") -> Image.Image:
    """A white page with lines on it as of type."""
    white = Image.new(mode, (width, height), 1 if mode == "1" else 255)
    line = Image.new(mode, (width * 3 // 4, max(height // 200, 1)), 0)
    for row in range(height // 10, height * 9 // 10, height // 60):
        white.paste(line, (width // 8, row))
    return white


A4, A3, FAX = (4960, 7016), (7016, 9921), (1728, 2292)  # 600 dpi, 600 dpi, Group 4 fine
LONG_TALK, TALL = Image.new("RGB", (720, 40_000), (250, 250, 250)), (6000, 4000)
ORDINARY = {
    "a 200 MP telephone": lambda: images.lying_jpeg(16_320, 12_240),
    "a TIFF of 24 MP, 72 MB": lambda: images.encoded(Image.new("RGB", TALL, (9, 99, 199)), "TIFF"),
    "a scan of A3, one-bit PNG": lambda: images.encoded(page(*A3), "PNG"),
    "a blank fax": lambda: images.encoded(Image.new("1", FAX, 1), "TIFF", compression="group4"),
    "a screenshot of a long talk": lambda: images.encoded(LONG_TALK, "PNG"),
    "a WebP as large as they get": lambda: images.lying_webp(16_383, 15_000),
}
TOO_MUCH = {
    "max_pixels": lambda: images.lying_jpeg(17_000, 15_000),
    "max_whole_pixels": lambda: images.bomb_png(12_000),
    "max_side": lambda: images.raw_png(65_600, 1000, 1, 0, bytes(8201 * 1000)),
    "max_aspect": lambda: images.raw_png(60_000, 500, 1, 0, bytes(7501 * 500)),
    "max_ratio": lambda: images.lying_gif(10_000, 11_000)[:300],
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_large_image_is_read_by_a_run_and_not_by_the_endpoint(kind):
    data = ORDINARY[kind]()
    assert peek_image(data, BatchLimits()).demand.pixels > 0
    with pytest.raises(ImageRefused) as caught:
        peek_image(data, ImageLimits())
    assert caught.value.status == Status.IMAGE_TOO_LARGE


def test_scan_of_a_page_is_read_by_the_endpoint():
    scan = images.encoded(page(*A4, "L"), "JPEG")
    for limits in (BatchLimits(), ImageLimits()):
        assert peek_image(scan, limits).demand.pixels > 0


@pytest.mark.parametrize("limit", TOO_MUCH)
def test_image_over_a_limit_of_runs_names_the_limit(limit):
    with pytest.raises(ImageRefused, match=rf"is over {limit} \(") as caught:
        peek_image(TOO_MUCH[limit](), BatchLimits())
    assert caught.value.status == Status.IMAGE_TOO_LARGE


FULL = {"quality": 90, "progressive": True, "subsampling": 0}
ONE_STRIP = {"compression": "tiff_lzw", "tiffinfo": {278: 8000}}
LARGEST = {
    "progressive JPEG": ((17_400, 14_300), "JPEG", FULL),
    "WebP": ((16_380, 15_200), "WEBP", {"lossless": True, "quality": 0, "method": 0}),
    "CMYK TIFF in one strip": ((15_000, 8000), "TIFF", ONE_STRIP),
    "AVIF": ((12_000, 9900), "AVIF", {"speed": 10, "quality": 40}),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", LARGEST)
def test_largest_images_fit_into_a_child(kind):
    size, format_name, options = LARGEST[kind]
    picture = images.photo(size[0] // 40, size[1] // 40).resize(size, Image.Resampling.NEAREST)
    mode = "CMYK" if "CMYK" in kind else "RGB"
    data = images.encoded(picture.convert(mode), format_name, **options)
    decoding = DecoderProcess(BatchLimits(), wall_limit_s=60)
    with decoding as child, closing(child.peek(data)) as peeked:
        assert peeked.demand.pixels == size[0] * size[1]
        assert peeked.decode().pixels.size == size
