"""A server that speaks Ray's job API as its dashboard does, and runs nothing: what an endpoint submits, and how it takes the answers."""

import asyncio
import os
import threading
from contextlib import contextmanager

import ray
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from tests.serving.http.live import serving


class JobApi:
    """What came in, by submission id, in the fields that Ray answers with. `first_look` holds searches back until so many have come."""

    def __init__(self):
        self.jobs, self.stopped, self.asked = {}, [], []
        self.first_look = threading.Barrier(1)
        self.is_down = False

    def ends(self, job, status, exit_code=None):
        """Let a job end."""
        self.jobs[job] |= {
            "status": status,
            "driver_exit_code": exit_code,
            "end_time": 1_900_000_060_000,
            "message": "Traceback of /root/x",
        }

    def take(self, wanted):
        if wanted["submission_id"] in self.jobs:  # as a 2.60 dashboard hands on what its agent answers
            return PlainTextResponse("Request failed: Job with submission_id … already exists. Please use a different one.", 500)
        self.jobs[wanted["submission_id"]] = {"type": "SUBMISSION", "status": "PENDING", "start_time": 1_900_000_000_000, **wanted}
        return JSONResponse({"job_id": wanted["submission_id"], "submission_id": wanted["submission_id"]})


def make_app(api):
    app = FastAPI()

    @app.middleware("http")
    async def token(request: Request, go_on):
        api.asked.append((request.method, request.url.path))
        if request.headers.get("authorization") != f"Bearer {os.environ['RAY_AUTH_TOKEN']}":
            return PlainTextResponse("Missing authentication token", 401)
        return PlainTextResponse("the head is gone", 500) if api.is_down else await go_on(request)

    @app.get("/api/version")
    async def version():
        return {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}

    @app.post("/api/jobs/")
    async def submit(request: Request):
        return api.take(await request.json())

    @app.get("/api/jobs/")
    async def jobs():
        return list(api.jobs.values())

    @app.get("/api/jobs/{job}")
    async def job(job: str) -> Response:
        found = api.jobs.get(job)
        await asyncio.to_thread(api.first_look.wait, 10)
        return JSONResponse(found) if found else PlainTextResponse(f"Job {job} does not exist", 404)

    @app.post("/api/jobs/{job}/stop")
    async def stop(job: str):
        api.stopped.append(job)
        api.ends(job, "STOPPED")
        return {"stopped": True}

    return app


@contextmanager
def job_api():
    """(what came in, its address) while it answers."""
    api = JobApi()
    with serving(make_app(api)) as port:
        yield api, f"http://127.0.0.1:{port}"
