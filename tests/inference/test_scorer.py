"""Several detectors in one process: shared backbones, kept sizes, masks, replies, embeddings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ray_app.detectors import load_detector
from ray_app.detectors.shared_backbone import share_equal_weights
from ray_app.ensembles import build_ensemble, load_ensemble_card
from ray_app.errors import Status
from ray_app.images import ImageLimits, decode_image
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
from tests.inference.batches import batches, noise
from tests.make.networks.tiny_internvl import write_tiny_internvl

SIZES = [(64, 80), (200, 120), (64, 80), (301, 177), (90, 90)]
FILES = noise(*SIZES)


def fp32(card, **options):
    return make_spec(card, limits=ImageLimits(), precision="fp32", **options)


@pytest.fixture(scope="module")
def whole(eight):
    return fp32(load_ensemble_card(eight))


@pytest.fixture(scope="module")
def spec(eight):
    """All but the detector with masks, which takes longer than the others together."""
    card = load_ensemble_card(eight)
    others = tuple(member for member in card.members if "maskclip" not in member.detector)
    return fp32(card.model_copy(update={"members": others}))


def cards_of(spec, *names):
    return {name: spec.cards[name] for name in names}


def score(spec, given, *pool):
    return EnsembleScorer(spec, StageClock(), *pool).score(given)


def judged(spec, given, outputs):
    return judge(spec, [outcome for batch in given for outcome in batch.outcomes], outputs)


def test_backbone_runs_once_for_heads_on_the_same_pixels(spec):
    scorer, decoder = EnsembleScorer(spec, StageClock()), BatchDecoder(spec, StageClock())
    given = batches(spec, FILES, decoder)
    outputs = scorer.score(given)
    name = spec.cards["unifd"].backbone.name
    assert decoder.counts["decoded"] == len(SIZES)
    assert scorer.counts[RUNS + name] == len(given)
    assert scorer.counts[REQUESTED + name] == 2 * len(given)
    assert not np.array_equal(outputs.scores["unifd"], outputs.scores["own-head"])
    for name in ("unifd", "own-head", "clip-d-10k-plus"):
        alone = load_detector(spec.cards[name], precision="fp32")
        place = spec.preprocessings.index(alone.card.preprocessing)
        scores = [alone.score(batch.pixels[place][: len(batch.outcomes)]) for batch in given]
        np.testing.assert_array_equal(outputs.scores[name], np.concatenate(scores))


def test_equal_weights_of_two_files_are_in_memory_once(spec):
    one, other = (
        load_detector(spec.cards[name], precision="fp32").network for name in ("unifd", "own-head")
    )
    pixels = torch.linspace(-1, 1, 3 * 224 * 224).view(1, 3, 224, 224)
    before = one(pixels).numpy()
    saved = share_equal_weights([one, other])
    assert saved >= sum(parameter.nbytes for parameter in one.backbone.parameters()) * 0.9
    assert one.backbone.conv1.weight.data_ptr() == other.backbone.conv1.weight.data_ptr()
    assert one.fc.weight.data_ptr() != other.fc.weight.data_ptr()
    np.testing.assert_array_equal(one(pixels).numpy(), before)


def test_images_that_keep_their_size_are_decoded_one_by_one(spec):
    given = batches(spec, FILES, BatchDecoder(spec, StageClock(), hand_over=True))
    decoder = BatchDecoder(spec, StageClock())
    completed = [decoder.complete(batch) for batch in given]
    assert decoder.counts["decoded"] == 0
    shapes = [preprocessing.shape for preprocessing in spec.preprocessings]
    kept = completed[0].pixels[shapes.index(None)]
    image = decode_image(FILES[1], spec.limits).pixels
    expected = spec.preprocessings[shapes.index(None)].prepare(image)
    np.testing.assert_array_equal(kept.complete([1])[1], expected)
    assert decoder.counts["decoded"] == 1


def test_image_that_no_longer_decodes_has_no_score(spec):
    given = batches(spec, FILES, BatchDecoder(spec, StageClock(), hand_over=True))
    cut = [[data and data[:40] for data in batch.encoded] for batch in given]
    broken = [replace(batch, encoded=tuple(files)) for batch, files in zip(given, cut, strict=True)]
    decoder = BatchDecoder(spec, StageClock())
    outputs = score(spec, map(decoder.complete, broken), ["corvi2023"])
    assert np.isnan(outputs.scores["corvi2023"]).all()


def test_two_pools_give_together_what_one_gives(whole):
    three = replace(whole, cards=cards_of(whole, "tiny-ladeda", "unifd", "maskclip"))
    given = batches(three, [FILES[0], b"no image", FILES[1]])
    first, second = (score(three, given, pool) for pool in (["tiny-ladeda"], ["unifd", "maskclip"]))
    joined, outputs = first.merge(second), score(three, given)
    assert list(joined.scores) == list(outputs.scores)
    for name, scores in outputs.scores.items():
        np.testing.assert_array_equal(joined.scores[name], scores)
    masks = outputs.get("masks")
    assert list(joined.get("masks")) == list(masks) == ["maskclip"]
    image, none, other = masks["maskclip"]
    assert none is None
    assert (image.shape, image.dtype) == ((256, 256), np.uint8)
    assert not np.array_equal(image, other)


def test_views_that_keep_every_place_have_masks(whole):
    views = load_perturbations(["jpeg:50", "crop:0.75"])
    alone = replace(whole, cards=cards_of(whole, "maskclip"), slots=1, views=views)
    outputs = score(alone, batches(alone, [FILES[0], b"no image"]))
    assert list(outputs.by_view("scores")) == ["jpeg:50", "crop:0.75"]
    assert list(outputs.by_view("masks")) == ["jpeg:50"]
    mask, none = outputs.by_view("masks")["jpeg:50"]["maskclip"]
    assert none is None
    assert mask.shape == (256, 256)
    assert not np.array_equal(mask, outputs.get("masks")["maskclip"][0])
    joined = DetectorOutputs().merge(outputs)
    assert joined.by_view("masks")["jpeg:50"]["maskclip"][0] is mask
    assert joined.among([]).columns == {}


def test_detector_beyond_its_cap_has_no_score_and_abstains(spec):
    card = spec.cards["corvi2023"]
    limits = {"min_side_px": 1, "max_megapixels": 0.03}
    valid_range = card.valid_range.model_copy(update=limits)
    capped = card.model_copy(update={"valid_range": valid_range})
    limited = replace(spec, cards={**spec.cards, "corvi2023": capped})
    given = batches(limited, FILES)
    outputs = score(limited, given, ["corvi2023"])
    assert np.isnan(outputs.scores["corvi2023"]).tolist() == [False, False, False, True, False]
    others = score(limited, given, [name for name in limited.cards if name != "corvi2023"])
    scored = judged(limited, given, others.merge(outputs))
    assert scored.outcomes[3].status is Status.OK
    assert scored.decisions.verdict[3] == "abstain"
    reason = "corvi2023: no score (301 × 177, above the valid range (0.03 megapixels))"
    assert reason in scored.decisions.detail[3]
    assert np.isnan(scored.decisions.score[3])
    assert np.isfinite(scored.scores["unifd"][3])


def test_reply_that_is_no_answer_fails_with_the_reply(tmp_path):
    alone = fp32(build_ensemble([str(write_tiny_internvl(tmp_path))]))
    given = batches(alone, noise(*[(40 + 7 * number, 50) for number in range(12)]))
    outputs = score(alone, given)
    scores, replies = outputs.scores["tiny-internvl"], outputs.get("replies")["tiny-internvl"]
    outcomes = judged(alone, given, outputs).outcomes
    failed = [outcome for outcome in outcomes if outcome.status is Status.DETECTOR_FAILED]
    assert 0 < len(failed) < len(replies)
    for outcome, reply, one in zip(outcomes, replies, scores, strict=True):
        assert (outcome.status is Status.OK) == (one in (1.0, -1.0))
        if outcome in failed:
            assert outcome.detail.endswith(f"tiny-internvl: it replied {reply!r}")


def test_kept_embeddings_change_no_score():
    plain = fp32(build_ensemble(["touchstone-tiny"]))
    keeping = replace(plain, features=select_embeddings(plain, ["touchstone-tiny"]))
    files = noise(*[(300, 300)] * 7)
    given = [b"no image" if number % 3 == 2 else file for number, file in enumerate(files)]
    outputs, without = (score(one, batches(one, given)) for one in (keeping, plain))
    vectors = outputs.get("embeddings")["touchstone-tiny"]
    assert vectors.shape == (7, 128)
    usable = np.arange(7) % 3 != 2
    assert np.isfinite(vectors).all(axis=1).tolist() == usable.tolist()
    assert len(np.unique(vectors[usable], axis=0)) == usable.sum()
    for name, scores in without.scores.items():
        np.testing.assert_array_equal(outputs.scores[name], scores)
    assert not without.get("embeddings")
    parts = [score(keeping, batches(keeping, part)) for part in (given[:4], given[4:])]
    other = DetectorOutputs.clean(scores={"other": np.zeros(7, np.float32)})
    joined = DetectorOutputs.concatenate(parts).merge(other)
    np.testing.assert_array_equal(joined.get("embeddings")["touchstone-tiny"], vectors)
    assert not joined.among(["other"]).get("embeddings")
