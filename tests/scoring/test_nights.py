"""Run after run over one archive: a run costs the same however many were before, and one that dies
anywhere is finished by the next.
"""

import os
import shutil
from collections import Counter

import pytest

from benchmarks.nights import NEW, Nights, measure, rows_made_up
from ray_app.runs import RunDirectory, current_rows, verify_run
from ray_app.scoring import ScoreConfig
from ray_app.scoring.backlog import is_complete
from ray_app.scoring.run import score_archive
from ray_app.storage.local import Local
from ray_app.storage.urls import local_path


def night(folder, out, new=NEW):
    """New images and one command, on this disk."""
    folder.mkdir(exist_ok=True)
    before = len(list(folder.iterdir()))
    for number in range(before, before + new):
        (folder / f"{number:04}.jpg").write_text(f"{number}")
    config = ScoreConfig(source=(str(folder),), out=str(out), ensemble="tiny", thumbnails=False)
    with rows_made_up():
        return score_archive(config).summary


def facts_of(run):
    return sorted(
        (row["uri"], row["image_id"], row["score"], row["verdict"]) for row in current_rows(run)
    )


def assert_is_finished(run, summary):
    """All rows are there once, counted as if they were counted anew, and nothing is left to do."""
    assert verify_run(run).current == summary["members"] == len(facts_of(run))
    assert is_complete(run)
    assert run.part_folders() == []


def test_runs_make_the_same_requests_whatever_came_before(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.nights.BUCKET", "few-nights")
    s3.bucket("few-nights")
    nights = Nights(s3, tmp_path)

    def reads_of_rows():
        """How often each published file was read since the log was cleared."""
        requests = s3.requests()
        return Counter(path for method, path in requests if method == "GET" and "/scores/" in path)

    with rows_made_up():
        _, second, third = (nights.night().total() for _ in range(3))
        unchanged = nights.night(0)
    assert abs(third - second) <= 2
    assert len(nights.run.published()) == 3
    assert unchanged.total() < 40
    s3.clear_log()
    rows = list(current_rows(nights.run))
    assert len(rows) == 3 * NEW
    assert list(reads_of_rows().values()) == [1] * 3
    assert_is_finished(nights.run, nights.run.read_json("summary.json"))
    # A file vanishes: the ids of earlier rows are read once. No list of the summary shows the
    # lowest score.
    lowest = local_path(min(rows, key=lambda row: row["score"])["uri"])
    os.unlink(lowest)
    s3.clear_log()
    with rows_made_up():
        assert nights.command()["members"] == 3 * NEW - 1
    reads = [count for _, count in sorted(reads_of_rows().items())]
    del reads[int(os.path.basename(lowest)[:6]) // NEW]
    assert reads == [1, 1]


class Dies(BaseException):
    """What SIGKILL leaves: no handler does anything that counts."""


@pytest.fixture
def mortal(monkeypatch):
    """Let the store of this process die before its n-th change from now on; 0: it lives.
    `mortal.changes` counts.
    """
    state = {"changes": 0, "dies_at": 0}

    def dying(change):
        def call(self, path, *given, **options):
            if "lease" not in str(path):
                state["changes"] += 1
                if 0 < state["dies_at"] <= state["changes"]:
                    raise Dies
            return change(self, path, *given, **options)

        return call

    for name in ("write", "create", "delete"):
        monkeypatch.setattr(Local, name, dying(getattr(Local, name)))
    return state


@pytest.mark.slow
def test_run_that_dies_anywhere_is_finished_by_the_next(tmp_path, mortal):
    folder = tmp_path / "images"
    for _ in range(2):
        night(folder, tmp_path / "base")
    base = facts_of(RunDirectory.open(str(tmp_path / "base")))
    shutil.copytree(tmp_path / "base", tmp_path / "whole")
    mortal["changes"] = 0
    whole = night(folder, tmp_path / "whole")
    expected, count = facts_of(RunDirectory.open(str(tmp_path / "whole"))), mortal["changes"]
    for number in range(count, 0, -1):
        out = shutil.copytree(tmp_path / "base", tmp_path / f"dies-{number}")
        run = RunDirectory.open(str(out))
        mortal |= {"changes": 0, "dies_at": number}
        with pytest.raises(Dies):
            night(folder, out, 0)
        mortal["dies_at"] = 0
        shutil.rmtree(out / "lease", ignore_errors=True)
        assert facts_of(run) in (base, expected), "a listing counts as a whole"
        verify_run(run)
        summary = night(folder, out, 0)
        assert facts_of(run) == expected
        assert summary["verdicts"] == whole["verdicts"]
        assert_is_finished(run, summary)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_twentieth_run_costs_what_the_second_did():
    found = measure(20, (2, 20))
    second, last = (Counter(found["nights"][number]).total() for number in (2, 20))
    assert abs(last - second) <= 2
    assert max(found["totals"]) - second < 5
    unchanged = [Counter(found["unchanged"][number]).total() for number in (2, 20)]
    assert abs(unchanged[1] - unchanged[0]) <= 2
