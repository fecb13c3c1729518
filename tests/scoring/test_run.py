"""Retries: only what is asked for is scored, under the same ids, and everything else stays as it
was.
"""

import os
import time

import pytest

from ray_app.errors import ConfigError, ExitCode, Status
from ray_app.runs import begin_retry, begun_retry
from ray_app.scoring import ScoreConfig
from ray_app.scoring.decide import decide_run
from ray_app.scoring.run import finish_retry, retry_members, score_archive
from ray_app.scoring.session import ScoringSession
from tests.runs.small_run import PLAN, new_run, relist, score_blocks, write_files
from tests.scoring.test_run_more import save_photo

BAD = ("corrupt_image", "truncated_image")


@pytest.fixture
def late(tmp_path):
    """A finished run without a cluster, in which every fourth member timed out."""
    write_files(tmp_path / "archive", [f"{number:02}.jpg" for number in range(20)])
    run = new_run(tmp_path / "run")
    relist(run, tmp_path / "archive")
    score_blocks(
        run, 0, fails=lambda name: Status.SOURCE_TIMEOUT if int(name[:2]) % 4 == 0 else None
    )
    return run


def scorer(attempt):
    """In place of a pass on Ray: commits the pending blocks."""
    return lambda run, work: score_blocks(
        run, 0, attempt=attempt, blocks={ref.block for ref in work.pending}
    )


def rows_of(run):
    return {row["uri"]: row for table in run.tables(0) for row in table.to_pylist()}


def test_a_retry_that_was_begun_is_finished_by_the_next_command_and_is_a_line_of_its_session(late):
    late.publish(0)
    begin_retry(late, 1, ["source_timeout"], PLAN)
    late.write_json("summary.json", {"listing": 0})
    with pytest.raises(ConfigError, match="a retry is not finished"):
        decide_run(late.store.url, "tiny")
    before, session = rows_of(late), ScoringSession(late, {}, time.monotonic())
    finish_retry(late, session, scorer(2))
    assert begun_retry(late) is None
    assert late.store.folders("retries") == []
    after = rows_of(late)
    assert [uri for uri in after if after[uri] != before[uri]] == [
        uri for uri in before if before[uri]["status"] != "ok"
    ]
    assert {row["status"] for row in after.values()} == {"ok"}
    assert session.facts().written()["retries"] == [
        {"begun_by": 1, "statuses": ["source_timeout"], "members": 5}
    ]


def test_nothing_to_retry_is_said_and_an_unfinished_run_is_finished_first(late, tmp_path, capsys):
    session = ScoringSession(late, {}, time.monotonic())
    retry_members(
        ScoreConfig(rescore=("decode_timeout", "source_denied")), late, session, PLAN, scorer(2)
    )
    assert (
        "no file has the status decode_timeout or source_denied: nothing to retry"
        in capsys.readouterr().err
    )
    write_files(tmp_path / "archive", ["new.jpg"])
    relist(late, tmp_path / "archive")
    with pytest.raises(ConfigError, match="not all files have been scored once"):
        retry_members(ScoreConfig(rescore=("source_timeout",)), late, session, PLAN, scorer(2))


def test_what_cannot_be_retried_is_said_before_a_cluster_starts(tmp_path):
    for words in (("ok",), ("sourcetimeout",)):
        with pytest.raises(ValueError, match=r"these are: empty_file, .*detector_failed"):
            ScoreConfig(rescore=words)
    with pytest.raises(ConfigError, match=r"there is no run in .* to retry"):
        score_archive(
            ScoreConfig(
                source=(str(tmp_path),), out=str(tmp_path / "none"), rescore=("source_timeout",)
            )
        )


def break_file(path):
    """Make a file unreadable without a change of size or time; returns what makes it whole again."""
    whole, times = path.read_bytes(), path.stat()

    def write(data):
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    write(whole[:200] + bytes(len(whole) - 200))
    return lambda: write(whole)


def test_a_retry_scores_nothing_but_what_is_asked_for(score, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(12):
        save_photo(photos / f"{index:02}.jpg", index)
    repair = break_file(photos / "11.jpg")
    break_file(photos / "10.jpg")
    _, before = score(photos)

    repair()
    save_photo(photos / "new.jpg", 99)
    finished, after = score(photos, rescore=BAD)
    assert finished.exit_code is ExitCode.DONE
    session = finished.summary["session"]
    assert (session["rows"], session["decoded"], session["seconds"]["list"]) == (2, 2, 0)
    assert finished.summary["listing"] == 0
    assert list(after) == list(before), "nothing is listed"
    changed = {"11.jpg": ("ok", 2), "10.jpg": (before[str(photos / "10.jpg")]["status"], 2)}
    for uri, row in after.items():
        name = os.path.basename(uri)
        assert row["image_id"] == before[uri]["image_id"]
        assert (
            (row["status"], row["attempt"]) == changed[name]
            if name in changed
            else row == before[uri]
        )
