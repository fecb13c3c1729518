"""Load a training's images without Ray, by torch's DataLoader over runs of steps: `load_batches`.

A run of steps is a few consecutive steps. The rows of a step are computed from its number
(ray_app.datasets.sampling), so the position of a training in its data is the number of its step.
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
from ray_app.cluster.local_ray import WORKER_ENVIRONMENT, override_environment
from ray_app.errors import ClusterError, TouchstoneError, describe_error
from ray_app.streams.stage import to_touchstone_error
from ray_app.training.job import TrainingJob
from ray_app.training.loader import (
    Batch,
    BatchLoader,
    count_run_steps,
    load_run,
    make_training_loader,
)

AHEAD = 2  # Runs that each process prepares in advance, which is torch's default.
STALL_S = 900.0


class StepRuns(Dataset[Any]):
    """A torch dataset whose item n has the batches of the n-th run of steps.

    A run is a few consecutive steps, whose images are read together. If a run cannot be loaded, the
    item is the error instead. Each loading process opens the files that it needs. The rows are
    mapped into memory, so that all processes share them.

    Args:
        job: The job.
        table: An Arrow file of the training rows.
        runs: The steps of each run.
        rank: Rank of the worker that gets the batches.
        world: Number of workers.
    """

    def __init__(
        self, job: TrainingJob, table: Path, runs: list[range], rank: int, world: int
    ) -> None:
        self._job = replace(job, tables={}, captions=None)
        self._table, self._runs, self._rank, self._world = table, runs, rank, world
        self._loader: BatchLoader | None = None

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, index: int) -> list[tuple[int, Batch]] | TouchstoneError:
        try:
            if self._loader is None:
                rows = pa.ipc.open_file(pa.memory_map(str(self._table))).read_all()
                self._loader = make_training_loader(replace(self._job, tables={"train": rows}))
            return load_run(
                self._loader, self._job.order, self._runs[index], self._rank, self._world
            )
        except Exception as error:
            return to_touchstone_error(error, "the loader of images")


def load_batches(job: TrainingJob, first: int, rank: int, world: int) -> Iterator[Batch]:
    """Return an iterator over one worker's batches, from step `first` to the last step.

    The processes that load batches start at once, and end when the iterator is closed. If a process
    fails, the iterator raises its error. Use the iterator inside `raise_on_loader_death`.

    Args:
        job: The job.
        first: Number of the first step.
        rank: Rank of the worker.
        world: Number of workers.
    """
    exit_stack = ExitStack()
    folder = exit_stack.enter_context(TemporaryDirectory(prefix="touchstone-"))
    table, rows = Path(folder) / "rows.arrow", job.rows("train")
    with pa.OSFile(str(table), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    # The first run is one step, so that training starts as soon as possible.
    starts = [first, *range(first + 1, job.total_steps, count_run_steps(job))]
    runs = [range(*bounds) for bounds in zip(starts, [*starts[1:], job.total_steps], strict=True)]
    earlier_processes = multiprocessing.active_children()
    loader = DataLoader(
        StepRuns(job, table, runs, rank, world),
        batch_size=None,
        num_workers=job.layout.loaders,
        prefetch_factor=AHEAD,
        multiprocessing_context="spawn",  # A fork would copy the locks of running threads.
        worker_init_fn=_ignore_signals,
        timeout=job.config.cluster.stall_timeout_s or STALL_S,
    )
    with override_environment(WORKER_ENVIRONMENT, SECRETS):
        iterator = iter(loader)
    # This callback runs last, when torch has already asked the processes to end.
    for process in multiprocessing.active_children():
        if process not in earlier_processes:
            exit_stack.callback(process.kill)
    return _iterate(iterator, exit_stack)


def _iterate(iterator: Iterator[Any], exit_stack: ExitStack) -> Iterator[Batch]:
    with exit_stack:
        try:
            # A `for` loop would keep `iterator` alive until the processes are killed.
            while (item := next(iterator, None)) is not None:
                if isinstance(item, TouchstoneError):
                    raise item
                for _, batch in item:
                    yield {
                        name: values.numpy() if isinstance(values, torch.Tensor) else values
                        for name, values in batch.items()
                    }
        finally:
            with _ignore_loader_deaths():
                del iterator  # torch then stops its processes.


@contextmanager
def _ignore_loader_deaths() -> Iterator[None]:
    """Let loading processes end inside the block, with any exit code, without an exception.

    Otherwise torch raises an exception to report the death of a process.
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
def raise_on_loader_death() -> Iterator[None]:
    """Convert torch's error about a dead or silent process of a DataLoader to a ClusterError.

    Run the code that iterates over batches inside this `with` block. If such a process dies, torch
    notices it by a signal to this process, and raises at once, even in the middle of other work.

    Raises:
        ClusterError: A process that loads images died or did not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        raise ClusterError(
            f"a process that loads images ended: {describe_error(error)}",
            hint="run the same command again to resume; if memory ran out, use fewer processes by --set workers.loaders=…",
        ) from error


def _ignore_signals(number: int) -> None:
    """Leave signals to the process that trains, which needs images until it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
