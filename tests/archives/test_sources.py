import io
import os
import pickle
from contextlib import nullcontext
from operator import itemgetter
from threading import Barrier, Event

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives import BlockPlan, list_members, open_source
from ray_app.archives.containers import ContainerLimits
from ray_app.archives.members import TableColumns
from ray_app.archives.object_prefix import ObjectPrefix, PartialSection
from ray_app.errors import ConfigError, StorageError
from ray_app.storage import Fetcher, ObjectInfo, Store
from ray_app.storage import s3 as requests
from tests.archives.given import all_members
from tests.archives.img2dataset import written

NAMES = ["a.jpg", "a/b.png", "a/notes.txt", "b/c.JPG", "b/deep/d.jpg", "z.bin"]


@pytest.fixture(params=["local"])
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


@pytest.mark.parametrize("root", ["local", "s3"], indirect=True)
def test_source_lists_every_file_except_the_run_directory(root):
    archive = open_source([root])
    assert [item.uri.removeprefix(root + "/") for item in archive] == NAMES
    assert list(archive) == list(archive)
    for skipped in ("b/", "a"):
        left = [name for name in NAMES if not name.startswith(skipped[0] + "/")]
        assert names(root, [root], skip=[f"{root}/{skipped}"]) == left
    with pytest.raises(ConfigError, match="no file except those of the output directory"):
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
def test_source_patterns_select_files(root, include, exclude, expected):
    assert names(root, [root], include, exclude) == expected


def test_sources_keep_their_order_and_patterns_are_below_each(root):
    several = names(root, [f"{root}/z.bin", f"{root}/b", f"{root}/*.jpg"])
    assert several == ["z.bin", "b/c.JPG", "b/deep/d.jpg", "a.jpg"]
    for source in (f"{root}/b", f"{root}/b/**/*.jpg"):
        assert names(root, [source], ["deep/*"]) == ["b/deep/d.jpg"]
    assert names(root, [f"{root}/z.bin"], ["z.*"]) == ["z.bin"]


def test_source_patterns_that_select_nothing_are_named(root):
    reason = r"none of 6 files passes --include \*\.heic --exclude a/\*"
    with pytest.raises(ConfigError, match=reason) as caught:
        names(root, [root], ["*.heic"], ["a/*"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("sources", "reason", "hint"),
    [
        ([], "no source", ""),
        (["sql::x"], "'sql::' is not a kind of source", ", list"),
        (["inventory::s3://b/manifest.json"], "'inventory::' is retired", "list::TABLE"),
        (["db-{0..10}.tar"], "braces are not expanded", "write a pattern, as in db-*.tar"),
        (["{a,b}/c.jpg"], "braces are not expanded", "write a pattern"),
        (["file://localhost/x/db-{0..10}.tar"], "braces are not expanded", "write a pattern"),
        (["file://elsewhere/x"], "the host is 'elsewhere'", "file:///PATH with three slashes"),
    ],
)
def test_source_that_is_not_one_is_refused(sources, reason, hint):
    with pytest.raises(ConfigError, match=reason) as caught:
        list(open_source(sources))
    assert hint in (caught.value.hint or "")


def test_source_in_a_bucket_that_is_missing_is_refused(s3):
    with pytest.raises(StorageError, match="cannot list"):
        list(open_source(["s3://not-there-at-all"]))


def small_pages(monkeypatch, before=lambda prefix, delimiter, position: None, size=5):
    """The store answers with `size` keys at a time, and calls `before` first."""
    page = requests.page

    def answer(bucket, prefix, *, delimiter="", position=None, **more):
        before(prefix, delimiter, position)
        return page(bucket, prefix, delimiter=delimiter, position=position, **more)

    monkeypatch.setattr(requests, "MAX_LISTED", size)
    monkeypatch.setattr(requests, "page", answer)


@pytest.fixture(scope="module")
def wide(s3):
    """A prefix with four folders, each with twelve keys."""
    root = s3.bucket("wide")
    keys = [f"{folder}/{number}.jpg" for folder in "abcd" for number in range(12)]
    for key in keys:
        s3.client().put_object(Bucket="wide", Key=key, Body=b"x")
    return root, sorted(f"{root}/{key}" for key in keys)


def test_large_prefix_is_listed_in_sections(s3, monkeypatch):
    """Together they list what the whole lists, with the columns of tables in other sections."""
    s3.bucket("large")
    for path, data in written("files").items():
        s3.client().put_object(Bucket="large", Key=f"laion/{path}", Body=data)
    [whole] = open_source(["s3://large/laion"]).sections()
    small_pages(monkeypatch)
    archive = open_source(["s3://large/laion"], include=["**/*1.jpg"])
    sections = [pickle.loads(pickle.dumps(section)) for section in archive.sections()]
    assert len(sections) >= 3
    found = [found for section in sections for found in section.list_entries(Fetcher())]
    assert sorted(found, key=itemgetter(0)) == list(whole.list_entries(Fetcher()))
    assert [(item.uri, item.input["key"]) for item in archive] == [
        (f"s3://large/laion/{key[:5]}/{key}.jpg", key) for key in ("000001", "000011")
    ]


def test_shard_that_begins_a_page_keeps_its_table(s3, monkeypatch):
    s3.bucket("shards")
    for path, data in written("webdataset").items():
        s3.client().put_object(Bucket="shards", Key=f"laion/{path}", Body=data)
    small_pages(monkeypatch, size=4)
    [section] = open_source(["s3://shards/laion"]).sections()
    beginning = PartialSection(section, max_members=1)
    assert [path for path, _ in beginning.list_entries(Fetcher())][-1] == "00001.parquet"
    path, shard = next(beginning.remaining.list_entries(Fetcher()))
    assert (path, shard.samples.uri) == ("00001.tar", "s3://shards/laion/00001.parquet")


@pytest.mark.parametrize(
    ("names", "is_refused"),
    [
        (["00001.tar", "00000.parquet"], True),
        (["00000.parquet", "00001.parquet", "00000.tar"], True),
        (["00001.parquet", "00000.parquet"], False),
        (["b.jpg", "a.jpg"], False),
        (["00000.parquet", "00000.tar", "00001.parquet"], False),
    ],
)
def test_tables_in_unordered_listings_are_refused(names, is_refused):
    prefix = ObjectPrefix("s3://bucket/p", None, TableColumns(), ContainerLimits())
    objects = [ObjectInfo(f"s3://bucket/p/{name}", 9, "v") for name in names]
    with pytest.raises(StorageError, match="out of order") if is_refused else nullcontext():
        assert [path for path, _ in prefix.items(objects, Fetcher())] == names


def test_large_prefix_is_read_in_parallel_and_in_order(wide, monkeypatch):
    root, uris = wide
    together = Barrier(4)

    def wait_for_all(prefix, delimiter, position):
        if prefix in ("a/", "b/", "c/", "d/") and not delimiter and position is None:
            together.wait(20)  # The first request of each section waits for those of the others.

    small_pages(monkeypatch, wait_for_all)
    assert [item.uri for item in open_source([root])] == uris


def test_large_prefix_with_failing_section_lists_those_before(wide, monkeypatch):
    """A caller that stops listing waits for no section that is still being read."""
    root, uris = wide
    left = Event()

    def tear(prefix, delimiter, position):
        if prefix == "c/" and not delimiter:
            raise PermissionError("no more of it")
        if prefix == "d/" and not delimiter:
            left.wait(20)

    small_pages(monkeypatch, tear)
    listed = []
    with pytest.raises(StorageError, match="cannot list"):
        listed.extend(item.uri for item in open_source([root]))
    left.set()  # Only now may the last section answer.
    assert listed == uris[:24]


def test_source_kind_may_be_named_with_a_prefix(tmp_path):
    table = io.BytesIO()
    pq.write_table(pa.table({"image": [b"one", b"two"]}), table)
    (tmp_path / "download").write_bytes(table.getvalue())
    (tmp_path / "a.parquet").write_bytes(table.getvalue())
    assert [item.member for item in open_source([f"parquet::{tmp_path}/download"])] == ["0", "1"]
    assert [item.member for item in open_source([f"files::{tmp_path}"])] == [None, None]


def test_s3a_source_is_listed_as_s3(wide):
    """Under the same uris, and without a cache of listings: a second listing sees a new object."""
    root, uris = wide
    names = root.replace("s3://", "s3a://")
    store = Store.open(f"{names}/new")
    assert [item.uri for item in open_source([names])] == uris
    store.write("a.jpg", b"x")
    assert [item.uri for item in open_source([f"{names}/new"])] == [f"{root}/new/a.jpg"]
    store.write("b.jpg", b"x")
    assert len(list(open_source([f"{names}/new"]))) == 2
    store.clear("")


def test_relative_source_stays_the_same_in_another_folder(tmp_path, monkeypatch):
    for folder in ("here/photos", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "here/photos/a.jpg").write_bytes(b"a")
    (tmp_path / "here/list.csv").write_text("uri\nphotos/a.jpg\n")
    monkeypatch.chdir(tmp_path / "here")
    archive = open_source(["photos", "list.csv", "list::list.csv"])
    sections = pickle.dumps(list(archive.sections()))
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = [
        item.uri
        for section in pickle.loads(sections)
        for _, item in section.list_entries(Fetcher())
    ]
    assert found == [str(tmp_path / "here/photos/a.jpg")] * 3


def uris(source, **how):
    return [item.uri for item in open_source([source], **how)]


def test_source_patterns_are_below_a_name_with_pattern_letters(tmp_path):
    source = f"{tmp_path}/photos [2024]"
    for name in ("a.jpg", "thumbs/t.jpg"):
        path = tmp_path / "photos [2024]" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert uris(source, exclude=["thumbs/**"]) == [f"{source}/a.jpg"]
    assert uris(source, include=["thumbs/*"]) == [f"{source}/thumbs/t.jpg"]


def test_source_names_that_are_odd_are_read(tmp_path):
    folder = tmp_path / "scans [1]"
    folder.mkdir()
    for path in (folder / "one.jpg", tmp_path / "db-{0..10}.jpg"):
        path.write_bytes(b"x")
    (folder / "list.csv").write_text("path\none.jpg\n")
    assert uris(f"{folder}/list.csv") == [f"{folder}/one.jpg"]
    braces = f"{tmp_path}/db-{{0..10}}.jpg"
    assert uris(braces) == uris(f"file://localhost{braces}") == [braces]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_braces_in_a_pattern_are_refused(tmp_path, option):
    with pytest.raises(ConfigError, match=rf"--{option} \*\.{{jpg,png}}: braces"):
        open_source([str(tmp_path)], **{option: ["*.{jpg,png}"]})


def test_patterns_select_paths_that_are_not_unicode(tmp_path):
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
