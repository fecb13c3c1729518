"""Pending blocks → committed parts on Ray: `score_blocks` gives blocks to pipelines and yields a report per committed block.

The driver speaks to each pipeline about once a second, whatever number of blocks that is about. Pipelines live as long as there is work;
nodes that come late get some of their own, and what a lost pipeline had goes to the others. What survives a kill is whatever was committed.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ray_app.archives import BlockRef
from ray_app.cluster.shutdown import OUT_OF_MEMORY_HINT, WORKER_LOGS_HINT, Stopper, Watch
from ray_app.errors import ClusterError, describe_error, is_want_of_memory
from ray_app.scoring import messages, pipelines, workers
from ray_app.scoring.layout import COMMIT_CPUS, ScoringLayout

HAND_OVER_SHARE = 0.4  # of the object stores that pixels pass through: well below the 80 % at which Ray spills
LAYOUT_EVERY_S = 3.0  # nodes come and go
MOST_LOST = 3  # pipelines lost in a row, per pipeline planned, before any block was committed
_LOOK_AHEAD = 4  # blocks per pipeline that the driver has at hand, to see whether there are fewer than it could give


def score_blocks(
    blocks: Iterable[BlockRef | None],
    job: workers.ScoringJob,
    layout: Callable[[], ScoringLayout],
    *,
    stopper: Stopper,
    watch: Watch,
) -> Iterator[messages.BlockReport]:
    """Run the pipelines and yield a report per block as it is committed; `layout` is called anew every few seconds.

    `blocks` may give None where the next one is not known yet. To be iterated in the main thread, inside `watch`. Raises
    KeyboardInterrupt where a stop was requested and blocks are left, ClusterError where pipelines are lost again and again before any
    block was committed, and whatever TouchstoneError a worker met.
    """
    waiting, pool = Waiting(blocks), PipelinePool(job, layout)
    try:
        while True:
            closed = stopper.reason is not None
            if not closed:
                pool.adapt(waiting)
                pool.deal(waiting)
            if not pool.has_open:
                if not waiting.look(1) and waiting.is_over:
                    return
                if closed:
                    raise KeyboardInterrupt(stopper.reason)
                if not waiting.look(1):
                    watch.progressed()  # only the listing is at work
            for report in pool.heard(closed, stopper.avoided, waiting):
                watch.progressed()
                yield report
    finally:
        pool.close()


class Waiting:
    """Blocks that no pipeline has: those that came back, then those that are still to come, of which a few are held."""

    def __init__(self, blocks: Iterable[BlockRef | None]) -> None:
        self._coming, self._held = iter(blocks), deque[BlockRef]()
        self.is_over = False

    def look(self, count: int) -> int:
        """How many there are to be given now, counted up to `count`."""
        while len(self._held) < count and not self.is_over:
            ref = next(self._coming, self)
            if ref is None:
                break
            if isinstance(ref, Waiting):
                self.is_over = True
            else:
                self._held.append(ref)
        return min(len(self._held), count)

    def take(self, count: int) -> list[BlockRef]:
        """The next ones, `count` at most."""
        return [self._held.popleft() for _ in range(self.look(count))]

    def put_back(self, refs: Iterable[BlockRef]) -> None:
        """What was given, and is to be given again, before all others."""
        self._held.extendleft(refs)


@dataclass(eq=False)
class PipelineHandle:
    """A pipeline from the driver's side: what it has, how much more it wants, its turn under way, and its node, once it has said so."""

    actor: Any
    shares: tuple[int, ...] = ()
    open: dict[tuple[int, int], BlockRef] = field(default_factory=dict)
    given: list[BlockRef] = field(default_factory=list)
    room: int = 0
    call: Any = None
    node: str | None = None


class PipelinePool:
    """The pipelines of a run: as many as the layout of now has, and never more than there are blocks for."""

    def __init__(self, job: workers.ScoringJob, layout: Callable[[], ScoringLayout]) -> None:
        import ray

        self._ray, self._job, self._planned_for = ray, job, layout
        self._pool: list[PipelineHandle] = []
        self._lost = 0
        self._layout = layout()
        self._planned_at = time.monotonic()

    @property
    def has_open(self) -> bool:
        """Whether any block is with a pipeline."""
        return any(pipeline.open for pipeline in self._pool)

    def adapt(self, waiting: Waiting) -> None:
        """Start the pipelines that are missing; let those go, with their GPUs, for which nothing is left."""
        if time.monotonic() - self._planned_at >= LAYOUT_EVERY_S:
            self._layout, self._planned_at = self._planned_for(), time.monotonic()
        most = self._layout.pipelines
        blocks = waiting.look(_LOOK_AHEAD * max(most, len(self._pool)))
        if not blocks and waiting.is_over:
            self._pool = [pipeline for pipeline in self._pool if pipeline.open]
        wanted = min(most, blocks + sum(bool(pipeline.open) for pipeline in self._pool))
        while len(self._pool) < wanted:
            self._pool.append(PipelineHandle(self._started()))
        if self._layout.kind == "split":
            for number, pipeline in enumerate(self._pool[:most]):
                pipeline.shares = self._layout.shares(number)

    def _started(self) -> Any:
        layout = self._layout
        labels = {"label_selector": dict(layout.labels)} if layout.labels else {}
        if layout.kind == "fused":
            return self._ray.remote(pipelines.FusedPipeline).options(num_cpus=layout.worker_cpus, **labels).remote(self._job)
        split = self._ray.remote(pipelines.SplitPipeline).options(num_cpus=COMMIT_CPUS / layout.pipelines, **labels)
        return split.remote(self._job, layout, self._hand_over_bytes())

    def _hand_over_bytes(self) -> float:
        """What one pipeline's stages may hold: its part of the stores of all nodes that work, each counted as small as the smallest."""
        stores = [
            node["Resources"].get("object_store_memory", math.inf)
            for node in self._ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"] and node["Resources"].get("CPU")
        ]
        return HAND_OVER_SHARE * min(stores, default=math.inf) * max(len(stores), 1) / self._layout.pipelines

    def deal(self, waiting: Waiting) -> None:
        """Give blocks to the pipelines that have room, those with least first; of the few that are left none gets more than its share."""
        hungry = [pipeline for pipeline in self._pool if pipeline.room > 0]
        room = sum(pipeline.room for pipeline in hungry)
        there = waiting.look(room)
        share = room if there == room else math.ceil(there / len(self._pool))
        for pipeline in sorted(hungry, key=lambda one: len(one.open)):
            refs = waiting.take(min(pipeline.room, share))
            pipeline.room -= len(refs)
            pipeline.given += refs
            pipeline.open |= {ref.place: ref for ref in refs}

    def heard(self, closed: bool, avoided: frozenset[str], waiting: Waiting) -> Iterator[messages.BlockReport]:
        """One turn of the pipelines that have something to say, a second at most; what they hand back, or are lost with, waits again.

        Raises the TouchstoneError that a worker met.
        """
        for pipeline in self._pool:
            if pipeline.call is None and (pipeline.open or pipeline.node is None or pipeline.room == 0):
                orders = messages.Orders(closed, avoided, pipeline.shares)
                pipeline.call, pipeline.given = pipeline.actor.turn.remote(pipeline.given, orders), []
        calls = {pipeline.call: pipeline for pipeline in self._pool if pipeline.call is not None}
        if not calls:
            time.sleep(pipelines.TURN_S / 10)  # the next block is not known yet
            return
        for call in pipelines.ready_of(list(calls), pipelines.TURN_S):
            pipeline = calls[call]
            try:
                turn: messages.TurnReport = self._ray.get(call)
            except self._ray.exceptions.RayError as error:
                self._lose(pipeline, error, waiting)
                continue
            pipeline.call, pipeline.room, pipeline.node = None, turn.room - len(pipeline.given), turn.node
            yield from self._reports(pipeline, turn, waiting)

    def _reports(self, pipeline: PipelineHandle, turn: messages.TurnReport, waiting: Waiting) -> Iterator[messages.BlockReport]:
        for message in turn.messages:
            if isinstance(message, messages.FailedBlock):
                raise message.error
            ref = pipeline.open.pop(message.ref.place)
            if isinstance(message, messages.HandedBack):
                waiting.put_back([ref])
            else:
                self._lost = 0
                yield message

    def _lose(self, pipeline: PipelineHandle, error: Exception, waiting: Waiting) -> None:
        """A pipeline that died, alone or with its node. Raises ClusterError where this happens again and again, and where it raised."""
        self._lost += 1
        self._pool.remove(pipeline)
        self._ray.kill(pipeline.actor)
        waiting.put_back(pipeline.open.values())
        self._planned_at = -math.inf
        if self._lost > MOST_LOST * self._layout.pipelines or isinstance(error, self._ray.exceptions.RayTaskError):
            raise _translated(error) from error

    def close(self) -> None:
        """End all pipelines; their workers end with them."""
        for pipeline in self._pool:
            self._ray.kill(pipeline.actor)


def _translated(error: Exception) -> ClusterError:
    hint = WORKER_LOGS_HINT
    texts = str(error)
    if is_want_of_memory(error) or "OutOfMemory" in texts or "OOM" in texts:
        hint = OUT_OF_MEMORY_HINT
    return ClusterError(f"the pipeline failed: {describe_error(error)}", hint=hint)
