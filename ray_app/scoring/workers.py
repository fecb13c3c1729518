"""The stages that Ray runs, each a class that takes one message about a block of members and gives one.

Fused: `BlockScorer` alone. Split: `BlockDecoder` → `TensorScorer`, one pool after another → `BlockDescriber`, where a describer has
processes of its own → `BlockCommitter`.
"""

import math
import os
import resource
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from ray_app.archives import BlockRef, member_rows, read_block
from ray_app.cluster.shutdown import OUT_OF_MEMORY_HINT, Attempts, StopNote
from ray_app.detectors import MIRROR_VARIABLE
from ray_app.errors import ClusterError, TouchstoneError, describe_error, is_want_of_memory
from ray_app.inference import BatchDecoder, BlockReader, DecodeResult, DetectorOutputs, ScoringSpec, StageClock, decision, judge, reuse
from ray_app.inference.decoder import BUDGET, WALL_LIMIT_S
from ray_app.inference.scorer import Describing, describer_inputs, rows_to_describe
from ray_app.runs import RunDirectory, block_tables, score_index, write_features
from ray_app.runs.rows import BlockTables
from ray_app.scoring import messages
from ray_app.storage import Fetcher, node_budget

if TYPE_CHECKING:
    from ray_app.inference.batch import File
    from ray_app.inference.scorer import DescriberInputs
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
    """Base of the stages: each works on messages of one state, and passes all others on.

    What it meets travels to the driver as a `FailedBlock`, since Ray keeps only the text of an exception.
    """

    takes: ClassVar = messages.BlockState.OPEN

    def __init__(self, job: ScoringJob, pool: tuple[str, ...] | None = None) -> None:
        import ray

        self._job, self._pool, self._clock = job, pool, StageClock()
        self._failed: TouchstoneError | None = None
        self._attempts = Attempts(job.crumbs, type(self).__name__)
        self._counting: tuple[Any, ...] = ()  # whatever counts what this worker does
        self._counted: Counter[str] = Counter()
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""  # the stages also work without a cluster
        self._note = StopNote(job.run.store, job.attempt, node)
        if job.mirror is not None:
            os.environ[MIRROR_VARIABLE] = job.mirror
        try:
            self.start()
        except Exception as error:
            self._failed = _translated(error, type(self).__name__)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Work on one row: what the stage before gave for one block of members."""
        if table["state"][0].as_py() != self.takes:
            return table
        try:
            message = messages.message_of(table)
            if isinstance(message, messages.PendingBlock) and self._note.closes_intake():
                return messages.table_of(messages.HandedBack(message.ref))
            return messages.table_of(messages.FailedBlock(self._failed) if self._failed else self.work(message))
        except Exception as error:
            return messages.table_of(messages.FailedBlock(_translated(error, type(self).__name__)))

    def start(self) -> None:
        """Load what the stage needs, once per process."""

    def work(self, block: Any) -> messages.Message:
        """What `__call__` does with a message of the state that the stage takes, once everything is loaded."""
        raise NotImplementedError

    def _work(self) -> messages.BlockWork:
        """What was done since the last call."""
        total = Counter[str]()
        for one in self._counting:
            total.update(one.counts)
        done = Counter(total)
        done.subtract(self._counted)
        self._counted = total
        return messages.BlockWork(self._clock.take(), done, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    def _commit(self, ref: BlockRef, members: pa.Table, outcomes: Sequence[DecodeResult], outputs: DetectorOutputs) -> BlockTables:
        """Decide on every member, and write the block's part."""
        job = self._job
        with self._clock("write"):
            made = block_tables(
                members,
                judge(job.spec, outcomes, outputs, self._clock),
                attempt=job.attempt,
                scored_at=datetime.now(UTC),
                perceptual_hash=job.spec.perceptual_hash,
                measured=job.spec.measured,
                features=job.spec.features,
            )
            if made.masks is not None:
                job.run.write_masks(ref.manifest, ref.block, made.masks)
            for name, rows in made.features.items():
                write_features(job.run, ref.manifest, ref.block, name, rows)
            job.run.write_part(ref.manifest, ref.block, made.rows)
        return made

    def _reader(self, *, hand_over: bool = False) -> BlockReader:
        """Of what every image is prepared for; which of them are looked at again is known later."""
        job = self._job
        recall = None if job.known is None else reuse.ScoreCache(job.spec, score_index.ScoreIndex(job.known, job.crumbs / "reuse"))
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
        from ray_app.inference.second_pass import KEPT_BYTES, CascadeScorer, StabilityScorer

        scorer = EnsembleScorer(self._job.spec, self._clock, self._pool)
        views = StabilityScorer(self._job.spec, scorer, decoder, self._clock) if self._job.spec.stability else None
        kept_bytes = math.inf if holds_block else KEPT_BYTES  # where the files of a block have arrived together, they are all here anyway
        spec = self._job.spec
        return CascadeScorer(spec, scorer, decoder, self._clock, kept_bytes=kept_bytes, recompressing=views, describing=describing)


class BlockScorer(Worker):
    """The fused layout: fetches, decodes, scores and commits one block after another on one core."""

    takes = messages.BlockState.PENDING

    def start(self) -> None:
        """Load the detectors, and the describer."""
        self._reading = self._reader()
        describing = Describing(self._job.spec, self._clock) if self._job.spec.describer else None
        self._scoring = self._looking(self._reading.decoder, describing=describing).simplest
        self._counting = (self._reading.fetcher, self._reading.decoder, self._scoring)

    def work(self, block: messages.PendingBlock) -> messages.BlockReport:
        """A reference → the report of its committed part."""
        members = read_block(self._job.run.store, block.ref)
        outcomes: list[DecodeResult] = []
        with self._attempts.of(block.ref, members["uri"][0].as_py()):
            outputs = self._scoring.score(self._reading.read(member_rows(members), outcomes))
        if self._reading.recall is not None:  # for members of the same bytes
            self._reading.recall.learn(outcomes, outputs)
        made = self._commit(block.ref, members, outcomes, outputs)
        return messages.BlockReport(block.ref, made.bad, self._work(), made.failures)


class BlockDecoder(Worker):
    """First stage of the split layout: fetches and decodes on a core; needs no torch unless a card resizes with it."""

    takes = messages.BlockState.PENDING

    def start(self) -> None:
        """Start the decoder."""
        self._reading = self._reader(hand_over=True)
        self._counting = (self._reading.fetcher, self._reading.decoder)

    def work(self, block: messages.PendingBlock) -> messages.OpenBlock:
        """A reference → prepared uint8 tensors, and encoded files for detectors that keep sizes."""
        members = read_block(self._job.run.store, block.ref)
        with self._attempts.of(block.ref, members["uri"][0].as_py()):
            batches = tuple(self._reading.read(member_rows(members)))
        return messages.OpenBlock(block.ref, members, self._work(), batches)


class TensorScorer(Worker):
    """A stage in the middle: one pool of detectors reads prepared tensors, on a GPU where there is one."""

    def start(self) -> None:
        """Load the pool's detectors; in the last pool also the describer, unless it has processes of its own."""
        # Pixels are read where Ray has them, and no detector writes to what it is given.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        spec = self._job.spec
        here = spec.describer is not None and not spec.describes_apart and self._pool == spec.pools[-1]
        self._describing = Describing(spec, self._clock) if here else None
        budget = node_budget.NodeBudget(BUDGET, self._job.decode_bytes)
        self._decoding = BatchDecoder(spec.early, self._clock, keeps_files=spec.looks_again, budget=budget)
        self._scoring = self._looking(self._decoding, holds_block=True)
        self._counting = (self._scoring, self._decoding, *((self._describing,) if self._describing else ()))

    def work(self, block: messages.OpenBlock) -> messages.OpenBlock:
        """Prepared tensors → the same with what this pool says of them; the last pool drops them. Once a cascade's first detectors have
        spoken, only the files of members that go on travel further, and what the describer may look at.
        """
        spec, outcomes, seen = self._job.spec, block.outcomes, block.seen
        with self._attempts.of(block.ref, block.members["uri"][0].as_py()):
            if block.batches:
                outcomes = [outcome for batch in block.batches for outcome in batch.outcomes]
                seen = [image for batch in block.batches for image in describer_inputs(spec, batch)] if spec.describer else ()
                outputs = self._scoring.score(map(self._decoding.complete, block.batches))
            else:
                outputs = self._scoring.again(outcomes, block.files, block.outputs)
            if self._describing is not None:
                outputs = self._describing.after(outcomes, block.outputs.joined(outputs), seen)
        scored = block.after(self._work(), outcomes, outputs)
        if self._pool == spec.pools[-1]:
            return replace(scored, batches=(), files=(), seen=_wanted(spec, scored, seen))
        if block.batches and spec.late and scored.outputs.scores.keys() >= set(spec.first):
            return replace(scored, batches=(), files=_going_on(spec, scored), seen=seen)
        return scored


class BlockDescriber(Worker):
    """A stage of its own for a describer too large to share a process: after all detectors, before what is written."""

    def start(self) -> None:
        """Load the describer."""
        self._describing = Describing(self._job.spec, self._clock)
        self._counting = (self._describing,)

    def work(self, block: messages.OpenBlock) -> messages.OpenBlock:
        """Outputs, and what is to be looked at of the members that the profile asks for → the outputs with words."""
        with self._attempts.of(block.ref, block.members["uri"][0].as_py()):
            outputs = self._describing.after(block.outcomes, block.outputs, block.seen)
        return replace(block.after(self._work(), block.outcomes, outputs), seen=())


class BlockCommitter(Worker):
    """Last stage: decides and writes the block's part, so that a GPU never waits for storage."""

    def work(self, block: messages.OpenBlock) -> messages.BlockReport:
        """Outputs → the report of the committed part."""
        made = self._commit(block.ref, block.members, block.outcomes, block.outputs)
        return messages.BlockReport(block.ref, made.bad, block.work.joined(messages.BlockWork(self._clock.take())), made.failures)


def _translated(error: Exception, stage: str) -> TouchstoneError:
    if isinstance(error, TouchstoneError):
        return error
    if is_want_of_memory(error):
        return ClusterError(f"{stage} ran out of memory: {describe_error(error)}", hint=OUT_OF_MEMORY_HINT)
    return TouchstoneError(f"{stage} failed:\n{traceback.format_exc()}", hint="this looks like a bug; what is committed is kept")


def _going_on(spec: ScoringSpec, block: messages.OpenBlock) -> "list[tuple[int, File] | None]":
    """The files of the members that a cascade's later pools look at."""
    from ray_app.inference.second_pass import files_of  # torch: only where something is scored

    going = set(decision.second_stage_rows(spec, block.outcomes, block.outputs))
    return [file if row in going else None for row, file in enumerate(file for batch in block.batches for file in files_of(batch))]


def _wanted(spec: ScoringSpec, block: messages.OpenBlock, seen: "DescriberInputs") -> "DescriberInputs":
    """What a describer with processes of its own is to look at; nothing where it is given embeddings, or has spoken."""
    if not spec.describes_apart or spec.words_seen is None:
        return ()
    asked = set(rows_to_describe(spec, block.outcomes, block.outputs))
    return [image if row in asked else None for row, image in enumerate(seen)]
