"""When a pool measures its batches and compiles its networks: where it has a GPU, and the run leaves the batch to it."""

from dataclasses import replace

import pytest

from ray_app.detectors.card import default_slots
from ray_app.ensembles import ensemble_of
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.inference.scorer import EnsembleScorer, LoadedDetectors
from ray_app.scoring.workers import ScoringJob, TensorScorer


@pytest.fixture
def asked(monkeypatch):
    """What a scorer of a GPU was asked for; its detectors are here on a CPU."""
    found = []

    class OnCpu(EnsembleScorer):
        def __init__(self, spec, clock, pool=None, *, loaded=None):
            super().__init__(spec, clock, loaded=loaded or LoadedDetectors(replace(spec, device="cpu"), pool))

        def fit_batches(self, pieces, meter):
            found.append(("fit", pieces))
            return {}

        def compile(self):
            found.append(("compile",))
            return {"touchstone-tiny": "not compiled: for a reason"}

    monkeypatch.setattr("ray_app.inference.scorer.EnsembleScorer", OnCpu)
    monkeypatch.setattr("ray_app.inference.second_pass.EnsembleScorer", OnCpu)
    return found


def started(tmp_path, device, *, slots=None, **settings):
    ensemble = ensemble_of(["touchstone-tiny"])
    spec = make_spec(ensemble, limits=ImageLimits(), device=device, precision="fp32", slots=slots)
    worker = TensorScorer(ScoringJob(None, spec, None, 1, tmp_path, None, **settings), spec.pools[0], at_once=False)
    worker.start()


def test_a_gpu_pool_measures_before_it_scores(tmp_path, asked):
    started(tmp_path, "cuda", pieces=(192, 64))
    assert asked == [("fit", (192, 64))]


def test_who_states_a_batch_gets_it(tmp_path, asked):
    started(tmp_path, "cuda", slots=default_slots("cuda") // 2, pieces=(192, 64))
    assert asked == []


def test_a_cpu_measures_and_compiles_nothing(tmp_path, asked):
    started(tmp_path, "cpu", pieces=(192, 64), compiled=True)
    assert asked == []


def test_networks_are_compiled_for_the_batches_that_were_measured(tmp_path, asked, capsys):
    started(tmp_path, "cuda", pieces=(64,), compiled=True)
    assert asked == [("fit", (64,)), ("compile",)]
    assert capsys.readouterr().err == "touchstone-tiny: not compiled: for a reason\n"
