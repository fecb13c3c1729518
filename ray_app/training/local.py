"""The loop without Ray (`train_here`): in this process alone, or in each of the processes that
torchrun started.
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

from ray_app.training import local_data, loop
from ray_app.training.job import TrainingJob
from ray_app.training.learner import Batch
from ray_app.training.progress import TrainingProgress
from ray_app.training.worker import Worker

# Before the first step, all wait for rank 0, which indexes images and computes embeddings. If a
# process dies, torchrun ends the others.
GROUP_TIMEOUT = timedelta(days=1)


def train_here(job: TrainingJob) -> None:
    """Train until the last step is in a complete checkpoint.

    Raises what the loop raises, and KeyboardInterrupt, after a checkpoint was saved, if a signal
    asked the training to stop.
    """
    join_torchrun(job.layout.device)
    progress = TrainingProgress(job.total_steps) if torchrun_rank() == 0 else None
    worker = LocalWorker(job.layout.device, progress)
    showing = closing(progress) if progress else nullcontext()
    with showing, worker.listening(), local_data.noticing_deaths():
        is_over = loop.train(job, worker)
    if worker.world > 1:
        dist.destroy_process_group()
    if not is_over:
        raise KeyboardInterrupt


class LocalWorker(Worker):
    """This process: the only worker, or one of those that torchrun started.

    Args:
        device: `cpu` or `cuda`.
        progress: Where rank 0 shows its steps.
    """

    def __init__(self, device: str, progress: TrainingProgress | None) -> None:
        super().__init__(torchrun_rank(), torchrun_world(), _own_device(device))
        self._progress, self._signals, self._announced = progress, 0, False

    def batches(self, job: TrainingJob, first: int) -> Iterator[Batch | None]:
        """See `Worker`."""
        return local_data.load_batches(job, first, self.rank, self.world)

    def is_stopping(self) -> bool:
        """See `Worker`."""
        if self._signals and not self._announced:
            self._announced = True
            self.say("stopping: a checkpoint is saved; a second signal stops at once")
        return self._signals > 0

    def show(self, line: dict[str, Any]) -> None:
        """See `Worker`."""
        if self._progress is not None:
            self._progress.show(line)

    def beat(self) -> None:
        """See `Worker`."""
        if self._progress is not None:
            self._progress.redraw()

    def say(self, text: str) -> None:
        """See `Worker`."""
        if self._progress is not None:
            self._progress.say(text)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the first SIGINT or SIGTERM asks the training to stop, and the next one raises
        KeyboardInterrupt.
        """
        kept = {}
        if threading.current_thread() is threading.main_thread():
            kept = {
                number: signal.signal(number, self._take_signal)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _take_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            raise KeyboardInterrupt(signal.Signals(number).name)


def join_torchrun(device: str) -> None:
    """Connect this process with the others of torchrun, and wait until all have called this. Does
    nothing without torchrun, and when it is called again.
    """
    own = _own_device(device)
    if own != "cpu":
        torch.cuda.set_device(own)
    if torchrun_world() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo" if own == "cpu" else "nccl", timeout=GROUP_TIMEOUT)


def _own_device(device: str) -> str:
    """Return the device of this process among those of its machine."""
    return f"cuda:{_torchrun_variable('LOCAL_RANK', 0)}" if device == "cuda" else device


def is_under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return bool(dist.is_available() and dist.is_torchelastic_launched())


def torchrun_rank() -> int:
    """Return the number of this process among all of torchrun; 0 without torchrun."""
    return _torchrun_variable("RANK", 0)


def torchrun_world() -> int:
    """Return the number of processes of torchrun; 1 without torchrun."""
    return _torchrun_variable("WORLD_SIZE", 1)


def torchrun_machines() -> int:
    """Return the number of machines that torchrun uses; 1 without torchrun."""
    return torchrun_world() // _torchrun_variable("LOCAL_WORLD_SIZE", 1)


def _torchrun_variable(name: str, otherwise: int) -> int:
    return int(os.environ[name]) if is_under_torchrun() else otherwise
