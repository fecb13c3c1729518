"""Systems that fail under a run: a full disk, too little memory, a deadly block. Each stops with
exit code 5 and can be resumed.
"""

import os
import shutil
import signal
import subprocess

import pyarrow as pa
import pytest

from ray_app.archives import BlockRef
from ray_app.errors import RESUMABLE, ClusterError, ExitCode, StorageError
from ray_app.runs import RunDirectory, current_tables
from ray_app.scoring import engine
from ray_app.scoring.control import MAX_DEATHS, Control, attempt_block
from ray_app.scoring.stages import BlockScorer
from tests.make.leases import is_released
from tests.make.runs import files_below

SMALL = {"block_members": 2, "batch_slots": 2}
DEADLY_BLOCK = 1


@pytest.fixture
def parts_on_a_disk_of_their_own(tmp_path):
    """Mounts it anew, with other options, when called."""
    folder = tmp_path / "run" / "parts"
    folder.mkdir(parents=True)

    def mount(*options):
        return subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)

    if mount("-t", "tmpfs", "-o", "size=20m", "tmpfs").returncode:
        pytest.skip("mounting is not permitted here")
    yield lambda options: mount("-o", f"remount,{options}").check_returncode()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_output_stops_the_run_which_resumes(
    score, archive, tmp_path, parts_on_a_disk_of_their_own
):
    parts_on_a_disk_of_their_own("size=16k")
    with pytest.raises(StorageError, match="No space left") as caught:
        score(archive, **SMALL)
    assert caught.value.exit_code is ExitCode.CLUSTER
    assert RESUMABLE in caught.value.__notes__
    run = RunDirectory.open(str(tmp_path / "run"))
    assert is_released(run.store)
    committed = sum(table.num_rows for table in current_tables(run, unfinished=True))
    parts_on_a_disk_of_their_own("rw,size=20m")
    finished, rows = score(archive, **SMALL)
    assert len(rows) == len(files_below(archive))
    assert finished.summary["session"]["rows"] == len(rows) - committed


def test_deleted_run_directory_is_reported(score, archive, tmp_path, monkeypatch):
    run, work = RunDirectory.open(str(tmp_path / "run")), BlockScorer.work

    def delete_and_work(self, message):
        if message.block == 1:
            shutil.rmtree(run.store.url)
        return work(self, message)

    with monkeypatch.context() as patched:
        patched.setattr(BlockScorer, "work", delete_and_work)
        message = f"{run.store.url}: the run was deleted while this command scored; left in the directory: "
        with pytest.raises(StorageError, match=message) as caught:
            score(archive, **SMALL)
    assert caught.value.exit_code is ExitCode.CLUSTER
    assert RESUMABLE not in caught.value.__notes__
    assert not run.store.names("sessions")
    shutil.rmtree(run.store.url, ignore_errors=True)
    _, rows = score(archive, **SMALL)
    assert len(rows) == len(files_below(archive))


def attempt(control, block):
    ref = BlockRef(0, block, 2, 9, "blocks.parquet", 0)
    return attempt_block(control, "BlockScorer", ref, lambda: "a.jpg", is_first=True)


def test_block_that_kills_its_workers_is_not_started_again():
    control = Control(5)
    for _ in range(MAX_DEATHS):
        with attempt(control, 7), attempt(control, 8):
            pass
        control.begin("BlockScorer", (0, 7), is_first=True)  # A worker that dies never ends it.
    message = rf"block 7 of manifest 0 \(2 files from a.jpg on\): {MAX_DEATHS} workers died"
    with pytest.raises(ClusterError, match=message) as caught, attempt(control, 7):
        pytest.fail("begun once more")
    assert "cluster.workers" in caught.value.hint
    with attempt(control, 8):
        pass


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


WANTS = [
    MemoryError("Unable to allocate 3 GiB"),
    pa.ArrowMemoryError("malloc of size 9 failed"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    OutOfMemoryError("CUDA out of memory."),
]


def test_out_of_memory_names_the_block_and_the_setting():
    control = Control(5)
    for error in WANTS:
        message = r"block 7 .*: out of memory"
        with pytest.raises(ClusterError, match=message) as caught, attempt(control, 7):
            raise error
        assert caught.value.exit_code is ExitCode.CLUSTER
        for setting in ("cluster.workers", "batch_slots"):
            assert setting in caught.value.hint
    with pytest.raises(ZeroDivisionError), attempt(control, 7):
        raise ZeroDivisionError


class DeadlyScorer(BlockScorer):
    """A worker that one block kills, every time, as the system's killer of processes would."""

    def work(self, message):
        with self._start_block(message):
            if message.block == DEADLY_BLOCK:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().work(message)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_block_that_always_kills_its_worker_ends_the_run(
    score_on_ray, archive, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(engine, "BlockScorer", DeadlyScorer)
        message = f"block {DEADLY_BLOCK} of manifest 0.*{MAX_DEATHS} workers died"
        with pytest.raises(ClusterError, match=message) as caught:
            score_on_ray(archive, **SMALL)
    assert RESUMABLE in caught.value.__notes__
    parts = RunDirectory.open(str(tmp_path / "run")).parts(0)
    assert len(parts) > 1, "the other blocks were held up"
    _, rows = score_on_ray(archive, **SMALL)
    assert len(rows) == len(files_below(archive))
