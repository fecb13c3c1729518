import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ray_app.detectors.card import load_card
from ray_app.detectors.detector import build_network
from ray_app.detectors.families.residual import (
    ResidualNet,
    Tiling,
    mean_features,
)


@pytest.fixture(scope="module")
def card():
    return load_card("touchstone-tiny")


@pytest.fixture(scope="module")
def net(card):
    net = build_network(card)
    net.load_state_dict(load_file(card.folder / card.weights.uri))
    return net.eval()


def _grey_levels(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape)).float() - 128


def test_normalisation_gives_levels_that_bfloat16_holds(card):
    pixels = torch.arange(256, dtype=torch.float32)
    for mean, std in zip(card.preprocessing.mean, card.preprocessing.std, strict=True):
        levels = (pixels / 255 - mean) / std
        assert torch.equal(levels.to(torch.bfloat16).float(), pixels - 128)


@pytest.mark.parametrize("size", [(16, 16), (255, 257), (512, 384)])
def test_any_size_gives_one_finite_logit_per_image(net, size):
    with torch.inference_mode():
        logits = net(_grey_levels((2, 3, *size)))
    assert logits.shape == (2, 1)
    assert logits.isfinite().all()


def test_bfloat16_keeps_scores(net):
    images = torch.nn.functional.avg_pool2d(_grey_levels((6, 3, 258, 258)), 3, 1).round()
    low = build_network(load_card("touchstone-tiny"))
    low.load_state_dict(net.state_dict())
    low = low.eval().to(torch.bfloat16).to(memory_format=torch.channels_last)
    low.head.float()
    lowered = images.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        full, half = net(images), low(lowered).float()
    assert ((full - half).abs() <= 0.02 * full.abs().clamp(min=1)).all()


def test_folding_the_norms_away_changes_nothing_but_rounding():
    torch.manual_seed(3)
    net = ResidualNet((8, 16, 16), norms=True)
    for step in range(4):
        # moves the running statistics away from their start
        net(_grey_levels((4, 3, 64, 64), step))
    images = _grey_levels((2, 3, 64, 64), 9)
    with torch.inference_mode():
        plain, folded = net.eval()(images), net.without_norms()(images)
    torch.testing.assert_close(plain, folded, rtol=1e-4, atol=1e-4)


SMALL = Tiling(size=64, stride=8, halo=16)


def test_no_pass_sees_more_than_a_tile():
    seen = []

    def features(pixels):
        seen.append(pixels.shape[0] * pixels.shape[2] * pixels.shape[3])
        return pixels[..., ::8, ::8]

    mean_features(features, torch.zeros(40, 3, 40, 24), SMALL)
    mean_features(features, torch.zeros(3, 3, 500, 300), SMALL)
    assert max(seen) <= (SMALL.size + 2 * SMALL.halo) ** 2
