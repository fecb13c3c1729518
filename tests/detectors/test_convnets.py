"""The convolutional detectors against the authors' own code: filled weights, made images, every value a number in `golden_convnets.py`."""

import functools

import pytest
import torch
from PIL import Image

from ray_app.detectors import load_card
from ray_app.detectors.detector import Normalise
from ray_app.detectors.registry import build_network
from tests.detectors.fill import fill, pattern_image
from tests.detectors.golden_convnets import FILLED, GOLDEN, MAPS, places


def source(name):
    height, width = map(int, name.split("x"))
    return Image.fromarray(pattern_image(height, width))


@functools.cache
def filled(name):
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


def check(tensor, golden, tolerance=1e-5):
    assert tuple(tensor.shape) == golden.shape
    assert tensor.double().mean().item() == pytest.approx(golden.mean, abs=tolerance)
    assert tensor.double().std(correction=0).item() == pytest.approx(golden.std, abs=tolerance)
    assert [tensor[place].item() for place in places(golden.shape)] == pytest.approx(list(golden.values), abs=tolerance)


def slow_where_it_is(card, image):
    """A second and more on one core; Corvi2023 costs a billion multiply-adds per thousand pixels."""
    variants = card.startswith("corvi2023:") and (card, image) != ("corvi2023:squash224", "300x400")
    return [pytest.mark.slow] * (variants or image not in ("97x61", "300x400"))


# thumb1024 leaves all but the largest image to the native network.
SCORED = [golden for golden in GOLDEN if golden.card != "corvi2023:thumb1024" or golden.image == "1100x1500"]
SCORED = [pytest.param(golden, id="-".join(golden[:2]), marks=slow_where_it_is(*golden[:2])) for golden in SCORED]
MAPPED = [
    pytest.param(*key, id="-".join(key), marks=slow_where_it_is(*key) or [pytest.mark.slow] * (key == ("corvi2023", "300x400")))
    for key in MAPS
]


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


@pytest.mark.parametrize("golden", SCORED)
@torch.inference_mode()
def test_logit_is_the_authors(golden):
    logit = filled(golden.card.partition(":")[0])(prepared(golden.card, golden.image))
    assert logit.shape == (1, 1)
    assert logit.item() == pytest.approx(golden.logit, abs=1e-4 * max(1, abs(golden.logit)))


@pytest.mark.parametrize(("card", "image"), MAPPED)
@torch.inference_mode()
def test_logit_map_is_the_authors(card, image):
    check(filled(card).logit_map(prepared(card, image))[0], MAPS[card, image], tolerance=1e-4)


def test_every_variant_builds_the_network_of_its_card():
    for name in FILLED:
        card = load_card(name)
        for variant in card.variants:
            with torch.device("meta"):
                network = build_network(load_card(f"{name}:{variant}"))
            assert len(network.state_dict()) == card.size.tensors


def test_a_batch_scores_like_its_images():
    network, images = filled("npr"), torch.cat([prepared("npr", image) for image in ("97x61", "300x400")])
    with torch.inference_mode():
        together, alone = network(images), torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
