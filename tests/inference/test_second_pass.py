"""Images near a threshold, scored in their views by the detectors that look at them: the same scores as of the perturbed pictures."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import ray_app
from ray_app.ensembles import EnsembleCard, EnsembleMember, Thresholds
from ray_app.errors import ConfigError, Reason
from ray_app.images import ImageLimits
from ray_app.inference import judge, make_spec
from ray_app.inference.second_pass import VIEWED
from ray_app.inference.stability import Stability
from ray_app.transforms.perturbations import seed_of
from tests.images.factory import encoded, photo
from tests.inference.batches import read
from tests.inference.two_detectors import write_two


def softened(number):
    """A picture that was enlarged by so much: the detector's scores run from -14 to 4."""
    image, factor = photo(150, 140, seed=number), (1, 1.5, 2, 3, 4, 6)[number]
    small = image.resize((int(150 / factor), int(140 / factor)), Image.Resampling.BILINEAR)
    return encoded(small.resize((150 + 10 * number, 140), Image.Resampling.BICUBIC), "PNG")


FILES = [(number, softened(number)) for number in range(6)]
WORDS = {"name": "one", "title": "One"}


@pytest.fixture(scope="module")
def card(ensemble):
    """One whose thresholds split the files."""
    edge = float(np.median([result.score for result in ensemble.score([data for _, data in FILES])]))
    return EnsembleCard(
        members=(EnsembleMember(detector="touchstone-tiny"),), thresholds=Thresholds(real_below=edge, fake_above=edge), **WORDS
    )


@pytest.fixture(scope="module")
def ensemble():
    return ray_app.load_detector("touchstone-tiny", precision="fp32")


def spec_of(card, stability, slots=4):
    return make_spec(card, limits=ImageLimits(), precision="fp32", slots=slots, stability=stability)


def test_views_are_scored_of_those_that_are_near_and_of_nobody_else(card, ensemble):
    stability = Stability(3, 0.5)
    spec = spec_of(card, stability)
    outcomes, outputs, counts = read(spec, [*FILES, (9, b"no image")])
    near = [abs(score - card.thresholds.fake_above) <= 0.5 for score in outputs.scores["touchstone-tiny"]]
    assert 0 < sum(near) < len(FILES)
    assert counts[VIEWED] == sum(near)
    assert list(outputs.by_view("stability")) == [view.name for view in stability.views]
    for view in stability.views:
        column = outputs.by_view("stability")[view.name]["touchstone-tiny"]
        assert np.isfinite(column).tolist() == near
        opened = [Image.open(io.BytesIO(data)).convert("RGB") for _, data in FILES]
        pictures = [view.apply(image, seed_of(one.facts.sha256, view.name)) for image, one in zip(opened, outcomes, strict=False)]
        expected = [result.score for result in ensemble.score(pictures)]
        np.testing.assert_allclose(column[:-1][near[:-1]], np.array(expected)[near[:-1]], atol=1e-4)


def test_how_files_are_held_and_batched_changes_nothing(card):
    wide, narrow = spec_of(card, Stability(2, 1.0)), spec_of(card, Stability(2, 1.0), slots=1)
    _, together, _ = read(wide, FILES)
    _, apart, _ = read(wide, FILES, kept_bytes=1)
    _, alone, _ = read(narrow, FILES)
    for view, columns in together.by_view("stability").items():
        np.testing.assert_array_equal(columns["touchstone-tiny"], apart.by_view("stability")[view]["touchstone-tiny"])
        np.testing.assert_allclose(columns["touchstone-tiny"], alone.by_view("stability")[view]["touchstone-tiny"], atol=1e-4)


def test_a_verdict_that_a_view_does_not_share_is_abstain(card):
    """All scores of the views lie on one side: with the threshold beyond it, images on the other side lose their verdict."""
    spec = spec_of(card, Stability(3, 20.0))
    outcomes, outputs, _ = read(spec, FILES)
    judged = judge(spec, outcomes, outputs)
    before = judge(replace(spec, stability=None), outcomes, outputs).decisions
    seen = np.array([columns["touchstone-tiny"] for columns in outputs.by_view("stability").values()])
    flips = ((seen >= card.thresholds.fake_above) != (np.array(before.verdict) == "fake")).any(axis=0)
    assert flips.any()
    assert [verdict == "abstain" for verdict in judged.decisions.verdict] == flips.tolist()
    assert set(judged.decisions.reason) == {None, Reason.UNSTABLE}
    assert judged.decisions.score.tolist() == before.score.tolist()


def test_detectors_with_processes_of_their_own_are_refused(tmp_path):
    members = tuple(EnsembleMember(detector=path) for path in write_two(tmp_path, own_pool=True))
    with pytest.raises(ConfigError, match="processes of their own") as refused:
        spec_of(EnsembleCard(members=members, **WORDS), Stability(2, 1.0))
    assert "slow" in refused.value.hint
