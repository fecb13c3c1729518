"""Runs that an older version of Touchstone left behind, and the pictures they are of: the same
bytes, and so the same ETags, anywhere.

runs-0.20.0.tar.gz contains the objects of two runs that the code of 0.20.0 (commit 2a4cb3ec) wrote
to the S3 server of the tests, with --ensemble tiny, block_members=4, and thumbnails=false:
s3://older/half, which SIGTERM stopped after 3 of 8 blocks, and s3://older/finished (without its
report). 0.20 to 0.23 write rows of the same schema, 7.
"""

import hashlib
import json
import random
import shutil
import struct
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from ray_app.config import config_root

RUNS = Path(__file__).with_name("runs-0.20.0.tar.gz")
BUCKET, SOURCE, PICTURES = "older", "s3://older/photos", 32
WIDTH, HEIGHT = 80, 72


def picture(number: int) -> bytes:
    """A BMP file, which needs no codec: four colours that run into each other, and some noise."""
    rng = random.Random(number)
    corners = np.array([rng.randrange(256) for _ in range(12)]).reshape(3, 4)
    noise = np.frombuffer(rng.randbytes(WIDTH * HEIGHT * 3), np.uint8).reshape(HEIGHT, WIDTH, 3)
    y, x = np.mgrid[:HEIGHT, :WIDTH][:, :, :, None]
    weights = (WIDTH - x) * (HEIGHT - y), x * (HEIGHT - y), (WIDTH - x) * y, x * y
    value = sum(weight * corner for weight, corner in zip(weights, corners.T, strict=True)) // (
        WIDTH * HEIGHT
    )
    rows = np.clip(value + noise % 17 - 8, 0, 255).astype(np.uint8).tobytes()
    sizes = (54 + len(rows), 0, 0, 54, 40, WIDTH, HEIGHT, 1, 24, 0, len(rows), 2835, 2835, 0, 0)
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", *sizes) + rows


def put_pictures(client) -> None:
    for number in range(PICTURES):
        client.put_object(Bucket=BUCKET, Key=f"photos/{number:03}.bmp", Body=picture(number))


def put_run(client, name: str) -> dict[str, bytes]:
    """Put one of the runs back as it was; its objects by key."""
    objects = objects_of(name)
    there = {
        found["Key"]: found["ETag"]
        for found in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{name}/").get("Contents", [])
    }
    for key in there.keys() - objects.keys():
        client.delete_object(Bucket=BUCKET, Key=key)
    for key, body in objects.items():
        if there.get(key) != f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"':
            client.put_object(Bucket=BUCKET, Key=key, Body=body)
    return objects


@cache
def kept_objects() -> dict[str, bytes]:
    with tarfile.open(RUNS) as archive:
        return {
            member.name: archive.extractfile(member).read() for member in archive if member.isfile()
        }


def objects_of(name: str) -> dict[str, bytes]:
    return {key: body for key, body in kept_objects().items() if key.startswith(f"{name}/")}


def unpack(name: str, folder: Path) -> Path:
    """One of the runs in a folder; where it is now."""
    for key, body in objects_of(name).items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(body)
    return folder / name


def age(run: Path) -> Path:
    """Let a run look as one that 0.19.0 began; the run."""
    for name, change in (
        ("run.json", {"schema": 6}),
        ("sessions/00001.json", {"version": "0.19.0"}),
    ):
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(content | change))
    return run


def copied_configs(folder: Path, monkeypatch) -> Path:
    """A copy of all that is shipped but large weights, in its place."""
    shutil.copytree(
        config_root(),
        folder,
        ignore=lambda _, names: [
            name
            for name in names
            if name.startswith("touchstone-photo") and name.endswith(".safetensors")
        ],
    )
    for module in ("ray_app.config", "ray_app.detectors.weights"):
        monkeypatch.setattr(f"{module}.config_root", lambda: folder)
    return folder


def change(path: Path, **changes) -> Path:
    """Keys of a YAML file that differ from now on; the file."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return path
