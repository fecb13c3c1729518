import hashlib
from dataclasses import replace
from itertools import islice

import pytest

from ray_app.archives import BlockPlan, ListedMember, block_sizes, image_id
from ray_app.archives import members as blocks


@pytest.mark.parametrize(("slots", "limit"), [(1, 1000), (4, 128), (8, 1024), (16, 16), (256, 100)])
def test_sizes_double_after_every_run_of_blocks(slots, limit):
    first = max(slots, blocks._FIRST_BLOCK_MEMBERS)
    largest = max(slots, limit // slots * slots)
    expected = [min(largest, first * 2 ** (block // 32)) for block in range(1000)]
    assert list(islice(block_sizes(BlockPlan(batch_slots=slots, max_block_members=limit)), 1000)) == expected


def test_the_id_is_fixed_for_ever():
    item = ListedMember("s3://b/a.jpg", None, 0, "etag", 5)
    encoded = (12).to_bytes(8, "little") + b"s3://b/a.jpg" + b"\xff" * 8 + bytes(8) + (4).to_bytes(8, "little") + b"etag"
    assert image_id(item) == int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big", signed=True) == -5247963748008604655


def test_ids_are_equal_only_for_equal_members():
    """Whose texts are other texts' when they are joined."""
    parts = [("ab", "c", 0, "d"), ("a", "bc", 0, "d"), ("ab", None, 0, "cd"), ("ab", "", 0, "cd"), ("ab", "c", 1, "d"), ("", "abc", 0, "d")]
    assert len({image_id(ListedMember(*each, 1)) for each in parts}) == len(parts)


@pytest.mark.parametrize("field", ["uri", "member", "version"])
def test_every_part_counts(field):
    item = ListedMember("a", "b", 0, "c", 1)
    assert image_id(replace(item, **{field: "x"})) != image_id(item)
    assert image_id(replace(item, occurrence=1)) != image_id(item)
    assert image_id(replace(item, size_bytes=2)) == image_id(item)
