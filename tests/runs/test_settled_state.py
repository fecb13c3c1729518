"""What is settled is not looked at again, and a memory that is not of these very files counts for nothing."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from ray_app.archives import manifests
from ray_app.errors import ClusterError, Status
from ray_app.runs import RunDirectory, check_conservation, directory, small_files, summarise
from ray_app.runs.settled_state import NewRows, finish_merge, read_settled, settle
from ray_app.runs.summary import joined
from tests.runs import test_profiles
from tests.runs.small_run import NAME, new_run, relist, score_blocks, write_files


def fails(name):
    return {"2": Status.CORRUPT_IMAGE, "5": Status.IMAGE_TOO_LARGE, "8": Status.EMPTY_FILE}.get(name[-5])


def night(run, folder, names, **options):
    write_files(folder, names)
    if relist(run, folder) is not None:
        score_blocks(run, max(manifests(run.store)), fails=fails, **options)
    run.publish_all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nights")
    run = new_run(folder / "run")
    for names in ([f"{number:02}.jpg" for number in range(20)], ["new-1.jpg", "new-2.jpg"]):
        night(run, folder / "archive", names)
    return run


@pytest.fixture
def run(whole, tmp_path):
    """Two settled nights, of the archive `images`."""
    run = RunDirectory.open(str(shutil.copytree(whole.store.url, tmp_path / "run")))
    settle(run, {"counts": counts_of(run).written()})
    return run


@pytest.fixture
def images(whole, tmp_path):
    """The archive of these nights, which a test may change."""
    folder = Path(whole.store.url).parent / "archive"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    kept = shutil.copytree(folder, tmp_path / "kept")
    yield folder
    for path in set(folder.iterdir()) - before.keys():
        path.unlink()
    for path, changed_ns in before.items():
        shutil.copyfile(kept / path.name, path)
        os.utime(path, ns=(changed_ns, changed_ns))


def counts_of(run):
    return summarise(NewRows.all_of(run).tables(None, None), [NAME])


def settled(run):
    return read_settled(run, manifests(run.store))


def test_it_says_what_is_there(run):
    found = settled(run)
    assert (found.manifest, found.members, found.blocks) == (1, 22, len(run.done_blocks(0)) + len(run.done_blocks(1)))
    assert sorted(found.files) == run.store.names("scores")


class TestWhatIsNotBelieved:
    """Each of these is looked at as if nothing were settled."""

    def path(self, run):
        return run.store.filesystem_and_path(run.published()[0].path)[1]

    def test_a_published_file_that_was_altered(self, run):
        path = self.path(run)
        with open(path, "r+b") as file:
            file.seek(100)
            file.write(b"x")
        assert settled(run) is None

    def test_a_published_file_that_was_written_again_or_is_gone(self, run):
        data = run.store.read(run.published()[0].path)
        run.store.write(run.published()[0].path, data)
        assert settled(run) is None
        settle(run, {})
        os.unlink(self.path(run))
        assert settled(run) is None
        with pytest.raises(ClusterError, match="have no row"):
            check_conservation(run)

    def test_rows_that_are_there_twice(self, run):
        run.store.write("scores/00000-00000001-00000001.parquet", run.store.read(run.published()[0].path))
        assert settled(run) is None
        with pytest.raises(ClusterError, match="has rows twice"):
            check_conservation(run)

    def test_manifests_that_are_gone(self, run):
        run.store.delete("manifest/1/_complete")
        assert settled(run) is None

    @pytest.mark.parametrize("change", [lambda text: text[:50], lambda text: "[]", lambda text: "{}", lambda text: "null"])
    def test_a_damaged_memory(self, run, change):
        run.store.write(directory.SETTLED, change(run.store.read(directory.SETTLED).decode()).encode())
        assert settled(run) is None

    def test_a_memory_of_another_form_or_with_another_content(self, run):
        content = run.read_json(directory.SETTLED)
        for change in ({"format": 2}, {"members": 23}, {"tallies": {}}, {"more": 1}):
            changed = content | change
            run.write_json(directory.SETTLED, changed)
            assert settled(run) is None
        changed = {key: value for key, value in content.items() if key != "sha256"} | {"format": 2}
        run.write_json(directory.SETTLED, changed | {"sha256": directory.fingerprint(changed)})
        assert settled(run) is None
        run.write_json(directory.SETTLED, content)
        assert settled(run) is not None


def test_an_unscored_block_of_a_later_night_is_not_hidden(run, images):
    write_files(images, ["more-1.jpg"])
    relist(run, images)
    assert settled(run).manifest == 1
    with pytest.raises(ClusterError, match="manifest 2: 1 of 1 files have no row"):
        check_conservation(run, after=settled(run).manifest)


class TestNewRows:
    def test_those_of_later_nights_alone(self, run, images):
        night(run, images, ["more-1.jpg", "more-2.jpg"], attempt=2)
        rows = NewRows.since(run, settled(run))
        assert [row["uri"][-10:] for table in rows.tables(rows.earlier["counts"], None) for row in table.to_pylist()] == [
            "more-1.jpg",
            "more-2.jpg",
        ]
        assert sum(table.num_rows for table in rows.tables(None, None)) == 24, "what nobody counted before is counted on all"

    def test_all_where_members_vanished_or_the_identity_is_another(self, run, images):
        (images / "03.jpg").unlink()
        relist(run, images)
        rows = NewRows.since(run, settled(run))
        assert not rows.earlier
        assert sum(table.num_rows for table in rows.tables(None, None)) == 21
        settle(run, {"counts": {}})
        assert NewRows.since(run, settled(run)).earlier
        run.write_json("run.json", json.loads(json.dumps(run.describe()).replace("fingerprint", "")) | {"identity": {"other": 1}})
        assert not NewRows.since(run, settled(run)).earlier


def test_counts_of_two_parts_are_those_of_the_whole(run, images):
    night(run, images, [f"more-{number}.jpg" for number in range(9)], attempt=2)
    tables = list(NewRows.all_of(run).tables(None, None))
    rows = pa.concat_tables(tables, promote_options="permissive")
    for cut in (0, 1, 13, len(rows)):
        parts = [summarise([part], [NAME]) for part in (rows.slice(0, cut), rows.slice(cut))]
        assert joined(*parts).written() == summarise([rows], [NAME]).written()


def test_so_do_those_of_a_profile():
    rows = test_profiles.ROWS
    for cut in range(len(rows)):
        parts = [summarise([test_profiles.table(some)], ["one"]) for some in (rows[:cut], rows[cut:])]
        whole = summarise([test_profiles.table(rows[:cut]), test_profiles.table(rows[cut:])], ["one"])
        assert joined(*parts).written() == whole.written()


def test_what_a_merge_left_when_it_died_goes(run, monkeypatch):
    monkeypatch.setattr(small_files, "MOST_SMALL", 1)
    names = run.store.names("scores")

    class Died(BaseException):
        pass

    def die():
        raise Died

    def die_when_settled():
        settle(run, {})
        raise Died

    for renewed, end in ((False, die), (True, die_when_settled)):
        with pytest.raises(Died):
            small_files.merge_small(run, end)
        assert len(run.store.names("scores")) == 3
        assert len(run.published()) == 1
        assert settled(run) is not None
        assert check_conservation(RunDirectory.open(run.store.url)) == 22
        finish_merge(run)
        assert settled(run) is not None
        assert run.store.names("scores") == ([run.published()[0].name] if renewed else names)
        assert check_conservation(run) == 22
