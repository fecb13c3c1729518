import json
import math

import pytest

from benchmarks.measuring import ContenderError
from benchmarks.training import main
from benchmarks.training_figures import (
    OURS,
    PEERS,
    SAME_STEPS,
    Measurement,
    complaints,
    figures,
    steady_figures,
    table,
)


def _lines(steps, *, wait, compute):
    return [
        {
            "step": s,
            "time": 100 + (wait + compute) * (s + 1),
            "wait_s": wait,
            "compute_s": compute,
            "loss": 1 / (s + 1),
        }
        for s in range(steps)
    ]


def test_steady_figures_leave_out_the_start_and_the_end():
    lines = _lines(100, wait=0.05, compute=0.15)
    lines[0] |= {"time": 0.0, "wait_s": 30.0}
    found = steady_figures(lines, 100)
    assert found == {
        "rate": pytest.approx(5.0), "wait_s": pytest.approx(0.05), "compute_s": pytest.approx(0.15), "waiting": pytest.approx(0.25),
    }  # fmt: skip


@pytest.mark.parametrize(
    "lines", [_lines(9, wait=0.1, compute=0.1), [*_lines(9, wait=0.1, compute=0.1), {"step": 3}]]
)
def test_a_history_with_a_step_missing_or_twice_is_no_measurement(lines):
    with pytest.raises(ContenderError, match="for 10 steps"):
        steady_figures(lines, 10)


def _measured(trainer, number, rate, losses=(0.7, 0.6)):
    return Measurement(
        "compute_bound", trainer, number, rate, 0.01, 0.2, 0.05, 30.0, 90.0, 2**30, losses
    )


def test_ratios_are_of_medians():
    measured = [_measured(OURS, n, rate) for n, rate in enumerate((1.0, 9.0, 2.0))]
    measured += [_measured("torchrun", n, rate) for n, rate in enumerate((2.5, 2.0, 0.1))]
    result = figures(measured)
    assert result["ratios"] == {"compute_bound": {"torchrun": pytest.approx(1.0)}}
    assert result["targets"][0]["met"]
    assert "met" in table(result)
    assert complaints(result) == []
    assert not figures([_measured(OURS, 0, 0.9), _measured("torchrun", 0, 1.0)])["targets"][0][
        "met"
    ]


@pytest.mark.parametrize("other", [0.65, math.nan])
def test_other_losses_are_other_work(other):
    result = figures([_measured(OURS, 0, 1.0), _measured("torchrun", 0, 1.0, losses=(0.7, other))])
    assert [text for text in complaints(result) if "NOT THE SAME WORK" in text]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_small_run_end_to_end(tmp_path, capsys):
    target = tmp_path / "result.json"
    assert main(["--quick", "--json", str(target), "--works", "input_bound", "--scale", "0.2"]) == 0
    result = json.loads(target.read_text())
    assert set(result["ratios"]["input_bound"]) == set(PEERS)
    assert result["loss_disagreement"]["input_bound"] < 1e-4
    assert result["steps"] == {"input_bound": max(32, SAME_STEPS)}
    assert 0 < result["input_share"]["input_bound"][OURS]["median"] < 1
    assert "torchrun" in capsys.readouterr().out
