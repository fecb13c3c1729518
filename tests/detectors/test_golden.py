"""Published networks at full size against the authors' own code: filled weights, made images, every
value a number in `golden_values`.

`fill` takes a tensor's name for its values, so that a network with other names than the published
file's has other scores.
"""

import functools

import numpy as np
import pytest
import torch

from tests.detectors.golden import (
    PREPARED,
    SCORES,
    TENSORS,
    check,
    filled_detector,
    filled_network,
    golden_card,
    near,
    prepared,
    score_image,
)

PUBLISHED = ["community-forensics-vits384", "openfake-swinv2-small", "siglip2-open-deepfake"]
# The widest networks; clip-d-10k-plus has the tower of the other two.
LARGE = {"siglip2-open-deepfake", "unifd", "clip-cues", "drct-convnext-b"}
LARGE_IMAGES = {"640x480", "301x227", "1100x1500"}


@functools.lru_cache(maxsize=1)
def network(name):
    return filled_network(name)


@pytest.fixture(scope="module", autouse=True)
def forget_networks():
    yield
    network.cache_clear()


@pytest.mark.parametrize("name", PREPARED)
def test_prepared_tensor_is_the_authors(name):
    for image, tensor in TENSORS[PREPARED[name]].items():
        check(prepared(name, image)[0], tensor)


def scored_cases():
    """Each network scores one image in every run: the prepared tensors show what differs before it."""
    for name in SCORES:
        base = name.partition("@")[0].partition(":")[0]
        for number, image in enumerate(SCORES[name] if name in PREPARED else ()):
            is_slow = base in LARGE or name != base or image in LARGE_IMAGES or number > 1
            yield pytest.param(
                name, image, id=f"{name}-{image}", marks=[pytest.mark.slow] * is_slow
            )


@pytest.mark.parametrize(("name", "image"), list(scored_cases()))
def test_score_is_the_authors(name, image):
    card = golden_card(name)
    detector = filled_detector(card, network(card.name.partition(":")[0]))
    assert score_image(detector, image) == near(SCORES[name][image])


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_bf16_stays_within_its_bound(name):
    detector = filled_detector(golden_card(name), filled_network(name), precision="bf16", slots=4)
    expected = np.array([*SCORES[name].values()])
    scores = np.array([score_image(detector, image) for image in SCORES[name]], float)
    assert np.all(np.abs(scores - expected) <= 0.02 * np.maximum(1, np.abs(expected)))
    assert np.all(np.abs(1 / (1 + np.exp(-scores)) - 1 / (1 + np.exp(-expected))) <= 0.02)


@pytest.mark.parametrize("name", ["corvi2023", "ladeda9"])
@torch.inference_mode()
def test_logit_map_is_the_authors(name):
    """A logit per cell of Corvi2023, per patch of LaDeDa9, without the global pool."""
    found = network(name).logit_map(prepared(name, "97x61"))[0]
    check(found, TENSORS[f"{name} map"]["97x61"], tolerance=1e-4)
