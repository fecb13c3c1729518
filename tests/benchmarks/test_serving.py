import itertools
import json
import sys

import pytest

from benchmarks.measuring import ContenderError
from benchmarks.servers.server import Server, running
from benchmarks.serving_figures import (
    OURS,
    PEERS,
    TARGETS,
    Measurement,
    complaints,
    figures,
    targets,
)
from benchmarks.work import Work

# (accepted requests per second, p99 in seconds) that the middle round of each server has
RECORDED = {
    "tiny": {"ray": (120.0, 0.30), "ray_two": (140.0, 0.25), "server": (200.0, 0.12), "server_two_workers": (220.0, 0.11),
                "litserve": (160.0, 0.15), "litserve_two_workers": (200.0, 0.14), "fastapi": (90.0, 1.0), "before": (50.0, 0.5)},
    "heavy": {"ray": (19.0, 0.9), "ray_two": (33.0, 0.6), "server": (19.5, 0.85), "server_two_workers": (34.0, 0.5),
              "litserve": (18.0, 1.0), "litserve_two_workers": (30.0, 0.7), "fastapi": (15.0, 2.0), "before": (16.0, 1.1)},
}  # fmt: skip
NOISE = (0.6, 1.0, 1.1)  # one round went badly: the median must not care


def measurement(model, server, number=0, noise=1.0, **more):
    rate, p99 = RECORDED[model][server]
    latencies = {"p50_s": p99 / 2, "p90_s": p99 / 1.2, "p99_s": p99 / noise, "max_s": 2 * p99}
    rest = {
        "ok": 1000,
        "cpu_s_per_image": 0.0123,
        "startup_s": 8.0,
        "elsewhere_cpu_s": 2.0,
        "memory_bytes": 2**30,
        "client_cpu_s": 1.0,
    }
    return Measurement(model, server, number, rate=rate * noise, **latencies, **(rest | more))


@pytest.fixture(scope="module")
def result():
    return figures(
        [
            measurement(model, server, number, noise)
            for number, noise in enumerate(NOISE)
            for model, of in RECORDED.items()
            for server in of
        ]
    )


def test_ratios_are_of_medians_against_ours_on_as_many_cores(result):
    for model, way, peer in itertools.product(RECORDED, OURS, PEERS):
        ours, theirs = RECORDED[model][OURS[way][PEERS[peer]]], RECORDED[model][peer]
        ratio = result["ratios"][model][way][peer]
        assert ratio["throughput"] == pytest.approx(ours[0] / theirs[0]), (model, way, peer)
        assert ratio["p99"] == pytest.approx(ours[1] / theirs[1]), (model, way, peer)


def test_targets_are_judged_by_throughput(result):
    assert {(one["model"], one["way"], one["against"]) for one in result["targets"]} == {
        (model, *target) for model in RECORDED for target in TARGETS
    }
    assert {one["bar"] for one in result["targets"] if one["way"] == "server"} == {1.3}
    many = targets(result["ratios"], clients=64)
    assert {one["bar"] for one in many if one["way"] == "server"} == {1.0}
    assert all(one["met"] for one in many)
    slow = figures(
        [
            measurement("heavy", "litserve"),
            measurement("heavy", "server", noise=0.9),
            measurement("heavy", "ray", noise=0.7),
        ]
    )
    assert [(target["way"], target["met"]) for target in slow["targets"]] == [
        ("server", False),
        ("ray", True),
    ]


def test_wrong_and_missing_answers_are_complained_about():
    fine = measurement("heavy", "litserve", back_pressure=40)
    assert complaints([fine]) == []
    (wrong,) = complaints([fine, measurement("heavy", "fastapi", other=3, wrong=2)])
    assert "heavy/fastapi: 3 requests failed, 2 of them with a wrong score" in wrong
    assert complaints([measurement("heavy", "fastapi", ok=0)])


WORK = Work("tiny", "card.yaml", "tiny", "/tmp")


def test_a_server_that_does_not_come_up_says_why(tmp_path):
    command = [sys.executable, "-c", "import sys; print('no card'); sys.exit(3)"]
    server = Server("small", "", lambda work, port: [*command, str(port)], 1, ready="/small.log")
    with (
        pytest.raises(ContenderError, match="exit code 3\nno card"),
        running(server, WORK, tmp_path),
    ):
        pass  # pragma: no cover


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_small_run_end_to_end(tmp_path, capsys):
    from benchmarks.serving import main

    target = tmp_path / "result.json"
    arguments = [
        "--quick",
        "--seconds",
        "3",
        "--models",
        "tiny",
        "--servers",
        "server",
        "litserve",
        "fastapi",
    ]
    assert main([*arguments, "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert result["ratios"]["tiny"]["server"]["litserve"].keys() == {"throughput", "p99"}
    assert result["figures"]["tiny"]["fastapi"]["wrong"] == 0
    assert "litserve" in capsys.readouterr().out
