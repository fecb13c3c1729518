"""Folders laid out as img2dataset 1.4x leaves them, written with its own writers' calls
(img2dataset/writer.py).
"""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from webdataset import TarWriter

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("caption", "url", "key", "status", "error_message")]
    + [(name, pa.int32()) for name in ("width", "height")]
    + [("exif", pa.string())]
)
SHARDS, EACH = 2, 4
FAILED = "000012"  # the one that could not be downloaded


def meta(key) -> dict:
    said = {"caption": f"caption of {key}", "url": f"http://169.254.169.254/{key}.jpg", "key": key}
    if key == FAILED:
        said |= {"status": "failed_to_download", "error_message": "404"}
        return said | dict.fromkeys(["width", "height", "exif"])
    said |= {"status": "success", "error_message": None}
    return said | {"width": 64, "height": 48, "exif": "{}"}


def keys_of(shard) -> list[str]:
    """Out of order, as threads end."""
    return [f"{shard:05}{number}" for number in (2, 0, 3, 1)]


def written(form) -> dict[str, bytes]:
    """Every file below the output folder, by its path."""
    files: dict[str, bytes] = {}
    for shard in range(SHARDS):
        name, tar = f"{shard:05}", io.BytesIO()
        rows = [meta(key) for key in keys_of(shard)]
        with TarWriter(tar) as writer:
            for row in (row for row in rows if row["key"] != FAILED):
                said, key = json.dumps(row, indent=4), row["key"]
                writer.write(
                    {"__key__": key, "jpg": image(key), "txt": row["caption"], "json": said}
                )
                if form == "files":
                    parts = {"jpg": image(key), "txt": row["caption"].encode()}
                    parts["json"] = said.encode()
                    files |= {f"{name}/{key}.{ending}": data for ending, data in parts.items()}
        if form == "webdataset":
            files[f"{name}.tar"] = tar.getvalue()
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


IMAGES = sorted(key for shard in range(SHARDS) for key in keys_of(shard) if key != FAILED)
