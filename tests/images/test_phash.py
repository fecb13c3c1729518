"""The perceptual hash: ImageHash's own, of the pixels that are scored."""

import io

import imagehash
import pytest
from PIL import Image, ImageOps

from ray_app.errors import ConfigError
from ray_app.images import ImageLimits, decode_image
from ray_app.images import phash as perceptual_module
from ray_app.images.phash import perceptual_hash, require_perceptual_hash
from tests.images import factory


def hash_of(data: bytes) -> int:
    text = perceptual_hash(decode_image(data, ImageLimits()).pixels)
    assert len(text) == 16
    return int(text, 16)


def test_it_is_imagehash_s_of_the_same_picture():
    data = factory.png()
    assert hash_of(data) == int(str(imagehash.phash(Image.open(io.BytesIO(data)))), 16)


def test_another_encoding_is_close_and_another_picture_far():
    picture = factory.photo(256, 192, seed=1)
    other = ImageOps.invert(factory.photo(192, 256, seed=2)).rotate(90, expand=True)
    first, again, different = (
        hash_of(factory.encoded(image, "JPEG", quality=q)) for image, q in ((picture, 95), (picture, 70), (other, 95))
    )
    assert (first ^ again).bit_count() <= 12
    assert (first ^ different).bit_count() >= 20


def test_a_missing_library_is_said_with_the_line_that_installs_it(monkeypatch):
    require_perceptual_hash()
    monkeypatch.setattr(perceptual_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="ImageHash") as caught:
        require_perceptual_hash()
    assert caught.value.hint == "pip install 'touchstone[phash]'"
