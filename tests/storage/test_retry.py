import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.storage import Gate, Retrier, RetryPolicy
from ray_app.storage.fetch import CancelledError
from ray_app.storage.listing import in_order


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), ZeroDivisionError("not about storage")])
def test_what_will_not_pass_is_asked_once_and_comes_out_as_it_is(error):
    asked = []

    def ask(left: float) -> None:
        asked.append(left)
        raise error

    with pytest.raises(type(error)) as caught:
        Retrier(RetryPolicy(), sleep=lambda _: None).call(ask)
    assert caught.value is error
    assert len(asked) == 1


def test_cancelled_while_waiting():
    cancelled = threading.Event()
    cancelled.set()

    def ask(left: float) -> None:
        raise ConnectionResetError

    with pytest.raises(CancelledError):
        Retrier(RetryPolicy()).call(ask, cancelled)


def test_gate_halves_recovers_and_never_closes():
    gate = Gate(8)
    for expected in (4, 2, 1, 1):
        with pytest.raises(OSError, match="slow"), gate:
            raise throttled()
        assert gate.open == expected
    for _ in range(100):
        with gate:
            pass
    assert gate.open == 8


def throttled() -> OSError:
    error = OSError("slow down")
    error.response = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
    return error


class TestInOrder:
    @given(st.lists(st.lists(st.integers(), max_size=5), max_size=8), st.integers(1, 4), st.integers(1, 3))
    def test_is_the_concatenation(self, parts, at_once, ahead):
        mixed = (part if index % 2 else iter(part) for index, part in enumerate(parts))
        assert list(in_order(mixed, at_once=at_once, ahead=ahead)) == [item for part in parts for item in part]

    def test_an_error_comes_out_at_its_place(self):
        def broken():
            yield 2
            raise ConnectionError("lost")

        found = in_order(iter([iter([1]), broken(), iter([3])]), at_once=3, ahead=2)
        assert [next(found), next(found)] == [1, 2]
        with pytest.raises(ConnectionError, match="lost"):
            next(found)
