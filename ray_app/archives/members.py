"""What a member is, and the number that names it for ever. Knows names and hashes; reads nothing."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.errors import InputError, Status

Ids = npt.NDArray[np.int64]

_NONE = b"\xff" * 8  # in a length's place: no text, which is not the empty text


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its container a member lies, so that it is read without what lies before it.

    `kind` names the container's format (`ray_app.archives.containers`). `offset`: the first byte of the data in an (unpacked) tar, of
    the local header in a zip, the row's number in a Parquet file. `length`: bytes from there that hold it, -1 where the format
    does not say. `group`: members of one group are read together (a Parquet row group; 0 in other formats). `column`: the one that
    holds the image, in a table.
    """

    kind: str
    offset: int
    length: int = -1
    group: int = 0
    column: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a member is never read: the archive's own listing says that it must not or cannot be."""

    status: Status
    detail: str

    def error(self) -> InputError:
        """The same, as what a row says."""
        return InputError(self.status, self.detail)


@dataclass(frozen=True, slots=True)
class Listed:
    """One encoded file as a source lists it; `member` and `occurrence` (0, 1, … of equal names) tell it from others in one container.

    `place` is None for a file of its own.
    """

    uri: str
    member: str | None
    occurrence: int
    version: str
    size_bytes: int
    input: dict[str, Any] = field(default_factory=dict)
    place: Place | None = None
    refused: Refused | None = None


class Described(Listed):
    """A file whose columns lie beside it in the archive, where no user has seen to their types."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Member:
    """One row of a manifest: a listed file with its id and its fixed place, `slot` counting inside `block`. Size -1 = unknown."""

    image_id: int
    uri: str
    member: str | None
    occurrence: int
    version: str
    size_bytes: int
    block: int
    slot: int
    input: dict[str, Any]
    place: Place | None = None
    refused: Refused | None = None


# SHA-256 of a member; with a counter above 0, another one.
Digest = Callable[[Listed, int], bytes]


def identity_digest(item: Listed, counter: int = 0) -> bytes:
    """SHA-256 over (uri, member, occurrence, version), each text after its length, so that no two members share an encoding.

    A `counter` above 0 joins the hash where a member before had the same id.
    """
    parts = [_encode(item.uri), _encode(item.member), item.occurrence.to_bytes(8, "little"), _encode(item.version)]
    if counter:
        parts.append(counter.to_bytes(8, "little"))
    return hashlib.sha256(b"".join(parts)).digest()


def image_id(item: Listed, counter: int = 0) -> int:
    """The first 8 bytes of the digest, as a signed 64-bit integer."""
    return first_word(identity_digest(item, counter))


def first_word(digest: bytes) -> int:
    """The part of a digest that names its member."""
    return int.from_bytes(digest[:8], "big", signed=True)


def check_word(digest: bytes) -> int:
    """The next part, which tells members apart whose first words are equal."""
    return int.from_bytes(digest[8:16], "big", signed=True)


def _encode(text: str | None) -> bytes:
    if text is None:
        return _NONE
    data = text.encode("utf-8", "surrogateescape")
    return len(data).to_bytes(8, "little") + data
