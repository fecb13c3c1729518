"""What Ray runs: thin classes around the pure rooms. One row in, one row out; a row is a block of members.

Fused: `BlockScorer` alone. Split: `BlockDecoder` → `TensorScorer`, one pool after another → `BlockDescriber`, where a describer has
processes of its own → `BlockCommitter`.
"""

import math
import os
import resource
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_app.archives import BlockRef, member_rows, read_block
from ray_app.cluster.attempts import OUT_OF_MEMORY_HINT, Attempts
from ray_app.cluster.shutdown import StopNote
from ray_app.detectors import MIRROR_VARIABLE
from ray_app.errors import ClusterError, TouchstoneError, is_want_of_memory, said
from ray_app.inference import Batch, BatchDecoder, BlockReader, DecodeResult, DetectorOutputs, ScoringSpec, StageClock, judge, pack, unpack
from ray_app.inference.batch import Pixels
from ray_app.inference.captions import Describing, asked_for, seen_by_describer
from ray_app.inference.decision import going_on
from ray_app.inference.decoder import BUDGET, WALL_LIMIT_S
from ray_app.inference.reuse import ScoreCache
from ray_app.runs import RunDirectory, block_tables, write_features
from ray_app.runs.score_index import ScoreIndex
from ray_app.scoring.messages import REF, error_table, handed_back, is_settled, pickled, ref_of, report_table, unpickled
from ray_app.storage import Fetcher
from ray_app.storage.node_budget import NodeBudget

if TYPE_CHECKING:
    from ray_app.inference.batch import File
    from ray_app.inference.captions import Seen
    from ray_app.inference.second_pass import CascadeScorer


@dataclass(frozen=True)
class ScoringJob:
    """What every worker of one session is given."""

    run: RunDirectory
    spec: ScoringSpec
    fetcher: Fetcher
    attempt: int
    crumbs: Path
    mirror: str | None
    decode_limit_s: float = WALL_LIMIT_S
    known: RunDirectory | None = None  # the run whose scores may be copied to members of the same bytes
    decode_bytes: int | None = None  # what large images may take together on a node; None = a quarter of its memory


class Worker:
    """Base of the stages. What fails travels to the driver as a row of its own, since Ray keeps only the text of an exception."""

    def __init__(self, job: ScoringJob, pool: tuple[str, ...] | None = None) -> None:
        import ray

        self._job, self._pool, self._clock = job, pool, StageClock()
        self._failed: TouchstoneError | None = None
        self._attempts = Attempts(job.crumbs)
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""  # the stages also work without a cluster
        self._note = StopNote(job.run.store, job.attempt, node)
        if job.mirror is not None:
            os.environ[MIRROR_VARIABLE] = job.mirror
        try:
            self.start()
        except Exception as error:
            self._failed = _told(error, type(self).__name__)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Work on one row: what the stage before gave for one block of members."""
        if is_settled(table):
            return table
        try:
            if REF in table.column_names and self._note.closes_intake():
                return handed_back(table)
            return error_table(self._failed) if self._failed else self.work(table)
        except Exception as error:
            return error_table(_told(error, type(self).__name__))

    def start(self) -> None:
        """Load what the stage needs, once per process."""

    def work(self, table: pa.Table) -> pa.Table:
        """What `__call__` does, once everything is loaded."""
        raise NotImplementedError

    def _attempt(self, ref: BlockRef, members: pa.Table) -> AbstractContextManager[None]:
        """While a block is worked on. Raises ClusterError when it killed its worker too often."""
        what = f"block {ref.block} of manifest {ref.manifest} ({ref.members} members from {members['uri'][0]} on)"
        return self._attempts.of(f"{type(self).__name__}-{ref.manifest}-{ref.block}", what)

    def _reader(self, *, hand_over: bool = False) -> BlockReader:
        """Of what every image is prepared for; which of them are looked at again is known later."""
        job = self._job
        recall = None if job.known is None else ScoreCache(job.spec, ScoreIndex(job.known, job.crumbs / "reuse"))
        return BlockReader(
            job.spec.early,
            self._clock,
            fetcher=job.fetcher,
            crumbs=job.crumbs,
            hand_over=hand_over,
            keeps_files=job.spec.looks_again,
            wall_limit_s=job.decode_limit_s,
            recall=recall,
            decode_bytes=job.decode_bytes,
        )

    def _looking(self, decoder: BatchDecoder, *, describing: Describing | None = None, holds_block: bool = False) -> "CascadeScorer":
        from ray_app.inference.scorer import EnsembleScorer
        from ray_app.inference.second_pass import (
            KEPT_BYTES,
            CascadeScorer,
            Recompressing,  # torch: only where something is scored
        )

        scorer = EnsembleScorer(self._job.spec, self._clock, self._pool)
        views = Recompressing(self._job.spec, scorer, decoder, self._clock) if self._job.spec.stability else None
        kept_bytes = math.inf if holds_block else KEPT_BYTES  # where the files of a block have arrived together, they are all here anyway
        spec = self._job.spec
        return CascadeScorer(spec, scorer, decoder, self._clock, kept_bytes=kept_bytes, recompressing=views, describing=describing)


class BlockScorer(Worker):
    """The fused layout: fetches, decodes, scores and commits one block after another on one core."""

    def start(self) -> None:
        """Load the detectors, and the describer."""
        self._reading = self._reader()
        describing = Describing(self._job.spec, self._clock) if self._job.spec.describer else None
        self._scoring = self._looking(self._reading.decoder, describing=describing)

    def work(self, table: pa.Table) -> pa.Table:
        """Block references → commit reports."""
        ref = ref_of(table)
        members = read_block(self._job.run.store, ref)
        outcomes: list[DecodeResult] = []
        with self._attempt(ref, members), _counted(self._reading, self._scoring) as counts:
            outputs = self._scoring.score(_noting(self._reading.read(member_rows(members)), outcomes))
        self._reading.learn(outcomes, outputs)
        return _commit(self._job, Note(ref, members, counts, {}, _peak_bytes(), outcomes, outputs), self._clock)


class BlockDecoder(Worker):
    """First stage of the split layout: fetches and decodes on a core; needs no torch unless a card resizes with it."""

    def start(self) -> None:
        """Start the decoder."""
        self._reading = self._reader(hand_over=True)

    def work(self, table: pa.Table) -> pa.Table:
        """Block references → prepared uint8 tensors, and encoded files for detectors that keep sizes."""
        ref = ref_of(table)
        members = read_block(self._job.run.store, ref)
        with self._attempt(ref, members), _counted(self._reading) as counts:
            packed = pack(self._reading.read(member_rows(members)), self._job.spec.early.preprocessings)
        return packed.append_column("note", pickled(Note(ref, members, counts, self._clock.take(), _peak_bytes())))


class TensorScorer(Worker):
    """A stage in the middle: one pool of detectors reads prepared tensors, on a GPU where there is one."""

    def start(self) -> None:
        """Load the pool's detectors; in the last pool also the describer, unless it has processes of its own."""
        spec = self._job.spec
        here = spec.describer is not None and not spec.describes_apart and self._pool == spec.pools[-1]
        self._describing = Describing(spec, self._clock) if here else None
        budget = NodeBudget(BUDGET, self._job.decode_bytes)
        self._decoding = BatchDecoder(spec.early, self._clock, keeps_files=spec.looks_again, budget=budget)
        self._scoring = self._looking(self._decoding, holds_block=True)

    def work(self, table: pa.Table) -> pa.Table:
        """Prepared tensors → the same with what this pool says of them; the last pool drops them. Once a cascade's first detectors have
        spoken, only the files of members that go on travel further, and what the describer may look at.
        """
        spec = self._job.spec
        note: Note = unpickled(table["note"])
        outcomes, seen = list[DecodeResult](), list[Pixels | None](note.seen)
        with self._attempt(note.ref, note.members), _counted(self._scoring, self._decoding, self._describing) as counts:
            if "outcomes" in table.column_names:
                batches = (self._decoding.complete(batch) for batch in unpack(table, spec.early.preprocessings))
                outputs = self._scoring.score(_seeing(spec, _noting(batches, outcomes), seen))
            else:
                outcomes = note.outcomes
                outputs = self._scoring.again(outcomes, note.files, note.outputs)
            if self._describing is not None:
                outputs = self._describing.after(outcomes, note.outputs.joined(outputs), seen)
        note = note.joined(outcomes, outputs, counts, self._clock.take())
        if self._pool == spec.pools[-1]:
            return pa.table({"note": pickled(replace(note, files=(), seen=_wanted(spec, note, seen)))})
        if spec.late and note.outputs.scores.keys() >= set(spec.first):
            return pa.table({"note": pickled(note if note.files else replace(note, files=_going_on(spec, note, table), seen=seen))})
        return table.drop_columns(["note"]).append_column("note", pickled(note))


class BlockDescriber(Worker):
    """A stage of its own for a describer too large to share a process: after all detectors, before what is written."""

    def start(self) -> None:
        """Load the describer."""
        self._describing = Describing(self._job.spec, self._clock)

    def work(self, table: pa.Table) -> pa.Table:
        """Outputs, and what is to be looked at of the members that the profile asks for → the outputs with words."""
        note: Note = unpickled(table["note"])
        with self._attempt(note.ref, note.members), _counted(self._describing) as counts:
            outputs = self._describing.after(note.outcomes, note.outputs, note.seen)
        note = note.joined(note.outcomes, outputs, counts, self._clock.take())
        return pa.table({"note": pickled(replace(note, seen=()))})


@dataclass(frozen=True)
class Note:
    """What travels with a block through the stages of the split layout."""

    ref: BlockRef
    members: pa.Table
    counts: Mapping[str, int]
    seconds: Mapping[str, float]
    peak_bytes: int
    outcomes: list[DecodeResult] = field(default_factory=list)
    outputs: DetectorOutputs = field(default_factory=DetectorOutputs)
    files: "Sequence[tuple[int, File] | None]" = ()  # of members that go on, for pools that look again
    seen: "Seen" = ()  # what the describer may look at, once the tensors travel no further

    def joined(
        self, outcomes: list[DecodeResult], outputs: DetectorOutputs, counts: Mapping[str, int], seconds: Mapping[str, float]
    ) -> "Note":
        """With what one more pool found."""
        together = Counter(self.counts)
        together.update(counts)  # a sum of counters would forget what was counted and is none, such as second looks
        return replace(
            self,
            outcomes=outcomes,
            outputs=self.outputs.joined(outputs),
            counts=together,
            seconds={stage: self.seconds[stage] + spent for stage, spent in seconds.items()},
            peak_bytes=max(self.peak_bytes, _peak_bytes()),
        )


class BlockCommitter(Worker):
    """Last stage: decides and writes the block's part, so that a GPU never waits for storage."""

    def work(self, table: pa.Table) -> pa.Table:
        """Outputs → commit reports."""
        note: Note = unpickled(table["note"])
        self._clock.add(note.seconds)
        return _commit(self._job, note, self._clock)


def _told(error: Exception, stage: str) -> TouchstoneError:
    if isinstance(error, TouchstoneError):
        return error
    if is_want_of_memory(error):
        return ClusterError(f"{stage} ran out of memory: {said(error)}", hint=OUT_OF_MEMORY_HINT)
    return TouchstoneError(f"{stage} failed:\n{traceback.format_exc()}", hint="this looks like a bug; what is committed is kept")


def _going_on(spec: ScoringSpec, note: Note, table: pa.Table) -> "list[tuple[int, File] | None]":
    """The files of the members that a cascade's later pools look at."""
    files, ids = table["encoded"].combine_chunks().flatten(), note.members["image_id"]
    going = set(going_on(spec, note.outcomes, note.outputs))
    return [(ids[row].as_py(), files[row].as_py()) if row in going else None for row in range(len(note.outcomes))]


def _wanted(spec: ScoringSpec, note: Note, seen: "Seen") -> "Seen":
    """What a describer with processes of its own is to look at; nothing where it is given embeddings, or has spoken."""
    if not spec.describes_apart or spec.words_seen is None:
        return ()
    asked = set(asked_for(spec, note.outcomes, note.outputs))
    return [image if row in asked else None for row, image in enumerate(seen)]


def _seeing(spec: ScoringSpec, batches: Iterable[Batch], seen: list[Pixels | None]) -> Iterator[Batch]:
    for batch in batches:
        if spec.describer is not None:
            seen.extend(seen_by_describer(spec, batch))
        yield batch


def _noting(batches: Iterable[Batch], outcomes: list[DecodeResult]) -> Iterator[Batch]:
    for batch in batches:
        outcomes.extend(batch.outcomes)
        yield batch


def _commit(job: ScoringJob, note: Note, clock: StageClock) -> pa.Table:
    ref, members = note.ref, note.members
    with clock("write"):
        made = block_tables(
            members,
            judge(job.spec, note.outcomes, note.outputs, clock),
            attempt=job.attempt,
            scored_at=datetime.now(UTC),
            perceptual_hash=job.spec.perceptual_hash,
            features=job.spec.features,
        )
        if made.masks is not None:
            job.run.write_masks(ref.manifest, ref.block, made.masks)
        for name, rows in made.features.items():
            write_features(job.run, ref.manifest, ref.block, name, rows)
        job.run.write_part(ref.manifest, ref.block, made.rows)
    facts = {"seconds": clock.take(), "counts": note.counts, "peak_bytes": note.peak_bytes, "failures": made.failures}
    return report_table({"manifest": ref.manifest, "block": ref.block, "members": len(members), "bad": made.bad, **facts})


@contextmanager
def _counted(*workers: Any) -> Iterator[dict[str, int]]:
    """What was counted while one block was worked on, known when the context ends."""
    before = _counts(workers)
    counted: dict[str, int] = {}
    yield counted
    counted.update({name: count - before[name] for name, count in _counts(workers).items()})


def _counts(workers: Iterable[Any]) -> dict[str, int]:
    counts = Counter[str]()
    for worker in workers:
        counts.update({} if worker is None else worker.counts)
    return counts


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
