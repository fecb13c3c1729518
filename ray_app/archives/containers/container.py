"""What every container format offers. Knows none of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from ray_app.archives.members import Listed, Member, Refused
from ray_app.config import Frozen
from ray_app.errors import InputError
from ray_app.storage import Fetcher


class Columns(Frozen):
    """Which columns of a table hold what; null = found by their types and usual names."""

    image: str | None = Field(default=None, description="column with the encoded images: bytes, or a struct {bytes, path}")
    uri: str | None = Field(default=None, description="column with the places of images, in a list")


class ContainerLimits(Frozen):
    """What an archive may cost before it, or a member, is refused (specs/intake.md §4.3). All are checked before anything is unpacked."""

    max_members: int = Field(default=10_000_000, gt=0, description="members of one container; further ones are refused")
    max_ratio: float = Field(default=200.0, gt=1, description="unpacked ÷ packed bytes, of a member above 1 MB and of a whole container")


@dataclass(frozen=True)
class Container:
    """An unopened container as its store lists it. `path` is what patterns are compared with, before the member's own name.

    `named`: the user gave this very file as a source, so that a table may be a list of uris; any other names nothing that is fetched.
    `samples`: the table beside a shard that tells of its members (`ray_app.archives.img2dataset`).
    """

    uri: str
    version: str
    size_bytes: int
    kind: str
    path: str
    columns: Columns
    limits: ContainerLimits
    named: bool = False
    samples: "Container | None" = None

    def itself(self, why: Refused) -> "Unopened":
        """The container as a member: what stands in the manifest where it cannot be opened, or ends early."""
        return Unopened(self.uri, None, 0, self.version, self.size_bytes, refused=why)

    def as_file(self, why: Refused) -> Listed:
        """The file as a member: what its name announces as a container, and is none."""
        return Listed(self.uri, None, 0, self.version, self.size_bytes, refused=why)


class Unopened(Listed):
    """A container in the place of members that nobody could list: patterns on their names cannot leave it out."""

    __slots__ = ()


class Reader(Protocol):
    """Reads members of one format for as long as a worker lives; what it keeps open saves reading again."""

    def read(self, members: Sequence[Member]) -> Iterator[bytes | InputError]:
        """The bytes of members of one container, in their order, or why there are none. Raises nothing that is about one member."""


class Format(Protocol):
    """One container format: a module of this package with these two functions."""

    def index(self, container: Container, fetcher: Fetcher) -> Iterator[Listed]:
        """Every member, streamed, in the container's order. One that must not be read has `refused` set; a container that cannot be
        opened, or ends early, adds `container.itself(reason)`. Raises StorageError when the store is out of reach.
        """

    def reader(self, fetcher: Fetcher, max_bytes: int) -> Reader:
        """A reader that never gives more than `max_bytes` for one member, however much its archive claims or unpacks to."""
