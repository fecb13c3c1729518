"""What a request may cost, asked of a real server: bytes, memory, time and places; and that
refusals come without reading on.

A client that waits as long as it is told is let in; one that does not, is not; owners do not share,
and do not fill memory.
"""

import asyncio
import select
import socket
import threading
import time
import tracemalloc
from contextlib import suppress

import httpx
import pytest

from ray_app.serving.config import ServeConfig
from ray_app.serving.http.auth import Paths
from ray_app.serving.http.limits import Deadline, RateLimit
from tests.serving.http.guarded_app import make_app
from tests.serving.http.live import Reply, ask, connected, request, serving, wait_for

KB, MB = 2**10, 2**20


def config(**limits) -> ServeConfig:
    return ServeConfig.model_validate({"limits": limits})


@pytest.fixture(scope="module")
def small():
    """A server that takes bodies of 1 MB, 4 MB together."""
    with serving(
        make_app(config(max_body_bytes=MB, max_bytes_in_flight=4 * MB, deadline_s=20))
    ) as port:
        yield port


def chunked(path: str, *headers: str) -> bytes:
    return request("POST", path, "Transfer-Encoding: chunked", *headers)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def pour(connection: socket.socket, piece: bytes, total: int) -> int:
    """Sends chunks until the server stops reading; the bytes that it took."""
    sent = 0
    with suppress(OSError):
        while sent < total:
            connection.sendall(chunk(piece))
            sent += len(piece)
    return sent


@pytest.mark.parametrize("more", [(), ("Expect: 100-continue",)], ids=["", "asks first"])
def test_an_announced_length_over_the_limit_is_refused_before_a_byte_is_sent(small, more):
    with connected(small) as connection:
        connection.sendall(request("POST", "/v1/score", f"Content-Length: {10**10}", *more))
        reply = Reply(connection)
        assert (reply.status, reply.json["code"], reply.headers["connection"]) == (
            413,
            "body_too_large",
            "close",
        )
        assert (reply.json["limit"], reply.json["observed"]) == (MB, 10**10)
        assert reply.closed


def test_the_limit_is_inclusive(small):
    assert (
        ask(small, request("POST", "/v1/score", f"Content-Length: {MB}", body=bytes(MB))).status
        == 200
    )
    # Nobody reads these bodies: they are announced only, or the server may close while they are
    # being sent.
    for length, status in ((MB, 404), (MB + 1, 413)):
        assert (
            ask(small, request("POST", "/v1/nothing", f"Content-Length: {length}")).status == status
        )


def test_a_chunked_body_is_counted_while_it_streams(small):
    with connected(small) as connection:
        connection.sendall(chunked("/v1/score"))
        sender = threading.Thread(target=pour, args=(connection, bytes(64 * KB), 2 * MB))
        sender.start()
        reply = Reply(connection)
        sender.join()
        assert (reply.status, reply.json["code"]) == (413, "body_too_large")
        assert MB < reply.json["observed"] < MB + 400 * KB
        assert reply.headers["connection"] == "close"


def test_a_false_length_is_the_end_of_the_body_and_the_rest_no_request(small):
    with connected(small) as connection:
        connection.sendall(request("POST", "/v1/score", "Content-Length: 10", body=b"0123456789"))
        assert Reply(connection).json["sizes"] == [10]
        connection.sendall(bytes(500))
        assert Reply(connection).status == 400
    for both in (("Content-Length: 3", "Transfer-Encoding: chunked"), ("Content-Length: -1",)):
        assert ask(small, request("POST", "/v1/score", *both, body=b"0\r\n\r\n")).status == 400


def test_a_compressed_body_is_refused(small):
    for encoding, status in (("gzip", 415), ("deflate, gzip", 415), ("identity", 200)):
        assert (
            ask(
                small,
                request(
                    "POST",
                    "/v1/score",
                    "Content-Length: 1",
                    f"Content-Encoding: {encoding}",
                    body=b"a",
                ),
            ).status
            == status
        )


def test_a_refused_route_does_not_read_its_body_either(small):
    with connected(small) as connection:
        connection.sendall(request("POST", "/v1/nothing", f"Content-Length: {MB}", body=bytes(KB)))
        reply = Reply(connection)
        assert (reply.status, reply.headers["connection"]) == (404, "close")
        assert reply.closed


def test_bodies_at_work_share_a_budget_and_give_it_back(small):
    """Four uploads hang with 0.95 MB each: there is no room for half a megabyte until they leave."""
    hanging = [socket.create_connection(("127.0.0.1", small)) for _ in range(4)]
    for connection in hanging:
        connection.sendall(
            request("POST", "/v1/score", f"Content-Length: {950 * KB + 1}", body=bytes(950 * KB))
        )
    wait_for(lambda: _status_before_body(small) == 503)
    with connected(small) as connection:
        connection.sendall(request("POST", "/v1/score", f"Content-Length: {500 * KB}"))
        reply = Reply(connection)
    assert reply.json["code"] == "overloaded"
    assert int(reply.headers["retry-after"]) >= 1
    for connection in hanging:
        connection.close()
    wait_for(lambda: _status_before_body(small) == 100)


def _status_before_body(port: int) -> int:
    """The status that comes without the body being sent; 100 if the server wants it."""
    with connected(port) as connection:
        connection.sendall(
            request("POST", "/v1/score", f"Content-Length: {500 * KB}", "Expect: 100-continue")
        )
        return int(connection.makefile("rb").readline().split()[1])


def test_memory_stays_bounded_while_80_mb_are_poured_in():
    piece = bytes(256 * KB)
    with serving(make_app(config(max_body_bytes=MB))) as port:
        assert ask(port, request("GET", "/healthz")).status == 200
        tracemalloc.start()
        try:
            with connected(port) as connection:
                connection.sendall(chunked("/v1/score"))
                assert pour(connection, piece, 80 * MB) < 40 * MB, "it read on after its refusal"
            assert tracemalloc.get_traced_memory()[1] < 16 * MB
        finally:
            tracemalloc.stop()
        assert ask(port, request("GET", "/healthz")).status == 200


def test_a_dripping_body_is_cut_at_the_deadline():
    with serving(make_app(config(deadline_s=0.5))) as port, connected(port) as connection:
        began = time.monotonic()
        connection.sendall(request("POST", "/v1/score", "Content-Length: 1000"))
        while not select.select([connection], [], [], 0.05)[0]:
            connection.sendall(b"x")
        reply, took = Reply(connection), time.monotonic() - began
    assert (reply.status, reply.json["code"], reply.headers["connection"]) == (
        504,
        "deadline_exceeded",
        "close",
    )
    assert reply.json["limit"] == 0.5
    assert 0.5 <= took < 10, "all of it would drip for fifty seconds"


QUICK = request("POST", "/v1/score", "Content-Length: 2", body=b"ab")
SLOW = request("POST", "/v1/score?is_slow=true", "Content-Length: 2", body=b"ab")


def test_slow_request_is_cancelled_at_its_deadline():
    app = make_app(config(deadline_s=0.3, max_requests=1))
    with serving(app) as port:
        for times in (1, 2):
            reply = ask(port, SLOW)
            assert (reply.status, reply.json["code"]) == (504, "deadline_exceeded")
            assert "connection" not in reply.headers
            assert (app.state.cancelled, app.state.ended) == (times, times)
            assert ask(port, QUICK).status == 200


def test_work_for_a_client_that_left_is_cancelled_and_its_place_given_back():
    app = make_app(config(deadline_s=30, max_requests=1))
    with serving(app) as port:
        for times in (1, 2, 3):
            with connected(port) as connection:
                connection.sendall(SLOW)
                wait_for(lambda times=times: app.state.began == times)
            wait_for(lambda times=times: app.state.cancelled == times, 3)
        with connected(port) as connection:
            connection.sendall(request("POST", "/v1/score", "Content-Length: 200", body=b"half"))
        wait_for(lambda: ask(port, QUICK).status == 200)


def test_an_answer_that_has_begun_may_take_its_time_and_what_a_route_does_after_it_too():
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


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_who_waits_as_told_is_let_in_and_one_second_less_is_not_enough_and_owners_do_not_share(
    monkeypatch,
):
    clock, told = Clock(), []
    monkeypatch.setattr(time, "time", clock)

    async def app(scope, receive, send):
        told.append(0)

    async def ask_as(owner):
        async def send(message):
            told.extend(
                int(value) for name, value in message.get("headers", ()) if name == b"retry-after"
            )

        await limited(
            {"type": "http", "path": "/v1/score", "headers": [], "state": {"owner": owner}},
            None,
            send,
        )
        return told[-1]

    async def play():
        assert [await ask_as("a") for _ in range(4)] == [0, 0, 0, 61]
        assert await ask_as("b") == 0
        clock.now += 60
        assert await ask_as("a") == 1
        clock.now += 1
        assert [await ask_as("a") for _ in range(4)] == [0, 0, 0, 61]

    limited = RateLimit(app, 3, uncounted=Paths(()))
    asyncio.run(play())
