import itertools
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.archives import (
    BlockPlan,
    Listed,
    block_sizes,
    build_manifest,
    current_ids,
    image_id,
    iter_blocks,
    known_ids,
    list_changes,
    manifests,
    member_rows,
    open_source,
    read_block,
    read_complete,
    read_vanished,
)
from ray_app.errors import IdentityError
from ray_app.storage import Store

PLAN = BlockPlan(batch_slots=4, max_block_members=128)
_roots = itertools.count()


def listed(number: int, version: int = 0) -> Listed:
    return Listed(f"s3://bucket/{number:07}.jpg", None, 0, f"v{version}", number)


def ids_of(items) -> list[int]:
    return sorted(image_id(item) for item in items)


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "local":
        return Store.open(str(tmp_path / "run"))
    s3 = request.getfixturevalue("s3")
    s3.bucket("manifests")
    return Store.open(f"s3://manifests/{request.node.name}")


def all_members(store, number=0):
    return [member for ref in iter_blocks(store, number) for member in member_rows(read_block(store, ref))]


class TestBuilding:
    def test_keeps_every_member_in_its_place(self, store):
        items = [listed(number) for number in range(3000)]
        told = []
        info = build_manifest(store, iter(items), PLAN, progress=told.append)
        members = all_members(store)
        assert [(m.uri, m.member, m.occurrence, m.version, m.size_bytes) for m in members] == [
            (i.uri, None, 0, i.version, i.size_bytes) for i in items
        ]
        assert [m.image_id for m in members] == [image_id(item) for item in items]
        assert all(m.input == {} for m in members)
        assert info == read_complete(store, 0)
        assert (info.members, info.listed, info.vanished, info.size_bytes) == (3000, 3000, 0, sum(range(3000)))
        assert told[-1] == 3000
        assert manifests(store) == [0]

    def test_blocks_say_what_they_hold(self, store):
        info = build_manifest(store, (listed(number) for number in range(5000)), PLAN)
        refs = list(iter_blocks(store, 0))
        assert len(refs) == info.blocks
        assert [ref.members for ref in refs[:-1]] == list(itertools.islice(block_sizes(PLAN), len(refs) - 1))
        assert sum(ref.members for ref in refs) == 5000
        for ref in refs[::17]:
            members = member_rows(read_block(store, ref))
            assert [(m.block, m.slot) for m in members] == [(ref.block, slot) for slot in range(ref.members)]
            assert ref.size_bytes == sum(m.size_bytes for m in members)

    def test_the_columns_are_the_contract(self, store):
        build_manifest(store, [Listed("tar.tar", "a.jpg", 1, "", -1)], PLAN)
        [ref] = iter_blocks(store, 0)
        table = read_block(store, ref)
        assert table.schema.names == ["image_id", "uri", "member", "occurrence", "version", "size_bytes", "block", "slot"]
        assert table.schema.field("image_id").type == pa.int64()
        assert ref.size_bytes == 0

    def test_columns_of_the_source_are_kept_with_their_types(self, store):
        columns = pa.struct([("label", pa.int8()), ("generator", pa.string())])
        items = [Listed("a", None, 0, "", 1, {"label": 1, "generator": None}), Listed("b", None, 0, "", 1, {"generator": "x"})]
        build_manifest(store, items, PLAN, input_type=columns)
        [ref] = iter_blocks(store, 0)
        table = read_block(store, ref)
        assert table.schema.field("input").type == columns
        assert [m.input for m in member_rows(table)] == [{"label": 1, "generator": None}, {"label": None, "generator": "x"}]

    def test_the_same_archive_gives_the_same_bytes(self, tmp_path):
        stores = [Store.open(str(tmp_path / name)) for name in "ab"]
        for one in stores:
            build_manifest(one, (listed(number) for number in range(1000)), PLAN, clock=lambda: 0.0)
        assert stores[0].names("manifest/0") == stores[1].names("manifest/0")
        for name in stores[0].names("manifest/0"):
            assert stores[0].read(f"manifest/0/{name}") == stores[1].read(f"manifest/0/{name}")

    @settings(max_examples=10, deadline=None)
    @given(st.integers(0, 2000), st.builds(BlockPlan, batch_slots=st.integers(1, 100), max_block_members=st.integers(1, 500)))
    def test_blocks_are_a_partition_of_the_members(self, count, plan):
        store = Store.open(f"memory://partition-{next(_roots)}")
        items = [listed(number) for number in range(count)]
        build_manifest(store, items, plan)
        assert [m.image_id for m in all_members(store)] == [image_id(item) for item in items]
        refs = list(iter_blocks(store, 0))
        assert [ref.block for ref in refs] == list(range(len(refs)))
        assert all(ref.members % plan.batch_slots == 0 for ref in refs[:-1])


class TestInterruption:
    def test_an_unfinished_manifest_does_not_count_and_is_written_anew(self, store):
        def breaks():
            yield from (listed(number) for number in range(20_000))
            raise ConnectionError("the listing ended early")

        with pytest.raises(ConnectionError):
            build_manifest(store, breaks(), PLAN)
        assert store.names("manifest/0") != []
        assert manifests(store) == []
        assert read_complete(store, 0) is None
        build_manifest(store, [listed(1)], PLAN)
        assert store.names("manifest/0") == ["_complete", "blocks.parquet", "part-00000.parquet", "vanished.parquet"]
        assert known_ids(store).tolist() == [image_id(listed(1))]

    def test_killed_while_writing_the_second(self, tmp_path):
        script = """
import os, signal, sys
from ray_app.archives import BlockPlan, Listed, build_manifest, list_changes
from ray_app.storage import Store
store = Store.open(sys.argv[1])
plan = BlockPlan(batch_slots=4, max_block_members=128)
build_manifest(store, [Listed("a", None, 0, "", 1)], plan)
def more():
    for number in range(20000):
        yield Listed(str(number), None, 0, "", 1)
    os.kill(os.getpid(), signal.SIGKILL)
list_changes(store, more(), plan)
"""
        assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
        store = Store.open(str(tmp_path))
        assert store.folders("manifest") == ["0", "1"]
        assert manifests(store) == [0]
        info = list_changes(store, [Listed("a", None, 0, "", 1), Listed("b", None, 0, "", 1)], PLAN)
        assert (info.manifest, info.members) == (1, 1)
        assert manifests(store) == [0, 1]

    def test_another_version_s_manifest_is_not_guessed_at(self, store):
        store.write("manifest/0/_complete", b'{"format": 99}')
        with pytest.raises(IdentityError, match="another version"):
            read_complete(store, 0)


class TestChanges:
    def test_nothing_changed(self, store):
        build_manifest(store, [listed(number) for number in range(100)], PLAN)
        assert list_changes(store, [listed(number) for number in reversed(range(100))], PLAN) is None
        assert store.folders("manifest") == ["0"]

    def test_new_rewritten_and_deleted_files(self, store):
        build_manifest(store, [listed(number) for number in range(300)], PLAN)
        now = [listed(number, version=number // 290) for number in range(20, 350)]
        info = list_changes(store, now, PLAN)
        assert (info.manifest, info.members, info.listed, info.vanished) == (1, 60, 330, 30)
        assert [m.uri for m in all_members(store, 1)] == [item.uri for item in now if item not in [listed(n) for n in range(300)]]
        assert read_vanished(store, 1).tolist() == ids_of([listed(n) for n in range(20)] + [listed(n) for n in range(290, 300)])
        assert current_ids(store).tolist() == ids_of(now)
        assert list_changes(store, now, PLAN) is None

    def test_a_file_put_back_is_current_again(self, store):
        build_manifest(store, [listed(1), listed(2, version=1)], PLAN)
        assert list_changes(store, [listed(1), listed(2, version=2)], PLAN).members == 1
        info = list_changes(store, [listed(1), listed(2, version=1)], PLAN)
        assert (info.manifest, info.members, info.blocks) == (2, 0, 0)
        assert read_vanished(store, 2).tolist() == [image_id(listed(2, version=2))]
        assert current_ids(store).tolist() == ids_of([listed(1), listed(2, version=1)])
        assert list(iter_blocks(store, 2)) == []

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.sets(st.tuples(st.integers(0, 15), st.integers(0, 2)), min_size=1), min_size=1, max_size=5))
    def test_current_is_always_the_latest_listing(self, listings):
        store = Store.open(f"memory://changes-{next(_roots)}")
        ever: set[tuple[int, int]] = set()
        for index, wanted in enumerate(listings):
            items = [listed(*one) for one in sorted(wanted)]
            info = build_manifest(store, items, PLAN) if index == 0 else list_changes(store, items, PLAN)
            assert current_ids(store).tolist() == ids_of(items)
            new = wanted - ever
            assert (info.members if info else 0) == len(new)
            ever |= wanted
        assert known_ids(store).tolist() == ids_of([listed(*one) for one in ever])
        assert len(np.unique(known_ids(store))) == len(ever)


def test_from_files_to_blocks_and_back(tmp_path, s3):
    bucket = s3.bucket("whole-way")
    for number in range(30):
        s3.client().put_object(Bucket="whole-way", Key=f"in/{number:02}.jpg", Body=bytes([number]))
    store = Store.open(f"{bucket}/in/run")
    archive = open_source([f"{bucket}/in"], skip=[store.url])
    build_manifest(store, archive, PLAN)
    assert list_changes(store, archive, PLAN) is None
    s3.client().put_object(Bucket="whole-way", Key="in/07.jpg", Body=b"rewritten")
    s3.client().put_object(Bucket="whole-way", Key="in/99.jpg", Body=b"new")
    list_changes(store, archive, PLAN)
    assert [m.uri for m in all_members(store, 1)] == [f"{bucket}/in/07.jpg", f"{bucket}/in/99.jpg"]


def test_memory_does_not_grow_with_the_archive(tmp_path):
    script = """
import resource, sys
from ray_app.archives import BlockPlan, Listed, build_manifest
from ray_app.storage import Store
def listed(count):
    for number in range(count):
        yield Listed(f"s3://a-bucket-with-a-name/photos/2024/{number:09}/original.jpg", None, 0, f"{number:032x}", 300_000)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
build_manifest(Store.open(sys.argv[1] + "/small"), listed(10_000), BlockPlan())
before = peak()
build_manifest(Store.open(sys.argv[1] + "/large"), listed(80_000), BlockPlan())
print(peak() - before)
"""
    shown = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(shown.stdout) < 60
