"""Parts become larger files, by tasks in any order and interrupted anywhere: every row stays, once,
in its order.
"""

import itertools
import os
import shutil

import pyarrow.parquet as pq
import pytest

from ray_app.archives import read_blocks
from ray_app.errors import ClusterError, ExitCode
from ray_app.runs import RunDirectory, check_conservation, current_tables, parts
from tests.archives.given import Dying, backwards
from tests.make.small_run import begun

NAMES = [f"{number:03}.jpg" for number in range(100)]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run of 13 blocks, all with parts of their own."""
    return begun(tmp_path_factory.mktemp("scored"), NAMES)


@pytest.fixture
def run(scored, tmp_path):
    return copied(scored, tmp_path / "run")


def copied(run, to):
    return RunDirectory.open(str(shutil.copytree(run.store.local_path(""), to)))


@pytest.fixture
def small_files(monkeypatch):
    """Files of some three blocks, tasks of some six."""
    monkeypatch.setattr(parts, "ROW_GROUP", 8)
    monkeypatch.setattr(parts, "PUBLISHED_BYTES", 8_000)
    monkeypatch.setattr(parts, "TASK_BYTES", 30_000)
    monkeypatch.setattr(parts, "LITTLE_BYTES", 0)


def ids_of(run):
    tables = current_tables(run, ["image_id"], unfinished=True)
    return [number for table in tables for number in table["image_id"].to_pylist()]


def test_small_run_becomes_one_file(run):
    before = ids_of(run)
    last = len(read_blocks(run.store, 0)) - 1
    assert run.publish(0) == [f"scores/00000-00000000-{last:08d}.parquet"]
    assert run.parts(0) == []
    assert ids_of(run) == before
    assert run.publish(0) == []
    assert check_conservation(run) == len(NAMES)


def test_published_files_have_the_size_wanted(run, small_files):
    before = ids_of(run)
    paths = run.publish(0, each=backwards)
    sizes = [os.path.getsize(run.store.local_path(path)) for path in paths]
    assert len(sizes) > 2
    assert min(sizes) >= parts.PUBLISHED_BYTES
    assert max(sizes) < 2 * min(sizes)
    assert ids_of(run) == before
    assert check_conservation(run, each=backwards) == len(NAMES)


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_publishing_interrupted_anywhere_keeps_every_row(step, scored, tmp_path, small_files):
    before = ids_of(scored)
    for lives in itertools.count(0, step):
        run = copied(scored, tmp_path / str(lives))
        try:
            RunDirectory(Dying(run.store.url, lives)).publish(0, each=backwards)
        except KeyboardInterrupt:
            assert ids_of(run) == before
            check_conservation(run)
            run.publish(0)
            assert run.parts(0) == []
            assert ids_of(run) == before
            check_conservation(run)
        else:
            break
    assert lives > 13


def test_missing_part_is_named(run):
    blocks = run.parts(0)
    run.store.delete(run.part_path(0, blocks[-1]))
    with pytest.raises(ClusterError, match=r"manifest 0: \d+ of 100 files have no row") as caught:
        check_conservation(run)
    assert caught.value.exit_code is ExitCode.TOO_MANY_BAD
    run.store.delete(run.part_path(0, 4))
    with pytest.raises(ClusterError, match="manifest 0: blocks 4 to 4 have no row"):
        check_conservation(run)


def test_published_rows_of_other_files_are_found(run):
    [path] = run.publish(0)
    file = run.store.local_path(path)
    rows = pq.read_table(file)
    message = r"files of blocks 0 to .* have no row|the rows are not those of the files"
    for kept in (range(99), [0, *range(99)], [1, 0, *range(2, 100)]):
        pq.write_table(rows.take(list(kept)), file)
        with pytest.raises(ClusterError, match=message):
            check_conservation(run)
