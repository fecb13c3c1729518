"""Drivers, workers and machines that die in the middle, are announced to go, or come late: the run
completes, or the same command completes it, with the same scores.
"""

import os
import platform
import random
import shlex
import signal

import pytest

from benchmarks.photographs import write_photographs
from benchmarks.seeded import seeded_card, write_card
from ray_app.errors import ExitCode
from ray_app.runs import RunDirectory, current_tables, verify_run
from tests.make.archives import write_many
from tests.make.leases import is_released
from tests.make.nodes import Nodes
from tests.make.ray_head import title_of
from tests.make.runs import await_parts, rows_of, run_score, score_here, start
from tests.make.small_run import NAME, SPEC
from tests.make.waiting import family_of, kill_family, wait_until
from tests.scoring.kept_run import kept_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
IMAGES, BLOCK = 480, 16
BROKEN = ("00.jpg", "50.jpg")
LEAVES = "1 node will be taken away"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_many(tmp_path_factory.mktemp("kills") / "photos", IMAGES)


@pytest.fixture(scope="module")
def nodes():
    running = Nodes()
    yield running
    kill_family(running.process)


@pytest.fixture(scope="module")
def undisturbed(photographs, tmp_path_factory):
    """The rows of a run that nobody disturbs, in this process, in other blocks."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return same(score_here(out, photographs, block_members=256)[1])


def same(rows):
    """What two runs over one archive must agree on, floats to the bit."""
    return {
        uri: {name: value for name, value in row.items() if name not in ("attempt", "scored_at")}
        for uri, row in rows.items()
    }


def workers_of(nodes, kind):
    return [
        pid
        for pid in family_of(nodes.process.pid)
        if title_of(pid).startswith(f"ray::MapWorker(MapBatches({kind})")
    ]


def finish(process, timeout_s=400):
    """Wait until a command has ended without an error; returns what it printed on stderr."""
    try:
        _, errors = process.communicate(timeout=timeout_s)
    finally:
        kill_family(process)
    assert process.returncode == 0, errors
    return errors


def start_on(nodes, source, out, *settings):
    return start(str(source), str(out), f"cluster.address={nodes.address}", *settings)


class Disturbed:
    """A run on three nodes, to which things happen."""

    def __init__(self, source, out, nodes, chance):
        self.nodes, self.chance, self.run = nodes, chance, RunDirectory.open(str(out))
        self.begin = lambda: start_on(nodes, source, out, f"block_members={BLOCK}")
        self.process, self.told = self.begin(), ""
        self.committed, self.kept, self.sessions = 0, 0, 1

    def suffer(self, kind, most):
        """At a moment counted in committed blocks, not in seconds."""
        moment = self.committed + self.chance.randrange(1, most)
        await_parts(self.run, self.process, moment)
        getattr(self, kind)()
        self.committed = len(self.run.parts(0))
        assert moment <= self.committed < IMAGES // BLOCK, "the run had ended before"

    def driver(self):
        self.process.kill()
        self.process.wait()
        self.go_on(self.begin())

    def actor(self):
        """A worker process."""
        workers = wait_until(lambda: workers_of(self.nodes, "BlockScorer"))
        os.kill(self.chance.choice(workers), signal.SIGKILL)

    def raylet(self):
        """A node."""
        os.kill(self.chance.choice(sorted(self.nodes.raylets.values())), signal.SIGKILL)

    def notice(self):
        """SIGTERM, as a scheduler sends it; then the very command that the last line names."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 130, errors
        assert is_released(self.run.store)
        assert self.run.read_json(f"sessions/{self.sessions:05d}.json")["state"] == "interrupted"
        last = errors.strip().splitlines()[-1]
        assert last.startswith("resume: touchstone score "), errors
        source, *words = shlex.split(last)[3:]
        self.go_on(run_score(source, *words))

    def drain(self):
        """A node at work is announced to go, as a spot machine is (an idle one is gone at once);
        the others finish. No work is done until the driver, which looks every few seconds, has said
        so: a quick machine would be at the end before.
        """
        leaving = min(wait_until(self.nodes_at_work))
        paused = workers_of(self.nodes, "BlockScorer")
        for pid in paused:
            os.kill(pid, signal.SIGSTOP)
        self.nodes.tell("drain", leaving, 30)
        self.told = next(line for line in self.process.stderr if LEAVES in line)
        for pid in paused:
            os.kill(pid, signal.SIGCONT)

    def nodes_at_work(self):
        """Those but the head on which a worker of the run lives."""
        working = set(workers_of(self.nodes, "BlockScorer"))
        raylets = self.nodes.raylets.items()
        return [node for node, raylet in raylets if working & set(family_of(raylet))]

    def go_on(self, process):
        """The next session, which keeps what was committed before it."""
        self.process, self.kept = process, len(self.run.parts(0))
        self.sessions += 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    # `drain` is the last: the node that it takes from the cluster does not come back.
    [("driver", "actor", "raylet"), ("notice",), ("drain",)],
    ids="-".join,
)
def test_disturbed_run_has_the_rows_of_an_undisturbed_one(
    kinds, photographs, nodes, undisturbed, tmp_path
):
    nodes.tell("count")
    while len(nodes.raylets) < 2:
        nodes.tell("add")
    disturbed = Disturbed(photographs, tmp_path / "run", nodes, random.Random(str(kinds)))
    try:
        for kind in kinds:
            disturbed.suffer(kind, most=IMAGES // BLOCK // (2 * len(kinds)))
    except BaseException:
        kill_family(disturbed.process)
        raise
    errors = finish(disturbed.process)
    assert (LEAVES in disturbed.told + errors) == ("drain" in kinds)
    rows = rows_of(tmp_path / "run")
    assert same(rows) == undisturbed
    assert len({row["image_id"] for row in rows.values()}) == IMAGES
    session = disturbed.run.read_json("summary.json")["session"]
    assert session["number"] == disturbed.sessions
    if disturbed.sessions > 1:
        assert session["rows"] <= IMAGES - (disturbed.kept - 1) * BLOCK, (
            "what was committed was scored again"
        )


def attempts_of(run):
    """In which session each committed member was scored."""
    rows = current_tables(run, ["image_id", "attempt"], unfinished=True)
    pairs = [row for table in rows for row in table.to_pylist()]
    attempts = {row["image_id"]: row["attempt"] for row in pairs}
    assert len(attempts) == len(pairs), "a member has two rows"
    return attempts


@pytest.mark.slow
def test_run_on_embeddings_killed_at_any_moment_resumes(tmp_path):
    """Killed before a manifest is there and at moments after it: what is committed stays."""
    count = 2000
    names = [f"{number:04}.jpg" for number in range(count)]
    source = kept_run(tmp_path / "run", SPEC, NAME, names, BROKEN)
    new = RunDirectory.open(str(tmp_path / "new"))
    moments = (
        lambda: new.exists(),
        *(lambda parts=parts: len(new.parts(0)) >= parts for parts in (1, 60, 120)),
    )
    before = {}
    for number, is_reached in enumerate(moments):
        process = start(f"features::{source.store.url}", new.store.url)
        try:
            wait_until(lambda: is_reached() or process.poll() is not None)  # noqa: B023
            assert process.poll() is None, process.stderr.read()
            if number % 2:  # workers live on for a moment
                process.kill()
                process.wait()
        finally:
            kill_family(process)
        attempts = attempts_of(new) if number else {}
        assert before.items() <= attempts.items()
        assert len(attempts) < count, "the run had ended"
        before = attempts
    process = start(f"features::{source.store.url}", new.store.url)
    workers = wait_until(lambda: workers_below(process) or process.poll() is not None)
    os.kill(workers[0], signal.SIGKILL)
    finish(process)
    assert before.items() <= attempts_of(new).items()
    assert verify_run(new).current == count
    assert same(rows_of(new.store.url)).keys() == rows_of(source.store.url).keys()


def workers_below(process):
    """The workers of a command that started its own Ray."""
    family = family_of(process.pid)
    return [pid for pid in family if "MapBatches(StoredBlockScorer)" in title_of(pid)]


@pytest.mark.slow
def test_late_gpu_nodes_are_used(tmp_path):
    card = write_card(seeded_card("community-forensics-vits384", tmp_path), tmp_path / "card.yaml")
    write_photographs(tmp_path / "photos", 192, size=(320, 320))
    nodes, run = Nodes(1), RunDirectory.open(str(tmp_path / "run"))
    settings = (
        f"detectors=[{card}]", "block_members=8", "batch_slots=4",
        "device=cpu", "cluster.gpus=4", "cluster.cpus=5",
    )  # fmt: skip
    process = start_on(nodes, tmp_path / "photos", tmp_path / "run", *settings)
    try:
        wait_until(lambda: run.parts(0) or process.poll() is not None)
        assert len(workers_of(nodes, "TensorScorer")) < 4
        for _ in range(2):
            nodes.tell("add")
        wait_until(
            lambda: len(workers_of(nodes, "TensorScorer")) == 4 or process.poll() is not None
        )
        assert process.poll() is None, process.communicate()[1]
        finish(process)
    finally:
        kill_family(process)
        kill_family(nodes.process)
    rows = rows_of(tmp_path / "run")
    assert (len(rows), {row["status"] for row in rows.values()}) == (192, {"ok"})
    session = run.read_json("summary.json")["session"]
    assert (session["layout"], session["workers"]) == ("split", 5)


@pytest.mark.slow
def test_run_survives_a_killed_scorer_and_gpu_node(photographs, undisturbed, tmp_path):
    """Decoders, a scorer for each of two GPUs that are only declared, and a committer."""
    nodes, run = Nodes(1), RunDirectory.open(str(tmp_path / "run"))
    settings = (f"block_members={BLOCK}", "device=cpu", "cluster.gpus=2", "cluster.cpus=3")
    process = start_on(nodes, photographs, tmp_path / "run", *settings)

    def scorer_nodes():
        """The nodes but the head on which a scorer lives."""
        scorers = set(workers_of(nodes, "TensorScorer"))
        return [one for one in nodes.raylets.values() if scorers.intersection(family_of(one))]

    try:
        await_parts(run, process, 2)
        os.kill(workers_of(nodes, "TensorScorer")[0], signal.SIGKILL)
        await_parts(run, process, len(run.parts(0)) + 2)
        os.kill(wait_until(scorer_nodes)[0], signal.SIGKILL)
        finish(process)
    finally:
        kill_family(process)
        kill_family(nodes.process)
    assert same(rows_of(tmp_path / "run")) == undisturbed
    session = run.read_json("summary.json")["session"]
    assert (session["layout"], session["number"]) == ("split", 1)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["raylet/raylet", "gcs/gcs_server"])
def test_run_whose_ray_was_killed_is_reported(server, photographs, undisturbed, tmp_path):
    """The driver reports it, unless Ray's core ends the driver first: then the next command does."""
    run = RunDirectory.open(str(tmp_path / "run"))
    process = start(str(photographs), run.store.url, f"block_members={BLOCK}")
    try:
        await_parts(run, process, 2)
        [killed] = [pid for pid in family_of(process.pid) if server in title_of(pid).split(" ")[0]]
        os.kill(killed, signal.SIGKILL)
        _, errors = process.communicate(timeout=200)
    finally:
        kill_family(process)
    was_ended_by_ray = not is_released(run.store)
    committed = sum(table.num_rows for table in current_tables(run, unfinished=True))
    next_errors = finish(start(str(photographs), run.store.url, f"block_members={BLOCK}"))
    report = f"host={platform.node()} pid={process.pid} reason='the last command there ended"
    if was_ended_by_ray:
        assert process.returncode != 0
        assert report in next_errors
    else:
        assert process.returncode == ExitCode.CLUSTER
        assert "→ run the same command again to resume" in errors
        assert report not in next_errors
    assert f"{committed} done before" in next_errors
    assert same(rows_of(run.store.url)) == undisturbed
