"""Jobs of a deployed endpoint on a real head in token mode: each is a run of `touchstone score`, submitted through Ray's own job API."""

import json
from pathlib import Path

import pytest

import ray_app
from ray_app.serving.ray_server import SERVE_VARIABLES
from tests.ray_head import free_ports, ray_head, title_of
from tests.scoring.conftest import family_of, rows_of, wait_until
from tests.serving.http.test_job_routes import AS_THEM, MINE, THEIRS, code_of
from tests.serving.in_process import client
from tests.serving.test_deployed import ROOT, Deployed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """An endpoint of two ingress replicas, whose tokens every process of the node inherits; one job at once."""
    folder = tmp_path_factory.mktemp("serve")
    secrets = {"TOUCHSTONE_TOKENS": f"{MINE},{THEIRS}", "TOUCHSTONE_TOKEN": MINE}
    variables = {**SERVE_VARIABLES, **secrets, "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0", "PYTHONPATH": str(ROOT)}
    with ray_head(cpus=4, **variables) as head:
        running = Deployed(head, folder, free_ports(1)[0])
        running.deploy(
            jobs={"directory": str(folder / "jobs"), "sources": [str(folder / "inbox")], "at_once": 1, "max_uris": 3, "max_hours": 1}
        )
        wait_until(lambda: running.fingerprint() and running.status() == "RUNNING")
        yield running, folder


@pytest.fixture(scope="module")
def inbox(deployed):
    """Pictures, and a file that is none."""
    from tests.images import factory

    folder = deployed[1] / "inbox"
    (folder / "may").mkdir(parents=True)
    for seed in range(4):
        (folder / "may" / f"it's {seed}.jpg").write_bytes(factory.encoded(factory.photo(300, 200, seed=seed), "JPEG"))
    (folder / "may" / "note.txt").write_text("no image")
    return folder


def environment_of(pid):
    return dict(one.split("=", 1) for one in Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0") if "=" in one)


def test_a_job_from_its_request_to_its_rows(deployed, inbox):
    running, folder = deployed
    pictures = sorted(map(str, inbox.glob("may/*.jpg")))
    with client(running.url, headers={"Authorization": f"Bearer {MINE}"}) as mine:

        def state(job):
            return mine.get(job["job"]["address"]).json()

        def drivers():
            return [
                pid
                for pid in family_of(running.head.process.pid)
                if "touchstone score list::" in title_of(pid) and "sh -c" not in title_of(pid)
            ]

        key = {"Idempotency-Key": "may"}
        taken = mine.post("/v1/jobs", json={"uris": pictures[1::-1], "ensemble": "tiny"}, headers=key)
        job = taken.json()
        assert (taken.status_code, job["run"]) == (202, f"{folder}/jobs/{job['job']['id']}/run"), job
        for _ in range(4):  # both replicas are asked
            assert mine.post("/v1/jobs", json={"uris": pictures[1::-1], "ensemble": "tiny"}, headers=key).json()["job"] == job["job"]
            assert code_of(mine.post("/v1/jobs", json={"uris": pictures[:1]}, headers=key)) == (409, "conflict")
        assert code_of(mine.get(job["job"]["address"], headers=AS_THEM)) == (404, "not_found")
        wait_until(drivers)
        inherited = environment_of(drivers()[0])
        assert {name: inherited[name] for name in ("TOUCHSTONE_TOKENS", "TOUCHSTONE_TOKEN")} == {
            "TOUCHSTONE_TOKENS": "",
            "TOUCHSTONE_TOKEN": "",
        }
        full = mine.post("/v1/jobs", json={"prefix": str(inbox)}, headers=AS_THEM)
        assert code_of(full) == (429, "too_many_jobs")
        wait_until(lambda: state(job)["status"] not in ("PENDING", "RUNNING"))
        ended = state(job)
        assert (ended["status"], ended["exit_code"], ended["detail"]) == ("SUCCEEDED", 0, None)
        assert (ended["counts"]["files"], ended["counts"]["scored"]) == (2, 2)
        rows = rows_of(job["run"])
        assert set(rows) == set(pictures[:2])
        expected = ray_app.load_ensemble("tiny").score([Path(one).read_bytes() for one in pictures[:2]])
        assert [rows[one]["score"] for one in pictures[:2]] == pytest.approx([one.score for one in expected], abs=1e-4)
        lines = {row["uri"]: row for row in map(json.loads, mine.get(ended["results"]).text.splitlines())}
        assert {uri: row["verdict"] for uri, row in lines.items()} == {uri: row["verdict"] for uri, row in rows.items()}
        assert len(mine.post("/v1/jobs", json={"uris": pictures[1::-1], "ensemble": "tiny"}, headers=key).json()["counts"]["verdicts"]) > 0

        whole = mine.post("/v1/jobs", json={"prefix": f"{inbox}/may/"}, headers=AS_THEM).json()
        wait_until(lambda: mine.get(whole["job"]["address"], headers=AS_THEM).json()["status"] == "SUCCEEDED")
        statuses = sorted(row["status"] for row in rows_of(whole["run"]).values())
        assert statuses == ["ok"] * 4 + ["unsupported_format"]
        many = mine.get(f"{whole['job']['address']}/results", headers=AS_THEM)
        assert (code_of(many), many.json()["limit"]) == ((409, "conflict"), 3)

        stopped = mine.post("/v1/jobs", json={"prefix": str(inbox)}).json()
        wait_until(lambda: state(stopped)["status"] == "RUNNING")
        assert mine.delete(stopped["job"]["address"]).status_code == 200
        wait_until(lambda: state(stopped)["status"] == "STOPPED")
        assert code_of(mine.get(stopped["job"]["address"] + "/results")) == (409, "conflict")

        failed = mine.post("/v1/jobs", json={"prefix": f"{inbox}/june"}).json()
        wait_until(lambda: state(failed)["status"] == "FAILED")
        assert (state(failed)["exit_code"], state(failed)["counts"]) == (2, None)
        assert "its source" in state(failed)["detail"]
