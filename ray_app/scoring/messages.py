"""What travels between the stages of scoring: `BlockRef` → `OpenBlock` → … → `BlockReport`, and `HandedBack` for what is not begun."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_app.archives import BlockRef
from ray_app.inference import Batch, DecodeResult, DetectorOutputs
from ray_app.streams.stage import Ended

if TYPE_CHECKING:
    from ray_app.inference.batch import File
    from ray_app.inference.scorer import DescriberInputs


@dataclass(frozen=True)
class BlockWork:
    """What a block took so far: seconds by stage, what was counted, and the most memory of a process.

    `emulating`: names of nodes whose processor has no bf16 and emulates the run's.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    peak_bytes: int = 0
    emulating: frozenset[str] = frozenset()

    def joined(self, other: "BlockWork") -> "BlockWork":
        """Both, one after the other."""
        counts = Counter(self.counts)
        counts.update(other.counts)  # a sum of counters would forget what was counted and is none, such as second looks
        seconds = Counter(self.seconds)
        seconds.update(other.seconds)
        return BlockWork(seconds, counts, max(self.peak_bytes, other.peak_bytes), self.emulating | other.emulating)


@dataclass(frozen=True)
class OpenBlock:
    """A block under way: its members, one row each, and what is known of them, in their order.

    `batches`: prepared images, until the last detectors that look at all of them have; `outcomes` and `outputs`, once the first detectors
    have scored. `files`: (image id, file) of the members that later pools decode again, None of others. `seen`: what the describer may look
    at of each member, once the batches travel no further.
    """

    ref: BlockRef
    members: pa.Table
    work: BlockWork = field(default_factory=BlockWork)
    batches: Sequence[Batch] = ()
    outcomes: Sequence[DecodeResult] = ()
    outputs: DetectorOutputs = field(default_factory=DetectorOutputs)
    files: "Sequence[tuple[int, File] | None]" = ()
    seen: "DescriberInputs" = ()

    def after(self, work: BlockWork, outcomes: Sequence[DecodeResult], outputs: DetectorOutputs) -> "OpenBlock":
        """The same block with what one more stage did and found."""
        return replace(self, work=self.work.joined(work), outcomes=outcomes, outputs=self.outputs.joined(outputs))


@dataclass(frozen=True)
class BlockReport:
    """A block whose part is written. `bad`: images without a score; `failures`: see `BlockTables`.

    `is_partial`: instead of a part, what this pass found is kept, since detectors of another pass have yet to score it.
    """

    ref: BlockRef
    bad: int
    work: BlockWork
    failures: Sequence[Mapping[str, Any]] = ()
    is_partial: bool = False


@dataclass(frozen=True)
class HandedBack(Ended):
    """A block that is not begun: the run is to stop, or the node will be taken away."""

    ref: BlockRef
