"""Google Cloud Storage and Azure Blob Storage as a run's place, on their emulators: one of two
writers is told, and a run is read back.
"""

import json
from collections import defaultdict

import fsspec
import pytest

from ray_app.errors import IdentityError, SourceError, Status, StorageError
from ray_app.runs import RunDirectory, current_rows, verify_run
from ray_app.storage import Fetcher, Lease, RetryPolicy, Store
from tests.make.images import photo
from tests.make.leases import read_lease
from tests.make.runs import score_here
from tests.make.servers import clouds
from tests.make.servers.faulty import FaultyServer
from tests.make.small_run import NAME, finish, relist, score_blocks, write_files
from tests.storage.contention import check_one_of_eight_creates, check_one_of_six_acquires

GUARDED = {"azure": clouds.azure, "google": clouds.google_with_conditions}
every_guarded_place = pytest.mark.parametrize(
    "guarded", [pytest.param(name, marks=pytest.mark.slow) for name in GUARDED], indirect=True
)


@pytest.fixture(scope="module")
def ignoring():
    with clouds.google_that_ignores_conditions() as url:
        yield url


@pytest.fixture(scope="module")
def guarded(request):
    with GUARDED[request.param]() as url:
        yield url


def check_store(store):
    store.write("a.json", b"1")
    assert store.read("a.json") == store.read_range("a.json", 0, 1) == b"1"
    assert (store.exists("a.json"), store.exists("b")) == (True, False)
    store.write("a.json", b"22")
    store.write("folder/below/c", b"333")
    assert (store.sizes(""), store.folders("")) == ({"a.json": 2}, ["folder"])
    assert store.sizes("folder/below") == {"c": 3}
    Store.open(store.url).write("folder/d", b"")  # what another process writes is seen at once
    assert store.names("folder") == ["d"]
    store.clear("folder")
    store.delete("a.json")
    store.delete("a.json")
    with pytest.raises(FileNotFoundError):
        store.read("a.json")
    assert store.folders("") == store.names("") == store.names("nowhere") == []


def check_run(url, folder):
    """A small run in two listings, published, verified and read back."""
    run = RunDirectory.open(url)
    run.claim({"detectors": {NAME: {}}}, [NAME], {})
    names = [f"{number:02}.jpg" for number in range(20)]
    for number, some in enumerate((names[:12], names)):
        write_files(folder, some)
        assert relist(run, folder) is not None
        score_blocks(run, number)
        finish(run)
    again = RunDirectory.open(url)
    assert verify_run(again).current == 20
    rows = {row["uri"].rpartition("/")[2]: row["status"] for row in current_rows(again)}
    assert rows == dict.fromkeys(names, "ok")
    assert (again.parts(0), again.parts(1)) == ([], [])


def test_google_store_without_conditions_is_refused_unless_told(ignoring, tmp_path):
    store = Store.open(f"{ignoring}/refused")
    with pytest.raises(StorageError, match="has no conditional writes"):
        Lease(store).acquire()
    assert store.names("lease") == []
    with Lease(store, unguarded=True) as lease:
        assert lease.facts() == {"unguarded": True}
    check_store(Store.open(f"{ignoring}/store"))
    check_run(f"{ignoring}/run", tmp_path / "archive")


@every_guarded_place
def test_cloud_keeps_a_run(guarded, tmp_path):
    check_store(Store.open(f"{guarded}/store"))
    check_run(f"{guarded}/run", tmp_path / "archive")


@every_guarded_place
def test_cloud_lets_one_of_several_writers_in(guarded):
    check_one_of_eight_creates(Store.open(f"{guarded}/create"))
    store = Store.open(f"{guarded}/lease")
    with Lease(store) as lease:
        assert lease.is_guarded
        with pytest.raises(IdentityError, match="is in use"):
            Lease(store).acquire()
        left = read_lease(store)
    store.write("lease/00001.json", json.dumps(left | {"started": "long ago"}).encode())
    check_one_of_six_acquires(store)


@every_guarded_place
def test_cloud_archive_is_scored_into_it_and_resumed(guarded, tmp_path):
    store = Store.open(f"{guarded}/photos")
    for number in range(3):
        photo(seed=number).save(tmp_path / "one.jpg")
        store.write_file(f"folder/{number}.jpg", tmp_path / "one.jpg")
    out = f"{guarded}/scored"
    for rows in (3, 0):
        finished, _ = score_here(out, store.url)
        assert finished.summary["session"]["rows"] == rows
        assert finished.summary["statuses"]["ok"] == 3
    found = {row["uri"] for row in current_rows(RunDirectory.open(out))}
    assert found == {f"{store.url}/folder/{number}.jpg" for number in range(3)}


@pytest.mark.parametrize(
    ("url", "pretended"), [("gs://b/k", clouds.google_at), ("az://c/k", clouds.azure_at)]
)
def test_cloud_client_retries_no_more_than_the_policy(url, pretended):
    """A row of a list that nobody answers for took 50 s and more of gcsfs's own patience."""
    with FaultyServer() as server, pretended(server.url):
        server.faults = defaultdict(lambda: ["internal"] * 99)
        with pytest.raises(SourceError) as caught:
            Fetcher(RetryPolicy(attempts=1)).fetch(url, "", 100)
        assert caught.value.status is Status.SOURCE_TIMEOUT
        assert len(server.requests) == len(set(server.requests)) <= 2


def test_store_of_an_untried_kind_is_refused():
    class Elsewhere(fsspec.get_filesystem_class("memory")):
        protocol = "elsewhere"

    fsspec.register_implementation("elsewhere", Elsewhere)
    store = Store.open("elsewhere://place/run")
    with pytest.raises(StorageError, match="this kind of store was not tested"):
        Lease(store).acquire()
    with Lease(store, unguarded=True) as lease:
        assert not lease.is_guarded
