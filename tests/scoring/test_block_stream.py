"""A run whose first listing goes on: its first blocks are scored meanwhile, and what ends the listing ends the run, resumably."""

import io
import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from ray_app.archives import BlockPlan, in_turn, list_portions, manifests, walk
from ray_app.cluster.progress import Progress
from ray_app.errors import RESUMABLE, ConfigError, StorageError
from ray_app.runs import RunDirectory
from ray_app.scoring.backlog import is_complete, listing_log, work_of
from ray_app.scoring.block_stream import ArrivingBlocks, ListingTasks
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.layout import ScoringLayout
from ray_app.scoring.run_metrics import RunMeter
from ray_app.storage import Store
from ray_app.storage import s3 as requests
from tests.archives.given import Given, Items, listed
from tests.scoring.conftest import rows_of, score_here

PLAN = BlockPlan(batch_slots=4, max_block_members=8)
METER = RunMeter("run", 0, ScoringLayout("fused", (1,), 0, 8), exported=False)
_roots = itertools.count()


class Gate:
    """Passes as many as are let through."""

    def __init__(self):
        self._open = threading.Semaphore(0)

    def let(self, count=1):
        self._open.release(count)

    def wait(self):
        assert self._open.acquire(timeout=20)


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(walk, "FIRST_STEP", 20)
    monkeypatch.setattr(walk, "_PAGE", 10)


def test_blocks_come_while_the_listing_goes_on(small_steps):
    gate, stream = Gate(), io.StringIO()

    def section(start):
        gate.wait()
        yield from map(listed, range(start, start + 20))

    store = Store.open(f"memory://arriving-{next(_roots)}")
    portions = list_portions(store, Given(*[Items(section(start)) for start in range(0, 160, 20)]), PLAN, clock=lambda: 0.0)
    gate.let()
    assert next(portions).goes_on
    work = work_of(RunDirectory(store))
    progress = Progress(work.members, stream=stream)
    with ArrivingBlocks(store, work.pending, portions, ListingTasks(in_turn, in_turn), progress, METER) as blocks:
        arriving = iter(blocks)
        first = list(itertools.takewhile(lambda ref: ref is not None, arriving))
        assert sum(ref.members for ref in first) == 20
        assert next(arriving) is None, "the listing waits, whoever asks does not"
        assert progress.line(0.0).startswith("score  0/20, listing goes on")
        gate.let(7)
        rest = [ref for ref in arriving if ref is not None]
        blocks.finish()
    assert sum(ref.members for ref in rest) == 140
    assert {ref.manifest for ref in rest} == set(manifests(store)[1:])
    assert progress.line(0.0).startswith("score  0/160 (0%)")


def test_very_many_keys_are_said_once_to_be_better_read_from_an_inventory(capsys):
    for source, times in [("s3://bucket/flat", 1), ("/data/photos", 0), ("inventory::s3://bucket/manifest.json", 0)]:
        log = listing_log(ScoreConfig(source=(source,), out="run"))
        for members in (1000, 9_999_999, 10_000_000, 30_000_000):
            log(members)
        assert capsys.readouterr().err.count("an S3 Inventory lists them without a request for every thousand") == times


def test_a_listing_that_nobody_waits_for_ends(small_steps):
    gate = Gate()

    def section(start):
        gate.wait()
        yield from map(listed, range(start, start + 20))

    store = Store.open(f"memory://arriving-{next(_roots)}")
    tasks = ListingTasks(in_turn, in_turn)
    portions = list_portions(store, Given(*[Items(section(start)) for start in range(0, 1600, 20)]), PLAN, each=tasks)
    gate.let()
    next(portions)
    work = work_of(RunDirectory(store))
    with ArrivingBlocks(store, work.pending, portions, tasks, Progress(0, stream=io.StringIO()), METER) as blocks:
        next(iter(blocks))
        gate.let(4)
        tasks.stopped.set()
    assert not blocks._thread.is_alive()
    assert len(manifests(store)) <= 2


@pytest.fixture
def bucket(s3, monkeypatch, small_steps):
    """Sixty images in a flat prefix, listed ten to a page."""
    page = requests.page
    monkeypatch.setattr(requests, "page", lambda *args, limit=1000, **more: page(*args, limit=min(limit, 10), **more))
    name = f"arriving-{next(_roots)}"
    s3.bucket(name)
    rng = np.random.default_rng(3)
    for number in range(60):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(data, "png")
        s3.client().put_object(Bucket=name, Key=f"flat/{number:03}.png", Body=data.getvalue())
    return f"s3://{name}/flat"


def test_a_run_over_portions_ends_as_any_other(bucket, tmp_path, capsys):
    finished, rows = score_here(tmp_path / "run", bucket)
    assert len(rows) == 60 == finished.summary["members"]
    run = RunDirectory.open(str(tmp_path / "run"))
    assert len(manifests(run.store)) >= 2
    assert is_complete(run)
    assert finished.summary["listing"] == manifests(run.store)[-1]
    before = run.store.names("sessions")
    again, _ = score_here(tmp_path / "run", bucket)
    assert again.summary["session"]["rows"] == 0
    assert len(run.store.names("sessions")) == len(before) + 1


def test_a_listing_that_fails_lets_what_is_listed_be_scored_and_goes_on_there(bucket, tmp_path, monkeypatch, capsys):
    from ray_app.storage import key_ranges, listing

    monkeypatch.setattr(listing, "PATIENCE", listing.fetch.RetryPolicy(attempts=1))
    files = key_ranges.RangeReader._files

    def failing(reader):
        for info in files(reader):
            if info.uri.endswith("045.png"):
                raise ConnectionResetError("the store is gone")
            yield info

    with monkeypatch.context() as patch:
        patch.setattr(key_ranges.RangeReader, "_files", failing)
        with pytest.raises(StorageError, match="cannot list") as caught:
            score_here(tmp_path / "run", bucket)
    assert RESUMABLE in getattr(caught.value, "__notes__", [])
    assert "the listing ended early; the files listed so far are scored first: cannot list" in capsys.readouterr().err
    run = RunDirectory.open(str(tmp_path / "run"))
    work = work_of(run)
    assert 20 <= work.members < 60
    assert not work.pending
    with pytest.raises(ConfigError, match="not all files have been scored once"):
        score_here(tmp_path / "run", bucket, rescore=("corrupt_image",))
    first = run.store.read("manifest/0/_complete")
    finished, rows = score_here(tmp_path / "run", bucket)
    assert len(rows) == 60 == finished.summary["members"]
    assert run.store.read("manifest/0/_complete") == first
    assert len(rows_of(tmp_path / "run")) == 60
