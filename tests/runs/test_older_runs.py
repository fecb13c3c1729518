"""Runs of schema 3, whose rows lack `quality` and more: read, resumed, compacted, retried, reused and decided beside rows of today."""

from ray_app.errors import Status
from ray_app.runs import check_conservation, current_tables
from tests.runs.small_run import begun, retried, rows_of, score_blocks

NAMES = [f"{number:03}.jpg" for number in range(40)]


def made_older(run, number):
    """The parts of a manifest as schema 3 had them."""
    for block in run.parts(number):
        [rows] = run.part_tables(number, block)
        run.write_part(number, block, rows.drop_columns(["quality", "verdict_detail"]))
    run.write_json("run.json", run.describe() | {"schema": 3})


def older(tmp_path, **options):
    run = begun(tmp_path, NAMES, **options)
    made_older(run, 0)
    return run


def test_an_interrupted_one_goes_on_and_is_published(tmp_path):
    run = older(tmp_path, blocks={0, 1})
    described = run.describe()
    run.claim(described["identity"], described["detectors"], described["ensemble"])
    score_blocks(run, 0, blocks=set(range(20)) - {0, 1})
    run.publish(0)
    check_conservation(run)
    assert sorted(rows_of(run)) == NAMES
    assert {"quality" in table.column_names for table in current_tables(run)} == {False, True}
    assert all("score" in table.column_names for table in current_tables(run, ["image_id", "score", "quality"]))


def test_a_retry_merges_rows_of_today_into_it(tmp_path):
    run = older(tmp_path, fails=lambda name: Status.SOURCE_TIMEOUT if name.endswith("3.jpg") else None)
    run.publish(0)
    retried(run, 2, Status.SOURCE_TIMEOUT)
    rows = rows_of(run)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["attempt"] for name, row in rows.items() if name.endswith("3.jpg")} == {2}
