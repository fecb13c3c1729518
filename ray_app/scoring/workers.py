"""What Ray runs: thin classes around the pure rooms. One Arrow table in, one Arrow table out, a block of members at a time.

Fused: `BlockScorer` alone. Split: `BlockDecoder` → `TensorScorer` → `BlockCommitter`, on cores, GPUs and cores.
"""

import json
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from ray_app.archives import BlockRef, member_rows, read_block
from ray_app.errors import Status, TouchstoneError
from ray_app.inference import Batch, BlockReader, Outcome, Scores, ScoringSpec, StageClock, judge, pack, unpack
from ray_app.runs import RunDirectory, result_rows
from ray_app.storage import RetryPolicy

if TYPE_CHECKING:
    from ray_app.inference.scoring import EnsembleScorer


@dataclass(frozen=True)
class Job:
    """What every worker of one session is given."""

    run: RunDirectory
    spec: ScoringSpec
    policy: RetryPolicy
    sources: tuple[str, ...]
    attempt: int
    crumbs: Path


class Worker:
    """Base of the stages. Ray loses the type of an error in a constructor, so it is kept and raised with the first block."""

    def __init__(self, job: Job) -> None:
        self._job, self._clock = job, StageClock()
        self._failed: TouchstoneError | None = None
        try:
            self.start()
        except TouchstoneError as error:
            self._failed = error

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Work on one Ray block: what the stage before gave for one block of members."""
        if self._failed is not None:
            raise self._failed
        return self.work(table)

    def start(self) -> None:
        """Load what the stage needs, once per process."""

    def work(self, table: pa.Table) -> Iterator[pa.Table]:
        """One table per block of members."""
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

    def work(self, table: pa.Table) -> Iterator[pa.Table]:
        """Block references → commit reports."""
        for ref in _refs(table):
            members = read_block(self._job.run.store, ref)
            outcomes: list[Outcome] = []
            with _counted(self._reading) as traffic:
                scores = self._scoring.score(_noting(self._reading.read(member_rows(members)), outcomes))
            yield _commit(self._job, ref, members, outcomes, scores, self._clock, traffic)


class BlockDecoder(Worker):
    """First stage of the split layout: fetches and decodes on a core; needs no torch unless a card resizes with it."""

    def start(self) -> None:
        """Start the decoder."""
        self._reading = self._reader()

    def work(self, table: pa.Table) -> Iterator[pa.Table]:
        """Block references → prepared uint8 tensors."""
        for ref in _refs(table):
            members = read_block(self._job.run.store, ref)
            with _counted(self._reading) as traffic:
                packed = pack(self._reading.read(member_rows(members)), len(self._job.spec.preprocessings))
            note = {"ref": ref, "members": members, "seconds": self._clock.take(), "traffic": traffic}
            yield packed.append_column("note", _on_first_row(note, len(packed)))


class TensorScorer(Worker):
    """Second stage: prepared tensors → detector scores; the only stage that holds a GPU."""

    def start(self) -> None:
        """Load the detectors."""
        self._scoring = self._scorer()

    def work(self, table: pa.Table) -> Iterator[pa.Table]:
        """Prepared tensors → scores, with the decoder's note carried along."""
        outcomes: list[Outcome] = []
        scores = self._scoring.score(_noting(unpack(table, len(self._job.spec.preprocessings)), outcomes))
        scored = {"outcomes": outcomes, "scores": scores, "seconds": self._clock.take()}
        yield pa.table({"note": table["note"].slice(0, 1).combine_chunks(), "scored": pa.array([pickle.dumps(scored)], pa.large_binary())})


class BlockCommitter(Worker):
    """Last stage: decides and writes the block's part, so that a GPU never waits for storage."""

    def work(self, table: pa.Table) -> Iterator[pa.Table]:
        """Scores → commit reports."""
        for packed_note, packed_scored in zip(table["note"].to_pylist(), table["scored"].to_pylist(), strict=True):
            # Both were pickled by the stages above, in this run.
            note, scored = pickle.loads(packed_note), pickle.loads(packed_scored)  # noqa: S301
            for seconds in (note["seconds"], scored["seconds"]):
                self._clock.add(seconds)
            yield _commit(self._job, note["ref"], note["members"], scored["outcomes"], scored["scores"], self._clock, note["traffic"])


def block_table(ref: BlockRef) -> pa.Table:
    """The one-row table by which a block enters the pipeline."""
    return pa.table({"ref": pa.array([pickle.dumps(ref)], pa.binary())})


def _refs(table: pa.Table) -> Iterator[BlockRef]:
    for packed in table["ref"].to_pylist():
        yield pickle.loads(packed)  # noqa: S301  (made by block_table, in the driver)


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


def _on_first_row(note: object, rows: int) -> pa.Array:
    return pa.array([pickle.dumps(note)] + [None] * (rows - 1), pa.large_binary())
