import pickle
from datetime import UTC, datetime

import pytest

from ray_app.storage import s3 as requests


@pytest.mark.parametrize(
    "text",
    ["2026-01-02T03:04:05.000Z", "2026-01-02T03:04:05Z", "Fri, 02 Jan 2026 03:04:05 GMT", "1767323045", 1767323045, "20260102T030405Z"],
)
def test_dates_in_answers(text):
    assert requests._timestamp(text) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_the_file_system_is_shared_and_crosses_processes_without_secrets(s3):
    fs = requests.filesystem()
    assert requests.filesystem() is fs
    s3.bucket("crossing")
    requests.put("crossing", "a", b"x", timeout_s=10)
    pickled = pickle.dumps(fs)
    assert b"testing-secret" not in pickled
    assert pickle.loads(pickled).cat_file("crossing/a") == b"x"


def test_another_endpoint_is_another_client(s3, monkeypatch):
    fs = requests.filesystem()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert requests.filesystem() is not fs
