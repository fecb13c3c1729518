import sys
from importlib.metadata import version

from benchmarks.environments import Environment
from benchmarks.scoring import _left_out


def without_uv(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, **_: None)


def test_an_environment_that_works_is_not_made_again(tmp_path, monkeypatch):
    without_uv(monkeypatch)
    (tmp_path / "there").symlink_to(sys.prefix)
    assert Environment("there", (f"torch=={version('torch')}",)).made(tmp_path) is None
    assert Environment("there", ("torch==0",)).made(tmp_path) == "uv is not installed, which would make its environment"


def test_a_package_that_nobody_has_is_said_in_one_line(tmp_path, monkeypatch):
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho resolving >&2\necho no such package >&2\nexit 1\n")
    uv.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name, **_: str(uv))
    assert Environment("absent", ("daft==0",)).made(tmp_path) == "its environment cannot be made: no such package"


def test_a_contender_that_cannot_run_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    without_uv(monkeypatch)
    left_out = _left_out(["daft_guide", "limit"], tmp_path)
    assert list(left_out) == ["daft_guide"]
    assert "daft_guide is left out: uv is not installed" in capsys.readouterr().err
