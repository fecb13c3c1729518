import io
import itertools

import numpy as np
import pytest
from PIL import Image

from ray_app.datasets.simulation.camera import CAMERAS, draw_history
from ray_app.datasets.simulation.decoders import AUTOENCODERS, DECODERS
from ray_app.datasets.simulation.pairs import SPLITS, make_pair
from ray_app.datasets.simulation.scenes import FAMILIES


def test_splits_have_nothing_in_common_name_what_exists_and_leave_nothing_out():
    for one, other in itertools.combinations(SPLITS.values(), 2):
        assert not {*one.scenes, *one.cameras, *one.decoders} & {*other.scenes, *other.cameras, *other.decoders}
    assert {name for split in SPLITS.values() for name in split.scenes} == set(FAMILIES)
    assert {name for split in SPLITS.values() for name in split.cameras} == set(CAMERAS)
    assert {name for split in SPLITS.values() for name in split.decoders} == set(DECODERS) | set(AUTOENCODERS)


def _facts(data):
    """All that a file tells besides its pixels: container, size, mode, and for JPEG the tables that quality and subsampling set."""
    image = Image.open(io.BytesIO(data))
    return image.format, image.size, image.mode, getattr(image, "quantization", None), getattr(image, "layer", None), sorted(image.info)


def test_both_files_of_a_pair_have_one_history_so_that_metadata_tells_nothing():
    rng = np.random.default_rng(9)
    split = SPLITS["train"]
    analytic = type(split)(split.scenes, split.cameras, tuple(name for name in split.decoders if name in DECODERS))
    for index in range(12):
        pair = make_pair(analytic, DECODERS, np.random.default_rng([9, index]), 96, 128)
        assert pair.real.shape == pair.fake.shape
        real, fake = pair.encode(draw_history(rng, 96, 128, target=(80, 88)))
        assert _facts(real) == _facts(fake)
        assert real != fake


@pytest.mark.parametrize("target", [(80, 80), (50, 77)])
def test_a_history_ends_in_the_asked_size(target):
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)
    for _ in range(20):
        data = draw_history(rng, 80, 80, target=target).apply(pixels)
        assert Image.open(io.BytesIO(data)).size == target[::-1]
