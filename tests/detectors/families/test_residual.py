import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ray_app.detectors.card import load_card
from ray_app.detectors.detector import build_network
from ray_app.detectors.families.residual import (
    ResidualNet,
    Tiling,
    feature_map,
    mean_features,
    tiles,
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


def test_the_normalisation_gives_whole_grey_levels_that_bfloat16_holds_exactly(card):
    pixels = torch.arange(256, dtype=torch.float32)
    for mean, std in zip(card.preprocessing.mean, card.preprocessing.std, strict=True):
        levels = (pixels / 255 - mean) / std
        assert torch.equal(levels.to(torch.bfloat16).float(), pixels - 128)


def test_the_network_is_small(net):
    assert sum(parameter.numel() for parameter in net.parameters()) <= 200_000


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
    with torch.inference_mode():
        full, half = (
            net(images),
            low(images.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)).float(),
        )
    assert ((full - half).abs() <= 0.02 * full.abs().clamp(min=1)).all()


def test_folding_the_norms_away_changes_nothing_but_rounding():
    torch.manual_seed(3)
    net = ResidualNet((8, 16, 16), norms=True)
    for step in range(4):
        # moves the running statistics away from their start
        net(_grey_levels((4, 3, 64, 64), step))
    images = _grey_levels((2, 3, 64, 64), 9)
    with torch.inference_mode():
        torch.testing.assert_close(
            net.eval()(images), net.without_norms()(images), rtol=1e-4, atol=1e-4
        )


SMALL = Tiling(size=64, stride=8, halo=16)
SIZES = [(1, 1), (7, 300), (96, 96), (97, 96), (233, 129)]


def network():
    """Stride 8 and a radius of 15 px, with everything that could go wrong at a cut: padding,
    pooling, a shortcut's stride.
    """
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 8, 3, 2, 1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, 2, 1),
        torch.nn.Conv2d(8, 8, 3, 2, 1),
        torch.nn.ReLU(),
    ]
    return (
        torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 4, 3, 1, 1)).double().requires_grad_(False)
    )


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    cells=st.integers(1, 20),
    halo=st.integers(0, 4),
    stride=st.sampled_from([2, 8]),
)
def test_cores_cover_the_map_once_and_windows_are_bounded(height, width, cells, halo, stride):
    tiling = Tiling(cells * stride, stride, halo * stride)
    covered = torch.zeros(-(-height // stride), -(-width // stride), dtype=torch.int)
    for tile in tiles(height, width, tiling):
        covered[tile.cells] += 1
        for window, core, where in zip(*tile, strict=True):
            assert window.start % stride == 0
            assert window.stop - window.start <= tiling.size + 2 * tiling.halo
            assert window.start // stride + core.start == where.start
            assert core.stop - core.start == where.stop - where.start > 0
    assert (covered == 1).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_cut_image_has_the_features_of_the_whole(size):
    features, pixels = network(), torch.randn(3, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(
        feature_map(features, pixels, SMALL), features(pixels), atol=1e-12, rtol=0
    )
    expected = features(pixels).mean(dim=(2, 3)).float()
    torch.testing.assert_close(mean_features(features, pixels, SMALL), expected, atol=1e-6, rtol=0)


def test_no_pass_sees_more_than_a_tile():
    seen = []

    def features(pixels):
        seen.append(pixels.shape[0] * pixels.shape[2] * pixels.shape[3])
        return pixels[..., ::8, ::8]

    mean_features(features, torch.zeros(40, 3, 40, 24), SMALL)
    mean_features(features, torch.zeros(3, 3, 500, 300), SMALL)
    assert max(seen) <= (SMALL.size + 2 * SMALL.halo) ** 2
