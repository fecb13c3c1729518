"""The manifests a session works on: an unfinished run goes on from what it has; a finished one lists its source anew."""

import sys
import time
from dataclasses import dataclass, replace
from itertools import islice

from ray_app.archives import BlockPlan, BlockRef, build_manifest, iter_blocks, list_changes, manifests, open_source
from ray_app.runs import RunDirectory
from ray_app.scoring.config import ScoreConfig

TELL_EVERY_S = 10.0


@dataclass(frozen=True)
class Listing:
    """Blocks of every manifest, and those among them that have no rows yet."""

    manifests: list[int]
    blocks: list[BlockRef]
    pending: list[BlockRef]
    listing_s: float

    @property
    def members(self) -> int:
        """How many members all manifests have together."""
        return sum(ref.members for ref in self.blocks)


def bring_up_to_date(run: RunDirectory, config: ScoreConfig, plan: BlockPlan) -> Listing:
    """List the source if no listing is under work, and say what is to be done. Raises ConfigError for an empty source."""
    start = time.monotonic()
    work = _work(run)
    if not work.pending:
        listed = islice(open_source(config.source, config.include, config.exclude, skip=[run.store.url]), config.limit)
        step = list_changes if work.manifests else build_manifest
        step(run.store, listed, plan, progress=_Telling())
        work = _work(run)
    return replace(work, listing_s=time.monotonic() - start)


def _work(run: RunDirectory) -> Listing:
    numbers = manifests(run.store)
    blocks, pending = [], []
    for number in numbers:
        done = run.done_blocks(number)
        refs = list(iter_blocks(run.store, number))
        blocks += refs
        pending += [ref for ref in refs if ref.block not in done]
    return Listing(numbers, blocks, pending, 0.0)


class _Telling:
    """Says now and then how far a long listing is."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, count: int) -> None:
        if time.monotonic() - self._said > TELL_EVERY_S:
            self._said = time.monotonic()
            print(f"listing: {count:,} members so far", file=sys.stderr, flush=True)
