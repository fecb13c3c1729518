import os

import pytest

from ray_app.errors import ConfigError, StorageError
from ray_app.storage import ObjectInfo, base_of, list_objects
from ray_app.storage import s3 as s3_requests

NAMES = ["a!.jpg", "a.jpg", "a/b.jpg", "a/b/c.jpg", "a/z.txt", "a0.jpg", "b/ä ö.jpg", "b/x#y?z.jpg", "c/100%.jpg", "c/.hidden"]


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
        assert list(list_objects(str(path))) == [ObjectInfo(str(path), 5, f"5-{path.stat().st_mtime_ns}")]

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
        assert names(f"{folder}/archive/[bc]/*") == below(str(folder), sorted(n for n in NAMES if n[:2] in ("b/", "c/")))

    def test_pattern_letters_in_a_real_name_are_letters(self, tmp_path):
        (tmp_path / "photos [2020]").mkdir()
        (tmp_path / "photos [2020]" / "a.jpg").write_bytes(b"x")
        assert names(f"{tmp_path}/photos [2020]") == [f"{tmp_path}/photos [2020]/a.jpg"]
        assert base_of(f"{tmp_path}/photos [2020]") == f"{tmp_path}/photos [2020]"

    @pytest.mark.parametrize("missing", ["nowhere", "empty", "nowhere/*.jpg", "empty/**"])
    def test_nothing_there(self, tmp_path, missing):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ConfigError, match=r"no such file or folder|has no files in it|no file matches this pattern") as caught:
            names(f"{tmp_path}/{missing}")
        assert caught.value.exit_code == 2

    def test_a_folder_that_may_not_be_read_is_not_passed_over(self, folder, monkeypatch):
        real_scandir = os.scandir

        def guarded(path):
            if str(path).endswith("/a"):
                raise PermissionError(13, "Permission denied")
            return real_scandir(path)

        monkeypatch.setattr(os, "scandir", guarded)
        with pytest.raises(StorageError, match="Permission denied") as caught:
            names(f"{folder}/archive")
        assert caught.value.exit_code == 5


class TestS3:
    def test_every_object_in_key_order(self, bucket, s3):
        assert names(f"{bucket}/archive") == names(f"{bucket}/archive/") == below(bucket, sorted(NAMES))
        [info] = list_objects(f"{bucket}/archive/a.jpg")
        etag = s3.client().head_object(Bucket="listing", Key="archive/a.jpg")["ETag"]
        assert info == ObjectInfo(f"{bucket}/archive/a.jpg", 5, etag.strip('"'))

    def test_patterns(self, bucket):
        assert names(f"{bucket}/archive/*.jpg") == below(bucket, ["a!.jpg", "a.jpg", "a0.jpg"])
        assert names(f"{bucket}/archive*/**/*.jpg")[-1] == f"{bucket}/archive2/other.jpg"
        assert names(f"{bucket}/archive/b/x#y[?]z.jpg") == below(bucket, ["b/x#y?z.jpg"])

    def test_a_large_prefix_is_listed_page_by_page(self, bucket, monkeypatch):
        real_page = s3_requests.page
        monkeypatch.setattr(s3_requests, "page", lambda *args, limit=1000, **kwargs: real_page(*args, limit=min(limit, 2), **kwargs))
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
        assert all(info.version.startswith("1-") for info in list_objects(f"memory:/{tmp_path}/archive"))

    def test_one_web_url(self, faulty):
        faulty.objects["/a%20b.jpg"] = b"12345"
        [info] = list_objects(f"{faulty.url}/a%20b.jpg")
        assert (info.uri, info.size_bytes) == (f"{faulty.url}/a%20b.jpg", 5)
        with pytest.raises(ConfigError, match="no such file"):
            names(f"{faulty.url}/gone.jpg")
