"""Files that go to S3 in parts."""

import pickle

import pytest

from ray_app.errors import StorageError
from ray_app.storage import Store
from ray_app.storage import s3 as requests


def test_the_file_system_is_that_of_its_endpoint_and_crosses_processes_without_secrets(s3, monkeypatch):
    fs = requests.filesystem()
    assert requests.filesystem() is fs
    s3.bucket("crossing")
    requests.put("crossing", "a", b"x", timeout_s=10)
    pickled = pickle.dumps(fs)
    assert b"testing-secret" not in pickled
    assert pickle.loads(pickled).cat_file("crossing/a") == b"x"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert requests.filesystem() is not fs


@pytest.fixture(scope="module")
def bucket(s3):
    return s3.bucket("uploads")


@pytest.fixture
def in_small_parts(monkeypatch):
    monkeypatch.setattr(requests.put_file, "__defaults__", (5 * 2**20,))  # the least that S3 takes


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (11 * 2**12))  # 11 MiB: two full parts and a rest
    return path


def test_a_file_in_parts_is_one_object(bucket, s3, large, in_small_parts):
    s3.clear_log()
    Store.open(bucket).write_file("a/large", large)
    assert Store.open(bucket).read("a/large") == large.read_bytes()
    assert [request.method for request in s3.requests()].count("PUT") == 3


def test_a_failed_upload_leaves_nothing(bucket, s3, large, in_small_parts, monkeypatch):
    def refuses(*arguments, **options):
        raise PermissionError("denied")

    monkeypatch.setattr(requests, "put_part", refuses)
    with pytest.raises(StorageError, match="cannot write"):
        Store.open(bucket).write_file("b/large", large)
    assert not Store.open(bucket).exists("b/large")
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket="uploads")


def test_a_lost_answer_to_the_last_request_is_no_failure(bucket, large, in_small_parts, monkeypatch):
    end, asked = requests.end_upload, []

    def loses_its_first_answer(*arguments, **options):
        asked.append(end(*arguments, **options))
        if len(asked) == 1:
            raise ConnectionResetError("gone")

    monkeypatch.setattr(requests, "end_upload", loses_its_first_answer)
    Store.open(bucket).write_file("c/large", large)
    assert Store.open(bucket).read("c/large") == large.read_bytes()
