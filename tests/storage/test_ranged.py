import io
import uuid

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.errors import SourceError, Status
from ray_app.storage import Fetcher, list_objects
from ray_app.storage.ranged import RangedFile
from tests.storage.faulty_server import ETAG, LOOPBACK, patient

DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def stored(s3):
    url = s3.bucket("ranged")
    s3.client().put_object(Bucket="ranged", Key="a.tar", Body=DATA)
    return f"{url}/a.tar"


@pytest.fixture(params=["local", "s3", "web", "memory"])
def place(request, tmp_path):
    """The same object in every kind of store: its uri and version."""
    if request.param == "local":
        (tmp_path / "a.tar").write_bytes(DATA)
        url = str(tmp_path / "a.tar")
    elif request.param == "s3":
        url = request.getfixturevalue("stored")
    elif request.param == "web":
        faulty = request.getfixturevalue("faulty")
        faulty.objects["/a.tar"] = DATA
        url = f"{faulty.url}/a.tar"
    else:
        url = f"memory://ranged-{uuid.uuid4().hex}/a.tar"
        with fsspec.open(url, "wb") as file:
            file.write(DATA)
    [info] = list_objects(url)
    return info.uri, info.version


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 10), (100, 1000), (0, len(DATA)), (len(DATA) - 3, 10), (len(DATA), 5), (7, 0)],
)
def test_a_part_is_what_lies_there(place, start, length):
    fetcher = Fetcher(guard=LOOPBACK)
    assert fetcher.fetch_range(*place, start, length) == DATA[start : start + length]
    assert fetcher.bytes_read == len(DATA[start : start + length])


def test_an_empty_object_has_no_parts(s3):
    url = s3.bucket("ranged-empty") + "/a.tar"
    s3.client().put_object(Bucket="ranged-empty", Key="a.tar", Body=b"")
    assert Fetcher().fetch_range(url, "", 0, 10) == Fetcher().open(url, "").read() == b""


def test_a_file_reads_like_a_file(place):
    with Fetcher(guard=LOOPBACK).open(*place, window=1000) as file, io.BytesIO(DATA) as plain:
        for offset, whence, length in [
            (-22, 2, 22),
            (0, 0, 10),
            (500, 1, 1200),
            (3000, 0, 5),
            (-1, 2, 9),
            (10**6, 0, 3),
            (0, 0, -1),
        ]:
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            assert file.read(length) == plain.read(length)
            assert file.tell() == plain.tell()


ASKING = {
    "a range": lambda fetcher, uri, version: fetcher.fetch_range(uri, version, 0, 9),
    "the size": lambda fetcher, uri, version: fetcher.size(uri, version),
    "a file": lambda fetcher, uri, version: fetcher.open(uri, version, 9 if version else -1).read(
        9
    ),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=list(ASKING))
def test_another_version_has_changed_and_what_is_gone_is_missing(place, ask):
    for uri, version, status in (
        (place[0], "0-0", Status.SOURCE_CHANGED),
        (place[0] + ".gone", "", Status.SOURCE_MISSING),
    ):
        with pytest.raises(SourceError) as caught:
            ask(Fetcher(guard=LOOPBACK), uri, version)
        assert caught.value.status is status


class TestFaults:
    @pytest.fixture(params=["s3://bucket", "http"])
    def uri(self, request, faulty):
        faulty.objects["/bucket/a.tar"] = DATA
        return (
            "s3://bucket/a.tar" if request.param.startswith("s3") else f"{faulty.url}/bucket/a.tar"
        )

    @pytest.mark.parametrize(
        ("fault", "throttled"), [("slow_down", 2), ("internal", 0), ("short", 0)]
    )
    def test_a_passing_fault_is_asked_again(self, faulty, uri, fault, throttled):
        faulty.faults["/bucket/a.tar"] = [fault] * 2
        fetcher = patient()
        assert fetcher.fetch_range(uri, ETAG, 5000, 100) == DATA[5000:5100]
        assert (
            fetcher.counts["requests"],
            fetcher.counts["retried"],
            fetcher.counts["throttled"],
        ) == (3, 2, throttled)

    def test_an_object_that_changes_between_two_parts_is_found_out(self, faulty, uri):
        file = patient().open(uri, ETAG, len(DATA), window=100)
        assert file.read(50) == DATA[:50]
        faulty.faults["/bucket/a.tar"] = ["other_etag"]
        with pytest.raises(SourceError) as caught:
            file.read(100)
        assert caught.value.status is Status.SOURCE_CHANGED

    def test_a_server_without_ranges_is_read_from_the_start_but_not_deep_into_a_large_file(
        self, faulty, uri
    ):
        faulty.ranges = False
        assert patient().fetch_range(uri, ETAG, 5000, 100) == DATA[5000:5100]
        assert patient().fetch_range(uri, ETAG, len(DATA) - 3, 100) == DATA[-3:]
        with pytest.raises(SourceError, match="only whole files"):
            patient().fetch_range(uri, ETAG, 2**30, 100)


class TestWindows:
    def opened(self, data: bytes, window: int) -> tuple[RangedFile, list[tuple[int, int]]]:
        asked = []

        def read_range(start: int, length: int) -> bytes:
            asked.append((start, length))
            return data[start : start + length]

        return RangedFile(read_range, len(data), window), asked

    def test_small_reads_one_after_the_other_are_one_request_per_window(self):
        file, asked = self.opened(DATA, 4000)
        assert b"".join(iter(lambda: file.read(7), b"")) == DATA
        assert asked == [(0, 4000), (4000, 4000), (8000, len(DATA) - 8000)]

    @given(
        st.binary(max_size=300),
        st.integers(1, 50),
        st.lists(st.tuples(st.integers(0, 350), st.integers(-1, 120)), max_size=12),
    )
    def test_is_a_file(self, data, window, steps):
        file, _ = self.opened(data, window)
        for place, length in steps:
            file.seek(place)
            assert file.read(length) == (
                data[place:] if length < 0 else data[place : place + length]
            )
