"""List the parts of an archive step by step, and collect the members found (`ArchiveWalker`).

`build` uses this module to list an archive, at once or in portions. The files and containers that
the sources list come first, then the members of containers.

Each portion of a first listing makes the total number of members about `GROWTH` times as large. If
the containers that a step finds have more members than the portion needs, some containers wait for
the next portions.

The folders of a large S3 prefix are sections that are listed in parallel and in steps. Each step
lists a part of every section. A step is planned only from what was listed before. The step in which
a member is listed does not depend on time or on the number of processes.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any, TypeVar

from ray_app import __version__
from ray_app.archives import object_prefix, raw_listing
from ray_app.archives.containers import Container
from ray_app.archives.members import MapFunction, map_serial
from ray_app.archives.sources import Archive, Opened, SourceSection
from ray_app.storage import KeyPrefix, NotedFolders, s3

# The position of a section: its source, its number there, and the keys listed before this part.
Order = tuple[float, int, int]

T = TypeVar("T")
R = TypeVar("R")

_CONTAINER_ORDER: Order = (math.inf, 0, 0)  # The members of containers.

# One task opens up to this number of containers or of bytes, fewer if there would be too few tasks.
_MAX_SHARDS, _MAX_SHARD_BYTES, _MIN_TASKS = 8, 2**30, 32
_FEW_BYTES = 8 * 2**20  # Containers of fewer bytes are opened without tasks.
# If there are more sections, a task opens more containers.
_MAX_SECTIONS = 2048
_CARRIED_BYTES = 16 * 2**20

# The number of members of the first step, and the factor by which each step increases the total.
FIRST_STEP, GROWTH = 50_000, 4
# One process reads several prefixes at once: a core handles some 40 pages per second, and a store
# needs 50 to 200 ms for one.
_PREFIXES_PER_TASK = 5
_ASSUMED_MEMBERS = (
    1_000_000  # The assumed members of a section that is no S3 prefix, until one is listed.
)


@dataclass(frozen=True)
class PendingSection:
    """A section of a source, such as a folder, that is not listed yet or only in part.

    `ordinal` is its number in the source. `section` is without the part that is already listed.
    """

    source: int
    ordinal: int
    section: SourceSection

    @property
    def keys(self) -> KeyPrefix | None:
        """The keys if the section is a part of an S3 prefix, otherwise None."""
        return self.section.keys if isinstance(self.section, object_prefix.PrefixSection) else None

    @property
    def order(self) -> Order:
        """The sort key that puts sections into the order of the archive.

        It is a tuple: the number of the source, the number of the section, and the number of keys
        that were listed before the pending part of the section.
        """
        return self.source, self.ordinal, 0 if self.keys is None else self.keys.listed


@dataclass
class ArchiveWalker:
    """A listing of an archive that is in progress, with its counts so far.

    Call `sources` or `step` to list files and unopened containers, and `containers` to list the
    members of containers. The members are written into raw files (`files`), which have members that
    are not cut into blocks yet. A portion is a part of a manifest that is written before the
    listing ends.

    Attributes:
        limit: The maximum number of members to list; None for all. The first members that pass the
            user's include and exclude patterns are listed.
        found: The number of members before the patterns are applied.
        listed: The number of members that passed the patterns.
        kept: The number of members that passed the patterns since the last portion.
        opened: The number of containers that passed the patterns, already opened or still to open.
        settled: Whether the members of the containers can change only if the version of a container
            changes. If so, later listings open no container to see that nothing changed.
        named: The number of files and containers that the sources themselves list and that pass the
            patterns.
        linked: The number of symbolic links to folders, which were not followed, and an example.
        closed_folders: The number of folders of the whole listing that could not be listed, and an
            example.
        closed: Folders, files, and containers whose members could not be listed. After `resume`,
            those of the earlier process are not included.
        unlisted: The sections that are still to be listed, None before the first step.
    """

    lister: raw_listing.SectionLister
    archive: Archive
    each: MapFunction = map_serial
    limit: int | None = None
    progress: raw_listing.Progress | None = None
    found: int = 0
    listed: int = 0
    kept: int = 0
    opened: int = 0
    settled: bool = True
    named: int = 0
    linked: NotedFolders = field(default_factory=NotedFolders)
    closed_folders: NotedFolders = field(default_factory=NotedFolders)
    closed: list[raw_listing.ClosedPlace] = field(default_factory=list)
    unlisted: list[PendingSection] | None = None
    _sum: int = 0
    _files: list[tuple[Order, raw_listing.RawFile]] = field(default_factory=list)
    _containers: list[tuple[Order, Container]] = field(default_factory=list)
    _carried: int = 0
    _sections: int = 0
    # The number of listed sections that are no S3 prefixes, and the number of their members.
    _whole_sections: tuple[int, int] = (0, 0)
    # The number of containers whose members are listed, and the number of these members.
    _opened_containers: tuple[int, int] = (0, 0)

    def sources(self, *, in_order: bool = False) -> None:
        """List the sources to their end, or until `limit` members are found.

        Files are written into the raw files of this object. Containers are noted, and not opened.
        With `in_order`, one section is listed after another, with no more requests than necessary.
        """
        if in_order or self.limit is not None:
            self._add_listings(self._list_in_order(self._pending_sections()))
            self.unlisted = []
        while self._pending_sections():
            self.step(is_portion=False)

    def step(self, *, is_portion: bool = True) -> None:
        """List a part of every S3 prefix, and some of the other sections (parts of sources).

        A portion ends when the number of members is about `GROWTH` times as large. Otherwise all
        other sections are listed to their end.
        """
        pending = list(self._pending_sections())
        target = self._portion_size()
        prefixes = sum(section.keys is not None for section in pending)
        max_members = math.ceil(target / max(prefixes, 1) / s3.MAX_LISTED) * s3.MAX_LISTED
        remaining: list[PendingSection] = []
        found_before = self.found
        while pending and (not is_portion or self.found - found_before < target):
            count = (
                self._count_sections(pending, target - (self.found - found_before), max_members)
                if is_portion
                else len(pending)
            )
            self._add_listings(self._list_in_parallel(pending[:count], max_members), remaining)
            del pending[:count]
        self.unlisted = sorted([*remaining, *pending], key=lambda section: section.order)

    def containers(self, *, is_portion: bool = False) -> None:
        """Open the containers that were found but not opened yet, and add their members to `files`.

        Containers that are found in these containers are opened, too. A portion stops when there
        are enough members for one part of a manifest. The other containers stay pending.
        """
        pending = [
            container
            for _, container in sorted(self._containers, key=lambda container: container[0])
        ]
        self.settled &= all(container.version for container in pending)
        end = self.found + self._portion_size() if is_portion else math.inf
        while pending and self.found < end and (self.limit is None or self.listed < self.limit):
            count = self._count_containers_with(end - self.found) if is_portion else len(pending)
            batch, pending = pending[:count], pending[count:]
            groups, self._containers = (
                [PendingSection(0, 0, group) for group in _group_containers(batch)],
                [],
            )
            listings = (
                self._list_in_order(groups)
                if self.limit is not None
                else self._list_in_parallel(groups, None)
            )
            found_before = self.found
            self._add_listings(listings, order=_CONTAINER_ORDER)
            self._opened_containers = (
                self._opened_containers[0] + len(batch),
                self._opened_containers[1] + self.found - found_before,
            )
            pending += [container for _, container in self._containers]
        # With a limit, the other containers are not needed.
        self._containers = (
            []
            if self.limit is not None
            else [(_CONTAINER_ORDER, container) for container in pending]
        )

    @property
    def has_containers(self) -> bool:
        """Whether the members of some containers are still to be listed."""
        return bool(self._containers)

    @property
    def is_over(self) -> bool:
        """Whether all sections and containers are listed."""
        return not self._pending_sections() and not self._containers

    @property
    def files(self) -> list[raw_listing.RawFile]:
        """The raw files with the members listed since the last portion, in the archive's order.

        A raw file is a temporary file with listed members that are not cut into blocks yet. A
        portion is a part of a manifest that is written before the listing ends.
        """
        return [file for _, file in sorted(self._files, key=lambda ordered_file: ordered_file[0])]

    @property
    def digest(self) -> str:
        """A hash of the files and containers that the sources list, and of the listing's options.

        If a later listing has the same hash, the sources list the same files and containers.
        """
        guard = self.archive.fetcher.guard
        total = hashlib.sha256(
            repr(
                (
                    __version__,
                    self.archive.selection,
                    self.limit,
                    sorted(guard.named),
                    guard.allow_private,
                )
            ).encode()
        )
        total.update(self._sum.to_bytes(32, "big"))
        if self.linked.count:
            total.update(repr(self.linked).encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def next_portion(self) -> None:
        """Discard the members listed since the last portion; the next portion begins after them.

        Call this if the manifests of the run already have all these members, so that no portion has
        to be written. A portion is a part of a manifest that is written before the listing ends.
        """
        self._files, self.kept, self._carried = [], 0, 0

    def save_state(self) -> bytes:
        """Return, as JSON, the state with which another process can continue the listing."""
        counts = {
            name: getattr(self, name) for name in ("found", "listed", "opened", "settled", "named")
        }
        unlisted = [
            {
                "source": pending.source,
                "ordinal": pending.ordinal,
                "keys": None if pending.keys is None else asdict(pending.keys),
            }
            for pending in self._pending_sections()
        ]
        folders = {"linked": asdict(self.linked), "closed_folders": asdict(self.closed_folders)}
        containers = [_container_to_dict(container) for _, container in self._containers]
        return json.dumps(
            {
                **counts,
                **folders,
                "sum": f"{self._sum:x}",
                "unlisted": unlisted,
                "containers": containers,
                "read": self._opened_containers,
            }
        ).encode()

    def resume(self, saved: bytes) -> None:
        """Continue a listing from the state that `save_state` returned in an earlier process.

        The state has each pending S3 prefix, but only the numbers of other pending sections. These
        sections are looked up in the sources again. A listing of version 1.0, which has ranges of
        keys instead, starts again: its members are known by their ids.
        """
        state: Mapping[str, Any] = json.loads(saved)
        if any("after" in (pending["keys"] or ()) for pending in state["unlisted"]):
            return
        self.found, self.listed, self.opened, self.named = (
            int(state[name]) for name in ("found", "listed", "opened", "named")
        )
        self.settled, self.linked, self._sum = (
            bool(state["settled"]),
            NotedFolders(**state["linked"]),
            int(state["sum"], 16),
        )
        # Older versions did not write these.
        self.closed_folders = NotedFolders(**state.get("closed_folders", {}))
        # Version 0.26 had no pending containers, because it listed all that it found.
        self._containers = [
            (_CONTAINER_ORDER, self._restore_container(container))
            for container in state.get("containers", [])
        ]
        containers, members = state.get("read", (0, 0))
        self._opened_containers = int(containers), int(members)
        pending_states = state["unlisted"]
        whole_sections = {
            (pending["source"], pending["ordinal"])
            for pending in pending_states
            if pending["keys"] is None
        }
        numbered = self.archive.numbered_sections() if whole_sections else ()
        self.unlisted = [
            PendingSection(*pending) for pending in numbered if pending[:2] in whole_sections
        ]
        for pending in pending_states:
            if pending["keys"] is not None:
                section = self.archive.prefix_section(
                    pending["source"], KeyPrefix(**pending["keys"])
                )
                self.unlisted.append(PendingSection(pending["source"], pending["ordinal"], section))
        self.unlisted.sort(key=lambda pending: pending.order)

    def _pending_sections(self) -> list[PendingSection]:
        if self.unlisted is None:
            self.unlisted = [
                PendingSection(*numbered) for numbered in self.archive.numbered_sections()
            ]
        return self.unlisted

    def _restore_container(self, state: Mapping[str, Any]) -> Container:
        """Return a container with the settings of the archive, from `_container_to_dict`."""
        samples = state["samples"]
        table = None if samples is None else self._restore_container(samples)
        archive = self.archive
        return Container(
            **{**state, "samples": table}, columns=archive.columns, limits=archive.limits
        )

    def _portion_size(self) -> int:
        """Return the number of members that makes the total `GROWTH` times as large."""
        return max(FIRST_STEP, (GROWTH - 1) * self.found)

    def _count_containers_with(self, members: float) -> int:
        """Estimate how many containers hold `members` members, from those listed before."""
        containers, count = self._opened_containers
        return math.ceil(members * containers / max(count, 1)) if containers else _MAX_SHARDS

    def _count_sections(
        self, pending: Sequence[PendingSection], target: int, prefix_members: int
    ) -> int:
        """Estimate how many sections have about `target` members together."""
        sections, found = self._whole_sections
        mean = _ASSUMED_MEMBERS if not sections else max(1, found // sections)
        count = expected = 0
        while count < len(pending) and expected < target:
            expected += mean if pending[count].keys is None else prefix_members
            count += 1
        return count

    def _list_in_parallel(
        self, sections: Sequence[PendingSection], max_objects: int | None
    ) -> Iterator[tuple[PendingSection, raw_listing.SectionListing]]:
        lister = replace(self.lister, most=max_objects)
        items: list[tuple[int, list[SourceSection]]] = []
        for is_prefix, run in groupby(sections, lambda pending: pending.keys is not None):
            run_sections = [pending.section for pending in run]
            size = (
                math.ceil(len(run_sections) / math.ceil(len(run_sections) / _PREFIXES_PER_TASK))
                if is_prefix
                else 1
            )
            for start in range(0, len(run_sections), size):
                items.append((self._sections, run_sections[start : start + size]))
                self._sections += 1
        if len(items) == 1 and len(sections) == 1:
            lister = replace(lister, progress=_offset_progress(self.listed, self.progress))
        listings = (listing for group in self._map(lister, items) for listing in group)
        yield from zip(sections, listings, strict=True)

    def _map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        return (self.each if len(items) > 1 else map_serial)(function, items)

    def _list_in_order(
        self, sections: Sequence[PendingSection]
    ) -> Iterator[tuple[PendingSection, raw_listing.SectionListing]]:
        """List one section after another, because a limit may make later sections unnecessary."""
        for pending in sections:
            remaining = None if self.limit is None else self.limit - self.listed
            if remaining is not None and remaining <= 0:
                return
            lister = replace(
                self.lister, limit=remaining, progress=_offset_progress(self.listed, self.progress)
            )
            [listing] = lister((self._sections, [pending.section]))
            self._sections += 1
            yield pending, listing

    def _add_listings(
        self,
        listings: Iterable[tuple[PendingSection, raw_listing.SectionListing]],
        remaining: list[PendingSection] | None = None,
        *,
        order: Order | None = None,
    ) -> None:
        """Count and keep the members and containers of listings.

        `remaining` gets the parts of sections that were not listed yet. Only members of containers,
        which come last, have an `order`.
        """
        for pending, listing in listings:
            self.found += listing.found
            self.linked.add(listing.linked)
            self._note_closed(listing.closed)
            self.opened += len(listing.containers)
            self._containers += [(pending.order, container) for container in listing.containers]
            for file in listing.files:
                self._carried += file.carried_bytes
                raw_file = (
                    file if self._carried <= _CARRIED_BYTES else file.stored(self.lister.store)
                )
                self._files.append((order or pending.order, raw_file))
            self.kept += listing.kept
            self.listed += listing.kept
            if order is None:
                self.named += listing.kept + len(listing.containers)
                self._sum = (self._sum + listing.digest) % raw_listing.SUMS
                if pending.keys is None:
                    self._whole_sections = (
                        self._whole_sections[0] + 1,
                        self._whole_sections[1] + listing.found,
                    )
            else:
                self.settled &= listing.settled
            if remaining is not None and listing.rest is not None:
                remaining.append(replace(pending, section=listing.rest))
            if self.progress is not None:
                self.progress(self.listed)

    def _note_closed(self, places: Sequence[raw_listing.ClosedPlace]) -> None:
        self.closed += places
        for closed in places:
            if closed.version is None:
                self.closed_folders.add(NotedFolders(1, closed.uri))


def _offset_progress(
    listed: int, progress: raw_listing.Progress | None
) -> raw_listing.Progress | None:
    return None if progress is None else lambda count: progress(listed + count)


def _container_to_dict(container: Container) -> dict[str, Any]:
    """Return a container without the settings of the archive, for JSON."""
    names = ("uri", "version", "size_bytes", "kind", "path", "named")
    samples = container.samples
    return {
        **{name: getattr(container, name) for name in names},
        "samples": None if samples is None else _container_to_dict(samples),
    }


def _group_containers(containers: Sequence[Container]) -> list[SourceSection]:
    """Group containers into sections; small containers are in one section."""
    total_bytes = sum(container.size_bytes for container in containers)
    if total_bytes <= _FEW_BYTES:
        return [Opened(tuple(containers))]
    shards = min(_MAX_SHARDS, max(1, len(containers) // _MIN_TASKS))
    group_size = max(shards, math.ceil(len(containers) / _MAX_SECTIONS))
    max_group_bytes = max(_MAX_SHARD_BYTES, total_bytes // _MAX_SECTIONS)
    groups: list[SourceSection] = []
    group: list[Container] = []
    group_bytes = 0
    for container in containers:
        group.append(container)
        group_bytes += container.size_bytes
        if len(group) == group_size or group_bytes >= max_group_bytes:
            groups.append(Opened(tuple(group)))
            group, group_bytes = [], 0
    return [*groups, Opened(tuple(group))] if group else groups
