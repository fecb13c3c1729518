import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.archives import Listed, image_id

texts = st.text(max_size=6)
members = st.builds(Listed, texts, st.none() | texts, st.integers(0, 3), texts, st.just(1))


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
