"""What is kept of an image gives, through the head alone, the score that the whole network gives;
which heads may read it, and which backbones are one.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.seeded import card_with_weights, seeded_card
from ray_app.detectors import load_detector
from ray_app.detectors.linear_head import LinearHead, embedding_facts
from ray_app.detectors.shared_backbone import share_backbones
from ray_app.errors import DetectorError
from tests.make.cards import small_cards
from tests.make.networks.fill import with_arguments, with_part
from tests.make.networks.small_clip import small_card as small_clip_card

CARDS = {card.name: card for card in small_cards()}


def kept(detector, images):
    """The embeddings of a batch, and the scores that came with them."""
    detector.keep_embeddings()
    reading = detector.read(detector.normalise(torch.from_numpy(images)))
    return reading.embeddings.numpy(), reading.scores.numpy()


def some_images(card, count=3):
    height, width = card.preprocessing.shape or (96, 80)
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def facts_of(card, **options):
    return embedding_facts(card, **{"precision": "fp32", "resize": "exact", **options})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(CARDS.keys() - {"maskclip", "own-head"}))
def test_head_alone_gives_the_score_of_the_network(tmp_path, name, precision):
    card = seeded_card(CARDS[name], tmp_path)
    vectors, scores = kept(load_detector(card, precision=precision), some_images(card))
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, facts_of(card)["width"])
    assert len(np.unique(scores)) == 3
    np.testing.assert_allclose(LinearHead(card).score(vectors), scores, atol=1e-5)


def test_detector_keeps_embeddings_only_on_request():
    detector = load_detector("touchstone-tiny")
    images = detector.normalise(torch.from_numpy(some_images(detector.card)))
    assert detector.read(images).embeddings is None
    before = detector.read(images).scores
    detector.keep_embeddings()
    detector.keep_embeddings()
    assert torch.equal(detector.read(images).scores, before)


def test_missing_vector_has_no_score(tmp_path):
    card, _ = small_clip_card(tmp_path)
    vectors = np.zeros((2, facts_of(card)["width"]), np.float32)
    vectors[1] = np.nan
    scores = LinearHead(card).score(vectors)
    assert scores[0] == pytest.approx(0.25)
    assert np.isnan(scores[1])


def test_heads_of_one_backbone_share_embeddings(tmp_path):
    base = seeded_card(CARDS["unifd"], tmp_path / "base")
    head = seeded_card(CARDS["own-head"], tmp_path / "own", seed=5)
    head = with_part(head, "architecture", name="logistic")
    head = head.model_copy(update={"backbone": base.backbone})
    assert facts_of(head) == facts_of(base)
    assert facts_of(base)["backbone"] == base.backbone.name
    assert facts_of(base)["sha256"] == base.backbone.weights.sha256
    ones = np.ones((1, 32), np.float32)
    assert LinearHead(head).score(ones) != LinearHead(base).score(ones)


def test_facts_differ_with_what_changes_an_embedding(tmp_path):
    base = seeded_card(CARDS["unifd"], tmp_path / "base")
    others = {
        "backbone": facts_of(seeded_card(CARDS["unifd"], tmp_path / "other", seed=1)),
        "mean": facts_of(with_part(base, "preprocessing", mean=(0.5, 0.5, 0.5))),
        "arguments": facts_of(
            with_arguments(base, {**base.architecture.arguments, "normalise": True})
        ),
        "precision": facts_of(base, precision="bf16"),
        "resize": facts_of(base, resize="fast"),
    }
    assert [change for change, facts in others.items() if facts == facts_of(base)] == []


def test_head_in_a_whole_file_is_known_by_the_rest(small_card, tmp_path):
    state = load_file(small_card.weights.uri)
    heads = {key: torch.randn_like(state[key]) for key in state if key.startswith("head.")}
    save_file({**state, **heads}, tmp_path / "head.safetensors")
    other_head = card_with_weights(small_card, tmp_path / "head.safetensors")
    first = next(key for key in state if not key.startswith("head."))
    save_file(state | {first: state[first] + 1}, tmp_path / "body.safetensors")
    other_body = card_with_weights(small_card, tmp_path / "body.safetensors")
    assert facts_of(other_head) == facts_of(small_card)
    assert facts_of(other_body)["sha256"] != facts_of(small_card)["sha256"]
    images = some_images(small_card)
    vectors, _ = kept(load_detector(small_card, precision="fp32"), images)
    expected = load_detector(other_head, precision="fp32").score(images)
    np.testing.assert_allclose(LinearHead(other_head).score(vectors), expected, atol=1e-5)


def test_localizer_has_no_embedding(tmp_path):
    with pytest.raises(DetectorError, match="no embedding to store"):
        facts_of(seeded_card(CARDS["maskclip"], tmp_path))


def test_head_of_another_width_is_refused(tmp_path):
    card, _ = small_clip_card(tmp_path)
    head = {"fc.weight": torch.zeros(1, 7), "fc.bias": torch.zeros(1)}
    torch.save({"model": head}, tmp_path / "weights.pth")
    with pytest.raises(DetectorError, match="head must have the shapes"):
        LinearHead(card)


@pytest.fixture(scope="module")
def unifds(tmp_path_factory):
    """Two cards whose backbones share a name and nothing else."""
    folder = tmp_path_factory.mktemp("sharing")
    return [seeded_card(CARDS["unifd"], folder / str(seed), seed) for seed in (1, 2)]


def test_backbones_that_share_a_name_are_not_shared(unifds):
    pixels = some_images(unifds[0])
    expected = [load_detector(card, precision="fp32").score(pixels) for card in unifds]
    together = [load_detector(card, precision="fp32") for card in unifds]
    assert len(share_backbones(together)) == 2
    np.testing.assert_array_equal([detector.score(pixels) for detector in together], expected)
    both = [load_detector(unifds[0], precision=precision) for precision in ("fp32", "bf16")]
    assert len(share_backbones(both)) == 2


def test_features_are_not_kept_beyond_the_next_batch(unifds):
    detector, pixels = load_detector(unifds[0], precision="fp32"), some_images(unifds[0])
    share_backbones([detector])
    first, second = detector.score(pixels), detector.score(pixels[::-1].copy())
    np.testing.assert_array_equal(first[::-1], second)
