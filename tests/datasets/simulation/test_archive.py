import csv
import hashlib

import pytest
import torch
from PIL import Image

from ray_app.datasets.simulation.archive import build_sample_archive, write_photographs


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return build_sample_archive(tmp_path_factory.mktemp("sample") / "archive", files=17, seed=1)


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_an_archive_holds_the_asked_number_of_files_in_subfolders(sample):
    files = _files(sample.folder)
    assert len(files) == sample.files == 17
    assert len({path.parent for path in files}) > 2


def test_labels_lie_beside_the_archive_and_name_files_by_path_and_hash(sample):
    assert sample.labels.parent == sample.folder.parent
    rows = list(csv.DictReader(sample.labels.open(encoding="utf-8")))
    assert {row["label"] for row in rows} == {"real", "fake"}
    assert len(rows) == 17 - 3  # all but the text, the truncated and the empty file
    for row in rows:
        assert hashlib.sha256((sample.folder / row["path"]).read_bytes()).hexdigest() == row["sha256"]
        assert row["generator"]


def test_how_many_threads_torch_has_changes_no_picture(sample, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))  # of one and two those that the first had not
    try:
        again = build_sample_archive(tmp_path / "archive", files=17, seed=1)
        assert torch.get_num_threads() == 3 - min(before, 2)
    finally:
        torch.set_num_threads(before)
    assert again.labels.read_text(encoding="utf-8") == sample.labels.read_text(encoding="utf-8")


def test_the_odd_files_are_odd_and_all_others_are_pictures_of_200_to_1024_pixels(sample):
    odd = {"README.txt", "cut-short.jpg", "nothing.jpg", "for-print.jpg", "moving.gif"}
    for path in _files(sample.folder):
        if path.name not in odd:
            with Image.open(path) as image:
                image.load()
                assert image.mode == "RGB"
                assert min(image.size) >= 200
                assert max(image.size) <= 1024
    with pytest.raises(OSError, match="truncated"):
        Image.open(sample.folder / "wire/cut-short.jpg").load()
    assert (sample.folder / "wire/nothing.jpg").stat().st_size == 0
    assert Image.open(sample.folder / "desk/for-print.jpg").mode == "CMYK"
    assert Image.open(sample.folder / "travel/2021/moving.gif").n_frames == 3


def test_the_same_seed_gives_the_same_archive(sample, tmp_path):
    again = build_sample_archive(tmp_path / "archive", files=17, seed=1)
    assert again.labels.read_bytes() == sample.labels.read_bytes()


def test_photographs_have_the_asked_size_are_all_different_and_can_be_continued(tmp_path):
    first = write_photographs(tmp_path / "a", 6, size=(320, 240))
    later = write_photographs(tmp_path / "b", 2, size=(320, 240), start=4)
    assert [Image.open(path).size for path in first] == [(320, 240)] * 6
    assert len({path.read_bytes() for path in first}) == 6
    assert [path.read_bytes() for path in later] == [path.read_bytes() for path in first[4:]]
