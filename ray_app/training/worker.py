"""One of the processes that train: `Worker` is what the loop needs of it.

`ray_app.training.local.LocalWorker` is a process without Ray, and
`ray_app.training.trainer.RayWorker` is one of Ray Train.
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from ray_app.training.job import TrainingJob
from ray_app.training.learner import Batch


class Worker:
    """A process that trains, alone or in a process group of torch.

    Attributes:
        rank: Its number among the workers.
        world: The number of workers.
        device: Where it computes.
    """

    def __init__(self, rank: int = 0, world: int = 1, device: str = "cpu") -> None:
        self.rank, self.world, self.device = rank, world, device

    def batches(self, job: TrainingJob, first: int) -> Iterator[Batch | None]:
        """Return this worker's part of each step from `first` on, in order. Loading begins at once.

        None means that no batch has come yet, so that the caller can look at something else.
        """
        raise NotImplementedError

    def is_stopping(self) -> bool:
        """Return whether somebody asked the training to save and stop."""
        return False

    def is_notice_due(self) -> bool:
        """Return whether it is time that all workers call `has_notice`. Asked of rank 0."""
        return False

    def has_notice(self) -> bool:
        """Return whether a machine of the workers will be taken away. Called by all workers."""
        return False

    def show(self, line: dict[str, Any]) -> None:
        """Report a step. Called by rank 0."""

    def beat(self) -> None:
        """Report that a validation advances."""

    def say(self, text: str) -> None:
        """Print a line for the user. Called by rank 0."""

    def agree(self, word: int) -> int:
        """Return the greatest word of all workers. They all call it."""
        if self.world == 1:
            return word
        words = torch.tensor(word, device=self.device)
        dist.all_reduce(words, dist.ReduceOp.MAX)
        return int(words.item())

    def share(self, value: Any) -> Any:
        """Return the value of rank 0, which is plain JSON. All workers call it, and wait."""
        return self.gather(value)[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all workers, which are plain JSON. They all call it, and wait.

        torch's own functions for objects unpickle what arrives, so that whoever reaches the port of
        a worker could run code in it.
        """
        if self.world == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(data)], device=self.device)
        lengths = [torch.empty_like(length) for _ in range(self.world)]
        dist.all_gather(lengths, length)
        sizes = [int(one.item()) for one in lengths]
        filled = functional.pad(data, (0, max(sizes) - len(data))).to(self.device)
        parts = [torch.empty_like(filled) for _ in range(self.world)]
        dist.all_gather(parts, filled)
        return [
            json.loads(part[:size].cpu().numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]
