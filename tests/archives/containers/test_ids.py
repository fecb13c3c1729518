"""Ids of images in ordinary archives, which never change: schedules find their rows by them."""

import hashlib
import tarfile
import zipfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives import image_id
from tests.archives.containers.hazards import (
    FILES,
    PACK,
    directory_entry,
    ended,
    streamed_zip,
    tar,
    written,
    zip64_forced,
    zipped,
)

NAMES = FILES | {
    "ä/é 日本.jpg": b"composed",
    "cafe\u0301.jpg": b"decomposed",
    "folder/" * 14 + "long.jpg": b"long",
}
CELLS = [{"bytes": b"%d" % number, "path": f"{number}.png"} for number in range(5)]
HUB = pa.table(
    {
        "image": pa.array(CELLS, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "label": range(5),
    }
)
DOS_NAME = "Größe.jpg".encode("cp437")
DOS = ended(b"PK\3\4" + bytes(26) + DOS_NAME, [directory_entry(DOS_NAME, 0, 0, 0, method=0)])
FIVE, SEVEN, FOUR = "e0d4a130bc38436a", "27f58308916d60dd", "f2974d316d916e76"
# With the ids of 0.22.0, as a hash over all of an archive.
ARCHIVES = {
    "gnu tar": ("tar", tar(NAMES, tar_format=tarfile.GNU_FORMAT), SEVEN),
    "pax tar": ("tar", tar(NAMES), SEVEN),
    "ustar tar": (
        "tar",
        tar(FILES | {"folder/" * 20 + "x.jpg": b"prefix"}, tar_format=tarfile.USTAR_FORMAT),
        FIVE,
    ),
    **{kind: (kind, pack(tar(NAMES)), SEVEN) for kind, pack in PACK.items()},
    "stored zip": ("zip", zipped(NAMES, zipfile.ZIP_STORED), SEVEN),
    "streamed zip": ("zip", streamed_zip(zipfile.ZIP_DEFLATED), FOUR),
    "zip64": ("zip", zip64_forced(), FOUR),
    "self-extracting zip": ("zip", b"#!/bin/sh\n" * 99 + zipped(NAMES), SEVEN),
    "code page 437": ("zip", DOS, "98749649e909a3bb"),
    "parquet": ("parquet", None, "91c20d97aa84d674"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_ids_of_ordinary_archives_never_change(tmp_path, name):
    kind, data, expected = ARCHIVES[name]
    if data is None:
        pq.write_table(HUB, tmp_path / "a.parquet")
        data = (tmp_path / "a.parquet").read_bytes()
    ids = [
        image_id(replace(item, uri="s3://bucket/archive", version="etag"))
        for item in written(tmp_path, data, kind)
    ]
    assert hashlib.sha256(repr(ids).encode()).hexdigest()[:16] == expected, ids
