"""`touchstone serve` says what is wrong before it starts anything."""

import os
import subprocess
import sys

import httpx
import pytest

from ray_app.cli.main import main
from tests.ray_head import free_ports


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in ("RAY_ADDRESS", "TOUCHSTONE_TOKENS", "TOUCHSTONE_WEIGHTS_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def told(capsys, *arguments):
    code = main(["serve", *arguments])
    return code, capsys.readouterr().err


def test_a_host_that_lets_everybody_in_needs_tokens_and_long_ones(capsys, monkeypatch):
    code, said = told(capsys, "--host", "0.0.0.0", "--port", "18431")
    assert code == 2
    assert "no tokens are set" in said
    assert "TOUCHSTONE_TOKENS" in said
    monkeypatch.setenv("TOUCHSTONE_TOKENS", "short")
    code, said = told(capsys)
    assert code == 2
    assert "16 characters" in said
    assert "short" not in said.replace("shortened", "")


def test_a_cluster_is_left_to_serve_deploy(capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    code, said = told(capsys, "--port", "18431")
    assert code == 2
    assert "serve deploy" in said


def test_missing_weights_are_told_before_ray_starts(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path))
    code, said = told(
        capsys, "--port", "18431", "--optional-detector", "community-forensics-vits384"
    )
    assert code == 4
    assert "touchstone detectors fetch community-forensics-vits384" in said


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--ensemble", "tiny", "--fpr", "0.05"), "touchstone detectors calibrate"),
        (("--ensemble", "tiny", "--fpr", "5"), "write 0.05 for 5 %"),
        (("--set", "limits.deadlines=3"), "deadline_s"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_what_is_misspelt_is_told(capsys, arguments, word):
    code, said = told(capsys, "--port", "18431", *arguments)
    assert code == 2
    assert word in said


@pytest.mark.slow
def test_a_proxy_that_is_long_at_its_imports_is_waited_for(tmp_path):
    """Serve's own wait is 15 s."""
    (tmp_path / "slow_imports.py").write_text(
        "import time\n\ntime.sleep(18)\n\n\ndef install():\n    return []\n"
    )
    (port,) = free_ports(1)
    environment = os.environ | {
        "PYTHONPATH": f"{os.getcwd()}:{tmp_path}",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "slow_imports.install",
    }
    command = [sys.executable, "-m", "ray_app.cli", "serve", "--ray", "--port", str(port)]
    with (tmp_path / "log").open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout.readline().strip() == f"http://127.0.0.1:{port}/", (
            tmp_path / "log"
        ).read_text()
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    finally:
        process.terminate()
        process.wait(60)
