import hashlib

from ray_app.archives import ListedMember, image_id


def test_the_id_is_fixed_for_ever():
    item = ListedMember("s3://b/a.jpg", None, 0, "etag", 5)
    encoded = (12).to_bytes(8, "little") + b"s3://b/a.jpg" + b"\xff" * 8 + bytes(8) + (4).to_bytes(8, "little") + b"etag"
    assert image_id(item) == int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big", signed=True) == -5247963748008604655


def test_ids_are_equal_only_for_equal_members():
    """Whose texts are other texts' when they are joined."""
    parts = [("ab", "c", 0, "d"), ("a", "bc", 0, "d"), ("ab", None, 0, "cd"), ("ab", "", 0, "cd"), ("ab", "c", 1, "d"), ("ab", "c", 0, "e")]
    assert len({image_id(ListedMember(*each, 1)) for each in parts}) == len(parts)
