"""Readers of a run agree whatever the run went through: Python, the statement of docs/results.md, and
the recount of `runs verify`.
"""

import shutil
from pathlib import Path

import pytest

import ray_app
from ray_app.errors import ConfigError, Status
from ray_app.runs import CurrentRows, begin_retry, check_conservation, current_rows, verify_run
from tests.make.small_run import (
    PLAN,
    begun,
    finish,
    in_small_files,
    read_by_sql,
    relist,
    score_blocks,
    write_files,
)

NAMES = [f"{number:02}.jpg" for number in range(30)]


def facts_of(rows):
    facts = [
        (row["uri"], row["image_id"], row["status"], row["attempt"], row["sha256"], row["verdict"])
        for row in rows
    ]
    assert len({uri for uri, *_ in facts}) == len(facts), "a file has two rows"
    return sorted(facts, key=str)


def agreed_rows(run):
    """Return the facts of the current rows, on which all readers agree."""
    expected = facts_of(current_rows(run))
    assert facts_of(read_by_sql(run)) == expected
    tables = ray_app.load_run(run.store.url).tables()
    assert facts_of(row for table in tables for row in table.to_pylist()) == expected
    assert verify_run(run).current == len(expected)
    return {uri.rpartition("/")[2]: (status, attempt) for uri, _, status, attempt, _, _ in expected}


def fails(name):
    return Status.SOURCE_THROTTLED if name.startswith("0") and int(name[:2]) % 3 == 0 else None


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "archive"


@pytest.fixture
def run(tmp_path, monkeypatch):
    in_small_files(monkeypatch)
    run = begun(tmp_path, NAMES, fails=fails)
    finish(run)
    assert len(agreed_rows(run)) == len(NAMES)
    return run


def test_readers_agree_over_five_manifests(run, archive, tmp_path):
    """Files vanish, return, change, and are retried; a listing only counts once it is finished."""
    shutil.copytree(archive, tmp_path / "first", copy_function=shutil.copy2)
    write_files(archive, ["03.jpg", "04.jpg", "new.jpg"], content="changed")
    (archive / "29.jpg").unlink()
    before = agreed_rows(run)
    relist(run, archive)
    score_blocks(run, 1, attempt=2, fails=fails)
    run.publish(1)
    assert agreed_rows(run) == before, "the second listing is not finished"
    finish(run)
    second = agreed_rows(run)
    assert second.keys() - before.keys() == {"new.jpg"}
    assert before.keys() - second.keys() == {"29.jpg"}
    assert second["04.jpg"] == ("ok", 2)

    begun = begin_retry(CurrentRows.read(run), ["source_throttled"], PLAN)
    assert (begun.info.manifest, begun.info.members) == (2, 4)
    score_blocks(run, 2, attempt=3)
    run.publish(2)
    assert agreed_rows(run) == second, "the retry is not finished"
    finish(run)
    third = agreed_rows(run)
    retried = {name for name, (status, _) in second.items() if status != "ok"}
    assert third == second | dict.fromkeys(retried, ("ok", 3))

    shutil.copy2(tmp_path / "first" / "03.jpg", archive / "03.jpg")
    shutil.copy2(tmp_path / "first" / "29.jpg", archive / "29.jpg")
    (archive / "06.jpg").unlink()
    relist(run, archive)
    finish(run)
    fourth = agreed_rows(run)
    assert "06.jpg" not in fourth
    assert fourth["29.jpg"] == ("ok", 1), "a file that returns has its old row again"
    assert fourth["03.jpg"] == ("source_throttled", 1), "its first version was never retried"

    begin_retry(CurrentRows.read(run), ["source_throttled"], PLAN)
    score_blocks(run, 4, attempt=5)
    finish(run)
    fifth = agreed_rows(run)
    assert fifth["03.jpg"] == ("ok", 5)
    assert {status for status, _ in fifth.values()} == {"ok"}
    names = {path.name for path in archive.iterdir()}
    assert fifth.keys() == names
    everything = list(current_rows(run, vanished=True))
    assert len(everything) == len({row["image_id"] for row in everything}) > len(names)


def test_published_files_are_never_rewritten(run, archive):
    folder = Path(run.store.url)
    seen = {}
    for attempt in range(2, 5):
        patterns = ("scores/*", "summaries/*", "manifest/*/*.parquet")
        published = [path for pattern in patterns for path in folder.glob(pattern)]
        before = {path: path.read_bytes() for path in published}
        assert {path: data for path, data in before.items() if path in seen} == seen
        seen = before
        write_files(archive, [f"more-{attempt}.jpg", f"1{attempt}.jpg"], content=str(attempt))
        relist(run, archive)
        score_blocks(run, 2 * attempt - 3, attempt=attempt)
        finish(run)
        begin_retry(CurrentRows.read(run), ["source_throttled"], PLAN)
        score_blocks(run, 2 * attempt - 2, attempt=attempt, fails=fails)
        finish(run)
    agreed_rows(run)


def test_unfinished_rows_are_read_if_requested(tmp_path, archive):
    run = begun(tmp_path, NAMES[:5])
    loaded = ray_app.load_run(run.store.url)
    with pytest.raises(ConfigError, match="no listing of this run is finished"):
        loaded.table(["uri"])
    assert len(loaded.table(["uri"], unfinished=True)) == 5
    finish(run)
    assert len(loaded.table(["uri"])) == 5


def test_readers_accept_an_extra_column_of_later_rows(run, archive):
    write_files(archive, [f"more-{number:02}.jpg" for number in range(20)])
    relist(run, archive)
    score_blocks(run, 1, attempt=2, blocks={0})
    score_blocks(run, 1, attempt=3, blocks={1, 2}, hashed=True)
    finish(run)
    rows = agreed_rows(run)
    assert check_conservation(run) == len(rows) == 50
    hashes = [row["phash"] for row in read_by_sql(run, "phash")]
    assert hashes.count("f" * 16) == sum(attempt == 3 for _, attempt in rows.values()) > 0
