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
from ray_app.errors import Status
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


class BlockScorer:
    """The fused worker: fetches, decodes, scores and commits one block after another on one core."""

    def __init__(self, job: Job) -> None:
        self._clock = StageClock()
        self._scorer = _scorer(job.spec, self._clock)
        self._reader = BlockReader(job.spec, self._clock, policy=job.policy, signed=job.sources, crumbs=job.crumbs)
        self._job = job

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.concat_tables([self._one(ref) for ref in _refs(table)])

    def _one(self, ref: BlockRef) -> pa.Table:
        members = read_block(self._job.run.store, ref)
        outcomes: list[Outcome] = []
        with _counted(self._reader) as traffic:
            scores = self._scorer.score(_noting(self._reader.read(member_rows(members)), outcomes))
        return _commit(self._job, ref, members, outcomes, scores, self._clock, traffic)


class BlockDecoder:
    """First stage of the split layout: a block's members → prepared uint8 tensors."""

    def __init__(self, job: Job) -> None:
        self._clock = StageClock()
        self._reader = BlockReader(job.spec, self._clock, policy=job.policy, signed=job.sources, crumbs=job.crumbs)
        self._job = job

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for ref in _refs(table):
            members = read_block(self._job.run.store, ref)
            with _counted(self._reader) as traffic:
                packed = pack(self._reader.read(member_rows(members)), len(self._job.spec.preprocessings))
            note = {"ref": ref, "members": members, "seconds": self._clock.take(), "traffic": traffic}
            yield packed.append_column("note", _on_first_row(note, len(packed)))


class TensorScorer:
    """Second stage: prepared tensors → detector scores; the only stage that holds a GPU."""

    def __init__(self, job: Job) -> None:
        self._clock = StageClock()
        self._scorer = _scorer(job.spec, self._clock)
        self._preprocessings = len(job.spec.preprocessings)

    def __call__(self, table: pa.Table) -> pa.Table:
        outcomes: list[Outcome] = []
        scores = self._scorer.score(_noting(unpack(table, self._preprocessings), outcomes))
        scored = {"outcomes": outcomes, "scores": scores, "seconds": self._clock.take()}
        return pa.table({"note": table["note"].slice(0, 1).combine_chunks(), "scored": pa.array([pickle.dumps(scored)], pa.large_binary())})


class BlockCommitter:
    """Last stage: decides and writes the block's part, so that a GPU never waits for storage."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.concat_tables([self._one(*row) for row in zip(table["note"].to_pylist(), table["scored"].to_pylist(), strict=True)])

    def _one(self, packed_note: bytes, packed_scored: bytes) -> pa.Table:
        # Both were pickled by the stages above, in this run.
        note, scored = pickle.loads(packed_note), pickle.loads(packed_scored)  # noqa: S301
        clock = StageClock()
        for seconds in (note["seconds"], scored["seconds"]):
            clock.add(seconds)
        return _commit(self._job, note["ref"], note["members"], scored["outcomes"], scored["scores"], clock, note["traffic"])


def block_table(ref: BlockRef) -> pa.Table:
    """The one-row table by which a block enters the pipeline."""
    return pa.table({"ref": pa.array([pickle.dumps(ref)], pa.binary())})


def _refs(table: pa.Table) -> Iterator[BlockRef]:
    for packed in table["ref"].to_pylist():
        yield pickle.loads(packed)  # noqa: S301  (made by block_table, in the driver)


def _scorer(spec: ScoringSpec, clock: StageClock) -> "EnsembleScorer":
    from ray_app.inference.scoring import EnsembleScorer  # torch: only where something is scored

    return EnsembleScorer(spec, clock)


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
