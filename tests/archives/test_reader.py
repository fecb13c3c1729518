import os
import random
import tracemalloc
import zipfile
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_app.archives import (
    Container,
    ContainerLimits,
    ListedMember,
    MemberLocation,
    MemberReader,
    RefusedMember,
    TableColumns,
    open_source,
)
from ray_app.archives import reader as reading
from ray_app.errors import InputError, Status
from ray_app.storage import Fetcher, list_objects
from ray_app.storage.node_budget import SLOT_BYTES, NodeBudget
from tests.archives.containers import hazards
from tests.archives.containers.hazards import container_at, contents, members, opened, written
from tests.make.servers.faulty import ETAG, patient

FILES = {
    f"{number}.jpg": random.Random(number).randbytes(1500 + 700 * number) for number in range(40)
}
MAKE = {
    "tar": cache(lambda: hazards.tar(FILES)),
    "zip": cache(lambda: hazards.zipped(FILES)),
    **{kind: cache(lambda pack=pack: pack(MAKE["tar"]())) for kind, pack in hazards.PACK.items()},
}


@pytest.fixture(params=list(MAKE))
def kind(request):
    return request.param


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_archive_is_read_though_the_store_fails(faulty, kind, scheme):
    data, fetcher = MAKE[kind](), patient()
    faulty.objects["/bucket/a"] = data
    uri = "s3://bucket/a" if scheme == "s3" else f"{faulty.url}/bucket/a"
    container = Container(uri, ETAG, len(data), kind, "a", TableColumns(), ContainerLimits())
    faulty.faults["/bucket/a"] = ["slow_down", "short", "internal"]
    listed = opened(container, kind, fetcher=fetcher)
    faulty.faults["/bucket/a"] = ["slow_down", "internal", "short"]
    assert contents(listed, fetcher=fetcher) == list(FILES.values())
    # A packed stream asks for its size first: no body is short there, and a web server that
    # refuses HEAD is asked by GET.
    if kind in hazards.PACK:
        assert fetcher.counts["throttled"] >= 1
        assert fetcher.counts["retried"] >= 4
    else:
        assert (fetcher.counts["throttled"], fetcher.counts["retried"]) == (2, 6)
    assert not faulty.faults["/bucket/a"]


def test_archive_that_changes_or_is_denied_gives_no_other_member(faulty, kind):
    faulty.objects["/bucket/a"] = MAKE[kind]()
    listed = opened(f"{faulty.url}/bucket/a", kind)
    faulty.faults["/bucket/a"] = ["other_etag"] * 99
    assert set(contents(listed)) == {"source_changed"}
    faulty.faults["/bucket/a"] = []
    container = container_at(f"{faulty.url}/bucket/a", kind)
    faulty.faults["/bucket/a"] = ["denied"]
    [item] = opened(container, kind)
    assert (item.member, item.refused.status) == (None, Status.SOURCE_DENIED)


def test_archive_members_are_read_in_any_order(tmp_path, kind):
    listed = written(tmp_path, MAKE[kind](), kind)
    some = [listed[place] for place in (7, 3, 3, 39, 0, 20)]
    assert contents(some) == [FILES[item.member] for item in some]
    far = [
        ListedMember(m.uri, m.member, 0, m.version, 500, place=MemberLocation(kind, 10**12, 500))
        for m in listed[:2]
    ]
    assert set(contents(far)) == {"source_changed"}, "a manifest that lies"


def test_folder_of_files_and_archives_is_one_archive(tmp_path):
    for kind, make in MAKE.items():
        (tmp_path / f"b.{kind.upper()}").write_bytes(make())
    (tmp_path / "c.jpg").write_bytes(b"plain")
    listed = list(open_source([str(tmp_path)]))
    assert [item.place and item.place.kind for item in listed] == [
        None,
        *(kind for kind in sorted(MAKE) for _ in FILES),
    ]
    assert contents(listed) == [b"plain", *(data for _ in MAKE for data in FILES.values())]
    only = open_source([f"tar::{tmp_path}/b.TAR"], include=["b.TAR/3?.jpg"])
    assert [item.member for item in only] == [f"{number}.jpg" for number in range(30, 40)]


def test_files_among_members_of_archives_keep_their_order(tmp_path):
    (tmp_path / "plain.jpg").write_bytes(b"plain")
    [info] = list_objects(str(tmp_path / "plain.jpg"))
    plain = ListedMember(info.uri, None, 0, info.version, 5)
    tars, zips = (written(tmp_path, MAKE[kind](), kind)[:2] for kind in ("tar", "zip"))
    unsafe = RefusedMember(Status.UNSAFE_MEMBER, "'..' in its name")
    refused = ListedMember("a.tar", "../x", 0, "", 5, refused=unsafe)
    found = contents([plain, tars[0], refused, tars[1], zips[0], plain, zips[1]])
    first, second = FILES["0.jpg"], FILES["1.jpg"]
    assert found == [b"plain", first, "unsafe_member", second, first, b"plain", second]


def test_packed_stream_continues_where_the_last_block_ended(faulty):
    faulty.objects["/bucket/a"] = MAKE["tar.gz"]()
    listed, data = members(opened(f"{faulty.url}/bucket/a", "tar.gz")), list(FILES.values())
    fetcher = patient()
    reader = MemberReader(fetcher, max_bytes=2**20)
    for start in range(0, 40, 8):
        block = slice(start, start + 8)
        assert [found for _, found in reader.read(listed[block])] == data[block]
    assert fetcher.counts["requests"] == 2  # its size, its bytes
    assert [found for _, found in reader.read(listed[:2])] == data[:2]
    assert fetcher.counts["requests"] == 4


@pytest.mark.parametrize("kind", ["zip", *hazards.PACK])
def test_archive_that_is_a_bomb_takes_little_memory(tmp_path, kind):
    (tmp_path / "bomb").write_bytes(hazards.bomb(kind, 24 * 2**20))
    tracemalloc.start()
    listed = opened(tmp_path / "bomb", kind, max_ratio=10**6)
    assert "image_too_large" in contents(listed)
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


SMALL = {"a.jpg": b"some bytes" * 20, "a.json": b"{}", "b.jpg": bytes(100), "b.txt": b"\xff"}
SEEDS = {
    "tar": [
        hazards.tar(SMALL),
        hazards.tar({"long" * 60: b"x"}, tar_format=1),
        hazards.sparse_old(),
    ],
    **{kind: [pack(hazards.tar(SMALL))] for kind, pack in hazards.PACK.items()},
    "zip": [
        hazards.zipped(SMALL),
        hazards.zip64_forced(),
        hazards.overlapping_zip(),
        hazards.streamed_zip(zipfile.ZIP_DEFLATED),
    ],
}


def damaged(kind: str) -> st.SearchStrategy[bytes]:
    """Whatever bytes, or an archive with some of its bytes changed and perhaps its end cut off."""

    def change(seed: bytes, changes: list[tuple[int, int]], kept: int) -> bytes:
        data = bytearray(seed)
        for place, value in changes:
            data[place % len(data)] = value
        return bytes(data[: max(1, kept % (2 * len(data)))])

    number = st.integers(0, 2**16)
    value = st.sampled_from([0, 1, 2, 8, 0x30, 0x37, 0x7F, 0x80, 0xFF])
    changes = st.lists(st.tuples(number, value), max_size=6)
    seeds = st.sampled_from(SEEDS[kind])
    return st.binary(max_size=1500) | st.builds(change, seeds, changes, number)


@pytest.mark.parametrize("examples", [20, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", list(SEEDS))
def test_archive_of_any_bytes_is_members_or_a_refusal(tmp_path_factory, kind, examples):
    folder = tmp_path_factory.mktemp("fuzz")

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(damaged(kind))
    def check(data: bytes) -> None:
        listed = written(folder, data, kind)
        for item in listed:
            assert (item.place is None) == (item.refused is not None)
            assert item.refused is None or item.refused.detail
            assert 0 <= item.size_bytes < 2**60
        assert len({(item.member, item.occurrence) for item in listed}) == len(listed)
        for item, found in zip(listed, contents(listed, max_bytes=10**6), strict=True):
            assert isinstance(found, str) or len(found) == item.size_bytes

    check()


SIZES = (10, 300, 20, 500, 30, 5000, 40)


@pytest.fixture
def budget(tmp_path_factory):
    return NodeBudget("files", 4 * SLOT_BYTES, tmp_path_factory.mktemp("seats"))


def files_of(folder, *sizes):
    for place, size in enumerate(sizes):
        (folder / f"{place}.jpg").write_bytes(bytes([place]) * size)
    return members(list(open_source([str(folder)])))


def test_large_files_come_in_order_and_hold_one_seat(tmp_path, budget):
    """A file larger than the read-ahead has a seat until the next one is asked for."""
    reader = MemberReader(Fetcher(), max_bytes=1000, depth_bytes=100, budget=budget)
    for (member, data), size in zip(reader.read(files_of(tmp_path, *SIZES)), SIZES, strict=True):
        taken = budget._lock_free_slots(budget._folder, 4)
        for seat in taken:
            os.close(seat)
        assert len(taken) == (3 if 100 < size <= 1000 else 4), member.uri
        assert getattr(data, "status", size) == (Status.IMAGE_TOO_LARGE if size > 1000 else size)
        assert isinstance(data, InputError) or len(data) == size


def test_large_files_are_held_one_at_a_time(tmp_path, budget):
    size = 4 * 2**20
    reader = MemberReader(Fetcher(), max_bytes=10**9, depth_bytes=2**20, budget=budget)
    arriving = reader.read(files_of(tmp_path, *[size] * 5))
    tracemalloc.start()
    assert sum(len(next(arriving)[1]) for _ in range(5)) == 5 * size
    assert tracemalloc.get_traced_memory()[1] < 1.5 * size
    tracemalloc.stop()


def test_large_file_of_unknown_size_is_asked_for_again(faulty, budget, monkeypatch):
    monkeypatch.setattr(reading, "_UNSIZED_BYTES", 1000)
    bodies = {"/a.jpg": b"a" * 900, "/b.jpg": b"b" * 5000, "/c.jpg": b"c" * 90_000}
    faulty.objects.update(bodies)
    listed = members([ListedMember(f"{faulty.url}{path}", None, 0, "", -1) for path in bodies])
    reader = MemberReader(patient(), max_bytes=10_000, budget=budget)
    first, second, third = (data for _, data in reader.read(listed))
    assert (first, second) == (bodies["/a.jpg"], bodies["/b.jpg"])
    assert (third.status, third.limit) == (Status.IMAGE_TOO_LARGE, 10_000)
