"""A loaded detector's scores: one per image, whatever its neighbours; and what it refuses."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks.seeded import card_with_weights, seeded_state, write_weights
from ray_app.detectors import load_detector
from ray_app.detectors.card import Architecture, Output
from ray_app.errors import DetectorError
from tests.make.networks.fill import with_part


def images(count, side=64):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def detector(request, small_card):
    return load_detector(small_card, precision=request.param, slots=4)


@pytest.mark.parametrize("count", [0, 3, 4, 5])
def test_one_score_per_image_for_any_number(detector, count):
    scores = detector.score(images(count))
    assert scores.shape == (count,)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(detector.score(torch.from_numpy(images(count))), scores)
    assert np.isfinite(scores).all()


def test_score_does_not_depend_on_its_neighbours(detector):
    batch = images(8)
    scores = detector.score(batch)
    alone = np.concatenate([detector.score(batch[i : i + 1]) for i in range(8)])
    np.testing.assert_array_equal(alone, scores)
    order = [6, 1, 7, 0, 3, 2, 5, 4]
    np.testing.assert_array_equal(detector.score(batch[order]), scores[order])


def test_two_logits_give_their_difference(small_card, tmp_path):
    output = Output(labels=("real", "fake"), fake_index=1)
    card = small_card.model_copy(update={"output": output})
    card = card_with_weights(card, write_weights(tmp_path / "two.safetensors", seeded_state(card)))
    detector = load_detector(card, precision="fp32", slots=2)
    logits = detector.network(detector.normalise(torch.from_numpy(images(2))))
    difference = (logits[:, 1] - logits[:, 0]).numpy()
    np.testing.assert_allclose(detector.score(images(2)), difference, rtol=1e-6)


def test_negative_sign_turns_the_score(small_card):
    turned = with_part(small_card, "output", sign=-1)
    scores = load_detector(small_card, precision="fp32").score(images(2))
    np.testing.assert_array_equal(load_detector(turned, precision="fp32").score(images(2)), -scores)


def test_nan_is_returned(small_card, tmp_path):
    state = seeded_state(small_card)
    state["head.bias"] = torch.full_like(state["head.bias"], math.nan)
    card = card_with_weights(small_card, write_weights(tmp_path / "nan.safetensors", state))
    assert np.isnan(load_detector(card, precision="fp32").score(images(2))).all()


def test_pixels_of_another_shape_are_refused(detector):
    float_pixels = images(1).astype(np.float32)
    for wrong in (images(1, side=32), images(1)[..., :2], float_pixels, images(1)[0]):
        with pytest.raises(ValueError, match="expected uint8"):
            detector.score(wrong)


def test_fingerprint_holds_what_decides_a_score(small_card):
    def facts(card=small_card, precision="fp32", **options):
        fingerprint = load_detector(card, precision=precision, **options).fingerprint
        return json.dumps(fingerprint, sort_keys=True)

    assert facts() == facts()
    assert small_card.weights.sha256 in facts()
    others = {
        facts(precision="bf16"),
        facts(slots=2),
        facts(resize="fast"),
        facts(with_part(small_card, "output", sign=-1)),
        facts(with_part(small_card, "preprocessing", filter="bilinear")),
    }
    assert len(others - {facts()}) == 5


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_auto_is_what_the_processor_computes_in(small_card, precision, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CPU_PRECISION", precision)
    assert load_detector(small_card).fingerprint["precision"] == precision


def test_missing_device_is_refused(small_card):
    with pytest.raises(DetectorError, match="unknown device 'toaster'"):
        load_detector(small_card, device="toaster")
    if not torch.cuda.is_available():
        with pytest.raises(DetectorError, match="finds no GPU"):
            load_detector(small_card, device="cuda")
    with pytest.raises(DetectorError, match="compiled requires a GPU"):
        load_detector(small_card, compiled=True)


IMAGESIZE = {"vision_config": {"imagesize": 7}}


@pytest.mark.parametrize(
    ("family", "architecture", "said"),
    [
        ("timm-classifier", {"name": "vit_smal"}, "timm-classifier cannot build vit_smal"),
        ("transformers-classifier", {"name": "swinv3"}, "cannot build swinv3"),
        (
            "transformers-classifier",
            {"name": "siglip", "arguments": IMAGESIZE},
            "vision_config.imagesize",
        ),
        (
            "corvi",
            {"arguments": {"depth": 7}},
            "keys in architecture.arguments: layers, channels, tile",
        ),
    ],
    ids=["timm-name", "transformers-name", "transformers-key", "corvi-key"],
)
def test_unknown_architecture_is_refused(small_card, family, architecture, said):
    changes = {"family": family, "architecture": Architecture.model_validate(architecture)}
    with pytest.raises(DetectorError) as refused:
        load_detector(small_card.model_copy(update=changes))
    assert said in f"{refused.value.message} ({refused.value.hint})"
