"""Perturbed views: decoded once, the same scores in any order, beside any others and on either side
of a process boundary.
"""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.seeded import seeded_card, write_card
from ray_app.detectors import load_card
from ray_app.ensembles import ensemble_of
from ray_app.errors import Status
from ray_app.images import ImageLimits, decode_image
from ray_app.inference import BatchDecoder, StageClock, judge, make_spec
from ray_app.inference.batch import perturbed
from ray_app.inference.scorer import EnsembleScorer
from ray_app.transforms.perturbations import Perturbation, load_perturbations, seed_of
from tests.inference.batches import batches, noise

SIZES = [(64, 80), (97, 70), (64, 80)]
FILES = noise(*SIZES)
NAMES = ("touchstone-tiny", "corvi2023")
JPEG = "noise:5+jpeg:50"
VIEWS = load_perturbations([JPEG, "resize:0.75", "grip-social"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A detector with a size of its own and one that keeps the image's."""
    folder, card = tmp_path_factory.mktemp("cards"), load_card("corvi2023")
    narrow = card.architecture.model_copy(
        update={"arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}}
    )
    ranged = card.valid_range.model_copy(update={"min_side_px": 16})
    small = seeded_card(
        card.model_copy(update={"architecture": narrow, "size": None, "valid_range": ranged}),
        folder,
    )
    ensemble = ensemble_of(["touchstone-tiny", str(write_card(small, folder / "card.yaml"))])
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


def test_a_view_scores_as_the_perturbed_picture_does_by_itself(plain, spec, outputs):
    alone = EnsembleScorer(plain, StageClock())
    for view in VIEWS:
        pictures = []
        for file in FILES:
            image = decode_image(file, ImageLimits())
            pictures.append(view.apply(image.pixels, seed_of(image.facts.sha256, view.name)))
        expected = alone.score(batches(plain, pictures)).scores
        assert_equal({view.name: outputs.by_view("scores")[view.name]}, {view.name: expected})
        assert np.isfinite(outputs.by_view("scores")[view.name]["touchstone-tiny"]).all()


def test_views_change_nothing_about_the_clean_pass(plain, outputs):
    clean = EnsembleScorer(plain, StageClock()).score(batches(plain, FILES))
    assert_equal({"clean": outputs.scores}, {"clean": clean.scores})
    assert not clean.by_view("scores")
    assert not clean.by_view("masks")


def test_neither_order_nor_slots_nor_neighbours_show(spec, scorer, outputs):
    backwards = scorer.score(batches(spec, FILES[::-1]))
    turned = {
        view: {name: column[::-1] for name, column in scores.items()}
        for view, scores in backwards.by_view("scores").items()
    }
    assert_equal(turned, outputs.by_view("scores"))
    alone = scorer.score(batches(spec, [b"no image", FILES[1]]))
    for view, scores in alone.by_view("scores").items():
        for name, column in scores.items():
            assert np.isnan(column[0])
            np.testing.assert_array_equal(column[1], outputs.by_view("scores")[view][name][1])


def test_between_processes_the_views_are_the_same_and_cost_one_decode_per_stage(
    spec, scorer, outputs
):
    decoder, late = (
        BatchDecoder(spec, StageClock(), hand_over=True),
        BatchDecoder(spec, StageClock()),
    )
    handed = pickle.loads(
        pickle.dumps([*batches(spec, FILES, decoder), *batches(spec, [b"no image"], decoder)])
    )
    assert all(
        image is None
        for batch in handed
        for images in batch.pixels
        if isinstance(images, tuple)
        for image in images
    )
    found = scorer.score(late.complete(batch) for batch in handed)
    for view, scores in (found.by_view("scores") | {"clean": found.scores}).items():
        expected = (outputs.by_view("scores") | {"clean": outputs.scores})[view]
        for name in NAMES:
            np.testing.assert_array_equal(
                scores[name][:-1], expected[name], err_msg=f"{view} {name}"
            )
            assert np.isnan(scores[name][-1])
    # The second stage decodes for the one detector that keeps sizes, for the clean pass and all
    # views together.
    assert (decoder.counts["decoded"], late.counts["decoded"]) == (len(SIZES) + 1, len(SIZES))


def test_images_of_one_size_go_together_on_a_gpu_and_are_decoded_once(spec, outputs):
    corvi = replace(spec, cards={"corvi2023": spec.cards["corvi2023"]}, slots=3)
    grouped = EnsembleScorer(corvi, StageClock())
    detector, counted = grouped._detectors["corvi2023"], []
    detector._group_pixels = 2**22  # as on a GPU
    read, detector.read = detector.read, lambda pixels: counted.append(len(pixels)) or read(pixels)
    late = BatchDecoder(corvi, StageClock())
    found = grouped.score(
        late.complete(batch)
        for batch in batches(corvi, FILES, BatchDecoder(corvi, StageClock(), hand_over=True))
    )
    assert 2 in counted
    assert late.counts["decoded"] == len(SIZES)
    for view, scores in found.by_view("scores").items():
        np.testing.assert_allclose(
            scores["corvi2023"], outputs.by_view("scores")[view]["corvi2023"], atol=1e-5
        )


class Broken(Perturbation):
    """One that cannot be had of narrow images."""

    def apply(self, image, seed):
        if image.width == 64:
            raise OSError("encoder error")
        return super().apply(image, seed)


def test_where_a_perturbation_fails_only_its_view_has_no_scores(spec, scorer, outputs):
    broken = replace(spec, views=(Broken(name=JPEG, steps=VIEWS[0].steps), *VIEWS[1:]))
    given = batches(broken, FILES)
    found = EnsembleScorer(broken, StageClock()).score(given)
    outcomes = [outcome for batch in given for outcome in batch.outcomes]
    assert [outcome.status for outcome in judge(broken, outcomes, found).outcomes] == [
        Status.OK
    ] * len(SIZES)
    for name in NAMES:
        assert np.isnan(found.by_view("scores")[JPEG][name]).tolist() == [
            width == 64 for width, _ in SIZES
        ]
        np.testing.assert_array_equal(
            found.by_view("scores")[JPEG][name][1], outputs.by_view("scores")[JPEG][name][1]
        )
        np.testing.assert_array_equal(found.scores[name], outputs.scores[name])
    assert_equal(
        {"grip-social": found.by_view("scores")["grip-social"]},
        {"grip-social": outputs.by_view("scores")["grip-social"]},
    )


def test_what_pillow_takes_for_a_bomb_has_no_view_and_ends_nothing(monkeypatch):
    """`limits.max_pixels` may allow images that Pillow would not open: decoding does not ask
    Pillow, a codec's way back does.
    """
    image = decode_image(FILES[0], ImageLimits())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    jpeg, resize = load_perturbations(["jpeg:50", "resize:0.75"])
    assert perturbed(jpeg, image) is None
    assert perturbed(resize, image).size == (48, 60)


def test_a_view_is_scored_where_its_own_size_is_in_range(spec):
    card = spec.cards["corvi2023"]
    limited = card.model_copy(
        update={
            "valid_range": card.valid_range.model_copy(
                update={"min_side_px": 1, "max_megapixels": 0.006}
            )
        }
    )
    capped = replace(
        spec, cards={"corvi2023": limited}, views=load_perturbations(["jpeg:50", "resize:0.5"])
    )
    found = EnsembleScorer(capped, StageClock()).score(batches(capped, FILES))
    too_large = [width * height > 6000 for width, height in SIZES]
    assert np.isnan(found.scores["corvi2023"]).tolist() == too_large
    assert np.isnan(found.by_view("scores")["jpeg:50"]["corvi2023"]).tolist() == too_large
    assert np.isfinite(found.by_view("scores")["resize:0.5"]["corvi2023"]).all()
