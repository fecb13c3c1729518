"""A first listing in portions: manifests that count while the listing goes on, and all together
tell what one listing tells.
"""

import itertools
import json

import pytest

from benchmarks.listing_server import GivenKeys, ListingServer
from ray_app.archives import (
    BlockPlan,
    Portions,
    is_as_listed,
    list_members,
    list_portions,
    manifests,
    open_source,
    read_complete,
    read_vanished,
    walk,
)
from ray_app.errors import StorageError
from ray_app.storage import RetryPolicy, Store, key_ranges
from tests.archives.given import Dying, all_members, backwards, files_below

PLAN = BlockPlan(batch_slots=4, max_block_members=32, blocks_per_doubling=2)
TINY = Portions(raw_rows=256, id_rows=64, run_rows=100, few=0)
KEYS = sorted(
    [
        *(f"p/img-{n:04}.jpg" for n in range(250)),
        *(f"p/ü/{n:02}.png" for n in range(45)),
        "p/zz.jpg",
        "p/z/",
    ]
)
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
    server.keys, server.asked, server.throttles = (
        GivenKeys(KEYS),
        [],
        lambda number, under_way: False,
    )
    for name, value in {
        "ENDPOINT_URL": url,
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in {"_PAGE": 10, "FIRST_STEP": 40, "_KEYS_A_RANGE": 8, "_CUT_AGAIN": 3}.items():
        monkeypatch.setattr(walk, name, value)
    return server


def fresh_store():
    return Store.open(f"memory://portions-{next(_roots)}")


def portions(store, archive=None, **options):
    archive = archive or open_source(["s3://bucket/p"])
    return list_portions(
        store, archive, PLAN, **{"portions": TINY, "clock": lambda: 0.0, **options}
    )


def members_of(store):
    return [member for number in manifests(store) for member in all_members(store, number)]


def paths(store):
    return sorted(member.uri.removeprefix("s3://bucket/") for member in members_of(store))


def test_portions_grow_and_tell_what_one_listing_tells(server):
    store, whole = fresh_store(), fresh_store()
    infos = list(portions(store))
    list_members(whole, open_source(["s3://bucket/p"]), PLAN)
    assert paths(store) == paths(whole) == [key for key in KEYS if key != "p/z/"]
    there = fresh_store()
    list(portions(there, each=backwards))
    assert files_below(there) == files_below(store), "wherever tasks run"
    assert len(infos) >= 3
    assert 40 <= infos[0].members <= 60
    assert [info.goes_on for info in infos] == [True] * (len(infos) - 1) + [False]
    assert [info.listed for info in infos] == list(
        itertools.accumulate(info.members for info in infos)
    )
    assert infos[-1].listed == infos[-1].named == 296
    assert not any(info.vanished or read_vanished(store, info.manifest).size for info in infos)
    for number in manifests(store):
        uris = [member.uri for member in all_members(store, number)]
        assert uris == sorted(uris), "in the order of keys"
    assert [m.uri for m in all_members(whole)] == sorted(m.uri for m in all_members(whole))
    assert {m.image_id: m.uri for m in members_of(store)} == {
        m.image_id: m.uri for m in members_of(whole)
    }
    assert read_complete(store, infos[-1].manifest).digest == read_complete(whole, 0).digest != ""
    noted = json.loads(store.read("manifest/0/unlisted.json"))
    assert (noted["listed"], {one["source"] for one in noted["unlisted"]}) == (infos[0].listed, {0})


def test_the_first_is_there_before_the_listing_ends(server):
    store = fresh_store()
    arriving = portions(store)
    info = next(arriving)
    assert len(server.asked) <= 12, "of 35 pages"
    assert read_complete(store, 0) == info
    arriving.close()


@pytest.mark.parametrize("first", [40, 10_000])
def test_the_digest_does_not_depend_on_the_cuts(server, monkeypatch, first):
    monkeypatch.setattr(walk, "FIRST_STEP", first)
    store, archive = fresh_store(), open_source(["s3://bucket/p"])
    list(portions(store))
    assert is_as_listed(store, archive)
    assert list_members(store, archive, PLAN) is None
    assert list(portions(store)) == []
    server.keys = GivenKeys([*KEYS[1:], "p/new.jpg"])
    assert not is_as_listed(store, archive)
    [info] = portions(store)
    assert (info.members, info.vanished, info.goes_on, info.listed) == (1, 1, False, 296)
    assert is_as_listed(store, archive)
    server.keys = GivenKeys(KEYS[1:])
    [info] = portions(store)
    assert (info.members, info.vanished) == (0, 2)


def test_killed_anywhere_it_goes_on_behind_the_last_portion(server):
    server.keys = GivenKeys(KEYS[:150])
    whole = fresh_store()
    list(portions(whole))
    asked, resumed = len(server.asked), 0
    for lives in itertools.count(0, 7):
        store = fresh_store()
        try:
            list(portions(Dying(store.url, lives)))
        except KeyboardInterrupt:
            done = manifests(store)
            before = {number: files_below(store, f"manifest/{number}") for number in done}
            server.asked.clear()
            list(portions(store))
            assert files_below(store) == files_below(whole)
            assert all(
                files_below(store, f"manifest/{number}") == files
                for number, files in before.items()
            )
            if done:
                resumed += 1
                assert len(server.asked) <= asked - 5, "what was listed is not listed again"
        else:
            break
    assert resumed >= 2


def test_what_changes_behind_the_place_is_found_by_the_next_listing(server):
    store = fresh_store()
    arriving = portions(store)
    next(arriving)
    server.keys = GivenKeys(["p/a.jpg", *KEYS[1:]])
    list(arriving)
    assert not is_as_listed(store, open_source(["s3://bucket/p"]))
    [info] = portions(store)
    assert ([member.uri for member in all_members(store, info.manifest)], info.vanished) == (
        ["s3://bucket/p/a.jpg"],
        1,
    )


def test_a_limit_and_an_error(server, monkeypatch):
    store = fresh_store()
    [info] = portions(store, limit=123)
    assert (info.members, info.goes_on) == (123, False)
    monkeypatch.setattr(key_ranges, "PATIENCE", RetryPolicy(attempts=1))
    store = fresh_store()
    arriving = portions(store)
    next(arriving)
    server.throttles = lambda number, under_way: True
    with pytest.raises(StorageError, match="cannot list s3://bucket/p"):
        next(arriving)
    server.throttles = lambda number, under_way: False
    list(portions(store))
    assert paths(store) == [key for key in KEYS if key != "p/z/"]
