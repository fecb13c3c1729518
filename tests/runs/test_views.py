"""Scores and masks of perturbed views in a run's files: written, merged, retried and read beside
the clean ones.
"""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.errors import Status
from ray_app.runs import MASK_SCHEMA, VIEWED_MASK_SCHEMA, CurrentRows, current_rows, current_tables
from tests.make.small_run import NAME, begun, finish, retried

NAMES = [f"{number:02}.jpg" for number in range(20)]
VIEWS = ("jpeg-75", "crop:0.5")
LATE = ("03.jpg", "11.jpg")


def fails(name):
    return Status.SOURCE_TIMEOUT if name in LATE else None


@pytest.fixture
def run(tmp_path):
    run = begun(tmp_path, NAMES, fails=fails, masks=True, views=VIEWS)
    finish(run)
    return run


def assert_views_follow_scores(run, *, without=()):
    rows = list(current_rows(run))
    assert len(rows) == len(NAMES)
    for row in rows:
        if row["uri"].rpartition("/")[2] in without:
            assert row["views"] is None
            continue
        clean = row["scores"][NAME]
        assert row["views"] == {"jpeg-75": {NAME: clean + 1}, "crop:0.5": {NAME: clean + 2}}


def test_retry_brings_its_own_views_and_masks(run):
    assert_views_follow_scores(run, without=LATE)
    good = [row["image_id"] for row in current_rows(run) if row["status"] == "ok"]
    assert [mask["image_id"] for mask in CurrentRows.read(run).masks()] == good
    assert all(list(mask) == MASK_SCHEMA.names for mask in CurrentRows.read(run).masks())
    assert all(table.schema.equals(VIEWED_MASK_SCHEMA) for table in run.masks(0))
    (table,) = current_tables(run, ["image_id", "views"])
    assert table.schema.field("views").type == pa.struct(
        [(view, pa.struct([(NAME, pa.float32())])) for view in VIEWS]
    )
    retried(run, 2, Status.SOURCE_TIMEOUT, masks=True, views=VIEWS)
    assert_views_follow_scores(run)
    ids = sorted(row["image_id"] for row in current_rows(run))
    assert sorted(mask["image_id"] for mask in CurrentRows.read(run).masks()) == ids
    tables = [*run.masks(0), *run.masks(1)]
    seen = [(mask["view"], mask["image_id"]) for table in tables for mask in table.to_pylist()]
    assert sorted(seen, key=str) == sorted(
        ((view, name) for view in (None, "jpeg-75") for name in ids), key=str
    )


def test_without_views_nothing_is_added(tmp_path):
    run = begun(tmp_path, NAMES, masks=True)
    assert all(table.schema.equals(MASK_SCHEMA) for table in run.masks(0))
    part = tmp_path / "run" / "parts" / "00000" / "00000000.parquet"
    assert "views" not in pq.read_schema(part).names
