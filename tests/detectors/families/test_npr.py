import pytest
import torch

from ray_app.detectors.families.resnet import Npr, upsampling_residual
from ray_app.detectors.precision import autocast, lower_to_bf16
from tests.detectors.fill import filled
from tests.detectors.golden import check
from tests.detectors.golden_convnets import RESIDUALS
from tests.detectors.test_convnets import prepared


def network(tile=1536):
    return filled(Npr(tile=tile))


@pytest.mark.parametrize(("card", "image"), RESIDUALS)
def test_residual_is_the_authors(card, image):
    check(upsampling_residual(prepared(card, image))[0] * (2 / 3), RESIDUALS[card, image])


@pytest.mark.parametrize(
    ("size", "tile"), [((2, 2), 64), ((163, 161), 64), ((43, 51), 8), ((163, 161), 45)]
)
@torch.inference_mode()
def test_tiles_do_not_change_the_logit(size, tile):
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(tile)(pixels), network()(pixels), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_an_odd_side_loses_its_last_line_alone():
    pixels = torch.randn(1, 3, 97, 61, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network()(pixels), network()(pixels[..., :96, :60]), atol=0, rtol=0)


@torch.inference_mode()
def test_a_line_of_pixels_has_no_score():
    assert network()(torch.zeros(2, 3, 1, 40)).isnan().all()


@torch.inference_mode()
def test_bf16_stays_within_its_bound():
    pixels = prepared("npr", "300x400")
    expected = network()(pixels)
    with autocast("cpu", "bf16"):
        logit = lower_to_bf16(network(), "cpu")(pixels)
    assert logit.dtype == torch.float32
    torch.testing.assert_close(logit, expected, atol=0.01, rtol=0)
