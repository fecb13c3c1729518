import io

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.errors import SourceError, Status
from ray_app.storage import Fetcher, list_objects
from ray_app.storage.ranged import RangedFile
from tests.make.servers.faulty import ETAG, LOOPBACK, patient

DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def stored(s3):
    url = s3.bucket("ranged")
    s3.client().put_object(Bucket="ranged", Key="a.tar", Body=DATA)
    return f"{url}/a.tar"


@pytest.fixture(params=["local", "s3", "web", "memory"])
def place(request, tmp_path):
    """The same object in every kind of store: its uri and version."""
    url = f"{tmp_path}/a.tar"
    if request.param == "s3":
        url = request.getfixturevalue("stored")
    elif request.param == "web":
        faulty = request.getfixturevalue("faulty")
        faulty.objects["/a.tar"] = DATA
        url = f"{faulty.url}/a.tar"
    else:
        url = f"memory:/{url}" if request.param == "memory" else url
        with fsspec.open(url, "wb") as file:
            file.write(DATA)
    [info] = list_objects(url)
    return info.uri, info.version


SPANS = [(0, 10), (100, 1000), (0, len(DATA)), (len(DATA) - 3, 10), (len(DATA), 5), (7, 0)]


def test_range_is_the_part_of_the_object(place):
    for start, length in SPANS:
        fetcher, part = Fetcher(guard=LOOPBACK), DATA[start : start + length]
        assert fetcher.fetch_range(*place, start, length) == part
        assert fetcher.bytes_read == len(part)


def test_range_of_an_empty_object_is_empty(s3):
    url = s3.bucket("ranged-empty") + "/a.tar"
    s3.client().put_object(Bucket="ranged-empty", Key="a.tar", Body=b"")
    assert Fetcher().fetch_range(url, "", 0, 10) == Fetcher().open(url, "").read() == b""


STEPS = [(-22, 2, 22), (0, 0, 10), (500, 1, 1200), (3000, 0, 5), (-1, 2, 9), (10**6, 0, 3)]
STEPS.append((0, 0, -1))


def test_ranged_file_seeks_and_reads_like_a_file(place):
    with Fetcher(guard=LOOPBACK).open(*place, window=1000) as file, io.BytesIO(DATA) as plain:
        for offset, whence, length in STEPS:
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            assert file.read(length) == plain.read(length)
            assert file.tell() == plain.tell()


def test_file_of_another_version_or_deleted_is_refused(place):
    uri, _ = place
    for named, version, size, status in (
        (uri, "0-0", 9, Status.SOURCE_CHANGED),
        (uri + ".gone", "", -1, Status.SOURCE_MISSING),
    ):
        with pytest.raises(SourceError) as caught:
            Fetcher(guard=LOOPBACK).open(named, version, size).read(9)
        assert caught.value.status is status


@pytest.fixture(params=["s3", "web"])
def uri(request, faulty):
    faulty.objects["/bucket/a.tar"] = DATA
    return "s3://bucket/a.tar" if request.param == "s3" else f"{faulty.url}/bucket/a.tar"


@pytest.mark.parametrize(("fault", "throttled"), [("slow_down", 2), ("internal", 0), ("short", 0)])
def test_range_that_fails_is_requested_again(faulty, uri, fault, throttled):
    faulty.faults["/bucket/a.tar"] = [fault] * 2
    fetcher = patient()
    assert fetcher.fetch_range(uri, ETAG, 5000, 100) == DATA[5000:5100]
    assert (fetcher.counts["requests"], fetcher.counts["retried"]) == (3, 2)
    assert fetcher.counts["throttled"] == throttled


def test_object_that_changes_between_two_ranges_is_noticed(faulty, uri):
    file = patient().open(uri, ETAG, len(DATA), window=100)
    assert file.read(50) == DATA[:50]
    faulty.faults["/bucket/a.tar"] = ["other_etag"]
    with pytest.raises(SourceError) as caught:
        file.read(100)
    assert caught.value.status is Status.SOURCE_CHANGED


def test_server_without_ranges_is_read_but_not_deep_into_a_file(faulty, uri):
    faulty.ranges = False
    assert patient().fetch_range(uri, ETAG, 5000, 100) == DATA[5000:5100]
    assert patient().fetch_range(uri, ETAG, len(DATA) - 3, 100) == DATA[-3:]
    with pytest.raises(SourceError, match="only whole files"):
        patient().fetch_range(uri, ETAG, 2**30, 100)


def test_small_reads_are_one_request_per_window():
    asked = []

    def read_range(start: int, length: int) -> bytes:
        asked.append((start, length))
        return DATA[start : start + length]

    file = RangedFile(read_range, len(DATA), 4000)
    assert b"".join(iter(lambda: file.read(7), b"")) == DATA
    assert asked == [(0, 4000), (4000, 4000), (8000, len(DATA) - 8000)]


@given(
    st.binary(max_size=300),
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 350), st.integers(-1, 120)), max_size=12),
)
def test_ranged_file_of_any_window_is_a_file(data, window, steps):
    file = RangedFile(lambda start, length: data[start : start + length], len(data), window)
    for place, length in steps:
        file.seek(place)
        assert file.read(length) == (data[place:] if length < 0 else data[place : place + length])
