"""What is settled is not looked at again, and a memory that is not of these very files counts for
nothing.
"""

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
    return {"2": Status.CORRUPT_IMAGE, "5": Status.IMAGE_TOO_LARGE, "8": Status.EMPTY_FILE}.get(
        name[-5]
    )


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
    assert (found.manifest, found.members, found.blocks) == (
        1,
        22,
        len(run.done_blocks(0)) + len(run.done_blocks(1)),
    )
    assert sorted(found.files) == run.store.names("scores")


def altered(run):
    with open(run.store.local_path(run.published()[0].path), "r+b") as file:
        file.seek(100)
        file.write(b"x")


def without(key, value):
    """Writes the memory with another value, of which its own digest says that it is another, or,
    for `format`, that it is not.
    """

    def change(run):
        content = run.read_json(directory.SETTLED) | {key: value}
        unsigned = {name: one for name, one in content.items() if name != "sha256"}
        run.write_json(
            directory.SETTLED,
            unsigned | {"sha256": directory.fingerprint(unsigned)} if key == "format" else content,
        )

    return change


NOT_BELIEVED = {
    "a published file that was altered": altered,
    "one that is gone": lambda run: run.store.delete(run.published()[0].path),
    "rows that are there twice": lambda run: run.store.write(
        "scores/00000-00000001-00000001.parquet", run.store.read(run.published()[0].path)
    ),
    "manifests that are gone": lambda run: run.store.delete("manifest/1/_complete"),
    "a memory cut short": lambda run: run.store.write(
        directory.SETTLED, run.store.read(directory.SETTLED)[:50]
    ),
    "a memory of another form": without("format", 2),
    "a memory with another content": without("members", 23),
}
REFUSED = {"one that is gone": "have no row", "rows that are there twice": "has rows twice"}


@pytest.mark.parametrize("what", NOT_BELIEVED)
def test_what_is_not_believed_is_looked_at_as_if_nothing_were_settled(run, what):
    assert settled(run) is not None
    NOT_BELIEVED[what](run)
    assert settled(run) is None
    if what in REFUSED:
        with pytest.raises(ClusterError, match=REFUSED[what]):
            check_conservation(run)


def test_an_unscored_block_of_a_later_night_is_not_hidden(run, images):
    write_files(images, ["more-1.jpg"])
    relist(run, images)
    assert settled(run).manifest == 1
    with pytest.raises(ClusterError, match="manifest 2: 1 of 1 files have no row"):
        check_conservation(run, after=settled(run).manifest)


def test_new_rows_are_those_of_later_nights_alone(run, images):
    night(run, images, ["more-1.jpg", "more-2.jpg"], attempt=2)
    rows = NewRows.since(run, settled(run))
    found = [
        row["uri"][-10:]
        for table in rows.tables(rows.earlier["counts"], None)
        for row in table.to_pylist()
    ]
    assert found == ["more-1.jpg", "more-2.jpg"]
    assert sum(table.num_rows for table in rows.tables(None, None)) == 24, (
        "what nobody counted before is counted on all"
    )


def test_new_rows_are_all_where_members_vanished_or_the_identity_is_another(run, images):
    (images / "03.jpg").unlink()
    relist(run, images)
    rows = NewRows.since(run, settled(run))
    assert not rows.earlier
    assert sum(table.num_rows for table in rows.tables(None, None)) == 21
    settle(run, {"counts": {}})
    assert NewRows.since(run, settled(run)).earlier
    run.write_json("run.json", run.describe() | {"identity": {"other": 1}, "fingerprint": None})
    assert not NewRows.since(run, settled(run)).earlier


def test_counts_of_two_parts_are_those_of_the_whole(run):
    rows = pa.concat_tables(NewRows.all_of(run).tables(None, None), promote_options="permissive")
    profiled = test_profiles.table()
    for whole, detector, cuts in (
        (rows, NAME, (0, 1, 13, len(rows))),
        (profiled, "one", range(len(profiled))),
    ):
        for cut in cuts:
            parts = [
                summarise([part], [detector]) for part in (whole.slice(0, cut), whole.slice(cut))
            ]
            assert joined(*parts).written() == summarise([whole], [detector]).written()


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
