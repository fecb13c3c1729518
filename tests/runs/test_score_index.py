"""The index of what a run knows: found by digest, memory-mapped, also after retries and where a run lies in a bucket."""

import pytest

from ray_app.errors import Status
from ray_app.runs.score_index import ScoreIndex, build_index
from tests.runs.small_run import NAME, SPEC, begun, digest, in_small_files, new_run, relist, retried, score_blocks, write_files

NAMES = [f"{number:03}.jpg" for number in range(60)]


def fails(name):
    return Status.SOURCE_TIMEOUT if name.endswith("7.jpg") else None


@pytest.fixture
def run(tmp_path, monkeypatch):
    in_small_files(monkeypatch)
    return begun(tmp_path, NAMES[:40], fails=fails)


def test_every_scored_member_is_found_and_no_other(run, tmp_path):
    run.publish(0)
    assert build_index(run, SPEC) == len(run.published()) > 2
    index = ScoreIndex(run, tmp_path / "cache")
    rows = [row for table in run.tables(0) for row in table.to_pylist()]
    for row in rows:
        if row["status"] != "ok":
            continue
        found = index.find(row["sha256"])
        assert found.said.scores == row["scores"]
        assert found.said.twin is None
        assert (found.facts.sha256, found.facts.format, found.facts.width) == (row["sha256"], "JPEG", 300)
        assert found.facts.flags == ()
    assert index.find(digest("007.jpg")) is None
    assert index.find(digest("000.jpg")[:16] + "0" * 48) is None, "equal first bytes are told apart by the full digest"
    assert len(index) == sum(row["status"] == "ok" for row in rows)


def test_a_run_in_a_bucket_is_searched_in_a_copy_on_the_node_s_disk(s3, tmp_path):
    run = new_run(s3.bucket("reuse-index") + "/run")
    write_files(tmp_path / "archive", NAMES)
    relist(run, tmp_path / "archive")
    score_blocks(run, 0)
    run.publish(0)
    assert build_index(run, SPEC) == 1
    cache = tmp_path / "cache"
    first = ScoreIndex(run, cache)
    s3.clear_log()
    second = ScoreIndex(run, cache)
    assert not [path for method, path in s3.requests() if method == "GET" and path.endswith(".arrow")]
    assert first.find(digest("005.jpg")) == second.find(digest("005.jpg")) is not None
    assert set(first.find(digest("005.jpg")).said.scores) == {NAME}


def test_a_retry_makes_its_files_be_indexed_anew(run, tmp_path):
    run.publish(0)
    files = build_index(run, SPEC)
    retried(run, 2, Status.SOURCE_TIMEOUT)
    assert 0 < build_index(run, SPEC) < files
    assert ScoreIndex(run, tmp_path / "cache").find(digest("007.jpg")) is not None
