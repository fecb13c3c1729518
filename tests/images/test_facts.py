"""Which pictures show nothing that could be judged.

The perceptual hash: ImageHash's own, of the pixels that are scored.
"""

import io

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw

from ray_app.images import ImageLimits, decode_image
from ray_app.images.decode import has_content
from ray_app.images.facts import perceptual_hash
from tests.make import images
from tests.make.images import encoded, flat, photo


def as_jpeg(image, quality=80):
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality)))


@pytest.mark.parametrize(
    "blank",
    [
        *(lambda size, level=level: flat(level, *size) for level in (0, 16, 128, 255)),
        lambda size: Image.new("RGB", size, (200, 20, 20)),
        lambda size: as_jpeg(flat(4, *size, noise=6)),
        lambda size: as_jpeg(flat(238, *size, noise=2, shade=12)),
    ],
    ids=["black", "video black", "grey", "white", "red", "dark frame", "scanned page"],
)
def test_image_of_one_colour_has_no_content(blank):
    for size in ((1, 1), (500, 300)):
        assert not has_content(blank(size)), size


def page(size=(1240, 1754)):
    image = flat(255, *size)
    ImageDraw.Draw(image).text(
        (size[0] // 2, size[1] // 2), "One word", fill=(0, 0, 0), font_size=28
    )
    return image


def gradient():
    return Image.fromarray(
        np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(200, axis=0)
    )


@pytest.mark.parametrize(
    "picture",
    [
        photo,
        lambda: photo(1200, 900),
        page,
        gradient,
        lambda: flat(128, 500, 300, noise=12),
        lambda: flat(100, 500, 300, shade=40),
    ],
    ids=["photo", "large photo", "word", "gradient", "noise", "strong shade"],
)
def test_image_of_anything_else_has_content(picture):
    assert has_content(picture())


def test_perceptual_hash_is_that_of_imagehash():
    data = images.png()
    assert perceptual_hash(decode_image(data, ImageLimits()).pixels) == str(
        imagehash.phash(Image.open(io.BytesIO(data)))
    )
