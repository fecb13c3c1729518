"""The published data sets on a hub of our own: exactly the names and columns of
tests/published/*.yaml, tiny pictures, one row for many.

A file of facts says where each was read; `unknown` numbers of files and rows are made small here,
and half of them real where nobody says.
"""

import functools
import io
import itertools
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image as Pillow

from tests.make.published import encoded as encoded_anew
from tests.make.servers.hub import HubServer

encoded = functools.cache(encoded_anew)
FOLDER = Path(__file__).parents[2] / "published"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SCALE = 1000  # published rows to one that is made
_ROWS = 16  # of a file of unknown rows


def facts(name: str) -> dict:
    """One file of facts."""
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def hub_names() -> list[str]:
    """Those that a hub has."""
    return [name for name in NAMES if not facts(name)["repository"].startswith("github:")]


def names_of(entry: dict, most: int | None = None) -> list[str]:
    """The names of files of one kind, as published, some where nobody knows; `most` of them all
    along.
    """
    count = entry.get("made", 2) if entry["files"] == "unknown" else entry["files"]
    wanted = min(count, most or count)
    return [
        entry["name"].format(number=entry.get("first", 0) + count * place // wanted)
        for place in range(wanted)
    ]


def made_rows(entry: dict, scale: int) -> tuple[int, int]:
    """How many fakes and reals are made of one kind of file."""
    if entry["rows"] == "unknown":
        rows = _ROWS * (entry.get("made") or 1)
        return tuple(
            0 if entry[label] == 0 else rows // 2 if entry[other] != 0 else rows
            for label, other in (("fake", "real"), ("real", "fake"))
        )
    counts = [
        entry["rows"] / 2 if entry[label] == "unknown" else entry[label]
        for label in ("fake", "real")
    ]
    return round(counts[0] / scale), round(counts[1] / scale)


def publish(server: HubServer, name: str, *, scale: int = SCALE, most: int | None = None) -> dict:
    """Put a data set there under its revision; returns its facts. `most`: files of each kind, the
    real number where null.
    """
    told, files = facts(name), {}
    for kind, entry in enumerate(told["files"]):
        names = names_of(entry, most)
        count = len(names)
        fake, real = made_rows(entry, scale)
        labels = ["fake"] * fake + ["real"] * real
        size = -(-len(labels) // count)
        if told.get("order") == "kind":
            parts = [labels[part * size : part * size + size] for part in range(count)]
        else:
            random.Random(kind).shuffle(labels)
            parts = [labels[part::count] for part in range(count)]
        for number, (place, part) in enumerate(zip(names, parts, strict=True)):
            files[place] = written(told, entry, part, (kind + 1) * 10**6 + number * 10**4)
    files |= {path: b"words" for path in told["beside"]}
    others = server.commits.get(
        server.revisions.get(told["repository"], {}).get(told["revision"], ""), {}
    )
    server.commit(told["repository"], {**others, **files}, told["revision"])
    return told


def written(told: dict, entry: dict, labels: list[str], first: int) -> bytes:
    """A file with a row for each of the labels, by the ending of its name."""
    places = {"fake": itertools.count(first), "real": itertools.count(first + 5000)}
    numbered = [(label, next(places[label])) for label in labels]
    rows = [
        {column: value(spec, label, number, entry) for column, spec in told["columns"].items()}
        for label, number in numbered
    ]
    return (
        shard(rows, [number for _, number in numbered])
        if entry["name"].endswith(".tar")
        else parquet(told, rows)
    )


def value(spec: dict, label: str, number: int, entry: dict):
    """What a column holds in a row; `image` and `mask` are pictures, lists go round, texts are
    filled in.
    """
    found = spec.get(label, spec.get("value"))
    if isinstance(found, list) and spec["dtype"] != "list_int64":
        found = found[number % len(found)]
    if found == "image":
        return encoded(number)
    if found == "mask":
        return mask()
    return found.format(number=number, split=entry["split"]) if isinstance(found, str) else found


def mask() -> bytes:
    """White where a picture of `encoded` is altered."""
    pixels = np.zeros((16, 24), np.uint8)
    pixels[4:12, 6:18] = 255
    stream = io.BytesIO()
    Pillow.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "class_label": pa.int64(),
    "binary": pa.binary(),
    "list_int64": pa.list_(pa.int64()),
}
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(told: dict, rows: list[dict]) -> bytes:
    """As `datasets` writes it, its metadata too where the facts say so; row groups of 4."""
    columns, features = {}, {}
    for name, spec in told["columns"].items():
        kind = spec["dtype"]
        cells = [row[name] for row in rows]
        if kind == "image":
            cells = [
                None if cell is None else {"bytes": cell, "path": f"{place}.png"}
                for place, cell in enumerate(cells)
            ]
        columns[name] = pa.array(cells, _IMAGE if kind == "image" else _TYPES[kind])
        features[name] = {
            "image": {"_type": "Image"},
            "class_label": {"_type": "ClassLabel", "names": spec.get("names")},
        }.get(kind, {"_type": "Value", "dtype": kind})
    table = pa.table(columns)
    if told["datasets_metadata"]:
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=4)
    return stream.getvalue()


def shard(rows: list[dict], numbers: list[int]) -> bytes:
    """A WebDataset shard of pictures, the columns in sidecars."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for number, row in zip(numbers, rows, strict=True):
            for name, data in (
                (f"{number:06}.png", encoded(number)),
                (f"{number:06}.json", json.dumps(row).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return stream.getvalue()
