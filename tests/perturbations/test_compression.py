"""Trips through codecs: the quality that was asked for, the same pixels on any machine, and nothing that cannot be encoded."""

import io

import numpy as np
import pytest
from PIL import Image

from ray_app.perturbations.compression import avif, has_avif, jpeg, lossless_webp, webp
from tests.images.factory import photo

PICTURE = photo(96, 64)
CODECS = {"jpeg": jpeg, "webp": webp, **({"avif": avif} if has_avif() else {})}


@pytest.mark.parametrize("quality", [30, 75, 90, 100])
def test_jpeg_has_the_tables_of_its_quality(quality):
    encoded = io.BytesIO()
    PICTURE.save(encoded, "JPEG", quality=quality)
    with Image.open(encoded) as file:
        tables = file.quantization
        # Annex K's first luma step is 16; libjpeg scales it by 5000 ÷ q below 50, by 200 − 2q from there.
        scale = 5000 / quality if quality < 50 else 200 - 2 * quality
        assert tables[0][0] == max(int((16 * scale + 50) / 100), 1)
        assert jpeg(PICTURE, quality).tobytes() == file.convert("RGB").tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_lower_quality_loses_more(name):
    def loss(quality):
        return np.square(np.asarray(CODECS[name](PICTURE, quality)).astype(float) - np.asarray(PICTURE)).mean()

    assert loss(30) > 1.2 * loss(85) > 0


def test_lossless_webp_loses_nothing():
    assert lossless_webp(PICTURE).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (66_000, 1)])
def test_any_size_comes_back(name, size):
    image = Image.new("RGB", size, (200, 100, 50))
    result = CODECS[name](image, 80)
    assert (result.size, result.mode) == (size, "RGB")
    assert np.abs(np.asarray(result).astype(int) - (200, 100, 50)).max() < 12


def test_swapped_red_and_blue_lose_what_the_other_would():
    def loss(image, **options):
        return np.square(np.asarray(jpeg(image, 60, **options)).astype(float) - np.asarray(image)).mean(axis=(0, 1))

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    as_is, swapped = loss(noise), loss(noise, swapped=True)
    assert as_is[2] > as_is[0]
    assert swapped[0] > swapped[2]
