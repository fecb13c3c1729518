"""A training's images without Ray: torch's DataLoader over runs of steps (`load_batches`).

Which rows a step has is arithmetic (ray_app.datasets.sampling), so the position of a training in
its data is its step.
"""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from ray_app.child_process import SECRETS
from ray_app.cluster.local_ray import WORKER_ENVIRONMENT, changed_environment
from ray_app.errors import ClusterError, TouchstoneError, describe_error
from ray_app.streams.stage import translated
from ray_app.training.job import TrainingJob
from ray_app.training.loader import Batch, BatchLoader, load_run, run_length, training_loader

AHEAD = 2  # runs that each process prepares in advance; torch's own default
STALL_S = 900.0


class StepRuns(Dataset[Any]):
    """Runs of neighbouring steps; item n is the batches of run n, or the error that prevented them.

    What a run needs is opened in the process that loads it. The rows are mapped into memory, so that
    all processes share them.
    """

    def __init__(
        self, job: TrainingJob, table: Path, runs: list[range], rank: int, world: int
    ) -> None:
        self._job = replace(job, tables={}, captions=None)
        self._table, self._runs, self._rank, self._world = table, runs, rank, world
        self._loader: BatchLoader | None = None

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, number: int) -> list[tuple[int, Batch]] | TouchstoneError:
        try:
            if self._loader is None:
                rows = pa.ipc.open_file(pa.memory_map(str(self._table))).read_all()
                self._loader = training_loader(replace(self._job, tables={"train": rows}))
            return load_run(
                self._loader, self._job.order, self._runs[number], self._rank, self._world
            )
        except Exception as error:
            return translated(error, "the loader of images")


def load_batches(job: TrainingJob, first: int, rank: int, world: int) -> Iterator[Batch]:
    """Return the batches of one of `world` workers from step `first` on, in order. The processes
    that load them start at once, and end when the iterator is closed.

    The iterator raises what a process met. Read it inside of `noticing_deaths`.
    """
    ending = ExitStack()
    folder = ending.enter_context(TemporaryDirectory(prefix="touchstone-"))
    table, rows = Path(folder) / "rows.arrow", job.rows("train")
    with pa.OSFile(str(table), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    # The first run is one step, so that training begins as soon as possible.
    starts = [first, *range(first + 1, job.total_steps, run_length(job))]
    runs = [range(*bounds) for bounds in zip(starts, [*starts[1:], job.total_steps], strict=True)]
    before = multiprocessing.active_children()
    loader = DataLoader(
        StepRuns(job, table, runs, rank, world),
        batch_size=None,
        num_workers=job.layout.loaders,
        prefetch_factor=AHEAD,
        multiprocessing_context="spawn",  # A fork would copy the locks of running threads.
        worker_init_fn=_ignore_signals,
        timeout=job.config.cluster.stall_timeout_s or STALL_S,
    )
    with changed_environment(WORKER_ENVIRONMENT, SECRETS):
        arriving = iter(loader)
    # The last to be called: torch has asked them to end by then.
    for process in multiprocessing.active_children():
        if process not in before:
            ending.callback(process.kill)
    return _opened(arriving, ending)


def _opened(arriving: Iterator[Any], ending: ExitStack) -> Iterator[Batch]:
    with ending:
        try:
            # A `for` would keep `arriving` alive until the processes are killed.
            while (found := next(arriving, None)) is not None:
                if isinstance(found, TouchstoneError):
                    raise found
                for _, batch in found:
                    yield {
                        name: values.numpy() if isinstance(values, torch.Tensor) else values
                        for name, values in batch.items()
                    }
        finally:
            with _expecting_deaths():
                del arriving  # torch ends its processes.


@contextmanager
def _expecting_deaths() -> Iterator[None]:
    """Let processes that load images end inside the block, with any exit code, without the exception
    by which torch reports the death of one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


@contextmanager
def noticing_deaths() -> Iterator[None]:
    """Raise ClusterError if a process that loads images dies or is silent inside the block.

    torch notices a death by a signal to this process, and raises at once, whatever it does.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        raise ClusterError(
            f"a process that loads images ended: {describe_error(error)}",
            hint="the same command resumes; if memory ran out, fewer processes need less: --set workers.loaders=…",
        ) from error


def _ignore_signals(number: int) -> None:
    """Leave signals to the process that trains, which needs images until it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
