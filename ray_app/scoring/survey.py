"""Count the files that a run would score, before it starts, for `touchstone plan`.

`survey` counts members (files), bytes, and the requests for reading them, and draws a sample.
`find_earlier_work` finds the work that is left in an existing run. Both read only listings and
files of the run directory. Their memory does not grow with the number of members. Only requests
over a network are counted as billed.
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
    read_block,
    read_ids,
    rows_to_members,
)
from ray_app.archives.containers import COMPRESSED, base
from ray_app.archives.members import Ids, is_unreadable_folder
from ray_app.inference import ScoringSpec
from ray_app.reports.plan_model import PlannedRun
from ray_app.runs import RunDirectory
from ray_app.scoring import identity, session
from ray_app.scoring.backlog import Listing, find_work, open_archive
from ray_app.storage import Fetcher, NotedFolders
from ray_app.storage.ranged import WINDOW_BYTES as STREAM_BYTES

FOOTER_READS = 2  # Before the first row group of a Parquet file.
KEYS_PER_LIST = 1000  # The maximum number of keys in the response to a LIST request.
FILES = "files"
_REPORT_EVERY = 4096
Item = ListedMember | ManifestMember
T = TypeVar("T")
_BATCH = 8192
# The maximum number of windows per sampled member. So each folder and each container has its fraction
# of the archive in the sample, to within one member.
_WINDOWS = 16


@dataclass
class Survey:
    """Counts of the members of an archive, and a sample of them.

    A member is a file, or one file in a container such as a tar.

    Attributes:
        members: The number of members, without folders that could not be listed.
        size_bytes: The total size of the members that will be read, as far as the listing has their
            sizes.
        unsized: The number of members that will be read and whose size the listing does not have.
        billed: The number of files and containers that are read over a network, so that their
            requests are billed.
        gets: The number of GET requests over a network that are needed to read all members.
        kinds: The numbers `members`, `size_bytes`, and `containers`, by kind of file. A kind is
            `files`, for single files, or a container format such as `tar`.
        refused: By status, the number of members that will not be read because the listing refuses
            them, and of folders that it could not list.
        closed_folders: The number of folders that could not be listed, and the URI of the first of
            them.
        sample: Members drawn evenly from the whole listing, in its order.
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
        """The mean size in bytes of the members whose size is known."""
        return self.size_bytes / max(self.members - self.unsized, 1)

    @property
    def lists(self) -> int:
        """The minimum number of LIST requests that are needed to list the files and containers."""
        return math.ceil(self.billed / KEYS_PER_LIST)


def survey(
    items: Iterable[Item],
    *,
    sample: int,
    max_bytes: int,
    progress: Callable[[int], object] | None = None,
) -> Survey:
    """Count the files of an archive (members), their bytes, and the requests to read them.

    A sample of the members is drawn at the same time.

    Args:
        items: The members, in the order of the listing.
        sample: The number of members to sample. The sample is always the same.
        max_bytes: The maximum size of a file. Larger files are refused, so they cost no request.
        progress: A function that is called now and then with the number of members so far.

    Returns:
        The counts and the sample.
    """
    result, cursor, windows = Survey(), _Cursor(), _Windows(sample)
    for item in items:
        if item.refused is not None and is_unreadable_folder(item):
            result.refused[item.refused.status] += 1
            result.closed_folders.add(NotedFolders(1, item.uri))
            continue
        result.members += 1
        if progress is not None and result.members % _REPORT_EVERY == 0:
            progress(result.members)
        windows.add(item)
        counts = result.kinds.setdefault(
            FILES if item.place is None else item.place.kind,
            Counter(members=0, size_bytes=0, containers=0),
        )
        is_another = cursor.move_to(item)
        result.billed += is_another and cursor.billed
        counts.update(members=1, containers=int(is_another and item.place is not None))
        if item.refused is not None:
            result.refused[item.refused.status] += 1
        elif item.size_bytes <= max_bytes:
            result.unsized += item.size_bytes < 0
            result.size_bytes += max(item.size_bytes, 0)
            counts["size_bytes"] += max(item.size_bytes, 0)
            result.gets += cursor.reads(item.place) * cursor.billed
    result.sample = windows.sample()
    return result


class _Windows:
    """Sample one member at random from each window of equally many neighbours.

    So each folder and each container is represented by its number of members, and no pattern of the
    listing, such as every second file, coincides with a pattern of the sample. Windows double in
    size as members are added.

    Args:
        count: The number of members that `sample` returns.
    """

    def __init__(self, count: int) -> None:
        self._count, self._max_windows = count, _WINDOWS * count
        self._sampled = list[Item]()
        self._width = 1
        self._filled = 0  # The number of members in the last window.
        self._random = random.Random(0)

    def add(self, item: Item) -> None:
        """Add the next member."""
        if not self._count:
            return
        if self._filled == 0:
            self._sampled.append(item)
        elif self._random.randrange(self._filled + 1) == 0:
            self._sampled[-1] = item
        self._filled = (self._filled + 1) % self._width
        if self._filled == 0 and len(self._sampled) == self._max_windows:
            pairs = zip(self._sampled[::2], self._sampled[1::2], strict=True)
            self._sampled = [self._random.choice(pair) for pair in pairs]
            self._width *= 2

    def sample(self) -> list[Item]:
        """Return the requested number of members, or all if there are fewer, in their order."""
        return spread(self._sampled, self._count, self._random.random())


def spread(items: Sequence[T], count: int, start: float = 0.5) -> list[T]:
    """Return `count` items at equal distances in a sequence, or all items if there are fewer.

    Args:
        items: The items.
        count: The number of items to return.
        start: The position of the first item within the first of `count` equal intervals, from 0 to
            below 1.
    """
    if len(items) <= count:
        return list(items)
    return [items[int((number + start) * len(items) / count)] for number in range(count)]


class _Cursor:
    """Position of a reader that reads members in their order.

    It knows what the next member requests in addition to what was read before.
    """

    def __init__(self) -> None:
        self._object = ("", "")
        self._start, self._end = 0, -1
        self.billed = False

    def move_to(self, item: Item) -> bool:
        """Move to a member, and return whether it starts another file or container.

        `billed` then shows whether requests to that file are billed.
        """
        is_another = item.place is None or (item.uri, item.version) != self._object
        if is_another:
            self._object, self.billed = (item.uri, item.version), session.is_billed(item.uri)
            self._start, self._end = 0, -1
        return is_another

    def reads(self, location: MemberLocation | None) -> int:
        """Return the number of requests for the member at a location."""
        if location is None:
            return 1
        if location.kind == "parquet":
            is_first, is_new, self._end = self._end < 0, location.group != self._end, location.group
            return is_first * FOOTER_READS + is_new
        end = location.offset + max(location.length, 1)
        if location.kind in COMPRESSED:
            before, self._end = max(self._end, 0), max(self._end, end)
            return math.ceil(self._end / STREAM_BYTES) - math.ceil(before / STREAM_BYTES)
        if (
            self._end >= 0
            and self._start <= location.offset <= self._end + base.GAP_BYTES
            and end - self._start <= base.WINDOW_BYTES
        ):
            self._end = max(self._end, end)
            return 0
        self._start, self._end = location.offset, end
        return 1


def find_earlier_work(settings: identity.Settings, spec: ScoringSpec) -> Listing | None:
    """Find what is left to score in the run that a command would continue.

    Args:
        settings: The settings of the command.
        spec: The scoring specification.

    Returns:
        The manifests (lists of files) of the run, and its blocks without rows. No block is pending
        if the run is finished. None for a new run.

    Raises:
        IdentityError: If the settings of the run differ.
    """
    if settings.stored is None or settings.config.out is None:
        return None
    run = RunDirectory.open(settings.config.out)
    run.require_same(settings.facts(spec))
    return find_work(run, include_finished=True)


def describe_progress(
    run: RunDirectory, before: Listing, blocks_left: int, members_left: int
) -> PlannedRun:
    """Return the progress of an existing run, for the plan of a command that continues it.

    Args:
        run: The run.
        before: The manifests (lists of files) and blocks that the run has already listed.
        blocks_left: The number of blocks to score.
        members_left: The number of files to score.

    Returns:
        The state of the run, and how much of it is done and left.
    """
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
    """Return the members (files) that a command would score.

    For a new run, or a run that has listed nothing yet, these are all files of the source. For an
    unfinished run, they are the files of the blocks without rows. For a finished run, they are the
    files that are new or changed.

    Args:
        settings: The settings of the command.
        before: The work of an earlier command; None for a new run.
        fetcher: Reads lists and containers.

    Returns:
        The members. Iterating raises ConfigError if the source is empty, and StorageError if the
        source is unreachable.
    """
    config = settings.config
    archive = open_archive(config, fetcher)
    listed = iter(archive) if config.limit is None else islice(archive.beginning(), config.limit)
    if before is None or config.out is None or before.state == "begun":
        return listed
    store = RunDirectory.open(config.out).store
    if before.state == "unfinished":
        return chain.from_iterable(
            rows_to_members(read_block(store, ref)) for ref in before.pending
        )
    return _iter_new(listed, np.sort(np.concatenate(list(read_ids(store, before.blocks)))))


def _iter_new(listed: Iterator[ListedMember], scored_ids: Ids) -> Iterator[ListedMember]:
    while batch := list(islice(listed, _BATCH)):
        ids = np.fromiter(map(image_id, batch), np.int64, len(batch))
        is_known = (
            scored_ids[np.minimum(np.searchsorted(scored_ids, ids), len(scored_ids) - 1)] == ids
        )
        yield from (item for item, old in zip(batch, is_known, strict=True) if not old)
