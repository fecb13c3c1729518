"""Watermarks in pixels: read where they are, in whatever place and size, and nowhere else."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app.images.provenance import ProvenanceConfig, ProvenanceReader
from ray_app.images.provenance.watermark import MAX_PROBABILITY, read_watermark
from tests.make.images import photo
from tests.make.provenance.marking import FLUX, INVOKE, SD1, SD2, SDXL, marked, waves

# 264 × 256 pixels of pale waves, marked with SDXL's message by invisible-watermark 0.2.0, OpenCV
# 5.0.0 and PyWavelets 1.9.0 as generative-models marks: floats, in the order of OpenCV.
GOLDEN = Path(__file__).parent / "marked.webp"


def saved(picture: Image.Image, format_name: str = "JPEG", **options) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, format_name, **options)
    return Image.open(file).convert("RGB")


def test_watermark_of_the_package_is_read():
    mark = read_watermark(Image.open(GOLDEN).convert("RGB"))
    assert mark.of == "Stable Diffusion XL (reference code, diffusers)"
    assert (mark.bits, mark.length) == (48, 48)
    assert 0 < mark.chance < 1e-9


@pytest.mark.parametrize(
    ("message", "how"),
    [
        (SD1, {}),
        (SD2, {}),
        (INVOKE, {}),
        (SDXL, {"floats": True}),
        (SDXL, {"floats": True, "swapped": True}),
        (FLUX, {"floats": True}),
    ],
)
def test_watermark_of_each_message_is_read(message, how):
    clean = waves()
    picture = marked(clean, message.bits, **how)
    assert read_watermark(clean) is None
    for seen in (
        picture,
        saved(picture, quality=95, subsampling=0),
        picture.resize((410, 410), Image.Resampling.LANCZOS),
    ):
        mark = read_watermark(seen)
        assert (mark.of, mark.length) == (message.of, len(message.bits))
        assert mark.bits >= 0.9 * mark.length
        assert mark.chance <= MAX_PROBABILITY


def test_watermark_of_a_crop_is_read_wherever_it_starts():
    picture = marked(waves(), FLUX.bits, floats=True)
    for left, top in ((64, 40), (13, 7), (101, 66)):
        assert read_watermark(picture.crop((left, top, left + 390, top + 400))).of == FLUX.of
    # 32 bits are too few to be sure of any place
    assert read_watermark(marked(waves(), SD2.bits).crop((64, 40, 400, 400))) is None


def test_watermark_of_another_message_is_not_named():
    other = np.random.default_rng(1).permuted(SDXL.bits)
    assert read_watermark(marked(waves(), other, floats=True)) is None
    wrong = SDXL.bits ^ (np.arange(48) % 5 == 0)
    assert read_watermark(marked(waves(), wrong, floats=True)) is None
    # a pattern of 64 pixels: three quarters of SD 1's bits are its
    letters = np.resize(np.unpackbits(np.frombuffer(b"e", np.uint8)), 136)
    assert (letters == SD1.bits).mean() > 0.7
    assert read_watermark(marked(waves(), letters)) is None


@pytest.mark.parametrize(
    "size", [(1, 1), (7, 9), (1, 65_536), (65_536, 1), (16, 4096), (255, 257), (1800, 1300)]
)
def test_image_of_any_size_without_a_watermark_has_none(size):
    assert read_watermark(Image.new("RGB", size, (200, 30, 90))) is None
    assert read_watermark(photo(*size)) is None


def test_watermark_of_a_large_image_is_read_in_its_middle():
    mark = read_watermark(marked(waves(1800, 1304), SDXL.bits, floats=True))
    assert (mark.of, mark.bits) == (SDXL.of, 48)


def test_watermark_is_a_statement_unless_switched_off():
    pixels = Image.open(GOLDEN).convert("RGB")
    on = ProvenanceReader(ProvenanceConfig(watermarks=True).policy())
    said = on.read(GOLDEN.read_bytes(), "WEBP", pixels=pixels)
    assert said.watermark == read_watermark(pixels)
    off = ProvenanceReader(ProvenanceConfig().policy())
    assert off.read(GOLDEN.read_bytes(), "WEBP", pixels=pixels) is None
