"""Which processes to run where, from the cores and GPUs that are there or may come. Pure arithmetic, tested without a cluster.

Every request is a stated fraction and the sum stays under what a node has: on a small machine a stage that asks for
a whole core waits forever behind the others, without a word (specs/ray.md §F2).
"""

from dataclasses import dataclass, replace
from typing import Literal

from ray_app.archives import BlockPlan
from ray_app.errors import ClusterError

WORKER_CPUS = 0.8  # a decoding or scoring process fills a core; the rest is left for GPU feeders and commits
GPU_SCORER_CPUS = 0.1
COMMIT_CPUS = 0.05
BLOCKS_PER_DOUBLING = 4  # per worker; a block costs Ray about 20 ms, which 16 images of a fast detector do not outweigh
HAND_OVER_BYTES = 96 * 2**20  # prepared tensors of one block; several blocks are under way per GPU


@dataclass(frozen=True)
class Layout:
    """`fused`: each core fetches, decodes, scores and commits whole blocks; nothing large crosses a process.
    `split`: cores fetch and decode for GPUs that score; prepared uint8 tensors cross the object store.
    """

    kind: Literal["fused", "split"]
    scorers: int
    decoders: int
    block_members: int

    def limited_to(self, blocks: int) -> "Layout":
        """The same with no more workers per stage than blocks."""
        return replace(self, scorers=min(self.scorers, blocks), decoders=min(self.decoders, blocks))

    def block_plan(self, slots: int) -> BlockPlan:
        """How the manifest is cut for this many workers."""
        return BlockPlan(batch_slots=slots, max_block_members=self.block_members, blocks_per_doubling=BLOCKS_PER_DOUBLING * self.workers)

    @property
    def workers(self) -> int:
        """Processes that fetch, decode or score."""
        return self.scorers + self.decoders


def plan_layout(*, cpus: float, gpus: float, workers: int | None, block_members: int, slots: int, tensor_bytes: int) -> Layout:
    """Fit the stages to `cpus` cores and `gpus` GPUs; `tensor_bytes` is what one member's prepared tensors take.

    Raises ClusterError when nothing fits.
    """
    if cpus < 1:
        raise ClusterError(
            f"the cluster has {cpus:g} CPUs to schedule on; at least 1 is needed",
            hint="start workers, or state what an autoscaler may add: --set cluster.cpus=8 --set cluster.gpus=1",
        )
    if gpus < 1:
        return Layout("fused", workers or int(cpus), 0, _whole_batches(block_members, slots))
    scorers = min(workers or int(gpus), int(gpus))
    decoders = max(1, int(cpus) - scorers)
    needed = decoders * WORKER_CPUS + scorers * GPU_SCORER_CPUS + COMMIT_CPUS
    if needed > cpus:
        raise ClusterError(
            f"{scorers} GPU scorers and a decoder need {needed:.2f} CPUs, the cluster has {cpus:g}",
            hint="plan fewer GPUs: --set cluster.workers=1",
        )
    return Layout("split", scorers, decoders, _whole_batches(min(block_members, HAND_OVER_BYTES // max(tensor_bytes, 1)), slots))


def _whole_batches(members: int, slots: int) -> int:
    return max(members // slots, 1) * slots
