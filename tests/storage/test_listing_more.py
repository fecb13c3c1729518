import os
import shutil
import sys

import pytest

from ray_app.errors import ConfigError, SourceError, Status, StorageError
from ray_app.storage import ClosedFolder, Fetcher, ObjectInfo, list_objects, split_source
from ray_app.storage import s3 as s3_requests
from ray_app.storage.listing import not_there
from tests.unprivileged import closed, nested

NAMES = [
    "a!.jpg",
    "a.jpg",
    "a/b.jpg",
    "a/b/c.jpg",
    "a/z.txt",
    "a0.jpg",
    "b/ä ö.jpg",
    "b/x#y?z.jpg",
    "c/100%.jpg",
    "c/.hidden",
]


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


class TestLocal:
    def test_every_file_in_the_order_of_uris(self, folder, monkeypatch):
        expected = below(str(folder), sorted(NAMES))
        assert names(f"{folder}/archive") == names(f"file://{folder}/archive/") == expected
        monkeypatch.chdir(folder)
        assert names("./archive/../archive") == expected
        path = folder / "archive/a.jpg"
        assert list(list_objects(str(path))) == [
            ObjectInfo(str(path), 5, f"5-{path.stat().st_mtime_ns}")
        ]

    def test_links(self, folder):
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

    def test_patterns(self, folder):
        assert names(f"{folder}/archive/*.jpg") == below(str(folder), ["a!.jpg", "a.jpg", "a0.jpg"])
        assert names(f"{folder}/archive/**/c.jpg") == below(str(folder), ["a/b/c.jpg"])
        assert names(f"{folder}/archive/[bc]/*") == below(
            str(folder), sorted(n for n in NAMES if n[:2] in ("b/", "c/"))
        )

    def test_pattern_letters_in_a_real_name_are_letters(self, tmp_path):
        (tmp_path / "photos [2020]").mkdir()
        (tmp_path / "photos 2").mkdir()
        (tmp_path / "photos 2" / "b.jpg").write_bytes(b"x")
        assert split_source(f"{tmp_path}/photos [2020]") == (f"{tmp_path}/photos [2020]", None)
        with pytest.raises(ConfigError, match="the folder has no files in it"):
            names(f"{tmp_path}/photos [2020]")
        (tmp_path / "photos [2020]" / "a.jpg").write_bytes(b"x")
        assert names(f"{tmp_path}/photos [2020]") == [f"{tmp_path}/photos [2020]/a.jpg"]
        assert split_source(f"{tmp_path}/photos [1-3]") == (str(tmp_path), "photos [1-3]")

    @pytest.mark.parametrize("missing", ["nowhere", "empty", "nowhere/*.jpg", "empty/**"])
    def test_nothing_there(self, tmp_path, missing):
        (tmp_path / "empty").mkdir()
        with pytest.raises(
            ConfigError,
            match=r"no such file or folder|has no files in it|no file matches this pattern",
        ) as caught:
            names(f"{tmp_path}/{missing}")
        assert caught.value.exit_code == 2

    def test_path_below_a_file_is_not_there(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(b"x")
        refused = not_there(f"{tmp_path}/a.jpg/b.jpg")
        assert refused.message == f"{tmp_path}/a.jpg/b.jpg: no such file or folder"

    def test_nested_folders_beyond_the_recursion_limit_are_listed(self, tmp_path):
        depth = sys.getrecursionlimit() + 100
        with nested(tmp_path, "d", depth):
            assert names(str(tmp_path)) == [f"{tmp_path}/{'d/' * depth}x.jpg"]


def listed(source: str, **options) -> list[tuple[str, str | None]]:
    """The path below the source of everything listed, and the status of folders that cannot be
    listed.
    """
    found = list_objects(source, **options)
    return [
        (
            info.uri.removeprefix(f"{source}/"),
            info.error.status if isinstance(info, ClosedFolder) else None,
        )
        for info in found
    ]


class TestClosedFolders:
    @pytest.fixture
    def photos(self, tmp_path):
        for name in ("1.jpg", "lost+found/2.jpg", "lost+found/deep/3.jpg", "z/4.jpg"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        return tmp_path

    def test_folder_that_cannot_be_listed_is_reported(self, photos):
        with closed(photos / "lost+found"):
            assert listed(str(photos)) == [
                ("1.jpg", None),
                ("lost+found", Status.SOURCE_DENIED),
                ("z/4.jpg", None),
            ]
            [folder] = [
                info for info in list_objects(str(photos)) if isinstance(info, ClosedFolder)
            ]
            assert folder.error.detail == "this folder cannot be listed: Permission denied"

    def test_files_of_a_folder_that_cannot_be_entered_are_listed(self, photos):
        with closed(photos / "lost+found", mode=0o444):
            found = {
                info.uri.removeprefix(f"{photos}/"): info for info in list_objects(str(photos))
            }
        assert list(found) == ["1.jpg", "lost+found/2.jpg", "lost+found/deep", "z/4.jpg"]
        assert (found["lost+found/2.jpg"].size_bytes, found["lost+found/2.jpg"].version) == (-1, "")
        assert found["lost+found/deep"].error.status == Status.SOURCE_DENIED

    @pytest.mark.parametrize("mode", [0, 0o444])
    def test_source_that_is_closed_itself_is_an_error(self, photos, mode):
        with closed(photos, mode=mode):
            for source in (str(photos), f"{photos}/*.jpg"):
                with pytest.raises(StorageError, match="Permission denied") as caught:
                    names(source)
                assert (caught.value.exit_code, caught.value.hint) == (
                    5,
                    "check the permissions of that path",
                )

    def test_folder_that_is_left_out_is_never_listed(self, photos):
        with closed(photos / "lost+found"):
            assert listed(str(photos), enters=lambda folder: not folder.endswith("lost+found")) == [
                ("1.jpg", None),
                ("z/4.jpg", None),
            ]
        assert listed(str(photos / "z"), enters=lambda _: False) == [("4.jpg", None)]
        (photos / "z/y").mkdir()
        (photos / "z/4.jpg").rename(photos / "z/y/4.jpg")
        assert listed(str(photos / "z"), enters=lambda _: False) == []

    def test_pattern_reports_only_folders_that_it_may_match_in(self, photos):
        with closed(photos / "lost+found"):
            assert listed(f"{photos}/*.jpg") == [(f"{photos}/1.jpg", None)]
            assert [status for _, status in listed(f"{photos}/**/*.jpg")] == [
                None,
                Status.SOURCE_DENIED,
                None,
            ]

    def test_folder_deleted_during_the_listing_is_reported(self, photos):
        found = list_objects(str(photos))
        assert next(found).uri == f"{photos}/1.jpg"
        shutil.rmtree(photos / "lost+found")
        gone, last = found
        assert (gone.uri, gone.error.status) == (f"{photos}/lost+found", Status.SOURCE_MISSING)
        assert last.uri == f"{photos}/z/4.jpg"

    def test_file_deleted_during_the_listing_is_still_listed(self, photos):
        (photos / "2.jpg").write_bytes(b"x")
        found = list_objects(str(photos))
        next(found)
        (photos / "2.jpg").unlink()
        assert next(found) == ObjectInfo(f"{photos}/2.jpg", -1, "")

    def test_folder_nested_too_deeply_for_a_path_is_reported(self, tmp_path):
        with nested(tmp_path, "d" * 250, 20):
            [(_, status)] = listed(str(tmp_path))
        assert status == Status.SOURCE_DENIED

    def test_links_that_lead_to_each_other_are_listed(self, tmp_path):
        (tmp_path / "a.jpg").symlink_to("b.jpg")
        (tmp_path / "b.jpg").symlink_to("a.jpg")
        assert names(str(tmp_path)) == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
        with pytest.raises(SourceError) as caught:
            Fetcher().fetch(f"{tmp_path}/a.jpg", "", 100)
        assert caught.value.status == Status.SOURCE_MISSING


class TestS3:
    def test_every_object_in_key_order(self, bucket, s3):
        assert (
            names(f"{bucket}/archive")
            == names(f"{bucket}/archive/")
            == below(bucket, sorted(NAMES))
        )
        [info] = list_objects(f"{bucket}/archive/a.jpg")
        etag = s3.client().head_object(Bucket="listing", Key="archive/a.jpg")["ETag"]
        assert info == ObjectInfo(f"{bucket}/archive/a.jpg", 5, etag.strip('"'))

    def test_patterns(self, bucket):
        assert names(f"{bucket}/archive/*.jpg") == below(bucket, ["a!.jpg", "a.jpg", "a0.jpg"])
        assert names(f"{bucket}/archive*/**/*.jpg")[-1] == f"{bucket}/archive2/other.jpg"
        assert names(f"{bucket}/archive/b/x#y[?]z.jpg") == below(bucket, ["b/x#y?z.jpg"])

    @pytest.mark.parametrize("name", ["photos [2024]", "what?", "all*"])
    def test_pattern_letters_in_a_real_prefix_are_letters(self, s3, name):
        bucket = s3.bucket("bracketed")
        s3.client().put_object(Bucket="bracketed", Key=f"{name}/a.jpg", Body=b"x")
        assert split_source(f"{bucket}/{name}") == (f"{bucket}/{name}", None)
        assert split_source(f"{bucket}/{name}/a.jpg")[1] is None
        assert split_source(f"{bucket}/nothing {name}") == (bucket, f"nothing {name}")

    def test_a_large_prefix_is_listed_page_by_page(self, bucket, monkeypatch):
        real_page = s3_requests.page
        monkeypatch.setattr(
            s3_requests,
            "page",
            lambda *args, limit=1000, **kwargs: real_page(*args, limit=min(limit, 2), **kwargs),
        )
        assert names(f"{bucket}/archive") == below(bucket, sorted(NAMES))
        assert names(bucket) == [*below(bucket, sorted(NAMES)), f"{bucket}/archive2/other.jpg"]

    def test_what_cannot_be_listed(self, s3):
        with pytest.raises(StorageError, match="cannot list s3://not-there/photos") as caught:
            names("s3://not-there/photos")
        assert "create bucket 'not-there'" in caught.value.hint
        with pytest.raises(ConfigError, match="has no files in it"):
            names(s3.bucket("empty-bucket"))
        with pytest.raises(ConfigError, match="is not the name of a bucket"):
            names("s3://buck*/a")


class TestOtherPlaces:
    def test_memory(self, tmp_path):
        import fsspec

        fs = fsspec.filesystem("memory")
        for name in NAMES:
            fs.pipe_file(f"{tmp_path}/archive/{name}", b"x")
        assert names(f"memory:/{tmp_path}/archive") == below(f"memory:/{tmp_path}", sorted(NAMES))
        assert all(
            info.version.startswith("1-") for info in list_objects(f"memory:/{tmp_path}/archive")
        )

    def test_pattern_letters_in_a_real_name_of_another_store_are_letters(self, tmp_path):
        import fsspec

        fsspec.filesystem("memory").pipe_file(f"{tmp_path}/photos [2024]/a.jpg", b"x")
        assert split_source(f"memory:/{tmp_path}/photos [2024]")[1] is None

    def test_folder_that_another_store_denies_is_reported(self, tmp_path):
        """fsspec's own local file system, by a scheme of its own, as SFTP or SMB would be."""
        for name in ("1.jpg", "closed/2.jpg", "z/3.jpg"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        with closed(tmp_path / "closed"):
            assert listed(f"local://{tmp_path}") == [
                ("1.jpg", None),
                ("closed", Status.SOURCE_DENIED),
                ("z/3.jpg", None),
            ]
            assert listed(
                f"local://{tmp_path}", enters=lambda uri: not uri.endswith("/closed")
            ) == [("1.jpg", None), ("z/3.jpg", None)]

    def test_one_web_url(self, faulty):
        faulty.objects["/a%20b.jpg"] = b"12345"
        [info] = list_objects(f"{faulty.url}/a%20b.jpg")
        assert (info.uri, info.size_bytes) == (f"{faulty.url}/a%20b.jpg", 5)
        with pytest.raises(ConfigError, match="no such file"):
            names(f"{faulty.url}/gone.jpg")
