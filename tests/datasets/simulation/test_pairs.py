import io
import itertools

import numpy as np
import pytest
from PIL import Image

from ray_app.datasets.simulation.camera import CAMERAS, draw_history
from ray_app.datasets.simulation.decoders import AUTOENCODERS, DECODERS
from ray_app.datasets.simulation.pairs import SPLITS, make_pair
from ray_app.datasets.simulation.scenes import FAMILIES


@pytest.mark.parametrize("part", ["scenes", "cameras", "decoders"])
def test_no_scene_camera_or_decoder_stands_in_two_splits(part):
    for one, other in itertools.combinations(SPLITS.values(), 2):
        assert not set(getattr(one, part)) & set(getattr(other, part))


def test_splits_name_what_exists_and_leave_nothing_out():
    assert {name for split in SPLITS.values() for name in split.scenes} == set(FAMILIES)
    assert {name for split in SPLITS.values() for name in split.cameras} == set(CAMERAS)
    assert {name for split in SPLITS.values() for name in split.decoders} == set(DECODERS) | set(AUTOENCODERS)


def _facts(data):
    """All that a file tells besides its pixels: container, size, mode, and for JPEG the tables that quality and subsampling set."""
    image = Image.open(io.BytesIO(data))
    tables = getattr(image, "quantization", None)
    layers = getattr(image, "layer", None)
    return image.format, image.size, image.mode, tables, layers, sorted(image.info)


def test_both_files_of_a_pair_have_one_history_so_that_metadata_tells_nothing():
    rng = np.random.default_rng(9)
    split = SPLITS["train"]
    analytic = type(split)(split.scenes, split.cameras, tuple(name for name in split.decoders if name in DECODERS))
    for index in range(24):
        pair = make_pair(analytic, DECODERS, np.random.default_rng([9, index]), 96, 128)
        assert pair.real.shape == pair.fake.shape
        real, fake = pair.encode(draw_history(rng, 96, 128, target=(80, 88)))
        assert _facts(real) == _facts(fake)
        assert real != fake


def test_histories_cover_formats_qualities_double_compression_and_resizing():
    rng = np.random.default_rng(1)
    drawn = [draw_history(rng, 320, 320, target=(168, 168)) for _ in range(400)]
    assert {history.last.format for history in drawn} == {"JPEG", "PNG", "WEBP"}
    qualities = [history.last.quality for history in drawn if history.last.format == "JPEG"]
    assert min(qualities) < 65
    assert max(qualities) > 94
    assert any(history.earlier for history in drawn)
    assert any(history.scale < 0.8 for history in drawn)
    assert any(history.scale > 1.1 for history in drawn)


@pytest.mark.parametrize("target", [(168, 168), (320, 320), (200, 311)])
def test_a_history_ends_in_the_asked_size(target):
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (320, 320, 3), dtype=np.uint8)
    for _ in range(20):
        data = draw_history(rng, 320, 320, target=target).apply(pixels)
        assert Image.open(io.BytesIO(data)).size == target[::-1]
