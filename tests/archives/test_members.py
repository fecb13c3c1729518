import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.archives import Listed, image_id
from ray_app.archives.members import identify, identity_digest

texts = st.text(max_size=6)
members = st.builds(Listed, texts, st.none() | texts, st.integers(0, 3), texts, st.just(1))


def listed(number: int) -> Listed:
    return Listed(f"s3://bucket/{number:07}.jpg", None, 0, f"etag{number}", 10)


def by_id(batches) -> dict[int, Listed]:
    return {int(number): item for ids, items in batches for number, item in zip(ids, items, strict=True)}


def test_the_id_is_fixed_for_ever():
    item = Listed("s3://b/a.jpg", None, 0, "etag", 5)
    encoded = (12).to_bytes(8, "little") + b"s3://b/a.jpg" + b"\xff" * 8 + bytes(8) + (4).to_bytes(8, "little") + b"etag"
    assert image_id(item) == int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big", signed=True) == -5247963748008604655


@given(members, members)
def test_ids_are_equal_only_for_equal_members(one, other):
    same = (one.uri, one.member, one.occurrence, one.version) == (other.uri, other.member, other.occurrence, other.version)
    assert (image_id(one) == image_id(other)) is same


@pytest.mark.parametrize("field", ["uri", "member", "version"])
def test_every_part_counts(field):
    item = Listed("a", "b", 0, "c", 1)
    assert image_id(replace(item, **{field: "x"})) != image_id(item)
    assert image_id(replace(item, occurrence=1)) != image_id(item)
    assert image_id(replace(item, size_bytes=2)) == image_id(item)


def test_what_two_sources_list_is_there_once():
    items = [listed(number) for number in range(20_000)]
    overlapping = items + items[5000:15_000] + [listed(99_999)] + items[:3]
    assert list(by_id(identify(overlapping)).values()) == [*items, listed(99_999)]


def narrow(bits: int):
    """A digest whose ids collide, while its second part still tells members apart."""

    def digest(item: Listed, counter: int) -> bytes:
        full = identity_digest(item, counter)
        first = int.from_bytes(full[:8], "big") % (1 << bits)
        return first.to_bytes(8, "big") + identity_digest(item)[8:]

    return digest


@given(st.lists(st.integers(0, 60), max_size=120))
def test_collisions_are_hashed_again(numbers):
    found = by_id(identify((listed(number) for number in numbers), narrow(7)))
    assert list(found.values()) == [listed(number) for number in dict.fromkeys(numbers)]


def test_collisions_across_batches_are_hashed_again():
    items = [listed(number) for number in range(30_000)]
    found = by_id(identify(items, narrow(16)))
    assert sorted(item.uri for item in found.values()) == [item.uri for item in items]
    assert by_id(identify(items, narrow(16))) == found


def test_ids_are_int64():
    [(ids, _)] = identify([listed(1)])
    assert ids.dtype == np.int64
