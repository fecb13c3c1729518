import hashlib
import itertools
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.archives import (
    BlockPlan,
    ListedMember,
    RefusedMember,
    image_id,
    iter_block_sizes,
    list_complete_manifests,
    list_members,
    open_source,
    read_block,
    read_blocks,
    read_complete,
    read_ids,
    read_vanished,
    rows_to_members,
)
from ray_app.archives.build import Portions
from ray_app.archives.manifest import MAX_BYTES, listed_rows
from ray_app.errors import IdentityError, Status
from ray_app.storage import Store
from tests.archives.given import SWEEPS, Given, all_members, listed

PLAN = BlockPlan(batch_slots=4, max_block_members=128)
_roots = itertools.count()


def ids_of(items) -> list[int]:
    return sorted(image_id(item) for item in items)


def known_ids(store) -> list[int]:
    return sorted(
        number
        for manifest in list_complete_manifests(store)
        for ids in read_ids(store, read_blocks(store, manifest))
        for number in ids.tolist()
    )


def current_ids(store) -> list[int]:
    return sorted(
        set(known_ids(store))
        - set(read_vanished(store, list_complete_manifests(store)[-1]).tolist())
    )


def list_items(store, items, plan=PLAN, **options):
    return list_members(store, Given(items), plan, **options)


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "run"))


def test_manifest_keeps_every_member_in_its_place(store):
    items, told = [listed(number) for number in range(3000)], []
    info = list_items(store, items, progress=told.append)
    members = all_members(store)
    assert [(m.uri, m.member, m.occurrence, m.version, m.size_bytes) for m in members] == [
        (i.uri, None, 0, i.version, i.size_bytes) for i in items
    ]
    assert [m.image_id for m in members] == [image_id(item) for item in items]
    assert all(m.input == {} for m in members)
    assert info == read_complete(store, 0)
    assert (info.members, info.listed, info.vanished) == (3000, 3000, 0)
    assert info.size_bytes == sum(range(3000))
    assert told[-1] == 3000
    refs = read_blocks(store, 0)
    assert (len(refs), refs.members, refs.size_bytes) == (info.blocks, 3000, info.size_bytes)
    sizes = list(itertools.islice(iter_block_sizes(PLAN), len(refs) - 1))
    assert [ref.members for ref in refs][:-1] == sizes
    contract = "image_id uri member occurrence version size_bytes block slot place refused"
    assert read_block(store, refs[0]).schema.names == contract.split()


@pytest.mark.parametrize("runs", [1, 3])
def test_block_has_no_more_bytes_than_allowed_unless_one_file(store, runs):
    sizes = [10] * 18 + [400, 700, 100, 2000, -1, 900, 100] + [10] * 50
    items = [replace(listed(number), size_bytes=size) for number, size in enumerate(sizes)]
    plan = BlockPlan(batch_slots=4, max_block_members=16, max_block_bytes=1000)
    list_items(store, items, plan, portions=Portions(raw_rows=30, run_rows=-(-len(items) // runs)))
    held = [
        [member.size_bytes for member in rows_to_members(read_block(store, ref))]
        for ref in read_blocks(store, 0)
    ]
    assert list(itertools.chain(*held)) == sizes
    assert all(sum(block) <= 1000 or len(block) == 1 for block in held)
    assert [400] not in held or runs > 1
    assert max(map(len, held)) == 16
    assert read_blocks(store, 0).heaviest_mean == 2000


def test_manifest_that_is_unfinished_is_written_again(store):
    store.write("manifest/0/part-00000-00007.parquet", b"left behind")
    store.write("manifest/0/listing/000000-00000.ids", b"left behind")
    assert list_complete_manifests(store) == []
    assert read_complete(store, 0) is None
    list_items(store, [listed(1)])
    files = "_complete blocks.parquet part-00000-00000.parquet vanished.parquet"
    assert store.names("manifest/0") == files.split()
    assert store.names("manifest/0/listing") == []
    assert known_ids(store) == [image_id(listed(1))]


def test_manifest_of_another_version_is_refused(store):
    store.write("manifest/0/_complete", b'{"format": 99}')
    with pytest.raises(IdentityError, match="another version"):
        read_complete(store, 0)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_manifest_names_new_rewritten_and_deleted_files(store, place, request):
    if place == "s3":
        store = Store.open(f"{request.getfixturevalue('s3').bucket('manifests')}/run")
    old = [listed(number) for number in range(300)]
    now = [listed(number, version=number // 290) for number in range(20, 350)]
    list_items(store, old)
    info = list_items(store, now)
    assert (info.manifest, info.members, info.listed, info.vanished) == (1, 60, 330, 30)
    assert [m.uri for m in all_members(store, 1)] == [item.uri for item in now if item not in old]
    assert read_vanished(store, 1).tolist() == ids_of(old[:20] + old[290:])
    assert current_ids(store) == ids_of(now)
    assert list_items(store, now) is None


def test_damaged_memory_of_ids_hides_and_doubles_no_member(store):
    for number in range(10, 22, 3):
        list_items(store, [listed(n) for n in range(number)])
    kept = store.read("ids/00000.parquet")
    turned = kept[:60] + bytes([kept[60] ^ 1]) + kept[61:]  # one bit of the ids
    for number, damaged in enumerate((kept[:40], b"", kept[:-60] + b"x" * 60, turned), start=20):
        store.write("ids/00000.parquet", damaged)
        assert list_items(store, [listed(n) for n in range(number)]).members == 1
    assert known_ids(store) == ids_of([listed(n) for n in range(23)])


@pytest.mark.parametrize("examples", SWEEPS)
def test_current_members_are_those_of_the_latest_listing(examples):
    members = st.sets(st.tuples(st.integers(0, 15), st.integers(0, 2)), min_size=1)
    listings = st.lists(members, min_size=1, max_size=5)
    settings(max_examples=examples, deadline=None)(given(listings)(assert_current))()


def assert_current(listings):
    store = Store.open(f"memory://changes-{next(_roots)}")
    ever: set[tuple[int, int]] = set()
    for wanted in listings:
        items = [listed(*one) for one in sorted(wanted)]
        info = list_items(store, items)
        assert current_ids(store) == ids_of(items)
        new = wanted - ever
        assert (info.members if info else 0) == len(new)
        ever |= wanted
    assert known_ids(store) == ids_of([listed(*one) for one in ever])
    assert len(np.unique(known_ids(store))) == len(ever)


@pytest.mark.slow
def test_memory_grows_neither_with_a_list_nor_with_its_manifest(tmp_path):
    script = """
import sys
from ray_app.archives import BlockPlan, ListedMember, Portions, list_members, open_source
from ray_app.storage import Store
from tests.archives.given import Given, Items
def listed(count):
    for number in range(count):
        yield ListedMember(f"s3://a-bucket-with-a-name/photos/2024/{number:09}/original.jpg", None, 0, f"{number:032x}", 300_000)
def told():
    print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
for path in sys.argv[1:]:
    sum(1 for _ in open_source([path]))
    told()
portions = Portions(raw_rows=8192, id_rows=8192, run_rows=8192, few=0)
for count in (5_000, 30_000):
    list_members(Store.open(f"{path}-{count}"), Given(Items(listed(count))), BlockPlan(), portions=portions)
    told()
"""
    paths = []
    for count in (100_000, 600_000):
        paths.append(tmp_path / f"{count}.csv")
        with open(paths[-1], "w") as file:
            file.write("uri,label\n")
            file.writelines(f"s3://bucket/folder/image-{n:09}.jpg,{n % 2}\n" for n in range(count))
    done = subprocess.run(
        [sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True
    )
    short, long, few, many = map(int, done.stdout.split())
    assert long < 1.2 * short
    assert many - few < 30, "25,000 members held would take 22 more than what a listing may carry"


def test_image_id_never_changes():
    item = ListedMember("s3://b/a.jpg", None, 0, "etag", 5)
    parts = [(12).to_bytes(8, "little"), b"s3://b/a.jpg", b"\xff" * 8, bytes(8)]
    encoded = b"".join([*parts, (4).to_bytes(8, "little"), b"etag"])
    first = hashlib.sha256(encoded).digest()[:8]
    assert image_id(item) == int.from_bytes(first, "big", signed=True) == -5247963748008604655


def test_image_ids_of_members_with_the_same_joined_text_differ():
    parts = [("ab", "c", 0, "d"), ("a", "bc", 0, "d"), ("ab", None, 0, "cd"), ("ab", "", 0, "cd")]
    parts += [("ab", "c", 1, "d"), ("ab", "c", 0, "e")]
    assert len({image_id(ListedMember(*each, 1)) for each in parts}) == len(parts)


def test_size_that_no_object_has_is_unknown(tmp_path):
    stated = [2**63 - 1, 2**64 - 1, 2**70, MAX_BYTES + 1, 1e300, -5, True, "many", None]
    for number, sizes in enumerate([*([size] * 3 for size in stated), [MAX_BYTES] * 20]):
        listing, store = tmp_path / f"{number}.jsonl", Store.open(str(tmp_path / f"of {number}"))
        rows = [{"uri": f"s3://no/{n}.jpg", "size_bytes": size} for n, size in enumerate(sizes)]
        listing.write_text("\n".join(map(json.dumps, rows)))
        list_members(store, open_source([str(listing)]), PLAN)
        known = sizes if sizes[0] == MAX_BYTES else [-1] * 3
        assert [member.size_bytes for member in all_members(store)] == known
        assert read_blocks(store, 0).size_bytes == max(0, sum(known))


def test_refusal_of_a_member_is_one_line():
    refused = RefusedMember(Status.CORRUPT_IMAGE, "damaged:\x1b[31m\n" + "a" * 5000)
    [row] = listed_rows(
        np.array([1], np.int64), [ListedMember("a", None, 0, "", 7, refused=refused)]
    ).to_pylist()
    assert row["refused"]["detail"].startswith("damaged:\\x1b[31m\\naaa")
    assert len(row["refused"]["detail"]) == 1000
