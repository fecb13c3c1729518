"""Manifests in portions: those of a first listing, which count while it continues and together
list what one listing lists, and those of a source that is followed.
"""

import io
import itertools
import json
import tarfile

import pytest

from benchmarks.listing_server import GivenKeys, ListingServer
from ray_app.archives import (
    BlockPlan,
    Portions,
    finish_manifest,
    is_as_listed,
    list_complete_manifests,
    list_members,
    list_portions,
    open_source,
    read_blocks,
    read_blocks_so_far,
    read_complete,
    read_last_listing,
    read_open_manifest,
    read_vanished,
    read_vanished_so_far,
    walk,
)
from ray_app.archives.dedup import IdTable
from ray_app.errors import StorageError
from ray_app.storage import RetryPolicy, Store, key_prefixes, s3
from tests.archives.given import Dying, all_members, backwards, files_below
from tests.make.servers.odd_listing import ORDERS, OddListingServer

PLAN = BlockPlan(batch_slots=4, max_block_members=32, blocks_per_doubling=2)
TINY = Portions(raw_rows=256, id_rows=64, run_rows=100, few=0)
KEYS = [f"p/img-{n:04}.jpg" for n in range(250)] + ["p/z/", "p/zz.jpg"]
KEYS += [f"p/ü/{n:02}.png" for n in range(45)]
FILES = [key for key in KEYS if key != "p/z/"]
_roots = itertools.count()


@pytest.fixture(scope="module")
def running():
    server = ListingServer(GivenKeys(KEYS), page=10)
    with server.in_thread() as url:
        yield server, url


@pytest.fixture
def server(running, monkeypatch):
    """Pages of ten keys, and steps as if that were many."""
    server, url = running
    server.keys, server.asked = GivenKeys(KEYS), []
    server.throttles = lambda number, under_way: False
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr(s3, "MAX_LISTED", 10)
    monkeypatch.setattr(walk, "FIRST_STEP", 40)
    return server


def fresh_store():
    return Store.open(f"memory://portions-{next(_roots)}")


def list_source(store, archive=None, **options):
    """Yield the portions of a listing, and complete the manifest at its end."""
    yield from add_portions(store, archive, **options)
    finish_manifest(store)


def add_portions(store, archive=None, ids=None, **options):
    """Yield the portions of a listing of a source that is followed."""
    archive = archive or open_source(["s3://bucket/p"])
    options = {"portions": TINY, "clock": lambda: 0.0, **options}
    return list_portions(store, archive, PLAN, ids, **options)


def members_of(store):
    return [
        member for number in list_complete_manifests(store) for member in all_members(store, number)
    ]


def paths(store):
    return sorted(member.uri.removeprefix("s3://bucket/") for member in members_of(store))


def ids_and_uris(store):
    return {member.image_id: member.uri for member in members_of(store)}


@pytest.mark.parametrize("pages", [3, 30], ids=["one section", "a section for each folder"])
def test_portions_list_what_one_listing_lists(server, monkeypatch, pages):
    monkeypatch.setattr(key_prefixes, "_MAX_FOLDER_PAGES", pages)
    store, whole, in_tasks = fresh_store(), fresh_store(), fresh_store()
    infos = list(list_source(store))
    list_members(whole, open_source(["s3://bucket/p"]), PLAN)
    assert paths(store) == paths(whole) == FILES
    assert ids_and_uris(store) == ids_and_uris(whole)
    assert read_complete(store, 0).digest == read_complete(whole, 0).digest != ""
    list(list_source(in_tasks, each=backwards))
    assert files_below(in_tasks) == files_below(store)

    assert len(infos) >= 3
    assert 40 <= infos[0].members <= 60
    assert [info.goes_on for info in infos] == [True] * (len(infos) - 1) + [False]
    assert [info.listed for info in infos] == [info.members for info in infos]
    assert [info.portions for info in infos] == list(range(1, len(infos) + 1))
    assert infos[-1].listed == infos[-1].named == 296
    assert list_complete_manifests(store) == [0]
    assert not read_vanished(store, 0).size
    for portion in range(len(infos)):
        uris = [member.uri for member in all_members(store, 0, portion)]
        assert uris == sorted(uris), "in the order of keys"
    assert [ref.block for ref in read_blocks(store, 0)] == list(range(infos[-1].blocks))
    unlisted = json.loads(store.read("manifest/0/00000/unlisted.json"))
    assert unlisted["listed"] == infos[0].listed


@pytest.mark.parametrize("quirks", [(), ("twice",)], ids=["once", "twice"])
@pytest.mark.parametrize("order", ORDERS)
def test_each_object_is_listed_once_in_any_order(server, monkeypatch, order, quirks):
    """1.0 lost 50 of these objects in the order of a tree, and 263 in the order of hashes."""
    folders = ("set", "set-a", "set-b", "set.old", "set2", "top")
    keys = [f"photos/{folder}/{n:04}.jpg" for folder in folders for n in range(200)]
    keys += [f"photos/{letter}{n:02}.jpg" for letter in "az" for n in range(50)]
    odd_server = OddListingServer(keys, ORDERS[order], quirks, page=100)
    store = fresh_store()
    with odd_server.in_thread() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        list(list_source(store, open_source(["s3://bucket/photos"])))
    assert paths(store) == sorted(keys)
    assert len(ids_and_uris(store)) == 1300


def test_first_portion_counts_before_the_listing_ends(server):
    store = fresh_store()
    arriving = list_source(store)
    info = next(arriving)
    assert len(server.asked) <= 12, "of 35 pages"
    assert read_complete(store, 0, 0) == read_open_manifest(store) == info
    assert list_complete_manifests(store) == []
    arriving.close()


def test_source_listed_in_portions_is_listed_again_if_changed(server):
    server.keys = GivenKeys(KEYS[:100])
    store, archive = fresh_store(), open_source(["s3://bucket/p"])
    assert len(list(list_source(store))) == 2
    assert is_as_listed(store, archive)
    assert list_members(store, archive, PLAN) is None
    server.keys = GivenKeys([*KEYS[1:100], "p/new.jpg"])
    assert not is_as_listed(store, archive)
    [info] = list_source(store)
    assert (info.members, info.vanished, info.goes_on, info.listed) == (1, 1, False, 100)
    assert is_as_listed(store, archive)
    server.keys = GivenKeys(KEYS[1:100])
    [info] = list_source(store)
    assert (info.members, info.vanished) == (0, 2)


def test_killed_listing_resumes_after_its_last_portion(server):
    server.keys = GivenKeys(KEYS[:150])
    whole = fresh_store()
    list(list_source(whole))
    asked, resumed = len(server.asked), 0
    for lives in itertools.count(0, 5):
        store = fresh_store()
        try:
            list(list_source(Dying(store.url, lives)))
        except KeyboardInterrupt:
            listed = read_last_listing(store)
            done = range(listed.portions) if listed else ()
            before = {k: files_below(store, f"manifest/0/{k:05d}") for k in done}
            server.asked.clear()
            # As a command does before it lists.
            if finish_manifest(store) is None:
                list(list_source(store))
            assert files_below(store) == files_below(whole)
            for portion, files in before.items():
                assert files_below(store, f"manifest/0/{portion:05d}") == files
            if done:
                resumed += 1
                assert len(server.asked) <= asked - 5, "what was listed is not listed again"
        else:
            break
    assert resumed >= 2


def test_listing_that_1_0_interrupted_starts_again(server):
    """Its state has ranges of keys, which later versions do not list."""
    store, whole = fresh_store(), fresh_store()
    list(list_source(whole))
    next(list_source(store))
    path = "manifest/0/00000/unlisted.json"
    state = json.loads(store.read(path))
    keys = {"bucket": "bucket", "prefix": "p/", "after": "p/img-0040.jpg", "until": None}
    state["unlisted"] = [{"source": 0, "ordinal": 0, "keys": {**keys, "pattern": None}}]
    store.write(path, json.dumps(state).encode())
    list(list_source(store))
    assert ids_and_uris(store) == ids_and_uris(whole)
    assert read_complete(store, 0).digest == read_complete(whole, 0).digest
    assert read_complete(store, 0).listed == 296


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """An archive of 30 tars with ten members each, where 40 members make a portion."""
    monkeypatch.setattr(walk, "FIRST_STEP", 40)
    for number in range(30):
        with tarfile.open(tmp_path / f"{number:02}.tar", "w") as file:
            for member in range(10):
                data = f"{number} {member}".encode()
                info = tarfile.TarInfo(f"{member}.jpg")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    (tmp_path / "loose.jpg").write_text("loose")
    return open_source([str(tmp_path)])


def test_containers_are_listed_in_portions(tars):
    store, whole = fresh_store(), fresh_store()
    first, *rest = list_source(store, tars)
    assert (first.members, first.goes_on) == (81, True), "a loose file, and eight tars"
    assert [info.members for info in rest] == [301]
    list_members(whole, tars, PLAN)
    assert [m.uri for m in members_of(store)] == [m.uri for m in members_of(whole)]
    assert ids_and_uris(store) == ids_and_uris(whole)
    assert read_complete(store, 0).digest == read_complete(whole, 0).digest != ""


def test_killed_listing_of_containers_loses_no_member(tars):
    whole = fresh_store()
    list(list_source(whole, tars))
    for lives in itertools.count(0, 5):
        store = fresh_store()
        try:
            list(list_source(Dying(store.url, lives), tars))
        except KeyboardInterrupt:
            if finish_manifest(store) is None:
                list(list_source(store, tars))
            assert files_below(store) == files_below(whole)
        else:
            break
    assert lives > 6


def test_change_behind_the_walk_is_found_by_the_next_listing(server):
    store = fresh_store()
    arriving = list_source(store)
    next(arriving)
    server.keys = GivenKeys(["p/a.jpg", *KEYS[1:]])
    list(arriving)
    assert not is_as_listed(store, open_source(["s3://bucket/p"]))
    [info] = list_source(store)
    assert (keys_of(all_members(store, info.manifest)), info.vanished) == (["a.jpg"], 1)


def test_portions_of_a_limited_listing_end_at_the_limit(server):
    [info] = list_source(fresh_store(), limit=123)
    assert (info.members, info.goes_on) == (123, False)


def test_portions_resume_after_the_store_failed(server, monkeypatch):
    monkeypatch.setattr(key_prefixes, "PATIENCE", RetryPolicy(attempts=1))
    store = fresh_store()
    arriving = list_source(store)
    next(arriving)
    server.throttles = lambda number, under_way: True
    with pytest.raises(StorageError, match="cannot list s3://bucket/p"):
        next(arriving)
    server.throttles = lambda number, under_way: False
    list(list_source(store))
    assert paths(store) == FILES


def keys_of(members):
    return [member.uri.removeprefix("s3://bucket/p/") for member in members]


def id_of(store, key):
    portions = range(read_open_manifest(store).portions)
    members = [member for portion in portions for member in all_members(store, 0, portion)]
    [found] = {member.image_id for member in members if member.uri.endswith(f"/{key}")}
    return found


@pytest.mark.parametrize("is_shared", [True, False], ids=["one process", "a process each"])
def test_followed_source_adds_portions_to_one_manifest(server, is_shared):
    store, keys = fresh_store(), [f"p/{number}.jpg" for number in range(5)]
    with IdTable(store) as ids:

        def listed(*, add=(), remove=()):
            for key in remove:
                keys.remove(f"p/{key}")
            keys.extend(f"p/{key}" for key in add)
            server.keys = GivenKeys(sorted(keys))
            return list(add_portions(store, ids=ids if is_shared else None))

        assert [info.members for info in listed()] == [5]
        assert listed() == []
        [info] = listed(add=["5.jpg", "6.jpg"], remove=["0.jpg"])
        assert (info.manifest, info.portions, info.members, info.listed) == (0, 2, 7, 6)
        assert keys_of(all_members(store, 0, 1)) == ["5.jpg", "6.jpg"]
        assert read_vanished_so_far(store, info).tolist() == [id_of(store, "0.jpg")]
        [info] = listed(remove=["5.jpg"])
        assert (info.members, info.vanished) == (7, 2)
        [info] = listed(add=["0.jpg"])
        assert (info.members, info.vanished, info.current) == (7, 1, 6)
        assert read_vanished_so_far(store, info).tolist() == [id_of(store, "5.jpg")]
        assert [ref.block for ref in read_blocks_so_far(store, info)] == list(range(info.blocks))
        closed = finish_manifest(store)
        assert (closed.portions, closed.current, list_complete_manifests(store)) == (4, 6, [0])
        assert read_vanished(store, 0).tolist() == read_vanished_so_far(store, info).tolist()
        assert len(read_blocks(store, 0)) == info.blocks
        [info] = listed(add=["7.jpg", "5.jpg"])
        assert (info.manifest, info.members, info.vanished, info.members_so_far) == (1, 1, 0, 8)
        assert keys_of(all_members(store, 1, 0)) == ["7.jpg"]


def test_interrupted_end_of_a_manifest_can_be_repeated(server):
    server.keys = GivenKeys(KEYS[:20])
    for lives in range(3):
        store = fresh_store()
        list(add_portions(store))
        with pytest.raises(KeyboardInterrupt):
            finish_manifest(Dying(store.url, lives))
        # The command that was killed followed the source, and so does the next one.
        server.keys = GivenKeys(KEYS[:21])
        [info] = add_portions(store)
        assert (info.manifest, info.portions) == (0, 2)
        assert finish_manifest(store).members == len(members_of(store)) == 21
        server.keys = GivenKeys(KEYS[:20])


def test_requests_of_a_listing_do_not_grow_with_portions(server, monkeypatch):
    store, requests = fresh_store(), []
    for name in ("read", "write", "create", "folders", "sizes", "clear", "delete", "names"):
        monkeypatch.setattr(Store, name, _counted(getattr(Store, name), requests))
    counts = []
    with IdTable(store) as ids:
        for number in range(1, 13):
            server.keys = GivenKeys([f"p/{key:03}.jpg" for key in range(10 * number)])
            requests.clear()
            [info] = add_portions(store, ids=ids)
            counts.append(len(requests))
    assert info.portions == 12
    assert counts[-1] <= counts[3]


def _counted(method, requests):
    def counted(self, *given):
        requests.append(method.__name__)
        return method(self, *given)

    return counted
