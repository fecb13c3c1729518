"""Sizes and words that lists, inventories and containers state, on their way into a manifest."""

import json

import numpy as np
import pytest

from ray_app.archives import BlockPlan, ListedMember, iter_blocks, list_members, open_source, read_block, read_blocks
from ray_app.archives.manifest import MOST_BYTES, listed_rows
from ray_app.archives.members import RefusedMember
from ray_app.errors import Status
from ray_app.storage import Store


def manifest_of(tmp_path, source):
    store = Store.open(str(tmp_path / "run"))
    list_members(store, open_source([str(source)]), BlockPlan(batch_slots=4, max_block_members=8))
    return store, [row for ref in iter_blocks(store, 0) for row in read_block(store, ref).to_pylist()]


@pytest.mark.parametrize("stated", [2**63 - 1, 2**64 - 1, 2**70, MOST_BYTES + 1, 1e300, -5, True, "many", None])
def test_a_size_that_no_object_has_is_not_known(tmp_path, stated):
    listing = tmp_path / "images.jsonl"
    listing.write_text("".join(json.dumps({"uri": f"s3://nowhere/{number}.jpg", "size_bytes": stated}) + "\n" for number in range(3)))
    store, rows = manifest_of(tmp_path, listing)
    assert [row["size_bytes"] for row in rows] == [-1] * 3
    assert read_blocks(store, 0).size_bytes == 0


def test_sizes_that_objects_have_are_kept_and_a_block_adds_them_up(tmp_path):
    listing = tmp_path / "images.jsonl"
    listing.write_text("".join(json.dumps({"uri": f"s3://nowhere/{number}.jpg", "size_bytes": MOST_BYTES}) + "\n" for number in range(20)))
    store, rows = manifest_of(tmp_path, listing)
    assert {row["size_bytes"] for row in rows} == {MOST_BYTES}
    assert read_blocks(store, 0).size_bytes == 20 * MOST_BYTES


@pytest.mark.parametrize("size", [2**63, 2**64, 10**30])
def test_a_number_beyond_the_column_stops_no_listing(size):
    rows = listed_rows(np.array([1, 2], np.int64), [ListedMember("a", None, 0, "", size), ListedMember("b", None, 0, "", 7)])
    assert rows["size_bytes"].to_pylist() == [-1, 7]


def test_a_refusal_is_one_line():
    refused = RefusedMember(Status.CORRUPT_IMAGE, "damaged:\x1b[31m\n" + "a" * 5000)
    [row] = listed_rows(np.array([1], np.int64), [ListedMember("a", None, 0, "", 7, refused=refused)]).to_pylist()
    assert row["refused"]["detail"].startswith("damaged:\\x1b[31m\\naaa")
    assert len(row["refused"]["detail"]) == 1000
