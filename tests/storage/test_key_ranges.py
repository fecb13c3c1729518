"""Ranges of keys: wherever a prefix is cut, its ranges tell what one listing tells; and what that
costs.
"""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.listing_server import GivenKeys, ListingServer
from ray_app.errors import StorageError
from ray_app.storage import (
    KeyRange,
    RangeReader,
    RetryPolicy,
    key_ranges,
    list_divisions,
    list_objects,
    split_range,
)

NUMBERED = [f"p/img-{n:06}.jpg" for n in range(3000)]
HASHED = ["p/" + hashlib.md5(b"%d" % n).hexdigest() for n in range(2000)]
CLUSTER = ["p/a", *(f"p/cluster/of/one/kind-{n:04}" for n in range(1000)), "p/z"]
# 1,023 bytes: nearly as long as a key may be
LONG = [f"p/{'x' * 1015}{n:03}ü{n % 7}" for n in range(300)]
MARKS = ["a", "a ", "a!", "aa", "a/b", "ü", "\ue000", "\ud7ff", "\U0010ffff", "~", "日本", "日a"]
MARKS = [f"p/{mark}" for mark in MARKS]


@pytest.fixture(scope="module")
def running():
    server = ListingServer(GivenKeys([]), page=10)
    server.asked = []
    with server.in_thread() as url:
        yield server, url


@pytest.fixture
def server(running, monkeypatch):
    """A server that gives ten keys to a page."""
    server, url = running
    server.throttles = lambda number, under_way: False
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    server.asked.clear()
    return server


def uris(ranges):
    return [info.uri for keys in ranges for info in RangeReader(keys)]


def check_split(server, keys, pieces, after=None, until=None):
    """Returns the ranges."""
    server.keys = GivenKeys(sorted(set(keys)))
    whole = KeyRange("bucket", "p/", after, until)
    server.asked.clear()
    ranges = split_range(whole, pieces)
    assert len(server.asked) <= 2 * 64 + 16
    assert [one.after for one in ranges[1:]] == [one.until for one in ranges[:-1]]
    assert (ranges[0].after, ranges[-1].until) == (after, until)
    assert uris(ranges) == [
        f"s3://bucket/{key}" for key in server.keys if (after or "") < key <= (until or "q")
    ]
    return ranges


letters = st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]) | st.sampled_from(
    "ab0/ü\U0010ffff"
)
# such a key, empty, is a folder's
file_names = st.text(letters, min_size=1, max_size=6).filter(lambda name: not name.endswith("/"))
names = st.lists(file_names, min_size=2, max_size=60)


def test_ranges_of_any_keys_list_each_key_once(server):
    def check(names, pieces, data):
        keys = [f"p/{name}" for name in names]
        after, until = (
            data.draw(st.none() | st.sampled_from([*keys, "p/m", "p/b"])) for _ in range(2)
        )
        if after is None or until is None or after < until:
            check_split(server, keys, pieces, after, until)

    settings(max_examples=10, deadline=None)(given(names, st.integers(1, 20), st.data())(check))()


@pytest.mark.parametrize(
    "keys",
    [NUMBERED[:100], HASHED[:100], CLUSTER[:100], LONG[:60], MARKS, ["p/only"], []],
    ids=["numbered", "hashed", "cluster", "long", "marks", "one", "none"],
)
def test_ranges_of_odd_keys_list_each_key_once(server, keys):
    check_split(server, keys, 12)
    if keys:
        check_split(server, keys, 12, after=min(keys))
        check_split(server, keys, 5, after=sorted(keys)[len(keys) // 2], until=max(keys))


def test_ranges_of_few_pages_cost_three_requests_more(server):
    """11 before, of which 9 looked for folders."""
    server.keys = GivenKeys(NUMBERED[:28])
    ranges = list_divisions("s3://bucket/p")
    assert uris(ranges) == [info.uri for info in list_objects("s3://bucket/p")]
    server.asked.clear()
    uris(list_divisions("s3://bucket/p"))
    assert len(server.asked) == 1 + 1 + 3
    server.keys = GivenKeys(NUMBERED[:9])
    server.asked.clear()
    assert list_divisions("s3://bucket/p") == []
    assert len(server.asked) == 1


def test_ranges_of_a_throttling_store_are_read_slower(server, monkeypatch):
    monkeypatch.setattr(key_ranges, "PATIENCE", RetryPolicy(attempts=8, base_s=0.01, cap_s=0.02))
    server.keys = GivenKeys(NUMBERED[:200])
    server.throttles = lambda number, under_way: number % 3 == 0
    before = server.throttled
    assert uris([KeyRange("bucket", "p/")]) == [f"s3://bucket/{key}" for key in NUMBERED[:200]]
    assert server.throttled > before
    assert int(key_ranges._gate._limit) < key_ranges._gate.width
    server.throttles = lambda number, under_way: True
    with pytest.raises(StorageError, match="cannot list s3://bucket/p/"):
        split_range(KeyRange("bucket", "p/"), 4)
