"""A source that goes on (`Arrivals`): what is new in it, by listing it again and again, and by its bucket's events in between.

Each listing that finds something makes a manifest, as that of a nightly command does, and its blocks join the stream of those before. The
day's end is that of UTC: then the stream ends, and the run is settled as after a night.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime

from ray_app.archives import Archive, BlockPlan, KnownUris, ManifestInfo, list_members, list_named
from ray_app.errors import ConfigError, StorageError
from ray_app.reports.format import counted
from ray_app.runs import RunDirectory, reader
from ray_app.scoring.backlog import ListingTasks
from ray_app.storage.bucket_events import Events, EventSource

LOOK_EVERY_S = 1.0  # for a stop, and for the end of the day


def today() -> date:
    """In UTC."""
    return datetime.now(UTC).date()


class Arrivals:
    """What comes to an archive: it is listed every `every_s` seconds, and `events` are looked at all the time.

    `idle_s`: how long nothing comes before `portions` says so; `together`: whether detectors look at all that comes at once.
    """

    def __init__(
        self,
        run: RunDirectory,
        archive: Archive,
        plan: BlockPlan,
        events: EventSource | None,
        *,
        every_s: float,
        idle_s: float,
        together: bool,
    ) -> None:
        self._run, self._archive, self._plan, self._events = run, archive, plan, events
        self._every_s, self._idle_s, self._together = every_s, idle_s, together
        self._known = KnownUris(run.store)
        self._held: Events | None = None  # until they are in a manifest
        self._due = time.monotonic()
        self._day = today()

    def listed(self) -> None:
        """The source was listed just now."""
        self._due = time.monotonic() + self._every_s

    def turned(self) -> bool:
        """Whether another day has begun since this was asked last."""
        before, self._day = self._day, today()
        return self._day != before

    def portions(self, tasks: ListingTasks, rest: Iterable[ManifestInfo | None]) -> Iterator[ManifestInfo | None]:
        """`rest`, and then each further manifest until the end of the day, or where passes over the same files are to follow of the first;
        None once nothing came for `idle_s`. A source or queue that is out of reach is asked again. Raises as `ListingTasks.wait`.
        """
        yield from rest
        since: float | None = time.monotonic()
        while today() == self._day:
            tasks.wait(0)
            try:
                info = self._next(tasks)
            except (ConfigError, StorageError) as error:
                print(f"following: {error}; it is looked at again", file=sys.stderr, flush=True)
                tasks.wait(min(self._every_s, 60 * LOOK_EVERY_S))
                continue
            if info is not None:
                since = time.monotonic()
                yield info
                if not self._together:
                    return
            elif since is not None and time.monotonic() - since >= self._idle_s:
                since = None
                yield None

    def _next(self, tasks: ListingTasks) -> ManifestInfo | None:
        """A manifest of what is new, if something is."""
        left_s = self._due - time.monotonic()
        if left_s <= 0:
            self.listed()
            return self._counted(list_members(self._run.store, self._archive, self._plan, each=tasks))
        if self._events is None:
            tasks.wait(min(left_s, LOOK_EVERY_S))
            return None
        if self._held is None:
            self._held = self._events.receive(min(left_s, 5 * LOOK_EVERY_S))
            if odd := self._held.unreadable:
                print(f"following: {counted(odd, 'message')} not of a bucket, left alone", file=sys.stderr, flush=True)
        info = None
        if self._held.uris:
            info = self._counted(list_named(self._run.store, self._archive, self._plan, self._held.uris, self._known, each=tasks))
        self._held.done()
        self._held = None
        return info

    def _counted(self, info: ManifestInfo | None) -> ManifestInfo | None:
        if info is not None:
            reader.publish_vanished(self._run)
        return info
