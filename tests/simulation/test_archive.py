import csv
import hashlib

import pytest
import torch
from PIL import Image

from benchmarks.photographs import write_photographs
from tests.simulation.archive import build_sample_archive


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return build_sample_archive(tmp_path_factory.mktemp("sample") / "archive", files=11, seed=22)


@pytest.fixture
def files(sample):
    return sorted(path for path in sample.folder.rglob("*") if path.is_file())


def test_labels_name_files_by_path_and_hash(sample, files):
    assert len(files) == sample.files == 11
    assert len({path.parent for path in files}) > 2
    assert sample.labels.parent == sample.folder.parent
    rows = list(csv.DictReader(sample.labels.open(encoding="utf-8")))
    assert {row["label"] for row in rows} == {"real", "fake"}
    assert len(rows) == 11 - 3  # all but the text, the truncated and the empty file
    for row in rows:
        data = (sample.folder / row["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert row["generator"]


def test_threads_of_torch_change_no_image(sample, tmp_path):
    before = torch.get_num_threads()
    # One or two threads, unlike the first: picture 8 of seed 22 would differ.
    torch.set_num_threads(3 - min(before, 2))
    try:
        again = build_sample_archive(tmp_path / "archive", files=11, seed=22)
        assert torch.get_num_threads() == 3 - min(before, 2)
    finally:
        torch.set_num_threads(before)
    assert again.labels.read_text(encoding="utf-8") == sample.labels.read_text(encoding="utf-8")


def test_archive_has_odd_files_and_images_of_many_sizes(sample, files):
    odd = {"README.txt", "cut-short.jpg", "nothing.jpg", "for-print.jpg", "moving.gif"}
    for path in files:
        if path.name not in odd:
            image = Image.open(path).convert("RGB")
            assert min(image.size) >= 200
            assert max(image.size) <= 1024
    with pytest.raises(OSError, match="truncated"):
        Image.open(sample.folder / "wire/cut-short.jpg").load()
    assert (sample.folder / "wire/nothing.jpg").stat().st_size == 0
    assert Image.open(sample.folder / "desk/for-print.jpg").mode == "CMYK"
    assert Image.open(sample.folder / "travel/2021/moving.gif").n_frames == 3


def test_photographs_are_all_different_and_can_be_continued(tmp_path):
    first = write_photographs(tmp_path / "a", 4, size=(160, 120))
    later = write_photographs(tmp_path / "b", 1, size=(160, 120), start=3)
    assert [Image.open(path).size for path in first] == [(160, 120)] * 4
    assert len({path.read_bytes() for path in first}) == 4
    assert later[0].read_bytes() == first[3].read_bytes()
