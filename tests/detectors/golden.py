"""Golden values of the three published detectors, measured with the authors' own code and
transforms on formula-filled weights.

Image `HxW` is `pattern_image(H, W)`. Logits: fp32, CPU, batch 1, authors' label order. Made with
Pillow 12.3, torch 2.15, torchvision 0.29.2, timm 1.0.31, transformers 5.23. `Tensor`, `places` and
`check` serve the other golden values, too.
"""

from typing import NamedTuple

import pytest


class Tensor(NamedTuple):
    """Shape, mean, population standard deviation, and the values at `places`."""

    shape: tuple
    mean: float
    std: float
    values: tuple


class Golden(NamedTuple):
    detector: str
    resampler: str
    image: str
    prepared: Tensor
    logits: tuple


def places(shape):
    channels, height, width = shape
    return (
        (0, 0, 0),
        (1 % channels, height // 2, width // 2),
        (2 % channels, height - 1, width - 1),
        (0, height // 3, 2 * width // 3),
        (2 % channels, 2 * height // 3, width // 4),
    )


def check(tensor, golden, tolerance=1e-5):
    assert tuple(tensor.shape) == golden.shape
    assert tensor.double().mean().item() == pytest.approx(golden.mean, abs=tolerance)
    assert tensor.double().std(correction=0).item() == pytest.approx(golden.std, abs=tolerance)
    assert [tensor[place].item() for place in places(golden.shape)] == pytest.approx(
        list(golden.values), abs=tolerance
    )


# By detector, resampler and side: image; mean, deviation and values of the prepared tensor; logits.
_MEASURED = {
    ("community-forensics-vits384", "pillow", 384): (
        (
            "300x400",
            0.22601401,
            1.18742528,
            (-0.90204638, -0.82773101, -1.42100215, -0.76504838, 0.23477131),
            (-2.23134685,),
        ),
        (
            "640x480",
            0.22704086,
            1.15517332,
            (1.66666663, -1.75560224, 0.40906325, 1.30704677, 1.14108944),
            (-2.2661829,),
        ),
        (
            "97x61",
            0.21566163,
            1.22254208,
            (-1.27879107, -0.72268897, 2.39599133, -1.02191973, 0.49620935),
            (-0.94229776,),
        ),
    ),
    ("openfake-swinv2-small", "pillow", 256): (
        (
            "640x480",
            0.22641099,
            1.10233414,
            (-1.89528215, -1.68557417, 0.53106773, -1.53566241, 0.98422676),
            (0.23029348, 0.44776455),
        ),
        (
            "97x61",
            0.2285107,
            1.25073461,
            (-2.11790395, -0.72268897, 2.46570802, 1.7351656, 1.78596961),
            (0.30975783, 0.31438994),
        ),
    ),
    ("openfake-swinv2-small", "torch", 256): (
        (
            "640x480",
            0.22638726,
            1.10233896,
            (-1.89528215, -1.68557417, 0.53106755, -1.53566229, 0.98422658),
            (0.23032023, 0.44782019),
        ),
        (
            "97x61",
            0.22854544,
            1.25074287,
            (-2.11790395, -0.72268903, 2.46570802, 1.7351656, 1.7859695),
            (0.30981213, 0.31430629),
        ),
    ),
    ("siglip2-open-deepfake", "pillow", 512): (
        (
            "640x480",
            6.277e-05,
            0.51575137,
            (-0.97647059, -0.86666667, -0.67058825, -0.81176472, 0.27058828),
            (1.45217431, 0.54245132),
        ),
        (
            "97x61",
            0.00089581,
            0.55111441,
            (-1.0, -0.41960782, 0.90588236, 0.74901962, 0.62352943),
            (1.46958804, -0.1278379),
        ),
    ),
    ("siglip2-open-deepfake", "torch", 512): (
        (
            "640x480",
            6.267e-05,
            0.51575547,
            (-0.97647059, -0.86666667, -0.67058825, -0.81176472, 0.27058825),
            (1.45118785, 0.54187083),
        ),
        (
            "97x61",
            0.00089579,
            0.55111441,
            (-1.0, -0.41960785, 0.90588236, 0.74901962, 0.62352943),
            (1.46958828, -0.12783776),
        ),
    ),
}
GOLDEN = [
    Golden(detector, resampler, image, Tensor((3, side, side), *measured), logits)
    for (detector, resampler, side), rows in _MEASURED.items()
    for image, *measured, logits in rows
]
