"""A container that is not what its name announces is a row that says what it is and what to do."""

import gzip

import pytest

from ray_app.archives import open_source
from ray_app.archives.split_archives import explain_part
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


JOIN = "a part of an archive: join the parts"
UNPACK = "a part of an archive: unpack the whole archive first"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("set.tar.part-aa", f"{JOIN} (cat set.tar.part-* > set.tar)"),
        ("set.tar.partab", f"{JOIN} (cat set.tar.part* > set.tar)"),
        ("set.tar.gz.aa", f"{JOIN} (cat set.tar.gz.* > set.tar.gz)"),
        ("set.tgz_part1", f"{JOIN} (cat set.tgz_part* > set.tgz)"),
        ("SET.TAR.00", f"{JOIN} (cat SET.TAR.* > SET.TAR)"),
        ("my set.zip.001", f"{JOIN} (cat 'my set.zip.'* > 'my set.zip')"),
        ("set.z01", f"{JOIN} (zip -s 0 set.zip --out set-joined.zip)"),
        *((name, UNPACK) for name in ("set.7z.002", "set.part2.rar", "set.rar.001", "set.r00")),
    ],
)
def test_part_of_an_archive_shows_how_to_join_it(name, shown):
    for uri in (f"/data/{name}", f"https://example.org/a/{name}?download=true"):
        assert explain_part(uri, Status.UNSUPPORTED_FORMAT, "not a known image format") == shown
    too_large = explain_part(name, Status.IMAGE_TOO_LARGE, "5 GB")
    assert too_large == f"{shown}; 5 GB"
    assert explain_part(name, Status.SOURCE_DENIED, "no") == "no"


@pytest.mark.parametrize(
    "name",
    [
        "set.tar",
        "set.tar.gz",
        "set.tar.lz",
        "set.zip.1",  # wget's second copy
        "set.tar.gz.md5",
        "set.zip.sha256",
        "set.tar.asc",
        "part-aa",
        "notes.001",
        "photo.part1.jpg",
        "set.rar",
        "tar.aa",
    ],
)
def test_name_that_resembles_a_part_keeps_its_reason(name):
    assert explain_part(name, Status.UNSUPPORTED_FORMAT, "text") == "text"


@pytest.mark.parametrize(
    ("name", "joined"),
    [
        ("set-01.tar.gz", "set-*.tar.gz > set.tar.gz"),
        ("set_part2.tar", "set_part*.tar > set_part.tar"),
        ("00001.tar", None),
        ("set.tar", None),
    ],
)
def test_numbered_container_without_a_start_may_be_a_part(tmp_path, name, joined):
    (tmp_path / name).write_bytes(bytes(range(256)) * 8)
    [item] = open_source([str(tmp_path)])
    assert item.refused.status == Status.CORRUPT_IMAGE
    advice = f"if it is a part of an archive, join the parts (cat {joined})"
    assert (advice in item.refused.detail) == (joined is not None)


def test_file_in_place_of_an_image_shows_what_it_is():
    assert LFS in describe_unsupported(LFS_POINTER)
    reason = "a gzip file: unpack it; touchstone score reads the images in tars named .tar.gz"
    assert describe_unsupported(gzip.compress(b"x", mtime=0)) == reason
