"""Detectors of which it is known where they look: the map says it, and the deletion test knows when there is nothing to say."""

import numpy as np
import pytest
from PIL import Image
from torch import nn

from ray_app.detectors import DetectorCard
from ray_app.detectors.detector import Detector
from ray_app.inference.occlusion import explain

SIDE = 112
REGION = (64, 80, 24, 40)  # two by two cells of a grid of 14


class Planted(nn.Module):
    """Sums up the differences between neighbouring pixels in `REGION` of the prepared image and nowhere else."""

    def __init__(self, gain=30.0, offset=0.0):
        super().__init__()
        self.gain, self.offset = gain, offset

    def forward(self, pixels):
        top, bottom, left, right = REGION
        detail = pixels.mean(dim=1).diff(dim=2).abs()[:, top:bottom, left:right]
        return (self.gain * detail.mean(dim=(1, 2)) + self.offset)[:, None]


def planted(network, sign=1):
    described = {
        "name": "planted", "title": "A detector of which it is known where it looks", "family": "residual",
        "preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1], "resize": {"mode": "squash", "size": SIDE}}, "output": {"sign": sign},
        "weights": {"uri": "none.safetensors", "unverified": "has none"}, "licence": "Apache-2.0", "citation": "none",
        "source": "this test", "training_data": {"name": "none", "licence": "none"},
    }  # fmt: skip
    return Detector(DetectorCard.model_validate(described), network, fake=0, device="cpu", precision="fp32", resize="exact", slots=4,
                    weights_sha256="0" * 64)  # fmt: skip


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_map_peaks_where_the_detector_looks_and_passes(sign):
    detector = planted(Planted(), sign)
    found = explain(detector, noise())
    assert found.score == detector.score(detector.prepare(noise())[None])[0]
    peak = np.abs(found.map).max()
    assert (sign * found.map[8:10, 3:5] > 0.5 * peak).all()
    around = np.zeros((14, 14), bool)
    around[7:11, 2:6] = True
    np.testing.assert_allclose(found.map[~around], 0, atol=1e-4)
    assert found.faithful
    assert found.words().startswith("Deletion test passed: ")
