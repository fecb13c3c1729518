"""The same images score the same in whatever form they are kept: files, Parquet, WebDataset,
tar.gz, zip, a list; all in one run.

The packed ones are written by the libraries that people write them with.
"""

import csv
import tarfile
import zipfile
from collections import defaultdict

import datasets
import pytest
import webdataset

from benchmarks.photographs import write_photographs
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring import ScoreConfig
from ray_app.scoring.run import score_archive

SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar", "tar.gz": ".tar.gz", "zip": ".zip"}


def write_forms(images, folder):
    """The images once in each packed form, each in a folder of its own, and a list of them; the
    list's path.
    """
    for name in SUFFIXES:
        (folder / name).mkdir()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["real", "fake"])}
    )
    for shard in range(2):
        part = images[shard::2]
        columns = {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path in part],
            "label": [at % 2 for at in range(len(part))],
        }
        made = datasets.Dataset.from_dict(columns, features=features)
        made.to_parquet(str(folder / f"parquet/train-{shard:05d}-of-00002.parquet"))
    shards, most = str(folder / "webdataset/shard-%05d.tar"), len(images) // 3 + 1
    with webdataset.ShardWriter(shards, maxcount=most, verbose=0) as writer:
        for index, path in enumerate(images):
            sample = {"__key__": f"{index:06d}", path.suffix[1:]: path.read_bytes()}
            writer.write(sample | {"cls": index % 2, "json": {"name": path.name}})
    with (
        tarfile.open(folder / "tar.gz/photos.tar.gz", "w:gz", compresslevel=1) as tar,
        zipfile.ZipFile(folder / "zip/photos.zip", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for path in images:
            tar.add(path, arcname=f"photos/{path.name}")
            packed.write(path, arcname=f"photos/{path.name}")
    with open(folder / "photos.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label"])
        for index, path in enumerate(images):
            writer.writerow([str(path), ("real", "fake")[index % 2]])
    return folder / "photos.csv"


def test_images_score_the_same_in_every_form(off_ray, tmp_path):
    write_photographs(tmp_path / "photos", 8, size=(320, 240))
    images = sorted((tmp_path / "photos").iterdir())
    listed, found = write_forms(images, tmp_path), {}
    settings = {"ensemble": "tiny", "precision": "fp32", "thumbnails": False}
    packed = [tmp_path / one for one in ("photos", *SUFFIXES)]
    for name, source in (("packed", packed), ("listed", [listed])):
        config = ScoreConfig(source=tuple(map(str, source)), out=str(tmp_path / name), **settings)
        score_archive(config)
        found[name] = list(current_rows(RunDirectory.open(config.out)))
    assert {row["status"] for rows in found.values() for row in rows} == {"ok"}
    by_sha = defaultdict(list)
    for row in found["packed"]:
        by_sha[row["sha256"]].append(row)
    assert len(by_sha) == len(images) == len(found["listed"])
    for row in found["listed"]:
        same = by_sha[row["sha256"]]
        for one in same:
            assert one["score"] == pytest.approx(row["score"], rel=1e-5, abs=1e-5)
        assert row["input"]["label"] in ("real", "fake")
        kept_in = {
            name: one
            for one in same
            for name, suffix in SUFFIXES.items()
            if one["uri"].endswith(suffix)
        }
        assert kept_in.keys() == SUFFIXES.keys()
        assert len(same) == len(SUFFIXES) + 1
        assert all(one["member"] is not None for one in kept_in.values())
        assert all(kept_in[name]["input"] for name in ("parquet", "webdataset"))
