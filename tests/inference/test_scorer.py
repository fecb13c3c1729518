"""Several detectors on one process: what they share, images that keep their size, masks, replies
and embeddings.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ray_app.detectors import load_detector
from ray_app.detectors.shared_backbone import hold_equal_weights_once
from ray_app.ensembles import ensemble_of, load_ensemble_card
from ray_app.errors import Status
from ray_app.images import ImageLimits
from ray_app.inference import (
    REQUESTED,
    RUNS,
    BatchDecoder,
    DetectorOutputs,
    StageClock,
    judge,
    make_spec,
)
from ray_app.inference.scorer import EnsembleScorer
from ray_app.scoring.embeddings import select_embeddings
from ray_app.transforms.perturbations import load_perturbations
from tests.detectors.tiny_internvl import write_tiny_internvl
from tests.inference.batches import batches, noise

SIZES = [(64, 80), (200, 120), (64, 80), (301, 177), (90, 90)]
FILES = noise(*SIZES)


@pytest.fixture(scope="module")
def whole(eight):
    return make_spec(load_ensemble_card(eight), limits=ImageLimits(), precision="fp32")


@pytest.fixture(scope="module")
def spec(eight):
    """All but the one with masks, which takes longer than the others together."""
    card = load_ensemble_card(eight)
    others = tuple(member for member in card.members if "maskclip" not in member.detector)
    return make_spec(
        card.model_copy(update={"members": others}), limits=ImageLimits(), precision="fp32"
    )


@pytest.fixture(scope="module")
def keeping():
    """One that keeps embeddings."""
    tiny = make_spec(ensemble_of(["touchstone-tiny"]), limits=ImageLimits(), precision="fp32")
    return replace(tiny, features=select_embeddings(tiny, ["touchstone-tiny"]))


@pytest.fixture(scope="module")
def scorer(spec):
    return EnsembleScorer(spec, StageClock())


def test_a_backbone_runs_once_for_all_heads_that_see_the_same_pixels_and_changes_no_score(
    spec, scorer
):
    before = scorer.counts
    decoder = BatchDecoder(spec, StageClock())
    given = batches(spec, FILES, decoder)
    outputs = scorer.score(given)
    name = spec.cards["unifd"].backbone.name
    assert decoder.counts["decoded"] == len(SIZES)
    assert scorer.counts[RUNS + name] - before[RUNS + name] == len(given)
    assert scorer.counts[REQUESTED + name] - before[REQUESTED + name] == 2 * len(given)
    assert not np.array_equal(outputs.scores["unifd"], outputs.scores["own-head"])
    for name in ("unifd", "own-head", "clip-d-10k-plus"):
        alone = load_detector(spec.cards[name], precision="fp32")
        place = spec.preprocessings.index(spec.cards[name].preprocessing)
        expected = np.concatenate(
            [alone.score(batch.pixels[place][: len(batch.outcomes)]) for batch in given]
        )
        np.testing.assert_array_equal(outputs.scores[name], expected)


def test_equal_weights_of_different_files_lie_in_memory_once(spec):
    one, other = (
        load_detector(spec.cards[name], precision="fp32").network for name in ("unifd", "own-head")
    )
    pixels = torch.linspace(-1, 1, 3 * 224 * 224).view(1, 3, 224, 224)
    before = one(pixels).numpy()
    saved = hold_equal_weights_once([one, other])
    assert saved >= sum(parameter.nbytes for parameter in one.backbone.parameters()) * 0.9
    assert one.backbone.conv1.weight.data_ptr() == other.backbone.conv1.weight.data_ptr()
    assert one.fc.weight.data_ptr() != other.fc.weight.data_ptr()
    np.testing.assert_array_equal(one(pixels).numpy(), before)


def test_large_images_are_decoded_one_by_one_where_they_are_scored(spec):
    given = batches(spec, FILES, BatchDecoder(spec, StageClock(), hand_over=True))
    decoder = BatchDecoder(spec, StageClock())
    completed = [decoder.complete(batch) for batch in given]
    assert decoder.counts["decoded"] == 0
    place = next(
        index
        for index, preprocessing in enumerate(spec.preprocessings)
        if preprocessing.shape is None
    )
    assert completed[0].pixels[place].complete([1])[1].shape == (120, 200, 3)
    assert decoder.counts["decoded"] == 1
    broken = [
        replace(batch, encoded=tuple(data and data[:40] for data in batch.encoded))
        for batch in given
    ]
    scores = (
        EnsembleScorer(spec, StageClock(), ["corvi2023"])
        .score(decoder.complete(batch) for batch in broken)
        .scores
    )
    assert np.isnan(scores["corvi2023"]).all()  # what decodes no more has no score


def test_two_pools_say_together_what_one_says(whole):
    three = replace(
        whole, cards={name: whole.cards[name] for name in ("tiny-ladeda", "unifd", "maskclip")}
    )
    given = batches(three, [FILES[0], b"no image", FILES[1]])
    parts = [
        EnsembleScorer(three, StageClock(), pool).score(given)
        for pool in (["tiny-ladeda"], ["unifd", "maskclip"])
    ]
    joined, outputs = parts[0].joined(parts[1]), EnsembleScorer(three, StageClock()).score(given)
    assert list(joined.scores) == list(outputs.scores)
    for name, scores in outputs.scores.items():
        np.testing.assert_array_equal(joined.scores[name], scores)
    masks = outputs.of("masks")
    assert list(joined.of("masks")) == list(masks) == ["maskclip"]
    first, none, second = masks["maskclip"]  # with the members that they belong to
    assert none is None
    assert (first.shape, first.dtype) == ((256, 256), np.uint8)
    assert not np.array_equal(first, second)


def test_of_perturbed_views_those_in_which_all_keeps_its_place_have_masks(whole):
    alone = replace(
        whole,
        cards={"maskclip": whole.cards["maskclip"]},
        slots=1,
        views=load_perturbations(["jpeg:50", "crop:0.75"]),
    )
    outputs = EnsembleScorer(alone, StageClock()).score(batches(alone, [FILES[0], b"no image"]))
    assert list(outputs.by_view("scores")) == ["jpeg:50", "crop:0.75"]
    assert list(outputs.by_view("masks")) == ["jpeg:50"]
    mask, none = outputs.by_view("masks")["jpeg:50"]["maskclip"]
    assert none is None
    assert mask.shape == (256, 256)
    assert not np.array_equal(mask, outputs.of("masks")["maskclip"][0])
    joined = DetectorOutputs().joined(outputs)
    assert joined.by_view("masks")["jpeg:50"]["maskclip"][0] is mask
    assert joined.among([]).columns == {}


def test_beyond_its_cap_a_detector_gives_no_score_and_the_verdict_says_why(spec):
    card = spec.cards["corvi2023"]
    capped = card.model_copy(
        update={
            "valid_range": card.valid_range.model_copy(
                update={"min_side_px": 1, "max_megapixels": 0.03}
            )
        }
    )
    limited = replace(spec, cards={**spec.cards, "corvi2023": capped})
    given = batches(limited, FILES)
    outputs = EnsembleScorer(limited, StageClock(), ["corvi2023"]).score(given)
    assert np.isnan(outputs.scores["corvi2023"]).tolist() == [False, False, False, True, False]
    others = EnsembleScorer(
        limited, StageClock(), [name for name in limited.cards if name != "corvi2023"]
    ).score(given)
    scored = judge(
        limited, [outcome for batch in given for outcome in batch.outcomes], others.joined(outputs)
    )
    assert scored.outcomes[3].status is Status.OK
    assert scored.decisions.verdict[3] == "abstain"
    assert (
        "corvi2023: no score (301 × 177, above the valid range (0.03 megapixels))"
        in scored.decisions.detail[3]
    )
    assert np.isnan(scored.decisions.score[3])
    assert np.isfinite(scored.scores["unifd"][3])


def test_a_reply_that_says_neither_is_a_failed_member_with_the_reply(tmp_path):
    card = write_tiny_internvl(tmp_path)
    alone = make_spec(ensemble_of([str(card)]), limits=ImageLimits(), precision="fp32")
    given = batches(alone, noise(*[(40 + 7 * number, 50) for number in range(12)]))
    outputs = EnsembleScorer(alone, StageClock()).score(given)
    scored = judge(alone, [outcome for batch in given for outcome in batch.outcomes], outputs)
    said = outputs.of("replies")["tiny-internvl"]
    failed = [outcome for outcome in scored.outcomes if outcome.status is Status.DETECTOR_FAILED]
    assert 0 < len(failed) < len(said)
    for outcome, reply, score in zip(
        scored.outcomes, said, outputs.scores["tiny-internvl"], strict=True
    ):
        assert (outcome.status is Status.OK) == (score in (1.0, -1.0))
        assert (
            outcome.status is Status.OK
            or outcome.detail
            == f"no detector gave a finite score; tiny-internvl: it replied {reply!r}"
        )


def test_members_with_pixels_have_an_embedding_and_scores_stay_what_they_were(keeping):
    plain = replace(keeping, features={})
    given = [
        b"no image" if number % 3 == 2 else file
        for number, file in enumerate(noise(*[(300, 300)] * 7))
    ]
    outputs, without = (
        EnsembleScorer(one, StageClock()).score(batches(one, given)) for one in (keeping, plain)
    )
    vectors = outputs.of("embeddings")["touchstone-tiny"]
    assert vectors.shape == (7, 128)
    usable = np.arange(7) % 3 != 2
    assert np.isfinite(vectors).all(axis=1).tolist() == usable.tolist()
    assert len(np.unique(vectors[usable], axis=0)) == usable.sum()
    np.testing.assert_array_equal(
        outputs.scores["touchstone-tiny"], without.scores["touchstone-tiny"]
    )
    assert not without.of("embeddings")
    parts = [
        EnsembleScorer(keeping, StageClock()).score(batches(keeping, part))
        for part in (given[:4], given[4:])
    ]
    joined = DetectorOutputs.chained(parts).joined(
        DetectorOutputs.clean(scores={"other": np.zeros(7, np.float32)})
    )
    np.testing.assert_array_equal(joined.of("embeddings")["touchstone-tiny"], vectors)
    assert not joined.among(["other"]).of("embeddings")
