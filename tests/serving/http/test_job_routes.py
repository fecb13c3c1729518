"""Jobs over real HTTP, behind the real guards, with Ray's own client of its job API: what is submitted, what is refused and how."""

import json
import shlex
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI

from ray_app.cli.score import score
from ray_app.errors import ConfigError
from ray_app.serving import ServeConfig
from ray_app.serving.http import app as guard
from ray_app.serving.http.routes import job_router
from ray_app.serving.http.schemas import Job
from ray_app.serving.jobs import RayJobs, check_place, check_prefix
from tests.serving.in_process import client, served
from tests.serving.ray_job_api import job_api

MINE, THEIRS = "mine-0123456789abcdef", "theirs-0123456789abcdef"
AS_THEM = {"Authorization": f"Bearer {THEIRS}"}
INBOX = "s3://bucket/inbox"


@contextmanager
def endpoint(address, **settings):
    """The routes of jobs on a real server; a client of the first token."""
    config = ServeConfig(**{"ensembles": ("tiny",), **settings})
    app = FastAPI()
    app.include_router(job_router(RayJobs(config, address), config))
    guard.install(app, config)
    with served(app) as url, client(url, headers={"Authorization": f"Bearer {MINE}"}) as mine:
        yield mine


@pytest.fixture(autouse=True, scope="module")
def _tokens():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TOUCHSTONE_TOKENS", f"{MINE},{THEIRS}")
        yield


@pytest.fixture(scope="module")
def ray_side():
    with job_api() as running:
        yield running


@pytest.fixture
def api(ray_side):
    ray_side[0].__init__()
    return ray_side[0]


@pytest.fixture(scope="module")
def two(ray_side, tmp_path_factory):
    """Two replicas of one endpoint: (client of each, folder of its jobs)."""
    folder = tmp_path_factory.mktemp("jobs")
    jobs = {"directory": str(folder), "sources": [INBOX], "max_uris": 3, "at_once": 2, "max_hours": 1.5, "limit": 9, "config": "overnight"}
    with ExitStack() as stack:
        replicas = [stack.enter_context(endpoint(ray_side[1], jobs=jobs, precision="fp32")) for _ in range(2)]
        yield *replicas, folder


def code_of(response):
    error = response.json()
    assert error.keys() == {"code", "message", "limit", "observed", "request_id"}
    return response.status_code, error["code"]


def words_of(job):
    return shlex.split(job["entrypoint"])


def test_a_list_becomes_one_run_with_the_operators_limits_and_no_secret(two, api):
    mine, other, folder = two
    uris = [f"{INBOX}/a b'; touch /tmp/x #.jpg", f'{INBOX}/$(id)`id`"&|.jpg']
    taken = mine.post("/v1/jobs", json={"uris": uris, "ensemble": "tiny"})
    job = Job.model_validate(taken.json())
    assert (taken.status_code, taken.headers["location"], job.job.address) == (202, f"/v1/jobs/{job.job.id}", f"/v1/jobs/{job.job.id}")
    assert (job.status, job.run, job.counts, job.results) == ("PENDING", f"{folder}/{job.job.id}/run", None, None)
    (sent,) = api.jobs.values()
    command, action, source, *options = words_of(sent)
    assert (command, action) == ("touchstone", "score")
    assert Path(source.removeprefix("list::")).read_text().splitlines() == uris
    assert options == [
        *("--out", job.run, "--ensemble", "tiny", "--config", "overnight", "--limit", "9", "--max-hours", "1.5"),
        *("--set", "allow_private=false", "--set", 'precision="fp32"'),
    ]
    given = score.make_context("score", [source, *options]).params  # the command knows all of it
    assert (given["source"], given["out"], given["max_hours"]) == ((source,), job.run, 1.5)
    assert sent["runtime_env"]["env_vars"] == {"TOUCHSTONE_TOKENS": "", "TOUCHSTONE_TOKEN": ""}
    assert MINE not in json.dumps(sent)
    assert Job.model_validate(other.get(job.job.address).json()) == job, "any replica answers"


def test_a_hostile_folder_stays_one_argument_of_the_command(two, api):
    prefix = f"{INBOX}/a'b\"c$(touch x);`id` && --out=/etc\\ -"
    assert two[0].post("/v1/jobs", json={"prefix": prefix}).status_code == 202
    (sent,) = api.jobs.values()
    assert words_of(sent)[:4] == ["touchstone", "score", prefix, "--out"]


def test_a_key_is_one_job_on_whichever_replica_and_another_tokens_key_another(two, api):
    mine, other, _ = two
    key = {"Idempotency-Key": "nightly 1"}
    first = mine.post("/v1/jobs", json={"prefix": f"{INBOX}/1"}, headers=key).json()
    assert other.post("/v1/jobs", json={"prefix": f"{INBOX}/1"}, headers=key).json() == first
    assert code_of(other.post("/v1/jobs", json={"prefix": f"{INBOX}/2"}, headers=key)) == (409, "conflict")
    assert mine.post("/v1/jobs", json={"prefix": f"{INBOX}/1"}, headers=key | AS_THEM).json()["job"] != first["job"]
    assert len(api.jobs) == 2


@pytest.mark.parametrize(("names", "statuses"), [(("a", "a"), [202, 202]), (("a", "b"), [202, 409])], ids=["the same", "another"])
def test_two_that_race_with_one_key_submit_once(two, api, names, statuses):
    """Both replicas have looked, and found nothing, before either submits; the list of the second is not the first's."""
    api.first_look = threading.Barrier(2)
    key = {"Idempotency-Key": "race"}
    with ThreadPoolExecutor() as threads:
        asked = [
            threads.submit(one.post, "/v1/jobs", json={"uris": [f"{INBOX}/{name}"]}, headers=key)
            for one, name in zip(two[:2], names, strict=True)
        ]
        api_answers = [one.result() for one in asked]
    assert sorted(one.status_code for one in api_answers) == statuses
    (sent,) = api.jobs.values()
    won = next(name for one, name in zip(api_answers, names, strict=True) if one.status_code == 202)
    assert Path(words_of(sent)[2].removeprefix("list::")).read_text() == f"{INBOX}/{won}\n"


def test_no_more_than_so_many_at_once_and_only_ours_count(two, api):
    mine, *_ = two
    api.jobs["raysubmit_x"] = {"type": "SUBMISSION", "submission_id": "raysubmit_x", "status": "RUNNING", "entrypoint": "sleep 9"}
    taken = [mine.post("/v1/jobs", json={"prefix": INBOX}) for _ in range(2)]
    assert [one.status_code for one in taken] == [202, 202]
    first = taken[0].json()
    full = mine.post("/v1/jobs", json={"prefix": INBOX}, headers=AS_THEM)
    assert (code_of(full), full.headers["retry-after"]) == ((429, "too_many_jobs"), "30")
    assert (full.json()["limit"], full.json()["observed"]) == (2, 2)
    assert mine.delete(first["job"]["address"]).json()["status"] == "STOPPED"
    assert api.stopped == [first["job"]["id"]]
    assert mine.delete(first["job"]["address"]).json()["status"] == "STOPPED"
    assert len(api.stopped) == 1, "what has ended is left as it is"
    assert mine.post("/v1/jobs", json={"prefix": INBOX}).status_code == 202


def test_jobs_of_others_are_not_found(two, api):
    mine, *_ = two
    job = mine.post("/v1/jobs", json={"prefix": INBOX}).json()["job"]
    api.jobs["raysubmit_x"] = {"type": "SUBMISSION", "submission_id": "raysubmit_x", "status": "RUNNING", "entrypoint": "sleep 9"}
    elsewhere = "touchstone-" + "0" * 32  # of another endpoint on this cluster, or made by hand
    api.jobs[elsewhere] = api.jobs[job["id"]] | {"submission_id": elsewhere, "metadata": {}}
    for id, headers in ((job["id"], AS_THEM), ("raysubmit_x", {}), (elsewhere, {}), ("touchstone-" + "1" * 32, {}), ("..%2fjobs%2f", {})):
        asked = [
            mine.request(method, f"/v1/jobs/{id}{tail}", headers=headers)
            for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/results"))
        ]
        assert [code_of(one) for one in asked] == [(404, "not_found")] * 3, id
    assert api.stopped == []
    assert not any("raysubmit" in path for _, path in api.asked), "an id that is none of ours is not looked up"
    assert code_of(mine.get(job["address"], headers={"Authorization": "Bearer no-such-token-at-all"})) == (401, "unauthorized")


def test_how_it_ended_is_told_without_its_log(two, api):
    mine, *_ = two
    job = mine.post("/v1/jobs", json={"prefix": INBOX}).json()["job"]
    assert code_of(mine.get(f"{job['address']}/results")) == (409, "conflict")
    for exit_code, said in ((2, "its source"), (130, "interrupted"), (-9, "it failed"), (None, "it failed")):
        api.ends(job["id"], "FAILED", exit_code)
        state = mine.get(job["address"])
        assert (state.json()["status"], state.json()["exit_code"], state.json()["results"]) == ("FAILED", exit_code, None)
        assert said in state.json()["detail"]
        assert "/root/x" not in state.text
        assert code_of(mine.get(f"{job['address']}/results")) == (409, "conflict")
    api.ends(job["id"], "SUCCEEDED", 0)
    assert code_of(mine.get(f"{job['address']}/results")) == (404, "not_found"), "somebody has removed the run"


def test_a_head_that_is_gone_is_trouble_that_passes(two, api):
    mine, *_ = two
    api.is_down = True
    away = mine.post("/v1/jobs", json={"prefix": INBOX})
    assert (code_of(away), away.headers["retry-after"]) == ((503, "overloaded"), "30")
    api.is_down = False
    assert mine.post("/v1/jobs", json={"prefix": INBOX}).status_code == 202


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("sent", "refusal"),
    [
        ({"content": b"\xff\xd8\xff", "headers": {"Content-Type": "image/jpeg"}}, (400, "malformed_request")),
        ({"files": [("file", ("a.jpg", b"\xff\xd8\xff"))]}, (400, "malformed_request")),
        ({}, (400, "malformed_request")),
        ({"content": b"{", "headers": JSON}, (400, "malformed_request")),
        ({"json": {}}, (400, "malformed_request")),
        ({"json": {"uris": []}}, (400, "malformed_request")),
        ({"json": {"uris": [7]}}, (400, "malformed_request")),
        ({"json": {"uris": [f"{INBOX}/a"], "prefix": INBOX}}, (400, "malformed_request")),
        ({"json": {"uris": [f"{INBOX}/" + "a" * 3000]}}, (400, "malformed_request")),
        ({"content": rb'{"uris": ["s3://bucket/inbox/\ud800"]}', "headers": JSON}, (400, "malformed_request")),
        ({"json": {"prefix": INBOX, "ensemble": "nobody's"}}, (400, "malformed_request")),
        ({"json": {"prefix": INBOX}, "headers": {"Idempotency-Key": "k" * 129}}, (400, "malformed_request")),
        ({"json": {"prefix": INBOX}, "headers": {"Idempotency-Key": ""}}, (400, "malformed_request")),
        ({"json": {"prefix": INBOX}, "headers": {"Idempotency-Key": "a\tb"}}, (400, "malformed_request")),
        ({"json": {"prefix": INBOX, "webhook": "https://h/hook"}}, (410, "gone")),
        ({"json": {"urls": ["https://h/a"], "webhook": None}}, (410, "gone")),
        ({"json": {"urls": ["https://h/a"]}}, (422, "unknown_field")),
        ({"json": {"prefix": INBOX, "entrypoint": "id"}}, (422, "unknown_field")),
        ({"json": {"prefix": INBOX, "runtime_env": {}}}, (422, "unknown_field")),
        ({"json": {"uris": [f"{INBOX}/{n}" for n in range(4)]}}, (413, "too_many_files")),
        ({"content": b" " * (4 * 2**20 + 1), "headers": JSON}, (413, "body_too_large")),
        ({"json": {"uris": [f"{INBOX}/a", "https://example.org/a.jpg"]}}, (403, "forbidden")),
        ({"json": {"uris": [f"{INBOX}/a", "s3://other/a.jpg"]}}, (422, "url_refused")),
        ({"json": {"uris": [f"{INBOX}/a\nlist::s3://other/a"]}}, (422, "url_refused")),
        ({"json": {"prefix": "https://example.org/"}}, (422, "url_refused")),
        ({"json": {"prefix": "--help"}}, (422, "url_refused")),
    ],
)
def test_what_is_refused(two, api, sent, refusal):
    response = two[0].post("/v1/jobs", **sent)
    assert code_of(response) == refusal
    assert "errors.pydantic.dev" not in response.text
    assert api.jobs == {}


BELOW = [
    f"{INBOX}",
    f"{INBOX}/",
    f"{INBOX}/2024/",
    f"{INBOX}/..a/b..",
    f"{INBOX}/a%2Fb",
    f"{INBOX}/a.tar",
    "/data/photos/x y",
    f"{INBOX}/é",
]
NOT_BELOW = [
    *("s3://bucket/inbox2", "s3://bucket/inbo", "s3://bucket/", "s3://bucket2/inbox/a", "S3://bucket/inbox/a", "inbox/a"),
    *(f"{INBOX}/../secret", f"{INBOX}/a/../../secret", f"{INBOX}/..", f"{INBOX}/./a", f"{INBOX}/%2e%2e/secret", f"{INBOX}/%2E./secret"),
    *(f"{INBOX}/%252e%252e/secret", f"{INBOX}/a%2f..%2f..%2fsecret", f"{INBOX}/..%5csecret", f"{INBOX}/..\\secret", f"{INBOX}/a\0b"),
    *(f"{INBOX}/a\nb", f"{INBOX}/a\x7fb", "list::s3://bucket/inbox/a", f"{INBOX}/a::file:///etc/passwd", "s3://key:word@bucket/inbox/a"),
    *("/data/photos/../etc", "/data/photoss", "file:///data/photos/a", "file:///data/photos/%2e%2e/etc", "/etc/passwd", "/data"),
]  # fmt: skip
NO_PREFIX = [
    f"{INBOX}/*",
    f"{INBOX}/a?c",
    f"{INBOX}/[ab]",
    f"{INBOX}/list.csv",
    f"{INBOX}/list.jsonl.gz/",
    f"{INBOX}/t.PARQUET/",
    f"{INBOX}/x.tsv//",
]


@pytest.mark.parametrize("place", BELOW)
def test_what_lies_below_a_prefix_is_taken(place):
    check_place(place, (INBOX + "/", "file:///data/photos"))
    check_prefix(place, (INBOX, "/data/photos/"))


@pytest.mark.parametrize("place", NOT_BELOW)
def test_what_does_not_is_refused_however_it_is_written(place):
    for check in (check_place, check_prefix):
        with pytest.raises(guard.errors.Refusal, match="url_refused"):
            check(place, (INBOX, "/data/photos/"))


@pytest.mark.parametrize("prefix", NO_PREFIX)
def test_a_prefix_is_no_pattern_and_no_list_whose_rows_would_name_files_anywhere(prefix):
    with pytest.raises(guard.errors.Refusal, match="url_refused"):
        check_prefix(prefix, (INBOX,))


def test_web_servers_are_up_to_the_rules_for_urls(ray_side, api, tmp_path):
    rules = {"enabled": True, "allowed_hosts": ["example.org"]}
    with endpoint(ray_side[1], jobs={"directory": str(tmp_path)}, urls=rules) as mine:
        assert mine.post("/v1/jobs", json={"uris": ["https://example.org/a.jpg"]}).status_code == 202
        for uri in ("http://example.org/a", "https://example.org:8443/a", "https://u:p@example.org/a", "https://127.0.0.1/a", "https://db/a",
                    "https://other.org/a", "https://example.org/a?X-Amz-Signature=00"):  # fmt: skip
            assert code_of(mine.post("/v1/jobs", json={"uris": [uri]})) == (422, "url_refused"), uri
    assert len(api.jobs) == 1


@pytest.mark.parametrize(("address", "directory", "why"), [(None, "/jobs", "serve deploy"), ("http://127.0.0.1:9", None, "jobs.directory")])
def test_without_a_cluster_or_a_directory_it_says_why(address, directory, why):
    with endpoint(address, jobs={"directory": directory, "sources": [INBOX]}) as mine:
        for asked in (
            mine.post("/v1/jobs", json={"prefix": INBOX}),
            mine.get("/v1/jobs/x"),
            mine.delete("/v1/jobs/x"),
            mine.get("/v1/jobs/x/results"),
        ):
            assert code_of(asked) == (501, "not_implemented")
            assert why in asked.json()["message"]


@pytest.mark.parametrize("key", ["max_images", "max_jobs", "concurrency", "keep_hours", "unguarded", "webhooks", "webhook_secret_variable"])
def test_a_setting_that_is_gone_names_what_replaced_it(key):
    with pytest.raises(ConfigError, match=rf"jobs\.{key}: removed in 0\.13") as refused:
        ServeConfig(jobs={key: 1})
    assert refused.value.hint.startswith("remove it; instead: ")


@pytest.mark.parametrize(
    "jobs",
    [
        {"sources": ["https://example.org/"]},
        {"sources": ["photos"]},
        {"sources": ["s3://b/*"]},
        {"sources": ["s3://b/a"], "directory": "s3://b/a/jobs"},
    ],
)
def test_settings_that_would_let_clients_read_too_much_are_refused(jobs):
    with pytest.raises(ValueError, match=r"sources|directory"):
        ServeConfig(jobs=jobs)


def test_the_document_says_it_all(two):
    document = two[0].get("/openapi.json").json()
    submit = document["paths"]["/v1/jobs"]["post"]
    body = submit["requestBody"]["content"]["application/json"]
    assert body["schema"]["properties"]["uris"]["anyOf"][0]["maxItems"] == 3
    assert set(body["schema"]["properties"]) == {"uris", "prefix", "ensemble"}
    assert {"202", "400", "401", "403", "409", "410", "413", "422", "429", "501", "503", "504"} <= submit["responses"].keys()
    assert "Location" in submit["responses"]["202"]["headers"]
    assert submit["responses"]["202"]["content"]["application/json"]["schema"]["$ref"].endswith("/Job")
    assert [(one["name"], one["in"]) for one in submit["parameters"]] == [("idempotency-key", "header")]
    results = document["paths"]["/v1/jobs/{job}/results"]["get"]["responses"]
    assert results["200"]["content"].keys() == {"application/x-ndjson"}
    assert {"404", "409"} <= results.keys()
    assert "$defs" not in json.dumps(document)
