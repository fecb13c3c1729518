"""Score a sample of an archive as the workers of a run do, and measure what that takes
(`score_sample`).

The stages of a run work here in processes of their own, without Ray, on a run directory in the
temporary folder. As many processes work at once as a run would have on this machine, since
processes that share memory and caches slow each other down.
"""

import math
import multiprocessing
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.archives import (
    BlockRef,
    ListedMember,
    ManifestMember,
    as_listed,
    image_id,
    manifest,
)
from ray_app.child_process import SECRETS
from ray_app.cluster import gpu_check
from ray_app.cluster.config import RAY_SHARE
from ray_app.cluster.local_ray import WORKER_ENVIRONMENT, changed_environment
from ray_app.errors import ClusterError, TouchstoneError
from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.inference.groups import DetectorGroups
from ray_app.runs import RunDirectory
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.layout import ScoringLayout
from ray_app.scoring.orders import OrderWriter
from ray_app.scoring.stages import (
    BlockCommitter,
    BlockDecoder,
    BlockReport,
    BlockScorer,
    OpenBlock,
    ScoringJob,
    scorer_stages,
)
from ray_app.scoring.survey import Item, spread
from ray_app.storage import Fetcher, node_budget
from ray_app.streams.stage import MOST_DEATHS, Stage, StageFailure

# Slow detectors score fewer members than were drawn, so that a plan does not take much longer.
SAMPLE_S = 30.0
# Each takes seconds to start, and more of them slow each other down no further.
MAX_PROCESSES = 8
_LEASE = 0  # of the temporary run directory, which nobody else knows
_MANIFEST = 0
_END_S = 5.0  # for a process that was told to end
# As Ray sets it in a process that has one core.
_ONE_CORE = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class SampledMember:
    """What the worker reported of one member."""

    member: Item
    status: str
    detail: str | None


@dataclass(frozen=True)
class SampleWork:
    """What the workers did with a sample.

    Attributes:
        outcomes: One for each member that was worked on.
        seconds: For each stage of the layout, in its order, the seconds of all processes by the
            names of `StageClock`. Without the stages after the decoders if no detector scored.
        counts: What the stages counted.
        rows: The result rows, a table for each block. Empty if no detector scored.
        processes: Processes that worked at once.
        has_scored: Whether detectors scored the sample. A GPU that is not on this machine cannot.
    """

    outcomes: Sequence[SampledMember]
    seconds: Sequence[Mapping[str, float]]
    counts: Mapping[str, int]
    rows: Sequence[pa.Table]
    processes: int
    has_scored: bool


def score_sample(
    config: ScoreConfig,
    spec: ScoringSpec,
    layout: ScoringLayout,
    groups: DetectorGroups | None,
    fetcher: Fetcher,
    members: Sequence[Item],
    *,
    decode_bytes: int,
) -> SampleWork:
    """Fetch, decode, score, and decide on a sample, and write its rows into a temporary folder.

    A batch goes first, which warms up and is not counted. If detectors are slow, the sample is
    smaller than `members`, and as even.

    Args:
        config: The config of the run.
        spec: What members are scored with.
        layout: The processes of the run, which decides what stages there are.
        groups: The groups of detectors that take turns in a process; None if all fit together.
        fetcher: Reads the members.
        members: The members, at least one.
        decode_bytes: Memory that large images may take together.

    Raises:
        ClusterError: Processes died while they worked on the same block, or before they did.
        TouchstoneError: Whatever else a stage met.
    """
    has_scored = spec.device == "cpu" or _has_gpu()
    with tempfile.TemporaryDirectory(prefix="touchstone-plan-") as folder, ExitStack() as ending:
        run = RunDirectory.open(str(Path(folder, "run")))
        OrderWriter(run.store, _LEASE, len(members)).begin_turn()
        job = ScoringJob(
            run,
            spec,
            fetcher,
            attempt=1,
            crumbs=Path(folder, "markers"),
            mirror=None,
            decode_limit_s=config.cluster.decode_limit_s,
            decode_bytes=decode_bytes,
            lease=_LEASE,
            members=layout.block_members,
            groups=groups,
        )
        kind = layout.kind if has_scored else None
        processes = [
            ending.enter_context(_WorkerProcess(job, kind))
            for _ in range(_count_processes(job, layout, len(members), has_scored=has_scored))
        ]
        warm = [spread(members, spec.slots)] * len(processes)
        warmed = _work_at_once(processes, _write_blocks(run, 0, warm))
        image_s = max(done.total_s for done in warmed) / len(warm[0])
        most = max(int(SAMPLE_S / max(image_s, 1e-9)), spec.slots) * len(processes)
        chosen = spread(members, most)
        blocks = [chosen[first :: len(processes)] for first in range(len(processes))]
        refs = _write_blocks(run, len(warm), blocks)
        worked = _work_at_once(processes, refs)
        rows = [_read_rows(run, ref) for ref in refs] if has_scored else []
    reasons = [_reasons(table) for table in rows] or [done.outcomes for done in worked]
    pairs = zip(chain.from_iterable(blocks), chain.from_iterable(reasons), strict=True)
    return SampleWork(
        outcomes=[SampledMember(member, *reason) for member, reason in pairs],
        seconds=[_sum(stage) for stage in zip(*(done.seconds for done in worked), strict=True)],
        counts=_sum([done.counts for done in worked]),
        rows=rows,
        processes=len(processes),
        has_scored=has_scored,
    )


def _has_gpu() -> bool:
    return gpu_check.DEVICE.exists() and bool(gpu_check.torch_and_gpus()[1])


def _count_processes(
    job: ScoringJob, layout: ScoringLayout, members: int, *, has_scored: bool
) -> int:
    """Return how many processes a run has of a kind on this machine, with a batch for each.

    One process does the work of all pools if detectors have processes of their own.
    """
    if has_scored and layout.kind == "split":
        return 1
    estimate = job.groups or ResourceEstimate.of(job.spec)
    fitting = int(RAY_SHARE * node_budget.node_memory() / estimate.process_bytes)
    fitting = fitting if has_scored else members
    batches = math.ceil(members / job.spec.slots)
    most = min(layout.workers, node_budget.usable_cores(), fitting, batches, MAX_PROCESSES)
    return max(most, 1)


def _write_blocks(
    run: RunDirectory, first: int, blocks: Sequence[Sequence[Item]]
) -> list[BlockRef]:
    """Write blocks of the temporary manifest, numbered from `first`, without columns of tables."""
    refs = []
    for number, members in enumerate(blocks, first):
        ids = np.array([_image_id(item) for item in members], np.int64)
        table = manifest.listed_rows(ids, [_without_columns(item) for item in members])
        rows = manifest.cut_rows(table, number, manifest.manifest_schema(None))
        name = f"{number}.parquet"
        run.store.write(manifest.path_in(_MANIFEST, name), manifest.parquet_bytes(rows))
        refs.append(BlockRef(_MANIFEST, number, len(members), 0, name, 0))
    return refs


def _image_id(item: Item) -> int:
    return item.image_id if isinstance(item, ManifestMember) else image_id(item)


def _without_columns(item: Item) -> ListedMember:
    """Return a member as listed, without the columns of its source, which cost no time."""
    return replace(as_listed(item), input={})


def _read_rows(run: RunDirectory, ref: BlockRef) -> pa.Table:
    return pa.concat_tables(run.rows_in(run.part_path(*ref.place)))


def _reasons(rows: pa.Table) -> Sequence[tuple[str, str | None]]:
    return list(zip(rows["status"].to_pylist(), rows["detail"].to_pylist(), strict=True))


def _sum(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total = Counter[str]()
    for part in parts:
        total.update(part)
    return dict(total)


@dataclass(frozen=True)
class _Done:
    """What a process did with a block: seconds for each stage, and what all stages counted.

    `outcomes`: (status, detail) of each member, if only a decoder worked.
    """

    seconds: Sequence[Mapping[str, float]]
    counts: Mapping[str, int]
    outcomes: Sequence[tuple[str, str | None]] = ()

    @property
    def total_s(self) -> float:
        """Seconds of all stages."""
        return sum(sum(seconds.values()) for seconds in self.seconds)


def _work_at_once(processes: "Sequence[_WorkerProcess]", refs: Sequence[BlockRef]) -> list[_Done]:
    """Let each process work on its block, all at once."""
    for process, ref in zip(processes, refs, strict=True):
        process.send(ref)
    return [process.receive() for process in processes]


class _WorkerProcess:
    """A process that works on one block after another, and is started again if it dies.

    A decoder that crashes or hangs ends it, as it ends a worker of a run: the next process decodes
    that image in a child. Use as a context manager, which ends the process.

    Args:
        job: What the stages need.
        kind: The kind of the layout; None for a decoder alone.
    """

    def __init__(self, job: ScoringJob, kind: str | None) -> None:
        self._job, self._kind = job, kind
        self._ref: BlockRef | None = None
        self._deaths = 0

    def __enter__(self) -> "_WorkerProcess":
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        given = (other, pickle.dumps(self._job), self._kind)
        self._process = context.Process(target=_serve, args=given, daemon=True)
        with changed_environment({**WORKER_ENVIRONMENT, **_ONE_CORE}, SECRETS):
            self._process.start()
        other.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join(_END_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()

    def send(self, ref: BlockRef) -> None:
        """Request work on a block."""
        self._ref = ref
        with suppress(BrokenPipeError):  # It died, which `receive` notices.
            self._pipe.send(ref)

    def receive(self) -> _Done:
        """Return what was done with the block.

        Raises:
            ClusterError: Too many processes died.
            TouchstoneError: What a stage met.
        """
        while True:
            try:
                done = self._pipe.recv()
            except (EOFError, ConnectionResetError):
                self._restart()
                continue
            if isinstance(done, TouchstoneError):
                raise done
            assert isinstance(done, _Done), "a process sends nothing else"
            return done

    def _restart(self) -> None:
        self._process.join()
        code, self._deaths = self._process.exitcode, self._deaths + 1
        if self._deaths > MOST_DEATHS:
            raise ClusterError(
                f"{self._deaths} processes died while they scored a sample, the last one with exit code {code}",
                hint="most likely memory ran out: give --set cluster.workers=1, or --probe 0 to score no sample",
            )
        self.__exit__()
        self.__enter__()
        assert self._ref is not None, "a process dies of a block"
        self.send(self._ref)


def _serve(pipe: Connection, job: bytes, kind: str | None) -> None:
    """Work on blocks until the other end of the pipe is closed."""
    # As a worker of Ray: Linux divides a busy machine among sessions, and Ctrl-C is for the parent.
    os.setsid()
    stages = _open_stages(pickle.loads(job), kind)  # noqa: S301 - from the parent
    with suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send(_work(stages, pipe.recv()))


def _open_stages(job: ScoringJob, kind: str | None) -> list[Stage]:
    """Load the stages of a layout, in their order."""
    if kind == "fused":
        return [BlockScorer(job)]
    if kind is None:
        return [BlockDecoder(job)]
    scorers = [stage(job, *arguments) for stage, arguments in scorer_stages(job)]
    return [BlockDecoder(job), *scorers, BlockCommitter(job)]


def _work(stages: Sequence[Stage], ref: BlockRef) -> "_Done | TouchstoneError":
    """Let one stage after another work on a block."""
    message: Any = ref
    seconds, before = [], Counter[str]()
    for stage in stages:
        message = stage.take(message)
        if isinstance(message, StageFailure):
            return message.error
        assert isinstance(message, OpenBlock | BlockReport), "every block may start"
        spent = Counter(message.work.seconds)  # of this stage and those before
        seconds.append({name: spent[name] - before[name] for name in spent})
        before = spent
    outcomes = (
        [(str(one.status), one.detail) for batch in message.batches for one in batch.outcomes]
        if isinstance(message, OpenBlock)
        else []
    )
    return _Done(seconds, dict(message.work.counts), outcomes)
