"""What a run would score: `survey` counts members, bytes, and the requests that reading them takes,
and draws a sample; `standing` finds what a run has left to do.

Reads only listings and a run's own files, in memory that does not grow with the members. Only
requests over a network are billed.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from ray_app.archives import (
    ListedMember,
    ManifestMember,
    MemberLocation,
    image_id,
    member_rows,
    read_block,
    read_ids,
)
from ray_app.archives.containers import COMPRESSED, base
from ray_app.archives.members import Ids, is_unreadable_folder
from ray_app.inference import ScoringSpec
from ray_app.reports.plan_model import PlannedRun
from ray_app.runs import RunDirectory
from ray_app.scoring import identity, session
from ray_app.scoring.backlog import Listing, archive_of, work_of
from ray_app.storage import Fetcher, NotedFolders
from ray_app.storage.ranged import WINDOW_BYTES as STREAM_BYTES

FOOTER_READS = 2  # before the first row group of a Parquet file
KEYS_PER_LIST = 1000  # that one LIST request answers with
FILES = "files"
_REPORT_EVERY = 4096
Item = ListedMember | ManifestMember
T = TypeVar("T")
_BATCH = 8192
# Windows per drawn member, at the most: a sample has of each folder and each container its fraction
# of the archive, to one member.
_WINDOWS = 16


@dataclass
class Survey:
    """What an archive has.

    Attributes:
        members: All of them, without folders that could not be listed.
        size_bytes: Bytes of the members that are read and whose size the listing states.
        unsized: Members that are read and whose size the listing does not state.
        billed: Files and containers behind a network.
        gets: GET requests that read all members.
        kinds: Counts of `PlannedKind`, for single files and for containers of each format.
        refused: Members that the listing refuses, by status, and folders that it could not list.
        closed_folders: The folders that it could not list.
        sample: Members drawn evenly, in the order of the listing.
    """

    members: int = 0
    size_bytes: int = 0
    unsized: int = 0
    billed: int = 0
    gets: int = 0
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    closed_folders: NotedFolders = field(default_factory=NotedFolders)
    sample: list[Item] = field(default_factory=list)

    @property
    def mean_bytes(self) -> float:
        """Bytes of one member, over those of known size."""
        return self.size_bytes / max(self.members - self.unsized, 1)

    @property
    def lists(self) -> int:
        """LIST requests that find their files and containers, at the least."""
        return math.ceil(self.billed / KEYS_PER_LIST)


def survey(
    items: Iterable[Item],
    *,
    sample: int,
    max_bytes: int,
    progress: Callable[[int], object] | None = None,
) -> Survey:
    """Count members and draw a sample of them.

    Args:
        items: The members, in the order of the listing.
        sample: How many to draw; the same ones every time.
        max_bytes: Larger files are refused, so they cost no request.
        progress: Called now and then with the number of members so far.
    """
    found, cursor, windows = Survey(), _Cursor(), _Windows(sample)
    for item in items:
        if item.refused is not None and is_unreadable_folder(item):
            found.refused[item.refused.status] += 1
            found.closed_folders.add(NotedFolders(1, item.uri))
            continue
        found.members += 1
        if progress is not None and found.members % _REPORT_EVERY == 0:
            progress(found.members)
        windows.add(item)
        kept = found.kinds.setdefault(
            FILES if item.place is None else item.place.kind,
            Counter(members=0, size_bytes=0, containers=0),
        )
        is_another = cursor.move_to(item)
        found.billed += is_another and cursor.billed
        kept.update(members=1, containers=int(is_another and item.place is not None))
        if item.refused is not None:
            found.refused[item.refused.status] += 1
        elif item.size_bytes <= max_bytes:
            found.unsized += item.size_bytes < 0
            found.size_bytes += max(item.size_bytes, 0)
            kept["size_bytes"] += max(item.size_bytes, 0)
            found.gets += cursor.reads(item.place) * cursor.billed
    found.sample = windows.sample()
    return found


class _Windows:
    """Draws one member at random from each window of equally many neighbours.

    So each folder and each container is represented by its number of members, and no pattern of the
    listing, such as every second file, meets a pattern of the sample. Windows double as members
    come.

    Args:
        count: How many members `sample` returns.
    """

    def __init__(self, count: int) -> None:
        self._count, self._most = count, _WINDOWS * count
        self._drawn = list[Item]()
        self._width = 1
        self._filled = 0  # members of the last window
        self._random = random.Random(0)

    def add(self, item: Item) -> None:
        """Take the next member."""
        if not self._count:
            return
        if self._filled == 0:
            self._drawn.append(item)
        elif self._random.randrange(self._filled + 1) == 0:
            self._drawn[-1] = item
        self._filled = (self._filled + 1) % self._width
        if self._filled == 0 and len(self._drawn) == self._most:
            pairs = zip(self._drawn[::2], self._drawn[1::2], strict=True)
            self._drawn = [self._random.choice(pair) for pair in pairs]
            self._width *= 2

    def sample(self) -> list[Item]:
        """Return as many members as wanted, or all if there are fewer, in their order."""
        return spread(self._drawn, self._count, self._random.random())


def spread(items: Sequence[T], count: int, start: float = 0.5) -> list[T]:
    """Return `count` items at equal distances, or all if there are fewer.

    Args:
        items: The items.
        count: How many to return.
        start: Where in the first of `count` equal stretches the first one is, from 0 to below 1.
    """
    if len(items) <= count:
        return list(items)
    return [items[int((number + start) * len(items) / count)] for number in range(count)]


class _Cursor:
    """Where the reading stands when members are read in their order: what the next one asks for
    beyond what was read before it.
    """

    def __init__(self) -> None:
        self._object = ("", "")
        self._start, self._end = 0, -1
        self.billed = False

    def move_to(self, item: Item) -> bool:
        """Whether this member begins another file or container; `billed` says whether requests to
        it are.
        """
        is_another = item.place is None or (item.uri, item.version) != self._object
        if is_another:
            self._object, self.billed = (item.uri, item.version), session.is_billed(item.uri)
            self._start, self._end = 0, -1
        return is_another

    def reads(self, place: MemberLocation | None) -> int:
        """Requests for the member that lies there."""
        if place is None:
            return 1
        if place.kind == "parquet":
            opened, is_new, self._end = self._end < 0, place.group != self._end, place.group
            return opened * FOOTER_READS + is_new
        end = place.offset + max(place.length, 1)
        if place.kind in COMPRESSED:
            before, self._end = max(self._end, 0), max(self._end, end)
            return math.ceil(self._end / STREAM_BYTES) - math.ceil(before / STREAM_BYTES)
        if (
            self._end >= 0
            and self._start <= place.offset <= self._end + base.GAP_BYTES
            and end - self._start <= base.WINDOW_BYTES
        ):
            self._end = max(self._end, end)
            return 0
        self._start, self._end = place.offset, end
        return 1


def standing(settings: identity.Settings, spec: ScoringSpec) -> Listing | None:
    """Return all blocks of the run that a command continues, and those without rows; None for a new run.

    A run with pending blocks goes on from its manifest; a finished one, or one whose first listing
    never ended, lists its source. Raises IdentityError when another command made it.
    """
    if settings.stored is None or settings.config.out is None:
        return None
    run = RunDirectory.open(settings.config.out)
    run.require_same(settings.facts(spec))
    return work_of(run, whole=True)


def progress_of(
    run: RunDirectory, before: Listing, blocks_left: int, members_left: int
) -> PlannedRun:
    """How far that run is, for a plan."""
    return PlannedRun(
        url=run.store.url,
        state=before.state,
        blocks_done=len(before.blocks) - len(before.pending),
        members_done=before.blocks.members - before.pending.members,
        blocks_left=blocks_left,
        members_left=members_left,
    )


def members_to_score(
    settings: identity.Settings, before: Listing | None, fetcher: Fetcher
) -> Iterable[ListedMember | ManifestMember]:
    """The members that the same command would score: all, those of pending blocks, or what is new
    or changed since the run ended.

    Iterating raises ConfigError for an empty source, StorageError when it is out of reach.
    """
    config = settings.config
    archive = archive_of(config, fetcher)
    listed = iter(archive) if config.limit is None else islice(archive.beginning(), config.limit)
    if before is None or config.out is None or before.state == "begun":
        return listed
    store = RunDirectory.open(config.out).store
    if before.state == "unfinished":
        return chain.from_iterable(member_rows(read_block(store, ref)) for ref in before.pending)
    return _unknown(listed, np.sort(np.concatenate(list(read_ids(store, before.blocks)))))


def _unknown(listed: Iterator[ListedMember], known: Ids) -> Iterator[ListedMember]:
    while batch := list(islice(listed, _BATCH)):
        ids = np.fromiter(map(image_id, batch), np.int64, len(batch))
        is_known = known[np.minimum(np.searchsorted(known, ids), len(known) - 1)] == ids
        yield from (item for item, old in zip(batch, is_known, strict=True) if not old)
