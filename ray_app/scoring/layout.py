"""Which processes to run where, from the cores and GPUs of a cluster: `plan_layout` gives a
`ScoringLayout`.

Every request is a stated fraction and the sum stays below what a node has: on a small machine a
stage that requests a whole core waits forever behind the others, without a message (specs/ray.md
§F2).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ray_app.archives import BlockPlan
from ray_app.cluster.config import RAY_SHARE
from ray_app.errors import ClusterError, ConfigError
from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.inference.groups import (
    KEPT_BYTES,
    DetectorGroups,
    group_bytes,
    group_detectors,
    largest_unit,
    whole_bytes,
)
from ray_app.reports.format import size
from ray_app.streams.stage import IN_FLIGHT

# A decoding or scoring process fills a core. As many of them as a node has cores leave 3 % of each,
# for GPU scorers and committers.
WORKER_CPUS = 0.97
GPU_SCORER_CPUS = 0.005
COMMIT_CPUS = 0.001
REFERENCES = 8  # to blocks, per process
# per worker; a block costs Ray about 20 ms, which 16 images of a fast detector do not outweigh
BLOCKS_PER_DOUBLING = 4
TENSOR_BYTES = 2**29  # prepared tensors of one block
# of the object stores, for what is under way: well below the 80 % at which Ray spills
HAND_OVER_SHARE = 0.4
# of encoded files in one block: large ones take seconds each, and a kill loses the whole block
BLOCK_BYTES = 2**30
BLOCK_S = 60.0  # a block of slow detectors is to take no longer, since it is what a kill loses
# multiply-adds per second in bf16: a core does 60 to 130, a data-centre GPU more than this
GMAC_PER_S = {"cpu": 100.0, "gpu": 30_000.0}
DECODE_GMAC = 2.0  # decoding a photograph takes a core as long as this many multiply-adds
SLACK = 4.0  # a shared core may be that much slower
# Of fp32 weights, from the page cache, on one core: networks are built before their weights are
# read. Measured for the mix of `benchmarks.turns` on a busy machine; 0.4 GB/s on a quiet one.
LOAD_BYTES_PER_S = 2e8
# Of a worker's time that groups of detectors may load in each block.
LOAD_SHARE = 0.05


@dataclass(frozen=True)
class ScoringLayout:
    """`fused`: each core fetches, decodes, scores and commits whole blocks; nothing large crosses a
    process. `split`: cores fetch and decode for scorers, one pool of them after another; prepared
    uint8 tensors cross the object store.

    `scorers` has the number of processes in each pool; `scorer_cpus` and `scorer_gpus` are what one
    of them requests. `grows`: whether pools take what room nodes have that come late. `labels`: of
    the nodes that any process may stand on. `reads_embeddings`: no image is decoded.
    """

    kind: Literal["fused", "split"]
    scorers: tuple[int, ...]
    decoders: int
    block_members: int
    worker_cpus: float = WORKER_CPUS
    scorer_cpus: float = WORKER_CPUS
    scorer_gpus: float = 0.0
    grows: bool = True
    short_of_memory: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    groups: int = 1
    reads_embeddings: bool = False

    def limited_to(self, blocks: int) -> "ScoringLayout":
        """The same with no more workers per stage than blocks."""
        scorers = tuple(min(count, blocks) for count in self.scorers)
        return replace(self, scorers=scorers, decoders=min(self.decoders, blocks))

    @property
    def committers(self) -> int:
        """Blocks that are being written at most."""
        return self.scorers[-1]

    @property
    def most_open(self) -> int:
        """Blocks that are under way at most: what each process works on, and what travels to it
        meanwhile. Where no tensors travel, more of them wait, each for 100 bytes: small ones take
        less time than the driver needs to give further ones.
        """
        return 1 + (IN_FLIGHT if self.kind == "split" else REFERENCES) * self.workers

    def block_plan(self, slots: int) -> BlockPlan:
        """How the manifest is cut for this many workers."""
        # Groups that take turns load as often for a small block as for a large one.
        doubling = BLOCKS_PER_DOUBLING * self.workers if self.groups == 1 else 1
        return BlockPlan(
            batch_slots=slots,
            max_block_members=self.block_members,
            blocks_per_doubling=doubling,
            max_block_bytes=BLOCK_BYTES,
        )

    @property
    def workers(self) -> int:
        """Processes that fetch, decode or score."""
        return sum(self.scorers) + self.decoders

    def slowest_block_s(self, worst_gmac: float) -> float:
        """Seconds that no block takes longer than, if every image in it is as large as the
        detectors allow.
        """
        return (
            self.block_members
            * worst_gmac
            / GMAC_PER_S["gpu" if self.scorer_gpus else "cpu"]
            * SLACK
        )

    @property
    def described(self) -> str:
        """The layout in words."""
        scorers = sum(self.scorers)
        turns = f", {self.groups} groups of detectors take turns in each" * (self.groups > 1)
        if self.kind == "fused":
            why = " (there is no memory for more)" * self.short_of_memory
            work = "scores embeddings" if self.reads_embeddings else "decodes and scores"
            return f"{scorers} worker{'s' * (scorers > 1)}, each {work}{why}{turns}"
        kind = "GPU scorer" if self.scorer_gpus else "scorer"
        pools = f" in {len(self.scorers)} pools" * (len(self.scorers) > 1)
        return f"{self.decoders} decoder{'s' * (self.decoders > 1)} feed {scorers} {kind}{'s' * (scorers > 1)}{pools}{turns}"


def plan_layout(
    cost: ResourceEstimate,
    *,
    slots: int,
    passes: int = 1,
    cpus: float,
    gpus: float,
    workers: int | None,
    block_members: int,
    memory_bytes: float = math.inf,
    store_bytes: float = math.inf,
    groups: DetectorGroups | None = None,
) -> ScoringLayout:
    """Fit the stages to `cpus` cores, `gpus` GPUs, to `memory_bytes` where every core would hold
    all detectors, and blocks to batches of `slots` images and to the object stores, `store_bytes`
    together, where tensors pass through them. `passes`: how often detectors look at an image, clean
    and perturbed, of which `cost` has the sum. `groups`: of detectors that take turns in one pool of
    processes; blocks are then so large that loading takes no more than `LOAD_SHARE` of the time.

    Raises ClusterError when nothing fits.
    """
    block_s = BLOCK_S
    if groups is not None:
        cost = replace(
            cost, process_bytes=groups.process_bytes, pool_gmac=(math.fsum(cost.pool_gmac),)
        )
        block_s = max(BLOCK_S, groups.weights_bytes / LOAD_BYTES_PER_S / LOAD_SHARE)
    if cpus < 1:
        raise ClusterError(
            f"the cluster has {cpus:g} CPUs to schedule on; at least 1 is needed",
            hint="start workers, or state what an autoscaler may add: --set cluster.cpus=8 --set cluster.gpus=1",
        )
    on_core_s = (DECODE_GMAC + (sum(cost.pool_gmac) if gpus < 1 else 0.0)) / GMAC_PER_S["cpu"]
    image_s = max(
        on_core_s, passes * DECODE_GMAC / GMAC_PER_S["cpu"], sum(cost.pool_gmac) / GMAC_PER_S["gpu"]
    )
    block_members = int(min(block_members, block_s / image_s))
    if gpus < 1 and len(cost.pool_gmac) == 1:
        fitting = max(1, int(min(cpus, memory_bytes // max(cost.process_bytes, 1))))
        short = workers is None and fitting < int(cpus)
        if groups is not None:
            block_members = min(block_members, groups.kept_bytes // max(cost.tensor_bytes, 1))
        members = _whole_batches(block_members, slots)
        return ScoringLayout(
            "fused",
            (workers or fitting,),
            0,
            members,
            grows=workers is None and not short,
            short_of_memory=short,
            groups=len(groups.groups) if groups else 1,
        )
    # A perturbed image takes a core about as long as decoding it did, so that decoding's share of
    # the work stays what it was.
    once = tuple(gmac / passes for gmac in cost.pool_gmac)
    layout = (_with_gpus if gpus >= 1 else _on_cores)(int(cpus), int(gpus), workers, once)
    tensor_bytes = min(TENSOR_BYTES, HAND_OVER_SHARE * store_bytes / layout.most_open)
    block_members = int(min(block_members, tensor_bytes // max(cost.tensor_bytes, 1)))
    return replace(
        layout,
        block_members=_whole_batches(block_members, slots),
        grows=workers is None,
        groups=len(groups.groups) if groups else 1,
    )


def plan_groups(
    spec: ScoringSpec,
    *,
    worker_bytes: int | None,
    workers: int | None,
    cpus: float,
    gpus: float,
    nodes: int,
    node_bytes: float | None,
) -> DetectorGroups | None:
    """Group the detectors that do not fit into a worker together; None if all of them fit.

    Without `worker_bytes`, as many processes share the smallest node as let a run take the least
    time. On GPUs, all detectors are together unless `worker_bytes` is set, since their weights leave
    the memory of the node.

    Args:
        spec: The detectors.
        worker_bytes: Memory that one process may take.
        workers: Processes on all nodes, if their number is set.
        cpus: Cores of all nodes.
        gpus: GPUs of all nodes.
        nodes: The number of nodes.
        node_bytes: Memory of the smallest node. None if it is not known.

    Raises:
        ConfigError: Detectors that must be together take more than `worker_bytes`.
    """
    if worker_bytes is not None:
        return _groups_within(spec, worker_bytes)
    if node_bytes is None or gpus >= 1:
        return None
    scheduled_bytes, cores = RAY_SHARE * node_bytes, max(int(cpus / nodes), 1)
    if workers is not None:
        return group_detectors(spec, scheduled_bytes / max(math.ceil(workers / nodes), 1))
    together = min(int(scheduled_bytes // whole_bytes(spec)), cores)
    in_turns = min(max(int(scheduled_bytes // _turn_bytes(spec)), 1), cores)
    if together * (1 + LOAD_SHARE) >= in_turns:
        return None
    return group_detectors(spec, scheduled_bytes / in_turns)


def _groups_within(spec: ScoringSpec, worker_bytes: int) -> DetectorGroups | None:
    groups = group_detectors(spec, worker_bytes)
    if groups is None or groups.process_bytes <= worker_bytes:
        return groups
    largest, needed = largest_unit(spec), _turn_bytes(spec)
    names = " and ".join(largest) + " share a backbone and" * (len(largest) > 1)
    raise ConfigError(
        f"cluster.worker_bytes {size(worker_bytes)}: {names} need about {size(needed)}",
        hint=f"--set cluster.worker_bytes={needed} or more, or fewer detectors",
    )


def _turn_bytes(spec: ScoringSpec) -> int:
    """Return the least that a process takes in which groups of detectors take turns."""
    return group_bytes(spec, largest_unit(spec)) + KEPT_BYTES


def _with_gpus(
    cpus: int, gpus: int, workers: int | None, pool_gmac: tuple[float, ...]
) -> ScoringLayout:
    beside_decoder = int((cpus - WORKER_CPUS - COMMIT_CPUS) / GPU_SCORER_CPUS)  # 5 on a single core
    scorers = _spread(max(min(workers or gpus, gpus, beside_decoder), len(pool_gmac)), pool_gmac)
    share = 1.0 if gpus >= len(pool_gmac) else 1.0 / math.ceil(len(pool_gmac) / gpus)
    return ScoringLayout(
        "split",
        scorers,
        max(1, cpus - sum(scorers)),
        0,
        scorer_cpus=GPU_SCORER_CPUS,
        scorer_gpus=share,
    )


def _on_cores(
    cpus: int, gpus: int, workers: int | None, pool_gmac: tuple[float, ...]
) -> ScoringLayout:
    """Detectors that cannot share a process, without a GPU: cores go to decoding and to each pool
    by their work.
    """
    decoders, *scorers = _spread(
        max(min(workers or cpus, cpus), len(pool_gmac) + 1), (DECODE_GMAC, *pool_gmac)
    )
    each = min(
        WORKER_CPUS, math.floor(100 * (cpus - COMMIT_CPUS) / (decoders + sum(scorers))) / 100
    )
    return ScoringLayout("split", tuple(scorers), decoders, 0, worker_cpus=each, scorer_cpus=each)


def _spread(count: int, loads: Sequence[float]) -> tuple[int, ...]:
    """`count` processes over stages: one each, and every further one to the stage whose processes
    have most to do.
    """
    given = [1] * len(loads)
    for _ in range(count - len(loads)):
        given[max(range(len(loads)), key=lambda stage: loads[stage] / given[stage])] += 1
    return tuple(given)


def _whole_batches(members: int, slots: int) -> int:
    return max(members // slots, 1) * slots
