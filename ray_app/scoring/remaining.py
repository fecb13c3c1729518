"""What a run directory leaves to be done, before anything is begun: reads its facts, writes nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from ray_app.archives import BlockList, Listed, Member, image_id, manifests, member_rows, read_block, read_blocks, read_ids
from ray_app.archives.members import Ids
from ray_app.inference import ScoringSpec
from ray_app.runs import RunDirectory
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.listing import archive_of
from ray_app.scoring.resolution import Resolved
from ray_app.storage import Fetcher

_BATCH = 8192


@dataclass(frozen=True)
class Standing:
    """A run that was begun before: the blocks that have rows, and those that have none.

    A run with pending blocks goes on from its manifest; a finished one, or one whose first listing never ended, lists its source.
    """

    run: RunDirectory
    blocks: BlockList
    pending: BlockList

    @property
    def is_finished(self) -> bool:
        """Whether every block of every listing has its rows."""
        return self.state == "finished"

    @property
    def state(self) -> str:
        """`begun`: nothing is listed yet; `unfinished`: blocks are pending; `finished`."""
        return "unfinished" if len(self.pending) else "finished" if len(self.blocks) else "begun"


def standing(resolved: Resolved, spec: ScoringSpec) -> Standing | None:
    """How far the run is that a command goes on with; None where none was begun. Raises IdentityError when another command made it."""
    if resolved.begun is None:
        return None
    run = resolved.begun.run
    run.claim(resolved.identity(spec), list(spec.cards), spec.ensemble.model_dump(mode="json"))
    blocks = [read_blocks(run.store, number) for number in manifests(run.store)]
    pending = [one.without(run.done_blocks(number)) for number, one in zip(manifests(run.store), blocks, strict=True)]
    return Standing(run, BlockList.joined(blocks), BlockList.joined(pending))


def members_to_score(config: ScoreConfig, before: Standing | None, fetcher: Fetcher) -> Iterable[Listed | Member]:
    """The members that the same command would score: all, those of pending blocks, or what is new or changed since the run ended.

    Iterating raises ConfigError for an empty source, StorageError when it is out of reach.
    """
    if before is not None and len(before.pending):
        return chain.from_iterable(member_rows(read_block(before.run.store, ref)) for ref in before.pending)
    listed = islice(archive_of(config, fetcher), config.limit)
    return _unknown(listed, _ids(before)) if before is not None and before.is_finished else listed


def _ids(before: Standing) -> Ids:
    return np.sort(np.concatenate(list(read_ids(before.run.store, before.blocks))))


def _unknown(listed: Iterator[Listed], known: Ids) -> Iterator[Listed]:
    while batch := list(islice(listed, _BATCH)):
        ids = np.fromiter(map(image_id, batch), np.int64, len(batch))
        is_known = known[np.minimum(np.searchsorted(known, ids), len(known) - 1)] == ids
        yield from (item for item, old in zip(batch, is_known, strict=True) if not old)
