"""Attempts at a request: which errors are met again, how long the pauses are, and what stops them."""

import threading

import pytest
from botocore.exceptions import ClientError

from ray_app.storage import AdaptiveLimiter, Retrier, RetryPolicy
from ray_app.storage.retry import CancelledError
from tests.storage.client_errors import s3_error


class Server:
    """Raise these errors one after another, then answer; `left` are the seconds that each request
    was given.
    """

    def __init__(self, *errors):
        self.errors, self.left = list(errors), []

    def read(self, timeout_s):
        self.left.append(timeout_s)
        if self.errors:
            raise self.errors.pop(0)
        return b"data"


def read(server, retrier, **options):
    for attempt in retrier.attempts(**options):
        with attempt as timeout_s:
            data = server.read(timeout_s)
    return data


@pytest.fixture
def retrier():
    """A retrier whose clock moves only in pauses, which are as long as they can be."""
    slept = []
    return Retrier(
        RetryPolicy(attempts=4, base_s=1.0, cap_s=2.0, deadline_s=100.0),
        sleep=slept.append,
        clock=lambda: sum(slept),
        chance=lambda: 1.0,
    )


def test_request_is_repeated_within_its_deadline(retrier):
    errors = s3_error("SlowDown", 503), ConnectionResetError(), s3_error("InternalError", 500)
    server = Server(*errors)
    assert read(server, retrier) == b"data"
    assert server.left == [100.0, 99.0, 97.0, 95.0]
    assert (retrier.throttled, retrier.retried) == (1, 3)


@pytest.mark.parametrize(
    ("error", "requests"), [(s3_error("InternalError", 500), 4), (s3_error("NoSuchKey", 404), 1)]
)
def test_last_error_is_raised_as_it_is(retrier, error, requests):
    server = Server(*[error] * 9)
    with pytest.raises(ClientError) as caught:
        read(server, retrier)
    assert caught.value is error
    assert len(server.left) == requests


def test_no_pause_goes_beyond_the_deadline():
    server = Server(*[ConnectionResetError()] * 9)
    with pytest.raises(ConnectionResetError):
        read(server, Retrier(RetryPolicy(base_s=9.0, deadline_s=5.0), chance=lambda: 1.0))
    assert len(server.left) == 1


def test_error_of_the_program_ends_the_loop(retrier):
    server = Server(ZeroDivisionError(), None)
    with pytest.raises(ZeroDivisionError):
        read(server, retrier)
    server = Server(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        read(server, retrier)
    assert retrier.retried == 0


def test_cancelled_request_is_not_repeated(retrier):
    cancelled = threading.Event()
    cancelled.set()
    server = Server(ConnectionResetError())
    with pytest.raises(CancelledError):
        read(server, retrier, cancelled=cancelled)
    assert len(server.left) == 1


def test_gate_halves_recovers_and_never_closes():
    gate = AdaptiveLimiter(8)
    for expected in (4, 2, 1, 1):
        with pytest.raises(ClientError), gate:
            raise s3_error("SlowDown", 503)
        assert int(gate._limit) == expected
    for _ in range(100):
        with gate:
            pass
    assert int(gate._limit) == 8


def test_gate_learns_from_each_attempt(retrier):
    gate = AdaptiveLimiter(8)
    read(Server(s3_error("SlowDown", 503), s3_error("SlowDown", 503)), retrier, gate=gate)
    assert (gate.entered, int(gate._limit)) == (3, 2)
