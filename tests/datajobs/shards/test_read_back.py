"""What we write, read by the libraries that people read it with."""

import io

import pytest
from PIL import Image

from tests.datajobs.shards import archives
from tests.datajobs.shards.archives import pack

pytestmark = pytest.mark.slow  # the imports take seconds


@pytest.fixture
def content():
    return {
        name: data
        for name, data in archives.files(12).items()
        if not name.endswith((".txt", "empty.jpg"))
    }


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_datasets(tmp_path, content, form):
    from datasets import Image as ImageFeature
    from datasets import load_dataset

    if form == "webdataset":  # `datasets` takes tars of one format only
        content = {name: data for name, data in content.items() if name.endswith(".jpg")}
    pack(archives.as_list(tmp_path, content), tmp_path / "out", form=form, shard_mb=0.01)
    found = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    if form == "parquet":
        assert isinstance(found.features["image"], ImageFeature)
        assert [row["image"].size for row in found] == [(48, 32)] * len(content)
        raw = found.cast_column("image", ImageFeature(decode=False))
        assert sorted(archives.sha256(row["image"]["bytes"]) for row in raw) == archives.hashes(
            content
        )
        assert set(found["label"]) == {0, 1}
    else:
        assert {row["json"]["source"]["sha256"] for row in found} == set(archives.hashes(content))


def test_webdataset(tmp_path, content):
    import webdataset

    pack(archives.as_list(tmp_path, content), tmp_path / "out", form="webdataset")
    path = str(tmp_path / "out/data/train-00000-of-00001.tar")
    found = list(webdataset.WebDataset(path, shardshuffle=False))
    images = [
        next(value for key, value in sample.items() if key in ("jpg", "png", "gif", "webp"))
        for sample in found
    ]
    assert sorted(map(archives.sha256, images)) == archives.hashes(content)
    assert all(Image.open(io.BytesIO(image)).size == (48, 32) for image in images)
    decoded = (
        webdataset.WebDataset(path, shardshuffle=False)
        .decode("pil")
        .to_tuple("jpg;png;gif;webp", "json")
    )
    assert {said["label"] for _, said in decoded} == {0, 1}
