"""A run on S3 whose processes are killed or stopped: the same command finishes it. Nothing is lost,
scored twice, or fetched again.
"""

import os
import signal
from contextlib import contextmanager

import pytest

from benchmarks.scale import write_detector, write_shards
from ray_app.errors import ExitCode
from ray_app.runs import RunDirectory, current_tables, verify_run
from tests.make.archives import fill_bucket
from tests.make.ray_head import title_of
from tests.make.runs import await_parts, comparable, rows_of, score_here, start
from tests.make.waiting import family_of, kill_family, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

COUNT, BLOCK = 1200, 8
# A report's pictures are read from the archive again (docs/results.md); here every file that is
# fetched is one that is scored.
SETTINGS = (f"block_members={BLOCK}", "thumbnails=false")
KILLS = 16


@pytest.fixture(scope="module")
def bucket(s3):
    url = s3.bucket("killed")
    fill_bucket(url, COUNT)
    return url


@pytest.fixture(scope="module")
def expected(bucket):
    """The rows of a run that nothing disturbs, in this process, in other blocks."""
    return scores_of(score_here(f"{bucket}/whole", f"{bucket}/photos", block_members=64)[1])


def scores_of(rows):
    return {uri: (row["image_id"], comparable(row)) for uri, row in rows.items()}


class Run:
    """A run of the bucket's photographs, and the command that scores it."""

    def __init__(self, bucket, name):
        self.source, self.out = f"{bucket}/photos", f"{bucket}/{name}"
        self.directory = RunDirectory.open(self.out)

    @contextmanager
    def command(self):
        """Start the command; end what is left of it."""
        process = start(self.source, self.out, *SETTINGS)
        try:
            yield process
        finally:
            kill_family(process)

    def committed(self):
        """The uris of committed members."""
        tables = current_tables(self.directory, unfinished=True)
        return {uri for table in tables for uri in table["uri"].to_pylist()}

    def finish(self, expected):
        """Let the command end, and compare its rows."""
        with self.command() as process:
            self.finish_command(process, expected)

    def finish_command(self, process, expected):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert scores_of(rows_of(self.out)) == expected
        assert verify_run(self.directory).current == COUNT


def fetched_of(s3):
    """The uris of photographs that were requested since the log was cleared."""
    return [
        f"s3:/{path}"
        for method, path in s3.requests()
        if method == "GET" and "/photos/" in path and path.endswith(".jpg")
    ]


def find_process(process, title):
    """The ids of the command's processes with these words in their command line."""
    return [pid for pid in family_of(process.pid) if title in title_of(pid)]


def test_driver_killed_at_many_moments_resumes(s3, bucket, expected):
    """Half of the kills leave workers and the listing process alive for a moment, and the next
    command starts at once.
    """
    run = Run(bucket, "driver")
    store = run.directory.store
    early = (
        lambda _: store.exists("run.json"),
        lambda process: find_process(process, "ray_app.archives.listing"),
        lambda _: store.exists("manifest/0/00000/_complete"),
    )
    safe, left = set(), set()
    for number in range(KILLS):
        s3.clear_log()
        parts = len(run.directory.parts(0))
        with run.command() as process:
            if number < len(early):
                wait_until(lambda: early[number](process) or process.poll() is not None)  # noqa: B023
                assert process.poll() is None, process.stderr.read()
            else:
                await_parts(run.directory, process, parts + 1)
            if number % 2:
                left.update(family_of(process.pid)[1:])
                process.kill()
                process.wait()
            else:
                kill_family(process)
        assert not safe.intersection(fetched_of(s3)), "what was committed was fetched again"
        safe = run.committed()
        assert len(safe) < COUNT, "the run had ended"
    s3.clear_log()
    run.finish(expected)
    assert not safe.intersection(fetched_of(s3))
    wait_until(lambda: not left.intersection(map(int, filter(str.isdigit, os.listdir("/proc")))))


def test_run_survives_the_killed_source_of_its_items(bucket, expected):
    """`tests/scoring/test_kills.py` kills the workers."""
    run = Run(bucket, "source")
    with run.command() as process:
        await_parts(run.directory, process, 2)
        for pid in wait_until(lambda: find_process(process, "ray::ReadItemSource")):
            os.kill(pid, signal.SIGKILL)
        run.finish_command(process, expected)


def test_second_command_is_refused_and_two_interrupts_end(bucket, expected):
    """A second command on the directory is refused. The second Ctrl-C ends the run at once."""
    run = Run(bucket, "interrupted")
    with run.command() as process:
        await_parts(run.directory, process, 2)
        with run.command() as other:
            _, errors = other.communicate(timeout=60)
        assert other.returncode == ExitCode.USAGE
        assert "is in use by another run" in errors
        os.killpg(process.pid, signal.SIGINT)
        said = next(line for line in process.stderr if "stopping: SIGINT" in line)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == ExitCode.INTERRUPTED, said + errors
        assert "resume: touchstone score " in errors
    safe = run.committed()
    assert 0 < len(safe) < COUNT
    run.finish(expected)


def test_listing_killed_at_three_moments_resumes(tmp_path):
    """A listing that takes longer than scoring: its process is killed before its first portion,
    after it, and while blocks are scored; then the driver is killed while its listing lives. Each
    next command goes on after the last portion.
    """
    members = 240_000
    write_shards(tmp_path / "archive", members)
    card = write_detector(tmp_path / "detector")
    settings = (
        f"detectors=[{card}]", "batch_slots=64", "block_members=2048", "thumbnails=false",
    )  # fmt: skip
    run = RunDirectory.open(str(tmp_path / "run"))
    portions = []

    def begin():
        archive, modules = str(tmp_path / "archive"), [tmp_path / "detector"]
        return start(archive, str(tmp_path / "run"), *settings, modules=modules)

    def count_portions():
        return sum(run.store.exists(f"manifest/0/{number:05d}/_complete") for number in range(9))

    def listing_of(process):
        return find_process(process, "ray_app.archives.listing")

    moments = (
        lambda: True,
        lambda: count_portions() > 0,
        lambda: len(run.parts(0)) > 0,
    )
    for moment in moments:
        process = begin()
        try:
            [pid] = wait_until(lambda: listing_of(process))  # noqa: B023
            wait_until(lambda: moment() or not listing_of(process))  # noqa: B023
            portions.append(count_portions())
            os.kill(pid, signal.SIGKILL)
            _, errors = process.communicate(timeout=200)
            assert process.returncode == ExitCode.CLUSTER, errors
            assert "the process that lists the archive ended with code -9" in errors
        finally:
            kill_family(process)
    first = run.store.read("manifest/0/00000/blocks.parquet")
    process = begin()
    wait_until(lambda: listing_of(process))
    process.kill()
    process.wait()
    process = begin()
    try:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    finally:
        kill_family(process)
    assert portions[0] == 0 < portions[1]
    assert verify_run(run).current == members
    assert run.store.read("manifest/0/00000/blocks.parquet") == first
