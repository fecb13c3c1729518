"""Blocks made by actors of Ray, one loaded pipeline in each. A thin class around `making.Maker`; knows no pipeline."""

import pickle
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from ray_app.errors import ClusterError, TouchstoneError, said
from ray_app.generation.making import Job, Maker
from ray_app.generation.orders import Block

Report = dict[str, int]

# Actors that a lost node takes with it start elsewhere, and what they had is made again.
_RESTARTS = 5
# One that is being made, and one that waits for it.
_AT_ONCE = 2


class Actor:
    """What runs in a worker process."""

    def __init__(self, job: Job) -> None:
        self._maker = Maker(job)

    def make(self, block: Block) -> tuple[Report | None, bytes | None]:
        """The report on a block, or the error as a value: Ray keeps only the text of an exception."""
        try:
            return self._maker(block), None
        except TouchstoneError as error:
            return None, pickle.dumps(error)
        except Exception:
            return None, pickle.dumps(TouchstoneError(f"making a block failed:\n{traceback.format_exc()}", hint="this looks like a bug"))


def made_by_actors(job: Job, blocks: Sequence[Block], *, workers: int, cpus: float, gpus: float, stall_s: float) -> Iterator[Report]:
    """A report for each block as it is committed. Inside `scoring.cluster.cluster`.

    Raises ClusterError when no block ends in `stall_s` or an actor dies too often, and whatever TouchstoneError a worker met.
    """
    import ray

    kind: Any = ray.remote(
        num_cpus=cpus, num_gpus=gpus, max_restarts=_RESTARTS, max_task_retries=_RESTARTS, label_selector=dict(job.config.cluster.labels)
    )(Actor)
    waiting = iter(blocks)
    actors = [kind.remote(job) for _ in range(min(workers, len(blocks)))]
    running: dict[Any, Any] = {}
    try:
        for actor in actors * _AT_ONCE:
            _give(actor, waiting, running)
        while running:
            ready, _ = ray.wait(list(running), num_returns=1, timeout=stall_s)
            if not ready:
                raise ClusterError(
                    f"no block ended in {stall_s:.0f} s; stopped, what is committed is kept",
                    hint="are there nodes for these workers? --set cluster.stall_timeout_s=… waits longer",
                )
            actor = running.pop(ready[0])
            report = _result(ready[0])
            _give(actor, waiting, running)
            yield report
    finally:
        for actor in actors:
            ray.kill(actor)


def _give(actor: Any, waiting: Iterator[Block], running: dict[Any, Any]) -> None:
    block = next(waiting, None)
    if block is not None:
        running[actor.make.remote(block)] = actor


def _result(task: Any) -> Report:
    import ray

    try:
        report, error = ray.get(task)
    except ray.exceptions.RayError as lost:
        raise ClusterError(
            f"a worker was lost too often: {said(lost)}", hint="the same command goes on; does the pipeline fit its memory?"
        ) from lost
    if error is not None:
        raise pickle.loads(error)  # noqa: S301  (made by a worker of this job)
    found: Report = report
    return found
