"""`touchstone serve` without Ray: one HTTP process, workers with the detectors, and decoders."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

import ray_app
from ray_app.config import config_root
from ray_app.serving.engine import golden_image
from tests.make.ray_head import free_ports
from tests.serving.http.live import wait_for
from tests.serving.in_process import client
from tests.serving.served import ROOT, served

pytestmark = pytest.mark.timeout(300)

SECRETS = {
    "TOUCHSTONE_TOKENS": "a-token-of-32-characters-or-more",
    "AWS_SECRET_ACCESS_KEY": "a-key",
    "HF_TOKEN": "another-token",
}
TOKEN = {"Authorization": f"Bearer {SECRETS['TOUCHSTONE_TOKENS']}"}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """The server of this file's tests; nothing that they do is an error in its log."""
    config = tmp_path_factory.mktemp("config") / "serve.yaml"
    application = {
        "import_path": "ray_app.serving.app:build",
        "args": {"ensembles": ["tiny"], "limits": {"decode_limit_s": 2}},
    }
    log = {"encoding": "JSON", "log_level": "INFO"}
    config.write_text(yaml.safe_dump({"applications": [application], "logging_config": log}))
    with served("--config", str(config), "--workers", "1", **SECRETS) as running:
        yield running
        text = running.logs()["stderr"]
        assert not any(word in text for word in ("Traceback", "ERROR", *SECRETS.values()))


def post(endpoint, data):
    with client(endpoint.url, headers=TOKEN) as asking:
        return asking.post("/v1/score", content=data)


def test_endpoint_scores_as_the_library_and_starts_no_ray(endpoint):
    (expected,) = ray_app.load_ensemble("tiny").score([golden_image()])
    told = post(endpoint, golden_image()).json()
    assert told["score"] == expected.score
    assert told["verdict"] == expected.verdict
    assert not any("ray" in one.name() or "gcs_server" in one.name() for one in endpoint.family())
    assert (len(endpoint.workers()), len(endpoint.decoders())) == (1, 1)


def test_decoder_that_hangs_costs_one_image(endpoint):
    (decoder,) = endpoint.decoders()
    decoder.suspend()
    told = post(endpoint, golden_image())
    assert (told.status_code, told.json()["code"]) == (422, "decode_timeout")
    assert post(endpoint, golden_image()).status_code == 200
    assert endpoint.decoders() != [decoder]


def test_worker_logs_in_the_encoding_of_its_endpoint(endpoint):
    (worker,) = endpoint.workers()
    lines = endpoint.logs()["stderr"].splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    (loaded,) = [record for record in records if "has loaded" in record["message"]]
    assert loaded["message"] == f"process {worker.pid} has loaded tiny"
    assert (loaded["logger"], loaded["levelname"]) == ("ray_app.serving.worker", "INFO")


def test_workers_have_no_secrets_and_http_has_no_networks(endpoint):
    (worker,) = endpoint.workers()
    http = worker.parent()
    maps = {one.pid: Path(f"/proc/{one.pid}/maps").read_text() for one in (http, worker)}
    assert "libtorch" not in maps[http.pid]
    assert "libtorch" in maps[worker.pid]
    assert SECRETS.keys() <= http.environ().keys()
    assert not SECRETS.keys() & worker.environ().keys()
    files = [os.readlink(name) for name in Path(f"/proc/{worker.pid}/fd").iterdir()]
    sockets = [name for name in files if name.startswith("socket:")]
    assert len(sockets) == 1, "the socket to the HTTP process"


def test_stop_finishes_running_requests(endpoint):
    """The last test of this endpoint, which it ends."""
    (worker,) = endpoint.workers()
    worker.suspend()
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(post, endpoint, golden_image())
        with client(endpoint.url, headers=TOKEN) as asking:
            wait_for(lambda: "in_flight 1.0" in asking.get("/metrics").text)
        endpoint.process.send_signal(signal.SIGTERM)
        worker.resume()
        assert asked.result().status_code == 200
        assert endpoint.process.wait(60) == 0


@pytest.mark.slow
def test_killed_worker_costs_no_request():
    with served("--workers", "2") as running, ThreadPoolExecutor(8) as threads:
        workers = running.workers()
        assert len(workers) == 2
        asked = threads.map(lambda _: running.score(), range(60))
        first = next(asked)
        workers[0].kill()
        assert {first, *asked} == {200}
        wait_for(lambda: len(running.workers()) == 2 and workers[0] not in running.workers(), 120)
        assert {*threads.map(lambda _: running.score(), range(40))} == {200}
        page = httpx.get(f"{running.url}/metrics", trust_env=False).text
        assert 'ray_touchstone_requests_total{route="/v1/score",status="200"} 100.0' in page


@pytest.mark.slow
def test_worker_ends_if_its_parent_is_killed():
    with served(exit_code=-signal.SIGKILL) as running:
        family = running.family()
        running.process.kill()
        running.process.wait()
        wait_for(lambda: not any(process.is_running() for process in family), 60)


@pytest.mark.slow
def test_broken_detectors_end_the_command(tmp_path):
    from safetensors.numpy import load_file, save_file

    shipped = config_root() / "detectors"
    card = yaml.safe_load((shipped / "touchstone-tiny.yaml").read_text())
    weights = load_file(shipped / card["weights"]["uri"])
    broken = tmp_path / "broken.safetensors"
    save_file({key: value * float("nan") for key, value in weights.items()}, broken)
    digest = hashlib.sha256(broken.read_bytes()).hexdigest()
    card |= {"name": "broken", "weights": {"uri": broken.name, "sha256": digest}}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(card))
    members = [{"detector": "broken.yaml"}]
    ensemble = {"name": "broken", "title": "Broken", "members": members, "rule": "mean-logit"}
    path = tmp_path / "ensemble.yaml"
    path.write_text(yaml.safe_dump(ensemble))
    command = ("serve", "--port", str(free_ports(1)[0]), "--workers", "2", "--ensemble", str(path))
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
