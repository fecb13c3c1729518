"""Archives of real files through a real detector: shifted in quality, size or content they are noticed; the same kind is not."""

import numpy as np
import pytest

from ray_app.ensembles import PopulationTally
from ray_app.inference.ensemble import Ensemble
from ray_app.scoring.guarantee import shifts_of
from tests.scoring.shifted import OTHER, calibrated_card, encoded, pictures, properties_in

CALIBRATED, IMAGES = 240, 64


@pytest.fixture(scope="module")
def tiny():
    return Ensemble("tiny", precision="fp32")


@pytest.fixture(scope="module")
def card(tiny):
    drawn = list(pictures(1, CALIBRATED))
    files = [encoded(pixels, number) for number, (pixels, _) in enumerate(drawn)]
    return calibrated_card(properties_in(tiny, files), np.array([fake for _, fake in drawn]))


def noticed(tiny, card, *, scenes=None, **changes):
    drawn = pictures(2, IMAGES, fakes=0.1, **({"scenes": scenes} if scenes else {}))
    files = [encoded(pixels, 5_000 + number, **changes) for number, (pixels, _) in enumerate(drawn)]
    tally = PopulationTally(card.population.features)
    tally.add(properties_in(tiny, files))
    shifts = shifts_of(card, tally)
    assert [row.feature for row in shifts] == [feature.name for feature in card.population.features]
    return {row.feature for row in shifts if row.noticed}


def test_the_same_kind_of_pictures_is_not_noticed_though_few_are_fake(tiny, card):
    assert noticed(tiny, card) == set()


def test_stronger_compression_is_noticed(tiny, card):
    assert "jpeg_quality" in noticed(tiny, card, qualities=(50, 60))


def test_another_size_is_noticed(tiny, card):
    assert {"megapixels", "short_side_px"} <= noticed(tiny, card, scale=0.75)


def test_other_scenes_are_noticed_by_what_the_detector_says_of_them(tiny, card):
    assert {"score", "score:touchstone-tiny"} <= noticed(tiny, card, scenes=OTHER)
