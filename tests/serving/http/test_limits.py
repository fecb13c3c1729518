"""What a request may cost, asked of a real server: bytes, memory, time, and places; and that
refusals come without reading the body.
"""

import asyncio
import select
import threading
import time
from contextlib import ExitStack

import httpx
import pytest

from ray_app.serving.http.auth import Paths
from ray_app.serving.http.limits import Deadline, RateLimit
from tests.serving.http.guarded_app import make_app, with_limits
from tests.serving.http.live import (
    Clock,
    Reply,
    ask,
    chunked,
    connected,
    pour,
    request,
    serving,
    wait_for,
)

KB, MB = 2**10, 2**20
QUICK = request("POST", "/v1/score", "Content-Length: 2", body=b"ab")
SLOW = request("POST", "/v1/score?is_slow=true", "Content-Length: 2", body=b"ab")


def announced(size, *headers, path="/v1/score", body=b""):
    return request("POST", path, f"Content-Length: {size}", *headers, body=body)


@pytest.fixture(scope="module")
def small():
    """A server that accepts bodies of 1 MB, 4 MB together."""
    limits = with_limits(max_body_bytes=MB, max_bytes_in_flight=4 * MB, deadline_s=20)
    with serving(make_app(limits)) as port:
        yield port


@pytest.mark.parametrize("more", [(), ("Expect: 100-continue",)], ids=["plain", "expects 100"])
def test_announced_length_over_the_limit_is_refused(small, more):
    reply = ask(small, announced(10**10, *more))
    assert (reply.status, reply.json["code"]) == (413, "body_too_large")
    assert reply.headers["connection"] == "close"
    assert (reply.json["limit"], reply.json["observed"]) == (MB, 10**10)


def test_limit_of_a_body_is_inclusive(small):
    assert ask(small, announced(MB, body=bytes(MB))).status == 200
    # The route reads no body, so the body is announced only: the server may close meanwhile.
    for length, status in ((MB, 404), (MB + 1, 413)):
        reply = ask(small, announced(length, path="/v1/nothing"))
        assert (reply.status, reply.headers["connection"]) == (status, "close")


def test_chunked_body_is_counted_while_it_streams(small):
    with connected(small) as connection:
        connection.sendall(chunked("/v1/score"))
        sender = threading.Thread(target=pour, args=(connection, bytes(64 * KB), 2 * MB))
        sender.start()
        reply = Reply(connection)
        sender.join()
    assert (reply.status, reply.json["code"]) == (413, "body_too_large")
    assert MB < reply.json["observed"] < MB + 400 * KB


def test_bytes_after_a_false_length_are_no_request(small):
    with connected(small) as connection:
        connection.sendall(announced(10, body=b"0123456789"))
        assert Reply(connection).json["sizes"] == [10]
        connection.sendall(bytes(500))
        assert Reply(connection).status == 400
    for both in (("Content-Length: 3", "Transfer-Encoding: chunked"), ("Content-Length: -1",)):
        assert ask(small, request("POST", "/v1/score", *both, body=b"0\r\n\r\n")).status == 400


def test_compressed_body_is_refused(small):
    for encoding, status in (("gzip", 415), ("deflate, gzip", 415), ("identity", 200)):
        data = announced(1, f"Content-Encoding: {encoding}", body=b"a")
        assert ask(small, data).status == status, encoding


def test_bodies_in_flight_share_a_budget(small):
    """Four uploads hang with 0.95 MB each. Until they leave, half a megabyte has no room."""

    def status_before_body():
        with connected(small) as connection:
            connection.sendall(announced(500 * KB, "Expect: 100-continue"))
            return int(connection.makefile("rb").readline().split()[1])

    with ExitStack() as opened:
        for _ in range(4):
            connection = opened.enter_context(connected(small))
            connection.sendall(announced(950 * KB + 1, body=bytes(950 * KB)))
        wait_for(lambda: status_before_body() == 503)
        reply = ask(small, announced(500 * KB))
        assert reply.json["code"] == "overloaded"
        assert int(reply.headers["retry-after"]) >= 1
    wait_for(lambda: status_before_body() == 100)


def test_dripping_body_is_cut_at_the_deadline():
    with serving(make_app(with_limits(deadline_s=0.5))) as port, connected(port) as connection:
        began = time.monotonic()
        connection.sendall(announced(1000))
        while not select.select([connection], [], [], 0.05)[0]:
            connection.sendall(b"x")
        reply, took = Reply(connection), time.monotonic() - began
    assert (reply.status, reply.json["code"]) == (504, "deadline_exceeded")
    assert reply.headers["connection"] == "close"
    assert reply.json["limit"] == 0.5
    assert 0.5 <= took < 10, "the whole body would drip for fifty seconds"


def test_slow_request_is_cancelled_at_its_deadline():
    app = make_app(with_limits(deadline_s=0.3, max_requests=1))
    with serving(app) as port:
        for times in (1, 2):
            reply = ask(port, SLOW)
            assert (reply.status, reply.json["code"]) == (504, "deadline_exceeded")
            assert "connection" not in reply.headers
            assert (app.state.cancelled, app.state.ended) == (times, times)
            assert ask(port, QUICK).status == 200


def test_work_for_a_client_that_left_is_cancelled():
    app = make_app(with_limits(deadline_s=30, max_requests=1))
    with serving(app) as port:
        for times in (1, 2, 3):
            with connected(port) as connection:
                connection.sendall(SLOW)
                wait_for(lambda times=times: app.state.began == times)
            wait_for(lambda times=times: app.state.cancelled == times, 3)
        with connected(port) as connection:
            connection.sendall(announced(200, body=b"half"))
        wait_for(lambda: ask(port, QUICK).status == 200)


def test_answer_that_has_begun_has_no_deadline():
    done = threading.Event()

    async def lingering(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for is_last in (False, True):
            await asyncio.sleep(0.15)
            await send({"type": "http.response.body", "body": b"piece", "more_body": not is_last})
        await asyncio.sleep(0.15)
        done.set()

    with serving(Deadline(lingering, 0.1)) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "piece" * 2
        assert done.wait(10)


def test_owner_that_waits_as_told_is_admitted(monkeypatch):
    clock, told = Clock(), []
    monkeypatch.setattr(time, "time", clock)

    async def app(scope, receive, send):
        told.append(0)

    async def ask_as(owner):
        async def send(message):
            headers = message.get("headers", ())
            told.extend(int(value) for name, value in headers if name == b"retry-after")

        scope = {"type": "http", "path": "/v1/score", "headers": [], "state": {"owner": owner}}
        await limited(scope, None, send)
        return told[-1]

    async def play():
        assert [await ask_as("a") for _ in range(4)] == [0, 0, 0, 61]
        assert await ask_as("b") == 0, "owners do not share"
        clock.now += 60
        assert await ask_as("a") == 1
        clock.now += 1
        assert [await ask_as("a") for _ in range(4)] == [0, 0, 0, 61]

    limited = RateLimit(app, 3, uncounted=Paths(()))
    asyncio.run(play())
