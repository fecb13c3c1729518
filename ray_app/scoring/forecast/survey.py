"""What a run would score: `survey` counts members, bytes and the requests that reading them takes;
`standing` what a run has left to do.

Reads only listings and a run's own files, in memory that does not grow with the members. Only
requests over a network are billed.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

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
_BATCH = 8192


@dataclass
class Survey:
    """`size_bytes` is of the members that will be read and whose size is known; `unsized` are those
    where it is not. `gets`: GET requests for all of them. `kinds`: counts of `PlannedKind` for
    files of their own, and for containers of each format.

    `refused`: members that the listing itself says will not be read, by status, and folders that it
    could not list, which are no members here. `sample`: members drawn evenly.
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

    def expected_bytes(self, mean: float) -> int:
        """Bytes to read, members of unknown size at `mean` bytes each."""
        return self.size_bytes + round(self.unsized * mean)


def survey(
    items: Iterable[Item],
    *,
    sample: int,
    max_bytes: int,
    progress: Callable[[int], object] | None = None,
) -> Survey:
    """Count all of `items` and draw `sample` of them (reservoir sampling, seeded). Larger than
    `max_bytes` is refused unread.

    `progress` is called now and then with the number so far.
    """
    found, cursor, draw = Survey(), _Cursor(), random.Random(0)
    for item in items:
        if item.refused is not None and is_unreadable_folder(item):
            found.refused[item.refused.status] += 1
            found.closed_folders.add(NotedFolders(1, item.uri))
            continue
        found.members += 1
        if progress is not None and found.members % _REPORT_EVERY == 0:
            progress(found.members)
        if len(found.sample) < sample:
            found.sample.append(item)
        elif sample and (place := draw.randrange(found.members)) < sample:
            found.sample[place] = item
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
    return found


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
    summary = run.read_json("summary.json") if run.store.exists("summary.json") else {}
    return PlannedRun(
        url=run.store.url,
        state=before.state,
        blocks_done=len(before.blocks) - len(before.pending),
        members_done=before.blocks.members - before.pending.members,
        blocks_left=blocks_left,
        members_left=members_left,
        unlike=(summary.get("guarantee") or {}).get("unlike"),
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
