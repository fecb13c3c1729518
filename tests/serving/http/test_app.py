"""The whole API over real HTTP, without Ray, for good files and hostile ones; and all guards
together.
"""

import httpx
import pytest

import ray_app
from ray_app import __version__
from ray_app.errors import Status
from ray_app.images import sniff_format
from ray_app.images.provenance.statement import NO_TRUST_LIST
from ray_app.serving.config import RequestLimits, ServeConfig
from ray_app.serving.http import schemas
from ray_app.serving.http.app import create_app
from tests.make import images
from tests.make.provenance.files import png_with
from tests.make.provenance.signing import signed, tampered
from tests.serving.http.document import check_document
from tests.serving.http.guarded_app import TOKEN, make_app, with_limits
from tests.serving.http.live import ask, request, serving
from tests.serving.in_process import client

PAGE = "https://page.example"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def asking(local):
    with client(local[0]) as connection:
        yield connection


@pytest.fixture(scope="module")
def file():
    return images.encoded(images.photo(300, 200, seed=5), "JPEG")


def test_raw_and_multipart_bodies_score_as_the_library_does(asking, file):
    expected = ray_app.load_ensemble("tiny").score([file])[0]
    for answer in (
        asking.post("/v1/score", content=file, headers={"Content-Type": "image/jpeg"}),
        asking.post("/v1/score", files={"file": ("x.jpg", file)}),
    ):
        assert answer.status_code == 200
        body = answer.json()
        said = [body[key] for key in ("status", "verdict", "sha256")]
        assert said == ["ok", expected.verdict, expected.facts.sha256]
        assert body["score"] == pytest.approx(expected.score, abs=1e-5)
        assert body["probability"] == pytest.approx(expected.probability, abs=1e-5)
        assert body["scores"] == pytest.approx(expected.scores, abs=1e-5)
        assert body["request_id"] == answer.headers["X-Request-Id"]
        assert body["timings"]["total"] > 0
        assert body["error_rates"].startswith("The ensemble tiny flags about 2.5 % of real")


def test_several_files_keep_their_order_and_their_own_status(asking, file):
    files = {"a.jpg": file, "b.txt": b"hello", "c.jpg": file[: len(file) // 2], "d.jpg": file}
    form = [("file", named) for named in files.items()]
    results = asking.post("/v1/score", files=form).json()["results"]
    statuses = ["ok", "unsupported_format", "truncated_image", "ok"]
    assert [result["name"] for result in results] == [*files]
    assert [result["status"] for result in results] == statuses
    codes = [result["error"]["code"] if result["error"] else "ok" for result in results]
    assert codes == statuses
    assert results[0]["score"] == pytest.approx(results[3]["score"], abs=1e-5)
    assert results[1]["verdict"] is results[1]["score"] is results[1]["error_rates"] is None


# One file for each status; tests/images has them all.
REFUSED_FILES = dict(images.REFUSED.values())


@pytest.mark.parametrize("status", sorted(REFUSED_FILES))
def test_hostile_file_is_refused_with_its_status(asking, status):
    data = REFUSED_FILES[status]()
    if sniff_format(data) not in (None, *RequestLimits().formats):
        status = Status.UNSUPPORTED_FORMAT  # The endpoint admits fewer formats.
    answer = asking.post("/v1/score", content=data)
    assert answer.status_code == (415 if status is Status.UNSUPPORTED_FORMAT else 422), answer.text
    assert answer.json()["code"] == str(status)
    assert set(answer.json()) == {"code", "message", "limit", "observed", "request_id"}
    assert "/" not in answer.json()["message"].replace("w/", "")


def test_wrong_request_is_refused_with_its_reason(asking, file):
    for query in ("ensemble=nobody", "detector=nobody", "masks=perhaps", "fpr=0.5", "fpr=2"):
        answer = asking.post(f"/v1/score?{query}", content=file)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request"), query
    answer = asking.post("/v1/score-url", json={"url": "https://example.org/a.jpg"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    bomb = asking.post("/v1/score", content=images.bomb_png(12_000)).json()
    said = [bomb[key] for key in ("code", "limit", "observed")]
    assert said == ["image_too_large", 50_000_000, 144_000_000]


def test_head_is_answered_where_get_is(asking, local):
    paths = local[1].openapi()["paths"]
    documented = [path for path, operations in paths.items() if "get" in operations]
    assert {"/healthz", "/readyz", "/metrics", "/v1/ensembles", "/v1/detectors"} <= {*documented}
    # All requests share one connection: a body after HEAD would be read as the next answer.
    for path in (*documented, "/", "/page/page.js", "/openapi.json", "/v1/nothing"):
        got, head = asking.get(path), asking.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert [*head.headers] == [*got.headers], path
        assert head.headers["content-type"] == got.headers["content-type"], path
        if path != "/metrics":  # Its counts have changed.
            assert head.headers["content-length"] == str(len(got.content)), path
    tag = asking.head("/").headers["etag"]
    assert asking.head("/", headers={"If-None-Match": tag}).status_code == 304
    answer = asking.head("/v1/score")
    assert (answer.status_code, answer.headers["Allow"], answer.content) == (405, "POST", b"")
    answer = asking.put("/v1/ensembles")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_endpoint_describes_versions_ensembles_and_detectors(asking):
    served = asking.get("/v1/ensembles").json()
    said = [served[key] for key in ("api_version", "touchstone", "token_needed")]
    assert said == [schemas.API_VERSION, __version__, False]
    (ensemble,) = served["ensembles"]
    assert (ensemble["name"], ensemble["demonstration"]) == ("tiny", True)
    (detector,) = asking.get("/v1/detectors").json()["detectors"]
    assert detector["name"] == "touchstone-tiny"
    assert asking.get("/readyz").json()["ensembles"][0]["fingerprint"] == ensemble["fingerprint"]


def test_provenance_is_shown_and_changes_no_score(asking):
    def answered(data):
        return asking.post("/v1/score", content=data).raise_for_status().json()

    plain, sound, broken = map(answered, (images.jpeg(), signed(), tampered(signed())))
    assert (plain["image"]["provenance"], plain["image"]["metadata"]) == (None, {})
    for answer, state, is_declared in ((sound, "intact", True), (broken, "invalid", False)):
        said = answer["image"]["provenance"]
        assert (said["c2pa"]["state"], said["ai_declared"]) == (state, is_declared)
    for key in ("score", "verdict", "probability"):
        assert sound[key] == plain[key]
    assert sound["image"]["metadata"] == {
        "c2pa": "intact; Throwaway 1; trainedAlgorithmicMedia",
        "signed_by": f"Throwaway ({NO_TRUST_LIST})",
    }
    parameters = png_with(parameters="a cat\nSteps: 20, Sampler: Euler", Software="web ui")
    said = answered(parameters)["image"]
    assert said["provenance"]["generator"]["sampler"] == "Euler"
    assert said["metadata"]["prompt"] == "a cat"


def test_requests_are_counted_by_route_status_and_reason(asking, file):
    asking.post("/v1/score", content=file)
    asking.post("/v1/score", content=b"hello")
    asking.get("/nowhere/else")
    page = asking.get("/metrics").text
    for series in (
        'requests_total{route="/v1/score",status="200"}',
        'requests_total{route="/v1/score",status="415"}',
        'requests_total{route="other",status="404"}',
        'refusals_total{code="unsupported_format"}',
        'refusals_total{code="not_found"}',
        'verdicts_total{ensemble="tiny"',
        'batch_images_bucket{group="detectors",le="1.0"}',
        "images_in_flight 0.0",
    ):
        assert f"ray_touchstone_{series}" in page, series


def test_answers_are_those_of_the_openapi_document(local):
    check_document(local[0], examples=1)


def test_everything_but_page_and_health_needs_a_token(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", TOKEN)
    app = create_app(ServeConfig(ensembles=("tiny",)), None, None)
    with serving(app) as port, client(f"http://127.0.0.1:{port}") as asking:
        for path in ("/metrics", "/v1/ensembles", "/v1/detectors", "/v1/score"):
            assert asking.get(path).status_code == 401, path
        for path in ("/", "/healthz", "/openapi.json"):
            assert asking.get(path).status_code == 200, path
        assert asking.get("/readyz").status_code != 401, "a probe has no token"
        document = asking.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert document["paths"]["/v1/score"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]


def test_cheapest_refusal_comes_first(monkeypatch):
    """A request that deserves every refusal gets them in turn, as each reason goes away."""
    monkeypatch.setenv("TOUCHSTONE_TOKENS", TOKEN)
    app = make_app(with_limits(requests_per_minute=1, max_body_bytes=10))
    huge = ("Content-Length: 1000000", "Content-Encoding: gzip")
    known = f"Authorization: Bearer {TOKEN}"
    with serving(app) as port:
        for status, headers in ((401, huge), (415, (*huge, known)), (429, (*huge, known))):
            reply = ask(port, request("POST", "/v1/nothing", *headers))
            assert reply.status == status
        assert reply.json["limit"] == 1
        assert 1 <= int(reply.headers["retry-after"]) <= 61
        assert ask(port, request("POST", "/v1/nothing", *huge)).status == 401


def origin_client(port):
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Origin": PAGE})


def test_without_origins_there_is_no_cors():
    with serving(make_app(ServeConfig())) as port, origin_client(port) as asking:
        answer = asking.get("/healthz")
        assert not [name for name in answer.headers if name.startswith("access-control")]
        method = {"Access-Control-Request-Method": "POST"}
        assert asking.options("/v1/score", headers=method).status_code == 403


def test_page_of_listed_origin_can_read_its_refusal(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", TOKEN)
    config = ServeConfig(access={"cors_origins": [PAGE]})
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    cross = {"Sec-Fetch-Site": "cross-site"}
    with serving(make_app(config)) as port, origin_client(port) as asking:

        def post(**headers):
            answer = asking.post("/v1/score", content=b"x", headers=headers)
            return answer.status_code, answer.headers.get("access-control-allow-origin")

        asked = asking.options("/v1/score", headers=preflight)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, PAGE)
        assert post(**cross) == (401, PAGE)
        assert post(**cross, **BEARER) == (200, PAGE)
        assert post(**BEARER, Origin="https://other.example") == (403, None)
