"""Listing a folder that img2dataset wrote."""

import json

import pytest

from ray_app.archives import open_source
from ray_app.datasets.layouts.base import LabelColumns
from ray_app.errors import ConfigError, Status
from tests.archives.img2dataset import IMAGES, SHARDS, keys_of, meta, put, table_of, written


def pictures(items):
    return [item for item in items if (item.member or item.uri).endswith(".jpg")]


def is_table(item) -> bool:
    return item.member is None and item.uri.endswith(".parquet")


@pytest.mark.parametrize("form", ["webdataset", "files"])
def test_img2dataset_images_have_the_columns_of_their_table(tmp_path, form):
    items = list(open_source([put(tmp_path / "out", written(form))]))
    found = pictures(items)
    assert sorted(item.input["key"] for item in found) == IMAGES
    for item in found:
        key = item.input["key"]
        told = {name: item.input[name] for name in ("caption", "url", "key", "status", "width")}
        assert told == {name: meta(key)[name] for name in told}
        assert (item.member or item.uri).rpartition("/")[2] == f"{key}.jpg"
    others = [item for item in items if item not in found]
    assert sum(item.uri.endswith("_stats.json") for item in others) == SHARDS  # a file like others
    assert [item.refused.status for item in others if is_table(item)] == [
        Status.UNSUPPORTED_FORMAT
    ] * SHARDS
    if form == "webdataset":
        assert found[0].input["txt"] == found[0].input["caption"]
        assert json.loads(found[0].input["json"])["key"] == found[0].input["key"]
        assert len(items) == len(found) + 2 * SHARDS
    if form == "files":
        assert len(items) == 3 * len(found) + 2 * SHARDS
        assert all(not item.input for item in others)


def changed(**columns):
    """A shard's table with other columns."""
    return table_of(
        [meta(key) | {name: value(key) for name, value in columns.items()} for key in keys_of(0)]
    )


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (b"PAR1 torn", 0),
        (changed(key=lambda key: "../" + key), 0),
        (changed(key=lambda key: "000001" if key == "000002" else key), 2),
        (changed(caption=lambda key: "x" * 100_000), 4),
    ],
)
def test_img2dataset_table_that_is_unusable_loses_no_image(tmp_path, table, told):
    files = written("webdataset") | {"00000.parquet": table}
    items = list(open_source([put(tmp_path / "out", files)]))
    found = pictures(items)
    assert len(found) == len(IMAGES)
    of_first = [item for item in found if "/00000" in item.uri]
    assert sum("caption" in item.input for item in of_first) == told
    assert all(len(str(item.input.get("caption"))) < 100 for item in of_first)
    assert sum(is_table(item) for item in items) == SHARDS


def test_img2dataset_table_names_no_mask(tmp_path):
    """Who offered the folder for download would choose which of the user's files are read."""
    paths = {name: lambda key: "/home/me/x.png" for name in ("mask", "mask_uri", "seg")}
    table = changed(label=lambda key: "fake", **paths)
    files = written("files") | {"00000.parquet": table}
    found = pictures(open_source([put(tmp_path / "out", files)]))
    assert "caption" in found[0].input
    assert not any({"mask", "mask_uri", "seg_uri"} & set(item.input) for item in found)
    with pytest.raises(ConfigError, match="may not name the mask /home/me"):
        LabelColumns(mask="seg").labels(found[0])
