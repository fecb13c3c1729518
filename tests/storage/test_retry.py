import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.storage import Gate, Retrier, RetryPolicy
from ray_app.storage.fetch import CancelledError
from ray_app.storage.listing import in_order


@given(st.integers(1, 12), st.floats(0.01, 5), st.floats(0.01, 60), st.floats(0, 1, exclude_max=True))
def test_pauses_are_bounded_and_one_fewer_than_attempts(attempts, base_s, cap_s, chance):
    policy = RetryPolicy(attempts=attempts, base_s=base_s, cap_s=cap_s)
    pauses = list(policy.pauses(lambda: chance))
    assert len(pauses) == attempts - 1
    assert all(0 <= pause <= cap_s for pause in pauses)


def test_what_will_not_pass_is_asked_once():
    asked = []

    def ask(left: float) -> None:
        asked.append(left)
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError):
        Retrier(RetryPolicy(), sleep=lambda _: None).call(ask)
    assert len(asked) == 1


def test_an_error_that_is_not_about_storage_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError):
        Retrier(RetryPolicy(), sleep=lambda _: None).call(lambda _: 1 // 0)


def test_cancelled_while_waiting():
    cancelled = threading.Event()
    cancelled.set()

    def ask(left: float) -> None:
        raise ConnectionResetError

    with pytest.raises(CancelledError):
        Retrier(RetryPolicy()).call(ask, cancelled)


def test_gate_halves_and_recovers():
    gate = Gate(8)
    for _ in range(2):
        with pytest.raises(OSError, match="slow"), gate:
            raise throttled()
    assert gate.open == 2
    for _ in range(100):
        with gate:
            pass
    assert gate.open == 8


def test_gate_never_closes():
    gate = Gate(2)
    for _ in range(5):
        with pytest.raises(OSError, match="slow"), gate:
            raise throttled()
    assert gate.open == 1


def throttled() -> OSError:
    error = OSError("slow down")
    error.response = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
    return error


class TestInOrder:
    @given(st.lists(st.lists(st.integers(), max_size=5), max_size=8), st.integers(1, 4), st.integers(1, 3))
    def test_is_the_concatenation(self, parts, at_once, ahead):
        mixed = (part if index % 2 else iter(part) for index, part in enumerate(parts))
        assert list(in_order(mixed, at_once=at_once, ahead=ahead)) == [item for part in parts for item in part]

    def test_parts_run_side_by_side(self):
        both = threading.Barrier(2, timeout=20)

        def part(name):
            both.wait()
            yield name

        assert list(in_order(iter([part("a"), part("b")]), at_once=2, ahead=1)) == ["a", "b"]

    def test_an_error_comes_out_at_its_place(self):
        def broken():
            yield 2
            raise ConnectionError("lost")

        found = in_order(iter([iter([1]), broken(), iter([3])]), at_once=3, ahead=2)
        assert [next(found), next(found)] == [1, 2]
        with pytest.raises(ConnectionError, match="lost"):
            next(found)
