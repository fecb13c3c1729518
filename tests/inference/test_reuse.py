"""The same bytes again: neither decoded nor scored, and nobody else's batch is another one for it."""

import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from ray_app.ensembles import load_ensemble_card
from ray_app.errors import Status
from ray_app.images import ImageLimits, decoder_name, inspect_bytes
from ray_app.inference import BatchDecoder, DecodeResult, DetectorOutputs, StageClock, judge, make_spec, reuse
from ray_app.inference.reuse import ScoreCache
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


def test_the_slot_of_a_twin_is_empty_and_the_others_have_their_pixels_between_processes_too():
    _, _, [plain] = decode(None, A, B, A, C)
    _, _, [reusing] = decode(ScoreCache(SPEC), A, B, A, C)
    for batch in (reusing, pickle.loads(pickle.dumps(reusing))):
        assert batch.outcomes == reusing.outcomes
        assert [size is not None for size in batch.sizes] == [True, True, False, True]
        assert not batch.pixels[0][2].any()
        np.testing.assert_array_equal(batch.pixels[0][[0, 1, 3]], plain.pixels[0][[0, 1, 3]])


def test_earlier_blocks_of_the_process_are_remembered_and_the_oldest_forgotten(monkeypatch):
    monkeypatch.setattr(reuse, "MOST_REMEMBERED", 2)
    recall = ScoreCache(SPEC)
    _, outcomes, _ = decode(recall, A, B, C)
    recall.learn(outcomes, scores_of(outcomes))
    decoder, outcomes, _ = decode(recall, C, A, B)
    assert decoder.counts["decoded"] == 1
    scored = judge(SPEC, outcomes, scores_of(outcomes))
    np.testing.assert_array_equal(scored.scores[NAME], np.array([3.5, 2.5, 2.5], np.float32))


def test_a_member_without_scores_stands_for_nobody_and_its_twin_failed_as_well():
    recall, nothing = ScoreCache(SPEC), DetectorOutputs.clean(scores={NAME: np.full(2, np.nan, np.float32)})
    _, outcomes, _ = decode(recall, A, A)
    assert [outcome.status for outcome in judge(SPEC, outcomes, nothing).outcomes] == [Status.DETECTOR_FAILED] * 2
    recall.learn(outcomes, nothing)
    decoder, _, _ = decode(recall, A)
    assert decoder.counts["decoded"] == 1


def test_what_has_no_perceptual_hash_or_was_read_by_another_decoder_is_read_again():
    facts = inspect_bytes(A)
    same, other = (replace(facts, decoder=name) for name in (decoder_name("JPEG"), "pillow 12.0.0/libjpeg-turbo 3.1"))
    index = SimpleNamespace(find=lambda sha256: DecodeResult(Status.OK, None, {"same": same, "other": other}[sha256]))
    assert ScoreCache(SPEC, index).known("same")
    assert ScoreCache(SPEC, index).known("other") is None
    wanting = make_spec(SPEC.ensemble, limits=SPEC.limits, perceptual_hash=True)
    assert ScoreCache(wanting, index).known("same") is None
