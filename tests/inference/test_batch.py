"""Perturbed views: decoded once, with the same scores in any order and in another process."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.seeded import seeded_card, write_card
from ray_app.detectors import load_card
from ray_app.ensembles import build_ensemble
from ray_app.errors import Status
from ray_app.images import ImageLimits, decode_image
from ray_app.inference import BatchDecoder, StageClock, judge, make_spec
from ray_app.inference.batch import apply_view
from ray_app.inference.scorer import EnsembleScorer
from ray_app.transforms.perturbations import Perturbation, load_perturbations, seed_of
from tests.inference.batches import batches, noise

SIZES = [(64, 80), (97, 70), (64, 80)]
FILES = noise(*SIZES)
NAMES = ("touchstone-tiny", "corvi2023")
JPEG = "noise:5+jpeg:50"
VIEWS = load_perturbations([JPEG, "resize:0.75", "grip-social"])


def with_range(card, **limits):
    valid_range = card.valid_range.model_copy(update=limits)
    return card.model_copy(update={"valid_range": valid_range})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A detector with a size of its own, and a detector that keeps the size of the image."""
    folder, card = tmp_path_factory.mktemp("cards"), load_card("corvi2023")
    arguments = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    narrow = card.architecture.model_copy(update={"arguments": arguments})
    small = card.model_copy(update={"architecture": narrow, "size": None})
    small = seeded_card(with_range(small, min_side_px=16), folder)
    ensemble = build_ensemble(["touchstone-tiny", str(write_card(small, folder / "card.yaml"))])
    return make_spec(ensemble, limits=ImageLimits(), precision="fp32", slots=2)


@pytest.fixture(scope="module")
def spec(plain):
    return replace(plain, views=VIEWS)


@pytest.fixture(scope="module")
def scorer(spec):
    return EnsembleScorer(spec, StageClock())


@pytest.fixture(scope="module")
def outputs(spec, scorer):
    return scorer.score(batches(spec, FILES))


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for view, scores in found.items():
        for name in scores:
            column = expected[view][name]
            np.testing.assert_array_equal(found[view][name], column, err_msg=f"{view} {name}")


def test_view_scores_as_the_perturbed_image_alone(plain, spec, outputs):
    alone = EnsembleScorer(plain, StageClock())
    views = outputs.by_view("scores")
    images = [decode_image(file, ImageLimits()) for file in FILES]
    for view in VIEWS:
        seeds = [seed_of(image.facts.sha256, view.name) for image in images]
        files = [view.apply(one.pixels, seed) for one, seed in zip(images, seeds, strict=True)]
        expected = alone.score(batches(plain, files)).scores
        assert_equal({view.name: views[view.name]}, {view.name: expected})
        assert np.isfinite(views[view.name]["touchstone-tiny"]).all()


def test_views_change_nothing_of_the_clean_pass(plain, outputs):
    clean = EnsembleScorer(plain, StageClock()).score(batches(plain, FILES))
    assert_equal({"clean": outputs.scores}, {"clean": clean.scores})
    assert not clean.by_view("scores")
    assert not clean.by_view("masks")


def test_views_depend_on_neither_order_nor_neighbours(spec, scorer, outputs):
    expected = outputs.by_view("scores")
    backwards = scorer.score(batches(spec, FILES[::-1])).by_view("scores")
    turned = {
        view: {name: column[::-1] for name, column in scores.items()}
        for view, scores in backwards.items()
    }
    assert_equal(turned, expected)
    alone = scorer.score(batches(spec, [b"no image", FILES[1]]))
    for view, scores in alone.by_view("scores").items():
        for name, column in scores.items():
            assert np.isnan(column[0])
            np.testing.assert_array_equal(column[1], expected[view][name][1])


def test_views_in_another_process_cost_one_decode_a_stage(spec, scorer, outputs):
    decoder = BatchDecoder(spec, StageClock(), hand_over=True)
    late = BatchDecoder(spec, StageClock())
    handed = [*batches(spec, FILES, decoder), *batches(spec, [b"no image"], decoder)]
    handed = pickle.loads(pickle.dumps(handed))
    kept = [part for batch in handed for part in batch.pixels if isinstance(part, tuple)]
    assert all(image is None for images in kept for image in images)
    found = scorer.score(late.complete(batch) for batch in handed)
    expected = outputs.by_view("scores") | {"clean": outputs.scores}
    for view, scores in (found.by_view("scores") | {"clean": found.scores}).items():
        assert all(np.isnan(column[-1]) for column in scores.values())
        without = {name: column[:-1] for name, column in scores.items()}
        assert_equal({view: without}, {view: expected[view]})
    # The second stage decodes for the detector that keeps sizes: once for the clean pass and all
    # views together.
    assert (decoder.counts["decoded"], late.counts["decoded"]) == (len(SIZES) + 1, len(SIZES))


def test_images_of_one_size_share_a_batch_on_a_gpu(spec, outputs):
    corvi = replace(spec, cards={"corvi2023": spec.cards["corvi2023"]}, slots=3)
    grouped, counted = EnsembleScorer(corvi, StageClock()), []
    detector = grouped._detectors["corvi2023"]
    detector._group_pixels = 2**22  # as on a GPU
    read, detector.read = detector.read, lambda pixels: counted.append(len(pixels)) or read(pixels)
    late = BatchDecoder(corvi, StageClock())
    handed = batches(corvi, FILES, BatchDecoder(corvi, StageClock(), hand_over=True))
    found = grouped.score(late.complete(batch) for batch in handed)
    assert 2 in counted
    assert late.counts["decoded"] == len(SIZES)
    for view, scores in outputs.by_view("scores").items():
        column = found.by_view("scores")[view]["corvi2023"]
        np.testing.assert_allclose(column, scores["corvi2023"], atol=1e-5)


class Broken(Perturbation):
    """A perturbation that fails on narrow images."""

    def apply(self, image, seed):
        if image.width == 64:
            raise OSError("encoder error")
        return super().apply(image, seed)


def test_perturbation_that_fails_costs_only_its_view(spec, outputs):
    broken = replace(spec, views=(Broken(name=JPEG, steps=VIEWS[0].steps), *VIEWS[1:]))
    given = batches(broken, FILES)
    found = EnsembleScorer(broken, StageClock()).score(given)
    outcomes = [outcome for batch in given for outcome in batch.outcomes]
    scored = judge(broken, outcomes, found)
    assert [outcome.status for outcome in scored.outcomes] == [Status.OK] * len(SIZES)
    views, expected = found.by_view("scores"), outputs.by_view("scores")
    for name in NAMES:
        column = views[JPEG][name]
        assert np.isnan(column).tolist() == [width == 64 for width, _ in SIZES]
        assert column[1] == expected[JPEG][name][1]
    assert_equal({"clean": found.scores}, {"clean": outputs.scores})
    social = "grip-social"
    assert_equal({social: views[social]}, {social: expected[social]})


def test_image_over_the_limit_of_pillow_has_no_view(monkeypatch):
    """`limits.max_pixels` may allow images that Pillow does not open after a codec."""
    image = decode_image(FILES[0], ImageLimits())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    jpeg, resize = load_perturbations(["jpeg:50", "resize:0.75"])
    assert apply_view(jpeg, image) is None
    assert apply_view(resize, image).size == (48, 60)


def test_view_is_scored_if_its_own_size_is_in_range(spec):
    limited = with_range(spec.cards["corvi2023"], min_side_px=1, max_megapixels=0.006)
    views = load_perturbations(["jpeg:50", "resize:0.5"])
    capped = replace(spec, cards={"corvi2023": limited}, views=views)
    found = EnsembleScorer(capped, StageClock()).score(batches(capped, FILES))
    too_large = [width * height > 6000 for width, height in SIZES]
    assert np.isnan(found.scores["corvi2023"]).tolist() == too_large
    views = found.by_view("scores")
    assert np.isnan(views["jpeg:50"]["corvi2023"]).tolist() == too_large
    assert np.isfinite(views["resize:0.5"]["corvi2023"]).all()
