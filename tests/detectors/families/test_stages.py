"""Statistics of an EfficientNet-Lite's stages against those of timm's own network with its batch
norms, and whose files are taken.
"""

import functools

import numpy as np
import pytest
import timm
import torch

from ray_app.config import config_root, named_configs, read_mapping, validate
from ray_app.detectors import load_card
from ray_app.detectors.families.frozen import StageBackbone, published_keys
from ray_app.errors import DetectorError
from ray_app.training.config import Recipe
from ray_app.training.networks import training_card
from tests.make.networks.fill import fill

LITE = "tf_efficientnet_lite0"
CARD = load_card("touchstone-photo")


@functools.cache
def classifier(name=LITE):
    """timm's network with batch norms, every tensor of it by formula."""
    network = timm.create_model(name, pretrained=False).eval().requires_grad_(False)
    network.load_state_dict(fill(network.state_dict()))
    return network


def folded():
    """The backbone with that classifier's convolutions."""
    backbone = StageBackbone(LITE).eval().requires_grad_(False)
    backbone.load_state_dict(published_keys(classifier().state_dict(), backbone))
    return backbone


def given(count=2, height=96, width=64):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def plain_statistics(network, pixels):
    """By NumPy in double precision, of what leaves the stages and the last activation of an
    unfolded network.
    """
    seen = []
    hooks = [
        module.register_forward_hook(lambda *told: seen.append(told[2].double().numpy()))
        for module in (*network.blocks, network.bn2)
    ]
    network(pixels)
    for hook in hooks:
        hook.remove()
    parts = [part for maps in seen for part in (maps.mean((2, 3)), maps.std((2, 3)))]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("size", [(96, 64), (32, 32)])
def test_statistics_are_those_of_timm_s_network_with_its_norms(size):
    pixels = given(2, *size)
    expected = plain_statistics(classifier(), pixels)
    found = folded()(pixels).statistics
    assert found.shape == (2, 2 * (16 + 24 + 40 + 80 + 112 + 192 + 320 + 1280))
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-3)
    assert np.abs(expected).max() > 0.5
    assert np.abs(expected[0] - expected[1]).max() > 0.01


@pytest.mark.parametrize("name", ["efficientnet-lite0-stages", "efficientnet-lite0-photo"])
def test_the_shipped_backbones_are_small(name):
    assert (config_root() / "backbones" / f"{name}.safetensors").stat().st_size < 7_000_000


def test_a_level_picture_has_a_gradient():
    pixels = torch.zeros(1, 3, 32, 32, requires_grad=True)
    folded()(pixels).statistics.sum().backward()
    assert pixels.grad.isfinite().all()


def test_file_with_other_names_in_the_same_order_is_read():
    backbone = StageBackbone(LITE)
    renamed = {
        f"_blocks.{place}.{key.rsplit('.', 1)[-1]}": tensor
        for place, (key, tensor) in enumerate(classifier().state_dict().items())
    }
    expected = published_keys(classifier().state_dict(), backbone)
    folded = {key.removeprefix("network."): tensor for key, tensor in expected.items()}
    assert expected.keys() == backbone.state_dict().keys()
    for state in (renamed, folded):
        found = published_keys(state, backbone)
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("change", ["another size", "one tensor less", "another order"])
def test_another_network_s_file_is_refused(change):
    name = "tf_efficientnet_lite1" if change == "another size" else LITE
    state = dict(classifier(name).state_dict())
    if change == "one tensor less":
        del state["classifier.bias"]
    if change == "another order":
        state = {"classifier.bias": state.pop("classifier.bias"), **state}
    told = "tf_efficientnet_lite0: the file must have the tensors of this network"
    with pytest.raises(DetectorError, match=told):
        published_keys(state, StageBackbone(LITE))


@pytest.mark.parametrize("name", ["touchstone-photo-permissive", "touchstone-crop-permissive"])
def test_what_training_prepares_is_what_scoring_prepares(name):
    """Training's loader and a detector call one `Preprocessing`."""
    recipe = validate(read_mapping(named_configs("train")[name]), Recipe, where=name)
    assert training_card(recipe).preprocessing == load_card(name).preprocessing
