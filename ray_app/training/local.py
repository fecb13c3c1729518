"""Run the training loop without Ray: `train_here`.

It runs in this process alone, or in each of the processes that torchrun started.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from typing_extensions import override

from ray_app.training import local_data, loop
from ray_app.training.job import TrainingJob
from ray_app.training.learner import Batch
from ray_app.training.progress import TrainingProgress
from ray_app.training.worker import Worker

# Before the first step, all processes wait for rank 0, which indexes images and computes
# embeddings. If a process dies, torchrun stops the others.
GROUP_TIMEOUT = timedelta(days=1)


def train_here(job: TrainingJob) -> None:
    """Train without Ray until the last step is in a complete checkpoint.

    Raises:
        KeyboardInterrupt: A signal asked the training to stop. A checkpoint was saved, unless a
            second signal came before.
        TouchstoneError: The training failed, for example because the loss is not finite or too many
            images cannot be read.
    """
    join_torchrun(job.layout.device)
    progress = TrainingProgress(job.total_steps) if torchrun_rank() == 0 else None
    worker = LocalWorker(job.layout.device, progress)
    showing = closing(progress) if progress else nullcontext()
    with showing, worker.handle_signals(), local_data.raise_on_loader_death():
        is_over = loop.train(job, worker)
    if worker.world > 1:
        dist.destroy_process_group()
    if not is_over:
        raise KeyboardInterrupt


class LocalWorker(Worker):
    """The worker of a training without Ray: the only process, or a process that torchrun started.

    Args:
        device: `cpu` or `cuda`.
        progress: The progress line of rank 0. None in all other processes.
    """

    def __init__(self, device: str, progress: TrainingProgress | None) -> None:
        super().__init__(torchrun_rank(), torchrun_world(), _select_device(device))
        self._progress, self._signals, self._announced = progress, 0, False

    @override
    def batches(self, job: TrainingJob, first: int) -> Iterator[Batch | None]:
        return local_data.load_batches(job, first, self.rank, self.world)

    @override
    def is_stopping(self) -> bool:
        if self._signals and not self._announced:
            self._announced = True
            self.say("stopping: saving a checkpoint; a second signal stops at once")
        return self._signals > 0

    @override
    def show(self, line: dict[str, Any]) -> None:
        if self._progress is not None:
            self._progress.show(line)

    @override
    def beat(self) -> None:
        if self._progress is not None:
            self._progress.redraw()

    @override
    def say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.say(text)

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM inside the block.

        The first signal asks the training to stop, and the next one raises KeyboardInterrupt.
        """
        handlers = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {
                signal_number: signal.signal(signal_number, self._take_signal)
                for signal_number in (signal.SIGINT, signal.SIGTERM)
            }
        try:
            yield
        finally:
            for signal_number, handler in handlers.items():
                signal.signal(signal_number, handler)

    def _take_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            raise KeyboardInterrupt(signal.Signals(number).name)


def join_torchrun(device: str) -> None:
    """Connect this process with the other processes of torchrun, and wait until all are connected.

    Without torchrun, or if the process is connected already, only the process's GPU is selected.
    """
    own_device = _select_device(device)
    if own_device != "cpu":
        torch.cuda.set_device(own_device)
    if torchrun_world() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo" if own_device == "cpu" else "nccl", timeout=GROUP_TIMEOUT)


def _select_device(device: str) -> str:
    """Return the device of this process among the devices of its machine."""
    return f"cuda:{_get_torchrun_variable('LOCAL_RANK', 0)}" if device == "cuda" else device


def is_under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return bool(dist.is_available() and dist.is_torchelastic_launched())


def torchrun_rank() -> int:
    """Return the rank of this process in torchrun; 0 without torchrun."""
    return _get_torchrun_variable("RANK", 0)


def torchrun_world() -> int:
    """Return the number of processes of torchrun; 1 without torchrun."""
    return _get_torchrun_variable("WORLD_SIZE", 1)


def torchrun_machines() -> int:
    """Return the number of machines that torchrun uses; 1 without torchrun."""
    return torchrun_world() // _get_torchrun_variable("LOCAL_WORLD_SIZE", 1)


def _get_torchrun_variable(name: str, otherwise: int) -> int:
    return int(os.environ[name]) if is_under_torchrun() else otherwise
