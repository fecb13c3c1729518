"""Every part of the benchmark of GPUs, on a CPU and with little work."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import BUDGET_S, Budget, detector_figures, main, measure_part
from ray_app.detectors import load_card

TINY = str(Path(__file__).resolve().parents[1] / "training" / "touchstone-tiny.yaml")


def test_where_there_is_no_gpu_it_says_so_and_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--json", str(tmp_path / "gpu.json")]) == 0
    assert capsys.readouterr().out == "torch sees no GPU here: nothing is measured\n"
    assert not (tmp_path / "gpu.json").exists()


def test_what_is_over_the_budget_is_left_out_and_a_failure_is_no_end():
    assert BUDGET_S <= 480
    now = [0.0]
    budget, result = Budget(100.0, lambda: now[0]), {"parts": {}, "left_out": []}

    def taking(seconds):
        def measure():
            now[0] += seconds
            return {"rate": seconds}

        return measure

    def failing():
        raise RuntimeError("no kernel image")

    pieces = iter([("a", taking(20)), ("b", failing), ("c", taking(40)), ("d", taking(1))])
    # what there is is written after each
    assert list(measure_part("detectors", pieces, budget, result)) == ["a", "b", "c", "d"]
    assert list(measure_part("run", iter([("e", taking(1))]), budget, result)) == ["e"]
    assert result["parts"]["detectors"] == {
        "a": {"rate": 20, "seconds": 20},
        "b": {"failed": "RuntimeError: no kernel image", "seconds": 0},
        "c": {"rate": 40, "seconds": 40},
    }
    assert result["left_out"] == ["detectors: d"]
    assert "e" in result["parts"]["run"]


def test_a_detector_is_held_to_its_golden_score_and_to_a_cpu():
    found = detector_figures(load_card("touchstone-tiny"), "cpu", 2)
    assert found["weights"] == "own"
    assert found["golden"]["score"] == pytest.approx(
        found["golden"]["card"], abs=found["golden"]["tolerance"]
    )
    assert found["fp32"]["from_cpu"] <= 1e-5
    assert not found["fp32"]["beyond"]
    assert set(found["bf16"]["rates"]) == {"1", "2"}
    assert found["fp32"]["pays"] in (1, 2)


def test_recipes_step_and_the_result_is_written(tmp_path, capsys):
    target = tmp_path / "gpu.json"
    words = [
        "--json",
        str(target),
        "--device",
        "cpu",
        "--parts",
        "detectors",
        "train",
        "--recipes",
        TINY,
        "clip-linear",
    ]
    assert (
        main([*words, "--detectors", "touchstone-tiny", "--most", "1", "--micro-batch", "2"]) == 0
    )
    result = json.loads(target.read_text())
    assert result["parts"]["train"]["clip-linear"]["left_out"].startswith("method linear-probe")
    step = result["parts"]["train"][TINY]
    assert step["rate"] > 0
    assert len(step["losses"]) == 2
    assert torch.__version__.startswith(result["versions"]["torch"])
    assert result["parts"]["detectors"]["touchstone-tiny"]["fp32"]["rates"].keys() == {"1"}
    assert "touchstone-tiny" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_run_is_measured_end_to_end(tmp_path):
    settings = ("block_members=16",)
    found = gpu.run_figures(tmp_path, "cpu", 512, "touchstone-tiny", settings=settings)
    assert found["images"] == 512
    assert found["of_network"] > 0
    assert found["blocks"]["largest"] <= 16
    assert found["load"]["cores_busy"] > 0
    decoders = gpu.decoder_figures(tmp_path, "cpu", tmp_path / "photographs", "touchstone-tiny")
    assert decoders["images"] == 512
    assert decoders["rate"] > 0
