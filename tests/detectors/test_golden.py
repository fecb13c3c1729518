"""The published three against the authors' own code: filled weights, made images, every value a
number in `golden.py`.

`fill` takes a tensor's name for its values, so that a network with other names than the published
file's has other scores.
"""

import functools

import numpy as np
import pytest
import torch

from ray_app.detectors import load_card
from ray_app.detectors.detector import Normalise
from tests.detectors.conftest import PUBLISHED, filled_detector
from tests.detectors.fill import source
from tests.detectors.golden import GOLDEN, check


def score_of(golden, card):
    if card.output.sign is not None:
        return golden.logits[0] * card.output.sign
    fake = card.output.index_among(card.output.labels)
    return golden.logits[fake] - golden.logits[1 - fake]


@functools.lru_cache(maxsize=1)
def exact(name, resampler):
    return filled_detector(name, precision="fp32", slots=1, resampler=resampler)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: "-".join(golden[:3]))
def test_preprocessed_tensor_is_the_authors(golden):
    preprocessing = load_card(golden.detector).preprocessing.model_copy(
        update={"resampler": golden.resampler}
    )
    tensor = Normalise(preprocessing)(
        torch.from_numpy(preprocessing.prepare(source(golden.image))[None])
    )[0]
    check(tensor, golden.prepared)


def slow_but_for_one(golden):
    """Each network sees one image in every run; what differs before it, the prepared tensors show."""
    slow = (
        golden.image != "640x480"
        or golden.resampler != load_card(golden.detector).preprocessing.resampler
    )
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
    published = [
        golden for golden in GOLDEN if golden[:2] == (name, detector.card.preprocessing.resampler)
    ]
    expected = np.array([score_of(golden, detector.card) for golden in published])
    scores = detector.score(
        np.stack([detector.prepare(source(golden.image)) for golden in published])
    ).astype(float)
    assert np.all(np.abs(scores - expected) <= 0.02 * np.maximum(1, np.abs(expected)))
    assert np.all(np.abs(1 / (1 + np.exp(-scores)) - 1 / (1 + np.exp(-expected))) <= 0.02)
