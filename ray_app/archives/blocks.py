"""How a list of members is cut into blocks and slots. Arithmetic only: the same list and plan give the same cuts for ever."""

from collections.abc import Iterator

from pydantic import Field

from ray_app.config import Frozen

# The first blocks are small, so that results come early and a small archive still divides among many workers.
_FIRST_BLOCK_MEMBERS = 16


class BlockPlan(Frozen):
    """What decides the cuts: slots in one batch, the most members (and bytes, where they are bounded) in one block, and how slowly
    blocks grow up to that.

    The more workers, the slower: the last blocks of a list, some worked on and some finished, should be a small part of it.
    """

    batch_slots: int = Field(default=32, ge=1)
    max_block_members: int = Field(default=1024, ge=1)
    blocks_per_doubling: int = Field(default=32, ge=1)
    max_block_bytes: int | None = Field(default=None, ge=1)

    @property
    def largest_block(self) -> int:
        """The size that blocks grow up to: whole batches, at least one."""
        return max(self.batch_slots, self.max_block_members // self.batch_slots * self.batch_slots)


def block_sizes(plan: BlockPlan) -> Iterator[int]:
    """Sizes of block 0, 1, …: about 16 members, doubled after every `blocks_per_doubling` up to the plan's limit, all whole batches.

    The last block of a list ends where the list does. A limit below one batch means one batch.
    """
    slots, limit = plan.batch_slots, plan.largest_block
    size = min(limit, max(1, round(_FIRST_BLOCK_MEMBERS / slots)) * slots)
    while size < limit:
        for _ in range(plan.blocks_per_doubling):
            yield size
        size = min(limit, 2 * size)
    while True:
        yield limit
