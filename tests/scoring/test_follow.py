"""A source that is followed: new, changed, and removed files are scored and proved day by day."""

import os
import signal
import threading
import time
from datetime import date

import pytest

from benchmarks.follow import Day, measure
from ray_app.archives import (
    BlockPlan,
    list_complete_manifests,
    list_portions,
    open_source,
    read_last_listing,
)
from ray_app.archives.listing import ListingProcess, ListingRequest
from ray_app.cluster.config import ClusterConfig
from ray_app.errors import ExitCode
from ray_app.runs import RunDirectory, verify_run
from ray_app.scoring import ScoreConfig
from ray_app.scoring.backlog import is_complete
from ray_app.scoring.control import Control
from ray_app.scoring.run import score_archive
from ray_app.storage import Store
from tests.make.images import encoded, photo
from tests.make.runs import await_parts, rows_of, score_here, start
from tests.make.stages import without_ray
from tests.make.waiting import kill_family, wait_until

PLAN = BlockPlan(batch_slots=4, max_block_members=8)


def picture(seed):
    return encoded(photo(64, 64, seed), "PNG")


@pytest.fixture
def folder(tmp_path):
    """An empty folder, and a way to add pictures to it: `folder.add(0, 1)`."""

    class Folder:
        path = tmp_path / "photos"

        def add(self, *numbers):
            for number in numbers:
                (self.path / f"{number}.png").write_bytes(picture(number))

    Folder.path.mkdir()
    return Folder()


def same(rows):
    names = ("image_id", "status", "scores", "verdict")
    return {uri: [row[name] for name in names] for uri, row in rows.items()}


def test_followed_days_end_as_one_command_over_what_is_there(folder, tmp_path, monkeypatch, capsys):
    run, errors = RunDirectory.open(str(tmp_path / "run")), []
    folder.add(*range(8))
    day, ended = [date(2026, 11, 26)], threading.Event()
    monkeypatch.setattr("ray_app.scoring.run.today", lambda: day[0])
    end_turn = Control.end_turn
    monkeypatch.setattr(Control, "end_turn", lambda self: (end_turn(self), ended.set()))

    def have_rows(names):
        """Wait until the run has a row of each of these files and of no other."""

        def has():
            rows = rows_of(run.store.url, unfinished=True) if run.exists() else {}
            return {uri.rpartition("/")[2] for uri in rows} == names

        wait_until(has, 60)

    def live():
        """What happens to the folder in two days; each step waits for the one before."""
        try:
            names = {f"{number}.png" for number in range(8)}
            have_rows(names)
            # Nothing comes for a second, so the turn ends, and the next file begins another one.
            wait_until(ended.is_set, 60)
            folder.add(8)
            (folder.path / "1.png").write_bytes(picture(9))
            (folder.path / "2.png").unlink()
            names = names - {"2.png"} | {"8.png"}
            have_rows(names)
            day[0] = date(2026, 11, 27)
            wait_until(lambda: run.store.exists("sessions/00002.json"), 60)
            assert run.read_json("summary.json")["members"] == 8
            assert run.read_json("sessions/00001.json")["state"] == "finished"
            folder.add(10)
            have_rows(names | {"10.png"})
        except BaseException as error:
            errors.append(error)
        os.kill(os.getpid(), signal.SIGINT)

    living = threading.Thread(target=live, daemon=True)
    settings = {"ensemble": "tiny", "thumbnails": False, "cluster": ClusterConfig(idle_s=1)}
    source = (str(folder.path),)
    config = ScoreConfig(source=source, out=run.store.url, follow=1, **settings)
    living.start()
    with without_ray():
        # The real process, which lists while this one scores.
        monkeypatch.setattr("ray_app.scoring.run.ListingProcess", ListingProcess)
        with pytest.raises(KeyboardInterrupt):
            score_archive(config)
    living.join()
    assert errors == []
    printed = capsys.readouterr().err
    assert printed.count("finished the day: ") == 2
    assert "stopping workers: no new items for 1 s" in printed
    assert list_complete_manifests(run.store) == [0, 1], "a manifest a day"
    summary = run.read_json("summary.json")
    assert verify_run(run).current == summary["members"] == 9
    assert sum(day["files"] for day in summary["days"].values()) == 9
    sessions = [run.read_json(f"sessions/{name}") for name in run.store.names("sessions")]
    assert [session["rows"] for session in sessions] == [10, 1]
    assert is_complete(run)
    assert same(rows_of(run.store.url)) == same(score_here(tmp_path / "whole", folder.path)[1])


def has_portions(run, count):
    listed = read_last_listing(run.store)
    return listed is not None and listed.portions == count


def test_killed_follow_is_finished_by_the_next_command(folder, tmp_path):
    out = tmp_path / "run"
    folder.add(0, 1, 2)
    score_here(out, folder.path)
    run = RunDirectory.open(str(out))
    # Two listings of a command that followed the folder, and was killed before it scored.
    for number in (3, 4):
        folder.add(number)
        list(list_portions(run.store, open_source([str(folder.path)]), PLAN))
    assert not is_complete(run)
    folder.add(5)
    _, rows = score_here(out, folder.path)
    assert len(rows) == 5, "what the command that was killed had listed"
    assert list_complete_manifests(run.store) == [0, 1]
    finished, rows = score_here(out, folder.path)
    assert len(rows) == finished.summary["members"] == verify_run(run).current == 6
    assert is_complete(run)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_quiet_source_is_no_standstill(s3, tmp_path):
    """No block ends for longer than `stall_timeout_s`, since none is pending."""
    bucket, run = s3.bucket("quiet"), RunDirectory.open(str(tmp_path / "run"))
    source = Store.open(f"{bucket}/photos")
    source.write("0.png", picture(0))
    process = start(source.url, run.store.url, "follow=1", "cluster.stall_timeout_s=45")
    try:
        await_parts(run, process, 1)
        quiet_until = time.monotonic() + 55
        wait_until(lambda: time.monotonic() > quiet_until or process.poll() is not None)
        source.write("1.png", picture(1))
        await_parts(run, process, 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == ExitCode.INTERRUPTED, errors
    finally:
        kill_family(process)
    assert verify_run(run).current == 2


def request_for(folder, tmp_path, every_s):
    out, sources = str(tmp_path / "run"), (str(folder.path),)
    return ListingRequest(run=out, lease=0, sources=sources, plan=PLAN, every_s=every_s)


def test_source_that_fails_is_listed_again(folder, tmp_path, capfd):
    folder.add(0)
    request, printed = request_for(folder, tmp_path, 0.2), []
    run = RunDirectory.open(request.run)

    def is_repeated():
        printed.append(capfd.readouterr().err)
        return "retrying the listing" in "".join(printed)

    with ListingProcess(request) as listing:
        wait_until(lambda: has_portions(run, 1), 30)
        folder.path.rename(tmp_path / "elsewhere")
        wait_until(is_repeated, 30)
        (tmp_path / "elsewhere").rename(folder.path)
        folder.add(1)
        wait_until(lambda: has_portions(run, 2), 30)
        assert listing.is_running
    assert not listing.is_running


def test_listing_ends_when_its_parent_dies(folder, tmp_path):
    folder.add(0)
    request = request_for(folder, tmp_path, 1)
    reading, writing = os.pipe()
    if (parent := os.fork()) == 0:
        with ListingProcess(request) as listing:
            os.write(writing, str(listing.pid).encode())
            signal.pause()
    os.close(writing)
    pid = int(os.read(reading, 20))
    wait_until(lambda: has_portions(RunDirectory.open(request.run), 1), 30)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 10)


def test_follow_refuses_wrong_times_and_other_options():
    together = "cannot be combined with --limit or --retry"
    for settings, message in (
        ({"follow": "soon"}, "valid number"),
        ({"follow": 0}, "greater than or equal to 1"),
        ({"follow": "5m", "limit": 3}, together),
        ({"follow": "5m", "rescore": ("corrupt_image",)}, together),
    ):
        with pytest.raises(ValueError, match=message):
            ScoreConfig(source=("photos",), out="run", **settings)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_day_with_a_kill_and_a_lost_node_ends_as_one_run():
    found = measure(Day(objects=400, changed=10, deleted=5, seconds=80, every_s=4, idle_s=10))
    assert found["equal"]
    assert found["proved"]
    assert (found["exit_code"], found["commands"]) == (ExitCode.INTERRUPTED, 2)
    assert found["arrivals"] >= 400
    assert found["latency_s"]["median"] < 60
