"""What Ray runs: thin classes around the pure rooms. One row in, one row out; a row is a block of members.

Fused: `BlockScorer` alone. Split: `BlockDecoder` → `TensorScorer` → `BlockCommitter`, on cores, GPUs and cores.
"""

import json
import os
import pickle
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_app.archives import BlockRef, member_rows, read_block
from ray_app.detectors import MIRROR_VARIABLE
from ray_app.errors import Status, TouchstoneError
from ray_app.inference import Batch, BlockReader, Outcome, Scores, ScoringSpec, StageClock, judge, pack, unpack
from ray_app.runs import RunDirectory, result_rows
from ray_app.storage import RetryPolicy

if TYPE_CHECKING:
    from ray_app.inference.scoring import EnsembleScorer

ERROR = "error"  # the one column of a row that stands for a block which could not be worked on

Report = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What every worker of one session is given."""

    run: RunDirectory
    spec: ScoringSpec
    policy: RetryPolicy
    sources: tuple[str, ...]
    attempt: int
    crumbs: Path
    mirror: str | None


class Worker:
    """Base of the stages. What fails travels to the driver as a row of its own, since Ray keeps only the text of an exception."""

    def __init__(self, job: Job) -> None:
        self._job, self._clock = job, StageClock()
        self._failed: TouchstoneError | None = None
        if job.mirror is not None:
            os.environ[MIRROR_VARIABLE] = job.mirror
        try:
            self.start()
        except Exception as error:
            self._failed = _told(error, type(self).__name__)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Work on one row: what the stage before gave for one block of members."""
        if ERROR in table.column_names:
            return table
        try:
            return pa.table({ERROR: _pickled(self._failed)}) if self._failed else self.work(table)
        except Exception as error:
            return pa.table({ERROR: _pickled(_told(error, type(self).__name__))})

    def start(self) -> None:
        """Load what the stage needs, once per process."""

    def work(self, table: pa.Table) -> pa.Table:
        """What `__call__` does, once everything is loaded."""
        raise NotImplementedError

    def _reader(self) -> BlockReader:
        job = self._job
        return BlockReader(job.spec, self._clock, policy=job.policy, signed=job.sources, crumbs=job.crumbs)

    def _scorer(self) -> "EnsembleScorer":
        from ray_app.inference.scoring import EnsembleScorer  # torch: only where something is scored

        return EnsembleScorer(self._job.spec, self._clock)


class BlockScorer(Worker):
    """The fused layout: fetches, decodes, scores and commits one block after another on one core."""

    def start(self) -> None:
        """Load the detectors."""
        self._scoring, self._reading = self._scorer(), self._reader()

    def work(self, table: pa.Table) -> pa.Table:
        """Block references → commit reports."""
        ref = _ref(table)
        members = read_block(self._job.run.store, ref)
        outcomes: list[Outcome] = []
        with _counted(self._reading) as traffic:
            scores = self._scoring.score(_noting(self._reading.read(member_rows(members)), outcomes))
        return _commit(self._job, ref, members, outcomes, scores, self._clock, traffic)


class BlockDecoder(Worker):
    """First stage of the split layout: fetches and decodes on a core; needs no torch unless a card resizes with it."""

    def start(self) -> None:
        """Start the decoder."""
        self._reading = self._reader()

    def work(self, table: pa.Table) -> pa.Table:
        """Block references → prepared uint8 tensors."""
        ref = _ref(table)
        members = read_block(self._job.run.store, ref)
        with _counted(self._reading) as traffic:
            packed = pack(self._reading.read(member_rows(members)), len(self._job.spec.preprocessings))
        note = {"ref": ref, "members": members, "seconds": self._clock.take(), "traffic": traffic}
        return packed.append_column("note", _pickled(note))


class TensorScorer(Worker):
    """Second stage: prepared tensors → detector scores; the only stage that holds a GPU."""

    def start(self) -> None:
        """Load the detectors."""
        self._scoring = self._scorer()

    def work(self, table: pa.Table) -> pa.Table:
        """Prepared tensors → scores, with the decoder's note carried along."""
        outcomes: list[Outcome] = []
        scores = self._scoring.score(_noting(unpack(table, len(self._job.spec.preprocessings)), outcomes))
        scored = {"outcomes": outcomes, "scores": scores, "seconds": self._clock.take()}
        return pa.table({"note": table["note"], "scored": _pickled(scored)})


class BlockCommitter(Worker):
    """Last stage: decides and writes the block's part, so that a GPU never waits for storage."""

    def work(self, table: pa.Table) -> pa.Table:
        """Scores → commit reports."""
        # Both were pickled by the stages above, in this run.
        note, scored = (pickle.loads(table[name][0].as_py()) for name in ("note", "scored"))  # noqa: S301
        for seconds in (note["seconds"], scored["seconds"]):
            self._clock.add(seconds)
        return _commit(self._job, note["ref"], note["members"], scored["outcomes"], scored["scores"], self._clock, note["traffic"])


def block_table(ref: BlockRef) -> pa.Table:
    """The one-row table by which a block enters the pipeline."""
    return pa.table({"ref": pa.array([pickle.dumps(ref)], pa.binary())})


def report_of(table: pa.Table) -> Report:
    """The report on a committed block. Raises the TouchstoneError that a worker met instead."""
    if ERROR in table.column_names:
        raise pickle.loads(table[ERROR][0].as_py())  # noqa: S301  (made by a worker of this run)
    report: Report = json.loads(table["report"][0].as_py())
    return report


def _told(error: Exception, stage: str) -> TouchstoneError:
    if isinstance(error, TouchstoneError):
        return error
    return TouchstoneError(f"{stage} failed:\n{traceback.format_exc()}", hint="this looks like a bug; what is committed is kept")


def _ref(table: pa.Table) -> BlockRef:
    ref: BlockRef = pickle.loads(table["ref"][0].as_py())  # noqa: S301  (made by block_table, in the driver)
    return ref


def _noting(batches: Iterable[Batch], outcomes: list[Outcome]) -> Iterator[Batch]:
    for batch in batches:
        outcomes.extend(batch.outcomes)
        yield batch


def _commit(job: Job, ref: BlockRef, members: pa.Table, outcomes: list[Outcome], scores: Scores, clock: StageClock,
            traffic: dict[str, int]) -> pa.Table:  # fmt: skip
    with clock("write"):
        rows = result_rows(members, judge(job.spec, outcomes, scores), attempt=job.attempt, scored_at=datetime.now(UTC))
        job.run.write_part(ref.manifest, ref.block, rows)
    bad = sum(outcome.status not in (Status.OK, Status.UNSUPPORTED_FORMAT) for outcome in outcomes)
    report = {"block": ref.block, "members": len(members), "bad": bad, "seconds": clock.take(), **traffic}
    return pa.table({"report": [json.dumps(report)]})


@contextmanager
def _counted(reader: BlockReader) -> Iterator[dict[str, int]]:
    """Bytes, retries and throttled requests of one block, known when the context ends."""
    counts = ("bytes_read", "retried", "throttled")
    before = [getattr(reader.fetcher, count) for count in counts]
    traffic = dict.fromkeys(counts, 0)
    yield traffic
    traffic.update({count: getattr(reader.fetcher, count) - start for count, start in zip(counts, before, strict=True)})


def _pickled(value: object) -> pa.Array:
    return pa.array([pickle.dumps(value)], pa.large_binary())
