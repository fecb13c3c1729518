"""What a place of each kind does alike, and what a web server does not do."""

import os
import socket
import threading

import pytest

from ray_app.errors import ConfigError, ExitCode, InputError, SourceError, Status, StorageError
from ray_app.storage import Fetcher, Guard, Lease, Store, list_objects
from ray_app.storage import s3 as requests
from ray_app.storage.places import Web
from tests.make.servers.faulty import FaultyServer

DATA = b"0123456789" * 100


@pytest.fixture(params=["local", "s3", "memory", "web"])
def folder(request, tmp_path):
    """The URL of a folder that has one file, `a.jpg`."""
    if request.param == "web":
        server = request.getfixturevalue("faulty")
        server.objects["/folder/a.jpg"] = DATA
        return f"{server.url}/folder"
    if request.param == "s3":
        url = f"{request.getfixturevalue('s3').bucket('places')}/folder"
    else:
        url = str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"
    Store.open(url).write("a.jpg", DATA)
    return url


def test_each_place_is_read_alike(folder):
    store, fetcher, uri = Store.open(folder), Fetcher(signed=[folder]), f"{folder}/a.jpg"
    [info] = list_objects(uri)
    assert (info.uri, info.size_bytes) == (uri, len(DATA))
    assert store.read("a.jpg") == fetcher.fetch(uri, info.version, 10**6) == DATA
    assert store.read_range("a.jpg", 5, 8) == fetcher.fetch_range(uri, info.version, 5, 3) == b"567"
    assert fetcher.fetch_range(uri, "", 998, 10) == b"89"
    assert fetcher.fetch_range(uri, "", 2000, 10) == b""
    assert fetcher.size(uri, info.version) == len(DATA)
    assert (store.exists("a.jpg"), store.exists("b.jpg")) == (True, False)
    with store.open_file("a.jpg") as file:
        file.seek(-3, 2)
        assert file.read() == b"789"
    assert fetcher.counts["bytes_read"] == len(DATA) + 3 + 2


def test_each_place_refuses_alike(folder):
    fetcher, uri = Fetcher(signed=[folder]), f"{folder}/a.jpg"
    other = uri, "another version"
    for ask, *arguments in (
        (fetcher.fetch, *other, 10**6),
        (fetcher.fetch_range, *other, 0, 5),
        (fetcher.size, *other),
    ):
        with pytest.raises(SourceError) as changed:
            ask(*arguments)
        assert changed.value.status is Status.SOURCE_CHANGED
    with pytest.raises(SourceError) as missing:
        fetcher.fetch(f"{folder}/b.jpg", "", 10**6)
    assert missing.value.status is Status.SOURCE_MISSING
    with pytest.raises(InputError) as large:
        fetcher.fetch(uri, "", 999)
    assert large.value.status is Status.IMAGE_TOO_LARGE
    with pytest.raises(FileNotFoundError):
        Store.open(folder).read("b.jpg")


def test_folder_of_several_pages_is_listed_whole(s3, monkeypatch):
    monkeypatch.setattr(requests, "MAX_LISTED", 2)
    store = Store.open(f"{s3.bucket('places')}/pages")
    for number in range(5):
        store.write(f"{number}.json", b"{}")
        store.write(f"below-{number}/x", b"")
    assert store.names("") == [f"{number}.json" for number in range(5)]
    assert store.folders("") == [f"below-{number}" for number in range(5)]
    store.clear("")
    assert store.names("") == store.folders("") == []


@pytest.mark.parametrize(
    "write",
    [
        lambda store, path: store.write("b.jpg", b"x"),
        lambda store, path: store.write_file("b.jpg", path),
        lambda store, path: store.create("b.jpg", b"x"),
        lambda store, path: store.delete("a.jpg"),
        lambda store, path: store.delete_all(["a.jpg", "b.jpg"]),
        lambda store, path: Lease(store, unguarded=True).acquire(),
    ],
)
def test_web_server_is_only_read(faulty, tmp_path, write):
    (tmp_path / "b.jpg").write_bytes(b"x")
    url = faulty.url.replace("//", "//me:s3cr3t@")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1.*: cannot write to a web") as caught:
        write(Store.open(url), tmp_path / "b.jpg")
    assert caught.value.exit_code is ExitCode.USAGE
    assert "s3cr3t" not in str(caught.value)


def test_redirect_of_a_store_passes_the_ssrf_guard(faulty):
    """fsspec's own client followed it to any address."""
    with FaultyServer() as private:
        private.objects["/secret"] = b"of the local network"
        faulty.redirects["/a.json"] = f"{private.url}/secret"
        with pytest.raises(StorageError, match="not on the public Internet"):
            Store.open(faulty.url).read("a.json")
        assert private.requests == []


def test_list_of_a_server_that_is_not_named_is_refused(faulty):
    with pytest.raises(SourceError) as caught:
        Web(Guard()).list(f"{faulty.url}/folder", timeout_s=5.0)
    assert caught.value.status is Status.SOURCE_DENIED
    assert faulty.requests == []


def test_unnamed_server_is_reached_through_no_proxy(faulty, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("10.0.0.1", 443))])
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, faulty.url)
    with pytest.raises(SourceError, match="not on the public Internet") as caught:
        Fetcher().fetch("https://private.example/a.jpg", "", 10)
    assert caught.value.status is Status.SOURCE_DENIED
    assert faulty.requests == []


def test_pipe_is_read_from_a_store(tmp_path):
    os.mkfifo(tmp_path / "card.yaml")
    writer = threading.Thread(target=(tmp_path / "card.yaml").write_bytes, args=(b"name: x",))
    writer.start()
    assert Store.open(str(tmp_path)).read("card.yaml") == b"name: x"
    writer.join()
