"""Night after night: a night costs the same however many were before, and one that dies anywhere is
finished by the next.
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
    with rows_made_up():
        return score_archive(
            ScoreConfig(source=(str(folder),), out=str(out), ensemble="tiny", thumbnails=False)
        ).summary


def facts_of(run):
    return sorted(
        (row["uri"], row["image_id"], row["score"], row["verdict"]) for row in current_rows(run)
    )


def assert_is_finished(run, summary):
    """All rows are there once, counted as if they were counted anew, and nothing is left to do."""
    assert verify_run(run).current == summary["members"] == len(facts_of(run))
    assert is_complete(run)
    assert run.part_folders() == []


def test_a_night_makes_the_same_requests_whatever_the_nights_before(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.nights.BUCKET", "few-nights")
    s3.bucket("few-nights")
    nights = Nights(s3, tmp_path)
    with rows_made_up():
        found = [nights.night() for _ in range(4)]
        unchanged = nights.night(0)
    second, _, fourth = (kinds.total() for kinds in found[1:])
    assert abs(fourth - second) <= 2
    assert len(nights.run.published()) == 4
    assert unchanged.total() < 40
    s3.clear_log()
    assert len(list(current_rows(nights.run))) == 4 * NEW
    assert [one.method for one in s3.requests() if "/run/scores/" in one.path] == ["GET"] * 4
    assert_is_finished(nights.run, nights.run.read_json("summary.json"))


def test_ids_of_earlier_rows_are_read_once_if_a_file_vanished(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.nights.BUCKET", "vanishing")
    s3.bucket("vanishing")
    nights = Nights(s3, tmp_path)
    with rows_made_up():
        for _ in range(3):
            nights.night(60)
        # The lowest score, which no list of the summary shows.
        lowest = min(current_rows(nights.run), key=lambda row: row["score"])
        os.unlink(local_path(lowest["uri"]))
        s3.clear_log()
        summary = nights.command()
    assert summary["members"] == 179
    read = Counter(path for method, path in s3.requests() if method == "GET" and "/scores/" in path)
    vanished_from = int(os.path.basename(lowest["uri"])[:6]) // 60
    earlier = [count for _, count in sorted(read.items())]
    assert [count for night, count in enumerate(earlier) if night != vanished_from] == [1, 1]


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
def test_a_night_that_dies_anywhere_is_finished_by_the_next(tmp_path, mortal):
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
def test_the_twentieth_night_costs_what_the_second_did():
    found = measure(20, (2, 20))
    second, last = (Counter(found["nights"][number]).total() for number in (2, 20))
    assert abs(last - second) <= 2
    assert max(found["totals"]) - second < 5
    assert (
        abs(Counter(found["unchanged"][20]).total() - Counter(found["unchanged"][2]).total()) <= 2
    )
