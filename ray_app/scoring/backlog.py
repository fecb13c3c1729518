"""What a run has yet to score: the blocks of its manifests (`work_of`), and those that its source
has besides, which are scored while the listing goes on (`arriving_blocks`).
"""

import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ray_app import archives
from ray_app.cluster.progress import Progress
from ray_app.cluster.ray_cluster import beside_others, on_ray
from ray_app.errors import TouchstoneError
from ray_app.reports.folders import describe_closed_folders
from ray_app.reports.format import linked_folders_in_words
from ray_app.runs import RunDirectory, fingerprint
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.report import closed_folders, linked_folders
from ray_app.scoring.run_metrics import RunMeter
from ray_app.storage import Fetcher, Store

T = TypeVar("T")
R = TypeVar("R")


class StoppedError(Exception):
    """The rest of the listing is not wanted."""


class ListingTasks:
    """The tasks of a listing: on the whole cluster as long as nothing else is done there, then
    beside what is (`aside`).

    `stopped`: the rest of it is not wanted; `halted`: why the command is to stop, if it is.
    """

    def __init__(self) -> None:
        self._each: archives.Each = on_ray
        self.stopped = threading.Event()
        self.halted: Callable[[], str | None] = lambda: None

    def wait(self, seconds: float) -> None:
        """Nothing for so long. Raises StoppedError, and KeyboardInterrupt where the command is to
        stop.
        """
        if self.stopped.wait(seconds):
            raise StoppedError
        if (reason := self.halted()) is not None:
            raise KeyboardInterrupt(reason)

    def aside(self) -> None:
        """From now on beside other work."""
        self._each = beside_others

    def __call__(
        self, function: Callable[[T], R], items: Iterable[T], /
    ) -> Generator[R, None, None]:
        """The results in order, as long as they are wanted."""
        for result in self._each(function, items):
            if self.stopped.is_set():
                raise StoppedError
            yield result


@dataclass(frozen=True)
class Listing:
    """The work of a run: the blocks of its unfinished manifests, and those without rows.

    Attributes:
        manifests: The numbers of the manifests.
        blocks: Their blocks.
        pending: The blocks that have no rows yet.
        is_new: Whether the last manifest was written by this command.
        portions: Further manifests of a listing that goes on; None if there is none.
        tasks: What runs the listing.
    """

    manifests: list[int]
    blocks: archives.BlockList
    pending: archives.BlockList
    is_new: bool = False
    portions: Iterator[archives.ManifestInfo | None] | None = None
    tasks: ListingTasks = field(default_factory=ListingTasks)

    @property
    def state(self) -> str:
        """`begun`: nothing is listed yet; `unfinished`: blocks are pending; `finished`."""
        return "unfinished" if len(self.pending) else "finished" if len(self.blocks) else "begun"

    @property
    def members(self) -> int:
        """How many members these manifests list."""
        return self.blocks.members


def archive_of(config: ScoreConfig, fetcher: Fetcher | None = None) -> archives.Archive:
    """The archive that a config names, without its own run directory; touches nothing yet. Raises
    ConfigError.
    """
    skip = [RunDirectory.open(config.out).store.url] if config.out else []
    columns, limits, private = config.columns, config.container_limits, config.allow_private
    return archives.open_source(
        config.source,
        config.include,
        config.exclude,
        skip=skip,
        columns=columns,
        limits=limits,
        allow_private=private,
        fetcher=fetcher,
    )


def arriving_blocks(
    store: Store, work: Listing, progress: Progress, meter: RunMeter
) -> Iterator[archives.BlockRef | None]:
    """The pending blocks of `work`, and then those of each further manifest once it counts; None
    where there is none yet.

    An error that ends the listing early is shown at once and raised at the end, unless the rest is
    not wanted (`ListingTasks.stopped`).
    """
    if work.portions is not None:
        work.tasks.aside()
        progress.grow(0, goes_on=True)
        meter.grow(0, goes_on=True)
    yield from work.pending
    try:
        for info in work.portions or ():
            if info is None:
                yield None
                continue
            blocks = archives.read_blocks(store, info.manifest)
            progress.grow(blocks.members, goes_on=info.goes_on)
            meter.grow(len(blocks), goes_on=info.goes_on)
            yield from blocks
    except StoppedError:
        return
    except TouchstoneError as error:
        progress.say(f"the listing ended early; the files listed so far are scored first: {error}")
        raise
    finally:
        if work.portions is not None:
            work.portions.close()  # type: ignore[attr-defined]  # a generator
        progress.grow(0, goes_on=False)
        meter.grow(0, goes_on=False)


def report_folders(run: RunDirectory) -> None:
    """Report folders that the listing did not follow or could not list, on stderr."""
    linked, closed = linked_folders(run), closed_folders(run)
    if linked.count:
        print(
            f"listing: {linked_folders_in_words(linked.count, linked.example)}",
            file=sys.stderr,
            flush=True,
        )
    if closed.count:
        print(
            f"listing: {describe_closed_folders(closed.count, closed.example)}",
            file=sys.stderr,
            flush=True,
        )


def is_complete(run: RunDirectory) -> bool:
    """Return whether the last command finished the run, and nothing was listed since."""
    sessions = run.store.names("sessions")
    if not sessions or run.read_json(f"sessions/{sessions[-1]}")["state"] != "finished":
        return False
    if not run.store.exists("summary.json"):
        return False
    summary, numbers = run.read_json("summary.json"), archives.manifests(run.store)
    facts = (numbers[-1], numbers[-1], fingerprint(run.describe()["identity"]))
    is_same = (run.last_finished(), summary["listing"], summary["fingerprint"]) == facts
    return is_same and not any(run.parts(number) for number in run.part_folders())


def work_of(run: RunDirectory, *, whole: bool = False) -> Listing:
    """Return the work that the files of a run show.

    Args:
        run: The run directory.
        whole: Include finished manifests.
    """
    finished = -1 if whole else run.last_finished()
    numbers = [number for number in archives.manifests(run.store) if number > finished]
    lists = {number: archives.read_blocks(run.store, number) for number in numbers}
    pending = run.without_rows(lists) if lists else []
    return Listing(
        numbers, archives.BlockList.joined(list(lists.values())), archives.BlockList.joined(pending)
    )
