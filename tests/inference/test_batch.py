"""Perturbed views: decoded once, the same scores in any order, beside any others and on either side of a process boundary."""

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
from ray_app.inference import BatchDecoder, ResourceEstimate, StageClock, judge, make_spec
from ray_app.inference.batch import perturbed
from ray_app.inference.scorer import EnsembleScorer
from ray_app.transforms.perturbations import Perturbation, load_perturbations, seed_of
from tests.images.factory import encoded

SIZES = [(64, 80), (97, 70), (64, 80)]
NAMES = ("touchstone-tiny", "corvi2023")
JPEG = "noise:5+jpeg:50"
VIEWS = load_perturbations([JPEG, "resize:0.75", "grip-social"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A detector with a size of its own and one that keeps the image's."""
    folder, card = tmp_path_factory.mktemp("cards"), load_card("corvi2023")
    narrow = card.architecture.model_copy(update={"arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}})
    ranged = card.valid_range.model_copy(update={"min_side_px": 16})
    small = seeded_card(card.model_copy(update={"architecture": narrow, "size": None, "valid_range": ranged}), folder)
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
    return scorer.score(batches(spec, files()))


def files(sizes=SIZES):
    pictures = (np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8) for seed, (width, height) in enumerate(sizes))
    return [encoded(Image.fromarray(pixels), "JPEG") for pixels in pictures]


def batches(spec, data, decoder=None, **options):
    decoder = decoder or BatchDecoder(spec, StageClock(), **options)
    return [decoder.decode([(0, file) for file in data[start : start + spec.slots]]) for start in range(0, len(data), spec.slots)]


def through_a_pipe(batches):
    return pickle.loads(pickle.dumps(list(batches)))


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
        for file in files():
            image = decode_image(file, ImageLimits())
            pictures.append(view.apply(image.pixels, seed_of(image.facts.sha256, view.name)))
        expected = alone.score(batches(plain, pictures)).scores
        assert_equal({view.name: outputs.by_view("scores")[view.name]}, {view.name: expected})
        assert np.isfinite(outputs.by_view("scores")[view.name]["touchstone-tiny"]).all()


def test_views_change_nothing_about_the_clean_pass(plain, outputs):
    clean = EnsembleScorer(plain, StageClock()).score(batches(plain, files()))
    assert_equal({"clean": outputs.scores}, {"clean": clean.scores})
    assert not clean.by_view("scores")
    assert not clean.by_view("masks")


def test_every_image_is_decoded_once_for_all_views(spec):
    decoder = BatchDecoder(spec, StageClock())
    batches(spec, files(), decoder)
    assert decoder.counts["decoded"] == len(SIZES)


def test_neither_order_nor_slots_nor_neighbours_show(spec, scorer, outputs):
    backwards = scorer.score(batches(spec, files()[::-1]))
    turned = {view: {name: column[::-1] for name, column in scores.items()} for view, scores in backwards.by_view("scores").items()}
    assert_equal(turned, outputs.by_view("scores"))
    alone = scorer.score(batches(spec, [b"no image", files()[1]]))
    for view, scores in alone.by_view("scores").items():
        for name, column in scores.items():
            assert np.isnan(column[0])
            np.testing.assert_array_equal(column[1], outputs.by_view("scores")[view][name][1])


def test_between_processes_the_views_are_the_same_and_cost_one_decode_per_stage(spec, scorer, outputs):
    decoder, late = BatchDecoder(spec, StageClock(), hand_over=True), BatchDecoder(spec, StageClock())
    handed = through_a_pipe([*batches(spec, files(), decoder), *batches(spec, [b"no image"], decoder)])
    found = scorer.score(late.complete(batch) for batch in handed)
    shorter = {view: {name: column[:-1] for name, column in scores.items()} for view, scores in found.by_view("scores").items()}
    assert_equal(shorter, outputs.by_view("scores"))
    assert all(np.isnan(column[-1]) for scores in found.by_view("scores").values() for column in scores.values())
    # The second stage decodes for the one detector that keeps sizes, for the clean pass and all views together.
    assert (decoder.counts["decoded"], late.counts["decoded"]) == (len(SIZES) + 1, len(SIZES))


def test_images_of_one_size_that_go_together_are_decoded_once_too(spec, outputs):
    corvi = replace(spec, cards={"corvi2023": spec.cards["corvi2023"]})
    grouped = EnsembleScorer(corvi, StageClock())
    grouped._detectors["corvi2023"]._group_pixels = 2**22  # as on a GPU
    late = BatchDecoder(corvi, StageClock())
    handed = batches(corvi, files(), hand_over=True)
    found = grouped.score(late.complete(batch) for batch in through_a_pipe(handed))
    assert late.counts["decoded"] == len(SIZES)
    for view, scores in found.by_view("scores").items():
        np.testing.assert_allclose(scores["corvi2023"], outputs.by_view("scores")[view]["corvi2023"], atol=1e-5)


def test_pools_of_detectors_join_their_views(spec, outputs):
    given = batches(spec, files())
    first, second = (EnsembleScorer(spec, StageClock(), pool).score(given) for pool in (NAMES[:1], NAMES[1:]))
    joined = first.joined(second)
    wanted = {view: {name: scores[name] for name in NAMES} for view, scores in outputs.by_view("scores").items()}
    assert_equal(joined.by_view("scores"), wanted)
    assert list(joined.among(["corvi2023"]).by_view("scores")[JPEG]) == ["corvi2023"]
    scored = judge(spec, [outcome for batch in given for outcome in batch.outcomes], joined)
    assert [list(scores) for scores in scored.outputs.by_view("scores").values()] == [list(spec.cards)] * len(VIEWS)


class Broken(Perturbation):
    """One that cannot be had of narrow images."""

    def apply(self, image, seed):
        if image.width == 64:
            raise OSError("encoder error")
        return super().apply(image, seed)


def test_where_a_perturbation_fails_only_its_view_has_no_scores(spec, scorer, outputs):
    broken = replace(spec, views=(Broken(name=JPEG, steps=VIEWS[0].steps), *VIEWS[1:]))
    given = batches(broken, files())
    found = EnsembleScorer(broken, StageClock()).score(given)
    outcomes = [outcome for batch in given for outcome in batch.outcomes]
    assert [outcome.status for outcome in judge(broken, outcomes, found).outcomes] == [Status.OK] * len(SIZES)
    for name in NAMES:
        assert np.isnan(found.by_view("scores")[JPEG][name]).tolist() == [width == 64 for width, _ in SIZES]
        np.testing.assert_array_equal(found.by_view("scores")[JPEG][name][1], outputs.by_view("scores")[JPEG][name][1])
        np.testing.assert_array_equal(found.scores[name], outputs.scores[name])
    assert_equal({"grip-social": found.by_view("scores")["grip-social"]}, {"grip-social": outputs.by_view("scores")["grip-social"]})


def test_what_pillow_takes_for_a_bomb_has_no_view_and_ends_nothing(monkeypatch):
    """`limits.max_pixels` may allow images that Pillow would not open: decoding does not ask Pillow, a codec's way back does."""
    image = decode_image(files()[0], ImageLimits())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    jpeg, resize = load_perturbations(["jpeg:50", "resize:0.75"])
    assert perturbed(jpeg, image) is None
    assert perturbed(resize, image).size == (48, 60)


def test_a_view_is_scored_where_its_own_size_is_in_range(spec):
    card = spec.cards["corvi2023"]
    limited = card.model_copy(update={"valid_range": card.valid_range.model_copy(update={"min_side_px": 1, "max_megapixels": 0.006})})
    capped = replace(spec, cards={"corvi2023": limited}, views=load_perturbations(["jpeg:50", "resize:0.5"]))
    found = EnsembleScorer(capped, StageClock()).score(batches(capped, files()))
    too_large = [width * height > 6000 for width, height in SIZES]
    assert np.isnan(found.scores["corvi2023"]).tolist() == too_large
    assert np.isnan(found.by_view("scores")["jpeg:50"]["corvi2023"]).tolist() == too_large
    assert np.isfinite(found.by_view("scores")["resize:0.5"]["corvi2023"]).all()


def test_work_and_memory_count_every_pass(plain, spec):
    size = load_card("unifd").size
    once, often = (replace(one, cards={"unifd": plain.cards["touchstone-tiny"].model_copy(update={"size": size})}) for one in (plain, spec))
    once, often = ResourceEstimate.of(once), ResourceEstimate.of(often)
    assert once.pool_gmac == (size.gmac,)
    assert (often.pool_gmac, often.worst_gmac) == ((spec.passes * size.gmac,), spec.passes * once.worst_gmac)
    assert spec.passes == 1 + len(VIEWS)
    native = 2**21
    one, all_views = ResourceEstimate.of(plain), ResourceEstimate.of(spec)
    assert all_views.tensor_bytes - native == spec.passes * (one.tensor_bytes - native)
    assert all_views.process_bytes - one.process_bytes == spec.slots * len(VIEWS) * (one.tensor_bytes - native)
