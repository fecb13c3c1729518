"""The workers of a session: one in this process, or actors on Ray, each for its own hosts. Knows no url."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from ray_app.collecting.collector import Collector, Told
from ray_app.collecting.config import CollectConfig
from ray_app.collecting.wanted import Task
from ray_app.errors import ClusterError

WORKER_CPUS = 0.5  # it waits most of the time; its decoders are the work
_TAKE_S = 5.0
_MOST_DEATHS = 3
_STALL_S = 900.0
_CLOSE_S = 300.0  # a last shard may be on its way to a slow store


class Crew(Protocol):
    """`size` workers, by number."""

    size: int

    def give(self, worker: int, tasks: Sequence[Task]) -> None:
        """More for one worker."""

    def take(self, timeout_s: float) -> list[tuple[int, Told | None]]:
        """What workers tell, after so long at most; None of one that died, which is there again. Raises ClusterError."""

    def close(self) -> list[tuple[int, Told]]:
        """Stop all; what they had to tell."""


class HereCrew:
    """One worker, in this process."""

    size = 1

    def __init__(self, config: CollectConfig, records: str, columns: Sequence[str]) -> None:
        self._collector = Collector(config, records, columns)

    def give(self, worker: int, tasks: Sequence[Task]) -> None:
        """More to do."""
        self._collector.give(tasks)

    def take(self, timeout_s: float) -> list[tuple[int, Told | None]]:
        """What it tells; it does not die without us."""
        return [(0, self._collector.take(timeout_s))]

    def close(self) -> list[tuple[int, Told]]:
        """Stop it."""
        return [(0, self._collector.close())]


class RayCrew:
    """Actors. One that dies with its machine is replaced, a few times."""

    def __init__(self, config: CollectConfig, records: str, columns: Sequence[str], size: int) -> None:
        import ray

        options: dict[str, Any] = {"num_cpus": WORKER_CPUS, "max_concurrency": 4, "scheduling_strategy": "SPREAD"}
        if config.cluster.labels:
            options["label_selector"] = dict(config.cluster.labels)
        self._kind: Any = ray.remote(**options)(Collector)
        self._arguments = (config, records, list(columns))
        self._stall_s = config.cluster.stall_timeout_s or _STALL_S
        self.size, self._deaths, self._heard_at = size, [0] * size, time.monotonic()
        self._actors: list[Any] = [self._kind.remote(*self._arguments) for _ in range(size)]
        self._asked = {actor.take.remote(_TAKE_S): number for number, actor in enumerate(self._actors)}

    def give(self, worker: int, tasks: Sequence[Task]) -> None:
        """More for one actor."""
        self._actors[worker].give.remote(list(tasks))

    def take(self, timeout_s: float) -> list[tuple[int, Told | None]]:
        """What actors tell. Raises ClusterError where one dies again and again, or nothing is heard of any for long."""
        import ray

        ready, _ = ray.wait(list(self._asked), num_returns=1, timeout=timeout_s)
        told: list[tuple[int, Told | None]] = []
        for answer in ready:
            worker = self._asked.pop(answer)
            try:
                told.append((worker, ray.get(answer)))
            except ray.exceptions.RayActorError as error:
                self._replace(worker, error)
                told.append((worker, None))
            self._asked[self._actors[worker].take.remote(_TAKE_S)] = worker
        self._watch(bool(ready))
        return told

    def close(self) -> list[tuple[int, Told]]:
        """Stop all actors; those that are gone, or do not end in time, have nothing to tell."""
        import ray

        told = []
        # A question that was still open may have heard what `close` had to say.
        asked = self._asked | {actor.close.remote(): worker for worker, actor in enumerate(self._actors)}
        ended, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_CLOSE_S)
        for answer in ended:
            with suppress(ray.exceptions.RayError):
                told.append((asked[answer], ray.get(answer)))
        for actor in self._actors:
            ray.kill(actor)
        return told

    def _replace(self, worker: int, error: Exception) -> None:
        import ray

        self._deaths[worker] += 1
        if self._deaths[worker] > _MOST_DEATHS:
            raise ClusterError(
                f"a worker died {self._deaths[worker]} times", hint="most likely for want of memory: --set limits.connections=8 needs less"
            ) from error
        # It may only be out of reach: then it would go on asking its hosts beside the new one.
        ray.kill(self._actors[worker])
        self._actors[worker] = self._kind.remote(*self._arguments)

    def _watch(self, heard: bool) -> None:
        now = time.monotonic()
        self._heard_at = now if heard else self._heard_at
        if now - self._heard_at > self._stall_s:
            raise ClusterError(
                f"nothing was heard of any worker for {self._stall_s:.0f} s", hint="has the cluster room for them? --set cluster.workers=1"
            )


@contextmanager
def crew_for(config: CollectConfig, records: str, columns: Sequence[str], *, on_ray: bool, hosts: int) -> Iterator[Crew]:
    """The workers, for as long as the block lasts; whoever leaves it early calls `close` first, to hear the last of them."""
    if not on_ray:
        yield HereCrew(config, records, columns)
        return
    from ray_app.scoring.cluster import cluster, resources

    with cluster(config.cluster):
        cpus, _, _ = resources(config.cluster)
        yield RayCrew(config, records, columns, config.cluster.workers or max(1, min(int(cpus), hosts)))
