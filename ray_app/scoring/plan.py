"""Which processes to run where, from the cores and GPUs that are there or may come. Pure arithmetic, tested without a cluster.

Every request is a stated fraction and the sum stays under what a node has: on a small machine a stage that asks for
a whole core waits forever behind the others, without a word (specs/ray.md §F2).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from ray_app.archives import BlockPlan
from ray_app.errors import ClusterError

WORKER_CPUS = 0.8  # a decoding or scoring process fills a core; the rest is left for GPU feeders and commits
GPU_SCORER_CPUS = 0.1
COMMIT_CPUS = 0.05
BLOCKS_PER_DOUBLING = 4  # per worker; a block costs Ray about 20 ms, which 16 images of a fast detector do not outweigh
HAND_OVER_BYTES = 96 * 2**20  # prepared tensors of one block; several blocks are under way per GPU
BLOCK_S = 60.0  # a block of slow detectors is to take no longer, since it is what a kill loses
GMAC_PER_S = {"cpu": 100.0, "gpu": 30_000.0}  # multiply-adds per second in bf16: a core does 60 to 130, a data-centre GPU more than this

SLACK = 4.0  # a shared core may be that much slower


@dataclass(frozen=True)
class Layout:
    """`fused`: each core fetches, decodes, scores and commits whole blocks; nothing large crosses a process.
    `split`: cores fetch and decode for scorers, one pool of them after another; prepared uint8 tensors cross the object store.

    `scorers` is the number of processes in each pool, `scorer_cpus` and `scorer_gpus` what one of them asks for.
    """

    kind: Literal["fused", "split"]
    scorers: int
    decoders: int
    block_members: int
    pools: int = 1
    worker_cpus: float = WORKER_CPUS
    scorer_cpus: float = WORKER_CPUS
    scorer_gpus: float = 0.0
    short_of_memory: bool = False

    def limited_to(self, blocks: int) -> "Layout":
        """The same with no more workers per stage than blocks."""
        return replace(self, scorers=min(self.scorers, blocks), decoders=min(self.decoders, blocks))

    def block_plan(self, slots: int) -> BlockPlan:
        """How the manifest is cut for this many workers."""
        return BlockPlan(batch_slots=slots, max_block_members=self.block_members, blocks_per_doubling=BLOCKS_PER_DOUBLING * self.workers)

    @property
    def workers(self) -> int:
        """Processes that fetch, decode or score."""
        return self.scorers * self.pools + self.decoders

    def slowest_block_s(self, worst_gmac: float) -> float:
        """Seconds that no block takes longer than, if every image in it is as large as the detectors allow."""
        return self.block_members * worst_gmac / GMAC_PER_S["gpu" if self.scorer_gpus else "cpu"] * SLACK

    @property
    def described(self) -> str:
        """The layout in words."""
        if self.kind == "fused":
            why = ", no more for want of memory" * self.short_of_memory
            return f"{self.scorers} worker{'s' * (self.scorers > 1)}, each decodes and scores{why}"
        scorers = self.scorers * self.pools
        kind = "GPU scorer" if self.scorer_gpus else "scorer"
        pools = f" in {self.pools} pools" * (self.pools > 1)
        return f"{self.decoders} decoder{'s' * (self.decoders > 1)} feed {scorers} {kind}{'s' * (scorers > 1)}{pools}"


def plan_layout(
    *,
    cpus: float,
    gpus: float,
    workers: int | None,
    block_members: int,
    slots: int,
    tensor_bytes: int,
    pools: int = 1,
    gmac: float = 0.0,
    memory_bytes: float = math.inf,
    process_bytes: int = 0,
) -> Layout:
    """Fit the stages to `cpus` cores, `gpus` GPUs and, where every core would hold all detectors, to `memory_bytes`.

    `tensor_bytes` and `gmac` are what one member's prepared tensors take and what its scoring costs, `pools` how many groups of
    detectors need processes of their own, `process_bytes` what a process with all of them takes. Raises ClusterError when nothing fits.
    """
    if cpus < 1:
        raise ClusterError(
            f"the cluster has {cpus:g} CPUs to schedule on; at least 1 is needed",
            hint="start workers, or state what an autoscaler may add: --set cluster.cpus=8 --set cluster.gpus=1",
        )
    has_gpus = gpus >= 1
    if gmac:
        block_members = min(block_members, int(BLOCK_S * GMAC_PER_S["gpu" if has_gpus else "cpu"] / gmac))
    if not has_gpus and pools == 1:
        fitting = max(1, int(min(cpus, memory_bytes // max(process_bytes, 1))))
        return Layout("fused", workers or fitting, 0, _whole_batches(block_members, slots), short_of_memory=fitting < int(cpus))
    block_members = _whole_batches(min(block_members, HAND_OVER_BYTES // max(tensor_bytes, 1)), slots)
    return (_with_gpus if has_gpus else _on_cores)(int(cpus), int(gpus), workers, block_members, pools)


def _with_gpus(cpus: int, gpus: int, workers: int | None, block_members: int, pools: int) -> Layout:
    scorers = max(min(workers or gpus, gpus) // pools, 1)
    decoders = max(1, cpus - scorers * pools)
    needed = decoders * WORKER_CPUS + scorers * pools * GPU_SCORER_CPUS + COMMIT_CPUS
    if needed > cpus:
        raise ClusterError(
            f"{scorers * pools} GPU scorers and a decoder need {needed:.2f} CPUs, the cluster has {cpus:g}",
            hint="plan fewer GPUs: --set cluster.workers=1",
        )
    share = 1.0 if gpus >= pools else 1.0 / math.ceil(pools / gpus)
    return Layout("split", scorers, decoders, block_members, pools, scorer_cpus=GPU_SCORER_CPUS, scorer_gpus=share)


def _on_cores(cpus: int, gpus: int, workers: int | None, block_members: int, pools: int) -> Layout:
    """Detectors that cannot share a process, without a GPU: every pool one process, the rest decodes."""
    decoders = max(1, min(workers or cpus, cpus) - pools)
    share = math.floor(100 * (cpus - COMMIT_CPUS) / (decoders + pools)) / 100
    each = min(WORKER_CPUS, share)
    return Layout("split", 1, decoders, block_members, pools, worker_cpus=each, scorer_cpus=each)


def _whole_batches(members: int, slots: int) -> int:
    return max(members // slots, 1) * slots
