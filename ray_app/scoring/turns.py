"""A turn: blocks that one pipeline scores, in a fixed order (`Turn`)."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from ray_app.archives import BlockList, BlockRef, ManifestInfo, read_blocks, read_complete
from ray_app.runs import RunDirectory
from ray_app.scoring.orders import read_orders

_RELEASE_POLL_S = 0.25
_MANIFEST_POLL_S = 1.0


@dataclass(frozen=True)
class Turn:
    """The blocks of a turn. Ray Data's read task iterates over them.

    A read task that Ray repeats gives the same blocks in the same order: they are either known when
    the turn begins, or in manifests that are written meanwhile and never change.

    Attributes:
        run: The run directory.
        lease: The number of the command's lease.
        number: The number of the turn.
        blocks: The blocks that are known when the turn begins.
        following: The manifest that the listing writes next; None if nothing is listed meanwhile.
    """

    run: RunDirectory
    lease: int
    number: int
    blocks: BlockList
    following: int | None = None

    def __call__(self) -> Iterator[BlockRef]:
        """Yield each block once the command releases it, until the turn ends or is stopped."""
        released = 0
        for position, ref in enumerate(self._blocks()):
            while released <= position:
                orders = read_orders(self.run.store, self.lease)
                if orders is None or orders.turn != self.number or orders.is_stopped:
                    return
                released = orders.released
                if released <= position:
                    time.sleep(_RELEASE_POLL_S)
            yield ref

    def _blocks(self) -> Iterator[BlockRef]:
        yield from self.blocks
        number = self.following
        while number is not None and (info := self._await_manifest(number)) is not None:
            if info.blocks:
                yield from read_blocks(self.run.store, number)
            number += 1

    def _await_manifest(self, number: int) -> ManifestInfo | None:
        """Return a manifest once it is complete; None if the turn ends first."""
        while True:
            orders = read_orders(self.run.store, self.lease)
            is_over = orders is None or orders.turn != self.number
            if is_over or (orders is not None and orders.is_stopped):
                return None
            # Read after the orders: what was listed before the turn ended belongs to it.
            info = read_complete(self.run.store, number)
            if info is not None or (orders is not None and orders.is_ended):
                return info
            time.sleep(_MANIFEST_POLL_S)
