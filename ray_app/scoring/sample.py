"""Score a sample of an archive like the workers of a run, and measure the work (`score_sample`).

The stages of a run work here in separate processes without Ray, on a temporary run directory. As many
processes are started as a run would start on this machine, because processes that share memory and
caches slow each other down.
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
    image_id,
    manifest,
    to_listed_member,
)
from ray_app.child_process import SECRETS
from ray_app.cluster import gpu_check
from ray_app.cluster.config import RAY_SHARE
from ray_app.cluster.local_ray import WORKER_ENVIRONMENT, override_environment
from ray_app.errors import ClusterError, TouchstoneError
from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.inference.groups import DetectorGroups
from ray_app.runs import RunDirectory
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.control import MAX_DEATHS
from ray_app.scoring.layout import ScoringLayout
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
from ray_app.streams.stage import Stage, StageFailure

# If detectors are slow, fewer members than requested are scored, so that a plan takes about this
# long.
SAMPLE_S = 30.0
# Each process takes seconds to start, and more processes do not slow each other down further.
MAX_PROCESSES = 8
_MANIFEST = 0
_END_S = 5.0  # For a process to exit after SIGTERM.
# Ray sets this in a process that has one core.
_ONE_CORE = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class SampledMember:
    """The result for one file of the sample.

    Attributes:
        member: The file, as the listing or the manifest has it.
        status: The status of the file, such as `ok`.
        detail: The detail of the status, or None.
    """

    member: Item
    status: str
    detail: str | None


@dataclass(frozen=True)
class SampleWork:
    """The measured work on a sample, and its results.

    Attributes:
        outcomes: The status of each member that was processed.
        seconds: A mapping for each stage of the pipeline, in order: for each kind of work, such as
            `fetch` or `decode`, its seconds in all processes together. If no detector scored,
            stages after the decoders are left out.
        counts: The counters of all stages together.
        rows: The result rows, a table for each block. Empty if no detector scored.
        processes: The number of processes that worked at the same time.
        has_scored: Whether detectors scored the sample. They did not if the run uses GPUs and this
            machine has none.
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
    """Score a sample of an archive into a temporary folder, and return the measured work.

    The first batch warms up the processes and is not counted. If detectors are slow, the sample is
    smaller than `members`, but distributed like them.

    Args:
        config: The config of the run.
        spec: The scoring specification.
        layout: The processes of the run, which determine the stages.
        groups: The groups of detectors that take turns in a process; None if all fit together.
        fetcher: Reads the members.
        members: The members, at least one.
        decode_bytes: Memory that large images may use together.

    Raises:
        ClusterError: If processes died while they worked on the same block, or while they started.
        TouchstoneError: If a stage failed in another way.
    """
    has_scored = spec.device == "cpu" or _has_gpu()
    with tempfile.TemporaryDirectory(prefix="touchstone-plan-") as folder, ExitStack() as ending:
        run = RunDirectory.open(str(Path(folder, "run")))
        job = ScoringJob(
            run,
            spec,
            fetcher,
            attempt=1,
            marker_dir=Path(folder, "markers"),
            mirror=None,
            decode_limit_s=config.cluster.decode_limit_s,
            decode_bytes=decode_bytes,
            members=layout.block_members,
            groups=groups,
        )
        kind = layout.kind if has_scored else None
        processes = [
            ending.enter_context(_WorkerProcess(job, kind))
            for _ in range(_count_processes(job, layout, len(members), has_scored=has_scored))
        ]
        warm_up = [spread(members, spec.slots)] * len(processes)
        warmed = _work_in_parallel(processes, _write_blocks(run, 0, warm_up))
        image_s = max(result.total_s for result in warmed) / len(warm_up[0])
        limit = max(int(SAMPLE_S / max(image_s, 1e-9)), spec.slots) * len(processes)
        sample = spread(members, limit)
        blocks = [sample[first :: len(processes)] for first in range(len(processes))]
        refs = _write_blocks(run, len(warm_up), blocks)
        results = _work_in_parallel(processes, refs)
        rows = [_read_rows(run, ref) for ref in refs] if has_scored else []
    reasons = [_reasons(table) for table in rows] or [result.outcomes for result in results]
    pairs = zip(chain.from_iterable(blocks), chain.from_iterable(reasons), strict=True)
    return SampleWork(
        outcomes=[SampledMember(member, *reason) for member, reason in pairs],
        seconds=[
            _sum(stage) for stage in zip(*(result.seconds for result in results), strict=True)
        ],
        counts=_sum([result.counts for result in results]),
        rows=rows,
        processes=len(processes),
        has_scored=has_scored,
    )


def _has_gpu() -> bool:
    return gpu_check.DEVICE.exists() and bool(gpu_check.torch_and_gpus()[1])


def _count_processes(
    job: ScoringJob, layout: ScoringLayout, members: int, *, has_scored: bool
) -> int:
    """Return the number of processes that a run has of a kind on this machine, at most one per batch.

    One process does the work of all pools if detectors have processes of their own.

    Args:
        job: The job.
        layout: The processes of the run.
        members: The number of members.
        has_scored: Whether detectors score the sample.
    """
    if has_scored and layout.kind == "split":
        return 1
    estimate = job.groups or ResourceEstimate.from_spec(job.spec)
    fitting = int(RAY_SHARE * node_budget.node_memory() / estimate.process_bytes)
    fitting = fitting if has_scored else members
    batches = math.ceil(members / job.spec.slots)
    count = min(layout.workers, node_budget.usable_cores(), fitting, batches, MAX_PROCESSES)
    return max(count, 1)


def _write_blocks(
    run: RunDirectory, first: int, blocks: Sequence[Sequence[Item]]
) -> list[BlockRef]:
    """Write blocks of the temporary manifest, numbered from `first`, without the source's columns."""
    refs = []
    for number, members in enumerate(blocks, first):
        ids = np.array([_image_id(item) for item in members], np.int64)
        table = manifest.listed_rows(ids, [_without_columns(item) for item in members])
        rows = manifest.cut_rows(table, number, manifest.manifest_schema(None))
        name = f"{number}.parquet"
        run.store.write(manifest.path_in(_MANIFEST, name), manifest.to_parquet_bytes(rows))
        refs.append(BlockRef(_MANIFEST, number, len(members), 0, name, 0))
    return refs


def _image_id(item: Item) -> int:
    return item.image_id if isinstance(item, ManifestMember) else image_id(item)


def _without_columns(item: Item) -> ListedMember:
    """Return a member as listed, without the columns of its source, which take no time to score."""
    return replace(to_listed_member(item), input={})


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
class _BlockResult:
    """The work of a process on a block.

    Attributes:
        seconds: The seconds for each stage, by name.
        counts: The counts of all stages.
        outcomes: The (status, detail) of each member, if only a decoder worked.
    """

    seconds: Sequence[Mapping[str, float]]
    counts: Mapping[str, int]
    outcomes: Sequence[tuple[str, str | None]] = ()

    @property
    def total_s(self) -> float:
        """Seconds of all stages together."""
        return sum(sum(seconds.values()) for seconds in self.seconds)


def _work_in_parallel(
    processes: "Sequence[_WorkerProcess]", refs: Sequence[BlockRef]
) -> list[_BlockResult]:
    """Let each process work on its block, all at once."""
    for process, ref in zip(processes, refs, strict=True):
        process.send(ref)
    return [process.receive() for process in processes]


class _WorkerProcess:
    """A process that works on one block after another, and starts again if it dies.

    A decoder that crashes or hangs ends the process, like a worker of a run. The next process then
    decodes that image in a child. Use as a context manager, which ends the process.

    Args:
        job: The job for the stages.
        kind: The kind of the layout; None for a decoder only.
    """

    def __init__(self, job: ScoringJob, kind: str | None) -> None:
        self._job, self._kind = job, kind
        self._ref: BlockRef | None = None
        self._deaths = 0

    def __enter__(self) -> "_WorkerProcess":
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        arguments = (other, pickle.dumps(self._job), self._kind)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        with override_environment({**WORKER_ENVIRONMENT, **_ONE_CORE}, SECRETS):
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
        with suppress(BrokenPipeError):  # The process died, which `receive` notices.
            self._pipe.send(ref)

    def receive(self) -> _BlockResult:
        """Return the work on the block.

        Raises:
            ClusterError: If too many processes died.
            TouchstoneError: If a stage failed with this error.
        """
        while True:
            try:
                result = self._pipe.recv()
            except (EOFError, ConnectionResetError):
                self._restart()
                continue
            if isinstance(result, TouchstoneError):
                raise result
            assert isinstance(result, _BlockResult), "a process sends nothing else"
            return result

    def _restart(self) -> None:
        self._process.join()
        code, self._deaths = self._process.exitcode, self._deaths + 1
        if self._deaths > MAX_DEATHS:
            raise ClusterError(
                f"{self._deaths} processes died while they scored a sample, the last one with exit code {code}",
                hint="set cluster.workers to 1 if memory ran out, or use --probe 0 to score no sample",
            )
        self.__exit__()
        self.__enter__()
        assert self._ref is not None, "a process dies only while it works on a block"
        self.send(self._ref)


def _serve(pipe: Connection, job: bytes, kind: str | None) -> None:
    """Work on blocks until the other end of the pipe is closed."""
    # Like a worker of Ray: Linux divides a busy machine among sessions, and Ctrl-C is for the parent.
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


def _work(stages: Sequence[Stage], ref: BlockRef) -> "_BlockResult | TouchstoneError":
    """Let one stage after another work on a block."""
    message: Any = ref
    seconds, before = [], Counter[str]()
    for stage in stages:
        message = stage.take(message)
        if isinstance(message, StageFailure):
            return message.error
        assert isinstance(message, OpenBlock | BlockReport), "every block may start"
        total = Counter(message.work.seconds)  # Of this stage and of those before it.
        seconds.append({name: total[name] - before[name] for name in total})
        before = total
    outcomes = (
        [
            (str(outcome.status), outcome.detail)
            for batch in message.batches
            for outcome in batch.outcomes
        ]
        if isinstance(message, OpenBlock)
        else []
    )
    return _BlockResult(seconds, dict(message.work.counts), outcomes)
