import pytest

from ray_app.storage import Gate


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
