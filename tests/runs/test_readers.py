"""What people's own tools see in a run directory: exactly the current row of each member, whatever
the run went through.

The queries are those of docs/runs.md. The short ones are for a run at rest, the long one also for a
run in the middle of anything.
"""

import shutil

import duckdb
import pandas as pd
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from ray_app.errors import Status
from ray_app.runs import begin_retry, check_conservation, current_rows, merge_retry
from ray_app.runs.reader import publish_vanished
from tests.runs.small_run import PLAN, begun, in_small_files, relist, score_blocks, write_files

DUCKDB = "SELECT * FROM read_parquet('RUN/scores/*.parquet', union_by_name = true) ANTI JOIN 'RUN/vanished.parquet' USING (image_id)"
DUCKDB_ANYTIME = """
    SELECT * FROM read_parquet('RUN/[sp]*/**/*.parquet', union_by_name = true) ANTI JOIN 'RUN/vanished.parquet' USING (image_id)
    QUALIFY row_number() OVER (PARTITION BY uri, member, occurrence ORDER BY scored_at DESC, attempt DESC) = 1
"""


def by_duckdb(run, query=DUCKDB):
    return duckdb.sql(query.replace("RUN", run)).to_arrow_table().to_pylist()


def by_pyarrow(run):
    gone = pq.read_table(f"{run}/vanished.parquet")["image_id"].combine_chunks()
    return ds.dataset(f"{run}/scores").to_table(filter=~pc.field("image_id").isin(gone)).to_pylist()


def by_pandas(run):
    rows = pd.read_parquet(f"{run}/scores").query(
        "image_id not in @gone",
        local_dict={"gone": pd.read_parquet(f"{run}/vanished.parquet").image_id},
    )
    return rows.to_dict("records")


def seen(rows):
    facts = [
        (row["uri"], row["image_id"], row["status"], row["attempt"], row["sha256"]) for row in rows
    ]
    assert len({uri for uri, *_ in facts}) == len(facts), "a member has two rows"
    return sorted(tuple(None if value != value else value for value in fact) for fact in facts)


def assert_all_agree(run, *, at_rest=True):
    folder = run.store.url
    expected = seen(current_rows(run))
    assert seen(by_duckdb(folder, DUCKDB_ANYTIME)) == expected
    if at_rest:
        assert (
            seen(by_duckdb(folder))
            == seen(by_pyarrow(folder))
            == seen(by_pandas(folder))
            == expected
        )
    return expected


NAMES = [f"{number:02}.jpg" for number in range(30)]


def fails(name):
    return Status.SOURCE_THROTTLED if name.startswith("0") and int(name[:2]) % 3 == 0 else None


@pytest.fixture
def run(tmp_path, monkeypatch):
    in_small_files(monkeypatch)
    run = begun(tmp_path, NAMES, fails=fails)
    publish_vanished(run)
    run.publish(0)
    assert len(assert_all_agree(run)) == len(NAMES)
    return run


@pytest.fixture
def archive(run, tmp_path):
    return tmp_path / "archive"


def test_through_a_relisting_with_changed_new_and_removed_files(run, archive, tmp_path):
    shutil.copytree(archive, tmp_path / "first", copy_function=shutil.copy2)
    write_files(archive, ["03.jpg", "04.jpg", "new.jpg"], content="changed")
    (archive / "29.jpg").unlink()
    relist(run, archive)
    publish_vanished(run)
    assert_all_agree(run, at_rest=False)
    score_blocks(run, 1, attempt=2)
    assert_all_agree(run, at_rest=False)
    shutil.copytree(tmp_path / "run" / "parts", tmp_path / "parts")
    run.publish(1)
    after = assert_all_agree(run)
    assert len(after) == len(NAMES)
    shutil.copytree(tmp_path / "parts", tmp_path / "run" / "parts", dirs_exist_ok=True)
    assert assert_all_agree(run, at_rest=False) == after, (
        "published, but interrupted before the parts went"
    )

    run.publish(1)
    shutil.copy2(tmp_path / "first" / "03.jpg", archive / "03.jpg")
    relist(run, archive)
    publish_vanished(run)
    back = {uri.rpartition("/")[2]: attempt for uri, _, _, attempt, _ in assert_all_agree(run)}
    assert (back["03.jpg"], back["04.jpg"]) == (1, 2), (
        "put back to its first version, a file has its first row again"
    )


def test_through_a_retry(run):
    before = assert_all_agree(run)
    retry = begin_retry(run, 2, ["source_throttled"], PLAN)
    assert assert_all_agree(run) == before
    score_blocks(retry.directory, 0, attempt=2)
    assert assert_all_agree(run) == before
    rewrites = []

    class Watching(type(run)):
        def rewrite_file(self, file, change):
            super().rewrite_file(file, change)
            rewrites.append(assert_all_agree(run))

    merge_retry(Watching(run.store), retry)
    assert len(rewrites) > 1
    after = assert_all_agree(run)
    assert {status for _, _, status, _, _ in after} == {"ok"}
    assert sum(attempt == 2 for *_, attempt, _ in after) == 4


def test_a_column_that_a_later_session_asked_for_stops_no_reader(run, archive):
    """Of one manifest, too: parts with perceptual hashes and parts without are published in files
    of their own.
    """
    write_files(archive, [f"more-{number:02}.jpg" for number in range(20)])
    relist(run, archive)
    publish_vanished(run)
    score_blocks(run, 1, attempt=2, blocks={0})
    score_blocks(run, 1, attempt=3, blocks={1, 2}, hashed=True)
    run.publish(1)
    assert check_conservation(run) == len(assert_all_agree(run))
    assert (
        [row["phash"] for row in by_duckdb(run.store.url)].count("f" * 16)
        == sum(row["attempt"] == 3 for row in current_rows(run))
        > 0
    )
