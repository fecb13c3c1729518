"""A container that is not what its name announces is a row that says what it is and what to do."""

import gzip

import pytest

from ray_app.archives import open_source
from ray_app.errors import Status
from ray_app.images.formats import describe_unsupported
from tests.archives.containers import hazards
from tests.archives.test_uri_lists import LFS_POINTER

TAR = hazards.tar({"a.jpg": b"1"})
GIT_LFS = "a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"


@pytest.mark.parametrize(
    ("name", "data", "detail"),
    [
        (
            "a.tar",
            gzip.compress(TAR, mtime=0),
            "not a tar file but a gzip file: name it .tar.gz, or give tar.gz::{} as a source",
        ),
        (
            "a.tar.gz",
            TAR,
            "not a tar.gz file but a tar archive: name it .tar, or give tar::{} as a source",
        ),
        (
            "a.tgz",
            TAR,
            "not a tar.gz file but a tar archive: name it .tar, or give tar::{} as a source",
        ),
        (
            "a.zip",
            TAR,
            "not a zip file but a tar archive: name it .tar, or give tar::{} as a source",
        ),
        (
            "a.parquet",
            gzip.compress(TAR, mtime=0),
            "not a parquet file but a gzip file: name it .tar.gz, or give tar.gz::{} as a source",
        ),
        *(
            (f"a.{ending}", LFS_POINTER, f"not a {ending} file but {GIT_LFS}")
            for ending in ("tar", "tar.gz", "tar.xz", "zip", "parquet")
        ),
        (
            "a.tar",
            b"<html>" + b" " * 600,
            "not a tar file but an HTML page, perhaps an error page saved in place of the file",
        ),
        (
            "a.zip",
            b"%PDF-1.7" + b" " * 600,
            "not a zip file but a PDF document: extract its images first",
        ),
    ],
)
def test_container_of_another_kind_says_what_it_is(tmp_path, name, data, detail):
    (tmp_path / name).write_bytes(data)
    for source in (tmp_path, tmp_path / name):
        [item] = open_source([str(source)])
        assert (item.refused.status, item.refused.detail) == (
            Status.CORRUPT_IMAGE,
            detail.format(tmp_path / name),
        )


def test_container_that_ends_early_keeps_its_reason(tmp_path):
    (tmp_path / "a.tar").write_bytes(TAR[:1000])
    [*_, item] = open_source([str(tmp_path)])
    assert item.refused.status == Status.TRUNCATED_IMAGE


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (LFS_POINTER, GIT_LFS),
        (
            gzip.compress(b"x", mtime=0),
            "a gzip file: unpack it, or if it is a tar, name it .tar.gz",
        ),
    ],
)
def test_file_in_place_of_an_image_says_what_it_is(data, detail):
    assert describe_unsupported(data) == detail
