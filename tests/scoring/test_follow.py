"""A source that is followed: what comes, changes and goes is scored and proved day by day, by listings and by the bucket's events; and no
event is lost.
"""

import io
import json
from datetime import date
from itertools import count

import numpy as np
import pytest
from PIL import Image

from benchmarks.follow import Day, measure
from ray_app.archives import BlockPlan, list_members, manifests, read_blocks, read_ids, read_vanished
from ray_app.errors import ConfigError, ExitCode, StorageError
from ray_app.runs import RunDirectory, check_conservation
from ray_app.scoring import ScoreConfig, follow
from ray_app.scoring.backlog import ListingTasks, StoppedError, archive_of, is_complete
from ray_app.scoring.run import check_scoring, score_archive
from ray_app.storage import bucket_events
from ray_app.storage.bucket_events import BucketQueue, EventLines, uris_in
from ray_app.streams.feed import Feed, FeedLog
from tests.scoring.conftest import rows_of, score_here, wait_until
from tests.scoring.stages import without_ray

PLAN = BlockPlan(batch_slots=4, max_block_members=8)


def picture(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8))


def ids_there(run):
    """Of the members that the last manifest of a run does not count as gone."""
    numbers = manifests(run.store)
    known = np.concatenate([ids for number in numbers for ids in read_ids(run.store, read_blocks(run.store, number))])
    return sorted(set(known.tolist()) - set(read_vanished(run.store, numbers[-1]).tolist()))


class Clock:
    """A second passes whenever it is looked at."""

    def __init__(self):
        self.monotonic = count().__next__


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(follow, "time", Clock())
    monkeypatch.setattr(follow, "LOOK_EVERY_S", 0.0)


def same(rows):
    return {uri: (row["image_id"], row["status"], row["scores"], row["verdict"]) for uri, row in rows.items()}


def test_two_days_of_a_folder_end_as_one_command_over_what_is_there(tmp_path, quick, monkeypatch, capsys):
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
        assert len(rows_of(run.store.url)) == 8
        yield from [date(2026, 11, 27)] * 6
        assert run.read_json("summary.json")["members"] == 8
        assert run.read_json("sessions/00001.json")["state"] == "finished"
        picture(10).save(folder / "10.png")
        yield from [date(2026, 11, 27)] * 12
        raise KeyboardInterrupt

    days = happens()
    monkeypatch.setattr(follow, "today", lambda: next(days))
    with without_ray(), pytest.raises(KeyboardInterrupt):
        score_archive(ScoreConfig(source=(str(folder),), out=run.store.url, ensemble="tiny", thumbnails=False, follow="2s"))
    assert capsys.readouterr().err.count("settled: ") == 2
    summary = run.read_json("summary.json")
    assert check_conservation(run) == summary["members"] == 9 == sum(day["files"] for day in summary["days"].values())
    assert [run.read_json(f"sessions/{name}")["rows"] for name in run.store.names("sessions")] == [10, 1]
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


class Bucket:
    """A bucket whose events go to a queue, and a run that has listed what was there at first."""

    def __init__(self, s3, name, tmp_path):
        import boto3

        self.name, self.client = name, s3.client()
        s3.bucket(name)
        self.sqs = boto3.client("sqs", endpoint_url=s3.url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
        self.queue = self.sqs.create_queue(QueueName=name)["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        for key in ("in/a b+ü.png", "in/b.png", "in/c.png"):
            self.put(key, b"1")
        wanted = {"QueueArn": arn, "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]}
        self.client.put_bucket_notification_configuration(
            Bucket=name, NotificationConfiguration={"QueueConfigurations": [wanted]}
        )  # fmt: skip
        self.config = ScoreConfig(source=(f"s3://{name}/in",), out=str(tmp_path / "run"), exclude=("**/not/*",), events=self.queue)
        self.run = RunDirectory.open(self.config.out)
        self.archive = archive_of(self.config)
        list_members(self.run.store, self.archive, PLAN)
        self.tasks = ListingTasks()
        self.tasks._each = lambda function, items: map(function, items)
        self.follow()

    def follow(self):
        """As a command that has just listed the bucket."""
        self.arrivals = follow.Arrivals(self.run, self.config, PLAN, at_once=True)
        self.arrivals._due += self.config.listed_every_s

    def put(self, key, data):
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def waiting(self):
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        return [int(one) for one in self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"].values()]


def test_events_of_a_bucket_say_what_a_listing_would(s3, tmp_path, monkeypatch, caplog):
    bucket = Bucket(s3, "followed", tmp_path)
    for key in ("in/d e+é.png", "in/b.png", "in/not/x.png", "beside/y.png"):
        bucket.put(key, b"2")
    bucket.client.delete_object(Bucket=bucket.name, Key="in/a b+ü.png")
    bucket.put("in/gone.png", b"3")
    bucket.client.delete_object(Bucket=bucket.name, Key="in/gone.png")
    for text in (json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": bucket.name}), "no message of a bucket"):
        bucket.sqs.send_message(QueueUrl=bucket.queue, MessageBody=text)

    came = sum(bucket.waiting())
    assert came >= 9
    with monkeypatch.context() as patch:
        patch.setattr(follow, "list_named", lambda *given, **named: 1 / 0)
        patch.setattr(bucket_events, "_HIDDEN_S", 1)
        with pytest.raises(ZeroDivisionError):
            list(bucket.arrivals.portions(bucket.tasks, ()))
    assert sum(bucket.waiting()) == came  # none is deleted before what it names is in a manifest
    bucket.follow()  # another command, to which they come again

    info = next(filter(None, bucket.arrivals.portions(bucket.tasks, ())))
    assert "1 messages name no object" in caplog.text
    assert sum(bucket.waiting()) == 1  # left for the queue's dead letters
    assert (info.members, info.vanished) == (2, 2)  # d and the new b; a and the old b
    bucket.put("in/a b+ü.png", b"1")  # as it was
    bucket.client.delete_object(Bucket=bucket.name, Key="in/c.png")
    info = next(filter(None, bucket.arrivals.portions(bucket.tasks, ())))
    assert (info.members, info.vanished) == (0, 2)  # the old b, c
    bucket.put("beside/z.png", b"4")
    bucket.tasks.halted = lambda: "SIGTERM" if sum(bucket.waiting()) == 1 else None
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        list(bucket.arrivals.portions(bucket.tasks, ()))

    before = read_vanished(bucket.run.store, info.manifest).tolist()
    assert list_members(bucket.run.store, bucket.archive, PLAN) is None
    assert read_vanished(bucket.run.store, info.manifest).tolist() == before
    whole = RunDirectory.open(str(tmp_path / "whole"))
    list_members(whole.store, bucket.archive, PLAN)
    assert ids_there(bucket.run) == ids_there(whole)
    assert len(ids_there(whole)) == 3


def test_what_a_message_names():
    record = {"s3": {"bucket": {"name": "b"}, "object": {"key": "a+b/%C3%BC%2B.png"}}}
    one = json.dumps({"Records": [record, record]})
    assert uris_in(one) == ["s3://b/a b/ü+.png"] * 2
    assert uris_in(json.dumps({"Type": "Notification", "Message": one})) == ["s3://b/a b/ü+.png"] * 2
    assert uris_in(json.dumps({"Event": "s3:TestEvent"})) == []
    record["s3"]["object"]["key"] = "a%00"
    assert uris_in(json.dumps({"Records": [record]})) is None
    for odd in ("", "1", "[]", "{}", '{"Records": 1}', '{"Records": [{"s3": {}}]}', '{"Message": "x"}', "[" * 100_000):
        assert uris_in(odd) is None


def test_lines_of_stdin_are_events_or_uris(monkeypatch, caplog):
    lines = ["s3://b/one.png", "", '{"Records": [{"s3": {"bucket": {"name": "b"}, "object": {"key": "two+2.png"}}}]}', "{broken"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    source, found = EventLines(), set()
    while len(found) < 2 or not caplog.records:
        events = source.receive(5)
        found |= {uri for _, uris in events for uri in uris}
        source.done([receipt for receipt, _ in events])
    assert found == {"s3://b/one.png", "s3://b/two 2.png"}
    assert source.receive(0) == []


def test_a_queue_that_is_not_there_is_named(s3):
    with pytest.raises(StorageError, match=r"cannot read the queue .*/nowhere"):
        BucketQueue(f"{s3.url}/123456789012/nowhere").receive(0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"follow": "soon"}, "valid number"),
        ({"follow": 0}, "greater than or equal to 1"),
        ({"follow": "5m", "limit": 3}, "neither --limit nor --retry"),
        ({"events": "-", "rescore": ("corrupt_image",)}, "neither --limit nor --retry"),
    ],
)
def test_settings_that_do_not_go_together(settings, says):
    with pytest.raises(ValueError, match=says):
        ScoreConfig(source=("photos",), out="run", **settings)


def test_events_need_places_that_they_can_name(tmp_path):
    (tmp_path / "list.csv").write_text("uri\n")
    config = ScoreConfig(source=(str(tmp_path / "list.csv"),), out=str(tmp_path / "run"), events="-", ensemble="tiny")
    with pytest.raises(ConfigError, match="events tell of objects below s3://"):
        check_scoring(config)


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
@pytest.mark.parametrize("events", [False, True], ids=["listed", "told"])
def test_a_day_with_a_kill_and_a_lost_node_ends_as_one_run_over_its_end(events):
    found = measure(Day(objects=400, changed=10, deleted=5, seconds=80, every_s=4, idle_s=10, events=events))
    assert found["equal"]
    assert found["proved"]
    assert (found["exit_code"], found["commands"]) == (ExitCode.INTERRUPTED, 2)
    assert found["arrivals"] >= 400
    assert found["latency_s"]["median"] < 60
