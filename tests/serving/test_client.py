import os
import time
from collections import deque

import pytest

from ray_app.errors import ClusterError, ConfigError
from ray_app.serving.client import EndpointClient, parse_retry_after
from ray_app.storage import RetryPolicy
from tests.make.forking import run_in_fork
from tests.serving.scripted import TORN, ScriptedEndpoint, refuse, score_of

QUICK = RetryPolicy(attempts=4, base_s=0.01, cap_s=0.02, deadline_s=5.0)
FILES = [(f"{i}.jpg", bytes([65 + i]) * 100) for i in range(10)]


@pytest.fixture
def endpoint():
    with ScriptedEndpoint() as running:
        yield running


def scored(endpoint, images=FILES, **options):
    with EndpointClient(endpoint.url, patience=QUICK) as client:
        return list(client.score(images, **options))


def refused(url, kind, says, token=None, patience=QUICK, at_once=False, **options):
    """The error of a request for all files, `at_once` before the first result is asked for; its
    hint says what to do.
    """
    with (
        EndpointClient(url, token, patience=patience) as client,
        pytest.raises(kind, match=says) as caught,
    ):
        (iter if at_once else list)(client.score(FILES, **options))
    assert caught.value.hint
    return caught.value


def is_right(results, images=FILES):
    return [(one["name"], one["score"]) for one in results] == [
        (name, score_of(data)) for name, data in images
    ]


def test_results_keep_order_in_few_requests(endpoint):
    assert is_right(scored(endpoint))
    assert [len(request["names"]) for request in endpoint.told] == [4, 4, 2]


def test_requests_keep_below_the_body_limit(endpoint):
    images = [(f"{i}", os.urandom(30_000)) for i in range(7)]
    assert is_right(scored(endpoint, images), images)
    assert [len(request["names"]) for request in endpoint.told] == [3, 3, 1]


def test_endpoint_on_this_machine_is_asked_without_a_proxy(endpoint, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert is_right(scored(endpoint))


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
def test_proxy_that_does_not_answer_is_named(variable, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv(variable, "http://me:secret@127.0.0.1:9")
    error = refused("http://scorer.test:8000", ClusterError, "cannot be reached")
    assert "through the proxy http://127.0.0.1:9: nothing listens there" in error.message
    assert "set NO_PROXY=scorer.test" in error.hint


def test_proxy_that_cannot_reach_the_endpoint_is_named(endpoint, monkeypatch):
    """The scripted endpoint is the proxy, which answers 502 for a host that it does not find."""
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", endpoint.url)
    endpoint.script = deque([refuse(502)] * QUICK.attempts)
    error = refused("http://scorer.test", ClusterError, f"502 through the proxy {endpoint.url}")
    assert "NO_PROXY=scorer.test" in error.hint


def test_forked_process_opens_its_own_connection(endpoint):
    with EndpointClient(endpoint.url, patience=QUICK) as client:
        for call in (lambda run: run(), run_in_fork, lambda run: run()):
            assert is_right(call(lambda: list(client.score(FILES[:1]))), FILES[:1])
    first, in_fork, last = (request["client"] for request in endpoint.told)
    assert in_fork != first == last


def test_file_is_read_and_only_its_name_is_sent(endpoint, tmp_path):
    path = tmp_path / "a" / 'o"dd\n.jpg'
    path.parent.mkdir()
    path.write_bytes(b"hello")
    (result,) = scored(endpoint, [path])
    assert result["name"] == str(path)
    assert result["score"] == score_of(b"hello")
    assert str(tmp_path) not in str(endpoint.told)


@pytest.mark.parametrize(
    "trouble",
    [
        refuse(429, "too_many_requests", Retry_After="0"),
        refuse(503),
        TORN,
        refuse(500, "internal_error"),
        refuse(504, "deadline_exceeded"),
    ],
)
def test_transient_failure_is_retried(endpoint, trouble):
    endpoint.script = deque([trouble, trouble, None])
    assert is_right(scored(endpoint, FILES[:1]), FILES[:1])
    assert len(endpoint.told) == 3


def test_retry_waits_as_long_as_the_endpoint_says(endpoint, monkeypatch, caplog):
    monkeypatch.setattr("ray_app.serving.client.NOTICED_S", 0.3)
    endpoint.script = deque([refuse(503, Retry_After="0.3")])
    endpoint.describing = deque([refuse(503, "not_ready", Retry_After="0")] * 5)
    begin = time.monotonic()
    assert is_right(scored(endpoint))
    assert time.monotonic() - begin >= 0.3
    assert f"{endpoint.url}: answered 503; next attempt in " in caplog.text


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (refuse(503, Retry_After="0"), "said overloaded"),
        (refuse(502), "answered 502"),
        (refuse(429, "too_many_requests", Retry_After="3600"), "come back in 36"),
    ],
)
def test_retries_end_at_the_deadline(endpoint, last, says):
    endpoint.script = deque([last] * 100_000)
    refused(endpoint.url, ClusterError, says, patience=QUICK.model_copy(update={"deadline_s": 0.3}))


def test_refused_file_is_a_result(endpoint, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    big = tmp_path / "big.jpg"
    big.write_bytes(b"x" * 50_001)
    images = {
        ("a", b"a"): "ok",
        ("b", b"bad"): "corrupt_image",
        tmp_path / "absent": "source_missing",
        tmp_path / "folder": "source_denied",
        tmp_path / "pipe": "source_denied",
        big: "file_too_large",
        ("c", b"c"): "ok",
        ("d", b"bad one"): "corrupt_image",
    }
    results = scored(endpoint, [*images])
    assert [one["status"] for one in results] == [*images.values()]
    assert all(one.keys() == results[0].keys() for one in results)
    assert all((one["error"] is None) == (one["score"] is not None) for one in results)
    assert (results[5]["error"]["limit"], results[5]["error"]["observed"]) == (50_000, 50_001)
    assert results[6]["score"] == score_of(b"c")


def test_request_refused_for_one_file_is_halved(endpoint):
    endpoint.refuses_together = [FILES[2][1]]
    assert is_right(scored(endpoint))
    assert [request["names"] for request in endpoint.told[:5]] == [
        ["0.jpg", "1.jpg", "2.jpg", "3.jpg"], ["0.jpg", "1.jpg"], ["2.jpg", "3.jpg"], ["2.jpg"], ["3.jpg"],
    ]  # fmt: skip


def test_file_that_always_fails_is_a_result(endpoint):
    endpoint.script = deque([refuse(500, "internal_error")] * 4)
    results = scored(endpoint, FILES[:1]) + scored(endpoint, FILES[1:2])
    assert [one["status"] for one in results] == ["internal_error", "ok"]


def test_token_is_sent_and_a_wrong_one_is_an_error(endpoint):
    endpoint.token = "s3cret-token"
    with EndpointClient(endpoint.url, "s3cret-token") as client:
        assert is_right(client.score(FILES))
    error = refused(endpoint.url, ConfigError, "said unauthorized", token="wrong")
    assert "--token-file" in error.hint
    assert "wrong" not in str(error)
    assert len(endpoint.told) == 3 + 1


@pytest.mark.parametrize(
    ("described", "says"),
    [(refuse(404, "not_found"), "no Touchstone endpoint"), (refuse(307, Location="http://elsewhere/"), "redirects to another address"),
     (refuse(200), "not a Touchstone endpoint"), (refuse(403, "forbidden"), "said forbidden")],
)  # fmt: skip
def test_other_server_is_rejected_at_once(endpoint, described, says):
    endpoint.describing = deque([described])
    refused(endpoint.url, ConfigError, says, at_once=True)


@pytest.mark.parametrize(
    ("options", "says", "hint"),
    [
        ({"detectors": ["slow", "quick"]}, "no optional detector 'quick'", "slow, slower"),
        ({"ensemble": "publishd"}, "publishd", "default, published"),
        ({"fpr": 0.5}, "no operating point with fpr '0.5'", "it serves: 0.01"),
        ({"fpr": 1.0}, "fraction", "write 0.01 for 1 %"),
    ],
)
def test_option_that_is_not_served_is_rejected_unsent(endpoint, options, says, hint):
    error = refused(endpoint.url, ConfigError, says, at_once=True, **options)
    assert hint in error.hint
    assert not endpoint.told


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ({"detectors": ["slow", "slower"]}, {"detector": ["slow", "slower"]}),
        ({"fpr": 0.01}, {"fpr": "0.01"}),
        ({"fpr": 0.0123456789}, {"fpr": "0.0123456789"}),
        ({"ensemble": "published", "masks": True}, {"ensemble": "published", "masks": "true"}),
    ],
)
def test_options_are_sent_with_every_request(endpoint, options, query):
    assert is_right(scored(endpoint, **options))
    assert [request["query"] for request in endpoint.told] == [query] * 3


def test_wrong_url_or_token_is_rejected_without_secrets():
    assert "secret" not in str(
        refused("http://user:secret@127.0.0.1:1", ClusterError, "cannot be reached", at_once=True)
    )
    for url in ("localhost:8000", "ftp://host/", "", "http://"):
        with pytest.raises(ConfigError, match="not the URL of an endpoint"):
            EndpointClient(url)
    with pytest.raises(ConfigError, match="characters that a token cannot have"):
        EndpointClient("http://localhost", "two\nlines")


def test_retry_after_is_seconds_or_a_date():
    headers = {
        "3": 3.0,
        "-1": 0.0,
        "Wed, 21 Oct 2015 07:28:00 GMT": 0.0,
        "nan": None,
        "soon": None,
        None: None,
    }
    assert {header: parse_retry_after(header) for header in headers} == headers
