"""Folders and containers that cannot be listed: a member for each, and members of earlier listings
stay.
"""

import errno
import json
import os

import pytest

from ray_app.archives import (
    Archive,
    BlockPlan,
    is_as_listed,
    list_members,
    list_portions,
    open_source,
    read_vanished,
)
from ray_app.archives.containers import Container, ContainerLimits
from ray_app.archives.containers.base import explain_refusal
from ray_app.archives.members import TableColumns, is_unreadable_folder
from ray_app.datasets import DatasetSource, build_index, index_source
from ray_app.datasets.survey import survey
from ray_app.errors import ConfigError, SourceError, Status, StorageError
from ray_app.storage import Store
from tests.archives.containers import hazards
from tests.archives.given import all_members
from tests.make.unprivileged import closed


@pytest.fixture
def photos(tmp_path):
    for name in ("real/1.jpg", "real/inner/2.jpg", "fake/3.jpg", "4.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    return tmp_path / "photos"


class Relisting:
    """A store into which the photos are listed again and again."""

    def __init__(self, photos, store):
        self.photos, self.store = photos, store

    def __call__(self):
        """List the photos: the listing, and by path why each current member is refused."""
        plan = BlockPlan(batch_slots=4, max_block_members=4)
        info = list_members(self.store, open_source([str(self.photos)]), plan)
        members = self.current()
        assert len({(member.uri, member.member) for member in members}) == len(members)
        return info, {
            os.path.relpath(member.uri, self.photos): member.refused and member.refused.status.value
            for member in members
        }

    def current(self):
        numbers = range(len(self.store.folders("manifest")))
        gone = set(read_vanished(self.store, numbers[-1]).tolist())
        members = [member for number in numbers for member in all_members(self.store, number)]
        return [member for member in members if member.image_id not in gone]

    def ids(self):
        return {member.image_id for member in self.current()}


@pytest.fixture
def relist(photos, tmp_path):
    return Relisting(photos, Store.open(str(tmp_path / "run")))


EVERYTHING = {"4.jpg": None, "fake/3.jpg": None, "real/1.jpg": None, "real/inner/2.jpg": None}
REAL = {"real": "source_denied"}


def without(*names):
    return {name: status for name, status in EVERYTHING.items() if name not in names}


def test_closed_folder_is_one_member_and_the_rest_is_listed(photos, relist):
    with closed(photos / "real"):
        info, members = relist()
    assert members == {"4.jpg": None, "fake/3.jpg": None} | REAL
    assert (info.members, info.closed_folders, info.closed_example) == (3, 1, str(photos / "real"))
    [folder] = [member for member in all_members(relist.store) if member.refused]
    assert is_unreadable_folder(folder)
    assert folder.refused.detail == "this folder cannot be listed: Permission denied"
    assert folder.size_bytes == -1


def test_members_of_a_folder_that_is_closed_later_stay(photos, relist):
    assert relist()[1] == EVERYTHING
    with closed(photos / "real"):
        info, members = relist()
        assert members == EVERYTHING | REAL
        assert (info.members, info.vanished, info.listed) == (1, 0, 3)
        assert is_as_listed(relist.store, open_source([str(photos)]))
        assert relist() == (None, members)
        (photos / "fake/3.jpg").unlink()
        (photos / "5.jpg").write_bytes(b"new")
        info, members = relist()
        assert (info.members, info.vanished) == (1, 1)
        assert members == without("fake/3.jpg") | REAL | {"5.jpg": None}
    (photos / "real/1.jpg").unlink()
    left = {"4.jpg": None, "5.jpg": None, "real/inner/2.jpg": None}
    assert relist()[1] == left
    with closed(photos / "real"):
        info, members = relist()
    assert info.members == 0, "the member of the folder is the one of the first time"
    assert members == left | REAL


def test_members_deleted_before_their_folder_closed_stay_deleted(photos, relist):
    relist()
    (photos / "real/1.jpg").unlink()
    relist()
    with closed(photos / "real"):
        assert relist()[1] == without("real/1.jpg") | REAL


def test_closed_folder_in_a_folder_that_is_closed_later_stays(photos, relist):
    with closed(photos / "real/inner"):
        assert relist()[1]["real/inner"] == "source_denied"
        with closed(photos / "real"):
            members = relist()[1]
    assert members == without("real/inner/2.jpg") | REAL | {"real/inner": "source_denied"}
    assert relist()[1] == EVERYTHING


def test_members_of_a_container_that_is_closed_later_stay(photos, relist):
    (photos / "real/a.tar").write_bytes(hazards.tar({"a.jpg": b"1", "b.jpg": b"2"}))
    assert relist()[0].members == 6
    os.chmod(photos / "real/a.tar", 0)
    # root may open a closed file as long as it may read everything
    with closed(photos / "real/inner"):
        info, _ = relist()
        assert (info.members, info.vanished) == (2, 0), "the tar and the folder, as members"
    os.chmod(photos / "real/a.tar", 0o600)
    assert relist()[0].vanished == 2


def test_members_of_a_folder_that_cannot_be_entered_later_stay(photos, relist):
    (photos / "fake/a.tar").write_bytes(hazards.tar({"a.jpg": b"1", "b.jpg": b"2"}))
    first, members = relist()
    with closed(photos / "fake", mode=0o444):
        info, _ = relist()
        assert (first.members, info.members, info.vanished) == (6, 1, 0), (
            "the tar has a row of its own"
        )
        (photos / "5.jpg").write_bytes(b"new")
        assert relist()[0].vanished == 0
    info, healed = relist()
    assert healed == members | {"5.jpg": None}
    assert (info.members, info.vanished) == (0, 1)


def test_file_that_was_closed_first_has_one_row_at_any_time(photos, relist):
    with closed(photos / "fake", mode=0o444):
        first, members = relist()
        assert (first.members, members) == (4, EVERYTHING)
        assert relist() == (None, EVERYTHING)
    info, members = relist()
    assert (info.members, info.vanished, members) == (1, 1, EVERYTHING), (
        "the row without a version is replaced"
    )
    current = relist.ids()
    (photos / "fake/new.jpg").write_bytes(b"x")
    with closed(photos / "fake", mode=0o444):
        info, members = relist()
    assert (info.members, info.vanished, members) == (1, 1, EVERYTHING | {"fake/new.jpg": None})
    assert current < relist.ids(), "the row with a version stays"


def failing_stat(path, number):
    """`os.stat`, which fails for one path."""
    stat = os.stat

    def fail(asked, *args, **kwargs):
        if asked == str(path):
            raise OSError(number, os.strerror(number), asked)
        return stat(asked, *args, **kwargs)

    return fail


@pytest.mark.parametrize(("number", "vanished"), [(errno.EIO, 0), (errno.ELOOP, 1)])
def test_row_of_a_file_stays_if_the_disk_fails(photos, relist, monkeypatch, number, vanished):
    _, members = relist()
    current = relist.ids()
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", failing_stat(photos / "4.jpg", number))
        info, same = relist()
    assert same == members
    assert (info is not None and info.vanished, current == relist.ids()) == (vanished, not vanished)
    relist()
    assert current == relist.ids()


def test_row_of_a_file_in_a_list_stays_if_the_disk_fails(photos, tmp_path, monkeypatch):
    (tmp_path / "list.csv").write_text("uri\nphotos/4.jpg\nphotos/fake/3.jpg\n")
    store, archive = Store.open(str(tmp_path / "run")), open_source([str(tmp_path / "list.csv")])
    list_members(store, archive, BlockPlan())
    monkeypatch.setattr(os, "stat", failing_stat(photos / "4.jpg", errno.EACCES))
    assert list_members(store, archive, BlockPlan()) is None


def test_members_of_a_folder_whose_name_is_not_unicode_stay(tmp_path):
    folder = os.fsencode(tmp_path) + b"/photos/\xff"
    os.makedirs(folder)
    for name in (b"/1.jpg", b"/\xfe.jpg"):
        with open(folder + name, "wb") as file:
            file.write(b"x")
    store, archive = Store.open(str(tmp_path / "run")), open_source([str(tmp_path / "photos")])
    list_members(store, archive, BlockPlan())
    with closed(folder):
        info = list_members(store, archive, BlockPlan())
    assert (info.members, info.vanished) == (1, 0)


def test_hundreds_of_closed_folders_are_a_member_each(tmp_path):
    folders = [tmp_path / f"photos/{number:03}" for number in range(300)]
    for folder in folders:
        folder.mkdir(parents=True)
    (folders[0] / "1.jpg").write_bytes(b"x")
    store = Store.open(str(tmp_path / "run"))
    with closed(*folders[1:]):
        info = list_members(store, open_source([str(tmp_path / "photos")]), BlockPlan())
    assert (info.members, info.closed_folders, info.closed_example) == (300, 299, str(folders[1]))


def test_listing_in_portions_counts_the_closed_folders_of_all(tmp_path, photos):
    store, archive = Store.open(str(tmp_path / "run")), open_source([str(photos), f"{photos}/fake"])
    with closed(photos / "real"):
        *_, last = list_portions(store, archive, BlockPlan())
    assert (last.goes_on, last.closed_folders) == (False, 1)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], ["real/**"], ["4.jpg", "fake/3.jpg"]),
        ([], ["**/real/**"], ["4.jpg", "fake/3.jpg"]),
        ([], ["real/*"], ["4.jpg", "fake/3.jpg", "real"]),
        ([], ["real"], ["4.jpg", "fake/3.jpg", "real"]),
        (["*.jpg"], [], ["4.jpg", "fake/3.jpg", "real"]),
        (["real/**"], [], ["real"]),
        (["fake/**"], [], ["fake/3.jpg"]),
    ],
)
def test_closed_folder_is_left_out_if_all_its_files_are(photos, include, exclude, expected):
    with closed(photos / "real"):
        items = list(open_source([str(photos)], include, exclude))
    assert [os.path.relpath(item.uri, photos) for item in items] == expected


def test_excluded_and_skipped_folders_are_not_opened(photos):
    with closed(photos / "real", photos / "fake"):
        opened = Archive([str(photos)], exclude=["real/**"], skip=[str(photos / "fake")])
        assert [item.uri for item in opened] == [str(photos / "4.jpg")]
    (photos / "4.jpg").unlink()
    with pytest.raises(ConfigError, match=r"photos: no file passes --exclude \*\*"):
        list(Archive([str(photos)], exclude=["**"]))


@pytest.mark.parametrize("status", [Status.SOURCE_TIMEOUT, Status.SOURCE_DENIED])
def test_container_on_a_damaged_disk_is_a_member(status):
    container = Container("/disk/a.tar", "v", 1, "tar", "a.tar", TableColumns(), ContainerLimits())
    assert explain_refusal(container, SourceError(status, "Input/output error")).status == status


def test_index_names_a_closed_folder_and_a_training_refuses_it(photos, tmp_path):
    source = DatasetSource(at=(str(photos),), layout="folders", exclude=("4.jpg",))
    place = Store.open(str(tmp_path / "index"))
    denied = r"real/inner: this folder cannot be listed"
    with closed(photos / "real/inner"):
        for refusing in (index_source, build_index):
            with pytest.raises(StorageError, match=denied) as caught:
                refusing(source, place, requires_all_folders=True)
        assert caught.value.hint.endswith("exclude: ['**/inner/**']")
        with pytest.raises(StorageError, match=denied):
            survey(source, place)
        info = build_index(source, place)
    assert info.rows == 2
    [left_out] = info.left_out
    assert left_out["why"] == "source_denied: this folder cannot be listed: Permission denied"
    assert left_out["example"] == str(photos / "real/inner")
    assert any("this folder cannot be listed" in line for line in info.fault_lines())
    assert json.loads(place.read("index.json"))["left_out"] == [left_out]
