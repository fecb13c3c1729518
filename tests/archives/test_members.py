import hashlib
from dataclasses import replace
from itertools import accumulate, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.archives import BlockPlan, ListedMember, block_sizes, image_id
from ray_app.archives import members as blocks
from tests.archives.given import SWEEPS

plans = st.builds(BlockPlan, batch_slots=st.integers(1, 300), max_block_members=st.integers(1, 5000))


@given(plans)
def test_blocks_are_whole_batches_that_only_grow_up_to_the_limit(plan):
    sizes = list(islice(block_sizes(plan), 600))
    assert all(size % plan.batch_slots == 0 for size in sizes)
    assert sizes == sorted(sizes)
    assert sizes[-1] <= max(plan.batch_slots, plan.max_block_members)
    assert sizes[0] <= max(plan.batch_slots, 1.5 * blocks._FIRST_BLOCK_MEMBERS)


@given(plans, st.integers(0, 20_000))
def test_blocks_are_a_partition(plan, members):
    ends = []
    for end in accumulate(block_sizes(plan)):
        ends.append(min(end, members))
        if end >= members:
            break
    starts = [0, *ends[:-1]]
    covered = [number for start, end in zip(starts, ends, strict=True) for number in range(start, end)]
    assert covered == list(range(members))


@pytest.mark.parametrize(("slots", "limit"), [(1, 1000), (4, 128), (8, 1024), (16, 16), (256, 100)])
def test_sizes_double_after_every_run_of_blocks(slots, limit):
    first = max(slots, blocks._FIRST_BLOCK_MEMBERS)
    largest = max(slots, limit // slots * slots)
    expected = [min(largest, first * 2 ** (block // 32)) for block in range(1000)]
    assert list(islice(block_sizes(BlockPlan(batch_slots=slots, max_block_members=limit)), 1000)) == expected


texts = st.text(max_size=6)
members = st.builds(ListedMember, texts, st.none() | texts, st.integers(0, 3), texts, st.just(1))


def test_the_id_is_fixed_for_ever():
    item = ListedMember("s3://b/a.jpg", None, 0, "etag", 5)
    encoded = (12).to_bytes(8, "little") + b"s3://b/a.jpg" + b"\xff" * 8 + bytes(8) + (4).to_bytes(8, "little") + b"etag"
    assert image_id(item) == int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big", signed=True) == -5247963748008604655


@pytest.mark.parametrize("examples", SWEEPS)
def test_ids_are_equal_only_for_equal_members(examples):
    settings(max_examples=examples, deadline=None)(given(members, members)(assert_equal_together))()


def assert_equal_together(one, other):
    same = (one.uri, one.member, one.occurrence, one.version) == (other.uri, other.member, other.occurrence, other.version)
    assert (image_id(one) == image_id(other)) is same


@pytest.mark.parametrize("field", ["uri", "member", "version"])
def test_every_part_counts(field):
    item = ListedMember("a", "b", 0, "c", 1)
    assert image_id(replace(item, **{field: "x"})) != image_id(item)
    assert image_id(replace(item, occurrence=1)) != image_id(item)
    assert image_id(replace(item, size_bytes=2)) == image_id(item)
