"""One set of images in every form that archives come in, the packed ones written by the libraries that people write them with."""

import csv
import tarfile
import zipfile
from pathlib import Path


def as_parquet(images: list[Path], folder: Path) -> str:
    import datasets

    folder.mkdir()
    for shard in range(2):
        part = images[shard::2]
        columns = {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path in part],
            "label": [index % 2 for index in range(len(part))],
        }
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["real", "fake"])})
        made = datasets.Dataset.from_dict(columns, features=features)
        made.to_parquet(str(folder / f"train-{shard:05d}-of-00002.parquet"))
    return str(folder)


def as_webdataset(images: list[Path], folder: Path) -> str:
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "shard-%05d.tar"), maxcount=len(images) // 3 + 1, verbose=0) as writer:
        for index, path in enumerate(images):
            writer.write({"__key__": f"{index:06d}", path.suffix[1:]: path.read_bytes(), "cls": index % 2, "json": {"name": path.name}})
    return str(folder)


def as_tar_gz(images: list[Path], folder: Path) -> str:
    folder.mkdir()
    with tarfile.open(folder / "photos.tar.gz", "w:gz", compresslevel=1) as tar:
        for path in images:
            tar.add(path, arcname=f"photos/{path.name}")
    return str(folder / "photos.tar.gz")


def as_zip(images: list[Path], folder: Path) -> str:
    folder.mkdir()
    with zipfile.ZipFile(folder / "photos.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in images:
            packed.write(path, arcname=f"photos/{path.name}")
    return str(folder / "photos.zip")


def as_list(images: list[Path], folder: Path) -> str:
    folder.mkdir()
    with open(folder / "photos.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label"])
        writer.writerows([str(path), ("real", "fake")[index % 2]] for index, path in enumerate(images))
    return str(folder / "photos.csv")


FORMS = {"parquet": as_parquet, "webdataset": as_webdataset, "tar.gz": as_tar_gz, "zip": as_zip, "list": as_list}
