"""`Walk`: the way through the sections of an archive, and what was found on it; first what its
sources list, then what is in containers.

A portion of a first listing is about as much as makes all that is listed `GROWTH` times as much. If
the containers that a step finds hold more, the rest of them waits for the next portions.

Ranges of S3 keys are listed side by side and in steps, each of which goes through some of every
range; ranges that are left behind are cut anew before the next one, so that many processes share
what turned out to be heavy. A step is planned from what was listed before and from nothing else:
neither time nor the number of processes decides what is on which side of an edge.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

from ray_app import __version__
from ray_app.archives import object_prefix, raw_listing
from ray_app.archives.containers import Container
from ray_app.archives.members import Each, in_turn
from ray_app.archives.sources import Archive, Opened, SourceSection
from ray_app.storage import KeyRange, NotedFolders

# of a section among all: its source, its number there, the key that it begins behind
Order = tuple[float, int, str]

T = TypeVar("T")
R = TypeVar("R")

_LAST: Order = (math.inf, 0, "")  # of what is in containers

# containers that one task opens, whichever is reached first; fewer if that gives too few tasks
_SHARDS_AT_ONCE, _SHARD_BYTES, _FEWEST_TASKS = 8, 2**30, 32
_LITTLE_BYTES = 8 * 2**20  # of containers that are opened at once rather than by tasks
# of very many containers, so many more to a task that there are no more tasks than this
_MOST_SECTIONS = 2048
_CARRIED_BYTES = 16 * 2**20

# members of the first step, and by how much all that is listed grows with each
FIRST_STEP, GROWTH = 50_000, 4
_PAGE = 1000
# A range costs two or three requests, to find it and where it ends: one for 25 pages that have been
# listed before. Those that are there are cut again where eight times as many may be, since parting
# one in few pieces costs as much as in ten. One process reads several of them at once: a core bears
# some forty pages a second, a store gives one in 50 to 200 ms.
_KEYS_A_RANGE, _FEWEST_RANGES, _MOST_RANGES, _CUT_AGAIN, _RANGES_A_TASK = 25 * _PAGE, 8, 512, 8, 5
_UNKNOWN = 1_000_000  # members of a section that is no range of keys, before any was listed


@dataclass(frozen=True)
class Unlisted:
    """A section that is still to be listed, or the rest of one; `source`, `ordinal`: where it
    began, of what the archive numbers.
    """

    source: int
    ordinal: int
    section: SourceSection

    @property
    def keys(self) -> KeyRange | None:
        """The range that it is, if it is one."""
        return self.section.keys if isinstance(self.section, object_prefix.PrefixRange) else None

    @property
    def order(self) -> Order:
        """What sorts sections as one listing would have them."""
        return self.source, self.ordinal, (self.keys and self.keys.after) or ""


@dataclass
class Walk:
    """A way through an archive.

    `found`: members, chosen or not; `listed`: the chosen ones, and `kept` those of them since the
    last portion; `opened`: how many containers; `settled`: whether what they hold is known for good
    as long as their versions are the same. `named`: chosen files and containers that the sources
    themselves list, and `digest` a hash of these. `linked`: folders that were not followed.
    `closed`: places whose members this process could not list, `closed_folders` how many folders
    are among those of the whole listing.
    """

    lister: raw_listing.SectionLister
    archive: Archive
    each: Each = in_turn
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
    unlisted: list[Unlisted] | None = None
    _sum: int = 0
    _files: list[tuple[Order, raw_listing.RawFile]] = field(default_factory=list)
    _waiting: list[tuple[Order, Container]] = field(default_factory=list)
    _carried: int = 0
    _sections: int = 0
    # sections that are no ranges of keys, and what was found in them
    _odd: tuple[int, int] = (0, 0)
    # containers that were listed, and how many members they hold
    _read: tuple[int, int] = (0, 0)

    def sources(self, *, in_order: bool = False) -> None:
        """List all that the sources themselves say, as far as `limit` goes: files, and containers
        that are not opened yet.

        With `in_order` one section after another, with no request more than that takes.
        """
        if in_order or self.limit is not None:
            self._take(self._in_order(self._begun()))
            self.unlisted = []
        while self._begun():
            self.step(is_portion=False)

    def step(self, *, is_portion: bool = True) -> None:
        """List on, about as much as makes all that is listed `GROWTH` times as much, in some of
        every range that is left.

        `is_portion`: of sections that are no ranges of keys no more than that takes; else all of
        them.
        """
        waiting = self._divided(self._begun())
        target = self._portion_size()
        ranges = sum(one.keys is not None for one in waiting)
        most = math.ceil(target / max(ranges, 1) / _PAGE) * _PAGE
        left: list[Unlisted] = []
        before = self.found
        while waiting and (not is_portion or self.found - before < target):
            count = (
                self._enough(waiting, target - (self.found - before), most)
                if is_portion
                else len(waiting)
            )
            self._take(self._side_by_side(waiting[:count], most), left)
            del waiting[:count]
        self.unlisted = sorted([*left, *waiting], key=lambda one: one.order)

    def containers(self, *, is_portion: bool = False) -> None:
        """List what is in the containers, and in those that they name.

        Args:
            is_portion: List no more of them than a portion takes. The others stay waiting.
        """
        waiting = [container for _, container in sorted(self._waiting, key=lambda one: one[0])]
        self.settled &= all(one.version for one in waiting)
        end = self.found + self._portion_size() if is_portion else math.inf
        while waiting and self.found < end and (self.limit is None or self.listed < self.limit):
            count = self._containers_with(end - self.found) if is_portion else len(waiting)
            batch, waiting = waiting[:count], waiting[count:]
            groups, self._waiting = [Unlisted(0, 0, group) for group in _groups(batch)], []
            listings = (
                self._in_order(groups)
                if self.limit is not None
                else self._side_by_side(groups, None)
            )
            before = self.found
            self._take(listings, order=_LAST)
            self._read = self._read[0] + len(batch), self._read[1] + self.found - before
            waiting += [container for _, container in self._waiting]
        # With a limit, what is left is not wanted.
        self._waiting = (
            [] if self.limit is not None else [(_LAST, container) for container in waiting]
        )

    @property
    def has_containers(self) -> bool:
        """Whether containers wait to be listed."""
        return bool(self._waiting)

    @property
    def is_over(self) -> bool:
        """Whether everything is listed."""
        return not self._begun() and not self._waiting

    @property
    def files(self) -> list[raw_listing.RawFile]:
        """What was kept since the last portion, in the order of one listing: what the sources list
        first.
        """
        return [file for _, file in sorted(self._files, key=lambda one: one[0])]

    @property
    def digest(self) -> str:
        """A hash of the listed files and containers, and of what chose them."""
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
        """Forget the files so far, which are in a manifest."""
        self._files, self.kept, self._carried = [], 0, 0

    def noted(self) -> bytes:
        """All that another process needs to go on from here, as JSON."""
        counts = {
            name: getattr(self, name) for name in ("found", "listed", "opened", "settled", "named")
        }
        unlisted = [
            {
                "source": one.source,
                "ordinal": one.ordinal,
                "keys": None if one.keys is None else asdict(one.keys),
            }
            for one in self._begun()
        ]
        folders = {"linked": asdict(self.linked), "closed_folders": asdict(self.closed_folders)}
        containers = [_facts_of(container) for _, container in self._waiting]
        return json.dumps(
            {
                **counts,
                **folders,
                "sum": f"{self._sum:x}",
                "unlisted": unlisted,
                "containers": containers,
                "read": self._read,
            }
        ).encode()

    def resume(self, noted: bytes) -> None:
        """Go on where another walk was `noted`; sections that are no ranges of keys are looked up
        anew.
        """
        state: Mapping[str, Any] = json.loads(noted)
        self.found, self.listed, self.opened, self.named = (
            int(state[name]) for name in ("found", "listed", "opened", "named")
        )
        self.settled, self.linked, self._sum = (
            bool(state["settled"]),
            NotedFolders(**state["linked"]),
            int(state["sum"], 16),
        )
        # an older version did not write them
        self.closed_folders = NotedFolders(**state.get("closed_folders", {}))
        # Version 0.26 listed all containers that it had found.
        self._waiting = [
            (_LAST, self._container_of(facts)) for facts in state.get("containers", [])
        ]
        containers, members = state.get("read", (0, 0))
        self._read = int(containers), int(members)
        rests = state["unlisted"]
        others = {(one["source"], one["ordinal"]) for one in rests if one["keys"] is None}
        numbered = self.archive.numbered_sections() if others else ()
        self.unlisted = [Unlisted(*one) for one in numbered if one[:2] in others]
        for one in rests:
            if one["keys"] is not None:
                section = self.archive.range_of(one["source"], KeyRange(**one["keys"]))
                self.unlisted.append(Unlisted(one["source"], one["ordinal"], section))
        self.unlisted.sort(key=lambda one: one.order)

    def _begun(self) -> list[Unlisted]:
        if self.unlisted is None:
            self.unlisted = [Unlisted(*one) for one in self.archive.numbered_sections()]
        return self.unlisted

    def _container_of(self, facts: Mapping[str, Any]) -> Container:
        """Return a container with the settings of the archive, from `_facts_of` it."""
        samples = facts["samples"]
        table = None if samples is None else self._container_of(samples)
        archive = self.archive
        return Container(
            **{**facts, "samples": table}, columns=archive.columns, limits=archive.limits
        )

    def _portion_size(self) -> int:
        """Return how many members make all that is listed `GROWTH` times as much."""
        return max(FIRST_STEP, (GROWTH - 1) * self.found)

    def _containers_with(self, members: float) -> int:
        """Return how many containers hold about so many members, by those listed before."""
        containers, count = self._read
        return math.ceil(members * containers / max(count, 1)) if containers else _SHARDS_AT_ONCE

    def _divided(self, unlisted: Sequence[Unlisted]) -> list[Unlisted]:
        """The same, with more ranges of keys where there are few for what is listed already."""
        ranges = [one for one in unlisted if one.keys is not None]
        wanted = min(_MOST_RANGES, max(_FEWEST_RANGES, self.found // _KEYS_A_RANGE))
        if not ranges or self.found < FIRST_STEP or wanted < _CUT_AGAIN * len(ranges):
            return list(unlisted)
        split = partial(_split, math.ceil(wanted / len(ranges)))
        divided = [one for one in unlisted if one.keys is None]
        for whole, parts in zip(ranges, self._each_of(split, ranges), strict=True):
            divided += [replace(whole, section=part) for part in parts]
        return sorted(divided, key=lambda one: one.order)

    def _enough(self, waiting: Sequence[Unlisted], target: int, most: int) -> int:
        """How many sections give about `target` members, as far as that can be known."""
        sections, found = self._odd
        mean = _UNKNOWN if not sections else max(1, found // sections)
        count = expected = 0
        while count < len(waiting) and expected < target:
            expected += mean if waiting[count].keys is None else most
            count += 1
        return count

    def _side_by_side(
        self, sections: Sequence[Unlisted], most: int | None
    ) -> Iterator[tuple[Unlisted, raw_listing.SectionListing]]:
        lister = replace(self.lister, most=most)
        items: list[tuple[int, list[SourceSection]]] = []
        for is_range, run in groupby(sections, lambda one: one.keys is not None):
            together = [one.section for one in run]
            size = (
                math.ceil(len(together) / math.ceil(len(together) / _RANGES_A_TASK))
                if is_range
                else 1
            )
            for start in range(0, len(together), size):
                items.append((self._sections, together[start : start + size]))
                self._sections += 1
        if len(items) == 1 and len(sections) == 1:
            lister = replace(lister, progress=_after(self.listed, self.progress))
        listings = (listing for group in self._each_of(lister, items) for listing in group)
        yield from zip(sections, listings, strict=True)

    def _each_of(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        return (self.each if len(items) > 1 else in_turn)(function, items)

    def _in_order(
        self, sections: Sequence[Unlisted]
    ) -> Iterator[tuple[Unlisted, raw_listing.SectionListing]]:
        """One after another, since with a limit what comes later may not be wanted."""
        for one in sections:
            left = None if self.limit is None else self.limit - self.listed
            if left is not None and left <= 0:
                return
            lister = replace(self.lister, limit=left, progress=_after(self.listed, self.progress))
            [listing] = lister((self._sections, [one.section]))
            self._sections += 1
            yield one, listing

    def _take(
        self,
        listings: Iterable[tuple[Unlisted, raw_listing.SectionListing]],
        left: list[Unlisted] | None = None,
        *,
        order: Order | None = None,
    ) -> None:
        """Count and keep what was found; rests of ranges go to `left`. `order`: of what is in
        containers, which comes last.
        """
        for one, listing in listings:
            self.found += listing.found
            self.linked.add(listing.linked)
            self._note_closed(listing.closed)
            self.opened += len(listing.containers)
            self._waiting += [(one.order, container) for container in listing.containers]
            for file in listing.files:
                self._carried += file.carried_bytes
                kept = file if self._carried <= _CARRIED_BYTES else file.stored(self.lister.store)
                self._files.append((order or one.order, kept))
            self.kept += listing.kept
            self.listed += listing.kept
            if order is None:
                self.named += listing.kept + len(listing.containers)
                self._sum = (self._sum + listing.digest) % raw_listing.SUMS
                if one.keys is None:
                    self._odd = self._odd[0] + 1, self._odd[1] + listing.found
            else:
                self.settled &= listing.settled
            if left is not None and listing.rest is not None:
                left.append(replace(one, section=listing.rest))
            if self.progress is not None:
                self.progress(self.listed)

    def _note_closed(self, places: Sequence[raw_listing.ClosedPlace]) -> None:
        self.closed += places
        for place in places:
            if place.version is None:
                self.closed_folders.add(NotedFolders(1, place.uri))


def _split(pieces: int, one: Unlisted) -> list[object_prefix.PrefixRange]:
    """A range of keys in about so many."""
    assert isinstance(one.section, object_prefix.PrefixRange)
    return one.section.split(pieces)


def _after(listed: int, progress: raw_listing.Progress | None) -> raw_listing.Progress | None:
    return None if progress is None else lambda count: progress(listed + count)


def _facts_of(container: Container) -> dict[str, Any]:
    """Return a container without the settings of the archive, for JSON."""
    names = ("uri", "version", "size_bytes", "kind", "path", "named")
    samples = container.samples
    return {
        **{name: getattr(container, name) for name in names},
        "samples": None if samples is None else _facts_of(samples),
    }


def _groups(containers: Sequence[Container]) -> list[SourceSection]:
    """Containers as sections, some to each; one section when all are small."""
    total_bytes = sum(one.size_bytes for one in containers)
    if total_bytes <= _LITTLE_BYTES:
        return [Opened(tuple(containers))]
    shards = min(_SHARDS_AT_ONCE, max(1, len(containers) // _FEWEST_TASKS))
    at_once = max(shards, math.ceil(len(containers) / _MOST_SECTIONS))
    most_bytes = max(_SHARD_BYTES, total_bytes // _MOST_SECTIONS)
    groups: list[SourceSection] = []
    waiting: list[Container] = []
    waiting_bytes = 0
    for container in containers:
        waiting.append(container)
        waiting_bytes += container.size_bytes
        if len(waiting) == at_once or waiting_bytes >= most_bytes:
            groups.append(Opened(tuple(waiting)))
            waiting, waiting_bytes = [], 0
    return [*groups, Opened(tuple(waiting))] if waiting else groups
