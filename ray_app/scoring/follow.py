"""A source that goes on (`Arrivals`): what is new in it, by listing it again and again, and by its bucket's events in between.

What is found makes a manifest, as that of a nightly command does, and its blocks join the stream of those before. At the end of a day, in
UTC, the stream ends, and the run is settled as after a night.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime

from ray_app.archives import BlockPlan, KnownUris, ManifestInfo, last_listing, list_members, list_named
from ray_app.errors import ConfigError, StorageError
from ray_app.runs import RunDirectory, reader
from ray_app.scoring.backlog import ListingTasks, archive_of
from ray_app.scoring.config import ScoreConfig
from ray_app.storage.bucket_events import BucketQueue, Event, EventLines

LOOK_EVERY_S = 1.0  # for a stop, and for the end of the day
_PATIENCE = 30  # such looks, before what failed is tried again


def today() -> date:
    """In UTC."""
    return datetime.now(UTC).date()


class Arrivals:
    """What comes to a config's source after its first listing. `at_once`: whether all detectors look at a file in one pass."""

    def __init__(self, run: RunDirectory, config: ScoreConfig, plan: BlockPlan, *, at_once: bool) -> None:
        self._run, self._archive, self._plan, self._at_once = run, archive_of(config), plan, at_once
        self._every_s = config.listed_every_s or 0.0
        self._source = None if config.events is None else EventLines() if config.events == "-" else BucketQueue(config.events)
        self._known = KnownUris(run.store)
        self._held: list[Event] = []  # until they are in a manifest
        last, self._day = last_listing(run.store), today()
        self._due = time.monotonic() + (self._every_s if last is None or last.goes_on else 0.0)  # in the first case it is being listed

    def turned(self) -> bool:
        """Whether another day has begun since this was asked last."""
        before, self._day = self._day, today()
        return self._day != before

    def portions(self, tasks: ListingTasks, rest: Iterable[ManifestInfo | None]) -> Iterator[ManifestInfo | None]:
        """`rest`, and then each further manifest until the day ends, or where further passes are to follow the first one; None where
        there is none yet. A source or queue that fails is looked at again. Raises as `ListingTasks.wait`.
        """
        yield from rest
        while today() == self._day:
            tasks.wait(0)
            try:
                info = self._next(tasks)
            except (ConfigError, StorageError) as error:
                print(f"following: {error}; it is looked at again", file=sys.stderr, flush=True)
                for _ in range(_PATIENCE):
                    tasks.wait(LOOK_EVERY_S)
                continue
            if info is not None:
                reader.publish_vanished(self._run)
            yield info
            if info is not None and not self._at_once:
                return

    def _next(self, tasks: ListingTasks) -> ManifestInfo | None:
        """A manifest of what is new, if something is."""
        left_s, given = self._due - time.monotonic(), (self._run.store, self._archive, self._plan)
        if left_s <= 0:
            info = list_members(*given, each=tasks)
            self._due = time.monotonic() + self._every_s
            return info
        if self._source is None:
            tasks.wait(min(left_s, LOOK_EVERY_S))
            return None
        self._held = self._held or self._source.receive(min(left_s, 5 * LOOK_EVERY_S))
        uris = {uri for _, named in self._held for uri in named}
        info = list_named(*given, uris, self._known, each=tasks) if uris else None
        self._source.done([receipt for receipt, _ in self._held])
        self._held = []
        return info
