"""The published three against the authors' own code: filled weights, made images, every value a number in `golden.py`."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from ray_app.detectors import load_card
from tests.detectors.conftest import PUBLISHED, filled_detector, filled_state
from tests.detectors.fill import pattern_image
from tests.detectors.golden import FILLED, GOLDEN, IMAGES

# At two seconds an image SigLIP is the slow one; the image on which Pillow and torchvision differ stays in every run.
QUICK_SIGLIP = {("torch", "640x480"), ("pillow", "640x480"), ("torch", "97x61")}


def source(name):
    height, width = map(int, name.split("x"))
    return Image.fromarray(pattern_image(height, width))


def score_of(golden, card):
    if card.output.sign is not None:
        return golden.logits[0] * card.output.sign
    fake = card.output.index_among(card.output.labels)
    return golden.logits[fake] - golden.logits[1 - fake]


@pytest.mark.parametrize("name", IMAGES)
def test_pattern_image(name):
    assert hashlib.sha256(source(name).tobytes()).hexdigest() == IMAGES[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_network_has_the_published_tensors(name):
    state = filled_state(name)
    tensors, elements, total, absolute = FILLED[name]
    assert len(state) == tensors
    assert sum(tensor.numel() for tensor in state.values()) == elements
    assert sum(tensor.double().sum().item() for tensor in state.values()) == pytest.approx(total, abs=1e-3)
    assert sum(tensor.double().abs().sum().item() for tensor in state.values()) == pytest.approx(absolute, abs=1e-2)


@pytest.fixture(scope="module", params=[(name, resampler) for name in PUBLISHED for resampler in ("pillow", "torch")], ids="-".join)
def exact(request):
    name, resampler = request.param
    if name == PUBLISHED[0] and resampler == "torch":
        pytest.skip("Community Forensics is published with Pillow alone")
    return filled_detector(name, precision="fp32", slots=1, resampler=resampler)


@pytest.mark.parametrize("image", IMAGES)
def test_preprocessed_tensor_is_the_authors(exact, image):
    golden = golden_for(exact, image)
    tensor = exact._normalise(torch.from_numpy(exact.prepare(source(image))[None]))[0]
    assert tensor.shape == golden.shape
    assert tensor.double().mean().item() == pytest.approx(golden.mean, abs=1e-5)
    assert tensor.double().std(correction=0).item() == pytest.approx(golden.std, abs=1e-5)
    for channel, row, column, value in golden.pixels:
        assert tensor[channel, row, column].item() == pytest.approx(value, abs=1e-5)


def golden_for(detector, image):
    key = (detector.card.name, detector.card.preprocessing.resampler, image)
    return next(golden for golden in GOLDEN if golden[:3] == key)


def check_score(detector, image):
    expected = score_of(golden_for(detector, image), detector.card)
    score = detector.score(detector.prepare(source(image))[None])[0]
    assert score == pytest.approx(expected, abs=1e-4 * max(1, abs(expected)))


@pytest.mark.parametrize("image", IMAGES)
def test_score_is_the_authors(exact, image):
    if exact.card.name == PUBLISHED[2] and (exact.card.preprocessing.resampler, image) not in QUICK_SIGLIP:
        pytest.skip("in the slow run")
    check_score(exact, image)


@pytest.mark.slow
@pytest.mark.parametrize("resampler", ["pillow", "torch"])
def test_every_siglip_score_is_the_authors(resampler):
    detector = filled_detector(PUBLISHED[2], precision="fp32", slots=1, resampler=resampler)
    for image in IMAGES:
        check_score(detector, image)


@pytest.mark.parametrize("name", PUBLISHED)
def test_bf16_stays_within_its_bound(name):
    detector = filled_detector(name, precision="bf16", slots=4)
    images = list(IMAGES)
    expected = np.array([score_of(golden_for(detector, image), load_card(name)) for image in images])
    scores = detector.score(np.stack([detector.prepare(source(image)) for image in images])).astype(float)
    assert np.all(np.abs(scores - expected) <= 0.02 * np.maximum(1, np.abs(expected)))
    assert np.all(np.abs(1 / (1 + np.exp(-scores)) - 1 / (1 + np.exp(-expected))) <= 0.02)
