"""Addresses come from the user: what lies in an archive names nothing that is fetched, and what a
list names passes a guard.
"""

import base64
import io
import json
import pickle
import socket
import uuid
from http.server import BaseHTTPRequestHandler

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives import (
    BlockPlan,
    MemberReader,
    fetcher_of,
    guard_of,
    list_members,
    member_rows,
    open_source,
    read_block,
    read_blocks,
)
from ray_app.errors import InputError, SourceError, Status, StorageError
from ray_app.storage import Fetcher, RetryPolicy, Store, list_objects, ssrf
from tests.archives.containers import hazards
from tests.archives.test_img2dataset import put
from tests.http_server import HttpServer
from tests.storage import clouds
from tests.storage.faulty_server import LOOPBACK


class Pages(HttpServer):
    """Answers every path with its name, but for `moved` ones; `asked` are the paths that were asked
    for, `users` as whom.
    """

    def __init__(self, moved=None):
        self.moved = moved or {}
        self.asked: list[str] = []
        self.users: list[str | None] = []
        super().__init__(PagesHandler)


class PagesHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        owner = self.server.owner
        owner.asked.append(self.path)
        owner.users.append(self.headers.get("Authorization"))
        place, body = owner.moved.get(self.path), self.path.encode()
        self.send_response(200 if place is None else 302)
        if place:
            self.send_header("Location", place)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_) -> None:
        pass


def archive_read(sources, **settings):
    """Every member that a source lists, with its bytes or why there are none; listed and read as a
    run does it.
    """
    fetcher = fetcher_of(sources, RetryPolicy(attempts=1), **settings)
    store = Store.open(f"memory://{uuid.uuid4().hex}")
    list_members(
        store, open_source(sources, fetcher=fetcher), BlockPlan(batch_slots=4, max_block_members=64)
    )
    members = [
        member for ref in read_blocks(store, 0) for member in member_rows(read_block(store, ref))
    ]
    return list(MemberReader(fetcher, max_bytes=10**6).read(members))


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


def test_no_table_in_an_archive_is_followed(tmp_path, secret):
    deep = tmp_path / "in/a/b"
    deep.mkdir(parents=True)
    with Pages() as server:
        files = lists_of(
            [
                f"{server.url}/hook",
                str(secret),
                "http://169.254.169.254/latest/meta-data",
                "s3://other/x",
            ]
        )
        (deep / "a.tar").write_bytes(hazards.tar(files))
        (deep / "a.zip").write_bytes(hazards.zipped(files))
        for folder in (tmp_path / "in", deep):
            put(folder, files | {"real.jpg": b"image"})
        found = archive_read([f"{tmp_path}/in"])
        assert {str(member.uri) for member, _ in archive_read([f"{tmp_path}/in/*"])} <= {
            str(member.uri) for member, _ in found
        }
        assert server.asked == []
    assert len(found) == 2 * 5 + 2 * 4
    assert all(member.uri.startswith(str(tmp_path / "in")) for member, _ in found)
    assert b"s3cr3t" not in [data for _, data in found]
    refused = [data for member, data in found if isinstance(data, InputError)]
    assert [data.status for data in refused] == [Status.UNSUPPORTED_FORMAT] * 2
    assert f"list::{tmp_path}/in/a.parquet" in "".join(data.detail for data in refused)


@pytest.mark.parametrize("name", ["a.parquet", "b.csv", "c.jsonl", "d.txt"])
def test_a_list_that_the_user_names_is_followed_as_far_as_the_public_internet(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(b"image")
    hosts = [
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
    with Pages() as server:
        port = server.url.rpartition(":")[2]
        uris = ["a.jpg", *(f"http://{host}:{port}/x" for host in hosts)]
        (tmp_path / name).write_bytes(lists_of(uris)[name])
        found = archive_read([f"list::{tmp_path}/{name}"])
        assert server.asked == []
        assert (found[0][0].uri, found[0][1]) == (str(tmp_path / "a.jpg"), b"image")
        assert [data.status for _, data in found[1:]] == [Status.SOURCE_DENIED] * len(hosts)
        assert all("allow_private=true" in data.detail for _, data in found[1:])
        allowed = dict(
            (member.uri, data)
            for member, data in archive_read([f"list::{tmp_path}/{name}"], allow_private=True)
        )
        assert allowed[f"http://127.0.0.1:{port}/x"] == b"/x"


def test_a_name_is_looked_up_once_and_what_it_says_is_what_is_dialled(tmp_path, monkeypatch):
    with Pages() as server:
        port = int(server.url.rpartition(":")[2])
        asked = []

        def lookup(host, port, **_):
            asked.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(ssrf.socket, "getaddrinfo", lookup)
        with pytest.raises(SourceError) as caught:
            Fetcher(RetryPolicy(attempts=3)).fetch(f"http://inner.example.org:{port}/x", "", 100)
        assert (caught.value.status, asked, server.asked) == (
            Status.SOURCE_DENIED,
            ["inner.example.org."],
            [],
        )


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
def test_no_redirect_leads_out_of_what_the_user_named(place):
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


def test_a_redirect_is_followed_on_the_server_that_the_user_named_and_wherever_it_is_allowed():
    with Pages() as other, Pages({"/a.jpg": "/b.jpg", "/c.jpg": f"{other.url}/d.jpg"}) as server:
        named = Fetcher(signed=[server.url])
        assert named.fetch(f"{server.url}/a.jpg", "", 100) == b"/b.jpg"
        assert Fetcher(guard=LOOPBACK).fetch(f"{server.url}/c.jpg", "", 100) == b"/d.jpg"
        with pytest.raises(StorageError, match="not on the public Internet"):
            list(list_objects(f"{server.url}/c.jpg"))
        assert [info.uri for info in list_objects(f"{server.url}/c.jpg", LOOPBACK)] == [
            f"{server.url}/c.jpg"
        ]


def test_a_redirect_keeps_the_user_s_name_on_the_same_server_alone():
    with Pages() as other, Pages({"/a": "/b"}) as server:
        server.moved |= {"/b": f"{server.url}/c", "/c": f"{other.url}/d"}
        named = server.url.replace("://", "://me:p%40w@")
        assert (
            Fetcher(guard=LOOPBACK, signed=[f"{named}/a"]).fetch(f"{server.url}/a", "", 100)
            == b"/d"
        )
        assert server.users == [f"Basic {base64.b64encode(b'me:p@w').decode()}"] * 3
        assert other.users == [None]


def test_a_redirect_that_goes_round_ends():
    with (
        Pages({"/a": "/b", "/b": "/a"}) as server,
        pytest.raises(SourceError, match="more than 10 times"),
    ):
        Fetcher(signed=[server.url]).fetch(f"{server.url}/a", "", 100)
    assert len(server.asked) == 11


def test_a_list_of_lists_and_archives_opens_none_of_them(tmp_path, secret):
    inner = {
        "inner.csv": f"uri\n{secret}\n".encode(),
        "inner.parquet": table_of([str(secret)]),
        "inner.zip": hazards.zipped({"a.jpg": b"image"}),
    }
    put(
        tmp_path,
        inner
        | {
            "outer.csv": "\n".join(["uri", *inner]).encode(),
            "outer.parquet": table_of(list(inner)),
        },
    )
    for outer in ("outer.csv", "outer.parquet"):
        found = [
            (member.uri, member.place, data)
            for member, data in archive_read([str(tmp_path / outer)])
        ]
        assert found == [(str(tmp_path / name), None, data) for name, data in inner.items()]


def test_any_row_of_a_list_costs_at_most_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    odd = ["s3://b", "s3://bucket/", "s3://b/" + "k" * 3000, "hf://x", "hf://datasets/x", "http://", "http://[::1", "http://h:99999/", "gs://b/k",
           "az://c/k", "x" * 5000, "/", ".", "https://user:pw@h/x", "http://ex ample.org/"]  # fmt: skip
    put(tmp_path, {"a.jpg": b"image", "l.txt": "\n".join([*odd, "a.jpg"]).encode()})
    with clouds.google_at("http://127.0.0.1:1"):
        found = archive_read([f"list::{tmp_path}/l.txt"])
    assert len(found) == len(odd) + 1
    assert all(isinstance(data, InputError) for _, data in found[:-1])
    assert found[-1][1] == b"image"


def test_who_reads_a_listing_later_may_ask_what_its_own_command_could(tmp_path):
    with Pages() as server, Pages() as other:
        (tmp_path / "l.txt").write_text(f"{server.url}/a.jpg\n")
        for number, (sources, allowed) in enumerate(
            [([f"list::{tmp_path}/l.txt"], False), ([f"list::{tmp_path}/l.txt"], True)]
        ):
            store = Store.open(str(tmp_path / f"run{number}"))
            list_members(
                store,
                open_source(sources, allow_private=allowed),
                BlockPlan(batch_slots=4, max_block_members=64),
            )
            assert guard_of(store).trusts(f"{server.url}/a.jpg") is allowed
        store = Store.open(str(tmp_path / "run2"))
        list_members(
            store,
            open_source([f"tar::{server.url}/x.tar"]),
            BlockPlan(batch_slots=4, max_block_members=64),
        )
        assert guard_of(store).trusts(f"{server.url}/other")
        assert not guard_of(store).trusts(f"{other.url}/other")


def test_a_fetcher_keeps_its_guard_on_its_way_to_a_worker():
    fetcher = pickle.loads(
        pickle.dumps(
            fetcher_of(["tar::http://localhost:1/x?X-Amz-Signature=s"], allow_private=True)
        )
    )
    assert fetcher.guard.allow_private
    assert fetcher.guard.trusts("http://localhost:1/")
    assert pickle.loads(pickle.dumps(Fetcher(signed=["http://me:pw@localhost:1/"]))).guard.trusts(
        "http://localhost:1/x"
    )
