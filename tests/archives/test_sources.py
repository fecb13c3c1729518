import io
import os
import pickle
from threading import Barrier, Event

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives import BlockPlan, list_members, open_source
from ray_app.errors import ConfigError, StorageError
from ray_app.storage import Fetcher, Store
from ray_app.storage import s3 as requests
from tests.archives.given import all_members
from tests.archives.test_img2dataset import written

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


def test_every_file_is_listed_whatever_it_is_but_the_run_directory(root):
    archive = open_source([root])
    assert [item.uri.removeprefix(root + "/") for item in archive] == NAMES
    assert list(archive) == list(archive)
    assert names(root, [root], skip=[f"{root}/b/"]) == [
        name for name in NAMES if not name.startswith("b/")
    ]
    assert names(root, [root], skip=[f"{root}/a"]) == [
        name for name in NAMES if not name.startswith("a/")
    ]
    with pytest.raises(ConfigError, match="no file there but those of the output directory"):
        names(root, [f"{root}/b"], skip=[f"{root}/b"])


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


def test_several_sources_in_their_order_each_with_patterns_below_it(root):
    assert names(root, [f"{root}/z.bin", f"{root}/b", f"{root}/*.jpg"]) == [
        "z.bin",
        "b/c.JPG",
        "b/deep/d.jpg",
        "a.jpg",
    ]
    assert (
        names(root, [f"{root}/b"], ["deep/*"])
        == names(root, [f"{root}/b/**/*.jpg"], ["deep/*"])
        == ["b/deep/d.jpg"]
    )
    assert names(root, [f"{root}/z.bin"], ["z.*"]) == ["z.bin"]


def test_patterns_that_let_nothing_pass(root):
    with pytest.raises(
        ConfigError, match=r"none of 6 files passes --include \*\.heic --exclude a/\*"
    ) as caught:
        names(root, [root], ["*.heic"], ["a/*"])
    assert caught.value.exit_code == 2


def test_what_is_no_source(s3):
    with pytest.raises(ConfigError, match="no source"):
        open_source([])
    with pytest.raises(StorageError, match="cannot list"):
        list(open_source(["s3://not-there-at-all"]))
    with pytest.raises(ConfigError, match="'sql::' is not a kind of source") as caught:
        open_source(["sql::x"])
    assert caught.value.hint.endswith(", list")
    with pytest.raises(ConfigError, match="'inventory::' is retired") as caught:
        open_source(["inventory::s3://b/manifest.json"])
    assert "list::TABLE" in caught.value.hint


def test_a_large_prefix_is_listed_in_sections(s3, monkeypatch):
    """They tell one after the other what the whole tells, with the same paths and the words of
    tables before their beginning.
    """
    s3.bucket("large")
    for path, data in written("files").items():
        s3.client().put_object(Bucket="large", Key=f"laion/{path}", Body=data)
    [whole] = open_source(["s3://large/laion"]).sections()
    page = requests.page
    monkeypatch.setattr(
        requests, "page", lambda *args, limit=1000, **more: page(*args, limit=min(limit, 5), **more)
    )
    archive = open_source(["s3://large/laion"], include=["**/*1.jpg"])
    sections = [pickle.loads(pickle.dumps(section)) for section in archive.sections()]
    assert len(sections) >= 3
    assert [found for section in sections for found in section.found(Fetcher())] == list(
        whole.found(Fetcher())
    )
    assert [(item.uri, item.input["key"]) for item in archive] == [
        (f"s3://large/laion/{key[:5]}/{key}.jpg", key) for key in ("000001", "000011")
    ]


def test_ranges_of_a_large_prefix_are_read_side_by_side_and_come_in_order(s3, monkeypatch):
    s3.bucket("wide")
    keys = [f"{folder}/{number}.jpg" for folder in "abcd" for number in range(12)]
    for key in keys:
        s3.client().put_object(Bucket="wide", Key=key, Body=b"x")
    page, together = requests.page, Barrier(4)

    def of_five(bucket, prefix, *, limit=1000, after=None, above=None, **more):
        if above in ("a/", "b/", "c/", "d/") and after is None:
            together.wait(20)  # the first request of each range waits for those of the others
        return page(bucket, prefix, limit=min(limit, 5), after=after, above=above, **more)

    monkeypatch.setattr(requests, "page", of_five)
    assert [item.uri for item in open_source(["s3://wide"])] == sorted(
        f"s3://wide/{key}" for key in keys
    )


def test_what_a_range_raises_comes_in_its_turn_and_who_leaves_early_waits_for_no_range(
    s3, monkeypatch
):
    s3.bucket("torn")
    for key in (f"{folder}/{number}.jpg" for folder in "abcd" for number in range(12)):
        s3.client().put_object(Bucket="torn", Key=key, Body=b"x")
    page, left = requests.page, Event()

    def torn(bucket, prefix, *, limit=1000, above=None, **more):
        if above == "c/":
            raise PermissionError("no more of it")
        if above == "d/":
            left.wait(20)
        return page(bucket, prefix, limit=min(limit, 5), above=above, **more)

    monkeypatch.setattr(requests, "page", torn)
    listed = []
    with pytest.raises(StorageError, match="cannot list"):
        listed.extend(item.uri for item in open_source(["s3://torn"]))
    left.set()  # only now may the last range answer
    assert listed == sorted(
        f"s3://torn/{folder}/{number}.jpg" for folder in "ab" for number in range(12)
    )


def test_a_name_that_announces_nothing(tmp_path):
    table = io.BytesIO()
    pq.write_table(pa.table({"image": [b"one", b"two"]}), table)
    (tmp_path / "download").write_bytes(table.getvalue())
    (tmp_path / "a.parquet").write_bytes(table.getvalue())
    assert [item.member for item in open_source([f"parquet::{tmp_path}/download"])] == ["0", "1"]
    assert [item.member for item in open_source([f"files::{tmp_path}"])] == [None, None]


def test_a_relative_source_means_the_same_place_wherever_its_sections_are_listed(
    tmp_path, monkeypatch
):
    for folder in ("here/photos", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "here/photos/a.jpg").write_bytes(b"a")
    (tmp_path / "here/list.csv").write_text("uri\nphotos/a.jpg\n")
    monkeypatch.chdir(tmp_path / "here")
    archive = open_source(["photos", "list.csv", "list::list.csv"])
    sections = pickle.dumps(list(archive.sections()))
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = [item.uri for section in pickle.loads(sections) for _, item in section.found(Fetcher())]
    assert found == [str(tmp_path / "here/photos/a.jpg")] * 3


@pytest.mark.parametrize("place", ["local", "s3"])
def test_patterns_are_relative_to_a_place_with_pattern_letters(place, tmp_path, request):
    """The prefix is literal, since something has that name."""
    names = ["photos [2024]/a.jpg", "photos [2024]/thumbs/t.jpg"]
    if place == "local":
        root = str(tmp_path)
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
    else:
        s3 = request.getfixturevalue("s3")
        root = s3.bucket("brackets")
        for name in names:
            s3.client().put_object(Bucket="brackets", Key=name, Body=b"x")
    source = f"{root}/photos [2024]"
    assert [item.uri for item in open_source([source], exclude=["thumbs/**"])] == [
        f"{source}/a.jpg"
    ]
    assert [item.uri for item in open_source([source], include=["thumbs/*"])] == [
        f"{source}/thumbs/t.jpg"
    ]


def test_list_in_a_folder_with_pattern_letters_is_read(tmp_path):
    folder = tmp_path / "scans [1]"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(b"x")
    (folder / "list.csv").write_text("path\none.jpg\n")
    assert [item.uri for item in open_source([f"{folder}/list.csv"])] == [f"{folder}/one.jpg"]


@pytest.mark.parametrize(
    "source", ["db-{0..10}.tar", "{a,b}/c.jpg", "file://localhost{}/db-{{0..10}}.tar"]
)
def test_braces_in_a_source_are_refused_with_the_reason(tmp_path, source):
    place = source.format(tmp_path) if "localhost" in source else f"{tmp_path}/{source}"
    with pytest.raises(ConfigError, match="braces are not expanded") as caught:
        list(open_source([place]))
    assert caught.value.hint == "write a pattern, as in db-*.tar, or name each file"


def test_braces_in_a_name_that_is_there_are_letters(tmp_path):
    (tmp_path / "db-{0..10}.jpg").write_bytes(b"x")
    assert [item.uri for item in open_source([f"{tmp_path}/db-{{0..10}}.jpg"])] == [
        f"{tmp_path}/db-{{0..10}}.jpg"
    ]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_braces_in_a_pattern_are_refused(tmp_path, option):
    with pytest.raises(
        ConfigError, match=rf"--{option} \*\.\{{jpg,png\}}: braces are not expanded"
    ):
        open_source([str(tmp_path)], **{option: ["*.{jpg,png}"]})


def test_file_url_of_another_host_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert [item.uri for item in open_source([f"file://localhost{tmp_path}"])] == [
        f"{tmp_path}/a.jpg"
    ]
    with pytest.raises(
        ConfigError, match="the host is 'elsewhere', and only files of this machine are read"
    ) as caught:
        open_source([f"file://elsewhere{tmp_path}"])
    assert caught.value.hint == "write the path alone, or file:///PATH with three slashes"


def test_patterns_are_compared_with_paths_that_are_not_unicode(tmp_path):
    root = os.fsencode(tmp_path)
    for name in (b"caf\xe9/cache/1.jpg", b"cache/2.jpg", b"caf\xe9/empty.parquet"):
        os.makedirs(os.path.dirname(root + b"/" + name), exist_ok=True)
        with open(root + b"/" + name, "wb") as file:
            file.write(b"")
    table = tmp_path / "cache/unclear.parquet"
    pq.write_table(pa.table({"one": [b"a"], "two": [b"b"]}), table)
    os.rename(table, root + b"/caf\xe9/unclear.parquet")
    store = Store.open(str(tmp_path / "run"))
    list_members(
        store, open_source([str(tmp_path)], exclude=["cache/**"], skip=[store.url]), BlockPlan()
    )
    uris = [member.uri.rpartition("/")[2] for member in all_members(store)]
    assert sorted(uris) == ["1.jpg", "empty.parquet", "unclear.parquet"]
