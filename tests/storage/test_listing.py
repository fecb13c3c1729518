"""What a source lists: files of this machine, of S3, of other stores, and of the web."""

import os
import pickle
import shutil
import sys

import fsspec
import pytest

from ray_app.errors import ConfigError, SourceError, Status, StorageError
from ray_app.storage import (
    ClosedFolder,
    Fetcher,
    ObjectInfo,
    PrefixReader,
    divide_prefix,
    key_prefixes,
    list_objects,
    split_source,
)
from ray_app.storage import s3 as s3_requests
from ray_app.storage.listing import make_missing_error
from tests.make.unprivileged import closed, nested

NAMES = ["a!.jpg", "a.jpg", "a/b.jpg", "a/b/c.jpg", "a/z.txt", "a0.jpg", "b/ä ö.jpg"]
NAMES += ["b/x#y?z.jpg", "c/.hidden", "c/100%.jpg"]


@pytest.fixture(scope="module")
def bucket(s3):
    url = s3.bucket("listing")
    for name in NAMES:
        s3.client().put_object(Bucket="listing", Key=f"archive/{name}", Body=name.encode())
    s3.client().put_object(Bucket="listing", Key="archive/empty folder/", Body=b"")
    s3.client().put_object(Bucket="listing", Key="archive2/other.jpg", Body=b"x")
    return url


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def names(source: str) -> list[str]:
    return [info.uri for info in list_objects(source)]


def below(root: str, expected: list[str]) -> list[str]:
    return [f"{root}/archive/{name}" for name in expected]


def test_local_files_are_listed_in_the_order_of_uris(folder, monkeypatch):
    expected = below(str(folder), sorted(NAMES))
    assert names(f"{folder}/archive") == names(f"file://{folder}/archive/") == expected
    monkeypatch.chdir(folder)
    assert names("./archive/../archive") == expected
    path = folder / "archive/a.jpg"
    [info] = list_objects(str(path))
    assert info == ObjectInfo(str(path), 5, f"5-{path.stat().st_mtime_ns}")


def test_local_links_to_files_are_listed_and_loops_left_out(folder):
    archive = folder / "archive"
    (archive / "link.jpg").symlink_to(archive / "a.jpg")
    (archive / "loop").symlink_to(archive)
    (archive / "dangling.jpg").symlink_to(archive / "nowhere")
    os.mkfifo(archive / "pipe")
    found = {info.uri: info for info in list_objects(str(archive))}
    assert sorted(found) == below(str(folder), sorted([*NAMES, "link.jpg", "dangling.jpg"]))
    assert found[str(archive / "dangling.jpg")].version == ""
    (folder / "link").symlink_to(archive)  # as the source itself it is followed
    assert len(names(str(folder / "link"))) == len(NAMES) + 2


def test_local_links_that_lead_to_each_other_are_listed(tmp_path):
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert names(str(tmp_path)) == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    with pytest.raises(SourceError) as caught:
        Fetcher().fetch(f"{tmp_path}/a.jpg", "", 100)
    assert caught.value.status == Status.SOURCE_MISSING


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a!.jpg", "a.jpg", "a0.jpg"]),
        ("**/c.jpg", ["a/b/c.jpg"]),
        ("[bc]/*", ["b/x#y?z.jpg", "b/ä ö.jpg", "c/.hidden", "c/100%.jpg"]),
        ("b/x#y[?]z.jpg", ["b/x#y?z.jpg"]),
    ],
)
@pytest.mark.parametrize("place", ["local", "s3"])
def test_patterns_select_files(folder, place, request, pattern, expected):
    root = request.getfixturevalue("bucket") if place == "s3" else folder
    assert names(f"{root}/archive/{pattern}") == below(str(root), expected)


def test_local_name_with_pattern_letters_is_literal(tmp_path):
    (tmp_path / "photos [2020]").mkdir()
    (tmp_path / "photos 2").mkdir()
    (tmp_path / "photos 2" / "b.jpg").write_bytes(b"x")
    source = f"{tmp_path}/photos [2020]"
    assert split_source(source) == (source, None)
    with pytest.raises(ConfigError, match="the folder has no files in it"):
        names(source)
    (tmp_path / "photos [2020]" / "a.jpg").write_bytes(b"x")
    assert names(source) == [f"{source}/a.jpg"]
    assert split_source(f"{tmp_path}/photos [1-3]") == (str(tmp_path), "photos [1-3]")


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("nowhere", "no such file or folder"),
        ("empty", "has no files in it"),
        ("nowhere/*.jpg", "no such file or folder|no file matches this pattern"),
        ("empty/**", "no file matches this pattern"),
    ],
)
def test_local_source_that_is_missing_is_refused(tmp_path, missing, reason):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=reason) as caught:
        names(f"{tmp_path}/{missing}")
    assert caught.value.exit_code == 2


def test_local_path_below_a_file_is_missing(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert "no such file or folder" in make_missing_error(f"{tmp_path}/a.jpg/b.jpg").message


def test_local_folders_beyond_the_recursion_limit_are_listed(tmp_path):
    depth = sys.getrecursionlimit() + 100
    with nested(tmp_path, "d", depth):
        assert names(str(tmp_path)) == [f"{tmp_path}/{'d/' * depth}x.jpg"]


def test_local_folder_nested_too_deeply_for_a_path_is_reported(tmp_path):
    with nested(tmp_path, "d" * 250, 20):
        [(_, status)] = listed(str(tmp_path))
    assert status == Status.SOURCE_DENIED


def listed(source: str, **options) -> list[tuple[str, str | None]]:
    """The path below the source of everything listed, and why a folder cannot be listed."""
    return [
        (info.uri.removeprefix(f"{source}/"), info.error.status if is_closed(info) else None)
        for info in list_objects(source, **options)
    ]


def is_closed(info) -> bool:
    return isinstance(info, ClosedFolder)


@pytest.fixture
def photos(tmp_path):
    for name in ("1.jpg", "lost+found/2.jpg", "lost+found/deep/3.jpg", "z/4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


OPEN = [("1.jpg", None), ("z/4.jpg", None)]
CLOSED = [OPEN[0], ("lost+found", Status.SOURCE_DENIED), OPEN[1]]


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_closed_folder_is_reported_unless_left_out(photos, scheme):
    """`local` is fsspec's own file system, which is read as SFTP or SMB would be."""
    source = f"{scheme}{photos}"
    with closed(photos / "lost+found"):
        assert listed(source) == CLOSED
        assert listed(source, enters=lambda folder: not folder.endswith("lost+found")) == OPEN
        [folder] = [info for info in list_objects(source) if is_closed(info)]
    assert folder.error.detail.startswith("this folder cannot be listed")


def test_folder_that_is_left_out_is_never_listed(photos):
    assert listed(str(photos / "z"), enters=lambda _: False) == [("4.jpg", None)]
    (photos / "z/y").mkdir()
    (photos / "z/4.jpg").rename(photos / "z/y/4.jpg")
    assert listed(str(photos / "z"), enters=lambda _: False) == []


def test_files_of_a_folder_that_cannot_be_entered_are_listed(photos):
    with closed(photos / "lost+found", mode=0o444):
        found = {info.uri.removeprefix(f"{photos}/"): info for info in list_objects(str(photos))}
    assert list(found) == ["1.jpg", "lost+found/2.jpg", "lost+found/deep", "z/4.jpg"]
    assert (found["lost+found/2.jpg"].size_bytes, found["lost+found/2.jpg"].version) == (-1, "")
    assert found["lost+found/deep"].error.status == Status.SOURCE_DENIED


@pytest.mark.parametrize("mode", [0, 0o444])
def test_source_that_is_closed_itself_is_an_error(photos, mode):
    with closed(photos, mode=mode):
        for source in (str(photos), f"{photos}/*.jpg"):
            with pytest.raises(StorageError, match="Permission denied") as caught:
                names(source)
            assert (caught.value.exit_code, bool(caught.value.hint)) == (5, True)


def test_pattern_reports_only_closed_folders_that_may_match(photos):
    with closed(photos / "lost+found"):
        assert listed(f"{photos}/*.jpg") == [(f"{photos}/1.jpg", None)]
        statuses = [status for _, status in listed(f"{photos}/**/*.jpg")]
    assert statuses == [None, Status.SOURCE_DENIED, None]


def test_folder_deleted_during_the_listing_is_reported(photos):
    found = list_objects(str(photos))
    assert next(found).uri == f"{photos}/1.jpg"
    shutil.rmtree(photos / "lost+found")
    gone, last = found
    assert (gone.uri, gone.error.status) == (f"{photos}/lost+found", Status.SOURCE_MISSING)
    assert last.uri == f"{photos}/z/4.jpg"


def test_file_deleted_during_the_listing_is_still_listed(photos):
    (photos / "2.jpg").write_bytes(b"x")
    found = list_objects(str(photos))
    next(found)
    (photos / "2.jpg").unlink()
    assert next(found) == ObjectInfo(f"{photos}/2.jpg", -1, "")


def test_s3_objects_are_listed_in_key_order(bucket, s3):
    expected = below(bucket, sorted(NAMES))
    assert names(f"{bucket}/archive") == names(f"{bucket}/archive/") == expected
    assert names(f"{bucket}/archive*/**/*.jpg")[-1] == f"{bucket}/archive2/other.jpg"
    [info] = list_objects(f"{bucket}/archive/a.jpg")
    etag = s3.client().head_object(Bucket="listing", Key="archive/a.jpg")["ETag"]
    assert info == ObjectInfo(f"{bucket}/archive/a.jpg", 5, etag.strip('"'))


@pytest.mark.parametrize("name", ["photos [2024]", "what?", "all*"])
def test_s3_prefix_with_pattern_letters_is_literal(s3, name):
    bucket = s3.bucket("bracketed")
    s3.client().put_object(Bucket="bracketed", Key=f"{name}/a.jpg", Body=b"x")
    assert split_source(f"{bucket}/{name}") == (f"{bucket}/{name}", None)
    assert split_source(f"{bucket}/{name}/a.jpg")[1] is None
    assert split_source(f"{bucket}/nothing {name}") == (bucket, f"nothing {name}")


def test_s3_prefix_is_listed_page_by_page(bucket, monkeypatch):
    monkeypatch.setattr(s3_requests, "MAX_LISTED", 2)
    expected = below(bucket, sorted(NAMES))
    assert names(f"{bucket}/archive") == expected
    assert names(bucket) == [*expected, f"{bucket}/archive2/other.jpg"]


def test_s3_source_that_is_missing_is_refused(s3):
    with pytest.raises(StorageError, match="cannot list s3://not-there/photos") as caught:
        names("s3://not-there/photos")
    assert "create bucket 'not-there'" in caught.value.hint
    with pytest.raises(ConfigError, match="has no files in it"):
        names(s3.bucket("empty-bucket"))
    with pytest.raises(ConfigError, match="is not the name of a bucket"):
        names("s3://buck*/a")


def test_other_stores_are_listed_by_fsspec(tmp_path):
    fs, root = fsspec.filesystem("memory"), f"memory:/{tmp_path}"
    for name in NAMES:
        fs.pipe_file(f"{tmp_path}/archive/{name}", b"x")
    assert names(f"{root}/archive") == below(root, sorted(NAMES))
    assert all(info.version.startswith("1-") for info in list_objects(f"{root}/archive"))
    fs.pipe_file(f"{tmp_path}/photos [2024]/a.jpg", b"x")
    assert split_source(f"{root}/photos [2024]")[1] is None


def test_web_url_is_listed_as_one_file(faulty):
    faulty.objects["/a%20b.jpg"] = b"12345"
    [info] = list_objects(f"{faulty.url}/a%20b.jpg")
    assert (info.uri, info.size_bytes) == (f"{faulty.url}/a%20b.jpg", 5)
    with pytest.raises(ConfigError, match="no such file"):
        names(f"{faulty.url}/gone.jpg")


DIVIDED = [
    f"in/{top}/{deep}/{n}.jpg" for top in ("a", "b b", "ü") for deep in "xy" for n in "012345"
]
DIVIDED += [f"in/{n:03}.jpg" for n in range(5)] + [f"in/b b{n}.jpg" for n in range(3)]
DIVIDED += ["in/a/", "in/a/x/", "in/b b/", "in/zz/only.jpg", "in/[a]/k.jpg"]


@pytest.fixture(scope="module")
def divided(s3):
    url = s3.bucket("divided")
    for key in DIVIDED:
        # One folder's own object has bytes: it is a file, however odd its name.
        body = b"x" if key == "in/a/x/" or not key.endswith("/") else b""
        s3.client().put_object(Bucket="divided", Key=key, Body=body)
    return url


@pytest.mark.parametrize("source", ["", "/in", "/in/**/x/*.jpg", "/in/?/**"])
@pytest.mark.parametrize("enough", [1, 2, 64])
def test_divided_prefix_lists_what_one_listing_lists(divided, monkeypatch, source, enough):
    monkeypatch.setattr(s3_requests, "MAX_LISTED", 10)
    monkeypatch.setattr(key_prefixes, "_ENOUGH_PREFIXES", enough)
    prefixes = divide_prefix(divided + source)
    found = [info for keys in pickle.loads(pickle.dumps(prefixes)) for info in PrefixReader(keys)]
    assert sorted(found, key=lambda info: info.uri) == list(list_objects(divided + source))


def test_source_that_is_small_is_not_divided(divided, monkeypatch, tmp_path):
    monkeypatch.setattr(s3_requests, "MAX_LISTED", 10)
    for place in (f"{divided}/in/000.jpg", str(tmp_path), f"{divided}/in/[a]"):
        assert divide_prefix(place) == []
