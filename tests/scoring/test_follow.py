"""A source that is followed: new, changed, and removed files are scored and proved day by day."""

import os
import signal
import threading
import time
from datetime import date

import numpy as np
import pytest
from PIL import Image

from benchmarks.follow import Day, measure
from ray_app.archives import BlockPlan, last_listing, list_portions, manifests, open_source
from ray_app.archives.listing import ListingProcess, ListingRequest
from ray_app.cluster.config import ClusterConfig
from ray_app.errors import ExitCode
from ray_app.runs import RunDirectory, verify_run
from ray_app.scoring import ScoreConfig
from ray_app.scoring.backlog import is_complete
from ray_app.scoring.run import score_archive
from ray_app.storage import Store
from tests.images.factory import encoded
from tests.scoring.conftest import (
    await_parts,
    kill_family,
    rows_of,
    score_here,
    start,
    wait_until,
)
from tests.scoring.stages import without_ray

PLAN = BlockPlan(batch_slots=4, max_block_members=8)


def picture(number):
    return Image.fromarray(
        np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    )


def same(rows):
    return {
        uri: (row["image_id"], row["status"], row["scores"], row["verdict"])
        for uri, row in rows.items()
    }


def test_two_days_of_a_folder_end_as_one_command_over_what_is_there(tmp_path, monkeypatch, capsys):
    folder, run = tmp_path / "photos", RunDirectory.open(str(tmp_path / "run"))
    folder.mkdir()
    for number in range(8):
        picture(number).save(folder / f"{number}.png")
    day = [date(2026, 11, 26)]
    monkeypatch.setattr("ray_app.scoring.run.today", lambda: day[0])
    errors = []

    def have_rows(names):
        """Wait until the run has a row of each of these files and of no other."""

        def has():
            if not run.exists():
                return False
            rows = rows_of(run.store.url, unfinished=True)
            return {uri.rpartition("/")[2] for uri in rows} == names

        wait_until(has, 60)

    def live():
        """What happens to the folder in two days; each step waits for the one before."""
        try:
            names = {f"{number}.png" for number in range(8)}
            have_rows(names)
            # Nothing comes for a second, so the turn ends, and the next file begins another one.
            wait_until(lambda: run.read_json("orders.json")["is_ended"], 60)
            picture(8).save(folder / "8.png")
            picture(9).save(folder / "1.png")
            (folder / "2.png").unlink()
            names = names - {"2.png"} | {"8.png"}
            have_rows(names)
            day[0] = date(2026, 11, 27)
            wait_until(lambda: run.store.exists("sessions/00002.json"), 60)
            assert run.read_json("summary.json")["members"] == 8
            assert run.read_json("sessions/00001.json")["state"] == "finished"
            picture(10).save(folder / "10.png")
            have_rows(names | {"10.png"})
        except BaseException as error:
            errors.append(error)
        os.kill(os.getpid(), signal.SIGINT)

    living = threading.Thread(target=live, daemon=True)
    config = ScoreConfig(
        source=(str(folder),),
        out=run.store.url,
        ensemble="tiny",
        thumbnails=False,
        follow=1,
        cluster=ClusterConfig(idle_s=1),
    )
    living.start()
    with without_ray():
        # The real process, which lists while this one scores.
        monkeypatch.setattr("ray_app.scoring.run.ListingProcess", ListingProcess)
        with pytest.raises(KeyboardInterrupt):
            score_archive(config)
    living.join()
    assert errors == []
    told = capsys.readouterr().err
    assert told.count("settled: ") == 2
    assert "stopping workers: no new items for 1 s" in told
    assert manifests(run.store) == [0, 1], "a manifest a day"
    summary = run.read_json("summary.json")
    assert verify_run(run).current == summary["members"] == 9
    assert sum(day["files"] for day in summary["days"].values()) == 9
    assert [run.read_json(f"sessions/{name}")["rows"] for name in run.store.names("sessions")] == [
        10,
        1,
    ]
    assert is_complete(run)
    assert same(rows_of(run.store.url)) == same(score_here(tmp_path / "whole", folder)[1])


def has_portions(run, count):
    listed = last_listing(run.store)
    return listed is not None and listed.portions == count


def test_killed_follow_is_finished_by_the_next_command(tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    score_here(out, folder)
    run = RunDirectory.open(str(out))
    # Two listings of a command that followed the folder, and was killed before it scored.
    for number in (3, 4):
        picture(number).save(folder / f"{number}.png")
        list(list_portions(run.store, open_source([str(folder)]), PLAN))
    assert not is_complete(run)
    picture(5).save(folder / "5.png")
    _, rows = score_here(out, folder)
    assert len(rows) == 5, "what the command that was killed had listed"
    assert manifests(run.store) == [0, 1]
    finished, rows = score_here(out, folder)
    assert len(rows) == finished.summary["members"] == verify_run(run).current == 6
    assert is_complete(run)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_quiet_source_is_no_standstill(s3, tmp_path):
    """No block ends for longer than `stall_timeout_s`, since none is pending."""
    bucket, run = s3.bucket("quiet"), RunDirectory.open(str(tmp_path / "run"))
    source = Store.open(f"{bucket}/photos")
    source.write("0.png", encoded(picture(0), "PNG"))
    settings = ("follow=1", "cluster.stall_timeout_s=45")
    process = start(source.url, run.store.url, *settings)
    try:
        await_parts(run, process, 1)
        quiet_until = time.monotonic() + 55
        wait_until(lambda: time.monotonic() > quiet_until or process.poll() is not None)
        source.write("1.png", encoded(picture(1), "PNG"))
        await_parts(run, process, 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == ExitCode.INTERRUPTED, errors
    finally:
        kill_family(process)
    assert verify_run(run).current == 2


def test_a_source_that_fails_is_listed_again(tmp_path, capfd):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(0).save(folder / "0.png")
    run = RunDirectory.open(str(tmp_path / "run"))
    request = ListingRequest(
        run=run.store.url, lease=0, sources=(str(folder),), plan=PLAN, every_s=0.2
    )
    with ListingProcess(request) as listing:
        wait_until(lambda: has_portions(run, 1), 30)
        folder.rename(tmp_path / "elsewhere")
        told = []
        wait_until(
            lambda: told.append(capfd.readouterr().err) or "listed again" in "".join(told), 30
        )
        (tmp_path / "elsewhere").rename(folder)
        picture(1).save(folder / "1.png")
        wait_until(lambda: has_portions(run, 2), 30)
        assert listing.is_running
    assert not listing.is_running


def test_a_listing_ends_when_its_parent_dies(tmp_path):
    (tmp_path / "photos").mkdir()
    picture(0).save(tmp_path / "photos" / "0.png")
    request = ListingRequest(
        run=str(tmp_path / "run"),
        lease=0,
        sources=(str(tmp_path / "photos"),),
        plan=PLAN,
        every_s=1,
    )
    reading, writing = os.pipe()
    if (parent := os.fork()) == 0:
        with ListingProcess(request) as listing:
            os.write(writing, str(listing.pid).encode())
            signal.pause()
    os.close(writing)
    pid = int(os.read(reading, 20))
    run = RunDirectory.open(request.run)
    wait_until(lambda: has_portions(run, 1), 30)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 10)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"follow": "soon"}, "valid number"),
        ({"follow": 0}, "greater than or equal to 1"),
        ({"follow": "5m", "limit": 3}, "cannot be combined with --limit or --retry"),
        (
            {"follow": "5m", "rescore": ("corrupt_image",)},
            "cannot be combined with --limit or --retry",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings, says):
    with pytest.raises(ValueError, match=says):
        ScoreConfig(source=("photos",), out="run", **settings)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_day_with_a_kill_and_a_lost_node_ends_as_one_run_over_its_end():
    found = measure(Day(objects=400, changed=10, deleted=5, seconds=80, every_s=4, idle_s=10))
    assert found["equal"]
    assert found["proved"]
    assert (found["exit_code"], found["commands"]) == (ExitCode.INTERRUPTED, 2)
    assert found["arrivals"] >= 400
    assert found["latency_s"]["median"] < 60
