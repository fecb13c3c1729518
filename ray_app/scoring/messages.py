"""What travels between driver and workers: one message about one block of members, as a table of one row (`MESSAGE_SCHEMA`).

`PendingBlock` → `OpenBlock` → `BlockReport`; or, of a block that nobody finishes, `HandedBack` or `FailedBlock`. `table_of` and
`message_of` convert; pixels are read where Ray has them and not copied.
"""

import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from ray_app.archives import BlockRef
from ray_app.errors import TouchstoneError
from ray_app.inference import Batch, DecodeResult, DetectorOutputs

if TYPE_CHECKING:
    from ray_app.inference.batch import File
    from ray_app.inference.scorer import DescriberInputs

MESSAGE_SCHEMA = pa.schema([("state", pa.string()), ("message", pa.large_binary()), ("pixels", pa.list_(pa.large_binary()))])


class BlockState(StrEnum):
    """How far a block is. A stage works on one state; what is in another passes through it."""

    PENDING = "pending"
    OPEN = "open"
    COMMITTED = "committed"
    HANDED_BACK = "handed_back"
    FAILED = "failed"


@dataclass(frozen=True)
class PendingBlock:
    """The driver → whoever reads: a block to be begun."""

    state: ClassVar = BlockState.PENDING
    ref: BlockRef


@dataclass(frozen=True)
class BlockWork:
    """What a block took so far: seconds by stage, what was counted, and the most memory of a process."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    peak_bytes: int = 0

    def joined(self, other: "BlockWork") -> "BlockWork":
        """Both, one after the other."""
        counts = Counter(self.counts)
        counts.update(other.counts)  # a sum of counters would forget what was counted and is none, such as second looks
        seconds = Counter(self.seconds)
        seconds.update(other.seconds)
        return BlockWork(seconds, counts, max(self.peak_bytes, other.peak_bytes))


@dataclass(frozen=True)
class OpenBlock:
    """The reader → detectors, pool after pool → a describer of its own → the committer: a block under way.

    `batches`: prepared images, until the last detectors that look at all of them have; `outcomes` and `outputs`, of the members in their
    order, once the first detectors have spoken. `files`: (image id, file) of the members that later pools decode again, None of others.
    `seen`: what the describer may look at of each member, once the batches travel no further.
    """

    state: ClassVar = BlockState.OPEN
    ref: BlockRef
    members: pa.Table
    work: BlockWork
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
    """Whoever commits → the driver: a block whose part is written. `bad`: images without a score; `failures`: see `BlockTables`."""

    state: ClassVar = BlockState.COMMITTED
    ref: BlockRef
    bad: int
    work: BlockWork
    failures: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class HandedBack:
    """Whoever reads → the driver: a block that was not begun, since the session is to stop."""

    state: ClassVar = BlockState.HANDED_BACK
    ref: BlockRef


@dataclass(frozen=True)
class FailedBlock:
    """Any stage → the driver: what it met, whole; Ray keeps only the text of an exception."""

    state: ClassVar = BlockState.FAILED
    error: TouchstoneError


Message = PendingBlock | OpenBlock | BlockReport | HandedBack | FailedBlock


def table_of(message: Message) -> pa.Table:
    """A message as a row of `MESSAGE_SCHEMA`."""
    pixels: list[memoryview] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        if memoryview(buffer).format != "B":
            return True  # numbers of more than a byte would have to be aligned in the column
        pixels.append(buffer.raw())
        return False

    pickled = pickle.dumps(message, 5, buffer_callback=stays)
    columns = [pa.array([message.state]), pa.array([pickled], pa.large_binary()), pa.array([pixels], MESSAGE_SCHEMA.field("pixels").type)]
    return pa.table(columns, schema=MESSAGE_SCHEMA)


def message_of(table: pa.Table) -> Any:
    """The message of a row: of a worker or driver of this run, at this version. Pixels are views of the table, not to be written to."""
    held, pixels = table["pixels"].chunk(0).flatten(), []
    if len(held):
        _, ends, data = held.buffers()  # a scalar of Arrow's would be a copy
        bounds = np.frombuffer(ends, np.int64)[held.offset :][: len(held) + 1].tolist()
        pixels = [data.slice(start, end - start) for start, end in pairwise(bounds)]
    return pickle.loads(table["message"][0].as_buffer(), buffers=pixels)  # noqa: S301


def report_of(table: pa.Table) -> BlockReport | None:
    """The report on a committed block; None for one that was handed back. Raises the TouchstoneError that a worker met instead."""
    message = message_of(table)
    if isinstance(message, FailedBlock):
        raise message.error
    return message if isinstance(message, BlockReport) else None
