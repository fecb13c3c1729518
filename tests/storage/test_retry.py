import pytest

from ray_app.storage import Gate, Retrier, RetryPolicy


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
