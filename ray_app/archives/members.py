"""Members (`ListedMember`, `ManifestMember`), the id that a member keeps for ever (`image_id`), how
a list of them is cut into blocks (`BlockPlan`), and what applies a function to many items (`Each`).

The same list and plan give the same cuts for ever.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ray_app.config import Frozen
from ray_app.errors import InputError, Status

Ids = npt.NDArray[np.int64]

_FOLDER = "folder:"  # the version of a folder that could not be listed begins with it
_NONE = b"\xff" * 8  # in a length's place: no text, which is not the empty text

# The first blocks are small, so that results come early and a small archive still divides among
# many workers.
_FIRST_BLOCK_MEMBERS = 16


@dataclass(frozen=True, slots=True)
class MemberLocation:
    """Where in its container a member lies, so that it is read without what lies before it.

    `kind` names the container's format (`ray_app.archives.containers`). `offset`: the first byte of
    the data in an (unpacked) tar, of the local header in a zip, the row's number in a Parquet file.
    `length`: bytes from there that hold it, -1 where the format does not say. `group`: members of
    one group are read together (a Parquet row group; 0 in other formats). `column`: the one that
    holds the image, in a table.
    """

    kind: str
    offset: int
    length: int = -1
    group: int = 0
    column: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedMember:
    """Why a member is never read: the archive's own listing says that it must not or cannot be."""

    status: Status
    detail: str

    def error(self) -> InputError:
        """The same, as what a row says."""
        return InputError(self.status, self.detail)


@dataclass(frozen=True, slots=True)
class ListedMember:
    """One encoded file as a source lists it; `member` and `occurrence` (0, 1, … of equal names)
    tell it from others in one container.

    `place` is None for a file of its own.
    """

    uri: str
    member: str | None
    occurrence: int
    version: str
    size_bytes: int
    input: dict[str, Any] = field(default_factory=dict)
    place: MemberLocation | None = None
    refused: RefusedMember | None = None


class ListedWithColumns(ListedMember):
    """A file whose columns lie beside it in the archive, where no user has seen to their types."""

    __slots__ = ()


class VersionlessFile(ListedMember):
    """A file whose version could not be read. A worker tries to read the file, because the error
    may have passed.
    """

    __slots__ = ()


class UnreadableFolder(ListedMember):
    """A folder that could not be listed, in place of its files.

    Its version names the reason, so that it shares its id with no file and with no folder that was
    closed for another reason.
    """

    __slots__ = ()

    @classmethod
    def for_reason(cls, uri: str, reason: InputError) -> "UnreadableFolder":
        """Create the member that stands for the folder at `uri`."""
        return cls(
            uri,
            None,
            0,
            f"{_FOLDER}{reason.status}",
            -1,
            refused=RefusedMember(reason.status, reason.detail),
        )


def is_unreadable_folder(item: "ListedMember | ManifestMember") -> bool:
    """Whether a member stands for a folder that could not be listed, also one that was read back
    from a manifest.
    """
    return item.refused is not None and item.version == f"{_FOLDER}{item.refused.status}"


@dataclass(frozen=True, slots=True)
class ManifestMember:
    """One row of a manifest: a listed file with its id and its fixed place, `slot` counting inside
    `block`. Size -1 = unknown.
    """

    image_id: int
    uri: str
    member: str | None
    occurrence: int
    version: str
    size_bytes: int
    block: int
    slot: int
    input: dict[str, Any]
    place: MemberLocation | None = None
    refused: RefusedMember | None = None


def as_member(item: ListedMember, slot: int = 0) -> ManifestMember:
    """A listed file as one that can be read; `slot` is its number in the listing."""
    listed = (item.uri, item.member, item.occurrence, item.version, item.size_bytes)
    return ManifestMember(image_id(item), *listed, 0, slot, item.input, item.place, item.refused)


def as_listed(member: ListedMember | ManifestMember) -> ListedMember:
    """Return a member as its source listed it."""
    return ListedMember(
        member.uri,
        member.member,
        member.occurrence,
        member.version,
        member.size_bytes,
        member.input,
        member.place,
        member.refused,
    )


# SHA-256 of a member; with a counter above 0, another one.
Digest = Callable[[ListedMember, int], bytes]


def identity_digest(item: ListedMember, counter: int = 0) -> bytes:
    """SHA-256 over (uri, member, occurrence, version), each text after its length, so that no two
    members share an encoding.

    A `counter` above 0 joins the hash where a member before had the same id.
    """
    parts = [
        _encode(item.uri),
        _encode(item.member),
        item.occurrence.to_bytes(8, "little"),
        _encode(item.version),
    ]
    if counter:
        parts.append(counter.to_bytes(8, "little"))
    return hashlib.sha256(b"".join(parts)).digest()


def image_id(item: ListedMember, counter: int = 0) -> int:
    """The first 8 bytes of the digest, as a signed 64-bit integer."""
    return first_word(identity_digest(item, counter))


def first_word(digest: bytes) -> int:
    """The part of a digest that names its member."""
    return int.from_bytes(digest[:8], "big", signed=True)


def _encode(text: str | None) -> bytes:
    if text is None:
        return _NONE
    data = text.encode("utf-8", "surrogateescape")
    return len(data).to_bytes(8, "little") + data


class TableColumns(Frozen):
    """Which columns of a table hold what; null = found by their types and usual names."""

    image: str | None = Field(
        default=None, description="column with the encoded images: bytes, or a struct {bytes, path}"
    )
    uri: str | None = Field(default=None, description="column with the places of images, in a list")


class BlockPlan(Frozen):
    """What decides the cuts: slots in one batch, the most members (and bytes, where they are
    bounded) in one block, and how slowly blocks grow up to that.

    The more workers, the slower: the last blocks of a list, some worked on and some finished,
    should be a small part of it.
    """

    batch_slots: int = Field(default=32, ge=1)
    max_block_members: int = Field(default=1024, ge=1)
    blocks_per_doubling: int = Field(default=32, ge=1)
    max_block_bytes: int | None = Field(default=None, ge=1)

    @property
    def largest_block(self) -> int:
        """The size that blocks grow up to: whole batches, at least one."""
        return max(self.batch_slots, self.max_block_members // self.batch_slots * self.batch_slots)


def block_sizes(plan: BlockPlan) -> Iterator[int]:
    """Sizes of block 0, 1, …: one batch, for an early verdict; then about 16 members, doubled after
    every `blocks_per_doubling` up to the plan's limit, all whole batches.

    The last block of a list ends where the list does. A limit below one batch means one batch.
    """
    slots, limit = plan.batch_slots, plan.largest_block
    yield slots
    size = min(limit, max(1, round(_FIRST_BLOCK_MEMBERS / slots)) * slots)
    while size < limit:
        for _ in range(plan.blocks_per_doubling):
            yield size
        size = min(limit, 2 * size)
    while True:
        yield limit


T = TypeVar("T")
R = TypeVar("R")


class Each(Protocol):
    """Something that applies a picklable function to items, in whatever processes, and gives the
    results in their order.
    """

    def __call__(
        self, function: Callable[[T], R], items: Iterable[T], /
    ) -> Generator[R, None, None]:
        """Raises what the function raises, if it is a TouchstoneError as it was. To be closed by a
        caller that may leave early.
        """


def in_turn(function: Callable[[T], R], items: Iterable[T], /) -> Generator[R, None, None]:
    """One after another, in this process."""
    return (function(item) for item in items)
