"""S3 prefixes, divided at folders: each key is listed once, in whatever order the store lists keys."""

import pickle
from itertools import pairwise

import pytest

from ray_app.errors import StorageError
from ray_app.storage import (
    KeyPrefix,
    PrefixReader,
    RetryPolicy,
    Store,
    divide_prefix,
    key_prefixes,
    list_objects,
)
from tests.make.servers.odd_listing import ORDERS, GivenKeys, OddListingServer, by_bytes

NUMBERED = [f"p/img-{n:06}.jpg" for n in range(200)]
# The folders of the report: in the order of a tree, "set" comes before "set-a", by bytes after it.
FOLDERS = [
    f"p/{folder}/{n:02}.jpg"
    for folder in ("set", "set-a", "set-b", "set.old", "set2", "top", "top/in")
    for n in range(25)
]
FOLDERS += [f"p/{letter}{n}.jpg" for letter in "az" for n in range(8)]


@pytest.fixture(scope="module")
def running():
    server = OddListingServer([], page=10)
    server.asked = []
    with server.in_thread() as url:
        yield server, url


@pytest.fixture
def server(running, monkeypatch):
    """A server that gives ten keys to a page."""
    server, url = running
    server.throttles = lambda number, under_way: False
    server.order, server.quirks = by_bytes, frozenset()
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    server.asked.clear()
    return server


def list_divided(url):
    """The uris of all prefixes, as processes list them that get the prefixes by pickle."""
    prefixes = pickle.loads(pickle.dumps(divide_prefix(url)))
    return [info.uri for keys in prefixes for info in PrefixReader(keys)]


def uris(keys):
    return [f"s3://bucket/{key}" for key in keys]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("enough", [1, 3, 64])
def test_divided_prefix_in_any_order_lists_each_key(server, monkeypatch, order, enough):
    monkeypatch.setattr(key_prefixes, "_ENOUGH_PREFIXES", enough)
    server.keys, server.order = GivenKeys(FOLDERS), ORDERS[order]
    found = list_divided("s3://bucket/p")
    assert sorted(found) == sorted(uris(FOLDERS)) == sorted(set(found))


@pytest.mark.parametrize("order", ORDERS)
def test_listing_twice_listed_keys_ends(server, order):
    server.keys, server.order, server.quirks = GivenKeys(FOLDERS), ORDERS[order], {"twice"}
    assert set(list_divided("s3://bucket/p")) == set(uris(FOLDERS))


def test_listing_in_steps_lists_each_key_once(server):
    server.keys, server.order = GivenKeys(FOLDERS), ORDERS["hash"]
    pending, found = KeyPrefix("bucket", "p/", root="p/"), []
    while pending is not None:
        reader = PrefixReader(pickle.loads(pickle.dumps(pending)))
        for info in reader:
            reader.stop()
            found.append(info.uri)
        assert reader.rest is None or reader.rest.listed == len(found)
        pending = reader.rest
    assert sorted(found) == sorted(uris(FOLDERS))


def test_listing_without_tokens_continues_after_last_key(server):
    server.keys, server.quirks = GivenKeys(FOLDERS), {"no-token"}
    assert [info.uri for info in list_objects("s3://bucket/p")] == sorted(uris(FOLDERS))
    assert sorted(list_divided("s3://bucket/p")) == sorted(uris(FOLDERS))
    assert len(divide_prefix("s3://bucket/p")) > 5
    folders = {f"{folder}/{n:02}/a.jpg" for folder in "ab" for n in range(12)}
    server.keys = GivenKeys(sorted(folders))
    assert Store.open("s3://bucket/a").folders("") == [f"{n:02}" for n in range(12)]


@pytest.mark.parametrize(
    ("order", "quirks", "reason"),
    [
        ("tree", {"no-token"}, "lists keys twice or out of order"),
        ("hash", {"no-token"}, "lists keys out of order, and names no continuation token"),
        ("bytes", {"no-token", "ignores-position"}, "lists keys twice or out of order"),
        ("bytes", {"ignores-position"}, "lists keys twice or out of order"),
    ],
)
def test_listing_that_may_lose_keys_is_refused(server, order, quirks, reason):
    server.keys, server.order, server.quirks = GivenKeys(FOLDERS), ORDERS[order], quirks
    with pytest.raises(StorageError, match=reason) as caught:
        list(list_objects("s3://bucket/p"))
    assert "list::TABLE" in caught.value.hint
    with pytest.raises(StorageError, match="s3://bucket/p"):
        Store.open("s3://bucket/p").names("")


def test_objects_without_etag_are_versioned_by_size_and_time(server):
    server.keys, server.quirks = GivenKeys(NUMBERED[:12]), {"no-etag"}
    assert {info.version for info in list_objects("s3://bucket/p")} == {"9-1767225600000000000"}


def test_prefix_without_folders_costs_three_requests_more(server):
    server.keys = GivenKeys(NUMBERED[:48])
    assert list_divided("s3://bucket/p") == uris(NUMBERED[:48])
    assert len(server.asked) == 1 + 3 + 5
    server.keys = GivenKeys(NUMBERED[:9])
    server.asked.clear()
    assert divide_prefix("s3://bucket/p") == []
    assert len(server.asked) == 1


def test_prefix_is_divided_into_limited_prefixes(server, monkeypatch):
    server.keys = GivenKeys(FOLDERS)
    prefixes = divide_prefix("s3://bucket/p")
    assert [keys.prefix for keys in prefixes] == sorted(keys.prefix for keys in prefixes)
    assert ("p/", True) in {(keys.prefix, keys.is_flat) for keys in prefixes}
    assert ("p/top/in/", False) in {(keys.prefix, keys.is_flat) for keys in prefixes}
    assert all(first != second for first, second in pairwise(prefixes))
    monkeypatch.setattr(key_prefixes, "_MAX_PREFIXES", 3)
    assert [(keys.prefix, keys.is_flat) for keys in divide_prefix("s3://bucket/p")] == [
        ("p/", False)
    ]


def test_prefixes_of_a_throttling_store_are_read_slower(server, monkeypatch):
    monkeypatch.setattr(key_prefixes, "PATIENCE", RetryPolicy(attempts=8, base_s=0.01, cap_s=0.02))
    server.keys = GivenKeys(NUMBERED)
    server.throttles = lambda number, under_way: number % 3 == 0
    before = server.throttled
    assert [info.uri for info in PrefixReader(KeyPrefix("bucket", "p/"))] == uris(NUMBERED)
    assert server.throttled > before
    assert int(key_prefixes._gate._limit) < key_prefixes._gate.width
    server.throttles = lambda number, under_way: True
    with pytest.raises(StorageError, match="cannot list s3://bucket/p"):
        divide_prefix("s3://bucket/p")
