import pytest

from ray_app.archives import open_source
from ray_app.errors import ConfigError, StorageError

NAMES = ["a.jpg", "a/b.png", "a/notes.txt", "b/c.JPG", "b/deep/d.jpg", "z.bin"]


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    if request.param == "local":
        for name in NAMES:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(name.encode())
        return str(tmp_path)
    s3 = request.getfixturevalue("s3")
    s3.bucket("sources")
    for name in NAMES:
        s3.client().put_object(Bucket="sources", Key=f"in/{name}", Body=name.encode())
    return "s3://sources/in"


def names(root: str, *args, **kwargs) -> list[str]:
    return [item.uri.removeprefix(root + "/") for item in open_source(*args, **kwargs)]


def test_every_file_is_listed_whatever_it_is(root):
    assert names(root, [root]) == NAMES


def test_listing_twice_gives_the_same(root):
    archive = open_source([root])
    assert list(archive) == list(archive)
    assert archive.input_type is None


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.jpg"], [], ["a.jpg", "b/deep/d.jpg"]),
        (["*.[jJ][pP][gG]"], ["b/**"], ["a.jpg"]),
        ([], ["*.txt", "*.bin"], ["a.jpg", "a/b.png", "b/c.JPG", "b/deep/d.jpg"]),
        (["a/*"], [], ["a/b.png", "a/notes.txt"]),
    ],
)
def test_patterns(root, include, exclude, expected):
    assert names(root, [root], include, exclude) == expected


def test_several_sources_in_their_order(root):
    assert names(root, [f"{root}/z.bin", f"{root}/b", f"{root}/*.jpg"]) == ["z.bin", "b/c.JPG", "b/deep/d.jpg", "a.jpg"]


def test_patterns_are_relative_to_each_source(root):
    assert names(root, [f"{root}/b"], ["deep/*"]) == ["b/deep/d.jpg"]
    assert names(root, [f"{root}/z.bin"], ["z.*"]) == ["z.bin"]
    assert names(root, [f"{root}/b/**/*.jpg"], ["deep/*"]) == ["b/deep/d.jpg"]


def test_the_run_directory_is_never_listed(root):
    assert names(root, [root], skip=[f"{root}/b/"]) == [name for name in NAMES if not name.startswith("b/")]
    assert names(root, [root], skip=[f"{root}/a"]) == [name for name in NAMES if not name.startswith("a/")]


def test_patterns_that_let_nothing_pass(root):
    with pytest.raises(ConfigError, match=r"none of 6 files passes --include \*\.heic --exclude a/\*") as caught:
        names(root, [root], ["*.heic"], ["a/*"])
    assert caught.value.exit_code == 2


def test_nothing_but_the_run_directory(root):
    with pytest.raises(ConfigError, match="nothing there but the run directory"):
        names(root, [f"{root}/b"], skip=[f"{root}/b"])


def test_no_source():
    with pytest.raises(ConfigError, match="no source"):
        open_source([])


def test_a_missing_bucket(s3):
    with pytest.raises(StorageError, match="cannot list"):
        list(open_source(["s3://not-there-at-all"]))
