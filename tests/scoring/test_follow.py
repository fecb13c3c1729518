"""A source that is followed: new, changed, and removed files are scored and proved day by day."""

from datetime import date
from itertools import count

import numpy as np
import pytest
from PIL import Image

from benchmarks.follow import Day, measure
from ray_app.archives import BlockPlan, list_members
from ray_app.errors import ConfigError, ExitCode, StorageError
from ray_app.runs import RunDirectory, verify_run
from ray_app.scoring import ScoreConfig, follow
from ray_app.scoring.backlog import ListingTasks, StoppedError, is_complete
from ray_app.scoring.run import score_archive
from ray_app.streams.feed import Feed, FeedLog
from tests.scoring.conftest import rows_of, score_here, wait_until
from tests.scoring.stages import without_ray

PLAN = BlockPlan(batch_slots=4, max_block_members=8)


def picture(number):
    return Image.fromarray(
        np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    )


class Clock:
    """A second passes whenever it is looked at."""

    def __init__(self):
        self.monotonic = count().__next__


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(follow, "time", Clock())
    monkeypatch.setattr(follow, "LOOK_EVERY_S", 0.0)


def same(rows):
    return {
        uri: (row["image_id"], row["status"], row["scores"], row["verdict"])
        for uri, row in rows.items()
    }


def test_two_days_of_a_folder_end_as_one_command_over_what_is_there(
    tmp_path, quick, monkeypatch, capsys
):
    folder, run = tmp_path / "photos", RunDirectory.open(str(tmp_path / "run"))
    folder.mkdir()
    for number in range(8):
        picture(number).save(folder / f"{number}.png")

    def happens():
        """What comes between two looks at the calendar, which gives the day."""
        yield from [date(2026, 11, 26)] * 6
        picture(8).save(folder / "8.png")
        picture(9).save(folder / "1.png")
        (folder / "2.png").unlink()
        yield from [date(2026, 11, 26)] * 12
        assert len(rows_of(run.store.url, unfinished=True)) == 8
        yield from [date(2026, 11, 27)] * 6
        assert run.read_json("summary.json")["members"] == 8
        assert run.read_json("sessions/00001.json")["state"] == "finished"
        picture(10).save(folder / "10.png")
        yield from [date(2026, 11, 27)] * 12
        raise KeyboardInterrupt

    days = happens()
    monkeypatch.setattr(follow, "today", lambda: next(days))
    with without_ray(), pytest.raises(KeyboardInterrupt):
        score_archive(
            ScoreConfig(
                source=(str(folder),),
                out=run.store.url,
                ensemble="tiny",
                thumbnails=False,
                follow="2s",
            )
        )
    assert capsys.readouterr().err.count("settled: ") == 2
    summary = run.read_json("summary.json")
    assert (
        verify_run(run).current
        == summary["members"]
        == 9
        == sum(day["files"] for day in summary["days"].values())
    )
    assert [run.read_json(f"sessions/{name}")["rows"] for name in run.store.names("sessions")] == [
        10,
        1,
    ]
    assert is_complete(run)
    assert same(rows_of(run.store.url)) == same(score_here(tmp_path / "whole", folder)[1])


def test_a_source_that_fails_is_looked_at_again(tmp_path, quick, monkeypatch, capsys):
    picture(0).save(tmp_path / "0.png")
    config = ScoreConfig(source=(str(tmp_path),), out=str(tmp_path / "run"), follow=1)
    run = RunDirectory.open(config.out)
    answers = iter([StorageError("the store is gone"), ConfigError("no file there"), None])

    def listing(*given, **named):
        if (answer := next(answers)) is not None:
            raise answer
        return list_members(*given, **named)

    monkeypatch.setattr(follow, "list_members", listing)
    arrivals = follow.Arrivals(run, config, PLAN, at_once=True)
    tasks = ListingTasks()
    tasks.aside = None
    tasks._each = lambda function, items: map(function, items)
    portions = arrivals.portions(tasks, ())
    assert next(portions).members == 1
    assert capsys.readouterr().err.count("looked at again") == 2
    monkeypatch.setattr(follow, "list_members", list_members)
    assert next(portions) is None
    picture(1).save(tmp_path / "1.png")
    assert next(filter(None, portions)).members == 1
    tasks.stopped.set()
    with pytest.raises(StoppedError):
        next(portions)


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


def test_where_nothing_comes_a_stream_ends_and_begins_anew_for_the_next_item(monkeypatch, capsys):
    given, streams = [], []
    monkeypatch.setattr(FeedLog, "put", lambda log, place, item: given.append(item))
    monkeypatch.setattr(FeedLog, "order", lambda *_: None)
    monkeypatch.setattr(FeedLog, "close", lambda *_: None)

    def items():
        yield from (None, 1, None, 2)
        while not streams:
            yield None
        yield 3

    feed = Feed(items(), most=lambda: 5, idle_s=1.0)
    while feed.has_more():
        with feed:
            if not streams:
                wait_until(lambda: 2 in given)
                feed.ended(2)  # not begun: it is given again, whether another comes or not
                wait_until(lambda: given.count(2) == 2)
                feed.ended()
                feed.ended()
            wait_until(lambda: given[-1:] == [None])
        streams.append(given.copy())
        given.clear()
    assert streams == [[1, 2, 2, None], [3, None]]
    assert capsys.readouterr().err.count("processes end until something comes") == 1


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
