"""A run report's pictures: few, small, of files as they were listed; whatever became of the archive
since, the report is made.
"""

import io
import os
import tarfile
import threading
from contextlib import closing

import pytest
from PIL import ExifTags, Image, ImageOps

from ray_app.cli.main import main
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import InputError, Status
from ray_app.images import BatchLimits
from ray_app.inference.small_pictures import ThumbnailLimits, ThumbnailMaker
from ray_app.runs import RunDirectory
from ray_app.scoring import pictures
from ray_app.scoring.report import write_report
from tests.make.images import bomb_png, encoded, photo
from tests.make.page_reader import PageReader
from tests.make.real_run import score_photos, write_photos


@pytest.fixture
def archive(tmp_path):
    """Photos by themselves, and two in a tar."""
    folder = write_photos(tmp_path / "archive", 4)
    with tarfile.open(folder / "box.tar", "w") as box:
        for seed in (11, 12):
            path = tmp_path / f"in-{seed}.jpg"
            path.write_bytes(encoded(photo(320, 240, seed), "JPEG"))
            box.add(path, path.name)
    return folder


@pytest.fixture
def run(archive, tmp_path):
    return RunDirectory.open(score_photos(load_ensemble_card("tiny"), archive, tmp_path / "run"))


def page_of(run, **options):
    write_report(run, **options)
    return PageReader(run.store.read("report.html").decode())


def test_report_shows_pictures_of_the_highest_scores(run, capsys):
    found = pictures.load_thumbnails(run, run.read_json("summary.json")["top"])
    assert len(found) == 6
    assert all(len(picture) <= pictures.SMALL.max_bytes for picture in found.values())
    page = page_of(run)
    assert len(page.attributes("img")) == 6
    assert {one["loading"] for one in page.attributes("img")} == {"lazy"}
    links = {one["href"] for one in page.attributes("a")}
    assert len(links) == 4
    assert all(link.startswith("file:///") and link.endswith(".jpg") for link in links)
    assert main(["runs", "report", run.store.url, "--no-thumbnails"]) == 0
    assert "<img" not in run.store.read("report.html").decode()
    assert main(["runs", "report", run.store.url]) == 0
    assert "<img" in run.store.read("report.html").decode()
    run.write_json("summary.json", run.read_json("summary.json") | {"thumbnails": False})
    assert "img" not in {tag for tag, _ in page_of(run).tags}
    capsys.readouterr()


def test_changed_files_cost_only_their_pictures(run, archive):
    (archive / "photo-0.jpg").unlink()
    (archive / "photo-1.jpg").write_bytes(bomb_png())
    os.truncate(archive / "box.tar", 600)
    page = page_of(run)
    assert len(page.attributes("img")) == 2
    assert page.text.count("No preview") == 4
    (archive / "photo-2.jpg").unlink()
    os.mkfifo(archive / "photo-2.jpg")  # nobody will ever write to it
    top = run.read_json("summary.json")["top"]
    (stuck,) = [row["image_id"] for row in top if row["uri"].endswith("photo-2.jpg")]
    assert pictures.load_thumbnails(run, top, seconds=0.5)[stuck] == "not read in time"
    readers = [thread for thread in threading.enumerate() if thread.name == "pictures"]
    assert all(thread.daemon for thread in readers), "none holds up the end of the process"
    (archive / "photo-2.jpg").open("wb").close()  # lets it go


def test_small_picture_keeps_shape_and_bounds():
    with closing(ThumbnailMaker(BatchLimits(), ThumbnailLimits(240, 10_000))) as small:
        for shape in ((1200, 900), (64, 2000), (20, 10)):
            data, digest = small.make(encoded(photo(*shape), "PNG"))
            with Image.open(io.BytesIO(data)) as picture:
                assert picture.format == "JPEG"
                assert max(picture.size) <= min(240, max(shape))
                rounding = 0.6 * max(shape) / min(picture.size) / 10
                assert abs(picture.width / picture.height - shape[0] / shape[1]) <= rounding
                assert not picture.getexif()
            assert len(data) <= 10_000
            assert len(digest) == 64
        with pytest.raises(InputError) as refused:
            small.make(bomb_png())
    assert refused.value.status is Status.IMAGE_TOO_LARGE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_small_picture_is_upright(orientation):
    stored = Image.new("RGB", (400, 200), "blue")
    stored.paste("red", (0, 0, 200, 100))  # only the first quarter is red
    stored.getexif()[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    stored.save(file, "JPEG", exif=stored.getexif(), quality=95)
    with closing(ThumbnailMaker(BatchLimits(), ThumbnailLimits(100, 10_000))) as small:
        data, _ = small.make(file.getvalue())
    upright = ImageOps.exif_transpose(stored)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == tuple(side // 4 for side in upright.size)
        assert not picture.getexif(), "a browser would turn it again"
        for x, y in ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)):
            is_red, is_expected = (
                image.getpixel((int(x * image.width), int(y * image.height)))[0] > 128
                for image in (picture, upright)
            )
            assert is_red == is_expected
