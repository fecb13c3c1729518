"""`touchstone serve` reports a mistake before it starts anything."""

import os
import subprocess
import sys

import httpx
import pytest

from tests.make.ray_head import free_ports


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in ("RAY_ADDRESS", "TOUCHSTONE_TOKENS", "TOUCHSTONE_WEIGHTS_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_serve_to_every_host_requires_long_tokens(touchstone, monkeypatch):
    ended = touchstone("serve --host 0.0.0.0 --port 18431")
    assert ended.code == 2
    assert "TOUCHSTONE_TOKENS" in ended.err
    monkeypatch.setenv("TOUCHSTONE_TOKENS", "short")
    ended = touchstone("serve")
    assert ended.code == 2
    assert "16 characters" in ended.err
    assert "short" not in ended.err.replace("shortened", "")


def test_serve_on_a_cluster_names_serve_deploy(touchstone, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    ended = touchstone("serve --port 18431")
    assert ended.code == 2
    assert "serve deploy" in ended.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--ensemble tiny --fpr 0.05", 2, "touchstone detectors calibrate"),
        ("--ensemble tiny --fpr 5", 2, "write 0.05 for 5 %"),
        ("--set limits.deadlines=3", 2, "deadline_s"),
        ("--config nowhere.yaml", 2, "nowhere.yaml"),
        (
            "--optional-detector community-forensics-vits384",
            4,
            "touchstone detectors fetch community-forensics-vits384",
        ),
    ],
)
def test_serve_reports_a_mistake_before_ray(words, code, said, touchstone, monkeypatch, tmp_path):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path))
    ended = touchstone(f"serve --port 18431 {words}")
    assert ended.code == code
    assert said in ended.err


@pytest.mark.slow
def test_serve_waits_for_a_proxy_that_imports_slowly(tmp_path):
    """Ray Serve itself waits for 15 s."""
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
