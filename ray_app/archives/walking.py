"""An archive → raw files, section by section: first what its sources list, then what is in containers. Knows no ids of other listings.

What the sources list, which takes no container to be opened, has a digest: where it is that of the listing before, containers need not
be opened again.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from ray_app import __version__
from ray_app.archives.containers import Container
from ray_app.archives.raw import Progress, RawFile, SectionLister, SectionListing
from ray_app.archives.sources import Archive, Opened, Section
from ray_app.storage import LinkedFolders

T = TypeVar("T")
R = TypeVar("R")

_SHARDS_AT_ONCE, _SHARD_BYTES = 8, 2**30  # containers that one task opens, whichever is reached first
_LITTLE_BYTES = 8 * 2**20  # of containers that are opened at once rather than by tasks
_MOST_SECTIONS = 2048  # of very many containers, so many more to a task that there are no more tasks than this
_CARRIED_BYTES = 16 * 2**20


class Each(Protocol):
    """Something that applies a picklable function to items, in whatever processes, and gives the results in their order."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """Raises what the function raises, if it is a TouchstoneError as it was."""


def in_turn(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
    """One after another, in this process."""
    return map(function, items)


@dataclass
class Walk:
    """A way through the sections of an archive, and what was found on it.

    `found`: members, chosen or not; `files`: the chosen ones; `opened`: how many containers; `settled`: whether what they hold is known
    for good as long as their versions are the same. `named`: chosen files and containers that the sources themselves list, and `digest`
    what tells these from others. `linked`: folders that were not followed.
    """

    lister: SectionLister
    archive: Archive
    each: Each = in_turn
    limit: int | None = None
    progress: Progress | None = None
    found: int = 0
    kept: int = 0
    files: list[RawFile] = field(default_factory=list)
    opened: int = 0
    settled: bool = True
    digest: str = ""
    named: int = 0
    linked: LinkedFolders = field(default_factory=LinkedFolders)
    _waiting: list[Container] = field(default_factory=list)
    _carried: int = 0
    _sections: int = 0

    def sources(self) -> None:
        """List what the sources themselves say: files, and containers that are not opened yet."""
        guard = self.archive.fetcher.guard
        total = hashlib.sha256(repr((__version__, self.archive.selection, self.limit, sorted(guard.named), guard.allow_private)).encode())
        for listing in self._over(list(self.archive.sections())):
            total.update(listing.digest)
            if listing.linked.count:
                total.update(repr(listing.linked).encode("utf-8", "surrogateescape"))
        self.named = self.kept + len(self._waiting)
        self.settled = all(one.version for one in self._waiting)
        self.digest = total.hexdigest()

    def containers(self) -> None:
        """List what is in the containers, and in those that they name."""
        while self._waiting and (self.limit is None or self.kept < self.limit):
            groups, self._waiting = _groups(self._waiting), []
            for listing in self._over(groups):
                self.settled &= listing.settled

    def _over(self, sections: Sequence[Section]) -> Iterator[SectionListing]:
        items = list(enumerate(sections, start=self._sections))
        self._sections += len(items)
        for listing in self._listings(items):
            self.found += listing.found
            self.linked.add(listing.linked)
            self.opened += len(listing.containers)
            self._waiting += listing.containers
            for file in listing.files:
                self._carried += file.carried_bytes
                self.files.append(file if self._carried <= _CARRIED_BYTES else file.stored(self.lister.store))
            self.kept += listing.kept
            if self.progress is not None:
                self.progress(self.kept)
            yield listing

    def _listings(self, items: Sequence[tuple[int, Section]]) -> Iterator[SectionListing]:
        """With a limit one after another, since what comes later may not be wanted."""
        if self.limit is None and len(items) > 1:
            yield from self.each(self.lister, items)
            return
        for item in items:
            left = None if self.limit is None else self.limit - self.kept
            if left is not None and left <= 0:
                return
            yield replace(self.lister, limit=left, progress=_after(self.kept, self.progress))(item)


def _after(kept: int, progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda count: progress(kept + count)


def _groups(containers: Sequence[Container]) -> list[Section]:
    """Containers as sections, some to each; one section when all are small."""
    total_bytes = sum(one.size_bytes for one in containers)
    if total_bytes <= _LITTLE_BYTES:
        return [Opened(tuple(containers))]
    at_once = max(_SHARDS_AT_ONCE, math.ceil(len(containers) / _MOST_SECTIONS))
    most_bytes = max(_SHARD_BYTES, total_bytes // _MOST_SECTIONS)
    groups: list[Section] = []
    waiting: list[Container] = []
    waiting_bytes = 0
    for container in containers:
        waiting.append(container)
        waiting_bytes += container.size_bytes
        if len(waiting) == at_once or waiting_bytes >= most_bytes:
            groups.append(Opened(tuple(waiting)))
            waiting, waiting_bytes = [], 0
    return [*groups, Opened(tuple(waiting))] if waiting else groups
