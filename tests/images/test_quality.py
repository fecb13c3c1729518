import io

import numpy as np
import pytest
from PIL import Image

from ray_app.images import ImageLimits, decode_image
from ray_app.images.quality import jpeg_quality


def encoded(format_name, **options):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    stream = io.BytesIO()
    picture.save(stream, format_name, **options)
    return stream.getvalue()


def quality_of(data):
    return decode_image(data, ImageLimits()).facts.quality


@pytest.mark.parametrize("quality", range(1, 101))
def test_libjpeg_s_own_qualities_are_read_back(quality):
    assert quality_of(encoded("JPEG", quality=quality)) == quality


def test_a_table_of_somebody_else_gets_the_quality_that_removes_as_much():
    assert quality_of(encoded("JPEG", qtables=[[16] * 64, [16] * 64])) == 86  # libjpeg's steps at 86 sum to 1,033, those to 1,024


def test_other_formats_have_none():
    assert quality_of(encoded("PNG")) is None
    assert quality_of(encoded("WEBP", quality=80)) is None
    assert jpeg_quality({}) is None
    assert jpeg_quality({0: [1] * 16}) is None
