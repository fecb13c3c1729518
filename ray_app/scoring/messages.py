"""What travels between driver, pipelines and their workers: messages about one block of members, or about one piece of a block.

`Piece` → `OpenPiece`, from stage to stage, until all pieces of a block are there and it is committed: `BlockReport`.
Of a block that nobody finishes: `HandedBack` or `FailedBlock`. `Orders` and `TurnReport` are what driver and pipeline say to each other.

Ray keeps the arrays of a message outside of it, so that pixels are read where Ray has them and not copied.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_app.archives import BlockRef
from ray_app.errors import TouchstoneError
from ray_app.inference import Batch, DecodeResult, DetectorOutputs

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
class Piece:
    """The pipeline → a decoder: the members of a block from `start` on, as many as may travel to a scorer in one go."""

    ref: BlockRef
    start: int
    members: pa.Table


@dataclass(frozen=True)
class OpenPiece:
    """The decoder → detectors, pool after pool → a describer of its own → the pipeline: a piece under way.

    `first`: the address of its first member. `batches`: prepared images, until the last detectors that look at all of them have; `outcomes`
    and `outputs`, of the members in their order, once the first detectors have spoken. `files`: (image id, file) of the members that later
    pools decode again, None of others. `seen`: what the describer may look at of each member, once the batches travel no further.
    """

    ref: BlockRef
    start: int
    first: str
    work: BlockWork
    batches: Sequence[Batch] = ()
    outcomes: Sequence[DecodeResult] = ()
    outputs: DetectorOutputs = field(default_factory=DetectorOutputs)
    files: "Sequence[tuple[int, File] | None]" = ()
    seen: "DescriberInputs" = ()

    def after(self, work: BlockWork, outcomes: Sequence[DecodeResult], outputs: DetectorOutputs) -> "OpenPiece":
        """The same piece with what one more stage did and found."""
        return replace(self, work=self.work.joined(work), outcomes=outcomes, outputs=self.outputs.joined(outputs))


@dataclass(frozen=True)
class BlockReport:
    """The pipeline → the driver: a block whose part is written. `bad`: images without a score; `failures`: see `BlockTables`.

    `is_partial`: instead of a part, what this pass found is kept, since detectors of another have yet to speak.
    """

    ref: BlockRef
    bad: int
    work: BlockWork
    failures: Sequence[Mapping[str, Any]] = ()
    is_partial: bool = False


@dataclass(frozen=True)
class HandedBack:
    """The pipeline → the driver: a block that it does not finish, since it is to stop, or has lost its workers."""

    ref: BlockRef


@dataclass(frozen=True)
class FailedBlock:
    """Any stage → the driver: what it met, whole; Ray keeps only the text of an exception."""

    error: TouchstoneError


Message = BlockReport | HandedBack | FailedBlock


@dataclass(frozen=True)
class Orders:
    """The driver → a pipeline. `closed`: begin no further block; `avoided`: nodes that will be taken away; `shares`: how many workers of
    each stage it is to have, decoders first.
    """

    closed: bool = False
    avoided: frozenset[str] = frozenset()
    shares: Sequence[int] = ()


@dataclass(frozen=True)
class TurnReport:
    """A pipeline → the driver: what became of blocks since its last turn, how many more it has room for, and the node that it stands on."""

    messages: Sequence[Message]
    room: int
    node: str
