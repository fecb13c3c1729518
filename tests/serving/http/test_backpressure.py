"""Which requests get a place: the estimated wait, by a clock of the test, and places of a real
server.
"""

import asyncio
import heapq
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st

from ray_app.serving.http.app import QUEUED
from ray_app.serving.http.auth import Paths
from ray_app.serving.http.errors import install_handlers
from ray_app.serving.http.limits import Backpressure
from ray_app.serving.refusal import Refusal
from tests.serving.http.live import Clock, Reply, ask, connected, request, serving, wait_for

DEADLINE_S = 30.0
SINGLES = (20.0,) * 5  # a quiet endpoint


def backpressure(app, max_requests, max_wait_s, clock):
    return Backpressure(
        app, max_requests, max_wait_s=max_wait_s, counted=Paths(QUEUED), clock=clock
    )


class Simulated:
    """A first-come, first-served server of `lanes` that take `service_s` each, behind a
    Backpressure; time is the test's.
    """

    def __init__(self, service_s, lanes=1):
        self.clock, self.service_s = Clock(), service_s
        self.places = backpressure(None, 10**6, DEADLINE_S / 2, self.clock)
        self.free, self.ends = [0.0] * lanes, []

    def pass_time(self, until):
        while self.ends and self.ends[0] <= until:
            self.clock.now = heapq.heappop(self.ends)
            self.places.leave(is_answered=True)
        self.clock.now = until

    def arrive(self):
        """(let in, seconds that it waits or would have waited)."""
        wait_s = max(self.free[0] - self.clock.now, 0.0)
        try:
            self.places.require_slot()
        except Refusal:
            return False, wait_s
        self.places.enter()
        end = self.clock.now + wait_s + self.service_s
        heapq.heapreplace(self.free, end)
        heapq.heappush(self.ends, end)
        return True, wait_s

    def visit(self, gaps):
        for gap in gaps:
            self.pass_time(self.clock.now + gap)
            yield self.arrive()


gaps = st.lists(st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 60)), max_size=300)


@given(service_s=st.floats(0.001, DEADLINE_S / 2), gaps=gaps)
def test_admitted_requests_meet_their_deadline(service_s, gaps):
    """A request is refused only if it would wait for longer than half its deadline."""
    server = Simulated(service_s)
    list(server.visit([DEADLINE_S] * 5))
    for let_in, wait_s in server.visit(gaps):
        assert wait_s + service_s <= DEADLINE_S + 1e-6 if let_in else wait_s > DEADLINE_S / 2 - 1e-6


def test_new_endpoint_admits_a_burst():
    assert all(let_in for let_in, _ in Simulated(20.0).visit([0.0] * 50))


@pytest.mark.parametrize(("lanes", "service_s"), [(1, 0.05), (64, 1.0)])
def test_queue_under_load_uses_every_lane(lanes, service_s):
    """Singles show the pace of one lane. Under load that of all is learnt: nobody is late, and
    hardly a lane is idle.
    """
    server = Simulated(service_s, lanes)
    list(server.visit(SINGLES))
    rate = 3 * lanes / service_s
    seen = list(server.visit([1 / rate] * int(60 * rate)))
    assert all(wait_s + service_s < DEADLINE_S for let_in, wait_s in seen if let_in)
    late = seen[len(seen) // 2 :]
    assert sum(let_in for let_in, _ in late) > 0.9 * len(late) / 3
    assert min(wait_s for let_in, wait_s in late if not let_in) > 0.7 * DEADLINE_S / 2


def test_stalled_server_is_noticed_and_forgiven():
    server = Simulated(0.1)
    list(server.visit([0.1] * 100))
    server.pass_time(server.clock.now + 1)
    for _ in range(20):
        server.places.enter()
    assert server.places.estimate_wait_s() == pytest.approx(2.0)
    server.clock.now += 30
    assert server.places.estimate_wait_s() > 30
    while server.places.running:
        server.places.leave(is_answered=False)
    for _ in range(20):
        server.places.enter()
    assert server.places.estimate_wait_s() == pytest.approx(2.0)


POST = request("POST", "/v1/score", "Content-Length: 3", body=b"abc")


def test_request_that_would_wait_too_long_is_refused():
    app, clock, may_answer = FastAPI(), Clock(), threading.Event()
    install_handlers(app)

    @app.post("/v1/score")
    async def score(request: Request) -> None:
        await request.body()
        await asyncio.to_thread(may_answer.wait, 10)
        clock.now += 0.2

    with serving(backpressure(app, 64, 0.7, clock)) as port:
        may_answer.set()
        for _ in range(4):
            assert ask(port, POST).status == 200
        may_answer.clear()
        with ThreadPoolExecutor(16) as threads:
            asked = [threads.submit(ask, port, POST) for _ in range(16)]
            wait_for(lambda: sum(one.done() for one in asked) >= 10)
            may_answer.set()
        replies = [one.result() for one in asked]
        refused = [reply for reply in replies if reply.status != 200]
        assert 3 <= len(replies) - len(refused) <= 6
        for reply in refused:
            assert (reply.status, reply.json["code"]) == (503, "overloaded")
            assert reply.headers["retry-after"] == "1"


@contextmanager
def slow_server(max_requests):
    """A server whose /v1/score answers when the event is set; (port, requests that began, event)."""
    app, may_answer, began = FastAPI(), asyncio.Event(), []
    install_handlers(app)

    @app.post("/v1/score")
    async def score(request: Request) -> str:
        await request.body()
        began.append(request)
        await may_answer.wait()
        return "answered"

    app.add_middleware(Backpressure, max_requests, counted=Paths(QUEUED))
    with serving(app) as port:
        yield port, began, may_answer


def test_request_without_a_place_gets_retry_after():
    with slow_server(2) as (port, began, may_answer), ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(ask, port, POST) for _ in range(2)]
        wait_for(lambda: len(began) == 2)
        with connected(port) as connection:
            connection.sendall(request("POST", "/v1/score", "Content-Length: 100000"))
            reply = Reply(connection)
        assert (reply.status, reply.json["code"]) == (503, "overloaded")
        assert 1 <= int(reply.headers["retry-after"]) <= 30
        assert ask(port, request("GET", "/v1/nothing")).status == 404, "it needs no place"
        may_answer.set()
        assert [one.result().status for one in asked] == [200, 200]
        assert ask(port, POST).status == 200


def test_dripping_body_takes_no_place():
    with slow_server(1) as (port, _, may_answer), connected(port) as dripping:
        may_answer.set()
        dripping.sendall(request("POST", "/v1/score", "Content-Length: 100", body=b"x"))
        for _ in range(3):
            assert ask(port, POST).status == 200


def test_place_taken_during_a_body_refuses_it():
    body = b"an image"
    with slow_server(1) as (port, began, may_answer), connected(port) as late:
        late.sendall(request("POST", "/v1/score", f"Content-Length: {len(body)}", body=body[:-1]))
        with ThreadPoolExecutor(1) as threads:
            other = threads.submit(ask, port, POST)
            wait_for(lambda: began)
            late.sendall(body[-1:])
            reply = Reply(late)
            may_answer.set()
            assert other.result().status == 200
        assert (reply.status, reply.json["code"]) == (503, "overloaded")
        assert "connection" not in reply.headers, "its body was read: the connection can be kept"
