"""`touchstone score --table`: nights, retries, verdicts decided anew, runs that were scored before anybody asked for a table."""

import os

import duckdb
import pytest
from deltalake import DeltaTable

from ray_app.errors import ConfigError
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring.rescore import decide_run
from tests.images.factory import photo
from tests.scoring.conftest import score_here, write_ensemble


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(4):
        photo(seed=number).save(tmp_path / f"photos/{number}.jpg")
    (tmp_path / "photos/broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return tmp_path / "photos"


def by_id(rows):
    return {row["image_id"]: tuple(row[name] for name in ("uri", "verdict", "status", "attempt")) for row in rows}


def assert_is_as_run(table, run):
    found = DeltaTable(str(table)).to_pyarrow_table().to_pylist()
    rows = list(current_rows(RunDirectory.open(str(run)), vanished=True))
    assert by_id(found) == by_id(rows)
    assert len(found) == len(rows)


def test_a_table_follows_its_run_through_nights_retries_and_decisions(photos, tmp_path):
    run, table = tmp_path / "run", tmp_path / "table"

    def night(**settings):
        return score_here(run, photos, **settings)[0].summary["session"].get("table")

    assert night() is None
    assert "table" not in RunDirectory.open(str(run)).describe()
    assert night(table=str(table)) == {"url": str(table), "rows": 5, "appended": 5, "current": True}  # of a run that was finished
    photo(seed=9).save(photos / "new.jpg")
    os.remove(photos / "0.jpg")
    assert night(table=str(table)) == {"url": str(table), "rows": 6, "appended": 1, "current": True}
    assert_is_as_run(table, run)
    photo(seed=10).save(photos / "newer.jpg")
    assert night() == {"url": str(table), "rows": 6, "appended": 0, "current": False}
    [bad] = {row["status"] for row in current_rows(RunDirectory.open(str(run)))} - {"ok"}
    assert night(rescore=(bad,), table=str(table)) == {"url": str(table), "rows": 7, "appended": 2, "current": True}
    assert_is_as_run(table, run)
    strict = str(write_ensemble(tmp_path / "strict.yaml", thresholds={"real_below": -1000, "fake_above": 1000}))
    assert decide_run(str(run), strict)["session"]["table"]["current"] is False
    assert night(ensemble=strict, table=str(table)) == {"url": str(table), "rows": 7, "appended": 7, "current": True}
    assert_is_as_run(table, run)
    # What readers are told to do for the rows of files that are still there (docs/tables.md).
    verdicts = DeltaTable(str(table)).to_pyarrow_dataset()  # noqa: F841 - DuckDB finds it by its name
    current = duckdb.sql(f"SELECT image_id FROM verdicts WHERE image_id NOT IN (SELECT image_id FROM '{run}/vanished.parquet')").fetchall()
    assert {number for (number,) in current} == {row["image_id"] for row in current_rows(RunDirectory.open(str(run)))}


def test_a_table_below_the_archive_is_no_part_of_it_and_what_is_none_is_told_before_anything_is_scored(photos, tmp_path):
    with pytest.raises(ConfigError, match="is not empty, and is not a Delta table"):
        score_here(tmp_path / "run", photos, table=str(photos))
    assert not (tmp_path / "run").exists()
    for _ in range(2):
        finished, _ = score_here(tmp_path / "run", photos, table=str(photos / "table"))
        assert finished.summary["members"] == 5
