"""Define a process that trains: `Worker` is the interface that the loop uses.

`ray_app.training.local.LocalWorker` is a process without Ray, and
`ray_app.training.trainer.RayWorker` is a process of Ray Train.
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
        rank: Number of this worker, from 0.
        world: Number of workers.
        device: The device on which this worker computes.
    """

    def __init__(self, rank: int = 0, world: int = 1, device: str = "cpu") -> None:
        self.rank, self.world, self.device = rank, world, device

    def batches(self, job: TrainingJob, first: int) -> Iterator[Batch | None]:
        """Return this worker's part of each step from `first` on, in order. Loading starts at once.

        A None in place of a batch means that none has come yet, so that the caller can do
        something else.
        """
        raise NotImplementedError

    def is_stopping(self) -> bool:
        """Return whether the training was asked to save a checkpoint and stop."""
        return False

    def is_notice_due(self) -> bool:
        """Return whether all workers must call `has_notice` now. Only rank 0 ever returns True."""
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

    def agree(self, vote: int) -> int:
        """Return the greatest vote of all workers. All workers call it."""
        if self.world == 1:
            return vote
        votes = torch.tensor(vote, device=self.device)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return int(votes.item())

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0, which is plain JSON. All workers call it, and wait."""
        return self.gather(value)[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all workers, which are plain JSON. All workers call it, and wait.

        torch's own functions for objects unpickle what arrives. Anyone who can connect to the port
        of a worker could then run code in it.
        """
        if self.world == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        own_length = torch.tensor([len(data)], device=self.device)
        lengths = [torch.empty_like(own_length) for _ in range(self.world)]
        dist.all_gather(lengths, own_length)
        sizes = [int(tensor.item()) for tensor in lengths]
        padded = functional.pad(data, (0, max(sizes) - len(data))).to(self.device)
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return [
            json.loads(part[:size].cpu().numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]
