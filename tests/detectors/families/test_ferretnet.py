"""FerretNet's residual against the authors' and against NumPy's median, its smallest image, its
precision; logits: `test_convnets`.
"""

import torch

from ray_app.detectors import load_card
from ray_app.detectors.families.ferretnet import FerretNet, median_residual
from ray_app.detectors.precision import autocast, lower_to_bf16
from tests.detectors.fill import filled
from tests.detectors.golden import check
from tests.detectors.golden_convnets import MEDIAN
from tests.detectors.test_convnets import prepared


def test_residual_is_the_authors():
    check(median_residual(prepared("ferretnet-s", "640x480"))[0], MEDIAN)


@torch.inference_mode()
def test_any_size_has_a_score():
    for size in ((1, 1), (1, 9), (5, 3), (97, 61)):
        assert filled(FerretNet())(torch.randn(2, 3, *size)).isfinite().all()


@torch.inference_mode()
def test_the_residual_stays_whole_under_bf16():
    assert load_card("ferretnet-s").precision == load_card("ferretnet-s:native").precision == "fp32"
    pixels = prepared("ferretnet-s", "97x61")
    with autocast("cpu", "bf16"):
        assert median_residual(pixels).dtype == torch.float32
        logit = lower_to_bf16(filled(FerretNet()), "cpu")(pixels)
    torch.testing.assert_close(logit.float(), filled(FerretNet())(pixels), atol=0.005, rtol=0)
