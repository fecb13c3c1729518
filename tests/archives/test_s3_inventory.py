import gzip
import io
import json
import pickle
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest

from ray_app.archives import image_id, open_source, s3_inventory
from ray_app.archives.containers import Container
from ray_app.errors import ConfigError, Status, StorageError
from ray_app.storage import Fetcher

KEYS = ["a.jpg", "b/c d+e ü&.jpg", "b/100%.jpg", "shards/x.parquet", "empty/"]
CSV = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, ETag, StorageClass"
PARQUET = (
    "message s3.inventory { required binary bucket (UTF8); required binary key (UTF8); optional boolean is_latest; "
    "optional boolean is_delete_marker; optional int64 size; optional binary e_tag (UTF8);}"
)
ORC = "struct<bucket:string,key:string,is_latest:boolean,is_delete_marker:boolean,size:bigint,e_tag:string>"


@pytest.fixture(scope="module")
def photos(s3):
    s3.bucket("photos-listed")
    s3.bucket("inventories")
    for key in KEYS:
        s3.client().put_object(Bucket="photos-listed", Key=key, Body=b"" if key.endswith("/") else b"body of " + key.encode())
    return "s3://photos-listed"


def rows(s3) -> list[dict]:
    found = s3.client().list_objects_v2(Bucket="photos-listed")["Contents"]
    now = [{"key": f["Key"], "is_latest": True, "is_delete_marker": False, "size": f["Size"], "e_tag": f["ETag"].strip('"')} for f in found]
    older = [{**now[0], "is_latest": False, "e_tag": "old"}, {"key": "gone.jpg", "is_latest": True, "is_delete_marker": True}]
    return [{"bucket": "photos-listed", **row} for row in [now[0], *older, *now[1:]]]


def as_csv(rows) -> bytes:
    def text(row) -> str:
        fields = ["photos-listed", quote_plus(row["key"], safe="/"), "v1", row["is_latest"], row["is_delete_marker"]]
        return ",".join(f'"{field}"' for field in [*fields, row.get("size", ""), row.get("e_tag", ""), "STANDARD"]).replace("True", "true")

    return gzip.compress("\n".join(text(row) for row in rows).encode())


def as_table(rows, write) -> bytes:
    file = io.BytesIO()
    write(pa.Table.from_pylist(rows), file)
    return file.getvalue()


FORMATS = {
    "CSV": (CSV, as_csv),
    "Parquet": (PARQUET, lambda rows: as_table(rows, pq.write_table)),
    "ORC": (ORC, lambda rows: as_table(rows, orc.write_table)),
}


def publish(s3, kind: str, schema: str, files: list[bytes], folder: str) -> str:
    keys = [f"{folder}/data/{number}" for number in range(len(files))]
    for key, data in zip(keys, files, strict=True):
        s3.client().put_object(Bucket="inventories", Key=key, Body=data)
    manifest = {"sourceBucket": "photos-listed", "destinationBucket": "arn:aws:s3:::inventories", "fileFormat": kind, "fileSchema": schema}
    manifest["files"] = [{"key": key, "size": len(data)} for key, data in zip(keys, files, strict=True)]
    s3.client().put_object(Bucket="inventories", Key=f"{folder}/manifest.json", Body=json.dumps(manifest).encode())
    return f"inventory::s3://inventories/{folder}/manifest.json"


@pytest.mark.parametrize("kind", FORMATS)
def test_an_inventory_gives_what_a_listing_gives(s3, photos, kind):
    schema, written = FORMATS[kind]
    every = rows(s3)
    source = publish(s3, kind, schema, [written(every[:3]), written(every[3:])], kind)
    sections = [pickle.loads(pickle.dumps(section)) for section in open_source([source]).sections()]
    by_inventory = [found for section in sections for found in section.found(Fetcher())]
    by_listing = [found for section in open_source([photos]).sections() for found in section.found(Fetcher())]
    assert len(sections) == 2
    assert by_inventory == by_listing
    assert [path for path, item in by_inventory if isinstance(item, Container)] == ["shards/x.parquet"]
    files = [item for _, item in by_inventory if not isinstance(item, Container)]
    assert [image_id(item) for item in files] == [image_id(item) for _, item in by_listing if not isinstance(item, Container)]


def test_an_inventory_of_current_versions_alone_and_patterns_see_its_keys(s3, photos):
    lines = "\n".join(f'"photos-listed","{key}","7","abc"' for key in ("x.jpg", "b/y%2B.jpg"))
    source = publish(s3, "CSV", "Bucket, Key, Size, ETag", [gzip.compress(lines.encode())], "current")
    x, y = ("s3://photos-listed/x.jpg", 7, "abc"), ("s3://photos-listed/b/y+.jpg", 7, "abc")
    assert [(item.uri, item.size_bytes, item.version) for item in open_source([source])] == [x, y]
    assert [item.uri for item in open_source([source], include=["b/*"])] == [y[0]]


def test_an_inventory_names_no_other_bucket(s3, photos):
    lines = "\n".join(
        f'"{bucket}","{key}","7","abc"' for bucket, key in (("photos-listed", "x.jpg"), ("payroll", "x.jpg"), ("payroll", "y.tar"))
    )
    source = publish(s3, "CSV", "Bucket, Key, Size, ETag", [gzip.compress(lines.encode())], "others")
    items = list(open_source([source]))
    assert [(item.uri, item.refused and item.refused.status) for item in items] == [
        ("s3://photos-listed/x.jpg", None),
        *((f"s3://payroll/{key}", Status.UNSAFE_MEMBER) for key in ("x.jpg", "y.tar")),
    ]
    s3.bucket("strangers")
    manifest = s3.client().get_object(Bucket="inventories", Key="others/manifest.json")["Body"].read()
    s3.client().put_object(Bucket="strangers", Key="manifest.json", Body=manifest)
    with pytest.raises(ConfigError, match="its data files are in another bucket, inventories"):
        list(open_source(["inventory::s3://strangers/manifest.json"]))


def test_what_is_no_inventory(s3, photos):
    lacking = publish(s3, "CSV", "Bucket, Key, LastModifiedDate", [b""], "lacking")
    torn = publish(s3, "Parquet", PARQUET, [b"PAR1 torn"], "torn")
    s3.client().put_object(Bucket="inventories", Key="no/manifest.json", Body=b'{"a": 1}')
    for source, said in (
        (lacking, "lacks Size and ETag"),
        ("inventory::s3://inventories/no/manifest.json", "not the manifest.json of an S3 Inventory"),
        ("inventory::s3://inventories/nothing/manifest.json", "no such file"),
        (torn, "not a readable Parquet file of an inventory"),
    ):
        with pytest.raises(ConfigError, match=said):
            list(open_source([source]))


def test_a_manifest_is_read_as_far_as_one_may_be_long_and_its_data_files_have_to_be_there(s3, photos, monkeypatch):
    """A file of any size may lie where the manifest is looked for."""
    source = publish(s3, "CSV", CSV, [as_csv(rows(s3))], "long")
    s3.client().delete_object(Bucket="inventories", Key="long/data/0")
    with pytest.raises(StorageError, match="cannot read the inventory's file"):
        list(open_source([source]))
    monkeypatch.setattr(s3_inventory, "_MOST_BYTES", 100)
    with pytest.raises(ConfigError, match="it is longer than 100 bytes"):
        list(open_source([source]))
