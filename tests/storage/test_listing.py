import pickle

import pytest

from ray_app.storage import RangeReader, key_ranges, list_divisions, list_objects
from ray_app.storage import s3 as requests

KEYS = sorted(
    [
        f"in/{top}/{deep}/{n:03}.jpg"
        for top in ("a", "b b", "ü")
        for deep in ("x", "y")
        for n in range(6)
    ]
    + [f"in/{n:03}.jpg" for n in range(5)]
    + [f"in/b b{n}.jpg" for n in range(3)]
    + ["in/a/", "in/a/x/", "in/b b/", "in/zz/only.jpg", "in/[a]/k.jpg"]
)


@pytest.fixture(scope="module")
def bucket(s3):
    s3.bucket("divided")
    client = s3.client()
    for key in KEYS:
        # One folder's own object has bytes: it is a file, however odd its name.
        client.put_object(
            Bucket="divided",
            Key=key,
            Body=b"x" if key == "in/a/x/" or not key.endswith("/") else b"",
        )
    return "s3://divided"


@pytest.fixture
def small_pages(monkeypatch):
    """Pages of ten keys: a hundred objects are a large prefix."""
    page = requests.page
    monkeypatch.setattr(
        requests,
        "page",
        lambda *args, limit=1000, **more: page(*args, limit=min(limit, 10), **more),
    )


@pytest.mark.parametrize(
    ("source", "enough", "most"),
    [
        *[(source, 64, 256) for source in ("", "/in", "/in/**/x/*.jpg", "/in/?/**")],
        ("/in", 2, 256),
        ("/in", 64, 2),
        ("", 64, 1),
    ],
)
def test_the_ranges_tell_what_one_listing_tells(
    bucket, small_pages, monkeypatch, source, enough, most
):
    monkeypatch.setattr(key_ranges, "_ENOUGH_FOLDERS", enough)
    monkeypatch.setattr(key_ranges, "_MAX_RANGES", most)
    ranges = list_divisions(bucket + source)
    assert 1 <= len(ranges) <= most
    found = [info for keys in pickle.loads(pickle.dumps(ranges)) for info in RangeReader(keys)]
    assert found == list(list_objects(bucket + source))


def test_what_is_small_or_elsewhere_or_a_literal_name_is_not_divided(bucket, small_pages, tmp_path):
    for place in (f"{bucket}/in/000.jpg", str(tmp_path), f"{bucket}/in/[a]"):
        assert list_divisions(place) == []
