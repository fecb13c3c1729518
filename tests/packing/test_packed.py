import json
from datetime import UTC, datetime

from ray_app.packing.packed import free_names, plain


def test_columns_keep_their_names_unless_taken():
    assert free_names(["label", "source", "image"]) == {"label": "label", "source": "input.source", "image": "input.image"}
    assert free_names(["source", "input.source"]) == {"source": "input.input.source", "input.source": "input.source"}


def test_every_value_becomes_json():
    value = {"a": [1, 2.5, float("nan"), b"\x00\xff"], "b": {"when": datetime(2020, 1, 2, tzinfo=UTC)}, "c": None, "d": True}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "a": [1, 2.5, None, "AP8="], "b": {"when": "2020-01-02T00:00:00+00:00"}, "c": None, "d": True}  # fmt: skip
