"""A client that waits as long as it is told is let in; one that does not, is not; owners do not share, and do not fill memory."""

import httpx
import pytest
from fastapi import FastAPI

from ray_app.serving.http.access import Paths
from ray_app.serving.http.rates import Allowance, RateLimit
from tests.serving.http.live import serving


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("per_minute", [1, 7, 60, 90, 6000])
def test_who_waits_as_told_is_let_in_and_one_second_less_is_not_enough(per_minute):
    clock = Clock()
    allowance = Allowance(per_minute, clock)
    while not (wait := allowance.take("a")):
        pass
    for _ in range(5):
        if wait > 1:
            clock.now += wait - 1
            assert allowance.take("a") == 1
            wait = 1
        clock.now += wait
        assert allowance.take("a") == 0
        while not (wait := allowance.take("a")):
            pass


@pytest.mark.parametrize("per_minute", [1, 60, 600])
def test_over_an_hour_no_more_than_allowed(per_minute):
    clock = Clock()
    allowance = Allowance(per_minute, clock)
    let_in = 0
    for _ in range(3600 * 4):
        let_in += allowance.take("a") == 0
        clock.now += 0.25
    burst = max(1, per_minute / 6)
    rate = min(per_minute / 60, 4)
    assert rate * 3600 - 1 <= let_in <= rate * 3600 + burst


def test_owners_do_not_share_and_are_forgotten():
    clock = Clock()
    allowance = Allowance(1, clock)
    assert allowance.take("a") == 0
    assert allowance.take("b") == 0
    assert allowance.take("a") == 60
    for number in range(10_000):
        allowance.take(f"owner {number}")
    assert len(allowance._left) == 4096


def test_the_answer_says_when(tmp_path):
    app = FastAPI()
    app.get("/v1/x")(lambda: "x")
    app.get("/healthz")(lambda: "well")
    clock = Clock()
    guarded = RateLimit(app, 2, uncounted=Paths(["/healthz"]), clock=clock)
    with serving(guarded) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/v1/x").status_code == 200
        refused = client.get("/v1/x")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "30"
        assert refused.json()["code"] == "too_many_requests"
        assert refused.json()["limit"] == 2
        assert {client.get("/healthz").status_code for _ in range(5)} == {200}
        clock.now += 30
        assert client.get("/v1/x").status_code == 200
