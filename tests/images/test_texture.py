"""What is measured on pixels where a card asks: `texture` and `graphics`."""

import numpy as np
from PIL import Image

from benchmarks.photographs import write_photographs
from ray_app.images import ImageLimits, decode_image
from ray_app.images.facts import add_texture, measure_texture
from tests.make.images import chart, encoded, photo


def test_graphics_of_a_drawing_exceed_those_of_photographs(tmp_path):
    write_photographs(tmp_path, 2, size=(640, 480))
    photographs = [Image.open(path).convert("RGB") for path in sorted(tmp_path.rglob("*.jpg"))]
    for kept in (
        lambda image: image,
        lambda image: decode_image(encoded(image, "JPEG", quality=75), ImageLimits()).pixels,
    ):
        assert (
            measure_texture(kept(chart()))[1]
            > 0.55
            > 0.3
            > max(measure_texture(kept(one))[1] for one in photographs)
        )


def test_texture_is_the_mean_step_of_a_row():
    steps = np.zeros((8, 8, 3), np.uint8)
    steps[:, 1::2, 2] = 40
    assert measure_texture(Image.fromarray(steps)) == (40.0, 0.0)
    flat, noisy = Image.new("RGB", (300, 200), (90, 90, 90)), photo(300, 200)
    assert measure_texture(flat) == (0.0, 0.0)
    assert measure_texture(noisy)[0] > 2


def test_texture_is_a_fact_only_if_requested():
    image = decode_image(encoded(photo(), "PNG"), ImageLimits())
    assert (image.facts.texture, image.facts.graphics) == (None, None)
    asked = add_texture(image)
    assert (asked.facts.texture, asked.facts.graphics) == measure_texture(image.pixels)
    assert asked.pixels is image.pixels
