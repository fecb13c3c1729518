"""Folders laid out as img2dataset 1.4x leaves them, written with its own writers' calls
(img2dataset/writer.py).
"""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from webdataset import TarWriter

from ray_app.archives import open_source
from ray_app.datasets.layouts.base import LabelColumns
from ray_app.errors import ConfigError, Status

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("caption", "url", "key", "status", "error_message")]
    + [(name, pa.int32()) for name in ("width", "height")]
    + [("exif", pa.string())]
)
SHARDS, EACH = 2, 4
FAILED = "000012"  # the one that could not be downloaded


def meta(key) -> dict:
    told = {
        "caption": f"caption of {key}",
        "url": f"http://169.254.169.254/{key}.jpg",
        "key": key,
        "status": "success",
    }
    if key == FAILED:
        return told | {
            "status": "failed_to_download",
            "error_message": "404",
            "width": None,
            "height": None,
            "exif": None,
        }
    return told | {"error_message": None, "width": 64, "height": 48, "exif": "{}"}


def keys_of(shard) -> list[str]:
    """Out of order, as threads end."""
    return [f"{shard:05}{number}" for number in (2, 0, 3, 1)]


def written(form) -> dict[str, bytes]:
    """Every file below the output folder, by its path."""
    files: dict[str, bytes] = {}
    for shard in range(SHARDS):
        name, tar = f"{shard:05}", io.BytesIO()
        rows = [meta(key) for key in keys_of(shard)]
        there = [row for row in rows if row["key"] != FAILED]
        if form == "webdataset":
            with TarWriter(tar) as writer:
                for row in there:
                    about = {"txt": row["caption"], "json": json.dumps(row, indent=4)}
                    writer.write({"__key__": row["key"], "jpg": image(row["key"]), **about})
            files[f"{name}.tar"] = tar.getvalue()
        else:
            for row in there:
                parts = {
                    "jpg": image(row["key"]),
                    "txt": row["caption"].encode(),
                    "json": json.dumps(row, indent=4).encode(),
                }
                files |= {f"{name}/{row['key']}.{ending}": data for ending, data in parts.items()}
        files |= {f"{name}.parquet": table_of(rows, SCHEMA), f"{name}_stats.json": b'{"count": 4}'}
    return files


def table_of(rows, schema=None) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), file)
    return file.getvalue()


def image(key) -> bytes:
    return b"\xff\xd8 picture " + key.encode()


def put(folder, files):
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return str(folder)


def pictures(items):
    return [item for item in items if (item.member or item.uri).endswith(".jpg")]


def is_table(item) -> bool:
    return item.member is None and item.uri.endswith(".parquet")


IMAGES = sorted(key for shard in range(SHARDS) for key in keys_of(shard) if key != FAILED)


@pytest.mark.parametrize("form", ["webdataset", "files"])
def test_each_image_is_there_once_with_what_its_table_tells(tmp_path, form):
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
def test_a_table_that_does_not_tell_changes_nothing_else(tmp_path, table, told):
    items = list(
        open_source([put(tmp_path / "out", written("webdataset") | {"00000.parquet": table})])
    )
    found = pictures(items)
    assert len(found) == len(IMAGES)
    of_first = [item for item in found if "/00000" in item.uri]
    assert sum("caption" in item.input for item in of_first) == told
    assert all(len(str(item.input.get("caption"))) < 100 for item in of_first)
    assert sum(is_table(item) for item in items) == SHARDS


def test_a_table_leads_to_no_mask(tmp_path):
    """Who offered the folder for download would choose which of the user's files are read."""
    paths = {name: lambda key: "/home/me/x.png" for name in ("mask", "mask_uri", "seg")}
    table = changed(label=lambda key: "fake", **paths)
    found = pictures(
        open_source([put(tmp_path / "out", written("files") | {"00000.parquet": table})])
    )
    assert "caption" in found[0].input
    assert not any({"mask", "mask_uri", "seg_uri"} & set(item.input) for item in found)
    with pytest.raises(ConfigError, match="may not say that its mask lies at /home/me"):
        LabelColumns(mask="seg").labels(found[0])
