"""Files are stored as asked, and say that they are generated in every format."""

import io
import json

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from ray_app.datajobs.generate.config import RandomMaskConfig
from ray_app.datajobs.generate.files import FileStyle, encode
from ray_app.datajobs.generate.worker import draw_mask, mask_fraction
from ray_app.images import ImageLimits, decode_image
from ray_app.images.provenance import ProvenancePolicy, ProvenanceReader

LOOKS = [
    FileStyle("JPEG", 71, "4:2:0"), FileStyle("JPEG", 95, "4:4:4"), FileStyle("JPEG", 88, "4:2:2"),
    FileStyle("PNG"), FileStyle("WEBP", 80), FileStyle("WEBP"),
]  # fmt: skip


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8))


@pytest.mark.parametrize("style", LOOKS, ids=str)
def test_each_format_is_marked_without_changing_pixels(picture, style):
    # as a pipeline attaches
    picture.info = {
        "parameters": "a cat",
        "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0",
        "dpi": (72, 72),
    }
    reader, bare = ProvenanceReader(ProvenancePolicy()), encode(picture, style, None)
    assert reader.read(bare, style.format) is None
    with Image.open(io.BytesIO(bare)) as image:
        assert not {"parameters", "exif", "xmp", "dpi"} & set(image.info)
    pixels = np.asarray(decode_image(bare, ImageLimits()).pixels)
    for mark in ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"):
        data = encode(picture, style, mark)
        said = json.loads(reader.read(data, style.format).row())
        assert (said["digital_source_type"], said["ai_declared"]) == ([mark], True)
        decoded = decode_image(data, ImageLimits())
        assert decoded.facts.format == style.format
        if style.format == "JPEG":
            with Image.open(io.BytesIO(data)) as image:
                subsampling = ("4:4:4", "4:2:2", "4:2:0")[JpegImagePlugin.get_sampling(image)]
            assert (decoded.facts.quality, subsampling) == (style.quality, style.subsampling)
        assert np.array_equal(np.asarray(decoded.pixels), pixels)
    assert style.quality is not None or np.array_equal(pixels, np.asarray(picture))


def test_drawn_masks_cover_what_they_should_and_differ():
    masks = [draw_mask((64, 48), seed, RandomMaskConfig(least=0.1, most=0.3)) for seed in range(60)]
    assert all(0.1 <= mask_fraction(mask) <= 0.3 for mask in masks)
    assert len({mask.tobytes() for mask in masks}) == 60
    assert (
        draw_mask((64, 48), 7, RandomMaskConfig()).tobytes()
        == draw_mask((64, 48), 7, RandomMaskConfig()).tobytes()
    )
    assert set(np.unique(np.asarray(masks[0]))) == {0, 255}
