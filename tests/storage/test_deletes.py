"""Many files go with one request where a store can, and none that stays is passed over in silence."""

import contextlib

import pytest

from ray_app.errors import StorageError
from ray_app.storage import Store, s3
from tests.scoring import faulty_proxy
from tests.storage.faulty_server import error_body

NAMES = [f"parts/{number:04}.parquet" for number in range(12)] + ["parts/a b&c<é>.parquet"]


@pytest.fixture(scope="module")
def bucket(s3):
    return s3.bucket("deleted-from")


def filled(url):
    store = Store.open(url)
    for name in NAMES:
        store.write(name, b"rows")
    return store


class Refusing(faulty_proxy.FaultyProxy):
    """Before a real S3 server: `answers` what requests that delete many get, one after another; what is behind them passes."""

    def __init__(self, upstream, *answers):
        self.answers = list(answers)
        self.batches = 0
        super().__init__(upstream, share=0.0, handler=_Handler)


class _Handler(faulty_proxy.Handler):
    def _asked(self, body):
        owner = self.server.owner
        if self.command == "POST" and "delete" in self.path:
            owner.batches += 1
            if owner.answers:
                status, content = owner.answers.pop(0)
                return status, content, {"content-type": "application/xml"}
        return super()._asked(body)


@contextlib.contextmanager
def refusing(s3, monkeypatch, *answers):
    with Refusing(s3.url, *answers) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def stayed(code, key="run/parts/0003.parquet"):
    said = f"<Error><Key>{key}</Key><Code>{code}</Code><Message>of the test</Message></Error>"
    return 200, f'<?xml version="1.0"?><DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{said}</DeleteResult>'.encode()


@pytest.mark.parametrize("place", ["s3", "disk", "memory"])
def test_all_of_them_go_and_no_others(place, bucket, tmp_path):
    store = filled({"s3": f"{bucket}/all", "disk": str(tmp_path / "all"), "memory": "memory://all"}[place])
    store.write("other/0000.parquet", b"")
    store.delete_all([*NAMES[:-2], "parts/not-there.parquet"])
    assert store.names("parts") == sorted(name.removeprefix("parts/") for name in NAMES[-2:])
    store.delete_all(NAMES)
    store.delete_all([])
    assert store.names("parts") == []
    assert store.names("other") == ["0000.parquet"]


def test_as_many_requests_as_there_are_thousands(s3, bucket, monkeypatch):
    store = filled(f"{bucket}/counted")
    s3.clear_log()
    store.delete_all(NAMES)
    assert [request.method for request in s3.requests()] == ["POST"]
    filled(f"{bucket}/counted")
    monkeypatch.setattr(type(store._backend), "at_once", 5)
    s3.clear_log()
    store.delete_all(NAMES)
    assert [request.method for request in s3.requests()] == ["POST"] * 3
    assert store.names("parts") == []


def test_a_file_that_stays_is_an_error_that_names_it(s3, bucket, monkeypatch):
    store = filled(f"{bucket}/run")
    with (
        refusing(s3, monkeypatch, stayed("AccessDenied")),
        pytest.raises(StorageError, match=r"of the test: run/parts/0003.parquet \(AccessDenied"),
    ):
        store.delete_all(NAMES)
    with refusing(s3, monkeypatch, stayed("NoSuchKey")):
        store.delete_all(NAMES)


def test_one_that_stays_for_a_moment_is_asked_for_again(s3, bucket, monkeypatch):
    store = filled(f"{bucket}/again")
    with refusing(s3, monkeypatch, stayed("InternalError"), stayed("SlowDown")) as proxy:
        store.delete_all(NAMES)
        assert proxy.batches == 3
        assert store.names("parts") == []


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "MissingContentMD5")])
def test_a_store_that_knows_no_such_request_gets_one_by_one(status, code, s3, bucket, monkeypatch):
    store = filled(f"{bucket}/singly")
    answer = (status, error_body(code, "of the test"))
    with refusing(s3, monkeypatch, answer) as proxy:
        store.delete_all(NAMES)
        assert store.names("parts") == []
        filled(f"{bucket}/singly")
        store.delete_all(NAMES)
        assert proxy.batches == 1, "it is not asked a second time"
        assert store.names("parts") == []


def test_versions_are_of_the_content(bucket, tmp_path):
    for url in (f"{bucket}/versions", str(tmp_path / "versions"), "memory://versions"):
        store = Store.open(url)
        for name in "ab":
            store.write(f"x/{name}", b"one")
        before = store.versions("x")
        assert store.versions("x") == before
        assert set(before) == {"a", "b"}
        store.write("x/a", b"two")
        after = store.versions("x")
        assert after["b"] == before["b"]
        assert after["a"] != before["a"], "as large as before"


def test_s3_says_how_many_at_once():
    assert s3.MOST_DELETED == 1000
