"""Many files go with one request where a store can, and none that stays is passed over in silence."""

import pytest

from ray_app.errors import StorageError
from ray_app.storage import Store
from tests.make.servers import faulty_proxy
from tests.make.servers.faulty import error_body

NAMES = [f"parts/{number:04}.parquet" for number in range(6)] + ["parts/a b&c<é>.parquet"]


@pytest.fixture(scope="module")
def bucket(s3):
    return s3.bucket("deleted-from")


def filled(url):
    store = Store.open(url)
    for name in NAMES:
        store.write(name, b"rows")
    return store


class Refusing(faulty_proxy.FaultyProxy):
    """Before a real S3 server: `answers` what requests that delete many get, one after another;
    what is behind them passes.
    """

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


@pytest.fixture
def refusing(s3, monkeypatch):
    """Puts such a proxy before the server."""

    def before(*answers):
        proxy = Refusing(s3.url, *answers)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return proxy

    return before


def stayed(code, key="run/parts/0003.parquet"):
    said = f"<Error><Key>{key}</Key><Code>{code}</Code><Message>of the test</Message></Error>"
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    return 200, f'<DeleteResult xmlns="{namespace}">{said}</DeleteResult>'.encode()


@pytest.mark.parametrize("place", ["s3", "disk", "memory"])
def test_delete_all_deletes_the_named_files_alone(place, bucket, tmp_path):
    urls = {"s3": f"{bucket}/all", "disk": str(tmp_path / "all"), "memory": "memory://all"}
    store = filled(urls[place])
    store.write("other/0000.parquet", b"")
    store.delete_all([*NAMES[:-2], "parts/not-there.parquet"])
    assert store.names("parts") == sorted(name.removeprefix("parts/") for name in NAMES[-2:])
    store.delete_all(NAMES)
    store.delete_all([])
    assert store.names("parts") == []
    assert store.names("other") == ["0000.parquet"]


def test_delete_all_names_a_file_that_stays(bucket, refusing):
    store = filled(f"{bucket}/run")
    denied = r"of the test: run/parts/0003.parquet \(AccessDenied"
    with refusing(stayed("AccessDenied")), pytest.raises(StorageError, match=denied):
        store.delete_all(NAMES)
    with refusing(stayed("NoSuchKey")):
        store.delete_all(NAMES)


def test_delete_all_tries_again_what_may_pass(bucket, refusing):
    store = filled(f"{bucket}/again")
    with refusing(stayed("InternalError"), stayed("SlowDown")) as proxy:
        store.delete_all(NAMES)
        assert proxy.batches == 3
        assert store.names("parts") == []


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "MissingContentMD5")])
def test_delete_all_deletes_singly_if_the_store_cannot(status, code, bucket, refusing):
    store = filled(f"{bucket}/singly")
    with refusing((status, error_body(code, "of the test"))) as proxy:
        store.delete_all(NAMES)
        assert store.names("parts") == []
        store.delete_all(NAMES)
        assert proxy.batches == 1, "it is not asked a second time"
