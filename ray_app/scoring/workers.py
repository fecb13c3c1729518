"""The stages of a pipeline, each a class that takes one message and gives one; a worker is a process that holds one of them.

Fused: `BlockScorer` alone. Split: `PieceDecoder` → `TensorScorer`, one pool after another → `BlockDescriber`, where a describer has
processes of its own. `commit_block` ends both.
"""

import math
import os
import platform
import resource
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ray_app import __version__
from ray_app.archives import BlockRef, member_rows, read_block
from ray_app.cluster import versions
from ray_app.cluster.ray_cluster import own_node
from ray_app.cluster.shutdown import OUT_OF_MEMORY_HINT, Attempts
from ray_app.detectors import MIRROR_VARIABLE
from ray_app.detectors.card import default_slots
from ray_app.detectors.cpu import cpu_precision
from ray_app.errors import ClusterError, TouchstoneError, describe_error, is_want_of_memory
from ray_app.inference import BatchDecoder, BlockReader, DecodeResult, DetectorOutputs, ScoringSpec, StageClock, decision, judge, reuse
from ray_app.inference.decoder import BUDGET, WALL_LIMIT_S
from ray_app.runs import RunDirectory, arrow, block_tables, partials, score_index, write_features
from ray_app.runs.rows import BlockTables
from ray_app.scoring import messages
from ray_app.storage import Fetcher, node_budget

if TYPE_CHECKING:
    from ray_app.inference.batch import File
    from ray_app.inference.scorer import DescriberInputs, Describing
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
    pieces: tuple[int, ...] = ()  # split layout: how many members of a whole block come to a scorer together
    compiled: bool = False  # networks on a GPU run compiled where their scores stay
    version: str = __version__  # of the driver: a node that comes late may have another
    whole: ScoringSpec | None = None  # of all detectors, where `spec` is of those of one pass, or some have spoken in an earlier one
    earlier: Sequence[frozenset[str]] = ()  # groups of detectors that may have spoken of a block before


class Worker:
    """Base of the stages. What one meets is a `FailedBlock`, since Ray keeps only the text of an exception.

    `pool`: the detectors of one that scores. Not `at_once`: it loads nothing before `load`, so that its node is known meanwhile.
    """

    def __init__(self, job: ScoringJob, pool: tuple[str, ...] | None = None, *, at_once: bool = True) -> None:
        arrow.leave_pandas_out()
        self._job, self._pool, self._clock = job, pool, StageClock()
        self._failed: TouchstoneError | None = None
        self._is_loaded = False
        self._attempts = Attempts(job.crumbs, type(self).__name__)
        self._counting: tuple[Any, ...] = ()  # whatever counts what this worker does
        self._counted: Counter[str] = Counter()
        self._emulating = frozenset[str]()
        if job.mirror is not None:
            os.environ[MIRROR_VARIABLE] = job.mirror
        if at_once:
            self.load()

    def node(self) -> str:
        """The node that it stands on."""
        return own_node()

    def load(self) -> None:
        """Start, once, and keep what is met for whoever gives it something to do."""
        if self._is_loaded:
            return
        self._is_loaded = True
        try:
            versions.require_same(self._job.version)
            self.start()
        except Exception as error:
            self._failed = translated(error, type(self).__name__)

    def take(self, message: Any) -> Any:
        """Work on what the stage before gave."""
        self.load()  # one that died between two messages was started again by Ray, and asked nothing since
        try:
            return messages.FailedBlock(self._failed) if self._failed else self.work(message)
        except Exception as error:
            return messages.FailedBlock(translated(error, type(self).__name__))

    def hand_on(self, message: Any) -> tuple[messages.FailedBlock | None, Any]:
        """The same for a pipeline: what was met, and what the next stage is given; two objects of Ray, so that only the first travels."""
        result = self.take(message)
        return (result, None) if isinstance(result, messages.FailedBlock) else (None, result)

    def start(self) -> None:
        """Load what the stage needs, once per process."""

    def work(self, message: Any) -> Any:
        """What `take` does once everything is loaded."""
        raise NotImplementedError

    def _work(self) -> messages.BlockWork:
        """What was done since the last call."""
        total = Counter[str]()
        for one in self._counting:
            total.update(one.counts)
        done = Counter(total)
        done.subtract(self._counted)
        self._counted = total
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return messages.BlockWork(self._clock.take(), done, peak_bytes, self._emulating)

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

    def _looking(self, decoder: BatchDecoder, *, describing: "Describing | None" = None, holds_block: bool = False) -> "CascadeScorer":
        from ray_app.inference.device_batches import DeviceMeter
        from ray_app.inference.scorer import EnsembleScorer
        from ray_app.inference.second_pass import KEPT_BYTES, CascadeScorer, StabilityScorer

        spec = self._job.spec
        scorer = self._scorer = EnsembleScorer(spec, self._clock, self._pool)
        if spec.device == "cpu" and cpu_precision() == "fp32" and "bf16" in {spec.precision[name] for name in scorer.names}:
            self._emulating = frozenset({platform.node()})
        if self._job.pieces and spec.device != "cpu" and spec.slots == default_slots(spec.device):
            scorer.fit_batches(self._job.pieces, DeviceMeter(spec.device))
        if self._job.compiled and spec.device != "cpu":
            for name, why in scorer.compile().items():
                if why is not None:
                    print(f"{name}: {why}", file=sys.stderr, flush=True)
        views = StabilityScorer(spec, scorer, decoder, self._clock) if spec.stability else None
        kept_bytes = math.inf if holds_block else KEPT_BYTES  # where the files of a block have arrived together, they are all here anyway
        return CascadeScorer(spec, scorer, decoder, self._clock, kept_bytes=kept_bytes, recompressing=views, describing=describing)


@dataclass(frozen=True)
class ScoredBlock:
    """A block whose members have all been looked at, with nothing of it written yet."""

    ref: BlockRef
    members: pa.Table
    outcomes: Sequence[DecodeResult]
    outputs: DetectorOutputs
    work: messages.BlockWork


class BlockScorer(Worker):
    """The fused layout: fetches, decodes and scores one block after another on one core; `commit` writes what came of one, and may run
    beside the next.
    """

    def start(self) -> None:
        """Load the detectors, and the describer."""
        from ray_app.inference.scorer import Describing  # torch, as all that scores

        self._reading = self._reader()
        describing = Describing(self._job.spec, self._clock) if self._job.spec.describer else None
        self._scoring = self._looking(self._reading.decoder, describing=describing).simplest
        self._counting = (self._reading.fetcher, self._reading.decoder, self._scoring)

    def work(self, message: BlockRef) -> ScoredBlock:
        """A reference → what became of its members."""
        members = read_block(self._job.run.store, message)
        outcomes: list[DecodeResult] = []
        with self._attempts.of(message, members["uri"][0].as_py()):
            outputs = self._scoring.score(self._reading.read(member_rows(members), outcomes))
        if self._reading.recall is not None:  # for members of the same bytes
            self._reading.recall.learn(outcomes, outputs)
        return ScoredBlock(message, members, outcomes, outputs, self._work())

    def commit(self, scored: ScoredBlock | messages.FailedBlock) -> messages.BlockReport | messages.FailedBlock:
        """What `take` gave → the report of the committed part."""
        if isinstance(scored, messages.FailedBlock):
            return scored
        try:
            clock = StageClock()
            made = commit_block(self._job, scored.ref, scored.members, scored.outcomes, scored.outputs, clock)
            return _reported(scored.ref, made, scored.work.joined(messages.BlockWork(clock.take())))
        except Exception as error:
            return messages.FailedBlock(translated(error, type(self).__name__))


class PieceDecoder(Worker):
    """First stage of the split layout: fetches and decodes on a core; needs no torch unless a card resizes with it."""

    def start(self) -> None:
        """Start the decoder."""
        self._reading = self._reader(hand_over=True)
        self._counting = (self._reading.fetcher, self._reading.decoder)

    def work(self, message: messages.Piece) -> messages.OpenPiece:
        """Members → prepared uint8 tensors, and encoded files for detectors that keep sizes."""
        first = message.members["uri"][0].as_py()
        with self._attempts.of(message.ref, first, message.start):
            batches = tuple(self._reading.read(member_rows(message.members)))
        return messages.OpenPiece(message.ref, message.start, first, self._work(), batches)


class TensorScorer(Worker):
    """A stage in the middle: one pool of detectors reads prepared tensors, on a GPU where there is one."""

    def start(self) -> None:
        """Load the pool's detectors; in the last pool also the describer, unless it has processes of its own."""
        from ray_app.inference.nvjpeg import NvJpeg, on_gpu, require_parity
        from ray_app.inference.scorer import Describing

        # Pixels are read where Ray has them, and no detector writes to what it is given.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        spec = self._job.spec
        here = spec.describer is not None and not spec.describes_apart and self._pool == spec.pools[-1]
        self._describing = Describing(spec, self._clock) if here else None
        budget = node_budget.NodeBudget(BUDGET, self._job.decode_bytes)
        beside = None if spec.jpeg_decoder == "libjpeg" else NvJpeg(on_gpu(spec.device))
        self._decoding = BatchDecoder(spec.early, self._clock, keeps_files=spec.looks_again, budget=budget, beside=beside)
        self._scoring = self._looking(self._decoding, holds_block=True)
        if beside is not None:
            require_parity(self._scorer.keeping_sizes(), beside)
        self._counting = (self._scoring, self._decoding, *((self._describing,) if self._describing else ()))

    def work(self, message: messages.OpenPiece) -> messages.OpenPiece:
        """Prepared tensors → the same with what this pool says of them; the last pool drops them. Once a cascade's first detectors have
        spoken, only the files of members that go on travel further, and what the describer may look at.
        """
        from ray_app.inference.scorer import describer_inputs

        spec, outcomes, seen = self._job.spec, message.outcomes, message.seen
        with self._attempts.of(message.ref, message.first, message.start):
            if message.batches:
                outcomes = [outcome for batch in message.batches for outcome in batch.outcomes]
                seen = [image for batch in message.batches for image in describer_inputs(spec, batch)] if spec.describer else ()
                outputs = self._scoring.score(map(self._decoding.complete, message.batches))
            else:
                outputs = self._scoring.again(outcomes, message.files, message.outputs)
            if self._describing is not None:
                outputs = self._describing.after(outcomes, message.outputs.joined(outputs), seen)
        scored = message.after(self._work(), outcomes, outputs)
        if self._pool == spec.pools[-1]:
            return replace(scored, batches=(), files=(), seen=_wanted(spec, scored, seen))
        if message.batches and spec.late and scored.outputs.scores.keys() >= set(spec.first):
            return replace(scored, batches=(), files=_going_on(spec, scored), seen=seen)
        return scored


class BlockDescriber(Worker):
    """A stage of its own for a describer too large to share a process: after all detectors, before what is written."""

    def start(self) -> None:
        """Load the describer."""
        from ray_app.inference.scorer import Describing

        self._describing = Describing(self._job.spec, self._clock)
        self._counting = (self._describing,)

    def work(self, message: messages.OpenPiece) -> messages.OpenPiece:
        """Outputs, and what is to be looked at of the members that the profile asks for → the outputs with words."""
        with self._attempts.of(message.ref, message.first, message.start):
            outputs = self._describing.after(message.outcomes, message.outputs, message.seen)
        return replace(message.after(self._work(), message.outcomes, outputs), seen=())


def commit_block(
    job: ScoringJob,
    ref: BlockRef,
    members: pa.Table,
    outcomes: Sequence[DecodeResult],
    outputs: DetectorOutputs,
    clock: StageClock,
    deciding: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 - it keeps nothing
) -> BlockTables | None:
    """Decide on every member, inside `deciding`, and write the block's part; the part last, since with it the block is done.

    Where detectors of another pass have yet to speak, what these said is kept, and None is given.
    """
    spec = job.whole or job.spec
    with clock("write"):
        if job.whole is not None:
            passes, found = partials.Partials(job.run, spec.cards), (list(outcomes), outputs)
            for before in passes.kept(ref.manifest, ref.block, job.earlier):
                found = partials.joined(before, found)
            if not found[1].scores.keys() >= set(spec.cards):
                passes.keep(ref.manifest, ref.block, job.spec.cards, (list(outcomes), outputs))
                return None
            outcomes, outputs = found[0], found[1].in_order(spec.cards, [view.name for view in spec.views])
        with deciding:
            made = block_tables(
                members,
                judge(spec, outcomes, outputs, clock),
                attempt=job.attempt,
                scored_at=datetime.now(UTC),
                perceptual_hash=spec.perceptual_hash,
                measured=spec.measured,
                features=spec.features,
            )
        if made.masks is not None:
            job.run.write_masks(ref.manifest, ref.block, made.masks)
        for name, rows in made.features.items():
            write_features(job.run, ref.manifest, ref.block, name, rows)
        job.run.write_part(ref.manifest, ref.block, made.rows)
    return made


def pieces_of(ref: BlockRef, members: pa.Table, most: int) -> Iterator[messages.Piece]:
    """A block in pieces of `most` members, the last perhaps smaller."""
    count = len(members)
    for start in range(0, count, most):
        # Taken, not sliced: a slice would travel with the whole block.
        yield messages.Piece(ref, start, members if count <= most else members.take(np.arange(start, min(start + most, count))))


def commit_pieces(
    job: ScoringJob, ref: BlockRef, members: pa.Table, pieces: Sequence[messages.OpenPiece], deciding: AbstractContextManager[Any]
) -> messages.BlockReport:
    """Join the scored pieces of a block, in their order, and commit it."""
    outcomes = [_placed(outcome, piece.start) for piece in pieces for outcome in piece.outcomes]
    outputs, clock, work = DetectorOutputs.chained([piece.outputs for piece in pieces]), StageClock(), messages.BlockWork()
    for piece in pieces:
        work = work.joined(piece.work)
    made = commit_block(job, ref, members, outcomes, outputs, clock, deciding)
    return _reported(ref, made, work.joined(messages.BlockWork(clock.take())))


def _reported(ref: BlockRef, made: BlockTables | None, work: messages.BlockWork) -> messages.BlockReport:
    return messages.BlockReport(ref, 0, work, is_partial=True) if made is None else messages.BlockReport(ref, made.bad, work, made.failures)


def _placed(outcome: DecodeResult, start: int) -> DecodeResult:
    """What became of a member, where that names another member: by its place in the block, no longer by that in the piece."""
    said = outcome.said
    return outcome if said is None or said.twin is None else replace(outcome, said=replace(said, twin=said.twin + start))


def translated(error: Exception, stage: str) -> TouchstoneError:
    """What a stage met, as an error with a hint."""
    if isinstance(error, TouchstoneError):
        return error
    if is_want_of_memory(error):
        return ClusterError(f"{stage} ran out of memory: {describe_error(error)}", hint=OUT_OF_MEMORY_HINT)
    return TouchstoneError(
        f"{stage} failed:\n{traceback.format_exc()}", hint="this looks like a bug in Touchstone; what is committed is kept"
    )


def _going_on(spec: ScoringSpec, piece: messages.OpenPiece) -> "list[tuple[int, File] | None]":
    """The files of the members that a cascade's later pools look at."""
    from ray_app.inference.second_pass import files_of  # torch: only where something is scored

    going = set(decision.second_stage_rows(spec, piece.outcomes, piece.outputs))
    return [file if row in going else None for row, file in enumerate(file for batch in piece.batches for file in files_of(batch))]


def _wanted(spec: ScoringSpec, piece: messages.OpenPiece, seen: "DescriberInputs") -> "DescriberInputs":
    """What a describer with processes of its own is to look at; nothing where it is given embeddings, or has spoken."""
    if not spec.describes_apart or spec.words_seen is None:
        return ()
    asked = set(decision.rows_to_describe(spec, piece.outcomes, piece.outputs))
    return [image if row in asked else None for row, image in enumerate(seen)]
