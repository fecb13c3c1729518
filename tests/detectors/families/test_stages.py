"""Statistics of an EfficientNet-Lite's stages against those of timm's own network with its batch norms, and whose files are taken."""

import functools

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network, own_keys
from ray_app.detectors.families.stages import StageStatistics, published_keys
from ray_app.errors import DetectorError
from tests.detectors.fill import fill, pattern_image

LITE = "tf_efficientnet_lite0"
CARD = load_card("touchstone-photo")
TWO_LOGITS = {"output": {"labels": ["real", "fake"], "fake_label": "fake", "sign": None}}
HEAD = ("fc.weight", "fc.bias")


@functools.cache
def classifier(name=LITE):
    """timm's network with batch norms, every tensor of it by formula."""
    network = timm.create_model(name, pretrained=False).eval().requires_grad_(False)
    network.load_state_dict(fill(network.state_dict()))
    return network


def folded(card=CARD):
    """The card's network with that classifier's convolutions, and a head by formula."""
    network = build_network(card).eval().requires_grad_(False)
    head = fill({key: tensor for key, tensor in network.state_dict().items() if key in HEAD})
    network.load_state_dict({**published_keys(classifier(card.architecture.name).state_dict(), network), **head})
    return network


def given(count=2, height=96, width=64):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def plain_statistics(network, pixels):
    """By NumPy in double precision, of what leaves the stages and the last activation of an unfolded network."""
    seen = []
    hooks = [module.register_forward_hook(lambda *told: seen.append(told[2].double().numpy())) for module in (*network.blocks, network.bn2)]
    network(pixels)
    for hook in hooks:
        hook.remove()
    return np.concatenate([part for maps in seen for part in (maps.mean((2, 3)), maps.std((2, 3)))], axis=1)


@pytest.mark.parametrize("size", [(96, 64), (64, 224), (32, 32)])
def test_statistics_are_those_of_timm_s_network_with_its_norms(size):
    pixels = given(2, *size)
    expected = plain_statistics(classifier(), pixels)
    found = folded().statistics(pixels)
    assert found.shape == (2, 2 * (16 + 24 + 40 + 80 + 112 + 192 + 320 + 1280))
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-3)
    assert np.abs(expected).max() > 0.5
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def test_the_score_is_one_layer_on_the_statistics():
    network, pixels = folded(), given()
    torch.testing.assert_close(network(pixels), network.statistics(pixels) @ network.fc.weight.T + network.fc.bias)


def test_a_level_picture_has_a_gradient():
    network = folded()
    pixels = torch.zeros(1, 3, 32, 32, requires_grad=True)
    network(pixels).sum().backward()
    assert pixels.grad.isfinite().all()


def test_a_file_with_other_names_in_the_same_order_is_the_same_file():
    network = build_network(CARD)
    renamed = {f"_blocks.{place}.{key.rsplit('.', 1)[-1]}": tensor for place, (key, tensor) in enumerate(classifier().state_dict().items())}
    found, expected = own_keys(CARD, renamed, network), own_keys(CARD, classifier().state_dict(), network)
    assert found.keys() == expected.keys() == network.state_dict().keys() - {*HEAD}
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    uncounted = {key: tensor for key, tensor in renamed.items() if not key.endswith("num_batches_tracked")}
    assert all(torch.equal(tensor, expected[key]) for key, tensor in published_keys(uncounted, network).items())


def test_a_file_of_our_own_is_taken_as_it_is():
    state = folded().state_dict()
    assert published_keys(state, build_network(CARD)) is state


@pytest.mark.parametrize("change", ["another size", "one tensor less", "another order"])
def test_another_network_s_file_is_refused(change):
    state = dict(classifier("tf_efficientnet_lite1" if change == "another size" else LITE).state_dict())
    if change == "one tensor less":
        del state["classifier.bias"]
    if change == "another order":
        state = {"classifier.bias": state.pop("classifier.bias"), **state}
    with pytest.raises(DetectorError, match="tf_efficientnet_lite0: the file's tensors are not those of this network, in its order"):
        published_keys(state, build_network(CARD))


@pytest.mark.parametrize("name", ["efficientnet_b0", "no_such_network", "tf_efficientnet_lite9"])
def test_what_is_no_lite_network_is_refused_by_name(name):
    card = CARD.model_copy(update={"architecture": CARD.architecture.model_copy(update={"name": name})})
    with pytest.raises(DetectorError, match=f"touchstone-photo: no EfficientNet-Lite of timm's: {name}"):
        build_network(card)


def saved(folder, changes=None):
    """A card of the family with its file beside it, under the names of our own files."""
    card = load_card("touchstone-photo", changes or {})
    save_file({key: tensor.contiguous() for key, tensor in folded(card).state_dict().items()}, folder / "stages.safetensors")
    weights = card.weights.model_copy(update={"uri": str(folder / "stages.safetensors"), "sha256": None, "unverified": "of this test"})
    return card.model_copy(update={"weights": weights})


def test_a_card_with_two_logits_scores_their_difference(tmp_path):
    card = saved(tmp_path, TWO_LOGITS)
    network = build_network(card)
    assert isinstance(network, StageStatistics)
    assert network.fc.out_features == 2
    detector = load_detector(card, precision="fp32")
    pixels = np.stack([pattern_image(224, 224)])
    with torch.inference_mode():
        real, fake = folded(card)(detector.normalise(torch.from_numpy(pixels)))[0]
    assert detector.score(pixels)[0] == pytest.approx((fake - real).item(), abs=1e-4)
    assert abs(fake - real) > 1e-2


def test_channels_last_gives_the_same_scores():
    """A detector computes so, see `Detector`."""
    pixels = given()
    expected = folded()(pixels)
    found = folded().to(memory_format=torch.channels_last)(pixels.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_card_s_size_is_the_network_s():
    network = build_network(CARD)
    assert CARD.size.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert CARD.size.tensors == len(network.state_dict())
