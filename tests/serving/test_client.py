import os
import time
from collections import deque

import pytest

from ray_app.errors import ClusterError, ConfigError
from ray_app.serving.client import EndpointClient, retry_after
from ray_app.storage import RetryPolicy
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


def test_results_come_in_order_in_as_few_requests_as_the_limits_allow(endpoint):
    assert is_right(scored(endpoint))
    assert [len(request["names"]) for request in endpoint.told] == [4, 4, 2]


def test_requests_keep_below_the_body_limit(endpoint):
    images = [(f"{i}", os.urandom(30_000)) for i in range(7)]
    assert is_right(scored(endpoint, images), images)
    assert [len(request["names"]) for request in endpoint.told] == [3, 3, 1]


def test_paths_are_read_and_only_their_last_part_is_told(endpoint, tmp_path):
    path = tmp_path / "a" / 'o"dd\n.jpg'
    path.parent.mkdir()
    path.write_bytes(b"hello")
    (result,) = scored(endpoint, [path], ensemble="published", masks=True)
    assert result["name"] == str(path)
    assert result["score"] == score_of(b"hello")
    assert str(tmp_path) not in str(endpoint.told)
    assert endpoint.told[0]["query"] == {"ensemble": "published", "masks": "true"}


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
def test_what_passes_is_asked_again(endpoint, trouble):
    endpoint.script = deque([trouble, trouble, None])
    assert is_right(scored(endpoint, FILES[:1]), FILES[:1])
    assert len(endpoint.told) == 3


def test_a_busy_endpoint_is_asked_again_when_it_says(endpoint):
    endpoint.script = deque([refuse(503, Retry_After="0.3")])
    endpoint.describing = deque([refuse(503, "not_ready", Retry_After="0")] * 5)
    begin = time.monotonic()
    assert is_right(scored(endpoint))
    assert time.monotonic() - begin >= 0.3


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (refuse(503, Retry_After="0"), "said overloaded"),
        (refuse(502), "answered 502"),
        (refuse(429, "too_many_requests", Retry_After="3600"), "come back in 36"),
    ],
)
def test_patience_ends(endpoint, last, says):
    endpoint.script = deque([last] * 100_000)
    refused(endpoint.url, ClusterError, says, patience=QUICK.model_copy(update={"deadline_s": 0.3}))


def test_a_refused_file_is_a_result_and_spoils_no_other(endpoint, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    big = tmp_path / "big.jpg"
    big.write_bytes(b"x" * 50_001)
    images = [
        ("a", b"a"),
        ("b", b"bad"),
        tmp_path / "absent",
        tmp_path / "folder",
        tmp_path / "pipe",
        big,
        ("c", b"c"),
        ("d", b"bad one"),
    ]
    results = scored(endpoint, images)
    statuses = [
        "ok",
        "corrupt_image",
        "source_missing",
        "source_denied",
        "source_denied",
        "file_too_large",
        "ok",
        "corrupt_image",
    ]
    assert [one["status"] for one in results] == statuses
    assert all(one.keys() == results[0].keys() for one in results)
    assert all((one["error"] is None) == (one["score"] is not None) for one in results)
    assert (results[5]["error"]["limit"], results[5]["error"]["observed"]) == (50_000, 50_001)
    assert results[6]["score"] == score_of(b"c")


def test_a_request_that_is_refused_for_one_file_is_asked_in_halves(endpoint):
    endpoint.refuses_together = [FILES[2][1]]
    assert is_right(scored(endpoint))
    assert [request["names"] for request in endpoint.told[:5]] == [
        ["0.jpg", "1.jpg", "2.jpg", "3.jpg"], ["0.jpg", "1.jpg"], ["2.jpg", "3.jpg"], ["2.jpg"], ["3.jpg"],
    ]  # fmt: skip


def test_a_file_that_breaks_the_endpoint_every_time_is_a_result(endpoint):
    endpoint.script = deque([refuse(500, "internal_error")] * 4)
    results = scored(endpoint, FILES[:1]) + scored(endpoint, FILES[1:2])
    assert [one["status"] for one in results] == ["internal_error", "ok"]


def test_the_token_is_sent_and_a_wrong_one_is_an_error(endpoint):
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
def test_what_is_no_endpoint_is_said_at_once(endpoint, described, says):
    endpoint.describing = deque([described])
    refused(endpoint.url, ConfigError, says, at_once=True)


def test_what_is_not_served_is_said_before_a_file_is_sent(endpoint):
    error = refused(
        endpoint.url,
        ConfigError,
        "no optional detector 'quick'",
        at_once=True,
        detectors=["slow", "quick"],
    )
    assert "it serves: slow, slower" in error.hint
    assert (
        "default, published"
        in refused(endpoint.url, ConfigError, "publishd", at_once=True, ensemble="publishd").hint
    )
    error = refused(
        endpoint.url, ConfigError, "no operating point with fpr '0.5'", at_once=True, fpr=0.5
    )
    assert "it serves: 0.01" in error.hint
    percentage = refused(endpoint.url, ConfigError, "fraction", at_once=True, fpr=1.0)
    assert percentage.hint == "write 0.01 for 1 %"
    assert not endpoint.told
    assert is_right(scored(endpoint, detectors=["slow", "slower"]))
    assert [request["query"] for request in endpoint.told] == [{"detector": ["slow", "slower"]}] * 3
    endpoint.told.clear()
    assert is_right(scored(endpoint, fpr=0.01))
    assert [request["query"] for request in endpoint.told] == [{"fpr": "0.01"}] * 3


def test_what_is_no_endpoint_and_no_token_is_refused_without_telling_secrets():
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
    assert {header: retry_after(header) for header in headers} == headers
