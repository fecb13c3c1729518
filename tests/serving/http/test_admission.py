"""Who is let in: the pace of a server from its answers, by a clock of the test; places and queues,
asked of a real server.
"""

import asyncio
import heapq
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st

from ray_app.serving.http.app import QUEUED
from ray_app.serving.http.auth import Paths
from ray_app.serving.http.errors import install_handlers
from ray_app.serving.http.limits import Admission, ServicePace
from tests.serving.http.guarded_app import make_app
from tests.serving.http.live import Reply, ask, connected, request, serving, wait_for
from tests.serving.http.test_limits import Clock, config

DEADLINE_S = 30.0
SINGLES = (20.0,) * 5  # a quiet endpoint


def admission(app, max_requests, longest_wait_s, clock):
    """That looks at no bodies."""
    return Admission(app, max_requests, longest_wait_s=longest_wait_s, max_body_bytes=10**9, max_in_flight=10**9,
                     queued=Paths(QUEUED), uncounted=Paths(()), clock=clock)  # fmt: skip


class Simulated:
    """A first-come, first-served server of `lanes` that take `service_s` each, before it an
    Admission; time is the test's.
    """

    def __init__(self, service_s, lanes=1):
        self.clock, self.service_s = Clock(), service_s
        self.admission = admission(None, 10**6, DEADLINE_S / 2, self.clock)
        self.free, self.ends = [0.0] * lanes, []

    def pass_time(self, until):
        while self.ends and self.ends[0] <= until:
            self.clock.now = heapq.heappop(self.ends)
            self.admission.pace.end(1)
        self.clock.now = until

    def arrive(self):
        """(let in, seconds that it waits or would have waited)."""
        wait_s = max(self.free[0] - self.clock.now, 0.0)
        if self.admission.refusal(queued=True):
            return False, wait_s
        self.admission.pace.begin()
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
def test_none_that_is_let_in_misses_its_deadline_and_none_is_refused_that_would_be_in_time(
    service_s, gaps
):
    server = Simulated(service_s)
    list(server.visit([DEADLINE_S] * 5))
    for let_in, wait_s in server.visit(gaps):
        assert wait_s + service_s <= DEADLINE_S + 1e-6 if let_in else wait_s > DEADLINE_S / 2 - 1e-6


def test_a_quiet_endpoint_takes_a_burst_and_nothing_is_assumed_before_it_was_seen():
    assert all(let_in for let_in, _ in Simulated(2.4).visit([*SINGLES, *[0.0] * 6]))
    assert all(let_in for let_in, _ in Simulated(20.0).visit([0.0] * 50))


@pytest.mark.parametrize(("lanes", "service_s"), [(1, 0.05), (64, 1.0)])
def test_under_load_the_line_grows_to_what_the_lanes_can_do_and_no_further(lanes, service_s):
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


def worked(pace, clock, times, each_s=0.1):
    for _ in range(times):
        pace.begin()
        clock.now += each_s
        pace.end(1)


@pytest.mark.parametrize("given_up", [0, 1], ids=["still waiting", "one was cut at its deadline"])
def test_a_server_that_stands_still_is_noticed_and_forgiven(given_up):
    clock = Clock()
    pace = ServicePace(15.0, clock)
    worked(pace, clock, 100)
    for _ in range(20):
        pace.begin()
    assert pace.wait_s() == pytest.approx(2.0)
    clock.now += 30
    for _ in range(given_up):
        pace.end(0)
    assert pace.wait_s() > 50
    while pace.at_work:
        pace.end(0)
    worked(pace, clock, 600)
    for _ in range(20):
        pace.begin()
    assert pace.wait_s() < 4


POST = request("POST", "/v1/score", "Content-Length: 3", body=b"abc")


def test_a_line_that_is_too_long_is_told_when_it_will_be_shorter():
    app, clock, may_answer = FastAPI(), Clock(), threading.Event()
    install_handlers(app)

    @app.post("/v1/score")
    async def score(request: Request) -> None:
        await request.body()
        await asyncio.to_thread(may_answer.wait, 10)
        clock.now += 0.2

    with serving(admission(app, 64, 0.7, clock)) as port:
        may_answer.set()
        for _ in range(4):
            assert ask(port, POST).status == 200
        may_answer.clear()
        with ThreadPoolExecutor(16) as threads:
            asked = [threads.submit(ask, port, POST) for _ in range(16)]
            wait_for(lambda: sum(one.done() for one in asked) >= 10)
            may_answer.set()
        replies = [one.result() for one in asked]
        assert 3 <= sum(reply.status == 200 for reply in replies) <= 6
        refused = [reply for reply in replies if reply.status != 200]
        assert {
            (reply.status, reply.json["code"], reply.headers["retry-after"]) for reply in refused
        } == {(503, "overloaded", "1")}
        # What waits for nobody is not asked to wait for them.
        assert ask(port, request("GET", "/v1/nothing")).status == 404


def test_one_too_many_is_told_to_come_back_and_probes_are_answered():
    app = make_app(config(max_requests=2, deadline_s=20))
    with serving(app) as port:
        at_work = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for connection in at_work:
            connection.sendall(request("GET", "/v1/slow"))
        wait_for(lambda: app.state.began == 2)
        with connected(port) as connection:
            connection.sendall(request("POST", "/v1/score", "Content-Length: 100000"))
            reply = Reply(connection)
            assert (reply.status, reply.json["code"], reply.headers["connection"]) == (
                503,
                "overloaded",
                "close",
            )
            assert 1 <= int(reply.headers["retry-after"]) <= 30
        assert ask(port, request("GET", "/healthz")).status == 200
        at_work[0].close()
        wait_for(
            lambda: (
                ask(port, request("POST", "/v1/score", "Content-Length: 2", body=b"ab")).status
                == 200
            )
        )
        at_work[1].close()


def test_bodies_that_drip_take_no_place_and_are_bounded_too():
    with serving(make_app(config(max_requests=2, deadline_s=20))) as port:
        dripping = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
        for connection in dripping[:3]:
            connection.sendall(request("POST", "/v1/score", "Content-Length: 100", body=b"x"))
        wait_for(lambda: ask(port, POST).status == 200)
        dripping[3].sendall(request("POST", "/v1/score", "Content-Length: 100", body=b"x"))
        wait_for(lambda: ask(port, POST).status == 503)
        assert ask(port, request("GET", "/v1/fault/image")).status == 422, (
            "what sends nothing has its place"
        )
        for connection in dripping:
            connection.close()
        wait_for(lambda: ask(port, POST).status == 200)


def test_one_whose_place_is_gone_when_its_body_has_come_is_told_so():
    app = make_app(config(max_requests=1, deadline_s=20))
    body = b"an image"
    with serving(app) as port, connected(port) as late, connected(port) as other:
        late.sendall(request("POST", "/v1/score", f"Content-Length: {len(body)}", body=body[:-1]))
        wait_for(lambda: _sending(app) == 1)
        other.sendall(request("GET", "/v1/slow"))
        wait_for(lambda: app.state.began == 1)
        late.sendall(body[-1:])
        reply = Reply(late)
        assert (reply.status, reply.json["code"]) == (503, "overloaded")
        assert "connection" not in reply.headers, "its body was read: the connection can be kept"


def _sending(app):
    layer = app.middleware_stack
    while layer is not None and not isinstance(layer, Admission):
        layer = getattr(layer, "app", None)
    return layer.sending if layer else 0
