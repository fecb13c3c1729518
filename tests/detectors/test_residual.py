import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ray_app.detectors.cards import load_card
from ray_app.detectors.residual import ResidualNet, build, residual_bank


@pytest.fixture(scope="module")
def card():
    return load_card("touchstone-tiny")


@pytest.fixture(scope="module")
def net(card):
    net = build(card)
    net.load_state_dict(load_file(card.folder / card.weights.uri))
    return net.eval()


def _grey_levels(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape)).float() - 128


def test_the_card_says_demonstration_wherever_a_title_is_shown(card):
    assert card.demonstration
    assert "demonstration detector" in card.title
    assert card.licence == "Apache-2.0"


def test_the_normalisation_gives_whole_grey_levels_that_bfloat16_holds_exactly(card):
    pixels = torch.arange(256, dtype=torch.float32)
    for mean, std in zip(card.preprocessing.mean, card.preprocessing.std, strict=True):
        levels = (pixels / 255 - mean) / std
        assert torch.equal(levels.to(torch.bfloat16).float(), pixels - 128)


def test_the_network_is_small(net):
    assert sum(parameter.numel() for parameter in net.parameters()) <= 200_000


def test_every_filter_of_the_bank_ignores_flat_colour_and_the_four_places_hold_the_same_filters():
    bank = residual_bank()
    assert bank.sum(dim=(2, 3)).abs().max() == 0
    images = _grey_levels((1, 3, 34, 34))
    full = torch.nn.functional.conv2d(images, bank[::4, :, :3, :3])
    packed = torch.nn.functional.conv2d(images, bank, stride=2)
    for place in range(4):
        row, column = divmod(place, 2)
        torch.testing.assert_close(packed[:, place::4], full[:, :, row::2, column::2])


@pytest.mark.parametrize("size", [(16, 16), (64, 200), (255, 257), (256, 256), (512, 384)])
def test_any_size_gives_one_finite_logit_per_image(net, size):
    with torch.inference_mode():
        logits = net(_grey_levels((2, 3, *size)))
    assert logits.shape == (2, 1)
    assert logits.isfinite().all()


def test_a_score_does_not_depend_on_brightness(net):
    image = _grey_levels((1, 3, 128, 128)) / 4
    with torch.inference_mode():
        torch.testing.assert_close(net(image), net(image + 30), rtol=1e-4, atol=1e-3)


def test_bfloat16_keeps_scores(net):
    images = torch.nn.functional.avg_pool2d(_grey_levels((6, 3, 258, 258)), 3, 1).round()
    low = build(load_card("touchstone-tiny"))
    low.load_state_dict(net.state_dict())
    low = low.eval().to(torch.bfloat16).to(memory_format=torch.channels_last)
    low.head.float()
    with torch.inference_mode():
        full, half = net(images), low(images.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)).float()
    assert ((full - half).abs() <= 0.02 * full.abs().clamp(min=1)).all()


def test_folding_the_norms_away_changes_nothing_but_rounding():
    torch.manual_seed(3)
    net = ResidualNet((8, 16, 16), norms=True)
    for step in range(4):
        net(_grey_levels((4, 3, 64, 64), step))  # moves the running statistics away from their start
    images = _grey_levels((2, 3, 64, 64), 9)
    with torch.inference_mode():
        torch.testing.assert_close(net.eval()(images), net.without_norms()(images), rtol=1e-4, atol=1e-4)


def test_neither_timm_nor_torchvision_is_imported():
    code = "import sys, ray_app.detectors.residual; print([m for m in ('timm', 'torchvision', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
