"""Trainings that are interrupted in every way, against the same one left in peace: in one process,
under torchrun, and in two workers of Ray Train.
"""

import os
import re
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from ray_app.storage import Store
from ray_app.training import checkpoints
from tests.make.nodes import Nodes
from tests.make.servers.faulty_proxy import FaultyProxy, Handler
from tests.make.waiting import family_of, kill_family
from tests.make.waiting import wait_until as waited
from tests.training.trainings import committed, facts_of, finish, lines, noted, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

EPOCHS, BATCH, EVERY = 20, 8, 20
UPLOAD_S = 5.0
# Without norms of batches, which are each worker's own, so that two workers learn as one does.
SETTINGS = {
    "card": {"architecture": {"arguments": {"widths": [32, 48, 64]}}},
    "initial": {"start": "card"},
    "optimiser": {"rate": 3.0e-4},
    "loop": {"epochs": EPOCHS},
    "validation": {"every": 60},
    "faults": {"checkpoint_every": EVERY, "record_samples": True},
}
ENDLESS = {"loop": {"epochs": 500 * EPOCHS}, "validation": {"every": 10**6}}
TWO = {"count": 2, "cpus": 0.5}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
MOMENTS = (
    ("ray_app.training.learner:Learner.step", 30),
    ("ray_app.training.checkpoints:mark_complete", 2),
    ("ray_app.training.validate:score_batches", 1),
    ("ray_app.training.checkpoints:_remove", 1),
    ("ray_app.training.run_directory:write_events", 3),
)


@pytest.fixture(scope="module")
def in_peace(labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peace")
    code, told = finish(start(labelled, folder, folder / "out", **SETTINGS))
    assert code == 0, told
    return folder / "out"


@pytest.fixture
def training(labelled, tmp_path):
    """Starts the training into a place; what still runs at the end of the test is ended."""
    started = []

    def begin(out, *, by=(), **settings):
        started.append(start(labelled, tmp_path, out, by=by, **(SETTINGS | settings)))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            kill_family(process)


wait_until = partial(waited, timeout_s=400)


def processes_of(process, name):
    return [pid for pid in family_of(process.pid) if name in called(pid)]


def called(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def rows_by_step(out):
    """(step, rank) → rows, from the recorded samples; none twice."""
    seen = [
        ((line["step"], line["rank"]), line["rows"])
        for chunk in noted(out, "samples").values()
        for line in chunk
    ]
    assert len({key for key, _ in seen}) == len(seen), "a step was noted twice"
    return dict(seen)


def assert_every_row_once_an_epoch(out):
    seen = [row for _, rows in sorted(rows_by_step(out).items()) for row in rows]
    rows = facts_of(out)["data"]["splits"]["train"]["images"]
    for epoch in range(EPOCHS):
        assert Counter(seen[epoch * rows : (epoch + 1) * rows]) == Counter(range(rows)), (
            f"epoch {epoch}"
        )


def weights_of(out):
    return Store.open(str(out)).read("model.safetensors")


def assert_same_training(out, other):
    ours, theirs = lines(out, "metrics.jsonl"), lines(other, "metrics.jsonl")
    assert [line["step"] for line in ours] == list(range(len(theirs)))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    assert rows_by_step(out) == rows_by_step(other)
    for name in ("best_step", "validations", "test"):
        assert facts_of(out)[name] == facts_of(other)[name]
    assert weights_of(out) == weights_of(other)


def assert_like(out, other):
    """Two workers add up gradients in another order than one does."""
    ours, theirs = (load(weights_of(place)) for place in (out, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], atol=1e-4)


def assert_no_orphans(out):
    store = Store.open(str(out))
    assert set(store.folders("checkpoints")) == {
        entry.name for entry in checkpoints.list_checkpoints(store)
    }


def test_training_killed_at_five_moments_ends_the_same(training, in_peace, tmp_path):
    out = tmp_path / "out"
    for place, count in MOMENTS:
        process = training(out, by=[sys.executable, "-m", "tests.training.killed_at", place, count])
        code, told = finish(process)
        assert code == -signal.SIGKILL, told
    store = Store.open(str(out))
    store.write("checkpoints/step-00000007-orphaned/model.safetensors", b"half a checkpoint")
    code, told = finish(training(out))
    assert code == 0, told
    assert_same_training(out, in_peace)
    for place in (out, in_peace):
        assert_every_row_once_an_epoch(place)
        assert_no_orphans(place)
        assert {"card.yaml", "model.safetensors", "report.html", "metrics.jsonl"} <= set(
            os.listdir(place)
        )
        assert sorted(os.listdir(place / "scores")) == ["test.parquet", "validation.parquet"]


def test_training_saves_its_last_step_on_a_signal(training, tmp_path):
    out = tmp_path / "out"
    for number in (signal.SIGTERM, signal.SIGINT):
        before = committed(out)
        process = training(out, **ENDLESS)
        wait_until(lambda: committed(out) > before)  # noqa: B023 - it returns in this round
        # As a terminal does: the processes that load images get it, too.
        os.killpg(process.pid, number)
        code, told = finish(process)
        assert code == 130, told
        assert "resume:" in told.splitlines()[-1]
        assert "Traceback" not in told
        steps = {line["step"] for chunk in noted(out, "history").values() for line in chunk}
        assert steps == set(range(committed(out))), "what was learned is saved"
        shown = re.findall(r"step ([\d,]+)/", told)[-1]
        assert committed(out) == int(shown.replace(",", "")), "it saved at once"


def test_training_resumes_after_a_loader_died(training, tmp_path):
    out = tmp_path / "out"
    process = training(out, **ENDLESS)
    wait_until(lambda: committed(out))
    (loader,) = [
        pid for pid in processes_of(process, b"multiprocessing.spawn") if pid != process.pid
    ]
    os.kill(loader, signal.SIGKILL)
    code, told = finish(process)
    assert code == 5, told
    assert "a process that loads images ended" in told
    assert "resume:" in told.splitlines()[-1]


@pytest.mark.ray
def test_two_workers_learn_the_same_under_torchrun_and_ray(training, in_peace, tmp_path, s3):
    """Each loses what it can lose on the way: a process, its driver."""
    by_torchrun, by_ray = tmp_path / "torchrun", f"{s3.bucket('training')}/run"
    process = training(by_torchrun, by=[*TORCHRUN, "-m", "ray_app.cli"])
    wait_until(lambda: committed(by_torchrun) > EVERY)
    os.kill(processes_of(process, b"ray_app.cli")[-1], signal.SIGKILL)
    code, told = finish(process)
    assert code == 1, told
    code, told = finish(training(by_torchrun, by=[*TORCHRUN, "-m", "ray_app.cli"]))
    assert code == 0, told

    process = training(by_ray, workers=TWO)
    wait_until(lambda: committed(by_ray) > EVERY)
    before = processes_of(process, b"RayTrainWorker")
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: set(processes_of(process, b"RayTrainWorker")) - set(before))
    saved = committed(by_ray)
    wait_until(lambda: committed(by_ray) > saved)
    kill_family(process)
    code, told = finish(training(by_ray, workers=TWO))
    assert code == 0, told

    assert_same_training(by_ray, by_torchrun)
    assert_like(by_ray, in_peace)
    seen, alone = rows_by_step(by_ray), rows_by_step(in_peace)
    for step in range(len(alone)):
        assert [*seen[step, 0], *seen[step, 1]] == alone[step, 0]
        assert len(seen[step, 0]) == len(seen[step, 1]) == BATCH // 2
    assert_no_orphans(by_ray)
    assert_no_orphans(by_torchrun)


@pytest.mark.ray
def test_training_ends_the_same_after_a_node_was_lost(training, in_peace, tmp_path):
    """A node has room for one worker, and one node is left over."""
    nodes, out = Nodes(), tmp_path / "out"
    try:
        workers = {"count": 2, "cpus": 0.75}
        process = training(out, workers=workers, cluster={"cpus": None, "address": nodes.address})
        wait_until(lambda: committed(out) > EVERY)
        lost = next(
            raylet
            for raylet in nodes.raylets.values()
            if any(b"RayTrainWorker" in called(pid) for pid in family_of(raylet))
        )
        os.kill(lost, signal.SIGKILL)
        code, told = finish(process)
        assert code == 0, told
    finally:
        kill_family(nodes.process)
    assert_like(out, in_peace)
    seen, alone = rows_by_step(out), rows_by_step(in_peace)
    for step in range(len(alone)):
        assert [*seen[step, 0], *seen[step, 1]] == alone[step, 0]
    assert_no_orphans(out)


@pytest.mark.ray
def test_workers_of_ray_save_on_a_signal(training, tmp_path):
    out = tmp_path / "out"
    process = training(out, workers=TWO, **ENDLESS, faults={"checkpoint_every": 250})
    wait_until(lambda: committed(out))
    process.send_signal(signal.SIGTERM)
    code, told = finish(process)
    assert code == 130, told
    assert "resume:" in told.splitlines()[-1]
    assert committed(out) % 250, "it saved at once"


class SlowUploads(Handler):
    """Before a real S3 server: the weights of a checkpoint take longer than the end of a process."""

    def _asked(self, body):
        if self.command == "PUT" and self.path.endswith("/model.safetensors"):
            time.sleep(UPLOAD_S)  # the fault itself
        return super()._asked(body)


@pytest.mark.ray
def test_workers_of_ray_stop_after_the_upload(training, s3, monkeypatch):
    """Every step is saved, so one is always being uploaded."""
    out = f"{s3.bucket('slow-uploads')}/run"
    with FaultyProxy(s3.url, share=0.0, handler=SlowUploads) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        process = training(out, workers=TWO, **ENDLESS, faults={"checkpoint_every": 1})
        wait_until(lambda: committed(out) > 1)
        process.send_signal(signal.SIGTERM)
        code, told = finish(process)
        assert code == 130, told
        steps = {line["step"] for chunk in noted(out, "history").values() for line in chunk}
        assert steps == set(range(committed(out))), "what was learned is saved"
