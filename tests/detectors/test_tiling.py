import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.detectors.tiling import Tiling, feature_map, mean_features, tiles

SMALL = Tiling(size=64, stride=8, halo=16)
SIZES = [(1, 1), (7, 300), (64, 64), (65, 64), (96, 96), (97, 96), (97, 61), (161, 250), (233, 129)]


def network():
    """Stride 8 and a radius of 15 px, with everything that could go wrong at a cut: padding, pooling, a shortcut's stride."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1), torch.nn.Conv2d(8, 8, 3, 2, 1), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 4, 3, 1, 1)).double().requires_grad_(False)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 400), width=st.integers(1, 400), cells=st.integers(1, 20), halo=st.integers(0, 4), stride=st.sampled_from([2, 8])
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
    torch.testing.assert_close(feature_map(features, pixels, SMALL), features(pixels), atol=1e-12, rtol=0)
    expected = features(pixels).mean(dim=(2, 3)).float()
    torch.testing.assert_close(mean_features(features, pixels, SMALL), expected, atol=1e-6, rtol=0)


def test_a_halo_too_small_is_noticed_here():
    features, pixels = network(), torch.randn(1, 3, 233, 129, dtype=torch.float64)
    cut = feature_map(features, pixels, SMALL._replace(halo=8))
    assert not torch.allclose(cut, features(pixels), atol=1e-6, rtol=0)


def test_no_pass_sees_more_than_a_tile():
    seen = []

    def features(pixels):
        seen.append(pixels.shape[0] * pixels.shape[2] * pixels.shape[3])
        return pixels[..., ::8, ::8]

    mean_features(features, torch.zeros(40, 3, 40, 24), SMALL)
    mean_features(features, torch.zeros(3, 3, 500, 300), SMALL)
    assert max(seen) <= (SMALL.size + 2 * SMALL.halo) ** 2
