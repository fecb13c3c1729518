"""The same bytes again: neither decoded nor scored, and nobody else's batch is another one for it."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from ray_app.detectors import load_card
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import Status
from ray_app.images import ImageLimits, decoder_name, inspect_bytes
from ray_app.inference import BatchDecoder, DecodeResult, DetectorOutputs, ScoringSpec, StageClock, judge, make_spec, reuse
from ray_app.inference.reuse import ScoreCache, is_complete
from tests.images import factory

SPEC = make_spec(load_ensemble_card("tiny"), limits=ImageLimits(), precision="fp32")
NAME = next(iter(SPEC.cards))
A, B, C = (factory.encoded(factory.photo(seed=seed), "JPEG") for seed in range(3))


def decode(recall, *files):
    decoder = BatchDecoder(SPEC, StageClock(), recall=recall)
    if recall is not None:
        recall.begin_block()
    batches = [decoder.decode(list(enumerate(files[start : start + SPEC.slots]))) for start in range(0, len(files), SPEC.slots)]
    return decoder, [outcome for batch in batches for outcome in batch.outcomes], batches


def scores_of(outcomes, value=1.5):
    """What a detector that scores every usable member would say."""
    usable = [outcome.status is Status.OK and outcome.said is None for outcome in outcomes]
    return DetectorOutputs.clean(scores={NAME: np.where(usable, np.arange(len(outcomes)) + value, np.nan).astype(np.float32)})


def test_a_twin_in_the_same_block_takes_its_row_s_scores_and_facts():
    decoder, outcomes, _ = decode(ScoreCache(SPEC), A, B, b"no image", A, C, B, b"no image")
    assert decoder.counts == {"decoded": 5, "reused": 2}
    assert [outcome.said is not None for outcome in outcomes] == [False, False, False, True, False, True, False]
    assert outcomes[3].facts == outcomes[0].facts
    scored = judge(SPEC, outcomes, scores_of(outcomes))
    expected = np.array([1.5, 2.5, np.nan, 1.5, 5.5, 2.5, np.nan], np.float32)
    np.testing.assert_array_equal(scored.scores[NAME], expected)
    assert scored.decisions.verdict[3] == scored.decisions.verdict[0]


def test_the_slot_of_a_twin_is_empty_and_the_others_have_their_pixels():
    _, _, [plain] = decode(None, A, B, A, C)
    _, _, [reusing] = decode(ScoreCache(SPEC), A, B, A, C)
    assert reusing.usable == [True, True, False, True]
    assert not reusing.pixels[0][2].any()
    np.testing.assert_array_equal(reusing.pixels[0][[0, 1, 3]], plain.pixels[0][[0, 1, 3]])


def test_earlier_blocks_of_the_process_are_remembered_and_the_oldest_forgotten(monkeypatch):
    monkeypatch.setattr(reuse, "MOST_REMEMBERED", 2)
    recall = ScoreCache(SPEC)
    _, outcomes, _ = decode(recall, A, B, C)
    recall.learn(outcomes, scores_of(outcomes))
    decoder, outcomes, _ = decode(recall, C, A, B)
    assert decoder.counts["decoded"] == 1
    scored = judge(SPEC, outcomes, scores_of(outcomes))
    np.testing.assert_array_equal(scored.scores[NAME], np.array([3.5, 2.5, 2.5], np.float32))


def test_between_processes_a_twin_stays_a_twin():
    _, _, batches = decode(ScoreCache(SPEC), A, B, A, C)
    [arrived] = pickle.loads(pickle.dumps(batches))
    assert arrived.outcomes == batches[0].outcomes
    assert arrived.usable == [True, True, False, True]


def test_a_member_without_scores_stands_for_nobody():
    recall = ScoreCache(SPEC)
    _, outcomes, _ = decode(recall, A)
    recall.learn(outcomes, DetectorOutputs.clean(scores={NAME: np.array([np.nan], np.float32)}))
    decoder, _, _ = decode(recall, A)
    assert decoder.counts["decoded"] == 1


def test_a_twin_of_one_that_no_detector_could_score_failed_as_well():
    _, outcomes, _ = decode(ScoreCache(SPEC), A, A)
    scored = judge(SPEC, outcomes, DetectorOutputs.clean(scores={NAME: np.full(2, np.nan, np.float32)}))
    assert [outcome.status for outcome in scored.outcomes] == [Status.DETECTOR_FAILED] * 2


def test_what_has_no_perceptual_hash_is_hashed_where_one_is_wanted():
    class Old:
        def find(self, sha256):
            return DecodeResult(Status.OK, None, None)

    assert ScoreCache(SPEC, Old()).known("0" * 64)
    wanting = make_spec(SPEC.ensemble, limits=SPEC.limits, perceptual_hash=True)
    assert ScoreCache(wanting, Old()).known("0" * 64) is None


def test_what_another_decoder_read_is_read_again():
    facts = inspect_bytes(A)
    same, other = (replace(facts, decoder=name) for name in (decoder_name("JPEG"), "pillow 12.0.0/libjpeg-turbo 3.1"))

    class Older:
        def find(self, sha256):
            return DecodeResult(Status.OK, None, same if sha256 == "same" else other)

    assert ScoreCache(SPEC, Older()).known("same")
    assert ScoreCache(SPEC, Older()).known("other") is None


@pytest.mark.parametrize(("scores", "complete"), [({NAME: 1.0}, True), ({NAME: None}, False), ({}, False)])
def test_scores_are_complete_when_every_detector_that_should_score_has(scores, complete):
    assert is_complete(SPEC, 300, 200, scores) is complete


def test_a_detector_that_stops_at_its_valid_range_leaves_nothing_missing():
    card = load_card("corvi2023")
    spec = ScoringSpec(SPEC.ensemble, {card.name: card}, SPEC.limits, {}, "exact", 1, "cpu")
    side = int((card.valid_range.max_megapixels * 1e6) ** 0.5) + 10
    assert is_complete(spec, side, side, {card.name: None})
    assert not is_complete(spec, 300, 300, {card.name: None})
