"""A compiled network is kept where its scores stay, with stand-ins for the compiler."""

import numpy as np
import pytest
from torch import nn

from ray_app.detectors import load_card, load_detector
from ray_app.detectors.compilation import compile_checked
from ray_app.detectors.precision import exceeds_tolerance
from ray_app.ensembles import build_ensemble
from ray_app.images import ImageLimits
from ray_app.inference import StageClock, make_spec
from ray_app.inference.scorer import EnsembleScorer


class Moved(nn.Module):
    """A network whose answers a compiler has moved, from the given call on."""

    def __init__(self, network, by, after=0):
        super().__init__()
        self.network, self.by, self.after, self.calls = network, by, after, 0

    def forward(self, pixels):
        self.calls += 1
        return self.network(pixels) + (self.by if self.calls > self.after else 0.0)


def fails(network):
    raise RuntimeError("no kernel\nfor this")


@pytest.fixture
def detector():
    return load_detector("touchstone-tiny", precision="fp32")


def test_network_with_equal_scores_is_kept(detector):
    eager = detector.network
    assert compile_checked(detector, 3, lambda network: Moved(network, 1e-6)) is None
    assert detector.network is not eager


@pytest.mark.parametrize("after", [0, 1])
def test_network_that_moves_scores_is_not_kept(detector, after):
    eager = detector.network
    said = compile_checked(detector, 3, lambda network: Moved(network, 0.01, after))
    assert "scores move by up to 0.01" in said
    assert detector.network is eager


def test_failing_compiler_keeps_the_network(detector):
    eager = detector.network
    assert "no kernel" in compile_checked(detector, 3, fails)
    assert detector.network is eager
    detector.keep_embeddings()
    assert "no static graph" in compile_checked(detector, 3, fails)


def test_ensemble_returns_the_result_of_each():
    card = load_card("touchstone-tiny")
    spec = make_spec(
        build_ensemble([card.name]), cards=[card], limits=ImageLimits(), precision="fp32"
    )
    seen = []
    scorer = EnsembleScorer(spec, StageClock())

    def watched(network):
        network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
        return network

    found = scorer.compile(watched)
    assert found == {"touchstone-tiny": None}
    assert set(seen) == {spec.slots}


def test_tolerance_depends_on_the_precision():
    expected = np.array([0.5, 20.0, np.nan], np.float32)
    near = expected + np.array([5e-5, 1e-3, 0.0], np.float32)
    assert not exceeds_tolerance(near, expected, "fp32")
    assert exceeds_tolerance(expected + np.float32(3e-3), expected, "fp32")
    assert not exceeds_tolerance(expected + np.float32(3e-3), expected, "bf16")
    assert exceeds_tolerance(np.array([0.5, 20.0, 1.0], np.float32), expected, "bf16")
