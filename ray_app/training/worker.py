"""Define the interface `Worker`, by which the training loop uses the process that it runs in.

`ray_app.training.local.LocalWorker` implements it for a process without Ray, and
`ray_app.training.trainer.RayWorker` for a process of Ray Train.
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
    """The process that runs the training loop, alone or in a process group of torch.

    This class itself loads no batches, shows nothing, and is never asked to stop. Subclasses
    override these methods.

    Attributes:
        rank: Number of this worker, from 0.
        world: Number of workers.
        device: The device on which this worker computes.
    """

    def __init__(self, rank: int = 0, world: int = 1, device: str = "cpu") -> None:
        self.rank, self.world, self.device = rank, world, device

    def batches(self, job: TrainingJob, first: int) -> Iterator[Batch | None]:
        """Return this worker's part of the batch of each step, in order. Loading starts at once.

        Args:
            job: The job.
            first: Number of the first step.

        Returns:
            An iterator over batches. It yields None if the next batch has not arrived yet, so that
            the caller can do something else meanwhile.
        """
        raise NotImplementedError

    def is_stopping(self) -> bool:
        """Return whether the training was asked to save a checkpoint and stop."""
        return False

    def is_notice_due(self) -> bool:
        """Return whether it is time to check if a machine will be taken away.

        If so, all workers must call `has_notice`. Only rank 0 ever returns True.
        """
        return False

    def has_notice(self) -> bool:
        """Return whether the cluster will take away a worker's machine, such as a spot machine.

        All workers call this method.
        """
        return False

    def show(self, line: dict[str, Any]) -> None:
        """Show the metrics of a training step to the user. Called by rank 0."""

    def beat(self) -> None:
        """Report that a validation advances, so that the training is not stopped as stalled."""

    def say(self, text: str) -> None:
        """Print a line for the user. Called by rank 0."""

    def agree(self, vote: int) -> int:
        """Agree with all workers on the next action. All workers call this method, and wait.

        Args:
            vote: This worker's vote, see `loop.Vote`.

        Returns:
            The greatest vote of all workers.
        """
        if self.world == 1:
            return vote
        votes = torch.tensor(vote, device=self.device)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return int(votes.item())

    def broadcast(self, value: Any) -> Any:
        """Return the value that rank 0 passed, which must be plain JSON.

        All workers call this method, and wait.
        """
        return self.gather(value)[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values that all workers passed, ordered by rank. They must be plain JSON.

        All workers call this method, and wait. The values are sent as JSON, because torch's
        own functions for objects use pickle. Anyone who can connect to the port of a worker could
        then run code in it.
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
