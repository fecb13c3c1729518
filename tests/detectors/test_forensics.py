"""What SAFE and FreqNet make of an image before their networks, against the authors' own code;
their logits: `test_convnets`.
"""

import pytest
import torch

from ray_app.detectors import load_card
from ray_app.detectors.families import resnet
from tests.detectors import golden_forensics as golden
from tests.detectors.fill import source
from tests.detectors.golden import check
from tests.detectors.test_convnets import filled, prepared


def test_the_diagonal_detail_is_the_authors():
    for image, tensor in golden.DETAIL.items():
        pixels = (
            torch.from_numpy(load_card("npr:native").preprocessing.prepare(source(image))).permute(
                2, 0, 1
            )[None]
            / 255
        )
        detail = resnet.diagonal_detail(pixels)
        assert detail.shape[-2:] == tuple((side + 5) // 2 for side in pixels.shape[-2:])
        whole = torch.nn.functional.interpolate(
            detail, pixels.shape[-2:], mode="bilinear", antialias=True
        )
        check(whole[0], tensor)


def test_the_high_frequencies_are_the_authors():
    for image, tensor in golden.HIGH.items():
        check(resnet.high_pass(prepared("freqnet:native", image), (-2, -1))[0], tensor)
    weight, bias = (filled("freqnet").get_parameter(name).detach() for name in ("weight1", "bias1"))
    features = torch.nn.functional.conv2d(prepared("freqnet:native", "97x61"), weight, bias)
    check(resnet.high_pass(features, (1,))[0], golden.ACROSS, tolerance=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (5, 3)])
def test_the_convolution_of_the_spectrum_needs_no_transform(size):
    real, imaginary = (torch.nn.Conv2d(4, 4, 1, bias=False).requires_grad_(False) for _ in range(2))
    features = torch.randn(2, 4, *size)
    spectrum = torch.fft.fft2(features)
    expected = torch.fft.ifft2(
        torch.complex(real(spectrum.real), imaginary(spectrum.imag))
    ).real.relu()
    torch.testing.assert_close(
        resnet.spectrum_convolved(features, real, imaginary), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("name", "smallest"), [("safe", (1, 1)), ("freqnet", (2, 2))])
@torch.inference_mode()
def test_any_size_has_a_score(name, smallest):
    for size in (smallest, (3, 9), (61, 34)):
        assert filled(name)(torch.randn(2, 3, *size)).isfinite().all(), size
