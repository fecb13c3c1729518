"""The published three against the authors' own code: filled weights, made images, every value a number in `golden.py`."""

import functools
import hashlib
import zlib

import numpy as np
import pytest
import torch

from benchmarks.seeded import PUBLISHED_PREFIX
from ray_app.detectors import load_card
from ray_app.detectors.detector import Normalise, build_network
from tests.detectors.conftest import PUBLISHED, filled_detector, filled_state
from tests.detectors.fill import Undrawn, source
from tests.detectors.golden import FILLED, GOLDEN, IMAGES, SHAPES, check


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
    with Undrawn():
        state = build_network(load_card(name)).state_dict()
    shapes = [f"{PUBLISHED_PREFIX.get(name, '')}{key} {tuple(tensor.shape)}" for key, tensor in state.items()]
    tensors, elements, *_ = FILLED[name]
    assert len(state) == tensors
    assert sum(tensor.numel() for tensor in state.values()) == elements
    assert zlib.crc32("\n".join(sorted(shapes)).encode()) == SHAPES[name]


@pytest.mark.slow  # were one weight in a thousand another, the scores below would be others, too
@pytest.mark.parametrize("name", PUBLISHED)
def test_fill_made_the_authors_weights(name):
    state = filled_state(name)
    *_, total, absolute = FILLED[name]
    assert sum(tensor.double().sum().item() for tensor in state.values()) == pytest.approx(total, abs=1e-3)
    assert sum(tensor.double().abs().sum().item() for tensor in state.values()) == pytest.approx(absolute, abs=1e-2)


@functools.lru_cache(maxsize=1)
def exact(name, resampler):
    return filled_detector(name, precision="fp32", slots=1, resampler=resampler)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: "-".join(golden[:3]))
def test_preprocessed_tensor_is_the_authors(golden):
    preprocessing = load_card(golden.detector).preprocessing.model_copy(update={"resampler": golden.resampler})
    tensor = Normalise(preprocessing)(torch.from_numpy(preprocessing.prepare(source(golden.image))[None]))[0]
    check(tensor, golden.prepared)


def slow_but_for_one(golden):
    """Each network sees one image in every run; what differs before it, the prepared tensors show."""
    slow = golden.image != "640x480" or golden.resampler != load_card(golden.detector).preprocessing.resampler
    return pytest.param(golden, id="-".join(golden[:3]), marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize("golden", [slow_but_for_one(golden) for golden in GOLDEN])
def test_score_is_the_authors(golden):
    detector = exact(golden.detector, golden.resampler)
    expected = score_of(golden, detector.card)
    score = detector.score(detector.prepare(source(golden.image))[None])[0]
    assert score == pytest.approx(expected, abs=1e-4 * max(1, abs(expected)))


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_bf16_stays_within_its_bound(name):
    detector = filled_detector(name, precision="bf16", slots=4)
    published = [golden for golden in GOLDEN if golden[:2] == (name, detector.card.preprocessing.resampler)]
    expected = np.array([score_of(golden, detector.card) for golden in published])
    scores = detector.score(np.stack([detector.prepare(source(golden.image)) for golden in published])).astype(float)
    assert np.all(np.abs(scores - expected) <= 0.02 * np.maximum(1, np.abs(expected)))
    assert np.all(np.abs(1 / (1 + np.exp(-scores)) - 1 / (1 + np.exp(-expected))) <= 0.02)
