"""A run's rows in a Delta table: each once, as the run has them now, whatever was interrupted, retried or decided anew."""

import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from ray_app.errors import ConfigError, Status, StorageError
from ray_app.runs import RunDirectory, verdict_table
from ray_app.storage import Store
from tests.runs.small_run import begun, relist, retried, score_blocks, write_files
from tests.storage.unconditional_proxy import UnconditionalProxy

NAMES = [f"{number:03}.jpg" for number in range(100)]
ROTTEN = ("003.jpg", "057.jpg")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run of 13 blocks with two rows without a score, and its archive."""
    folder = tmp_path_factory.mktemp("scored")
    run = begun(folder, NAMES, fails=lambda name: Status.SOURCE_TIMEOUT if name in ROTTEN else None)
    run.publish(0)
    began(run, 1, "2026-01-01T22:30:00+00:00")
    return folder


@pytest.fixture
def run(scored, tmp_path):
    shutil.copytree(scored / "archive", tmp_path / "archive")
    return RunDirectory.open(str(shutil.copytree(scored / "run", tmp_path / "run")))


@pytest.fixture
def table(tmp_path):
    return str(tmp_path / "table")


@pytest.fixture
def short_commits(monkeypatch):
    """Three commits."""
    monkeypatch.setattr(verdict_table, "COMMIT_ROWS", 40)


def began(run, session, when, **facts):
    run.write_json(f"sessions/{session:05d}.json", {"started_at": when, "state": "finished", **facts})


def decided_anew(run):
    """Every verdict is another one, but for one that was this before."""
    run.write_json("run.json", run.describe() | {"unlike": "the archive is another"})
    run.rewrite_all(lambda rows: rows.set_column(rows.schema.get_field_index("verdict"), "verdict", pa.array(["abstain"] * len(rows))))


def rows_of(run):
    """The rows of a run as a table is to have them, by their ids."""
    rows = [row for number in (0, 1) if run.store.names(f"manifest/{number}") for table in run.tables(number) for row in table.to_pylist()]
    return {row["image_id"]: row for row in rows}


def assert_is_as_run(table, run):
    """Every row of the run once, with its values, as pandas reads them."""
    found, rows = DeltaTable(table).to_pandas(), rows_of(run)
    assert sorted(found["image_id"]) == sorted(rows)
    for row in found.to_dict("records"):
        theirs = rows[row["image_id"]]
        for name in ("uri", "status", "detail", "verdict", "verdict_reason", "sha256", "attempt", "scored_at"):
            assert row[name] == theirs[name] or (pd.isna(row[name]) and theirs[name] is None), name
        assert np.array_equal(row["score"], np.nan if theirs["score"] is None else theirs["score"], equal_nan=True)
        assert (None if row["scores"] is None else dict(row["scores"])) == theirs["scores"]


def commits(table):
    return DeltaTable(table).version()


def test_pandas_and_duckdb_read_the_rows_back_and_the_same_again_commits_nothing(run, table):
    verdict_table.check_table(table)
    summary = verdict_table.update_table(run, table, 1)
    assert summary.written() == {"url": table, "rows": 100, "appended": 100, "current": True}
    assert_is_as_run(table, run)
    verdicts = DeltaTable(table).to_pyarrow_dataset()  # DuckDB finds it by its name
    [(rows, night, scored, blocks)] = duckdb.sql(
        "select count(*), min(night), count(scores['touchstone-tiny']), list(distinct block order by block) from verdicts"
    ).fetchall()
    assert (rows, night, scored, blocks) == (100, date(2026, 1, 1), 98, list(range(13)))
    assert verdicts.count_rows(pa.compute.field("night") == date(2026, 1, 1)) == 100
    before = commits(table)
    assert verdict_table.update_table(run, table, 2).appended == 0
    assert verdict_table.noted_table(run).current
    assert commits(table) == before


def test_a_night_of_new_files_is_one_commit_of_those_in_a_partition_of_its_own(run, table, tmp_path):
    verdict_table.update_table(run, table, 1)
    before = commits(table)
    write_files(tmp_path / "archive", ["new.jpg", "newer.jpg"])
    assert relist(run, tmp_path / "archive") is not None
    score_blocks(run, 1, attempt=2)
    run.publish(1)
    began(run, 2, "2026-01-03T01:00:00+02:00")
    assert not verdict_table.noted_table(run).current
    summary = verdict_table.update_table(run, table, 2)
    assert (summary.rows, summary.appended, commits(table)) == (len(rows_of(run)), 102, before + 1)
    assert_is_as_run(table, run)
    nights = DeltaTable(table).to_pandas()["night"].value_counts().to_dict()
    assert nights == {date(2026, 1, 1): 100, date(2026, 1, 2): 102}  # the archive of this test has other paths than that of the run


def test_rows_of_a_retry_replace_the_former_ones_and_lie_in_their_own_night(run, table, short_commits):
    verdict_table.update_table(run, table, 1)
    before = commits(table)
    retried(run, 2, Status.SOURCE_TIMEOUT)
    began(run, 2, "2026-01-02T22:00:00+00:00", retries=[{"begun_by": 2}])
    assert not verdict_table.noted_table(run).current
    summary = verdict_table.update_table(run, table, 2)
    assert summary.current
    assert (summary.appended, commits(table)) == (2, before + 2)
    assert_is_as_run(table, run)
    found = DeltaTable(table).to_pandas()
    assert sorted(found[found["night"] == date(2026, 1, 2)]["uri"].str[-7:]) == list(ROTTEN)
    assert verdict_table.update_table(run, table, 3).appended == 0


def test_verdicts_that_were_decided_anew_replace_the_former_ones(run, table, short_commits):
    verdict_table.update_table(run, table, 1)
    decided_anew(run)
    assert not verdict_table.noted_table(run).current
    assert verdict_table.update_table(run, table, 2).appended == 99
    assert_is_as_run(table, run)
    assert set(DeltaTable(table).to_pandas()["verdict"]) == {"abstain"}


class KilledError(Exception):
    pass


def killing(monkeypatch, at):
    """The process ends before (or after) the n-th step of `at`: writing the note, or merging."""
    name, when, step = at
    inner, steps = getattr(verdict_table, name), []

    def dying(*args, **named):
        steps.append(1)
        if len(steps) == step and when == "before":
            raise KilledError
        found = inner(*args, **named)
        if len(steps) == step:
            raise KilledError
        return found

    monkeypatch.setattr(verdict_table, name, dying)


KILLS = [(name, when, step) for name in ("_write_note", "_merge") for when in ("before", "after") for step in (1, 3)]


@pytest.mark.parametrize(("at", "anew"), [*((at, False) for at in KILLS), *((at, True) for at in KILLS[1::4])], ids=str)
def test_killed_anywhere_no_row_is_lost_or_doubled(run, table, short_commits, at, anew):
    if anew:
        verdict_table.update_table(run, table, 1)
        decided_anew(run)
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, at)
        with pytest.raises(KilledError):
            verdict_table.update_table(run, table, 2)
    summary = verdict_table.update_table(run, table, 3)
    assert (summary.rows, summary.current) == (100, True)
    committed = at[2] - (at == ("_merge", "before", at[2]))
    left = max(100 - 40 * committed, 0)  # what was merged is not merged again
    assert left - anew <= summary.appended <= left
    assert_is_as_run(table, run)


def test_a_table_that_was_compacted_or_copied_or_whose_note_is_lost_gets_no_row_twice(run, table, short_commits):
    verdict_table.update_table(run, table, 1)
    DeltaTable(table).optimize.compact()
    decided_anew(run)
    assert verdict_table.update_table(run, table, 2).appended == 99
    assert_is_as_run(table, run)
    rows = DeltaTable(table).to_pyarrow_table()
    shutil.rmtree(table)
    write_deltalake(table, rows, partition_by=["night"])
    assert verdict_table.update_table(run, table, 3).appended == 0
    run.store.delete(verdict_table.NOTE)
    assert verdict_table.update_table(run, table, 4).rows == 100
    assert_is_as_run(table, run)


def test_runs_with_other_detectors_share_a_table(run, table, tmp_path):
    verdict_table.update_table(run, table, 1)
    other = begun(tmp_path / "other", NAMES)
    other.publish(0)
    kind = pa.struct([("clip", pa.float32()), ("dino", pa.float32())])

    def as_two(rows):
        scores = pa.array([{"clip": 0.5, "dino": None}] * len(rows), kind)
        return rows.set_column(rows.schema.get_field_index("scores"), "scores", scores)

    other.rewrite_all(as_two)
    assert verdict_table.update_table(other, table, 1).rows == 100
    found = DeltaTable(table).to_pandas()
    assert found.groupby("run").size().to_dict() == {run.store.url: 100, other.store.url: 100}
    assert {tuple(scores) for scores in found[found["run"] == other.store.url]["scores"]} == {(("clip", 0.5), ("dino", None))}
    decided_anew(run)
    verdict_table.update_table(run, table, 2)  # replaces its own rows alone
    assert len(DeltaTable(table).to_pandas()) == 200


@pytest.mark.parametrize("place", ["local", "s3"])
def test_runs_that_append_at_once_lose_no_row(run, table, tmp_path, place, request):
    if place == "s3":
        table = f"{request.getfixturevalue('s3').bucket('at-once')}/verdicts"
    runs = [RunDirectory.open(str(shutil.copytree(tmp_path / "run", tmp_path / f"run-{number}"))) for number in range(4)]
    start = threading.Barrier(len(runs))

    def append(one):
        start.wait()
        verdict_table.check_table(table)
        return verdict_table.update_table(one, table, 1).appended

    with ThreadPoolExecutor(len(runs)) as pool:
        assert list(pool.map(append, runs)) == [100] * 4
    place, options = verdict_table.table_place(table)
    found = DeltaTable(place, storage_options=options).to_pandas()
    assert found.groupby("run").size().to_dict() == {one.store.url: 100 for one in runs}
    assert not found.duplicated(["run_id", "image_id"]).any()


def test_a_table_in_a_bucket_is_found_as_the_bucket_of_a_run_is(run, s3, monkeypatch):
    table = f"{s3.bucket('verdicts')}/all"
    verdict_table.check_table(table)
    assert verdict_table.update_table(run, table, 1).appended == 100
    before = s3.requests()
    s3.clear_log()
    assert verdict_table.update_table(run, table, 2).appended == 0
    asked = [request for request in s3.requests() if request.path.startswith("/verdicts")]
    assert len(asked) <= 12, asked
    assert any("_delta_log" in request.path for request in before)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    monkeypatch.setenv("FSSPEC_S3_ANON", "true")
    assert verdict_table.table_place(table)[1]["AWS_SKIP_SIGNATURE"] == "true"
    assert "AWS_SECRET_ACCESS_KEY" not in verdict_table.table_place(table)[1]


@pytest.mark.parametrize("refusal", [None, 501])
def test_a_store_on_which_commits_would_be_lost_is_refused(s3, monkeypatch, refusal):
    table = f"{s3.bucket(f'unsafe-{refusal}')}/verdicts"
    with UnconditionalProxy(s3.url, refusal) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(StorageError, match="no conditional writes"):
            verdict_table.check_table(table)
        assert Store.open(table).names("_touchstone") == []


def test_places_that_are_no_such_table_are_refused_before_anything_is_done(run, table, tmp_path, monkeypatch):
    def refusal(url):
        with pytest.raises(ConfigError) as caught:
            verdict_table.check_table(url)
        return str(caught.value)

    assert "is not empty, and is not a Delta table" in refusal(str(tmp_path / "run"))
    assert "https:// was never tried for tables" in refusal("https://example.com/table")
    write_deltalake(str(tmp_path / "sales"), pa.table({"night": ["x"], "amount": [1]}))
    assert "its column night is" in refusal(str(tmp_path / "sales")) or "has no column run_id" in refusal(str(tmp_path / "sales"))
    DeltaTable.create(str(tmp_path / "flat"), schema=verdict_table.TABLE_SCHEMA)
    assert "partitioned by nothing" in refusal(str(tmp_path / "flat"))
    monkeypatch.delitem(sys.modules, "deltalake")
    monkeypatch.setattr(sys, "meta_path", [one for one in sys.meta_path if "PathFinder" not in repr(one)])
    with pytest.raises(ConfigError) as caught:
        verdict_table.check_table(table)
    assert caught.value.hint == "pip install 'touchstone-forensics[delta]'"
