"""Pipelines, the actors that the driver speaks to: each takes blocks, works on them beside all others, and says about once a second what
became of them. So a block costs the driver a line in a report, however few images it has.

`FusedPipeline` is one core that does everything. `SplitPipeline` conducts decoders and scorers of its own: it cuts blocks into pieces,
passes them on from stage to stage, and commits what comes back whole; pixels go from worker to worker and never through it.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pyarrow as pa

from ray_app.archives import BlockRef, read_block
from ray_app.cluster import versions
from ray_app.cluster.ray_cluster import own_node
from ray_app.cluster.shutdown import WORKER_LOGS_HINT
from ray_app.errors import ClusterError, TouchstoneError, describe_error
from ray_app.runs import arrow
from ray_app.scoring import messages, workers
from ray_app.scoring.layout import IN_FLIGHT, WRITES_AT_ONCE, ScoringLayout

TURN_S = 1.0
AHEAD_S = 2.5  # of blocks that a pipeline has waiting: it must not run dry between two turns
MOST_WAITING = 2_000
MOST_TRIES = 10  # of one piece, whose workers or results were lost
_POLL_S = 0.02  # while storage is at work as well


def ready_of(refs: list[Any], timeout_s: float, *, fetch_local: bool = True) -> list[Any]:
    """All answers of Ray that are there as soon as any is; none where none comes in time. `fetch_local` as of `ray.wait`."""
    import ray

    ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=fetch_local)
    if ready and len(refs) > 1:
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=fetch_local)
    return ready


class Pipeline:
    """Base of both: a queue of blocks, a thread that works on it, and what is to be said of it in the next turn."""

    def __init__(self, job: workers.ScoringJob) -> None:
        arrow.leave_pandas_out()
        self._job, self._node = job, own_node()
        self._changed = threading.Condition()
        self._queue: deque[BlockRef] = deque()
        self._said: list[messages.Message] = []
        self._orders = messages.Orders()
        self._able, self._was_able = False, False
        self._begun, self._rate, self._turned_at = 0, 0.0, time.monotonic()
        threading.Thread(target=self._worked, daemon=True).start()

    def turn(self, refs: Sequence[BlockRef], orders: messages.Orders) -> messages.TurnReport:
        """Take further blocks; says what became of some after `TURN_S`, or at once where nothing is left to begin."""
        with self._changed:
            self._queue += refs
            self._orders = orders
            self._changed.notify_all()
            self._changed.wait_for(self._has_news, TURN_S)
            if self._closed or not self._able:
                self._said += map(messages.HandedBack, self._queue)
                self._queue.clear()
            said, self._said, self._was_able = self._said, [], self._able
            return messages.TurnReport(said, self._room(), self._node)

    def _has_news(self) -> bool:
        return (self._able and not self._was_able) or (bool(self._said) and not self._queue)

    @property
    def _closed(self) -> bool:
        """Whether no further block is to be begun here."""
        return self._orders.closed or self._node in self._orders.avoided

    def _room(self) -> int:
        """How many blocks are wanted: as many as will be begun until the next turn but one, by the pace of late."""
        now = time.monotonic()
        rate, self._begun = self._begun / max(now - self._turned_at, 1e-3), 0
        self._rate, self._turned_at = (rate + self._rate) / 2 if self._rate else rate, now
        wanted = min(1 + math.ceil(AHEAD_S * self._rate), MOST_WAITING)
        return max(wanted - len(self._queue), 0) if self._able and not self._closed else 0

    def _next(self) -> BlockRef | None:
        """The next block to begin, with the lock held; None where there is none, or none is to be begun."""
        if self._closed or not self._queue:
            return None
        self._begun += 1
        return self._queue.popleft()

    def _say(self, *said: messages.Message) -> None:
        with self._changed:
            self._said += said
            self._changed.notify_all()

    def _worked(self) -> None:
        try:
            versions.require_same(self._job.version)
            self._work()
        except Exception as error:
            failed = error if isinstance(error, TouchstoneError) else workers.translated(error, type(self).__name__)
            with self._changed:
                self._able = True
                self._say(messages.FailedBlock(failed))

    def _work(self) -> None:
        raise NotImplementedError


class FusedPipeline(Pipeline):
    """One core that fetches, decodes and scores one block after another; a block is committed while the next one is begun, since storage
    answers late.
    """

    scorer: ClassVar = workers.BlockScorer

    def _work(self) -> None:
        worker = self.scorer(self._job)
        with self._changed:
            self._able = True
            self._changed.notify_all()
        committed: Future[None] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="commit") as commits:
            while True:
                with self._changed:
                    while (ref := self._next()) is None:
                        self._changed.wait()
                scored = worker.take(ref)
                if committed is not None:
                    committed.result()  # no more than two blocks are here at a time
                committed = commits.submit(self._commit, worker, scored)

    def _commit(self, worker: workers.BlockScorer, scored: workers.ScoredBlock | messages.FailedBlock) -> None:
        self._say(worker.commit(scored))


@dataclass(eq=False)
class Hand:
    """One worker of a stage, from its pipeline's side. `node`: where it stands, None until it does; `is_ready`: it has loaded."""

    stage: int
    actor: Any
    node: str | None = None
    is_ready: bool = False
    flights: int = 0


@dataclass(eq=False)
class OpenBlock:
    """A block under way. `scored`: its pieces that have been through all stages, by their first member."""

    ref: BlockRef
    members: pa.Table | None = None
    pieces: int = 0
    scored: dict[int, messages.OpenPiece] = field(default_factory=dict)
    tries: int = 0


@dataclass(eq=False)
class Flight:
    """A piece that a worker has: what it was given, what it will give, and the block that this is of."""

    hand: Hand
    block: OpenBlock
    piece: messages.Piece
    result: Any


class SplitPipeline(Pipeline):
    """Some scorers and the decoders that feed them; a process of its own that commits. `hand_over_bytes` may wait between its stages."""

    decoder: ClassVar = workers.PieceDecoder
    scorer: ClassVar = workers.TensorScorer
    describer: ClassVar = workers.BlockDescriber

    def __init__(self, job: workers.ScoringJob, layout: ScoringLayout, hand_over_bytes: float) -> None:
        import ray

        self._ray, self._layout = ray, layout
        self._most_pieces = max(int(hand_over_bytes / max(layout.piece_bytes, 1)), 2)
        self._stages: list[list[Hand]] = [[] for _ in range(1 + len(layout.scorers))]
        self._waiting: list[deque[tuple[OpenBlock, messages.Piece, Any]]] = [deque() for _ in self._stages]
        self._open: dict[tuple[int, int], OpenBlock] = {}
        self._flights: dict[Any, Flight] = {}
        self._pings: dict[Any, Hand] = {}
        self._storage: dict[Future[Any], OpenBlock] = {}
        self._threads = ThreadPoolExecutor(2 * WRITES_AT_ONCE)
        self._deciding = threading.Lock()
        super().__init__(replace(job, pieces=layout.pieces))

    def _work(self) -> None:
        while True:
            self._hire()
            self._begin()
            self._pass_on()
            self._hear()

    def _hire(self) -> None:
        """Start the workers that are to be; decoders once a scorer stands, on its node if there is room: pixels need not travel then."""
        shares = self._orders.shares
        beside = [hand.node for hand in self._stages[1] if hand.node is not None]
        for stage in range(len(shares) - 1, -1, -1):
            while len(self._stages[stage]) < shares[stage] and (stage or beside):
                node = beside[len(self._stages[0]) % len(beside)] if stage == 0 else None
                hand = Hand(stage, self._worker(stage, node))
                self._stages[stage].append(hand)
                self._await(hand)

    def _worker(self, stage: int, node: str | None) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        layout, pools = self._layout, self._job.spec.all_pools
        pool = pools[stage - 1] if stage else None
        kind = self.decoder if pool is None else self.scorer if pool in self._job.spec.pools else self.describer
        beside = None if node is None else NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)
        options = {
            "num_cpus": layout.scorer_cpus if stage else layout.worker_cpus,
            "num_gpus": (layout.scorer_gpus if stage else 0) or None,
            "label_selector": dict(layout.labels) or None,
            "scheduling_strategy": beside,
            "max_restarts": -1,
        }
        actor = self._ray.remote(kind).options(**{name: value for name, value in options.items() if value is not None})
        return actor.remote(self._job, pool, at_once=False)

    def _await(self, hand: Hand) -> None:
        """Give a worker nothing until it has said where it stands, then that it has loaded: it starts, or is being started again."""
        hand.node, hand.is_ready = None, False
        self._pings[hand.actor.node.options(max_task_retries=-1).remote()] = hand

    def _begin(self) -> None:
        """Open as many blocks as keep the decoders supplied; give all back where a stage has no worker left."""
        able = all(any(hand.is_ready for hand in stage) for stage in self._stages)
        welcome = all(any(hand.is_ready and hand.node not in self._orders.avoided for hand in stage) for stage in self._stages)
        if not able:
            self._give_back()
        with self._changed:
            self._able = able and welcome
            self._changed.notify_all()
            while self._able and self._needs_more() and (ref := self._next()) is not None:
                block = self._open[ref.place] = OpenBlock(ref)
                self._storage[self._threads.submit(self._read, ref)] = block

    def _needs_more(self) -> bool:
        reading = sum(block.members is None for block in self._storage.values())
        return reading < WRITES_AT_ONCE and reading + len(self._waiting[0]) <= IN_FLIGHT * len(self._stages[0])

    def _give_back(self) -> None:
        committing = {block.ref.place for block in self._storage.values() if block.members is not None}
        given = [key for key in self._open if key not in committing]
        self._say(*(messages.HandedBack(self._open.pop(key).ref) for key in given))
        for waiting in self._waiting:
            waiting.clear()

    def _is_open(self, block: OpenBlock) -> bool:
        return self._open.get(block.ref.place) is block

    def _pass_on(self) -> None:
        """Give every piece that waits to the worker of its stage that has least to do; the later stages first."""
        under_way = len(self._flights) + sum(map(len, self._waiting[1:]))
        most = min(self._most_pieces, IN_FLIGHT * sum(map(len, self._stages)))
        for stage in range(len(self._stages) - 1, -1, -1):
            avoided = self._orders.avoided if stage == 0 else frozenset()  # what is decoded may still be scored
            hands = [hand for hand in self._stages[stage] if hand.is_ready and hand.node not in avoided]
            while self._waiting[stage] and hands and (stage or under_way < most):
                hand = min(hands, key=lambda one: one.flights)
                if hand.flights >= IN_FLIGHT:
                    break
                block, piece, given = self._waiting[stage].popleft()
                failed, result = hand.actor.hand_on.options(num_returns=2).remote(given)
                self._flights[failed] = Flight(hand, block, piece, result)
                hand.flights += 1
                under_way += stage == 0

    def _hear(self) -> None:
        """Wait for what comes first of workers and storage, or for orders where nothing is under way."""
        awaited = [*self._flights, *self._pings]
        if awaited:
            for ref in ready_of(awaited, _POLL_S if self._storage else TURN_S / 4, fetch_local=False):
                self._answered(ref) if ref in self._pings else self._landed(ref)
        elif self._storage:
            wait_for(list(self._storage), TURN_S / 4, "FIRST_COMPLETED")
        else:
            with self._changed:
                self._changed.wait_for(lambda: self._queue and not self._closed, TURN_S / 4)
        for future in [future for future in self._storage if future.done()]:
            self._stored(future, self._storage.pop(future))

    def _answered(self, ref: Any) -> None:
        hand = self._pings.pop(ref)
        try:
            said = self._ray.get(ref)
            if hand.node is None:
                hand.node = said
                self._pings[hand.actor.load.remote()] = hand
            else:
                hand.is_ready = True
        except self._ray.exceptions.RayError as error:
            if hand.node is None:  # Ray starts one that dies again for ever, but not one that cannot start
                raise ClusterError(f"a worker cannot start: {describe_error(error)}", hint=WORKER_LOGS_HINT) from error
            self._await(hand)  # it died while it loaded

    def _landed(self, ref: Any) -> None:
        flight = self._flights.pop(ref)
        hand, block = flight.hand, flight.block
        hand.flights -= 1
        try:
            failed: messages.FailedBlock | None = self._ray.get(ref)
            last = hand.stage == len(self._stages) - 1
            result = self._ray.get(flight.result) if last and failed is None else flight.result
        except self._ray.exceptions.RayError as error:
            if hand.is_ready:
                self._await(hand)
            if self._is_open(block):
                self._try_again(block, flight.piece, error)
            return
        if failed is not None:
            self._say(failed)
        elif self._is_open(block) and not last:
            self._waiting[hand.stage + 1].append((block, flight.piece, result))
        elif self._is_open(block):
            block.scored[flight.piece.start] = result
            if len(block.scored) == block.pieces:
                self._storage[self._threads.submit(self._commit, block)] = block

    def _read(self, ref: BlockRef) -> pa.Table:
        return read_block(self._job.run.store, ref)

    def _commit(self, block: OpenBlock) -> messages.BlockReport:
        assert block.members is not None
        pieces = [block.scored[start] for start in sorted(block.scored)]
        return workers.commit_pieces(self._job, block.ref, block.members, pieces, self._deciding)

    def _try_again(self, block: OpenBlock, piece: messages.Piece, error: Exception) -> None:
        """A piece whose worker died, or whose pixels were lost with a node, begins anew: its decoder is asked once more."""
        block.tries += 1
        if block.tries <= MOST_TRIES * block.pieces and not isinstance(error, self._ray.exceptions.RayTaskError):
            self._waiting[0].appendleft((block, piece, piece))
            return
        what = f"block {block.ref.block} of manifest {block.ref.manifest}: {describe_error(error)}"
        self._say(messages.FailedBlock(ClusterError(what, hint=WORKER_LOGS_HINT)))

    def _stored(self, future: Future[Any], block: OpenBlock) -> None:
        if (error := future.exception()) is not None:
            self._say(messages.FailedBlock(workers.translated(error, type(self).__name__)))  # type: ignore[arg-type]
        elif block.members is not None:
            self._open.pop(block.ref.place)
            self._say(future.result())
        elif self._is_open(block):
            block.members = future.result()
            pieces = list(workers.pieces_of(block.ref, block.members, self._layout.piece_members))
            block.pieces = len(pieces)
            self._waiting[0] += [(block, piece, piece) for piece in pieces]
