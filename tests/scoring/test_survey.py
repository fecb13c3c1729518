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


def inside(container, offset, size=1000, **facts):
    place = MemberLocation(container.partition(".")[2], offset, size)
    uri = f"s3://bucket/{container}"
    return ListedMember(uri, str(offset), 0, "v", size, place=place, **facts)


def counted(items, **options):
    return survey(items, **{"sample": 0, "max_bytes": 100 * MIB} | options)


def sampled(items, count):
    return [item.uri for item in survey(items, sample=count, max_bytes=MIB).sample]


def test_survey_counts_a_request_for_each_file():
    found = counted([file(f"{number}.jpg") for number in range(2500)])
    assert (found.members, found.size_bytes, found.gets, found.lists) == (2500, 2_500_000, 2500, 3)


def test_survey_counts_containers_one_by_one():
    found = counted([inside("a.zip", 0), inside("b.zip", 0), inside("b.zip", 2000)])
    assert (found.gets, found.billed) == (2, 2)
    assert found.kinds["zip"] == {"members": 3, "size_bytes": 3000, "containers": 2}


def test_refused_members_and_local_files_cost_no_request():
    locked = inside("a.zip", 9, refused=RefusedMember(Status.ENCRYPTED_MEMBER, "locked"))
    found = counted([locked, file("large.tif", 200 * MIB), file("b.jpg")])
    assert (found.members, found.gets, found.size_bytes) == (3, 1, 1000)
    assert found.refused == {"encrypted_member": 1}
    assert counted([locked, inside("a.zip", 50)]).gets == 1
    found = counted([ListedMember("/photos/a.jpg", None, 0, "v", 10)])
    assert (found.gets, found.lists, found.size_bytes) == (0, 0, 10)


def test_sample_is_even_and_the_same_every_time():
    items = [file(f"{number}.jpg") for number in range(1000)]
    assert sampled(items, 64) == sampled(items, 64)
    assert len(set(sampled(items, 64))) == 64
    assert sampled(items[:40], 64) == [item.uri for item in items[:40]]
    alternating = [file(f"{number}.{('jpg', 'png')[number % 2]}") for number in range(4096)]
    assert 20 < sum(uri.endswith("jpg") for uri in sampled(alternating, 64)) < 44


@pytest.mark.parametrize("total", [500, 70_000])
def test_sample_has_each_kind_in_proportion(total):
    tenth = total // 10
    items = [file(f"{number}.jpg") for number in range(3 * tenth)]
    items += [inside("large.tar", number) for number in range(2 * tenth)]
    items += [inside("small.tar", number) for number in range(5 * tenth)]
    uris = Counter(sampled(items, 50))
    assert uris["s3://bucket/large.tar"] == pytest.approx(10, abs=1)
    assert uris["s3://bucket/small.tar"] == pytest.approx(25, abs=1)


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet"])
def test_survey_counts_the_requests_that_reading_makes(kind, s3, tmp_path):
    packed, blobs = tmp_path / f"a.{kind}", [bytes([number]) * (3 * MIB) for number in range(5)]
    pack(kind, packed, blobs)
    store = Store.open(s3.bucket(f"read-{kind}"))
    store.write(packed.name, packed.read_bytes())
    listed, fetcher = list(open_source([store.url])), Fetcher()
    members = [
        ManifestMember(
            slot, item.uri, item.member, 0, item.version, item.size_bytes,
            0, slot, item.input, item.place,
        )
        for slot, item in enumerate(listed)
    ]  # fmt: skip
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
