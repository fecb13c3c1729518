"""The convolutional detectors against the authors' own code: filled weights, made images, every value a number in `golden_convnets.py`."""

import functools

import pytest
import torch

from ray_app.detectors import load_card
from ray_app.detectors.detector import Normalise, build_network
from tests.detectors.fill import Undrawn, fill, source
from tests.detectors.golden import check
from tests.detectors.golden_convnets import FILLED, GOLDEN, MAPS


@functools.cache
def filled(name):
    with Undrawn():
        network = build_network(load_card(name))
    network.load_state_dict(fill(network.state_dict()))
    return network.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module", autouse=True)
def forget_networks():
    yield
    filled.cache_clear()


def prepared(card, image):
    preprocessing = load_card(card).preprocessing
    return Normalise(preprocessing)(torch.from_numpy(preprocessing.prepare(source(image))[None]))


def slow_but_for_one(card, image):
    """One image goes through each network in every run; what a variant makes of an image before it, the prepared tensors show."""
    return pytest.param(card, image, id=f"{card}-{image}", marks=[pytest.mark.slow] * (":" in card or image != "97x61"))


LOGITS = {golden[:2]: golden.logit for golden in GOLDEN}
# thumb1024 leaves all but the largest image to the native network.
SCORED = [slow_but_for_one(*key) for key in LOGITS if key[0] != "corvi2023:thumb1024" or key[1] == "1100x1500"]


@pytest.mark.parametrize("name", FILLED)
def test_the_network_has_the_published_tensors(name):
    tensors, elements, total, absolute, parameters = FILLED[name]
    network, size = filled(name), load_card(name).size
    state = network.state_dict()
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (tensors, elements)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert (size.tensors, size.parameters) == (tensors, parameters)
    assert sum(tensor.double().sum().item() for tensor in state.values()) == pytest.approx(total, abs=1e-3)
    assert sum(tensor.double().abs().sum().item() for tensor in state.values()) == pytest.approx(absolute, abs=1e-2)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: "-".join(golden[:2]))
def test_prepared_tensor_is_the_authors(golden):
    check(prepared(golden.card, golden.image)[0], golden.prepared)


@pytest.mark.parametrize(("card", "image"), SCORED)
@torch.inference_mode()
def test_logit_is_the_authors(card, image):
    logit, expected = filled(card.partition(":")[0])(prepared(card, image)), LOGITS[card, image]
    assert logit.shape == (1, 1)
    assert logit.item() == pytest.approx(expected, abs=1e-4 * max(1, abs(expected)))


@pytest.mark.parametrize(("card", "image"), [slow_but_for_one(*key) for key in MAPS])
@torch.inference_mode()
def test_logit_map_is_the_authors(card, image):
    check(filled(card).logit_map(prepared(card, image))[0], MAPS[card, image], tolerance=1e-4)


def test_a_batch_scores_like_its_images():
    network, images = filled("npr"), torch.cat([prepared("npr", image) for image in ("97x61", "300x400")])
    with torch.inference_mode():
        together, alone = network(images), torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
