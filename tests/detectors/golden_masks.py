"""Golden values of networks that say where: the authors' own, run unedited on formula-filled
weights and images, CPU, fp32, torch 2.15.

IML-ViT: SunnyHaze/IML-ViT at 07dd2be, `iml_vit_model` (full size; at small widths its parts, put
together as its constructor does) on the image padded to the upper left and normalised as
albumentations' PadIfNeeded, Normalize and Crop do; masks cut as Demo.ipynb cuts them.

TruFor: grip-unina/TruFor at ae54475, test_docker/src, `myEncoderDecoder(cfg)` of trufor.yaml (at
small widths with a narrower `RGBXTransformer` in `create_backbone`'s place) on pixels / 256, then
softmax as trufor_test.py takes it.
"""

from typing import NamedTuple

import pytest

TOLERANCE = 1e-5


class Mask(NamedTuple):
    """`size`: the image's (height, width). `score`: log-odds. `mean` and `least` of the mask,
    `above`: its pixels above 0.5. `places`: the mask at `places_of(size)`.
    """

    size: tuple
    score: float
    mean: float
    least: float
    above: int
    places: tuple


def places_of(size):
    """Six places of an image: four corners and two inside."""
    height, width = size
    return (
        (0, 0),
        (height // 3, width // 2),
        (height // 2, width // 3),
        (height - 1, 0),
        (0, width - 1),
        (height - 1, width - 1),
    )


def assert_mask(score, mask, golden):
    assert tuple(mask.shape) == golden.size
    assert score == pytest.approx(golden.score, abs=TOLERANCE)
    assert [mask[place].item() for place in places_of(golden.size)] == pytest.approx(
        golden.places, abs=TOLERANCE
    )
    assert (mask.mean().item(), mask.min().item()) == pytest.approx(
        (golden.mean, golden.least), abs=TOLERANCE
    )
    assert abs(int((mask > 0.5).sum()) - golden.above) <= 5


IML_VIT_SMALL = {"image_size": 256, "width": 96, "heads": 12, "pyramid_width": 32, "head_width": 32}
IML_VIT = (
    Mask(
        (224, 224),
        0.263425,
        0.2552641,
        0.0811073,
        112,
        (0.124184, 0.161706, 0.200271, 0.323896, 0.481296, 0.403575),
    ),
    Mask(
        (256, 97),
        0.895649,
        0.4446324,
        0.1156299,
        7006,
        (0.509653, 0.469395, 0.469438, 0.587931, 0.609517, 0.217778),
    ),
    Mask(
        (180, 256),
        0.554987,
        0.3130842,
        0.099294,
        723,
        (0.32831, 0.252402, 0.1646, 0.376046, 0.414218, 0.261783),
    ),
)
IML_VIT_FULL = Mask(
    (640, 480),
    1.614561,
    0.4456803,
    0.1007271,
    87177,
    (0.188766, 0.348824, 0.406173, 0.397126, 0.28551, 0.536176),
)

TRUFOR_SMALL = {
    "widths": [8, 16, 24, 32],
    "heads": [1, 2, 3, 4],
    "depths": [1, 2, 1, 1],
    "ratios": [8, 4, 2, 1],
    "decoder_width": 24,
}
TRUFOR = (
    Mask(
        (224, 224),
        0.115108,
        0.5663742,
        0.2340319,
        39452,
        (0.61778, 0.529979, 0.4549, 0.556755, 0.670934, 0.605234),
    ),
    Mask(
        (97, 131),
        0.084713,
        0.6110728,
        0.4001249,
        11782,
        (0.702961, 0.532491, 0.600213, 0.571843, 0.665136, 0.468111),
    ),
)
TRUFOR_FULL = Mask(
    (97, 131),
    0.274186,
    0.2668387,
    0.076225,
    697,
    (0.28649, 0.302027, 0.216383, 0.245765, 0.471254, 0.205235),
)
# Of the confidence map of (97, 131): mean and the second of the places; of the fingerprint its
# norm.
TRUFOR_BESIDE = (0.5889044, 0.624466, 0.8345)
