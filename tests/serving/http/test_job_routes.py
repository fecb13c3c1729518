"""Jobs over real HTTP, behind the real guards: both ways to send one, what comes back, what is refused and how."""

import json
from contextlib import asynccontextmanager, contextmanager

import pytest
from fastapi import FastAPI

from ray_app.serving import ServeConfig
from ray_app.serving.http import app as guard
from ray_app.serving.http.routes import job_router
from ray_app.serving.http.schemas import ImageAnswer, Job
from ray_app.serving.jobs.book import JobBook
from tests.serving.http.live import wait_for
from tests.serving.in_process import client, served
from tests.serving.job_world import LightScorer, LoopbackFetcher, PictureServer, jpegs

MINE, THEIRS = "mine-0123456789abcdef", "theirs-0123456789abcdef"


@contextmanager
def endpoint(config, scorer=None, fetcher=None, notify=None):
    """The routes of jobs on a real server; a client of the first token."""
    book = JobBook(config, scorer or LightScorer(), fetcher, notify=notify)

    @asynccontextmanager
    async def lifespan(_):
        book.start()
        yield
        await book.close()

    app = FastAPI(lifespan=lifespan)
    app.include_router(job_router(book, config))
    guard.install(app, config)
    with served(app) as url, client(url, headers={"Authorization": f"Bearer {MINE}"}) as mine:
        yield mine


@pytest.fixture(autouse=True)
def _tokens(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", f"{MINE},{THEIRS}")


@pytest.fixture(scope="module")
def pictures():
    with PictureServer() as server:
        yield server


def form(images):
    return [("file", (name, data, "image/jpeg")) for name, data in images]


def done(mine, job):
    state = {}

    def has_ended():
        state.update(mine.get(job["url"]).json())
        return state["finished_at"]

    wait_for(has_ended)
    return state


def code_of(response):
    error = response.json()
    assert error.keys() == {"code", "message", "limit", "observed", "request_id"}
    return response.status_code, error["code"]


def test_a_form_of_images_to_the_last_line():
    images = jpegs(20)  # more than one request to /v1/score may have
    with endpoint(ServeConfig(ensembles=("tiny",))) as mine:
        taken = mine.post("/v1/jobs", files=form(images), data={"ensemble": "tiny"})
        job = Job.model_validate(taken.json())
        assert (taken.status_code, taken.headers["location"], job.images) == (202, f"/v1/jobs/{job.id}", 20)
        state = done(mine, taken.json())
        results = mine.get(state["results_url"])
        assert (state["state"], results.headers["content-type"]) == ("done", "application/x-ndjson")
        answers = [ImageAnswer.model_validate_json(line) for line in results.text.splitlines()]
        assert [answer.name for answer in answers] == [name for name, _ in images]
        gone = mine.delete(job.url)
        assert (gone.status_code, gone.json()) == (200, state)
        assert code_of(mine.delete(job.url)) == (404, "not_found")


def test_a_list_of_urls(pictures):
    told = []

    async def notify(url, job):
        told.append((url, json.loads(job)))

    config = ServeConfig(ensembles=("tiny",), urls={"enabled": True}, jobs={"webhooks": True})
    with endpoint(config, fetcher=LoopbackFetcher(pictures.url), notify=notify) as mine:
        urls = [f"https://h/{number}.jpg" for number in (3, 1, 2)]
        taken = mine.post("/v1/jobs", json={"urls": urls, "webhook": "https://h/hook", "ensemble": "tiny"})
        assert taken.status_code == 202
        state = done(mine, taken.json())
        assert [json.loads(line)["name"] for line in mine.get(state["results_url"]).text.splitlines()] == urls
        wait_for(lambda: told)
        assert told == [("https://h/hook", state)]


def test_results_wait_for_the_end_and_delete_cancels():
    scorer = LightScorer()
    scorer.gate.clear()
    with endpoint(ServeConfig(ensembles=("tiny",), jobs={"max_jobs": 1}), scorer) as mine:
        job = mine.post("/v1/jobs", files=form(jpegs(3))).json()
        wait_for(lambda: mine.get(job["url"]).json()["state"] == "running")
        assert code_of(mine.get(job["url"] + "/results")) == (409, "conflict")
        full = mine.post("/v1/jobs", files=form(jpegs(1)))
        assert (code_of(full), full.headers["retry-after"]) == ((503, "overloaded"), "10")
        cancelled = mine.delete(job["url"]).json()
        assert (cancelled["state"], cancelled["results_url"]) == ("cancelled", None)
        assert code_of(mine.get(job["url"] + "/results")) == (409, "conflict")


def test_another_tokens_jobs_and_keys_are_its_own():
    with endpoint(ServeConfig(ensembles=("tiny",))) as mine:
        theirs = {"Authorization": f"Bearer {THEIRS}"}
        key = {"Idempotency-Key": "nightly 1"}
        job = mine.post("/v1/jobs", files=form(jpegs(2)), headers=key).json()
        assert mine.post("/v1/jobs", files=form(jpegs(2)), headers=key).json()["id"] == job["id"]
        assert mine.post("/v1/jobs", files=form(jpegs(2)), headers=key | theirs).json()["id"] != job["id"]
        assert code_of(mine.post("/v1/jobs", files=form(jpegs(1)), headers=key)) == (409, "conflict")
        asked = (
            mine.get(job["url"], headers=theirs),
            mine.get(job["url"] + "/results", headers=theirs),
            mine.delete(job["url"], headers=theirs),
        )
        assert [code_of(one) for one in asked] == [(404, "not_found")] * 3
        assert code_of(mine.get(job["url"], headers={"Authorization": "Bearer no-such-token-at-all"})) == (401, "unauthorized")
        assert done(mine, job)["state"] == "done"


@pytest.mark.parametrize(
    ("sent", "refusal"),
    [
        ({"content": b"\xff\xd8\xff", "headers": {"Content-Type": "image/jpeg"}}, (400, "malformed_request")),
        ({}, (400, "malformed_request")),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, (400, "malformed_request")),
        ({"json": {"urls": []}}, (400, "malformed_request")),
        ({"json": {"urls": [7]}}, (400, "malformed_request")),
        ({"json": {"urls": ["https://h/a"], "urs": []}}, (400, "malformed_request")),
        ({"json": {"urls": ["https://h/" + "a" * 3000]}}, (400, "malformed_request")),
        ({"content": rb'{"urls": ["https://h/\ud800"]}', "headers": {"Content-Type": "application/json"}}, (400, "malformed_request")),
        ({"json": {"urls": ["https://h/a"] * 2000}}, (413, "body_too_large")),
        ({"json": {"urls": ["https://h/a"]}}, (403, "forbidden")),
        ({"files": form(jpegs(1)), "data": {"webhook": "https://h/hook"}}, (403, "forbidden")),
        ({"files": form(jpegs(1)), "data": {"masks": "true"}}, (400, "malformed_request")),
        ({"files": form(jpegs(1)), "data": {"ensemble": "nobody's"}}, (400, "malformed_request")),
        ({"files": form(jpegs(4))}, (413, "too_many_files")),
        ({"files": [("file", ("a", b"x" * 2000))]}, (413, "file_too_large")),
        ({"files": form(jpegs(1)), "headers": {"Idempotency-Key": "k" * 129}}, (400, "malformed_request")),
        ({"files": form(jpegs(1)), "headers": {"Idempotency-Key": ""}}, (400, "malformed_request")),
        ({"files": form(jpegs(1)), "headers": {"Idempotency-Key": "a\tb"}}, (400, "malformed_request")),
    ],
)
def test_what_is_refused(strict, sent, refusal):
    response = strict.post("/v1/jobs", **sent)
    assert code_of(response) == refusal
    assert "errors.pydantic.dev" not in response.text


@pytest.fixture(scope="module")
def strict():
    environment = pytest.MonkeyPatch()
    environment.setenv("TOUCHSTONE_TOKENS", MINE)
    with endpoint(ServeConfig(ensembles=("tiny",), jobs={"max_images": 3}, images={"max_bytes": 1999})) as mine:
        yield mine
    environment.undo()


def test_the_document_says_it_all(strict):
    document = strict.get("/openapi.json").json()
    submit = document["paths"]["/v1/jobs"]["post"]
    bodies = submit["requestBody"]["content"]
    assert bodies.keys() == {"multipart/form-data", "application/json"}
    assert bodies["multipart/form-data"]["schema"]["properties"]["file"]["maxItems"] == 3
    assert bodies["application/json"]["example"]["urls"]
    assert {"202", "400", "401", "403", "409", "413", "429", "503", "504"} <= submit["responses"].keys()
    assert "Location" in submit["responses"]["202"]["headers"]
    assert submit["responses"]["202"]["content"]["application/json"]["schema"]["$ref"].endswith("/Job")
    assert [(one["name"], one["in"]) for one in submit["parameters"]] == [("idempotency-key", "header")]
    results = document["paths"]["/v1/jobs/{job}/results"]["get"]["responses"]
    assert results["200"]["content"].keys() == {"application/x-ndjson"}
    assert {"404", "409"} <= results.keys()
    assert "$defs" not in json.dumps(document)
