"""What a pass over a listing counts: kinds, sizes, and the requests that reading it takes."""

import io
import tarfile
import zipfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives import (
    ListedMember,
    ManifestMember,
    MemberLocation,
    MemberReader,
    RefusedMember,
    open_source,
)
from ray_app.errors import Status
from ray_app.scoring.survey import survey
from ray_app.storage import Fetcher, Store

MIB = 2**20


def file(name, size=1000):
    return ListedMember(f"s3://bucket/{name}", None, 0, "v", size)


def inside(container, kind, offset, size=1000, group=0):
    return ListedMember(
        f"s3://bucket/{container}",
        str(offset),
        0,
        "v",
        size,
        place=MemberLocation(kind, offset, size, group),
    )


def counted(items, **options):
    return survey(items, **{"sample": 0, "max_bytes": 100 * MIB} | options)


def test_a_file_is_one_request():
    found = counted([file(f"{number}.jpg") for number in range(2500)])
    assert (found.members, found.size_bytes, found.gets, found.lists) == (2500, 2_500_000, 2500, 3)


def test_each_container_is_read_for_itself():
    found = counted(
        [inside("a.zip", "zip", 0), inside("b.zip", "zip", 0), inside("b.zip", "zip", 2000)]
    )
    assert (found.gets, found.billed) == (2, 2)
    assert found.kinds["zip"] == {"members": 3, "size_bytes": 3000, "containers": 2}


def test_what_is_refused_costs_no_request():
    locked = ListedMember(
        "s3://bucket/a.zip",
        "x",
        0,
        "v",
        10,
        place=MemberLocation("zip", 0, 10),
        refused=RefusedMember(Status.ENCRYPTED_MEMBER, "locked"),
    )
    found = counted([locked, file("large.tif", 200 * MIB), file("b.jpg")])
    assert (found.members, found.gets, found.size_bytes) == (3, 1, 1000)
    assert found.refused == {"encrypted_member": 1}
    assert counted([locked, inside("a.zip", "zip", 50)]).gets == 1


def test_files_of_this_machine_are_not_billed():
    found = counted([ListedMember("/photos/a.jpg", None, 0, "v", 10)])
    assert (found.gets, found.lists, found.size_bytes) == (0, 0, 10)


def test_sample_is_even_and_the_same_every_time():
    items = [file(f"{number}.jpg") for number in range(1000)]
    first, second = (survey(items, sample=64, max_bytes=MIB).sample for _ in range(2))
    assert first == second
    assert len(set(item.uri for item in first)) == 64
    assert counted(items[:40], sample=64).sample == items[:40]


@pytest.mark.parametrize("total", [500, 5000, 70_000])
def test_sample_has_each_kind_in_proportion(total):
    tenth = total // 10
    items = [file(f"{number}.jpg") for number in range(3 * tenth)]
    items += [inside("large.tar", "tar", number) for number in range(2 * tenth)]
    items += [inside("small.tar", "tar", number) for number in range(5 * tenth)]
    uris = Counter(item.uri for item in survey(items, sample=50, max_bytes=MIB).sample)
    assert uris["s3://bucket/large.tar"] == pytest.approx(10, abs=1)
    assert uris["s3://bucket/small.tar"] == pytest.approx(25, abs=1)


def test_sample_of_alternating_files_has_both_kinds():
    items = [file(f"{number}.{('jpg', 'png')[number % 2]}") for number in range(4096)]
    photos = sum(
        item.uri.endswith("jpg") for item in survey(items, sample=64, max_bytes=MIB).sample
    )
    assert 20 < photos < 44


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet"])
def test_the_requests_it_counts_are_those_that_reading_makes(kind, s3, tmp_path):
    packed, blobs = tmp_path / f"a.{kind}", [bytes([number]) * (3 * MIB) for number in range(5)]
    pack(kind, packed, blobs)
    store = Store.open(s3.bucket(f"read-{kind}"))
    store.write(packed.name, packed.read_bytes())
    listed = list(open_source([store.url]))
    fetcher = Fetcher()
    members = [
        ManifestMember(
            slot,
            item.uri,
            item.member,
            0,
            item.version,
            item.size_bytes,
            0,
            slot,
            item.input,
            item.place,
        )
        for slot, item in enumerate(listed)
    ]
    assert [data for _, data in MemberReader(fetcher, max_bytes=100 * MIB).read(members)] == blobs
    assert counted(listed).gets == fetcher.counts["requests"]


def pack(kind, path, blobs):
    if kind == "parquet":
        pq.write_table(pa.table({"image": blobs}), path, compression="none", use_dictionary=False)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            for number, blob in enumerate(blobs):
                packed.writestr(f"{number}.jpg", blob)
    else:
        with tarfile.open(path, "w") as tar:
            for number, blob in enumerate(blobs):
                info = tarfile.TarInfo(f"{number}.jpg")
                info.size = len(blob)
                tar.addfile(info, io.BytesIO(blob))
