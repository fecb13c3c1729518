"""The whole API over real HTTP, without Ray: what is promised in the OpenAPI document holds, for
good files and hostile ones.

All guards together: their order, and what web pages of other origins are told.
"""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import positive_data_acceptance

import ray_app
from ray_app import __version__
from ray_app.errors import Status
from ray_app.images import sniff_format
from ray_app.images.provenance.statement import NO_TRUST_LIST
from ray_app.serving import ServeConfig
from ray_app.serving.config import RequestLimits
from ray_app.serving.http import schemas
from tests.images import factory
from tests.images.provenance.files import png_with
from tests.images.provenance.signing import signed, tampered
from tests.serving.http.guarded_app import make_app
from tests.serving.http.live import ask, request, serving
from tests.serving.in_process import client, local_endpoint

# How wrong data may be refused: schemathesis' own list lacks 413, which too many files get, and has
# what we never say.
REFUSALS = schemathesis.Config.from_dict(
    {
        "checks": {
            "negative_data_rejection": {
                "expected-statuses": ["400", "403", "404", "405", "413", "415", "422"]
            }
        }
    }
)
# "Any binary string" is a valid body by the document, but it is no image.
NOT_ASKED = [positive_data_acceptance]
PAGE = "https://page.example"
TOKEN = "a-token-0123456789"


@pytest.fixture
def asking(local):
    with client(local[0]) as connection:
        yield connection


@pytest.fixture(scope="module")
def file():
    return factory.encoded(factory.photo(300, 200, seed=5), "JPEG")


def test_raw_and_multipart_give_what_the_library_gives(asking, file):
    expected = ray_app.load_ensemble("tiny").score([file])[0]
    for answer in (
        asking.post("/v1/score", content=file),
        asking.post("/v1/score", content=file, headers={"Content-Type": "image/jpeg"}),
        asking.post("/v1/score", files={"file": ("x.jpg", file)}),
    ):
        assert answer.status_code == 200
        body = answer.json()
        assert (body["status"], body["verdict"], body["sha256"]) == (
            "ok",
            expected.verdict,
            expected.facts.sha256,
        )
        assert (body["score"], body["probability"]) == pytest.approx(
            (expected.score, expected.probability), abs=1e-5
        )
        assert body["scores"] == pytest.approx(expected.scores, abs=1e-5)
        assert body["request_id"] == answer.headers["X-Request-Id"]
        assert body["timings"]["total"] > 0
        assert body["error_rates"].startswith(
            "The ensemble tiny flags about 2.5 % of real pictures and finds about 84 % of generated ones"
        )


def test_several_files_keep_their_order_and_their_own_status(asking, file):
    files = {"a.jpg": file, "b.txt": b"hello", "c.jpg": file[: len(file) // 2], "d.jpg": file}
    results = asking.post("/v1/score", files=[("file", named) for named in files.items()]).json()[
        "results"
    ]
    assert [result["name"] for result in results] == [*files]
    assert [result["status"] for result in results] == [
        "ok",
        "unsupported_format",
        "truncated_image",
        "ok",
    ]
    assert [result["error"] and result["error"]["code"] for result in results] == [
        None,
        "unsupported_format",
        "truncated_image",
        None,
    ]
    assert results[0]["score"] == pytest.approx(results[3]["score"], abs=1e-5), (
        "they may have been in other batches"
    )
    assert results[1]["verdict"] is results[1]["score"] is results[1]["error_rates"] is None


# status → what makes such a file; tests/images has them all
ONE_OF_EACH = dict(factory.REFUSED.values())


@pytest.mark.parametrize("status", sorted(ONE_OF_EACH))
def test_hostile_files_are_refused_with_their_status(asking, status):
    data = ONE_OF_EACH[status]()
    if sniff_format(data) not in (None, *RequestLimits().formats):
        status = Status.UNSUPPORTED_FORMAT  # not let in here
    answer = asking.post("/v1/score", content=data)
    assert answer.status_code == (415 if status is Status.UNSUPPORTED_FORMAT else 422), answer.text
    assert answer.json()["code"] == str(status)
    assert set(answer.json()) == {"code", "message", "limit", "observed", "request_id"}
    assert "/" not in answer.json()["message"].replace("w/", "")


def test_what_is_asked_for_wrongly_or_not_offered_is_refused_with_its_reason(asking, file):
    for query in ("ensemble=nobody", "detector=nobody", "masks=perhaps", "fpr=0.5", "fpr=2"):
        answer = asking.post(f"/v1/score?{query}", content=file)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    answer = asking.put("/v1/ensembles")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    answer = asking.post("/v1/score-url", json={"url": "https://example.org/a.jpg"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    bomb = asking.post("/v1/score", content=factory.bomb_png(12_000)).json()
    assert (bomb["code"], bomb["limit"], bomb["observed"]) == (
        "image_too_large",
        50_000_000,
        144_000_000,
    )


def test_what_is_served_and_which_interface_and_touchstone_answer_is_told(asking):
    served = asking.get("/v1/ensembles").json()
    assert (served["api_version"], served["touchstone"], served["token_needed"]) == (
        schemas.API_VERSION,
        __version__,
        False,
    )
    (ensemble,) = served["ensembles"]
    assert (ensemble["name"], ensemble["demonstration"]) == ("tiny", True)
    assert [one["name"] for one in asking.get("/v1/detectors").json()["detectors"]] == [
        "touchstone-tiny"
    ]
    assert asking.get("/readyz").json()["ensembles"][0]["fingerprint"] == ensemble["fingerprint"]


def test_what_files_say_of_their_origin_stands_beside_the_same_score(asking):
    def answered(data):
        return asking.post("/v1/score", content=data).raise_for_status().json()

    plain = answered(factory.jpeg())
    assert (plain["image"]["provenance"], plain["image"]["metadata"]) == (None, {})
    for data, state, declared in (
        (signed(), "intact", True),
        (tampered(signed()), "invalid", False),
    ):
        said = answered(data)["image"]["provenance"]
        assert (said["c2pa"]["state"], said["ai_declared"]) == (state, declared)
    answer = answered(signed())
    assert [answer[key] for key in ("score", "verdict", "probability")] == [
        plain[key] for key in ("score", "verdict", "probability")
    ]
    told = {
        "c2pa": "intact; Throwaway 1; trainedAlgorithmicMedia",
        "signed_by": f"Throwaway ({NO_TRUST_LIST})",
    }
    assert answer["image"]["metadata"] == told
    said = answered(png_with(parameters="a cat\nSteps: 20, Sampler: Euler", Software="web ui"))[
        "image"
    ]
    assert (said["provenance"]["generator"]["sampler"], said["metadata"]["prompt"]) == (
        "Euler",
        "a cat",
    )


def test_requests_are_counted_by_route_status_and_reason(asking, file):
    asking.post("/v1/score", content=file)
    asking.post("/v1/score", content=b"hello")
    asking.get("/nowhere/else")
    page = asking.get("/metrics").text
    for series in (
        *(
            'requests_total{route="/v1/score",status="200"}',
            'requests_total{route="/v1/score",status="415"}',
        ),
        *(
            'requests_total{route="other",status="404"}',
            'refusals_total{code="unsupported_format"}',
            'refusals_total{code="not_found"}',
        ),
        *(
            'verdicts_total{ensemble="tiny"',
            'batch_images_bucket{group="detectors",le="1.0"}',
            "images_in_flight 0.0",
        ),
    ):
        assert f"ray_touchstone_{series}" in page, series


def test_tokens_stand_before_everything_but_the_page(monkeypatch, file):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", TOKEN)
    with (
        local_endpoint(ServeConfig(ensembles=("tiny",), limits={"requests_per_minute": 1})) as (
            url,
            _,
        ),
        client(url) as asking,
    ):
        assert (
            asking.post(
                "/v1/score",
                content=file,
                headers={"Authorization": "Bearer wrong-token-of-letters"},
            ).status_code
            == 401
        )
        for path in ("/metrics", "/v1/ensembles", "/v1/detectors"):
            assert asking.get(path).status_code == 401
        for path in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert asking.get(path).status_code == 200
        answers = [
            asking.post("/v1/score", content=file, headers={"Authorization": f"Bearer {TOKEN}"})
            for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert (answers[1].json()["code"], answers[1].json()["limit"]) == ("too_many_requests", 1)
        assert 1 <= int(answers[1].headers["Retry-After"]) <= 61


def test_the_openapi_document_promises_what_is_kept(local):
    """Requests made from the document: no 5xx, no status and no shape that it does not name."""
    keep_document(local[0], examples=1)


def keep_document(url, *, examples):
    """Ask for every operation of the document in so many ways, as it has it and otherwise."""
    found = []
    document = schemathesis.openapi.from_url(f"{url}/openapi.json", config=REFUSALS)
    operations = list(document.get_all_operations())
    assert len(operations) > 4
    for operation in operations:
        asked_before = len(found)
        for mode in schemathesis.GenerationMode:
            keep_asking(operation.ok(), mode, examples, found)
        assert len(found) > asked_before
    assert len(found) > 2 * examples
    assert max(found) < 500


def keep_asking(operation, mode, examples, found):
    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def keeps_its_word(case):
        answer = case.call(timeout=30)
        found.append(answer.status_code)
        case.validate_response(answer, excluded_checks=NOT_ASKED)

    try:
        keeps_its_word()
    except Unsatisfiable:
        assert mode is schemathesis.GenerationMode.NEGATIVE, (
            "an operation without a parameter cannot be asked wrongly"
        )


def config(**settings) -> ServeConfig:
    return ServeConfig.model_validate(settings)


def test_the_cheapest_refusal_comes_first(monkeypatch):
    """One request that deserves every refusal gets them one after the other, as each reason falls
    away.
    """
    monkeypatch.setenv("TOUCHSTONE_TOKENS", TOKEN)
    app = make_app(config(limits={"requests_per_minute": 1, "max_body_bytes": 10}))
    huge = ("Content-Length: 1000000", "Content-Encoding: gzip")
    with serving(app) as port:
        assert ask(port, request("POST", "/v1/nothing", *huge)).status == 401
        assert (
            ask(
                port, request("POST", "/v1/nothing", *huge, f"Authorization: Bearer {TOKEN}")
            ).status
            == 415
        )
        assert (
            ask(
                port, request("POST", "/v1/nothing", *huge, f"Authorization: Bearer {TOKEN}")
            ).status
            == 429
        )
        assert ask(port, request("POST", "/v1/nothing", *huge)).status == 401


def test_without_origins_there_is_no_cors():
    with (
        serving(make_app(config())) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        answer = client.get("/healthz", headers={"Origin": PAGE})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        asked = client.options(
            "/v1/score", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        )
        assert asked.status_code == 403


def test_a_listed_origin_may_ask_and_can_read_why_it_was_refused(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_TOKENS", TOKEN)
    with (
        serving(make_app(config(access={"cors_origins": [PAGE]}))) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        preflight = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        }
        asked = client.options("/v1/score", headers=preflight | {"Origin": PAGE})
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, PAGE)
        browser = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
        refused = client.post("/v1/score", content=b"x", headers=browser)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
        assert (
            client.post(
                "/v1/score", content=b"x", headers=browser | {"Authorization": f"Bearer {TOKEN}"}
            ).status_code
            == 200
        )
        other = client.post(
            "/v1/score",
            content=b"x",
            headers={"Origin": "https://other.example", "Authorization": f"Bearer {TOKEN}"},
        )
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers


def test_a_refusal_with_a_body_on_its_way_reaches_an_ordinary_client():
    """A client that sends while the server has refused already must not see a broken connection
    instead of the reason.
    """
    with serving(make_app(config(limits={"max_body_bytes": 1000}))) as port:
        for size in (2_000, 200_000, 3_000_000):
            assert (
                httpx.post(f"http://127.0.0.1:{port}/v1/score", content=bytes(size)).json()["code"]
                == "body_too_large"
            )
