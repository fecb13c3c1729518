"""Find the work that is left in a run: the blocks that have no rows yet (`find_work`)."""

import sys
from dataclasses import dataclass

from ray_app import archives
from ray_app.archives.listing import ListingRequest
from ray_app.reports.folders import describe_closed_folders
from ray_app.reports.format import describe_linked_folders
from ray_app.runs import RunDirectory, fingerprint
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.report import closed_folders, linked_folders
from ray_app.storage import Fetcher


@dataclass(frozen=True)
class Listing:
    """The unfinished manifests (lists of files) of a run, and their blocks, scored or pending.

    `find_work` can also include finished manifests. A block is a group of files that is scored as a
    unit. A listing in progress writes one open manifest in parts, called portions.

    Attributes:
        manifests: The numbers of the manifests. If a manifest is open, it is the last.
        blocks: The blocks of these manifests that are listed so far.
        pending: Those of `blocks` that have no result rows yet.
        following: The portion after `blocks`, which a listing writes next: the number of its
            manifest, and its own number.
        listed: The counts of the open manifest so far; None if no manifest is open.
    """

    manifests: list[int]
    blocks: archives.BlockList
    pending: archives.BlockList
    following: tuple[int, int]
    listed: archives.ManifestInfo | None = None

    @property
    def state(self) -> str:
        """The state of the run: `begun` if nothing is listed yet, `unfinished`, or `finished`.

        An unfinished run has blocks without rows.
        """
        return "unfinished" if len(self.pending) else "finished" if len(self.blocks) else "begun"

    @property
    def members(self) -> int:
        """The number of files in `blocks`, scored or pending."""
        return self.blocks.members


def open_archive(config: ScoreConfig, fetcher: Fetcher | None = None) -> archives.Archive:
    """Return the archive of a config's source, from which the run directory is left out.

    The source is not accessed yet. Raises ConfigError if a source or a filter is invalid.
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


def listing_request(config: ScoreConfig, lease: int, plan: archives.BlockPlan) -> ListingRequest:
    """Create the request to a process that lists the config's source into the run directory.

    Args:
        config: The config, which has a run directory.
        lease: The number of the command's lease, its claim on the run directory.
        plan: How to cut the listed files into blocks.

    Returns:
        The request.
    """
    url = RunDirectory.open(config.out or "").store.url
    return ListingRequest(
        run=config.out or "",
        lease=lease,
        sources=config.source,
        include=config.include,
        exclude=config.exclude,
        skip=(url,),
        columns=config.columns,
        limits=config.container_limits,
        allow_private=config.allow_private,
        limit=config.limit,
        plan=plan,
        every_s=config.follow,
    )


def report_folders(run: RunDirectory) -> None:
    """Print to stderr how many folders the last listing of a run skipped, with an example.

    These are symbolic links to folders, which are not followed, and folders that could not be
    listed.
    """
    linked, closed = linked_folders(run), closed_folders(run)
    if linked.count:
        print(
            f"listing: {describe_linked_folders(linked.count, linked.example)}",
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
    """Return whether all files that a run has listed so far are scored, and its summary is written.

    The result is False if the last command was interrupted, even if all files were already scored.
    """
    try:
        summary = run.read_json("summary.json")
    except FileNotFoundError:
        return False
    if run.read_json(f"sessions/{run.last_session(summary):05d}.json")["state"] != "finished":
        return False
    numbers, open_manifest = archives.list_manifests(run.store)
    facts = (numbers[-1], numbers[-1], fingerprint(run.describe()["identity"]))
    is_same = (run.last_finished(summary), summary["listing"], summary["fingerprint"]) == facts
    if not is_same or open_manifest is not None:
        return False
    return not any(run.parts(number) for number in run.part_folders())


def find_work(run: RunDirectory, *, include_finished: bool = False) -> Listing:
    """Find the blocks of a run that have no result rows yet, from the files of its directory.

    A block is a group of files that is scored as a unit.

    Args:
        run: The run directory.
        include_finished: Whether the result also has the manifests (lists of files) that are
            finished.

    Returns:
        The manifests, their blocks, and the pending blocks.
    """
    finished = -1 if include_finished else run.last_finished()
    numbers, listed = archives.list_manifests(run.store)
    following = (max(numbers, default=-1) + 1, 0)
    lists = {n: archives.read_blocks(run.store, n) for n in numbers if n > finished}
    if listed is not None:
        following = (listed.manifest, listed.portions)
        lists[listed.manifest] = archives.read_blocks_so_far(run.store, listed)
    pending = run.find_pending(lists) if lists else []
    return Listing(
        list(lists),
        archives.BlockList.concat(list(lists.values())),
        archives.BlockList.concat(pending),
        following,
        listed,
    )
