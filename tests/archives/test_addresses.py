"""Addresses come from the user: what lies in an archive names nothing that is fetched, and what a
list names passes a guard.
"""

import base64
import io
import json
import pickle
import socket
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives import (
    BlockPlan,
    MemberReader,
    create_fetcher,
    list_members,
    load_guard,
    open_source,
)
from ray_app.errors import InputError, SourceError, Status, StorageError
from ray_app.storage import Fetcher, RetryPolicy, Store, list_objects, ssrf
from tests.archives.containers import hazards
from tests.archives.given import all_members
from tests.archives.img2dataset import put
from tests.make.servers import clouds
from tests.make.servers.faulty import LOOPBACK
from tests.make.servers.pages import Pages

PLAN = BlockPlan(batch_slots=4, max_block_members=64)


def archive_read(source, **settings):
    """Every member that a source lists, with its bytes or the error; listed and read as by a run."""
    fetcher = create_fetcher([str(source)], RetryPolicy(attempts=1), **settings)
    store = Store.open(f"memory://{uuid.uuid4().hex}")
    list_members(store, open_source([str(source)], fetcher=fetcher), PLAN)
    return list(MemberReader(fetcher, max_bytes=10**6).read(all_members(store)))


def table_of(uris) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"url": uris, "caption": [f"of {uri}" for uri in uris]}), file)
    return file.getvalue()


def lists_of(uris) -> dict[str, bytes]:
    """The same list in every form."""
    rows = [{"url": uri} for uri in uris]
    return {
        "a.parquet": table_of(uris),
        "b.csv": "\n".join(["url", *uris]).encode(),
        "c.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "d.txt": "\n".join(uris).encode(),
    }


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("s3cr3t")
    return path


def test_table_in_an_archive_is_not_followed(tmp_path, secret):
    deep = tmp_path / "in/a/b"
    deep.mkdir(parents=True)
    with Pages() as server:
        metadata = "http://169.254.169.254/latest/meta-data"
        files = lists_of([f"{server.url}/hook", str(secret), metadata, "s3://other/x"])
        (deep / "a.tar").write_bytes(hazards.tar(files))
        (deep / "a.zip").write_bytes(hazards.zipped(files))
        for folder in (tmp_path / "in", deep):
            put(folder, files | {"real.jpg": b"image"})
        found, uris = archive_read(tmp_path / "in"), f"{tmp_path}/in/"
        some = {member.uri for member, _ in archive_read(f"{tmp_path}/in/*")}
        assert some <= {member.uri for member, _ in found}
        assert server.asked == []
    assert len(found) == 2 * 5 + 2 * 4
    assert all(member.uri.startswith(uris) for member, _ in found)
    assert b"s3cr3t" not in [data for _, data in found]
    refused = [data for _, data in found if isinstance(data, InputError)]
    assert [data.status for data in refused] == [Status.UNSUPPORTED_FORMAT] * 2
    assert f"list::{uris}a.parquet" in "".join(data.detail for data in refused)


PRIVATE = [
    "127.0.0.1",
    "localhost",
    "[::1]",
    "169.254.169.254",
    "10.0.0.1",
    "[::ffff:127.0.0.1]",
    "2130706433",
    "0x7f.1",
    "metadata",
]


@pytest.mark.parametrize("name", ["a.parquet", "b.csv", "c.jsonl", "d.txt"])
def test_list_reaches_no_private_host_unless_allowed(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(b"image")
    with Pages() as server:
        port = server.url.rpartition(":")[2]
        uris = ["a.jpg", *(f"http://{host}:{port}/x" for host in PRIVATE)]
        (tmp_path / name).write_bytes(lists_of(uris)[name])
        (image, data), *denied = archive_read(f"list::{tmp_path}/{name}")
        assert server.asked == []
        assert (image.uri, data) == (str(tmp_path / "a.jpg"), b"image")
        assert [data.status for _, data in denied] == [Status.SOURCE_DENIED] * len(PRIVATE)
        assert all("allow_private=true" in data.detail for _, data in denied)
        found = archive_read(f"list::{tmp_path}/{name}", allow_private=True)
        assert {m.uri: data for m, data in found}[f"http://127.0.0.1:{port}/x"] == b"/x"


def test_host_is_looked_up_once_and_checked_before_dialling(monkeypatch):
    with Pages() as server:
        port, asked = int(server.url.rpartition(":")[2]), []

        def lookup(host, port, **_):
            asked.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(ssrf.socket, "getaddrinfo", lookup)
        with pytest.raises(SourceError) as caught:
            Fetcher(RetryPolicy(attempts=3)).fetch(f"http://inner.example.org:{port}/x", "", 100)
        assert caught.value.status == Status.SOURCE_DENIED
        assert (asked, server.asked) == (["inner.example.org."], [])


@pytest.mark.parametrize(
    "place",
    [
        "{other}/hook",
        "//169.254.169.254/latest",
        "http://localhost:1/",
        "file:///etc/hostname",
        "ftp://h/x",
        "http://[bad",
        "",
    ],
)
def test_redirect_leads_to_no_other_server(place):
    with Pages() as other, Pages({"/a.jpg": place.format(other=other.url)}) as server:
        for ask in (
            lambda fetcher: fetcher.fetch(f"{server.url}/a.jpg", "", 100),
            lambda fetcher: fetcher.fetch_range(f"{server.url}/a.jpg", "", 0, 3),
            lambda fetcher: fetcher.size(f"{server.url}/a.jpg", ""),
        ):
            with pytest.raises(SourceError) as caught:
                ask(Fetcher(RetryPolicy(attempts=1), signed=[server.url]))
            assert caught.value.status is Status.SOURCE_DENIED
        assert other.asked == []


def test_redirect_is_followed_to_servers_that_are_allowed():
    with Pages() as other, Pages({"/a.jpg": "/b.jpg", "/c.jpg": f"{other.url}/d.jpg"}) as server:
        named, moved = Fetcher(signed=[server.url]), f"{server.url}/c.jpg"
        assert named.fetch(f"{server.url}/a.jpg", "", 100) == b"/b.jpg"
        assert Fetcher(guard=LOOPBACK).fetch(moved, "", 100) == b"/d.jpg"
        with pytest.raises(StorageError, match="not on the public Internet"):
            list(list_objects(moved))
        assert [info.uri for info in list_objects(moved, LOOPBACK)] == [moved]


def test_redirect_sends_the_password_to_its_own_server_alone():
    with Pages() as other, Pages({"/a": "/b"}) as server:
        server.moved |= {"/b": f"{server.url}/c", "/c": f"{other.url}/d"}
        signed = server.url.replace("://", "://me:p%40w@") + "/a"
        fetcher = Fetcher(guard=LOOPBACK, signed=[signed])
        assert fetcher.fetch(f"{server.url}/a", "", 100) == b"/d"
        assert server.users == [f"Basic {base64.b64encode(b'me:p@w').decode()}"] * 3
        assert other.users == [None]


def test_redirect_in_a_circle_ends():
    with Pages({"/a": "/b", "/b": "/a"}) as server:
        with pytest.raises(SourceError, match="more than 10 times"):
            Fetcher(signed=[server.url]).fetch(f"{server.url}/a", "", 100)
        assert len(server.asked) == 11


def test_list_of_lists_and_archives_opens_none_of_them(tmp_path, secret):
    inner = {"inner.csv": f"uri\n{secret}\n".encode(), "inner.parquet": table_of([str(secret)])}
    inner |= {"inner.zip": hazards.zipped({"a.jpg": b"image"})}
    outer = {"outer.csv": "\n".join(["uri", *inner]).encode(), "outer.parquet": table_of([*inner])}
    put(tmp_path, inner | outer)
    for name in outer:
        found = [(member.uri, member.place, data) for member, data in archive_read(tmp_path / name)]
        assert found == [(str(tmp_path / name), None, data) for name, data in inner.items()]


ODD = [
    *("s3://b", "s3://bucket/", "s3://b/" + "k" * 3000, "hf://x", "hf://datasets/x", "http://"),
    *("http://[::1", "http://h:99999/", "gs://b/k", "az://c/k", "x" * 5000, "/", "."),
    *("https://user:pw@h/x", "http://ex ample.org/"),
]


def test_list_with_odd_rows_loses_those_rows_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    put(tmp_path, {"a.jpg": b"image", "l.txt": "\n".join([*ODD, "a.jpg"]).encode()})
    with clouds.google_at("http://127.0.0.1:1"):
        *odd, (_, last) = archive_read(f"list::{tmp_path}/l.txt")
    assert [isinstance(data, InputError) for _, data in odd] == [True] * len(ODD)
    assert last == b"image"


def test_run_trusts_what_its_listing_was_allowed(tmp_path):
    with Pages() as server, Pages() as other:
        (tmp_path / "l.txt").write_text(f"{server.url}/a.jpg\n")

        def guard(source, **allowed):
            store = Store.open(f"memory://{uuid.uuid4().hex}")
            list_members(store, open_source([source], **allowed), PLAN)
            return load_guard(store)

        for allowed in (False, True):
            listing = guard(f"list::{tmp_path}/l.txt", allow_private=allowed)
            assert listing.trusts(f"{server.url}/a.jpg") is allowed
        named = guard(f"tar::{server.url}/x.tar")
        assert named.trusts(f"{server.url}/other")
        assert not named.trusts(f"{other.url}/other")


def test_fetcher_keeps_its_guard_when_pickled():
    signed = "tar::http://localhost:1/x?X-Amz-Signature=s"
    guard = pickle.loads(pickle.dumps(create_fetcher([signed], allow_private=True))).guard
    assert guard.allow_private
    assert guard.trusts("http://localhost:1/")
    fetcher = Fetcher(signed=["http://me:pw@localhost:1/"])
    assert pickle.loads(pickle.dumps(fetcher)).guard.trusts("http://localhost:1/x")
