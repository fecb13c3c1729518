"""`touchstone doctor` on this machine, and on worse ones."""

import json
import os
import re
from importlib import metadata

import pytest
import ray

from ray_app.cli.main import main
from ray_app.cluster import gpu_check, machine
from ray_app.errors import ExitCode
from ray_app.storage.node_budget import usable_cores

NAMES = (
    "packages",
    "gpu",
    "cpu",
    "memory",
    "disk",
    "cache",
    "weights",
    "trust list",
    "cluster",
    "chromium",
)


@pytest.fixture
def asked(capsys, monkeypatch):
    """Calls it for one thing; the exit code, and what it says."""
    every = dict(machine.CHECKS)

    def ask(name):
        monkeypatch.setattr(machine, "CHECKS", {name: every[name], "chromium": every["chromium"]})
        code = main(["doctor", "--json"])
        told = json.loads(capsys.readouterr().out)
        assert told["exit_code"] == code
        return code, told["checks"][0]

    return ask


def test_a_machine_in_order_is_one_screen_and_starts_no_ray(capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "LEAST_MEMORY", 0)  # other tests run beside these
    monkeypatch.setattr(ray, "init", None)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert [line[6:16].rstrip() for line in lines[1:] if line[:4].strip()] == list(NAMES)
    assert f"torch {metadata.version('torch')}" in lines[1]
    assert any(line.startswith("ok    weights     at hand for default, ") for line in lines)
    assert "FAIL" not in "\n".join(lines)


def test_a_torch_that_was_never_tested_is_refused_with_the_line_that_mends_it(asked, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(
        machine, "version", lambda name: "2.13.0" if name == "torch" else real(name)
    )
    code, found = asked("packages")
    assert (code, found["state"]) == (ExitCode.DETECTOR, "FAIL")
    assert found["found"].startswith("torch 2.13.0, and touchstone-forensics is made for <3,>=2.")
    assert found["todo"].endswith("pip install --upgrade torch")


def test_a_torch_that_does_not_load_is_one_line(asked, monkeypatch):
    def broken():
        raise ImportError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(gpu_check, "torch_and_gpus", broken)
    code, found = asked("gpu")
    assert (code, found["found"]) == (
        4,
        "ImportError: libtorch_cpu.so: cannot open shared object file",
    )


@pytest.mark.parametrize(("driver", "code", "state"), [(True, 4, "FAIL"), (False, 0, "note")])
def test_a_gpu_that_torch_cannot_use_matters_once_ray_would_count_it(
    asked, monkeypatch, tmp_path, driver, code, state
):
    monkeypatch.setattr(gpu_check, "gpu_problem", lambda: "this node has an NVIDIA GPU: mend it")
    monkeypatch.setattr(gpu_check, "DRIVER", tmp_path if driver else tmp_path / "none")
    assert asked("gpu") == (
        code,
        {"name": "gpu", "state": state, "found": "this node has an NVIDIA GPU", "todo": "mend it"},
    )


def test_doctor_counts_the_cores_that_commands_use(asked, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 512)
    code, found = asked("cpu")
    assert (code, found["state"]) == (0, "ok")
    assert re.match(
        rf"commands use {usable_cores()} of 512 cores, the limit of (this process|the container); networks in ",
        found["found"],
    )


def test_a_cache_that_cannot_be_written_can_wait(asked, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "file" / "cache"))
    code, found = asked("cache")
    assert (code, found["state"]) == (0, "note")
    assert "TOUCHSTONE_CACHE" in found["todo"]


def test_little_memory_and_a_full_disk_end_it_with_5(asked, monkeypatch):
    monkeypatch.setattr(machine, "LEAST_MEMORY", 2**60)
    assert asked("memory")[0] == ExitCode.CLUSTER
    monkeypatch.setattr(machine, "LEAST_DISK", 2**60)
    assert asked("disk")[1]["todo"] == "make room there, or set TMPDIR to another disk"


def test_an_installation_without_the_shipped_weights_ends_it_with_4(asked, monkeypatch):
    monkeypatch.setattr(machine, "located", lambda part: None)
    code, found = asked("weights")
    assert (code, found["state"]) == (ExitCode.DETECTOR, "FAIL")


def test_a_cluster_that_does_not_answer_is_named(asked, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    code, found = asked("cluster")
    assert code == ExitCode.CLUSTER
    assert found["found"].startswith("cannot join the Ray cluster at 127.0.0.1:1: ")
    assert found["todo"]


def test_a_setting_that_is_none_ends_it_with_2(asked, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CPU_PRECISION", "fp16")
    code, found = asked("cpu")
    assert (code, found["todo"]) == (ExitCode.USAGE, "set it to bf16 or fp32, or unset it")
