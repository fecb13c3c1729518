"""Trainings that are interrupted in every way, against the same one left in peace; and two workers
against one.
"""

import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ray_app.storage import Store
from ray_app.training import checkpoints
from tests.scoring.conftest import family_of, kill_family
from tests.scoring.conftest import wait_until as waited
from tests.training.conftest import facts_of, finish, lines, noted, start

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]

EPOCHS, BATCH, EVERY = 60, 8, 40
# Without norms of batches, which are each worker's own, so that two workers learn as one does.
SETTINGS = {
    "card": {"architecture": {"arguments": {"widths": [32, 48, 64]}}},
    "initial": {"start": "card"},
    "optimiser": {"rate": 3.0e-4},
    "loop": {"epochs": EPOCHS},
    "validation": {"every": 400},
    "faults": {"checkpoint_every": EVERY, "record_samples": True},
}


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

    def begin(out, **settings):
        started.append(start(labelled, tmp_path, out, **(SETTINGS | settings)))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            kill_family(process)


wait_until = partial(waited, timeout_s=400)


def committed(out):
    """The last step that is in a complete checkpoint."""
    latest = checkpoints.latest_checkpoint(Store.open(str(out)))
    return 0 if latest is None else latest.step


def writing_times(out, step):
    """When the notes of what comes before `step` were written, by their names."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in (out / "samples").iterdir()
        if int(path.name[:8]) < step
    }


def workers_of(process):
    return [pid for pid in family_of(process.pid) if b"RayTrainWorker" in called(pid)]


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


def assert_same_training(out, other):
    ours, theirs = lines(out, "metrics.jsonl"), lines(other, "metrics.jsonl")
    assert [line["step"] for line in ours] == list(range(len(theirs)))
    assert rows_by_step(out) == rows_by_step(other)
    np.testing.assert_allclose(
        [line["loss"] for line in ours], [line["loss"] for line in theirs], rtol=2e-3
    )
    assert facts_of(out)["best_step"] == facts_of(other)["best_step"]
    assert abs(facts_of(out)["test"]["auc"] - facts_of(other)["test"]["auc"]) < 0.02


def assert_no_orphans(out):
    store = Store.open(str(out))
    folders = {name for name in store.folders("ray/train") if name.startswith("step-")}
    assert folders == {entry.name for entry in checkpoints.list_checkpoints(store)}


def test_interrupted_in_every_way_it_ends_as_if_left_in_peace(training, in_peace, tmp_path):
    out = tmp_path / "out"

    process = training(out)
    wait_until(lambda: committed(out))
    process.send_signal(signal.SIGTERM)
    code, told = finish(process)
    assert code == 130, told
    assert "resume:" in told.splitlines()[-1]
    saved = committed(out)
    assert saved >= EVERY

    process = training(out)
    wait_until(lambda: committed(out) > saved)
    (worker,) = workers_of(process)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: [pid for pid in workers_of(process) if pid != worker])
    known = committed(out)
    before = writing_times(out, known)
    wait_until(lambda: committed(out) > known)
    kill_family(process)
    assert writing_times(out, known) == before, "what was committed was done again"

    store = Store.open(str(out))
    store.write("ray/train/step-00000007-orphaned/model.safetensors", b"uploaded, never committed")
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


def lose(path):
    path.unlink()


def rename(path):
    path.rename(path.with_name("train_state.json"))


def tear(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rename_keys(path):
    path.write_bytes(
        path.read_bytes()
        .replace(b"checkpoint_results", b"results")
        .replace(b"latest_checkpoint_result", b"latest")
    )


def test_training_resumes_whatever_became_of_rays_list(training, tmp_path):
    out, saved = tmp_path / "out", 0
    for spoil in (lose, rename, tear, rename_keys, None):
        before = writing_times(out, saved) if saved else {}
        process = training(out, loop={"epochs": 50 * EPOCHS})  # None of them reaches the end.
        wait_until(lambda: committed(out) > saved)  # noqa: B023 - it returns in this round
        process.send_signal(signal.SIGTERM)
        code, told = finish(process)
        assert code == 130, told
        assert writing_times(out, saved) == before, "what was committed was done again"
        saved = committed(out)
        assert (
            (out / "ray/train")
            .joinpath(checkpoints.latest_checkpoint(Store.open(str(out))).name, "model.safetensors")
            .exists()
        )
        if spoil is not None:
            spoil(out / "ray/train/checkpoint_manager_snapshot.json")


def test_two_workers_on_s3_see_disjoint_rows_and_learn_the_same(training, in_peace, s3):
    out = f"{s3.bucket('training')}/run"
    process = training(out, workers={"count": 2, "cpus": 0.5})
    wait_until(lambda: committed(out) > EVERY)
    kill_family(process)
    code, told = finish(training(out, workers={"count": 2, "cpus": 0.5}))
    assert code == 0, told
    seen, alone = rows_by_step(out), rows_by_step(in_peace)
    for step in range(len(alone)):
        assert [*seen[step, 0], *seen[step, 1]] == alone[step, 0]
        assert len(seen[step, 0]) == len(seen[step, 1]) == BATCH // 2
    ours, theirs = (
        [line["loss"] for line in lines(place, "metrics.jsonl")[:50]] for place in (out, in_peace)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0.01)
    assert_no_orphans(out)
