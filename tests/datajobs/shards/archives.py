"""Small archives of one content in every form that a source can have, written with plain libraries,
and readers of what we write.
"""

import hashlib
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.datajobs.shards import PackConfig
from ray_app.datajobs.shards.run import pack_archive
from tests.make import images

HOSTILE = ("=cmd|' !A1.jpg", 'a"><script>alert(1)<', "new\nline.png", "пример.jpg")
HOSTILE += ("photo.tar.jpg", " .jpg", "-rf.png")


def files(count=9):
    """Names and contents: images of several formats, one file that is no image, one that is empty."""
    kinds = [("jpg", "JPEG"), ("png", "PNG"), ("gif", "GIF"), ("webp", "WEBP")]
    made = {}
    for index in range(count - 2):
        ending, kind = kinds[index % len(kinds)]
        made[f"album/{index:03}.{ending}"] = images.encoded(images.photo(48, 32, seed=index), kind)
    return made | {"album/notes.txt": b"not an image", "empty.jpg": b""}


def as_prefix(folder, content):
    for name, data in content.items():
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "photos"


def as_tar(folder, content):
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder / "photos.tar"


def as_zip(folder, content):
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return folder / "photos.zip"


def as_parquet(folder, content):
    rows = [
        {"image": {"bytes": data, "path": name}, "label": index % 2}
        for index, (name, data) in enumerate(content.items())
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "photos.parquet")
    return folder / "photos.parquet"


def as_list(folder, content):
    photos = as_prefix(folder, content)
    lines = [
        json.dumps({"uri": str(photos / name), "label": index % 2})
        for index, name in enumerate(content)
    ]
    (folder / "photos.jsonl").write_text("\n".join(lines))
    return folder / "photos.jsonl"


FORMS = {"prefix": as_prefix, "tar": as_tar, "zip": as_zip, "parquet": as_parquet, "list": as_list}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def hashes(content):
    return sorted(map(sha256, content.values()))


def samples(out):
    """What lies in the shards of a directory, in order, read by plain libraries."""
    return [
        {"data": data, "name": name, "source": row.pop("source"), "beside": row}
        for path in sorted((out / "data").iterdir())
        for data, name, row in (parquet_rows if path.suffix == ".parquet" else tar_rows)(path)
    ]


def parquet_rows(path):
    for row in pq.read_table(path).to_pylist():
        image = row.pop("image")
        yield image["bytes"], image["path"], row


def tar_rows(path):
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        for image, sidecar in zip(members[::2], members[1::2], strict=True):
            assert sidecar.name.partition(".")[0] == image.name.partition(".")[0]
            yield tar.extractfile(image).read(), image.name, json.load(tar.extractfile(sidecar))


def unpacked(out):
    return pq.read_table(out / "unpacked.parquet").to_pylist()


def contents(out):
    return {path.name: path.read_bytes() for path in sorted((out / "data").iterdir())}


def pack(source, out, *, retry=False, **settings):
    return pack_archive(PackConfig(source=(str(source),), out=str(out), **settings), retry=retry)
