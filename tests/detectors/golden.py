"""Golden values of the three published detectors, measured with the authors' own code and transforms on formula-filled weights.

Image `HxW` is `pattern_image(H, W)`. Logits: fp32, CPU, batch 1, authors' label order. Made with Pillow 12.3, torch 2.15,
torchvision 0.29.2, timm 1.0.31, transformers 5.23. `Tensor`, `places` and `check` serve the other golden values, too.
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
    assert [tensor[place].item() for place in places(golden.shape)] == pytest.approx(list(golden.values), abs=tolerance)


# Of the whole filled state dict under published names: tensors, elements, sum, sum of absolute values.
FILLED = {
    "community-forensics-vits384": (152, 21_811_969, 8996.051616, 803584.8514),
    "openfake-swinv2-small": (473, 48_960_956, 20467.778742, 1685090.9827),
    "siglip2-open-deepfake": (210, 93_521_666, 19925.191120, 2430841.3752),
}

# crc32 of its names and shapes, a line each, sorted.
SHAPES = {"community-forensics-vits384": 2143175021, "openfake-swinv2-small": 805136670, "siglip2-open-deepfake": 2691335814}

# sha256 of the raw RGB bytes.
IMAGES = {
    "300x400": "5f9e4e3e6de0652ed81df387b470a28b2ddc313545cbede3269a43e6c7438b35",
    "640x480": "346b2f8847e7df0ff1d3e5da9483997f0e715e57551d1408310fcbed1c9850f8",
    "1024x768": "c477ab135390e4af6d12d2d7f3d32c615b48b31e873080e6f0bc171df5d43edb",
    "97x61": "e8a8a151920c5172f4f3edd04294581c72690e88c5043e5de798fae781606b8e",
}

# By detector, resampler and side: image; mean, deviation and values of the prepared tensor; logits.
_MEASURED = {
    ("community-forensics-vits384", "pillow", 384): (
        ("300x400", 0.22601401, 1.18742528, (-0.90204638, -0.82773101, -1.42100215, -0.76504838, 0.23477131), (-2.23134685,)),
        ("640x480", 0.22704086, 1.15517332, (1.66666663, -1.75560224, 0.40906325, 1.30704677, 1.14108944), (-2.2661829,)),
        ("1024x768", 0.22695706, 0.98960488, (-0.26843056, 0.25770321, 0.82736403, 1.10154974, 0.98422676), (-1.9970082,)),
        ("97x61", 0.21566163, 1.22254208, (-1.27879107, -0.72268897, 2.39599133, -1.02191973, 0.49620935), (-0.94229776,)),
    ),
    ("openfake-swinv2-small", "pillow", 256): (
        ("300x400", 0.22725682, 1.19711365, (-2.06652975, -0.79271698, -0.2532461, 0.84467852, 2.09969521), (0.11483546, 0.21125694)),
        ("640x480", 0.22641099, 1.10233414, (-1.89528215, -1.68557417, 0.53106773, -1.53566241, 0.98422676), (0.23029348, 0.44776455)),
        ("1024x768", 0.22839098, 0.88148527, (-1.63841093, 0.3977592, 0.18248373, -0.66229987, 1.85568643), (0.32602882, 0.72678369)),
        ("97x61", 0.2285107, 1.25073461, (-2.11790395, -0.72268897, 2.46570802, 1.7351656, 1.78596961), (0.30975783, 0.31438994)),
    ),
    ("openfake-swinv2-small", "torch", 256): (
        ("300x400", 0.22725581, 1.19712786, (-2.06652975, -0.79271704, -0.25324616, 0.8446784, 2.09969497), (0.11485409, 0.21134953)),
        ("640x480", 0.22638726, 1.10233896, (-1.89528215, -1.68557417, 0.53106755, -1.53566229, 0.98422658), (0.23032023, 0.44782019)),
        ("1024x768", 0.22839109, 0.88148464, (-1.63841081, 0.39775911, 0.18248369, -0.66229993, 1.85568631), (0.32601684, 0.72680521)),
        ("97x61", 0.22854544, 1.25074287, (-2.11790395, -0.72268903, 2.46570802, 1.7351656, 1.7859695), (0.30981213, 0.31430629)),
    ),
    ("siglip2-open-deepfake", "pillow", 512): (
        ("300x400", 0.00037547, 0.53249673, (-1.0, -0.4588235, -0.14509803, 0.33333337, 0.74901962), (1.73186767, -0.05696417)),
        ("640x480", 6.277e-05, 0.51575137, (-0.97647059, -0.86666667, -0.67058825, -0.81176472, 0.27058828), (1.45217431, 0.54245132)),
        ("1024x768", 0.00243849, 0.43987684, (-0.90588236, 0.03529418, -0.3098039, -0.51372552, 0.63921571), (1.11735725, 0.42121273)),
        ("97x61", 0.00089581, 0.55111441, (-1.0, -0.41960782, 0.90588236, 0.74901962, 0.62352943), (1.46958804, -0.1278379)),
    ),
    ("siglip2-open-deepfake", "torch", 512): (
        ("300x400", 0.00037546, 0.53249673, (-1.0, -0.45882353, -0.14509805, 0.33333334, 0.74901962), (1.73186815, -0.0569642)),
        ("640x480", 6.267e-05, 0.51575547, (-0.97647059, -0.86666667, -0.67058825, -0.81176472, 0.27058825), (1.45118785, 0.54187083)),
        ("1024x768", 0.00243846, 0.43987684, (-0.90588236, 0.03529412, -0.30980393, -0.51372552, 0.63921571), (1.11735797, 0.42121291)),
        ("97x61", 0.00089579, 0.55111441, (-1.0, -0.41960785, 0.90588236, 0.74901962, 0.62352943), (1.46958828, -0.12783776)),
    ),
}
GOLDEN = [
    Golden(detector, resampler, image, Tensor((3, side, side), *measured), logits)
    for (detector, resampler, side), rows in _MEASURED.items()
    for image, *measured, logits in rows
]
