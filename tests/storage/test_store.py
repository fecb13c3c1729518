import os
import pickle
import signal
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from ray_app.errors import ConfigError, StorageError
from ray_app.storage import RetryPolicy, Store, places
from ray_app.storage import store as store_module
from tests.make.file_modes import modes_in, umask
from tests.make.servers import faulty_proxy
from tests.make.servers.faulty import error_body
from tests.storage.contention import check_one_of_eight_creates


@pytest.fixture(scope="module")
def store_bucket(s3):
    return s3.bucket("stores")


@pytest.fixture(params=["path", "file", "s3", "memory"])
def store(request, tmp_path):
    if request.param == "s3":
        return Store.open(f"{request.getfixturevalue('store_bucket')}/{request.node.name}/")
    places = {"path": f"{tmp_path}/a run", "file": f"file://{tmp_path}/b"}
    return Store.open(places.get(request.param, f"memory://{tmp_path}"))


ON_DISK_AND_S3 = pytest.mark.parametrize("store", ["path", "s3"], indirect=True)


def test_store_writes_replaces_lists_and_deletes_files(store, tmp_path):
    assert not store.exists("a/b")
    assert store.names("a") == store.folders("") == []
    store.delete("a/b")
    with pytest.raises(FileNotFoundError):
        store.read("a/b")
    for path in ("manifest/0/b", "manifest/0/a", "manifest/1/c", "run.json"):
        store.write(path, b"old")
    (tmp_path / "of this machine").write_bytes(b"new")
    store.write_file("run.json", tmp_path / "of this machine")
    assert store.read("run.json") == b"new"
    assert (store.exists("run.json"), store.exists("manifest")) == (True, False)
    assert store.names("manifest/0") == ["a", "b"]
    assert (store.names("manifest"), store.names("")) == ([], ["run.json"])
    assert store.folders("manifest") == ["0", "1"]
    copy = pickle.loads(pickle.dumps(store))  # in another process
    assert (copy.url, copy.read("run.json")) == (store.url, b"new")
    store.delete("run.json")
    assert not store.exists("run.json")
    with store.open_file("manifest/0/a") as file:
        file.seek(1)
        assert file.read(2) == b"ld"


@ON_DISK_AND_S3
@pytest.mark.parametrize(
    ("folder", "left"),
    [("a", ["ab"]), ("a/b", ["a", "ab"]), ("", []), ("nothing", ["a", "a/b", "ab"])],
)
def test_store_clear_deletes_nothing_next_to_the_folder(store, folder, left):
    for path in ("a/1", "a/b/2", "a/b/c/3", "ab/4", "5"):
        store.write(path, b"x")
    store.clear(folder)
    assert [name for name in ("a", "a/b", "ab") if store.names(name)] == left
    assert store.exists("5") == (folder != "")


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_local_files_have_the_mode_of_the_umask(tmp_path, mask):
    store = Store.open(str(tmp_path / "run"))
    (tmp_path / "private").touch(0o600)
    with umask(mask) as mode:
        store.write("a/written", b"x")
        store.write_file("a/copied", tmp_path / "private")
        assert store.create("a/created", b"x")
    assert modes_in(tmp_path / "run") == {mode}


def test_store_create_never_overwrites(store):
    assert store.create("lease/1", b"first")
    assert not store.create("lease/1", b"second")
    assert store.read("lease/1") == b"first"
    # Over a network, whose answer may get lost, a creator recognises its own file.
    assert store.create("lease/1", b"first") == ("://" in store.url)


@ON_DISK_AND_S3
def test_store_create_of_eight_at_once_succeeds_for_one(store):
    check_one_of_eight_creates(store)


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_store_create_whose_answer_was_lost_succeeds(store, monkeypatch):
    real_put = S3FileSystem._pipe_file

    async def answer_lost(*args, **kwargs):
        await real_put(*args, **kwargs)
        monkeypatch.setattr(S3FileSystem, "_pipe_file", real_put)
        raise ConnectionResetError

    monkeypatch.setattr(S3FileSystem, "_pipe_file", answer_lost)
    assert store.create("a", b"ours, with a token")


@pytest.fixture
def large(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "PART_BYTES", 5 * 2**20)  # the least that S3 takes
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (11 * 2**12))  # 11 MiB: two full parts and a rest
    return path


def test_store_uploads_a_large_file_in_parts_as_one_object(store_bucket, s3, large):
    s3.clear_log()
    Store.open(store_bucket).write_file("a/large", large)
    assert Store.open(store_bucket).read("a/large") == large.read_bytes()
    assert [request.method for request in s3.requests()].count("PUT") == 3


@pytest.mark.parametrize(("status", "fails"), [(403, True), (503, False)])
def test_store_upload_that_is_refused_leaves_nothing(
    store_bucket, s3, large, monkeypatch, status, fails
):
    """A refusal that may pass is tried again."""
    expected = pytest.raises(StorageError, match="cannot write") if fails else nullcontext()
    with RefusingProxy(s3.url, status) as proxy, expected:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        Store.open(f"{store_bucket}/{status}").write_file("large", large)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    assert Store.open(f"{store_bucket}/{status}").names("") == ([] if fails else ["large"])
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket="stores")


class RefusingProxy(faulty_proxy.FaultyProxy):
    """Before a real S3 server: the second part of the first upload gets `status`."""

    def __init__(self, upstream, status):
        self.left, self.status = 1, status
        super().__init__(upstream, share=0.0, handler=_Refusing)


class _Refusing(faulty_proxy.Handler):
    def _asked(self, body):
        owner = self.server.owner
        if "partNumber=2" in self.path and owner.left:
            owner.left -= 1
            code = "AccessDenied" if owner.status == 403 else "SlowDown"
            return owner.status, error_body(code, "of the test"), {}
        return super()._asked(body)


class FirstFails(faulty_proxy.FaultyProxy):
    """Before a real S3 server: each request meets a 500 when it comes first, also a HEAD, whose
    answer then says no more than that.
    """

    def __init__(self, upstream):
        super().__init__(upstream, share=0.0)
        self.failed = set()

    def draw(self, request):
        if request in self.failed:
            return None
        self.failed.add(request)
        return "failed"


def test_store_reads_ranges_and_copies_though_requests_fail(
    s3, store_bucket, tmp_path, monkeypatch
):
    table, path = pa.table({"score": range(100_000)}), tmp_path / "rows.parquet"
    pq.write_table(table, path)
    Store.open(f"{store_bucket}/ranges").write_file("rows.parquet", path)
    with FirstFails(s3.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = Store.open(f"{store_bucket}/ranges")
        with store.open_file("rows.parquet") as file, pq.ParquetFile(file) as rows:
            assert rows.read().equals(table)
        store.copy_to("rows.parquet", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()
        assert {"HEAD", "GET"} <= {request.partition(" ")[0] for request in proxy.failed}


@ON_DISK_AND_S3
def test_store_file_that_is_missing_cannot_be_opened(store, tmp_path):
    for open_or_copy in (store.open_file, lambda path: store.copy_to(path, tmp_path / "copy")):
        with pytest.raises(StorageError, match=r"nothing\.parquet"):
            open_or_copy("nothing.parquet")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\0b"])
def test_store_path_outside_the_store_is_refused(tmp_path, path):
    with pytest.raises(ValueError, match="inside the store"):
        Store.open(str(tmp_path)).read(path)


def test_store_file_of_a_killed_writer_is_not_listed(tmp_path):
    if not (child := os.fork()):
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        Store.open(str(tmp_path)).write("part", b"half")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert os.listdir(tmp_path) != []
    store = Store.open(str(tmp_path))
    assert store.names("") == []
    assert not store.exists("part")


def test_store_write_that_fails_leaves_nothing(tmp_path):
    store = Store.open(str(tmp_path))
    (tmp_path / "part").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        store.write("part", b"x")
    assert os.listdir(tmp_path) == ["part"]


def test_store_without_links_still_creates_once(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    store = Store.open(str(tmp_path))
    assert (store.create("a", b"1"), store.create("a", b"2")) == (True, False)
    assert store.read("a") == b"1"
    assert store.names("") == ["a"]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(store_module, "_PATIENCE", RetryPolicy(attempts=3, base_s=0.01))


def explain(use, *args) -> tuple[str, str]:
    """Message and hint of what a call raises."""
    with pytest.raises(StorageError) as caught:
        use(*args)
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 5
    return caught.value.message, caught.value.hint or ""


def test_store_in_a_missing_bucket_names_it(s3, impatient):
    store = Store.open("s3://no-such-bucket/run")
    message, hint = explain(store.write, "run.json", b"{}")
    assert "does not exist" in message
    assert "create bucket 'no-such-bucket'" in hint
    for ask in (store.read, store.names):  # nor is a file missing
        assert "NoSuchBucket" in explain(ask, "run.json")[0]


def test_store_that_denies_names_bucket_and_keys(faulty, impatient):
    faulty.faults["/private/run/a"] = ["denied"]
    message, hint = explain(Store.open("s3://private/run").read, "a")
    assert "Access Denied" in message
    assert "'private'" in hint
    assert "AWS_ACCESS_KEY_ID" in hint


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://127.0.0.1:1", "no server answers at this address"),
        ("http://no.invalid", "its host name does not resolve"),
    ],
)
def test_store_that_is_unreachable_names_its_endpoint(monkeypatch, s3, impatient, endpoint, reason):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    message, hint = explain(Store.open("s3://bucket/run").write, "run.json", b"{}")
    assert f"{reason} (AWS_ENDPOINT_URL is {endpoint})" in message
    assert "'bucket'" in hint


def test_store_without_credentials_names_where_to_set_them(monkeypatch, s3, impatient, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    message, hint = explain(Store.open("s3://bucket/run").write, "run.json", b"{}")
    assert "no usable credentials" in message
    assert "AWS_PROFILE" in hint


def test_store_url_shows_no_secrets(tmp_path):
    store = Store.open("memory://user:pass@place/run")
    assert "pass" not in store.url + repr(store)
    with pytest.raises(ConfigError, match="credentials do not belong") as caught:
        Store.open("s3://key:s3cr3t@bucket/run")
    assert "s3cr3t" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "message"), [("nope://x/y", "nope"), ("s3://", "is not the name of a bucket")]
)
def test_store_url_that_is_not_one_is_refused(url, message):
    with pytest.raises(ConfigError, match=message):
        Store.open(url).exists("a")


def test_store_folder_may_have_two_colons(tmp_path):
    store = Store.open(str(tmp_path / "run::1"))
    store.write("parts/a", b"here")
    assert store.local_path("parts/a").read_bytes() == b"here"
    with store.open_file("parts/a") as file:
        assert file.read() == b"here"
