"""A container that is not what its name announces is a row that says what it is and what to do."""

import gzip

import pytest

from ray_app.archives import open_source
from ray_app.errors import Status
from ray_app.images.formats import describe_unsupported
from tests.archives.containers import hazards
from tests.archives.containers.hazards import LFS_POINTER

TAR = hazards.tar({"a.jpg": b"1"})
GZIP = gzip.compress(TAR, mtime=0)
TAR_IS = "a tar archive: name it .tar, or give tar::{} as a source"
GZIP_IS = "a gzip file: name it .tar.gz, or give tar.gz::{} as a source"
LFS = "run `git lfs pull`"


@pytest.mark.parametrize(
    ("name", "data", "detail"),
    [
        ("a.tar", GZIP, f"not a tar file but {GZIP_IS}"),
        ("a.tar.gz", TAR, f"not a tar.gz file but {TAR_IS}"),
        ("a.tgz", TAR, f"not a tar.gz file but {TAR_IS}"),
        ("a.zip", TAR, f"not a zip file but {TAR_IS}"),
        ("a.parquet", GZIP, f"not a parquet file but {GZIP_IS}"),
        *((f"a.{end}", LFS_POINTER, LFS) for end in ("tar", "tar.gz", "tar.xz", "zip", "parquet")),
        ("a.tar", b"<html>" + b" " * 600, "an HTML page, perhaps an error page"),
        ("a.zip", b"%PDF-1.7" + b" " * 600, "a PDF document: extract its images first"),
    ],
)
def test_container_of_another_kind_shows_what_it_is(tmp_path, name, data, detail):
    (tmp_path / name).write_bytes(data)
    for source in (tmp_path, tmp_path / name):
        [item] = open_source([str(source)])
        assert item.refused.status == Status.CORRUPT_IMAGE
        assert detail.format(tmp_path / name) in item.refused.detail


def test_container_that_ends_early_keeps_its_reason(tmp_path):
    (tmp_path / "a.tar").write_bytes(TAR[:1000])
    [*_, item] = open_source([str(tmp_path)])
    assert item.refused.status == Status.TRUNCATED_IMAGE


def test_file_in_place_of_an_image_shows_what_it_is():
    assert LFS in describe_unsupported(LFS_POINTER)
    packed = describe_unsupported(gzip.compress(b"x", mtime=0))
    assert packed == "a gzip file: unpack it, or if it is a tar, name it .tar.gz"
