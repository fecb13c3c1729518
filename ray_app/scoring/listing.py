"""The manifests a session works on: `bring_up_to_date` lists an unfinished run's blocks, or a finished run's source anew."""

import sys
import time
from dataclasses import dataclass, replace

from ray_app import __version__
from ray_app.archives import (
    Archive,
    BlockList,
    BlockPlan,
    Each,
    in_turn,
    is_as_listed,
    list_members,
    manifests,
    open_source,
    read_blocks,
    read_complete,
)
from ray_app.datasets.labelling import ProgressLog
from ray_app.reports.format import linked_words
from ray_app.runs import RunDirectory, begun_retry, fingerprint
from ray_app.runs.reader import publish_vanished
from ray_app.scoring.config import ScoreConfig
from ray_app.storage import Fetcher, LinkedFolders


@dataclass(frozen=True)
class Listing:
    """Blocks of every manifest, and those among them that have no rows yet; `is_new`: the last manifest was written just now."""

    manifests: list[int]
    blocks: BlockList
    pending: BlockList
    listing_s: float
    is_new: bool = False

    @property
    def members(self) -> int:
        """How many members all manifests have together."""
        return self.blocks.members


def archive_of(config: ScoreConfig, fetcher: Fetcher | None = None) -> Archive:
    """The archive that a config names, without its own run directory; touches nothing yet. Raises ConfigError."""
    return open_source(
        config.source,
        config.include,
        config.exclude,
        skip=[RunDirectory.open(config.out).store.url] if config.out else [],
        columns=config.columns,
        limits=config.container_limits,
        allow_private=config.allow_private,
        fetcher=fetcher,
    )


def bring_up_to_date(run: RunDirectory, config: ScoreConfig, plan: BlockPlan, *, each: Each = in_turn) -> Listing:
    """List the source if no listing is under work, and say what is to be done. Raises ConfigError for an empty source."""
    start = time.monotonic()
    work = _work(run)
    if not work.pending:
        archive = archive_of(config)
        if list_members(run.store, archive, plan, each=each, progress=ProgressLog("listing").count, limit=config.limit) is not None:
            work = replace(_work(run), is_new=True)
        tell_linked(run)
    publish_vanished(run)
    return replace(work, listing_s=time.monotonic() - start)


def linked_folders(run: RunDirectory) -> LinkedFolders:
    """Links to folders that the last listing did not follow."""
    info = read_complete(run.store, manifests(run.store)[-1])
    return LinkedFolders() if info is None else LinkedFolders(info.linked_folders, info.linked_example)


def tell_linked(run: RunDirectory) -> None:
    """Say on stderr what the last listing passed by."""
    linked = linked_folders(run)
    if linked.count:
        print(f"listing: {linked_words(linked.count, linked.example)}", file=sys.stderr, flush=True)


def is_complete(run: RunDirectory) -> bool:
    """Whether the last session finished the run, and nothing was done to it since: rows, files and summary are as they should be."""
    sessions = run.store.names("sessions")
    if not sessions or run.read_json(f"sessions/{sessions[-1]}")["state"] != "finished" or not run.store.exists("summary.json"):
        return False
    summary, described, numbers = run.read_json("summary.json"), run.describe(), manifests(run.store)
    told = (summary.get("version"), summary["listing"], summary["fingerprint"], described.get("deciding"))
    if told != (__version__, numbers[-1], fingerprint(described["identity"]), None) or begun_retry(run) is not None:
        return False
    return not _work(run).pending and not any(run.parts(number) for number in numbers)


def has_nothing_new(config: ScoreConfig, run: RunDirectory) -> bool:
    """Whether so short a look at the source that it needs no cluster shows that nothing was added, changed or removed."""
    return is_as_listed(run.store, archive_of(config), config.limit)


def _work(run: RunDirectory) -> Listing:
    numbers = manifests(run.store)
    blocks = [read_blocks(run.store, number) for number in numbers]
    pending = [of_one.without(run.done_blocks(number)) for number, of_one in zip(numbers, blocks, strict=True)]
    return Listing(numbers, BlockList.joined(blocks), BlockList.joined(pending), 0.0)
