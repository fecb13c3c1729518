"""The stages of scoring, each a class that takes one message about a block and gives the next:
`BlockRef` → `OpenBlock` → … → `BlockReport`, and `HandedBack` for what is not begun.

Fused: `BlockScorer` alone, or `StoredBlockScorer` alone for stored embeddings. Split: `BlockDecoder`
→ `TensorScorer`, one pool after another → `BlockDescriber`, if a describer has processes of its own
→ `BlockCommitter`. Committing a block ends both. If groups of detectors take turns, a
`GroupTensorScorer` is in place of all pools of scorers.
"""

import math
import os
import platform
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_app import __version__
from ray_app.archives import BlockRef, member_rows, read_block
from ray_app.cluster import versions
from ray_app.cluster.ray_cluster import own_node
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
from ray_app.inference.decoder import BUDGET, WALL_LIMIT_S, CarefulDecoder
from ray_app.inference.groups import DetectorGroups
from ray_app.inference.worker import open_decoder, open_group_scorer
from ray_app.runs import RunDirectory, block_tables, write_features
from ray_app.scoring.orders import read_orders
from ray_app.scoring.stored_embeddings import StoredBlocks, StoredHeads
from ray_app.storage import Fetcher, node_budget
from ray_app.streams.stage import Attempts, Ended, Stage

if TYPE_CHECKING:
    from ray_app.inference.batch import MemberFile
    from ray_app.inference.cascade import CascadeScorer
    from ray_app.inference.group_scorer import GroupScorer
    from ray_app.inference.scorer import DescriberInputs
    from ray_app.inference.worker import OpenScorer

# Pixels are read where Ray has them, and no detector writes to what it is given.
_READ_ONLY = "The given (NumPy array|buffer) is not writable"


@dataclass(frozen=True)
class BlockWork:
    """What a block took so far: seconds by stage, what was counted, and the most memory of a
    process.

    `emulating`: names of nodes whose processor has no bf16 and emulates the run's.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    peak_bytes: int = 0
    emulating: frozenset[str] = frozenset()

    def joined(self, other: "BlockWork") -> "BlockWork":
        """Both, one after the other."""
        counts = Counter(self.counts)
        # a sum of counters would forget what was counted and is none, such as second looks
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
    """A block under way: its members, one row each, and what is known of them, in their order.

    `batches`: prepared images, until the last detectors that look at all of them have; `outcomes`
    and `outputs`, once the first detectors have scored. `files`: (image id, file) of the members
    that later pools decode again, None of others. `seen`: what the describer may look at of each
    member, once the batches travel no further.
    """

    ref: BlockRef
    members: pa.Table
    work: BlockWork = field(default_factory=BlockWork)
    batches: Sequence[Batch] = ()
    outcomes: Sequence[DecodeResult] = ()
    outputs: DetectorOutputs = field(default_factory=DetectorOutputs)
    files: "Sequence[MemberFile | None]" = ()
    seen: "DescriberInputs" = ()

    def after(
        self, work: BlockWork, outcomes: Sequence[DecodeResult], outputs: DetectorOutputs
    ) -> "OpenBlock":
        """The same block with what one more stage did and found."""
        return replace(
            self,
            work=self.work.joined(work),
            outcomes=outcomes,
            outputs=self.outputs.joined(outputs),
        )


@dataclass(frozen=True)
class BlockReport:
    """A block whose part is written. `bad`: images without a score; `failures`: see `BlockTables`."""

    ref: BlockRef
    bad: int
    work: BlockWork
    failures: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class NotStarted(Ended):
    """A block that was not started: the run stops, or the node will be taken away."""

    ref: BlockRef


@dataclass(frozen=True)
class ScoringJob:
    """What every process of one session is given."""

    run: RunDirectory
    spec: ScoringSpec
    fetcher: Fetcher
    attempt: int
    crumbs: Path
    mirror: str | None
    decode_limit_s: float = WALL_LIMIT_S
    # what large images may take together on a node; None = a quarter of its memory
    decode_bytes: int | None = None
    lease: int = 0  # whose orders count, and under which attempts are noted
    members: int = 0  # of a whole block, which come to a GPU together
    compiled: bool = False  # networks on a GPU run compiled where their scores stay
    version: str = __version__  # of the driver: a node that comes late may have another
    groups: DetectorGroups | None = None  # that take turns; None: all detectors fit together
    stored: StoredHeads | None = None  # on the embeddings that are scored; None: images are scored


class BlockStage(Stage):
    """Base of the stages: loads what they need, and counts what they do. `pool`: the detectors of
    one that scores.
    """

    def start(self, job: ScoringJob, pool: tuple[str, ...] | None = None) -> None:
        """Load, once per process."""
        versions.require_same(job.version)
        self._job, self._pool, self._clock = job, pool, StageClock()
        self._attempts = Attempts(job.run.store, job.lease, type(self).__name__)
        self._counting: tuple[Any, ...] = ()  # whatever counts what this stage does
        self._counted: Counter[str] = Counter()
        self._emulating = frozenset[str]()
        if job.mirror is not None:
            os.environ[MIRROR_VARIABLE] = job.mirror
        self._load()

    def _load(self) -> None:
        """What the stage itself needs."""

    def _may_start(self) -> bool:
        """Return whether a block may start here and now, which the first stage of a block checks."""
        orders = read_orders(self._job.run.store, self._job.lease)
        if orders is None or orders.is_stopped:
            return False
        return not orders.avoided or own_node() not in orders.avoided

    def _work(self) -> BlockWork:
        """What was done since the last call."""
        total = Counter[str]()
        for one in self._counting:
            total.update(one.counts)
        done = Counter(total)
        done.subtract(self._counted)
        self._counted = total
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return BlockWork(self._clock.take(), done, peak_bytes, self._emulating)

    def _committed(self, block: OpenBlock) -> BlockReport:
        """Decide on every member and write the block's part; the part last, since with it the block
        is done. Reports this stage's own work.
        """
        job, ref, spec = self._job, block.ref, self._job.spec
        with self._clock("write"):
            made = block_tables(
                block.members,
                judge(spec, block.outcomes, block.outputs, self._clock),
                attempt=job.attempt,
                scored_at=datetime.now(UTC),
                measured=spec.measured,
                features=spec.features,
            )
            if made.masks is not None:
                job.run.write_beside("masks", ref.manifest, ref.block, made.masks)
            for name, rows in made.features.items():
                write_features(job.run, ref.manifest, ref.block, name, rows)
            job.run.write_part(ref.manifest, ref.block, made.rows)
        return BlockReport(ref, made.bad, self._work(), list(made.failures))

    def _open_careful(self, markers: Path | None) -> CarefulDecoder:
        """Open the decoder of single images; with a folder for crash markers, a crash costs only
        the image that caused it.
        """
        job = self._job
        budget = node_budget.NodeBudget(BUDGET, job.decode_bytes)
        return CarefulDecoder(job.spec.limits, markers, job.decode_limit_s, budget)

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
        """Load the detectors of the pool, at the sizes of batches that pay on this device."""
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
            for name, why in detectors.compile().items():
                if why is not None:
                    print(f"{name}: {why}", file=sys.stderr, flush=True)
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
        """Return the images of a block for which the size of batches is measured on a GPU; None to
        keep the size.
        """
        spec = self._job.spec
        is_default = spec.device != "cpu" and spec.slots == default_slots(spec.device)
        return self._job.members or None if is_default else None

    def _note_emulation(self, names: Iterable[str]) -> None:
        """Note this node if its processor emulates the bf16 of some detectors."""
        spec = self._job.spec
        is_emulating = spec.device == "cpu" and cpu_precision() == "fp32"
        if is_emulating and "bf16" in {spec.precision[name] for name in names}:
            self._emulating = frozenset({platform.node()})


class BlockScorer(BlockStage):
    """The fused layout: fetches, decodes, scores and commits one block after another on one core."""

    def _load(self) -> None:
        job, groups = self._job, self._job.groups
        self._scoring: CascadeScorer | GroupScorer
        if groups is None:
            decoder, self._scoring = self._open_scorer(job.crumbs)
        else:
            decoder, self._scoring = self._open_group_scorer(
                groups, job.crumbs, kept_bytes=groups.kept_bytes
            )
        self._reading = self._reader(decoder)
        self._counting = (self._reading, self._reading.fetcher, decoder, self._scoring)

    def work(self, ref: BlockRef) -> BlockReport | NotStarted:
        """A reference → the report of the committed part."""
        if not self._may_start():
            return NotStarted(ref)
        members = read_block(self._job.run.store, ref)
        outcomes: list[DecodeResult] = []
        with self._attempts.of(ref, members["uri"][0].as_py()):
            outputs = self._scoring.score(self._reading.read(member_rows(members), outcomes))
        return self._committed(OpenBlock(ref, members, outcomes=outcomes, outputs=outputs))


class StoredBlockScorer(BlockStage):
    """Scores the stored embeddings of one block after another, and commits it; reads no image."""

    def _load(self) -> None:
        assert self._job.stored is not None
        self._stored = StoredBlocks(self._job.spec, self._job.stored, self._clock)

    def work(self, ref: BlockRef) -> BlockReport | NotStarted:
        """A reference → the report of the committed part."""
        if not self._may_start():
            return NotStarted(ref)
        members = read_block(self._job.run.store, ref)
        with self._attempts.of(ref, members["uri"][0].as_py()):
            outcomes, outputs = self._stored.score(ref, members["image_id"].to_numpy())
        return self._committed(OpenBlock(ref, members, outcomes=outcomes, outputs=outputs))


class BlockDecoder(BlockStage):
    """First stage of the split layout: fetches and decodes on a core; needs no torch unless a card
    resizes with it.
    """

    def _load(self) -> None:
        careful = self._open_careful(self._job.crumbs)
        decoder = open_decoder(self._job.spec, self._clock, careful=careful, hand_over=True)
        self._reading = self._reader(decoder)
        self._counting = (self._reading, self._reading.fetcher, self._reading.decoder)

    def work(self, ref: BlockRef) -> OpenBlock | NotStarted:
        """A reference → its members with prepared uint8 tensors, and encoded files for detectors
        that keep sizes.
        """
        if not self._may_start():
            return NotStarted(ref)
        members = read_block(self._job.run.store, ref)
        with self._attempts.of(ref, members["uri"][0].as_py()):
            batches = tuple(self._reading.read(member_rows(members)))
        return OpenBlock(ref, members, self._work(), batches)


class TensorScorer(BlockStage):
    """A stage in the middle: one pool of detectors reads prepared tensors, on a GPU where there is
    one.
    """

    def _load(self) -> None:
        """The pool's detectors; in the last pool also the describer, unless it has processes of its
        own.
        """
        from ray_app.inference.scorer import Describing

        warnings.filterwarnings("ignore", message=_READ_ONLY)
        spec = self._job.spec
        here = (
            spec.describer is not None and not spec.describes_apart and self._pool == spec.pools[-1]
        )
        self._describing = Describing(spec, self._clock) if here else None
        # The files of a block have arrived together: all of them are in memory anyway.
        self._decoding, self._scoring = self._open_scorer(kept_bytes=math.inf)
        self._counting = (
            self._scoring,
            self._decoding,
            *((self._describing,) if self._describing else ()),
        )

    def work(self, block: OpenBlock) -> OpenBlock:
        """Prepared tensors → the same with what this pool says of them; the last pool drops them.
        Once a cascade's first detectors have scored, only the files of members that go on travel
        further, and what the describer may look at.
        """
        from ray_app.inference.scorer import describer_inputs

        spec, outcomes, seen = self._job.spec, block.outcomes, block.seen
        with self._attempts.of(block.ref, block.members["uri"][0].as_py()):
            if block.batches:
                outcomes = [outcome for batch in block.batches for outcome in batch.outcomes]
                seen = (
                    [image for batch in block.batches for image in describer_inputs(spec, batch)]
                    if spec.describer
                    else ()
                )
                outputs = self._scoring.score(map(self._decoding.complete, block.batches))
            else:
                outputs = self._scoring.rescore(outcomes, block.files, block.outputs)
            if self._describing is not None:
                outputs = self._describing.after(outcomes, block.outputs.joined(outputs), seen)
        scored = block.after(self._work(), outcomes, outputs)
        if self._pool == spec.pools[-1]:
            asks = spec.describes_apart and spec.words_seen is not None
            seen = (
                _some(seen, decision.rows_to_describe(spec, outcomes, scored.outputs))
                if asks
                else ()
            )
            return replace(scored, batches=(), files=(), seen=seen)
        if block.batches and spec.is_cascade and scored.outputs.scores.keys() >= set(spec.first):
            files = (file for batch in block.batches for file in batch.files)
            return replace(
                scored,
                batches=(),
                files=_some(files, decision.second_stage_rows(spec, outcomes, scored.outputs)),
                seen=seen,
            )
        return scored


class GroupTensorScorer(BlockStage):
    """A stage in the middle, in place of all `TensorScorer` and `BlockDescriber`: groups of
    detectors take turns on the prepared tensors of a block.
    """

    def _load(self) -> None:
        groups = self._job.groups
        assert groups is not None
        warnings.filterwarnings("ignore", message=_READ_ONLY)
        # The tensors are in memory anyway: that of Ray.
        decoder, self._scoring = self._open_group_scorer(groups, kept_bytes=math.inf)
        self._counting = (self._scoring, decoder)

    def work(self, block: OpenBlock) -> OpenBlock:
        """Prepared tensors → what all detectors say of them."""
        outcomes = [outcome for batch in block.batches for outcome in batch.outcomes]
        with self._attempts.of(block.ref, block.members["uri"][0].as_py()):
            outputs = self._scoring.score(block.batches)
        return replace(block.after(self._work(), outcomes, outputs), batches=())


class BlockDescriber(BlockStage):
    """A stage of its own for a describer too large to share a process: after all detectors, before
    what is written.
    """

    def _load(self) -> None:
        from ray_app.inference.scorer import Describing

        self._describing = Describing(self._job.spec, self._clock)
        self._counting = (self._describing,)

    def work(self, block: OpenBlock) -> OpenBlock:
        """Outputs, and what is to be looked at of the members that the profile asks for → the
        outputs with words.
        """
        with self._attempts.of(block.ref, block.members["uri"][0].as_py()):
            outputs = self._describing.after(block.outcomes, block.outputs, block.seen)
        return replace(block.after(self._work(), block.outcomes, outputs), seen=())


class BlockCommitter(BlockStage):
    """Last stage of the split layout."""

    def work(self, block: OpenBlock) -> BlockReport:
        """What was found of all members → the report of the committed part."""
        report = self._committed(block)
        return replace(report, work=block.work.joined(report.work))


def _some(items: Iterable[Any], rows: Iterable[int]) -> list[Any]:
    """Those of these rows; None of others."""
    wanted = set(rows)
    return [item if row in wanted else None for row, item in enumerate(items)]


def scorer_stages(job: ScoringJob) -> list[tuple[type[BlockStage], tuple[Any, ...]]]:
    """Return the stages between decoders and committers in the split layout, in their order, each
    with the arguments that it gets after the job.
    """
    if job.groups is not None:
        return [(GroupTensorScorer, ())]
    spec = job.spec
    return [
        (TensorScorer if names in spec.pools else BlockDescriber, (names,))
        for names in spec.all_pools
    ]
