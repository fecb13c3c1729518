"""Jobs over real HTTP, behind the real guards, with Ray's own client of its job API."""

import json

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


def ray_dashboard(jobs):
    """Ray's job API, which keeps what is submitted in `jobs` and runs nothing."""
    dashboard = FastAPI()
    dashboard.get("/api/version")(lambda: {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})
    dashboard.get("/api/jobs/")(lambda: list(jobs.values()))
    dashboard.get("/api/jobs/{job}")(lambda job: jobs.get(job) or PlainTextResponse(f"Job {job} does not exist", 404))

    @dashboard.post("/api/jobs/")
    async def submit(request: Request) -> dict:
        wanted = await request.json()
        jobs[wanted["submission_id"]] = {"type": "SUBMISSION", "status": "PENDING", "start_time": 1_900_000_000_000, **wanted}
        return {"job_id": wanted["submission_id"], "submission_id": wanted["submission_id"]}

    return dashboard


def test_nobody_without_its_token_submits_or_reads_a_job_and_no_job_has_the_token_or_leaves_the_operators_prefix(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", f"{MINE},{THEIRS}")
    config = ServeConfig(ensembles=("tiny",), jobs={"directory": str(tmp_path), "sources": [INBOX]})
    app, jobs = FastAPI(), {}
    with serving(ray_dashboard(jobs)) as port:
        app.include_router(job_router(RayJobs(config, f"http://127.0.0.1:{port}"), config))
        guard.install(app, config)
        with served(app) as url, client(url) as asking:

            def told(method, path, token, **body):
                answer = asking.request(method, path, headers={"Authorization": f"Bearer {token}"}, **body)
                return answer.status_code, answer.json()

            for method, path in (("POST", ""), ("GET", "/x"), ("GET", "/x/results"), ("DELETE", "/x")):
                assert told(method, f"/v1/jobs{path}", "no-such-token-at-all")[0] == 401, (method, path)
            for place in (f"{INBOX}/../secret", f"{INBOX}/%252e%252e/secret", "s3://bucket/inbox2", "/etc/passwd", "--help"):
                for asked in ({"uris": [place]}, {"prefix": place}):
                    status, refused = told("POST", "/v1/jobs", MINE, json=asked)
                    assert (status, refused["code"]) == (422, "url_refused"), asked
            assert jobs == {}
            status, job = told("POST", "/v1/jobs", MINE, json={"prefix": f"{INBOX}/$(id)`id`; rm -r x"})
            assert (status, job["status"]) == (202, "PENDING")
            assert told("GET", job["job"]["address"], MINE) == (200, job)
            assert told("GET", job["job"]["address"], THEIRS)[0] == 404
    (sent,) = jobs.values()
    assert sent["entrypoint"].startswith(f"touchstone score '{INBOX}/$(id)`id`; rm -r x' --out {job['run']} --ensemble tiny ")
    assert MINE not in json.dumps(sent)
    assert sent["runtime_env"]["env_vars"] == {"TOUCHSTONE_TOKENS": "", "TOUCHSTONE_TOKEN": ""}
