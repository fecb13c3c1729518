import io
import itertools

import numpy as np
import pytest
from PIL import Image

from ray_app.datasets.simulation.camera import CAMERAS, draw_history
from ray_app.datasets.simulation.decoders import AUTOENCODERS, DECODERS
from ray_app.datasets.simulation.pairs import SPLITS
from ray_app.datasets.simulation.scenes import FAMILIES


def test_splits_have_nothing_in_common_name_what_exists_and_leave_nothing_out():
    for one, other in itertools.combinations(SPLITS.values(), 2):
        assert not {*one.scenes, *one.cameras, *one.decoders} & {*other.scenes, *other.cameras, *other.decoders}
    assert {name for split in SPLITS.values() for name in split.scenes} == set(FAMILIES)
    assert {name for split in SPLITS.values() for name in split.cameras} == set(CAMERAS)
    assert {name for split in SPLITS.values() for name in split.decoders} == set(DECODERS) | set(AUTOENCODERS)


@pytest.mark.parametrize("target", [(80, 80), (50, 77)])
def test_a_history_ends_in_the_asked_size(target):
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)
    for _ in range(20):
        data = draw_history(rng, 80, 80, target=target).apply(pixels)
        assert Image.open(io.BytesIO(data)).size == target[::-1]
