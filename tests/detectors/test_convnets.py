"""The convolutional detectors against the authors' own code: filled weights, made images, every
value a number in `golden_convnets.py`.
"""

import functools

import pytest
import torch

from ray_app.detectors import load_card
from ray_app.detectors.detector import Normalise, build_network, log_odds
from tests.detectors.fill import Undrawn, fill, source
from tests.detectors.golden import check
from tests.detectors.golden_convnets import GAIN, LOGITS, MAPS, PREPARED


@functools.cache
def filled(name):
    with Undrawn():
        network = build_network(load_card(name))
    words, gain = GAIN.get(name, ("-", 1.0))
    state = fill(network.state_dict()).items()
    network.load_state_dict(
        {
            key: tensor * gain if key.startswith(tuple(words.split())) else tensor
            for key, tensor in state
        }
    )
    return network.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module", autouse=True)
def forget_networks():
    yield
    filled.cache_clear()


def prepared(card, image):
    preprocessing = load_card(card).preprocessing
    return Normalise(preprocessing)(torch.from_numpy(preprocessing.prepare(source(image))[None]))


def slow_but_for_one(card, image):
    """One image goes through each network in every run; what a variant makes of an image before it,
    the prepared tensors show.
    """
    return pytest.param(
        card,
        image,
        id=f"{card}-{image}",
        marks=[pytest.mark.slow] * (":" in card or image != "97x61"),
    )


@pytest.mark.parametrize("card", LOGITS)
def test_prepared_tensors_are_the_authors(card):
    geometry, _ = LOGITS[card]
    for image, tensor in PREPARED[geometry].items():
        check(prepared(card, image)[0], tensor)


@pytest.mark.parametrize(
    ("name", "image"),
    [slow_but_for_one(card, image) for card, (_, images) in LOGITS.items() for image in images],
)
@torch.inference_mode()
def test_logit_is_the_authors(name, image):
    card, expected = load_card(name), LOGITS[name][1][image]
    fake = 0 if card.output.sign is not None else card.output.index_among(card.output.labels)
    score = log_odds(card, fake, filled(name.partition(":")[0])(prepared(name, image)), 1)
    assert score.item() == pytest.approx(expected, abs=1e-4 * max(1, abs(expected)))


@pytest.mark.parametrize("card", MAPS)
@torch.inference_mode()
def test_logit_map_is_the_authors(card):
    check(filled(card).logit_map(prepared(card, "97x61"))[0], MAPS[card], tolerance=1e-4)
