"""What docs/versioning.md promises of rows: columns stay, a new one has a new number, a run of a
later Touchstone is read and not written.

`python -m tests.runs.test_schema_version` writes the columns down, after SCHEMA_VERSION was counted
up.
"""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.errors import ConfigError, Status
from ray_app.runs import current_rows, schema
from ray_app.scoring.decide import decide_run
from tests.make.small_run import begun, finish, retried, rows_of
from tests.scoring.older import kept_objects

KEPT = Path(__file__).with_name("columns.json")
RETIRED = {"reused", "stability", "phash"}  # by 1.0
ASKED = {"views": ["jpeg-80"], "second_look": True, "identified": True, "described": True}


def columns():
    """Each column that a row may have, with its type, whatever was asked for."""
    rows = schema.row_schema(
        ["a"], pa.struct([("label", pa.string())]), ["a"], ["a"], measured=["texture"], **ASKED
    )
    return {field.name: str(field.type) for field in rows}


def test_columns_stay_and_a_new_one_has_a_new_schema_number():
    kept, today = json.loads(KEPT.read_text()), columns()
    assert {name: today.get(name) for name in kept["columns"]} == kept["columns"]
    assert set(today) == set(kept["columns"]), (
        "count SCHEMA_VERSION up, then: python -m tests.runs.test_schema_version"
    )
    assert kept["schema"] == schema.SCHEMA_VERSION
    stated = schema.row_schema(["a"]).metadata[b"touchstone.schema"]
    assert int(stated) == schema.SCHEMA_VERSION


def test_columns_of_0_20_0_have_the_types_of_today():
    objects = kept_objects().items()
    [body] = [body for key, body in objects if key.startswith("finished/scores/")]
    rows = pq.read_schema(io.BytesIO(body))
    assert int(rows.metadata[b"touchstone.schema"]) == schema.OLDEST_SCHEMA
    today = {field.name: field.type for field in schema.row_schema(rows.field("scores").type.names)}
    kept = {field.name: field.type for field in rows if field.name not in RETIRED}
    assert kept == {name: today[name] for name in kept}


def test_run_of_0_19_is_refused_with_its_version(tmp_path):
    run = begun(tmp_path, ["0.jpg"])
    described = run.describe() | {"schema": schema.OLDEST_SCHEMA - 1}
    run.store.write("run.json", json.dumps(described).encode())
    run.store.write("sessions/00001.json", b'{"version": "0.19.2"}')
    with pytest.raises(ConfigError, match=r"Touchstone 0\.19\.2 wrote this run") as caught:
        run.describe()
    assert caught.value.hint.startswith("finish or read it with Touchstone 0.19.2")


def test_old_run_without_sessions_is_refused_by_schema(tmp_path):
    run = begun(tmp_path, ["0.jpg"])
    described = run.describe() | {"schema": schema.OLDEST_SCHEMA - 1}
    run.store.write("run.json", json.dumps(described).encode())
    with pytest.raises(ConfigError, match=r": a version before 0\.20 wrote this run") as caught:
        run.describe()
    assert caught.value.hint.startswith("finish or read it with a version before 0.20, or")


def test_rows_of_older_files_keep_columns_of_retired_features(tmp_path):
    run = begun(tmp_path, ["0.jpg", "1.jpg"], fails={"1.jpg": Status.SOURCE_TIMEOUT}.get)
    finish(run)
    [path] = run.row_files([0])
    add_column(run, path, "reused", pa.array([True, True]))
    assert retried(run, 2, Status.SOURCE_TIMEOUT) == 1
    reused = {name: row.get("reused") for name, row in rows_of(run).items()}
    assert reused == {"0.jpg": True, "1.jpg": None}


@pytest.fixture
def run(tmp_path):
    run = begun(tmp_path, ["0.jpg", "1.jpg"])
    finish(run)
    return run


def add_column(run, path, name, values):
    """Give the rows of a published file one more column."""
    [rows] = run.rows_in(path)
    buffer = io.BytesIO()
    pq.write_table(rows.append_column(name, values), buffer)
    run.store.write(path, buffer.getvalue())


def test_run_of_a_later_touchstone_is_read_and_not_written(run):
    """It was begun under today's schema, and its newest rows have a column more."""
    run.check_known()
    before = [row["score"] for row in current_rows(run)]
    [path] = run.row_files([0])
    add_column(run, path, "of_tomorrow", pa.nulls(2, pa.string()))
    later = {"row_schema": schema.SCHEMA_VERSION + 1}
    run.write_json("summary.json", run.read_json("summary.json") | later)
    after = list(current_rows(run))
    assert [row["score"] for row in after] == before
    assert "of_tomorrow" in after[0]
    with pytest.raises(ConfigError, match=f"schema {schema.SCHEMA_VERSION + 1}") as caught:
        run.check_known()
    assert "this version can read it" in caught.value.hint
    with pytest.raises(ConfigError, match="this version of Touchstone writes schema"):
        decide_run(run.store.url, "tiny", f"{run.store.url}-decided")


def test_run_with_stability_is_read_and_not_written(run):
    before = list(current_rows(run))
    described = run.describe()
    described["identity"]["stability"] = {"count": 2, "margin": 2.0}
    run.write_json("run.json", described)
    assert list(current_rows(run)) == before
    with pytest.raises(ConfigError, match="made with --stability"):
        decide_run(run.store.url, "tiny", f"{run.store.url}-decided")


if __name__ == "__main__":
    if KEPT.exists() and json.loads(KEPT.read_text())["schema"] >= schema.SCHEMA_VERSION:
        raise SystemExit(
            f"count SCHEMA_VERSION up first: it is {schema.SCHEMA_VERSION}, and so is what is written down"
        )
    KEPT.write_text(
        json.dumps({"schema": schema.SCHEMA_VERSION, "columns": columns()}, indent=1) + "\n"
    )
