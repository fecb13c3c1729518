"""What a listing need not do again, what it must, and what it never turns into a row."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives import (
    BlockPlan,
    Container,
    ContainerLimits,
    TableColumns,
    is_as_listed,
    list_members,
    open_source,
    read_vanished,
)
from ray_app.archives.containers import CONTAINERS
from ray_app.errors import ConfigError, Status, StorageError
from ray_app.storage import Fetcher, Store
from tests.archives.containers import hazards
from tests.archives.given import Failing

FILES = {f"{number:02}.jpg": bytes([number]) * 900 for number in range(8)} | {"07.json": b"{}"}
PLAN = BlockPlan(batch_slots=4, max_block_members=8)


def table(path):
    pq.write_table(
        pa.table({"image": pa.array(list(FILES.values())), "n": range(9)}),
        path,
        row_group_size=3,
        use_dictionary=False,
    )
    return path.read_bytes()


MAKE = {
    "tar": lambda path: hazards.tar(FILES),
    "zip": lambda path: hazards.zipped(FILES),
    "tar.gz": lambda path: gzip.compress(hazards.tar(FILES)),
    "parquet": table,
}


@pytest.mark.parametrize("kind", list(MAKE))
def test_store_without_an_answer_stops_the_listing_anywhere(tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(MAKE[kind](path))
    container = Container(
        str(path), "", path.stat().st_size, kind, "a", TableColumns(), ContainerLimits()
    )
    whole = Failing(0)
    assert len(list(CONTAINERS[kind].index(container, whole))) >= 8
    for number in range(1, whole.asked + 1):
        with pytest.raises(StorageError, match="cannot list"):
            list(CONTAINERS[kind].index(container, Failing(number)))
        items = list(CONTAINERS[kind].index(container, Failing(number, Status.SOURCE_DENIED)))
        assert items[-1].refused.status == Status.SOURCE_DENIED


def zipped(path, names):
    path.write_bytes(hazards.zipped({name: name.encode() * 99 for name in names}))


def test_container_that_cannot_be_opened_always_has_a_row(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.zip").write_bytes(b"no zip")
    zipped(tmp_path / "in/good.zip", ["a.jpg", "b.png"])
    for pattern in ("*.jpg", "in/*.zip/a.*"):
        listed = list(open_source([str(tmp_path)], [pattern]))
        assert [item.member for item in listed] == [None, "a.jpg"]
        assert [item.refused and item.refused.status for item in listed] == ["corrupt_image", None]
    with pytest.raises(ConfigError, match="none of 2 files passes"):
        list(open_source([str(tmp_path)], ["out/*"]))


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    zipped(folder / "a.zip", ["1.jpg", "2.jpg"])
    zipped(folder / "b.zip", ["3.jpg"])
    (folder / "c.jpg").write_bytes(b"c")
    return folder


def relist(tmp_path, source, **settings):
    """The next manifest, None if nothing is new, and how many bytes of containers were read."""
    fetcher, store = Fetcher(), Store.open(str(tmp_path / "run"))
    archive = open_source([str(source)], fetcher=fetcher, **settings)
    return list_members(store, archive, PLAN), fetcher.bytes_read


def unchanged(tmp_path, source, **settings):
    return is_as_listed(Store.open(str(tmp_path / "run")), open_source([str(source)], **settings))


def test_containers_of_the_last_listing_are_not_opened_again(tmp_path, archive):
    assert not unchanged(tmp_path, archive)
    assert relist(tmp_path, archive)[0].listed == 4
    assert unchanged(tmp_path, archive)
    assert relist(tmp_path, archive) == (None, 0)
    assert not unchanged(tmp_path, archive, exclude=["b.zip"])
    for change, listed, vanished in [
        (lambda: zipped(archive / "b.zip", ["3.jpg", "4.jpg"]), 5, 1),
        (lambda: (archive / "c.jpg").write_bytes(b"other"), 5, 2),
        (lambda: (archive / "a.zip").unlink(), 3, 4),
    ]:
        change()
        assert not unchanged(tmp_path, archive)
        info, _ = relist(tmp_path, archive)
        assert (info.listed, info.vanished) == (listed, vanished)
        assert len(read_vanished(Store.open(str(tmp_path / "run")), info.manifest)) == vanished
        assert unchanged(tmp_path, archive)
        assert relist(tmp_path, archive) == (None, 0)


def test_list_in_a_table_is_read_again_as_its_files_may_change(tmp_path, archive):
    pq.write_table(pa.table({"uri": ["c.jpg"], "n": [1]}), archive / "list.parquet")
    relist(tmp_path, archive / "list.parquet")
    assert not unchanged(tmp_path, archive / "list.parquet")
    (archive / "c.jpg").write_bytes(b"other")
    assert relist(tmp_path, archive / "list.parquet")[0].vanished == 1


def test_container_that_was_unreachable_is_tried_again(tmp_path, archive):
    store = Store.open(str(tmp_path / "run"))
    list_members(store, open_source([str(archive)], fetcher=Failing(1, Status.SOURCE_DENIED)), PLAN)
    assert not unchanged(tmp_path, archive)
    info, _ = relist(tmp_path, archive)
    assert (info.members, info.vanished) == (2, 1)
    assert unchanged(tmp_path, archive)
