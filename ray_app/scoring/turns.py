"""Define a turn: the blocks that one Ray Data pipeline scores, in a fixed order (`Turn`).

A block is a group of files that is scored as a unit. A run needs more than one turn if files are
listed later, or if blocks were not started because a node was taken away.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from ray_app.archives import BlockList, BlockRef, read_blocks, read_complete
from ray_app.runs import RunDirectory
from ray_app.scoring.control import Control

_PORTION_POLL_S = 1.0


@dataclass(frozen=True)
class Turn:
    """The blocks that one Ray Data pipeline scores, over which its read task iterates.

    If Ray repeats the read task, it yields the same blocks in the same order. Some blocks are known
    when the turn starts. Others are in portions, parts of a manifest that a listing writes during
    the turn. A portion never changes.

    Attributes:
        run: The run directory.
        control: The state of the command, which releases blocks.
        number: The number of the turn, which `Control.begin_turn` returned.
        blocks: The blocks that are known when the turn starts.
        following: The first portion that the listing writes after `blocks`: the number of its
            manifest, and its own number. None if no listing is in progress.
    """

    run: RunDirectory
    control: Control
    number: int
    blocks: BlockList
    following: tuple[int, int] | None = None

    def __call__(self) -> Iterator[BlockRef]:
        """Yield each block when the driver has released it, until the turn ends or is stopped."""
        released = 0
        for position, ref in enumerate(self._blocks()):
            if position >= released:
                answer = self.control.await_release(self.number, position)
                if answer is None:
                    return
                released = answer
            yield ref

    def _blocks(self) -> Iterator[BlockRef]:
        yield from self.blocks
        if self.following is None:
            return
        number, portion = self.following
        while self._await_portion(number, portion):
            yield from read_blocks(self.run.store, number, portion)
            portion += 1

    def _await_portion(self, number: int, portion: int) -> bool:
        """Wait until a portion is complete; return False if the turn ends first."""
        while True:
            is_listing = self.control.is_listing(self.number)
            # Read afterwards: what was listed before the turn ended belongs to it.
            if read_complete(self.run.store, number, portion) is not None:
                return True
            if not is_listing:
                return False
            time.sleep(_PORTION_POLL_S)
