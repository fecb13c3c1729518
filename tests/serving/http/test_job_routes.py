"""Jobs over real HTTP, behind the real guards, with Ray's own client of its job API."""

import json
import shlex
from contextlib import contextmanager
from pathlib import Path

import ray
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from ray_app.serving import ServeConfig
from ray_app.serving.http import app as guard
from ray_app.serving.http.routes import job_router
from ray_app.serving.jobs import RayJobs
from tests.serving.http.live import serving
from tests.serving.in_process import client, served

MINE, THEIRS = "mine-0123456789abcdef", "theirs-0123456789abcdef"
INBOX = "s3://bucket/inbox"


@contextmanager
def endpoint(folder, monkeypatch):
    """(client of the first token, jobs that came to Ray's dashboard by id); nothing of them is run."""
    monkeypatch.setenv("TOUCHSTONE_TOKENS", f"{MINE},{THEIRS}")
    jobs, dashboard = {}, FastAPI()
    dashboard.get("/api/version")(lambda: {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})
    dashboard.get("/api/jobs/")(lambda: list(jobs.values()))
    dashboard.get("/api/jobs/{job}")(lambda job: jobs.get(job) or PlainTextResponse(f"Job {job} does not exist", 404))

    @dashboard.post("/api/jobs/")
    async def submit(request: Request) -> dict:
        wanted = await request.json()
        jobs[wanted["submission_id"]] = {"type": "SUBMISSION", "status": "PENDING", "start_time": 1_900_000_000_000, **wanted}
        return {"job_id": wanted["submission_id"], "submission_id": wanted["submission_id"]}

    config = ServeConfig(ensembles=("tiny",), precision="fp32", jobs={"directory": str(folder), "sources": [INBOX], "max_hours": 1.5})
    with serving(dashboard) as port:
        app = FastAPI()
        app.include_router(job_router(RayJobs(config, f"http://127.0.0.1:{port}"), config))
        guard.install(app, config)
        with served(app) as url, client(url, headers={"Authorization": f"Bearer {MINE}"}) as mine:
            yield mine, jobs


def test_a_list_becomes_one_run_without_a_secret_and_is_its_owners_alone(tmp_path, monkeypatch):
    uris = [f"{INBOX}/a b'; touch /tmp/x #.jpg", f'{INBOX}/$(id)`id`"&|.jpg']
    with endpoint(tmp_path, monkeypatch) as (mine, jobs):
        taken = mine.post("/v1/jobs", json={"uris": uris, "ensemble": "tiny"})
        job = taken.json()
        assert (taken.status_code, job["status"]) == (202, "PENDING")
        assert mine.get(job["job"]["address"]).json() == job
        assert mine.get(job["job"]["address"], headers={"Authorization": f"Bearer {THEIRS}"}).status_code == 404
    (sent,) = jobs.values()
    command, action, source, *options = shlex.split(sent["entrypoint"])
    assert (command, action) == ("touchstone", "score")
    assert Path(source.removeprefix("list::")).read_text().splitlines() == uris
    assert options == [
        *("--out", job["run"], "--ensemble", "tiny", "--max-hours", "1.5", "--set", "allow_private=false", "--set", 'precision="fp32"')
    ]
    assert sent["runtime_env"]["env_vars"] == {"TOUCHSTONE_TOKENS": "", "TOUCHSTONE_TOKEN": ""}
    assert MINE not in json.dumps(sent)


def test_nothing_comes_to_the_cluster_without_a_token_or_from_outside_of_the_operators_prefixes(tmp_path, monkeypatch):
    with endpoint(tmp_path, monkeypatch) as (mine, jobs):
        for method, path in (("POST", ""), ("GET", "/x"), ("GET", "/x/results"), ("DELETE", "/x")):
            for token in ("", "Bearer no-such-token-at-all"):
                refused = mine.request(method, f"/v1/jobs{path}", headers={"Authorization": token})
                assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized"), (method, path, token)
        for place in (f"{INBOX}/../secret", f"{INBOX}/%252e%252e/secret", "s3://bucket/inbox2", "/etc/passwd", "--help"):
            for asked in ({"uris": [place]}, {"prefix": place}):
                refused = mine.post("/v1/jobs", json=asked)
                assert (refused.status_code, refused.json()["code"]) == (422, "url_refused"), asked
    assert jobs == {}
