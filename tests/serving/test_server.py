"""`touchstone serve` without Ray: detectors in the process, hostile images in others, several
workers on one port.
"""

import hashlib
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import yaml

import ray_app
from ray_app.config import config_root
from ray_app.serving.replica import golden_image
from tests.ray_head import free_ports
from tests.serving.http.live import wait_for
from tests.serving.in_process import client
from tests.serving.served import ROOT, served

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def endpoint():
    """The server of this file's tests; nothing that they do is an error in its log."""
    with served("--set", "limits.decode_limit_s=2", "--set", "batching.wait_ms=500") as running:
        yield running
        assert not any(word in running.logs()["stderr"] for word in ("Traceback", "ERROR", "INFO"))


def answer(endpoint, data):
    with client(endpoint.url) as asking:
        return asking.post("/v1/score", content=data)


def test_it_scores_as_load_ensemble_does_and_starts_no_ray(endpoint):
    (expected,) = ray_app.load_ensemble("tiny").score([golden_image()])
    told = answer(endpoint, golden_image()).json()
    assert told["score"] == pytest.approx(expected.score, abs=1e-5)
    assert told["verdict"] == expected.verdict
    assert not any("ray" in one.name() or "gcs_server" in one.name() for one in endpoint.family())
    assert (len(endpoint.workers()), len(endpoint.decoders())) == (1, 1)


def test_a_decoder_that_hangs_costs_one_image(endpoint):
    (decoder,) = endpoint.decoders()
    decoder.suspend()
    told = answer(endpoint, golden_image())
    assert (told.status_code, told.json()["code"]) == (422, "decode_timeout")
    assert answer(endpoint, golden_image()).status_code == 200
    assert endpoint.decoders() != [decoder]


def test_it_finishes_what_is_at_work(endpoint):
    """The last one that needs this endpoint, which it ends."""
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(answer, endpoint, golden_image())
        wait_for(
            lambda: "in_flight 1.0" in httpx.get(f"{endpoint.url}/metrics", trust_env=False).text
        )
        endpoint.process.send_signal(signal.SIGTERM)
        assert asked.result().status_code == 200
        assert endpoint.process.wait(60) == 0


@pytest.mark.slow
def test_two_workers_share_a_port_count_together_and_replace_each_other():
    with served("--workers", "2") as running:
        workers = running.workers()
        assert len(workers) == 2
        assert running.process.pid not in [one.pid for one in workers]

        # a connection of its own for each: whoever is free takes it
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(lambda _: running.score(), range(40))) == {200}
        page = httpx.get(f"{running.url}/metrics", trust_env=False).text
        assert 'ray_touchstone_requests_total{route="/v1/score",status="200"} 40.0' in page
        workers[0].kill()
        wait_for(lambda: len(running.workers()) == 2 and workers[0] not in running.workers(), 120)
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(lambda _: running.score(), range(40))) == {200}


@pytest.mark.slow
def test_worker_ends_if_its_parent_is_killed():
    with served(exit_code=-signal.SIGKILL) as running:
        family = running.family()
        running.process.kill()
        running.process.wait()
        wait_for(lambda: not any(process.is_running() for process in family), 60)


@pytest.mark.slow
def test_detectors_that_cannot_score_end_the_command_with_their_reason(tmp_path):
    from safetensors.numpy import load_file, save_file

    shipped = config_root() / "detectors"
    card = yaml.safe_load((shipped / "touchstone-tiny.yaml").read_text())
    weights = {
        key: value * float("nan")
        for key, value in load_file(shipped / card["weights"]["uri"]).items()
    }
    save_file(weights, tmp_path / "broken.safetensors")
    digest = hashlib.sha256((tmp_path / "broken.safetensors").read_bytes()).hexdigest()
    card |= {"name": "broken", "weights": {"uri": "broken.safetensors", "sha256": digest}}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(card))
    ensemble = {
        "name": "broken",
        "title": "Broken",
        "members": [{"detector": "broken.yaml"}],
        "rule": "mean-logit",
    }
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(ensemble))
    command = [
        "serve",
        "--port",
        str(free_ports(1)[0]),
        "--workers",
        "2",
        "--ensemble",
        str(tmp_path / "ensemble.yaml"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "ray_app.cli", *command],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 4, done.stderr
    assert "no finite score for a golden image" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
