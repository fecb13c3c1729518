"""`touchstone doctor` on this machine, and on worse ones."""

import os
import re
from importlib import metadata

import pytest
import ray

from ray_app.cluster import gpu_check, machine
from ray_app.storage.node_budget import usable_cores


@pytest.fixture
def ask(touchstone, monkeypatch):
    """Run one check of doctor; return the exit code and the document of the check."""
    checks = dict(machine.CHECKS)

    def ask(name):
        chosen = {name: checks[name], "chromium": checks["chromium"]}
        monkeypatch.setattr(machine, "CHECKS", chosen)
        ended = touchstone("doctor --json")
        assert ended.document["exit_code"] == ended.code
        return ended.code, ended.document["checks"][0]

    return ask


def test_doctor_of_a_good_machine_fits_a_screen(touchstone, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "MIN_MEMORY_BYTES", 0)  # Other tests run at the same time.
    monkeypatch.setattr(ray, "init", None)
    ended = touchstone("doctor")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert [line[6:16].rstrip() for line in lines[1:] if line[:4].strip()] == [
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
    ]
    assert f"torch {metadata.version('torch')}" in lines[1]
    assert any(line.startswith("ok    weights     available for default, ") for line in lines)
    assert "FAIL" not in ended.out


def test_untested_torch_fails_with_an_upgrade_command(ask, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(
        machine, "version", lambda name: "2.13.0" if name == "torch" else real(name)
    )
    code, check = ask("packages")
    assert (code, check["state"]) == (4, "FAIL")
    assert "torch 2.13.0" in check["found"]
    assert check["todo"].endswith("pip install --upgrade torch")


def test_torch_that_does_not_load_is_one_line(ask, monkeypatch):
    def broken():
        raise ImportError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(gpu_check, "torch_and_gpus", broken)
    code, check = ask("gpu")
    assert code == 4
    assert check["found"] == "ImportError: libtorch_cpu.so: cannot open shared object file"


@pytest.mark.parametrize(("has_driver", "code", "state"), [(True, 4, "FAIL"), (False, 0, "note")])
def test_unusable_gpu_fails_if_ray_would_count_it(
    ask, monkeypatch, tmp_path, has_driver, code, state
):
    monkeypatch.setattr(gpu_check, "gpu_problem", lambda: "this node has an NVIDIA GPU: mend it")
    monkeypatch.setattr(gpu_check, "DRIVER", tmp_path if has_driver else tmp_path / "none")
    ended, check = ask("gpu")
    assert (ended, check["state"], check["todo"]) == (code, state, "mend it")


def test_doctor_counts_the_cores_that_commands_use(ask, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 512)
    code, check = ask("cpu")
    assert (code, check["state"]) == (0, "ok")
    assert re.match(rf"commands use {usable_cores()} of 512 cores", check["found"])


def test_cache_that_cannot_be_written_is_a_note(ask, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "file" / "cache"))
    code, check = ask("cache")
    assert (code, check["state"]) == (0, "note")
    assert "TOUCHSTONE_CACHE" in check["todo"]


@pytest.mark.parametrize(
    ("name", "attribute", "value", "code", "advice"),
    [
        ("memory", "MIN_MEMORY_BYTES", 2**60, 5, ""),
        ("disk", "MIN_DISK_BYTES", 2**60, 5, "TMPDIR"),
        ("weights", "find_local_file", lambda part: None, 4, ""),
    ],
)
def test_missing_resource_fails(ask, monkeypatch, name, attribute, value, code, advice):
    monkeypatch.setattr(machine, attribute, value)
    ended, check = ask(name)
    assert (ended, check["state"]) == (code, "FAIL")
    assert advice in check["todo"]


@pytest.mark.parametrize(
    ("name", "variable", "value", "code", "found", "advice"),
    [
        ("cluster", "RAY_ADDRESS", "127.0.0.1:1", 5, "cluster at 127.0.0.1:1: ", ""),
        ("cpu", "TOUCHSTONE_CPU_PRECISION", "fp16", 2, "", "set it to bf16 or fp32, or unset it"),
    ],
)
def test_wrong_variable_fails(ask, monkeypatch, name, variable, value, code, found, advice):
    monkeypatch.setenv(variable, value)
    ended, check = ask(name)
    assert ended == code
    assert found in check["found"]
    assert check["todo"]
    assert advice in check["todo"]
