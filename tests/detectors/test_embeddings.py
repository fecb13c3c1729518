"""What is kept of an image gives, through the head alone, the score that the whole network gives;
and which heads may ask.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.seeded import card_with_weights, seeded_card
from ray_app.detectors import load_detector
from ray_app.detectors.linear_head import LinearHead, embedding_facts
from ray_app.errors import DetectorError
from tests.detectors.fill import with_arguments
from tests.detectors.small_clip import small_card as small_clip_card
from tests.scoring.eight import small_cards

CARDS = {card.name: card for card in small_cards()}
WITHOUT = ("maskclip",)


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
@pytest.mark.parametrize("name", [name for name in CARDS if name not in WITHOUT])
def test_the_head_alone_gives_the_score_of_the_whole_network(tmp_path, name, precision):
    card = seeded_card(CARDS[name], tmp_path)
    vectors, scores = kept(load_detector(card, precision=precision), some_images(card))
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, facts_of(card)["width"])
    assert len(np.unique(scores)) == 3
    np.testing.assert_allclose(LinearHead(card).score(vectors), scores, atol=1e-5)


def test_a_detector_keeps_nothing_unless_it_is_told_to():
    detector = load_detector("touchstone-tiny")
    images = detector.normalise(torch.from_numpy(some_images(detector.card)))
    assert detector.read(images).embeddings is None
    before = detector.read(images).scores
    detector.keep_embeddings()
    detector.keep_embeddings()
    assert torch.equal(detector.read(images).scores, before)


def test_no_vector_is_no_score(tmp_path):
    card, _ = small_clip_card(tmp_path)
    vectors = np.zeros((2, facts_of(card)["width"]), np.float32)
    vectors[1] = np.nan
    scores = LinearHead(card).score(vectors)
    assert scores[0] == pytest.approx(0.25)
    assert np.isnan(scores[1])


def test_heads_of_one_backbone_share_what_decides_embeddings(tmp_path):
    base = seeded_card(CARDS["unifd"], tmp_path / "base")
    head = seeded_card(CARDS["own-head"], tmp_path / "own", seed=5)
    head = head.model_copy(
        update={
            "backbone": base.backbone,
            "architecture": head.architecture.model_copy(update={"name": "logistic"}),
        }
    )
    assert facts_of(head) == facts_of(base)
    assert facts_of(base)["backbone"] == base.backbone.name
    assert facts_of(base)["sha256"] == base.backbone.weights.sha256
    assert LinearHead(head).score(np.ones((1, 32), np.float32)) != LinearHead(base).score(
        np.ones((1, 32), np.float32)
    )


def test_whatever_changes_an_embedding_is_told_apart(tmp_path):
    base = seeded_card(CARDS["unifd"], tmp_path / "base")
    others = [
        facts_of(seeded_card(CARDS["unifd"], tmp_path / "other", seed=1)),
        facts_of(
            base.model_copy(
                update={
                    "preprocessing": base.preprocessing.model_copy(update={"mean": (0.5, 0.5, 0.5)})
                }
            )
        ),
        facts_of(with_arguments(base, dict(base.architecture.arguments) | {"normalise": True})),
        facts_of(base, precision="bf16"),
        facts_of(base, resize="fast"),
    ]
    assert all(other != facts_of(base) for other in others)


def test_a_head_in_the_file_of_its_whole_network_is_known_by_the_rest_of_it(small_card, tmp_path):
    state = load_file(small_card.weights.uri)
    head = {
        key: torch.randn_like(tensor) if key.startswith("head.") else tensor
        for key, tensor in state.items()
    }
    save_file(head, tmp_path / "head.safetensors")
    other_head = card_with_weights(small_card, tmp_path / "head.safetensors")
    first = next(key for key in state if not key.startswith("head."))
    save_file(state | {first: state[first] + 1}, tmp_path / "body.safetensors")
    other_body = card_with_weights(small_card, tmp_path / "body.safetensors")
    assert facts_of(other_head) == facts_of(small_card)
    assert facts_of(other_body)["sha256"] != facts_of(small_card)["sha256"]
    images = some_images(small_card)
    vectors, _ = kept(load_detector(small_card, precision="fp32"), images)
    np.testing.assert_allclose(
        LinearHead(other_head).score(vectors),
        load_detector(other_head, precision="fp32").score(images),
        atol=1e-5,
    )


def test_localizers_have_no_embedding_and_a_head_of_another_width_is_refused(tmp_path):
    with pytest.raises(DetectorError, match="no embedding to keep"):
        facts_of(seeded_card(CARDS["maskclip"], tmp_path / "maskclip"))
    card, _ = small_clip_card(tmp_path)
    torch.save(
        {"model": {"fc.weight": torch.zeros(1, 7), "fc.bias": torch.zeros(1)}},
        tmp_path / "weights.pth",
    )
    with pytest.raises(DetectorError, match="no head of the shape"):
        LinearHead(card)
