"""Groups of detectors: static batches, generations, images on which a detector raises."""

from dataclasses import replace

import numpy as np
import pytest

import ray_app
from ray_app.detectors import load_card
from ray_app.errors import DetectorError
from ray_app.images import ImageLimits, decode_image
from ray_app.serving import ServeConfig
from ray_app.serving.metrics import Meter
from ray_app.serving.replica import DetectorGroup, ReleaseOffer, ScoreRequest
from tests.images.factory import encoded, photo
from tests.serving.test_release import stricter


@pytest.fixture(scope="module")
def group():
    made = DetectorGroup("detectors", Meter())
    made.load(ServeConfig(ensembles=("tiny",)))
    return made


def ask(data, group):
    image = decode_image(data, ImageLimits())
    preprocessing = load_card("touchstone-tiny").preprocessing
    return ScoreRequest(
        group,
        ("touchstone-tiny",),
        image.facts,
        (preprocessing.prepare(image.pixels, "exact"),),
        None,
    )


def photos(count):
    return [encoded(photo(seed=seed), "PNG") for seed in range(count)]


def test_scores_are_those_of_the_library_whoever_shares_the_batch(group):
    files = photos(7)
    expected = [
        result.scores["touchstone-tiny"] for result in ray_app.load_ensemble("tiny").score(files)
    ]
    asks = [ask(data, group.generation.groups["detectors"]) for data in files]
    together = [reply.outputs.scores["touchstone-tiny"][0] for reply in group.score_batch(asks)]
    alone = [group.score_batch([one])[0].outputs.scores["touchstone-tiny"][0] for one in asks]
    assert together == pytest.approx(expected, abs=1e-5)
    assert alone == pytest.approx(expected, abs=1e-5)


def test_another_generation_is_offered_instead(group):
    files = photos(3)
    mine = group.generation.groups["detectors"]
    answers = group.score_batch(
        [ask(files[0], mine), ask(files[1], "another"), ask(files[2], mine)]
    )
    assert isinstance(answers[1], ReleaseOffer)
    assert answers[1].generation is group.generation
    assert [answers[place].generation for place in (0, 2)] == [group.generation.id] * 2


def test_a_load_that_fails_changes_nothing(tmp_path):
    made = DetectorGroup("detectors", Meter())
    made.load(ServeConfig(ensembles=("tiny",)))
    before = made.generation.id
    with pytest.raises(DetectorError):
        made.load(ServeConfig(ensembles=("published",), accept_licences=("openfake-swinv2-small",)))
    assert made.generation.id == before
    made.load(ServeConfig(ensembles=(stricter(tmp_path),)))
    assert made.generation.id != before


def test_an_image_on_which_a_detector_raises_takes_no_other_along(group):
    files = photos(3)
    mine = group.generation.groups["detectors"]
    asks = [ask(data, mine) for data in files]
    spoilt = replace(asks[1], pixels=(np.zeros((256, 256), np.uint8),))
    good = [
        reply.outputs.scores["touchstone-tiny"][0]
        for reply in group.score_batch([asks[0], asks[2]])
    ]
    replies = group.score_batch([asks[0], spoilt, asks[2]])
    assert np.isnan(replies[1].outputs.scores["touchstone-tiny"])
    assert [
        replies[place].outputs.scores["touchstone-tiny"][0] for place in (0, 2)
    ] == pytest.approx(good, abs=1e-5)
    group.require_scores()
    group.score_batch([spoilt] * 20)
    with pytest.raises(DetectorError, match="20 images in a row"):
        group.require_scores()
    group.score_batch(asks)
    group.require_scores()
