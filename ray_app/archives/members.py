"""Define the members of an archive (`ListedMember`, `ManifestMember`) and their ids (`image_id`).

A `BlockPlan` defines how a list of members is cut into blocks. The same list and plan always give
the same blocks. `MapFunction` is the type of functions that apply a function to many items.
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

_FOLDER = "folder:"  # The version of a folder that could not be listed begins with this.
_NONE = b"\xff" * 8  # Encodes None in place of a length; None differs from the empty text.

# The first blocks are small, so that results come early and even a small archive is divided among
# many workers.
_FIRST_BLOCK_MEMBERS = 16


@dataclass(frozen=True, slots=True)
class MemberLocation:
    """The location of a member in its container, from which it can be read without other members.

    Attributes:
        offset: The first byte of the data in an (unpacked) tar, the first byte of the local header
            in a zip, or the row number in a Parquet file.
        length: The number of bytes from the offset that hold the member, -1 if the format does not
            state it.
        group: The number of the Parquet row group, whose members are read together; 0 in other
            formats.
    """

    kind: str
    offset: int
    length: int = -1
    group: int = 0
    column: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedMember:
    """The reason why a member must not or cannot be read, found when its archive is listed."""

    status: Status
    detail: str

    def error(self) -> InputError:
        """Return the reason as an error, whose status becomes the status of the member's row."""
        return InputError(self.status, self.detail)


@dataclass(frozen=True, slots=True)
class ListedMember:
    """One file as its source lists it: a separate file of the source, or a member of a container.

    Attributes:
        uri: The file, or the container that holds it.
        member: The name within the container, None for a separate file.
        occurrence: 0, 1, … for members of equal names in one container; the row of a list, from 1,
            whose uri is refused because of its secret.
        version: The version of the file or container, "" if unknown.
        size_bytes: The size of the encoded file, -1 if unknown.
        input: Values of the user's own columns for this file, by column name. They are from a list
            of uris, a table, or a sidecar file.
        place: The location within the container, None for a separate file.
        refused: The reason why the member must not be read, None if it may be.
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
    """A listed file whose `input` has columns from a sidecar table in the archive.

    The user has not checked the types of these columns. If the types of a column clash in a run,
    the column becomes text.
    """

    __slots__ = ()


class VersionlessFile(ListedMember):
    """A listed file whose version could not be read.

    A worker still tries to read the file, because the error may be temporary.
    """

    __slots__ = ()


class UnreadableFolder(ListedMember):
    """A member that represents a folder that could not be listed, in place of the folder's files.

    The version of this member contains the reason. So its id differs from that of every file. The
    id changes if the folder later cannot be listed for another reason.
    """

    __slots__ = ()

    @classmethod
    def for_reason(cls, uri: str, reason: InputError) -> "UnreadableFolder":
        """Create the member for the folder at `uri`, which cannot be listed because of `reason`."""
        return cls(
            uri,
            None,
            0,
            f"{_FOLDER}{reason.status}",
            -1,
            refused=RefusedMember(reason.status, reason.detail),
        )


def is_unreadable_folder(item: "ListedMember | ManifestMember") -> bool:
    """Return whether a member represents a folder that could not be listed.

    The member may be listed just now, or read from a manifest.
    """
    return item.refused is not None and item.version == f"{_FOLDER}{item.refused.status}"


@dataclass(frozen=True, slots=True)
class ManifestMember:
    """One row of a manifest: a `ListedMember` with its id and its fixed position in a block.

    A block is a fixed list of files that is scored as a unit. The id is unique in a run (see the
    function `image_id`). `slot` is the position in the block.
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


def to_manifest_member(item: ListedMember, slot: int = 0) -> ManifestMember:
    """Convert a listed file into a manifest member, so that `MemberReader` can read it.

    Use this to read files before a manifest exists. The member is at position `slot` of block 0.
    """
    identity = (item.uri, item.member, item.occurrence, item.version, item.size_bytes)
    return ManifestMember(image_id(item), *identity, 0, slot, item.input, item.place, item.refused)


def to_listed_member(member: ListedMember | ManifestMember) -> ListedMember:
    """Convert a member of a manifest back to the form in which its source listed it."""
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


# Returns the SHA-256 of a member; each counter above 0 gives a different digest.
Digest = Callable[[ListedMember, int], bytes]


def identity_digest(item: ListedMember, counter: int = 0) -> bytes:
    """Return the SHA-256 of a member's identity: (uri, member, occurrence, version), 32 bytes.

    The length of each text is hashed before the text, so that no two members have the same
    encoding. If another member already has the id in the digest of counter 0, the counters 1, 2, …
    give digests with other ids.
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
    """Return the id of a member: the first 8 bytes of its digest, as a signed 64-bit integer.

    Counters above 0 give further ids if another member has the first id.
    """
    return first_word(identity_digest(item, counter))


def first_word(digest: bytes) -> int:
    """Return the image id in a member's SHA-256: its first 8 bytes as a signed 64-bit integer."""
    return int.from_bytes(digest[:8], "big", signed=True)


def _encode(text: str | None) -> bytes:
    if text is None:
        return _NONE
    data = text.encode("utf-8", "surrogateescape")
    return len(data).to_bytes(8, "little") + data


class TableColumns(Frozen):
    """Names of the columns of a table that hold its images, or the uris of its images.

    A user sets a name to choose a column. Without a name (null), the column is found by its type
    and by usual names such as `image` or `url`.
    """

    image: str | None = Field(
        default=None, description="column with the encoded images: bytes, or a struct {bytes, path}"
    )
    uri: str | None = Field(default=None, description="column with the uris of images, in a list")


class BlockPlan(Frozen):
    """The sizes of batches and blocks into which a list of members is cut.

    A batch has the members that a detector scores together. A block is a list of members that a
    worker scores and commits as a unit. Its size is a multiple of the batch, unless the end of the
    list, `max_block_bytes`, or the end of a container or row group makes it smaller.
    """

    batch_slots: int = Field(default=32, ge=1, description="members in one batch")
    max_block_members: int = Field(default=1024, ge=1, description="maximum members in one block")
    # The more workers, the slower blocks should grow: the last blocks of a list, of which some are
    # in progress and some are finished, should be a small part of the list.
    blocks_per_doubling: int = Field(
        default=32, ge=1, description="blocks of one size before the size doubles"
    )
    max_block_bytes: int | None = Field(
        default=None, ge=1, description="maximum bytes in one block; null: no limit"
    )

    @property
    def largest_block(self) -> int:
        """The maximum number of members in a block.

        It is `max_block_members`, rounded down to whole batches, but at least one batch.
        """
        return max(self.batch_slots, self.max_block_members // self.batch_slots * self.batch_slots)


def iter_block_sizes(plan: BlockPlan) -> Iterator[int]:
    """Yield the number of members of block 0, of block 1, and so on without end.

    Block 0 is one batch, so that a run has its first verdicts early. The next blocks have about 16
    members, but at least one batch. The size doubles after every `blocks_per_doubling` blocks, up
    to the plan's limit. A limit below one batch means one batch. The caller shortens the last block
    of a list to the members that are left.
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


class MapFunction(Protocol):
    """The type of functions that apply a picklable function to items, in any processes.

    Examples are `map_serial`, which uses this process, and functions that use threads or Ray tasks.
    """

    def __call__(
        self, function: Callable[[T], R], items: Iterable[T], /
    ) -> Generator[R, None, None]:
        """Yield the results in the order of the items, whichever processes compute them.

        A caller that may stop early must close the generator. The function must be picklable. A
        TouchstoneError of the function arrives unchanged, other exceptions may be wrapped.
        """


def map_serial(function: Callable[[T], R], items: Iterable[T], /) -> Generator[R, None, None]:
    """Apply a function to items one after another in this process, and yield results in order."""
    return (function(item) for item in items)
