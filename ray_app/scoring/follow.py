"""List a source again at an interval (`Arrivals`), for new and changed files.

What is found makes a manifest, as that of a nightly command does, and its blocks join the stream of
those before. At the end of a day, in UTC, the stream ends, and the run is settled as after a night.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime

from ray_app.archives import BlockPlan, ManifestInfo, last_listing, list_members
from ray_app.errors import ConfigError, StorageError
from ray_app.runs import RunDirectory
from ray_app.scoring.backlog import ListingTasks, archive_of
from ray_app.scoring.config import ScoreConfig

LOOK_EVERY_S = 1.0  # for a stop, and for the end of the day
_PATIENCE = 30  # such looks, before what failed is tried again


def today() -> date:
    """In UTC."""
    return datetime.now(UTC).date()


class Arrivals:
    """What comes to a config's source after its first listing. `at_once`: whether all detectors
    look at a file in one pass.
    """

    def __init__(
        self, run: RunDirectory, config: ScoreConfig, plan: BlockPlan, *, at_once: bool
    ) -> None:
        self._run, self._archive, self._plan, self._at_once = run, archive_of(config), plan, at_once
        self._every_s = config.follow or 0.0
        last, self._day = last_listing(run.store), today()
        # in the first case it is being listed
        self._due = time.monotonic() + (self._every_s if last is None or last.goes_on else 0.0)

    def turned(self) -> bool:
        """Whether another day has begun since this was asked last."""
        before, self._day = self._day, today()
        return self._day != before

    def portions(
        self, tasks: ListingTasks, rest: Iterable[ManifestInfo | None]
    ) -> Iterator[ManifestInfo | None]:
        """`rest`, and then each further manifest until the day ends, or where further passes are to
        follow the first one; None where there is none yet. A source that fails is looked at again.
        Raises as `ListingTasks.wait`.
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
            yield info
            if info is not None and not self._at_once:
                return

    def _next(self, tasks: ListingTasks) -> ManifestInfo | None:
        """A manifest of what is new, if something is."""
        left_s = self._due - time.monotonic()
        if left_s > 0:
            tasks.wait(min(left_s, LOOK_EVERY_S))
            return None
        info = list_members(self._run.store, self._archive, self._plan, each=tasks)
        self._due = time.monotonic() + self._every_s
        return info
