"""When a pool measures its batches and compiles its networks: where it has a GPU, and the run leaves the batch to it."""

from dataclasses import replace

import pytest

from ray_app.detectors.card import default_slots
from ray_app.ensembles import ensemble_of
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.inference.scorer import EnsembleScorer, LoadedDetectors
from ray_app.scoring.workers import ScoringJob, TensorScorer


@pytest.mark.parametrize(
    ("device", "slots", "compiled", "expected"),
    [
        ("cuda", None, False, [("fit", (192, 64))]),
        ("cuda", default_slots("cuda") // 2, False, []),  # who states a batch gets it
        ("cpu", None, True, []),
        ("cuda", None, True, [("fit", (192, 64)), ("compile",)]),
    ],
)
def test_a_gpu_pool_measures_its_batches_and_compiles_for_them(tmp_path, monkeypatch, capsys, device, slots, compiled, expected):
    asked = []

    class OnCpu(EnsembleScorer):
        """Its detectors are here on a CPU."""

        def __init__(self, spec, clock, pool=None, *, loaded=None):
            super().__init__(spec, clock, loaded=loaded or LoadedDetectors(replace(spec, device="cpu"), pool))

        def fit_batches(self, pieces, meter):
            asked.append(("fit", pieces))
            return {}

        def compile(self):
            asked.append(("compile",))
            return {"touchstone-tiny": "not compiled: for a reason"}

    monkeypatch.setattr("ray_app.inference.scorer.EnsembleScorer", OnCpu)
    monkeypatch.setattr("ray_app.inference.second_pass.EnsembleScorer", OnCpu)
    spec = make_spec(ensemble_of(["touchstone-tiny"]), limits=ImageLimits(), device=device, precision="fp32", slots=slots)
    job = ScoringJob(None, spec, None, 1, tmp_path, None, pieces=(192, 64), compiled=compiled)
    TensorScorer(job, spec.pools[0], at_once=False).start()
    assert asked == expected
    assert ("not compiled: for a reason" in capsys.readouterr().err) == (("compile",) in expected)
