"""Define the stages of scoring. Each stage is a class that turns a message about a block into the next.

The messages are `BlockRef` → `OpenBlock` → … → `BlockReport`, and `NotStarted` for a block that is
not started. The last stage commits the block.

In the fused layout, the only stage is `BlockScorer`, or `StoredBlockScorer` for stored embeddings. In
the split layout, the stages are:

1. `BlockDecoder`.
2. `TensorScorer`, one pool after another. If groups of detectors take turns, one `GroupTensorScorer`
   replaces all pools of scorers.
3. `BlockDescriber`, if the describer, the model that predicts prompts, has separate processes.
4. `BlockCommitter`.
"""

import math
import os
import platform
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_app import __version__
from ray_app.archives import BlockRef, read_block, rows_to_members
from ray_app.cluster import versions
from ray_app.detectors import MIRROR_VARIABLE
from ray_app.detectors.card import default_slots
from ray_app.detectors.cpu import cpu_precision
from ray_app.inference import (
    BatchDecoder,
    BlockReader,
    DecodeResult,
    DetectorOutputs,
    ScoringSpec,
    StageClock,
    decision,
    judge,
)
from ray_app.inference.batch import Batch
from ray_app.inference.decoder import BUDGET, WALL_LIMIT_S, CrashSafeDecoder
from ray_app.inference.groups import DetectorGroups
from ray_app.inference.worker import open_decoder, open_group_scorer
from ray_app.runs import RunDirectory, block_tables, write_features
from ray_app.scoring.control import Control, attempt_block
from ray_app.scoring.stored_embeddings import StoredBlocks, StoredHeads
from ray_app.storage import Fetcher, node_budget
from ray_app.streams.stage import Stage, TerminalMessage

if TYPE_CHECKING:
    from ray_app.inference.batch import MemberFile
    from ray_app.inference.cascade import CascadeScorer
    from ray_app.inference.group_scorer import GroupScorer
    from ray_app.inference.scorer import DescriberInputs
    from ray_app.inference.worker import OpenScorer

# Pixels are read in Ray's object store. No detector writes to its input.
_READ_ONLY = "The given (NumPy array|buffer) is not writable"


@dataclass(frozen=True)
class BlockWork:
    """Measurements of the work on a block of images, summed over the stages so far.

    Attributes:
        seconds: Seconds by the name of the work, such as `fetch`, `decode`, or `score`.
        counts: Counters by name, such as `bytes_read`.
        peak_bytes: The maximum memory of a worker process in bytes.
        emulating: Names of slow nodes. The run uses bf16, which their processors do not have and
            emulate.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    peak_bytes: int = 0
    emulating: frozenset[str] = frozenset()

    def merge(self, other: "BlockWork") -> "BlockWork":
        """Return the sums of both measurements, with the higher of the two peaks of memory."""
        counts = Counter(self.counts)
        # The sum of two counters would drop counts of 0, such as those of the second stage.
        counts.update(other.counts)
        seconds = Counter(self.seconds)
        seconds.update(other.seconds)
        return BlockWork(
            seconds,
            counts,
            max(self.peak_bytes, other.peak_bytes),
            self.emulating | other.emulating,
        )


@dataclass(frozen=True)
class OpenBlock:
    """A block in progress, with its members and their results so far, in the order of the members.

    A block is a group of files (members) that is scored as a unit. Each stage of the pipeline adds
    its results.

    Attributes:
        ref: The position of the block in the manifest.
        members: The rows of the manifest, one for each member.
        work: The measured work so far.
        batches: The decoded images as tensors. They are dropped after the last detectors that score
            all images.
        outcomes: The result of decoding each member; empty until the first detectors have scored.
        outputs: The outputs of the detectors so far.
        files: For each member, a tuple (image id, encoded file) if later detectors decode the image
            again, otherwise None.
        describer_images: The image of each member for the describer, which predicts prompts; empty
            until the batches are dropped.
    """

    ref: BlockRef
    members: pa.Table
    work: BlockWork = field(default_factory=BlockWork)
    batches: Sequence[Batch] = ()
    outcomes: Sequence[DecodeResult] = ()
    outputs: DetectorOutputs = field(default_factory=DetectorOutputs)
    files: "Sequence[MemberFile | None]" = ()
    describer_images: "DescriberInputs" = ()

    def add_results(
        self, work: BlockWork, outcomes: Sequence[DecodeResult], outputs: DetectorOutputs
    ) -> "OpenBlock":
        """Return this block with the work and the results of one more stage.

        Args:
            work: The work of the stage.
            outcomes: The results of decoding, which replace those of the block.
            outputs: The outputs of detectors, which are added to those of the block.
        """
        return replace(
            self,
            work=self.work.merge(work),
            outcomes=outcomes,
            outputs=self.outputs.merge(outputs),
        )


@dataclass(frozen=True)
class BlockReport:
    """The report on a committed block, whose result rows are now in a file of the run directory.

    Attributes:
        ref: The position of the block in the manifest.
        bad: The number of images without a score.
        work: The measured work on the block.
        failures: For each file on which Touchstone's own code failed, its name and the traceback;
            see `BlockTables`.
    """

    ref: BlockRef
    bad: int
    work: BlockWork
    failures: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class NotStarted(TerminalMessage):
    """The message that a block was not started, because the run or its node will stop."""

    ref: BlockRef


@dataclass(frozen=True)
class ScoringJob:
    """The data that every worker process of a scoring session needs.

    A session is the work of one command on a run.

    Attributes:
        run: The run directory.
        spec: The scoring specification: detectors, precision, limits, and device.
        fetcher: Reads the files of the archive.
        attempt: The number of the session, which rows store in the column `attempt`.
        marker_dir: A folder on the disk of each node. Its files name the images that are being
            decoded, so that after a crash the image that caused it is known.
        control: The state of the command, which tells workers what they may start. None lets them
            start every block.
        mirror: The URL from which workers load weights; None if the cluster has no other nodes, or
            if all weights are shipped with Touchstone.
        decode_limit_s: The maximum seconds for decoding an image.
        decode_bytes: Memory that large images may use together on a node. None allows a quarter of
            the node's memory.
        members: The number of images of a full block, which a GPU gets together.
        compiled: Whether to compile networks on a GPU, if that does not change their scores.
        version: The version of Touchstone in the driver, to detect nodes with another version.
        groups: Groups of detectors that take turns; None if all detectors fit together.
        stored: The heads (last layers of the detectors) that score stored embeddings; None if
            images are scored.
    """

    run: RunDirectory
    spec: ScoringSpec
    fetcher: Fetcher
    attempt: int
    marker_dir: Path
    control: Control | None = None
    mirror: str | None = None
    decode_limit_s: float = WALL_LIMIT_S
    decode_bytes: int | None = None
    members: int = 0
    compiled: bool = False
    version: str = __version__
    groups: DetectorGroups | None = None
    stored: StoredHeads | None = None


class BlockStage(Stage):
    """Base class of the stages of scoring, which run in worker processes of Ray Data.

    It loads the detectors or decoders of a stage, and counts the work.
    """

    def start(self, job: ScoringJob, pool: tuple[str, ...] | None = None) -> None:
        """Load the detectors or decoders of the stage, once per process.

        Args:
            job: The data that every worker process of the session needs.
            pool: The names of the detectors, or of the describer, that this process loads. None for
                other stages.
        """
        versions.require_same(job.version)
        self._job, self._pool, self._clock = job, pool, StageClock()
        self._counters: tuple[Any, ...] = ()  # Objects with a mapping `counts`.
        self._counted: Counter[str] = Counter()
        self._emulating = frozenset[str]()
        if job.mirror is not None:
            os.environ[MIRROR_VARIABLE] = job.mirror
        self._load()

    def _load(self) -> None:
        """Load what a subclass needs."""

    def _start_block(self, ref: BlockRef) -> AbstractContextManager[bool]:
        """Record the first stage's attempt at a block; see `attempt_block`.

        The context manager yields False if the block may not start here and now.
        """

        def first_uri() -> str:
            return str(read_block(self._job.run.store, ref)["uri"][0])

        return attempt_block(self._job.control, self._name(), ref, first_uri, is_first=True)

    def _continue_block(self, block: OpenBlock) -> AbstractContextManager[bool]:
        """Record a later stage's attempt at a block, which may always start."""
        return attempt_block(
            self._job.control, self._name(), block.ref, lambda: str(block.members["uri"][0])
        )

    def _take_work(self) -> BlockWork:
        """Return the work since the last call."""
        total = Counter[str]()
        for counter in self._counters:
            total.update(counter.counts)
        difference = Counter(total)
        difference.subtract(self._counted)
        self._counted = total
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return BlockWork(self._clock.take(), difference, peak_bytes, self._emulating)

    def _commit(self, block: OpenBlock) -> BlockReport:
        """Decide on every member and write the block's part, then report this stage's own work.

        The part is written last, because it marks the block as done.
        """
        job, ref, spec = self._job, block.ref, self._job.spec
        with self._clock("write"):
            tables = block_tables(
                block.members,
                judge(spec, block.outcomes, block.outputs, self._clock),
                attempt=job.attempt,
                scored_at=datetime.now(UTC),
                measured=spec.measured,
                features=spec.features,
            )
            if tables.masks is not None:
                job.run.write_sidecar("masks", ref.manifest, ref.block, tables.masks)
            for name, rows in tables.features.items():
                write_features(job.run, ref.manifest, ref.block, name, rows)
            job.run.write_part(ref.manifest, ref.block, tables.rows)
        return BlockReport(ref, tables.bad, self._take_work(), list(tables.failures))

    def _open_careful(self, markers: Path | None) -> CrashSafeDecoder:
        """Open the decoder of single images.

        With a folder for crash markers, a crash costs only the image that caused it.
        """
        job = self._job
        budget = node_budget.NodeBudget(BUDGET, job.decode_bytes)
        return CrashSafeDecoder(job.spec.limits, markers, job.decode_limit_s, budget)

    def _reader(self, decoder: BatchDecoder) -> BlockReader:
        job = self._job
        return BlockReader(
            job.spec,
            self._clock,
            fetcher=job.fetcher,
            decoder=decoder,
            decode_bytes=job.decode_bytes,
        )

    def _open_scorer(
        self, markers: Path | None = None, *, kept_bytes: float | None = None
    ) -> "OpenScorer":
        """Load the detectors of the pool, with the batch sizes that are fastest on this device."""
        from ray_app.inference.device_batches import DeviceMeter
        from ray_app.inference.worker import open_scorer

        spec = self._job.spec
        opened = open_scorer(
            spec,
            spec.device,
            self._clock,
            pool=self._pool,
            careful=self._open_careful(markers),
            kept_bytes=kept_bytes,
        )
        detectors = opened.scorer.detectors
        self._note_emulation(detectors.names)
        if (members := self._members_to_fit()) is not None:
            detectors.fit_batches((members,), DeviceMeter(spec.device))
        if self._job.compiled and spec.device != "cpu":
            for name, reason in detectors.compile().items():
                if reason is not None:
                    print(f"{name}: {reason}", file=sys.stderr, flush=True)
        return opened

    def _open_group_scorer(
        self, groups: DetectorGroups, markers: Path | None = None, *, kept_bytes: float
    ) -> "tuple[BatchDecoder, GroupScorer]":
        """Load the first group of the detectors that take turns."""
        spec = self._job.spec
        self._note_emulation(spec.cards)
        return open_group_scorer(
            spec,
            groups.groups,
            self._clock,
            careful=self._open_careful(markers),
            kept_bytes=kept_bytes,
            block_members=self._members_to_fit(),
        )

    def _members_to_fit(self) -> int | None:
        """Return the number of images of a block, for which the batch size is measured on a GPU.

        None keeps the batch size: on a CPU, or if the user chose the size.
        """
        spec = self._job.spec
        is_default = spec.device != "cpu" and spec.slots == default_slots(spec.device)
        return self._job.members or None if is_default else None

    def _note_emulation(self, names: Iterable[str]) -> None:
        """Note this node if its processor emulates the bf16 of one of these detectors."""
        spec = self._job.spec
        is_emulating = spec.device == "cpu" and cpu_precision() == "fp32"
        if is_emulating and "bf16" in {spec.precision[name] for name in names}:
            self._emulating = frozenset({platform.node()})


class BlockScorer(BlockStage):
    """Fetch, decode, score, and commit one block of images after another on one core.

    In the fused layout, in which each process does the whole work, this is the only stage.
    """

    def _load(self) -> None:
        job, groups = self._job, self._job.groups
        self._scoring: CascadeScorer | GroupScorer
        if groups is None:
            decoder, self._scoring = self._open_scorer(job.marker_dir)
        else:
            decoder, self._scoring = self._open_group_scorer(
                groups, job.marker_dir, kept_bytes=groups.kept_bytes
            )
        self._reading = self._reader(decoder)
        self._counters = (self._reading, self._reading.fetcher, decoder, self._scoring)

    def work(self, ref: BlockRef) -> BlockReport | NotStarted:
        """Score and commit a block, and return the report on it.

        If the run stops or this node will be taken away, the block is returned as `NotStarted`.
        """
        outcomes: list[DecodeResult] = []
        with self._start_block(ref) as may_start:
            if not may_start:
                return NotStarted(ref)
            members = read_block(self._job.run.store, ref)
            outputs = self._scoring.score(self._reading.read(rows_to_members(members), outcomes))
        return self._commit(OpenBlock(ref, members, outcomes=outcomes, outputs=outputs))


class StoredBlockScorer(BlockStage):
    """Score stored embeddings, one block after another, and write the rows. No image is read.

    This is the only stage of a run whose source is `features::RUN`, the embeddings of another run.
    """

    def _load(self) -> None:
        assert self._job.stored is not None
        self._stored = StoredBlocks(self._job.spec, self._job.stored, self._clock)

    def work(self, ref: BlockRef) -> BlockReport | NotStarted:
        """Score and commit a block, and return the report on it.

        If the run stops or this node will be taken away, the block is returned as `NotStarted`.
        """
        with self._start_block(ref) as may_start:
            if not may_start:
                return NotStarted(ref)
            members = read_block(self._job.run.store, ref)
            outcomes, outputs = self._stored.score(ref, members["image_id"].to_numpy())
        return self._commit(OpenBlock(ref, members, outcomes=outcomes, outputs=outputs))


class BlockDecoder(BlockStage):
    """Fetch and decode the images of a block on a core. This is the first stage of the split layout.

    The stage does not need torch, unless a card uses torch to resize images.
    """

    def _load(self) -> None:
        careful = self._open_careful(self._job.marker_dir)
        decoder = open_decoder(self._job.spec, self._clock, careful=careful, hand_over=True)
        self._reading = self._reader(decoder)
        self._counters = (self._reading, self._reading.fetcher, self._reading.decoder)

    def work(self, ref: BlockRef) -> OpenBlock | NotStarted:
        """Read and decode the images of a block, and return it with the images as uint8 tensors.

        The tensors have the sizes that the detectors need. If a detector reads images at their
        original size, the result also contains the encoded files. If the run stops or this node
        will be taken away, the block is returned as `NotStarted`.
        """
        with self._start_block(ref) as may_start:
            if not may_start:
                return NotStarted(ref)
            members = read_block(self._job.run.store, ref)
            batches = tuple(self._reading.read(rows_to_members(members)))
        return OpenBlock(ref, members, self._take_work(), batches)


class TensorScorer(BlockStage):
    """Score prepared tensors with the detectors of one pool, on a GPU if there is one.

    A pool has the detectors that share a process. Blocks pass from one pool to the next.
    """

    def _load(self) -> None:
        """Load the pool's detectors, and in the last pool the describer.

        A describer that has processes of its own is not loaded here.
        """
        from ray_app.inference.scorer import ImageDescriber

        warnings.filterwarnings("ignore", message=_READ_ONLY)
        spec = self._job.spec
        is_describing = (
            spec.describer is not None
            and not spec.has_describer_pool
            and self._pool == spec.pools[-1]
        )
        self._describing = ImageDescriber(spec, self._clock) if is_describing else None
        # The files of a block have arrived together: all of them are in memory anyway.
        self._decoding, self._scoring = self._open_scorer(kept_bytes=math.inf)
        self._counters = (
            self._scoring,
            self._decoding,
            *((self._describing,) if self._describing else ()),
        )

    def work(self, block: OpenBlock) -> OpenBlock:
        """Add the outputs of this pool's detectors to a block.

        The last pool drops the block's tensors. In a cascade, whose second stage scores only
        undecided images, the tensors are dropped after the first stage. The block then keeps only
        the files that the second stage scores, and the images for the describer, which predicts
        prompts.
        """
        from ray_app.inference.scorer import describer_inputs

        spec, outcomes, describer_images = self._job.spec, block.outcomes, block.describer_images
        with self._continue_block(block):
            if block.batches:
                outcomes = [outcome for batch in block.batches for outcome in batch.outcomes]
                describer_images = (
                    [image for batch in block.batches for image in describer_inputs(spec, batch)]
                    if spec.describer
                    else ()
                )
                outputs = self._scoring.score(map(self._decoding.complete, block.batches))
            else:
                outputs = self._scoring.rescore(outcomes, block.files, block.outputs)
            if self._describing is not None:
                outputs = self._describing.add_captions(
                    outcomes, block.outputs.merge(outputs), describer_images
                )
        scored = block.add_results(self._take_work(), outcomes, outputs)
        if self._pool == spec.pools[-1]:
            is_describing_later = (
                spec.has_describer_pool and spec.describer_preprocessing is not None
            )
            describer_images = (
                _select_rows(
                    describer_images, decision.rows_to_describe(spec, outcomes, scored.outputs)
                )
                if is_describing_later
                else ()
            )
            return replace(scored, batches=(), files=(), describer_images=describer_images)
        if block.batches and spec.is_cascade and scored.outputs.scores.keys() >= set(spec.first):
            files = (file for batch in block.batches for file in batch.files)
            return replace(
                scored,
                batches=(),
                files=_select_rows(
                    files, decision.second_stage_rows(spec, outcomes, scored.outputs)
                ),
                describer_images=describer_images,
            )
        return scored


class GroupTensorScorer(BlockStage):
    """Score the prepared tensors of a block with groups of detectors that take turns in memory.

    If not all detectors fit into memory together, this stage replaces all stages `TensorScorer` and
    `BlockDescriber`.
    """

    def _load(self) -> None:
        groups = self._job.groups
        assert groups is not None
        warnings.filterwarnings("ignore", message=_READ_ONLY)
        # The tensors are in memory anyway, in Ray's object store.
        decoder, self._scoring = self._open_group_scorer(groups, kept_bytes=math.inf)
        self._counters = (self._scoring, decoder)

    def work(self, block: OpenBlock) -> OpenBlock:
        """Add the outputs of all detectors to a block, and drop its tensors."""
        outcomes = [outcome for batch in block.batches for outcome in batch.outcomes]
        with self._continue_block(block):
            outputs = self._scoring.score(block.batches)
        return replace(block.add_results(self._take_work(), outcomes, outputs), batches=())


class BlockDescriber(BlockStage):
    """Predict the prompts from which a block's images may have been generated.

    This stage follows all detectors. It exists only if the describer, the model that predicts
    prompts, has processes of its own, for example because it is large.
    """

    def _load(self) -> None:
        from ray_app.inference.scorer import ImageDescriber

        self._describing = ImageDescriber(self._job.spec, self._clock)
        self._counters = (self._describing,)

    def work(self, block: OpenBlock) -> OpenBlock:
        """Add the predicted prompts to a block.

        The key `profile` of the ensemble's card determines for which images a prompt is predicted,
        for example only for flagged images.
        """
        with self._continue_block(block):
            outputs = self._describing.add_captions(
                block.outcomes, block.outputs, block.describer_images
            )
        return replace(
            block.add_results(self._take_work(), block.outcomes, outputs), describer_images=()
        )


class BlockCommitter(BlockStage):
    """Compute the verdicts on the images of scored blocks, and write their rows.

    This is the last stage of the split layout, in which decoders and scorers are separate
    processes.
    """

    def work(self, block: OpenBlock) -> BlockReport:
        """Write the rows of a block, and return a report with the work of all stages on it."""
        report = self._commit(block)
        return replace(report, work=block.work.merge(report.work))


def _select_rows(items: Iterable[Any], rows: Iterable[int]) -> list[Any]:
    """Return the items with None in place of those that are not in these rows."""
    selected = set(rows)
    return [item if row in selected else None for row, item in enumerate(items)]


def scorer_stages(job: ScoringJob) -> list[tuple[type[BlockStage], tuple[Any, ...]]]:
    """Return the stages that score decoded images before they are committed, in their order.

    The split layout has these stages: decoding, scoring, and committing are separate processes.

    Args:
        job: The data that every worker process of the session needs.

    Returns:
        For each stage, its class, and the arguments that its `start` takes in addition to the job.
    """
    if job.groups is not None:
        return [(GroupTensorScorer, ())]
    spec = job.spec
    return [
        (TensorScorer if names in spec.pools else BlockDescriber, (names,))
        for names in spec.all_pools
    ]
