"""Plan how many processes of which kind to run on the cores and GPUs of a cluster.

`plan_layout` returns a `ScoringLayout`. Every process requests a fraction of a core from Ray, and the
sum is less than the cores of a node. If every process requested a whole core, a stage on a small
machine would wait forever for a core, without a message.
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
    estimate_total_bytes,
    group_bytes,
    group_detectors,
    largest_unit,
)
from ray_app.reports.format import size
from ray_app.streams.stage import IN_FLIGHT

# A decoding or scoring process fills a core. If a node runs one per core, 3 % of each core remain
# for GPU scorers and committers.
WORKER_CPUS = 0.97
GPU_SCORER_CPUS = 0.005
COMMIT_CPUS = 0.001
REFERENCES = 8  # References to blocks, per process.
# Blocks per process whose images wait for the next process, or whose report is on its way.
WAITING = 1
# Per worker. A block costs Ray about 20 ms, which 16 images of a fast detector do not outweigh.
BLOCKS_PER_DOUBLING = 4
TENSOR_BYTES = 2**29  # The maximum of prepared tensors of one block.
# The part of the object stores for blocks in progress: well below the 80 % at which Ray spills.
HAND_OVER_SHARE = 0.4
# The maximum of encoded files in one block. Large files take seconds each, and a kill loses the whole
# block.
BLOCK_BYTES = 2**30
BLOCK_S = 60.0  # The maximum for a block of slow detectors, since a kill loses the whole block.
# Multiply-adds per second in bf16. A core does 60 to 130, a data-centre GPU more than this.
GMAC_PER_S = {"cpu": 100.0, "gpu": 30_000.0}
# Seconds of a GPU per image at least. A small network does not fill a GPU: none was faster than 18,300
# images/s on an H100.
MIN_GPU_S = 1 / 20_000
DECODE_GMAC = 2.0  # Decoding a photograph takes a core as long as this many multiply-adds.
SLACK = 4.0  # A shared core may be slower by this factor.
# Bytes of fp32 weights per second, from the page cache, on one core: networks are built before their
# weights are read. Measured for the mix of `benchmarks.turns` on a busy machine. A quiet machine
# reaches 0.4 GB/s.
LOAD_BYTES_PER_S = 2e8
# The part of a worker's time in which groups of detectors may load, in each block.
LOAD_SHARE = 0.05


@dataclass(frozen=True)
class ScoringLayout:
    """The kinds and numbers of the worker processes of a run, and what each requests from Ray.

    Attributes:
        kind: In a `fused` layout, each process fetches, decodes, scores and commits whole blocks, so
            no images are sent between processes. In a `split` layout, decoders send prepared uint8
            tensors through the object store to one pool of scorers after another.
        scorers: The number of processes in each pool.
        decoders: The number of decoding processes; 0 in a fused layout.
        block_members: The maximum number of images in a block.
        worker_cpus: The cores that a decoder, or a worker of a fused layout, requests.
        scorer_cpus: The cores that a scorer requests.
        scorer_gpus: The GPUs that a scorer requests.
        grows: Whether pools start processes on nodes that join the cluster later.
        short_of_memory: Whether memory, not the number of cores, limits the number of workers.
        labels: The labels of the nodes that processes may run on.
        groups: The number of groups of detectors that take turns in a process; 1 if all detectors are
            loaded together.
        reads_embeddings: Whether stored embeddings are scored, so that no image is decoded.
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
        """Return a copy of this layout with no more workers per stage than there are blocks.

        A worker scores one block of images at a time, so further workers would have no work.
        """
        scorers = tuple(min(count, blocks) for count in self.scorers)
        return replace(self, scorers=scorers, decoders=min(self.decoders, blocks))

    @property
    def committers(self) -> int:
        """The number of committers at the start."""
        return self.scorers[-1]

    @property
    def max_open_blocks(self) -> int:
        """The maximum number of blocks in progress.

        It includes the blocks that processes work on, and the blocks that wait for a process. A
        fused layout lets more blocks wait, because a waiting block takes only about 100 bytes.
        Workers with small blocks then do not wait for the driver.
        """
        each = IN_FLIGHT + WAITING if self.kind == "split" else REFERENCES
        return 1 + each * self.workers

    def block_plan(self, slots: int) -> BlockPlan:
        """Return the sizes of blocks into which the list of files is cut for this layout.

        `slots` is the number of images per batch.
        """
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
        """The number of processes that fetch, decode or score."""
        return sum(self.scorers) + self.decoders

    def slowest_block_s(self, worst_gmac: float) -> float:
        """Estimate the maximum seconds for a block in which every image has the maximum size.

        If the user sets no timeout, a run may take at least this long without finishing a block.
        `worst_gmac` is the number of multiply-adds for such an image, in billions.
        """
        return (
            self.block_members
            * worst_gmac
            / GMAC_PER_S["gpu" if self.scorer_gpus else "cpu"]
            * SLACK
        )

    @property
    def described(self) -> str:
        """A text about the processes, such as "8 workers, each decodes and scores"."""
        scorers = sum(self.scorers)
        turns = f", {self.groups} groups of detectors take turns in each" * (self.groups > 1)
        if self.kind == "fused":
            limit = " (there is no memory for more)" * self.short_of_memory
            work = "scores embeddings" if self.reads_embeddings else "decodes and scores"
            return f"{scorers} worker{'s' * (scorers > 1)}, each {work}{limit}{turns}"
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
    """Choose the number of processes for each stage by the cores, GPUs and memory of a cluster.

    The maximum size of a block of images is chosen, too: a block should take about a minute at
    most, or longer if groups of detectors take turns.

    Args:
        cost: The estimated work for one image, and the memory of a process.
        slots: The number of images per batch. A block has a multiple of this number.
        passes: How often detectors score an image: once, and once more per perturbation. `cost` is
            the sum over all passes.
        cpus: The cores of the cluster.
        gpus: The GPUs of the cluster.
        workers: The number of processes. None chooses the maximum that fits.
        block_members: The maximum number of images in a block.
        memory_bytes: The memory of the cluster. It limits the processes if each loads all
            detectors.
        store_bytes: The size of all object stores together, if tensors pass through them.
        groups: Groups of detectors that take turns in one pool of processes. Blocks are then so
            large that loading takes no more than `LOAD_SHARE` of the time.

    Returns:
        The kinds and numbers of processes.

    Raises:
        ClusterError: If the cluster has less than one CPU.
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
            hint="start worker nodes, or set what an autoscaler may add, for example --set cluster.cpus=8 --set cluster.gpus=1",
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
    # A perturbed image takes a core about as long as decoding it did, so the part of decoding in all
    # work does not change.
    once = tuple(gmac / passes for gmac in cost.pool_gmac)
    layout = (_with_gpus if gpus >= 1 else _on_cores)(int(cpus), int(gpus), workers, once)
    tensor_bytes = min(TENSOR_BYTES, HAND_OVER_SHARE * store_bytes / layout.max_open_blocks)
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
    """Divide detectors into groups that take turns, if not all fit into the memory of a worker.

    A worker loads one group after another for each block of images. The processes of a node share
    its memory. If `worker_bytes` and `workers` are None, this function chooses the number of
    processes with which the run is fastest. On GPUs, all detectors are loaded together unless
    `worker_bytes` is set, because weights on a GPU take no memory of the node.

    Args:
        spec: The detectors.
        worker_bytes: The maximum memory of one process. None chooses it.
        workers: The number of processes on all nodes, or None if it is not set.
        cpus: The cores of all nodes.
        gpus: The GPUs of all nodes.
        nodes: The number of nodes.
        node_bytes: The memory of the smallest node. None if it is not known.

    Returns:
        The groups. None if all detectors fit together.

    Raises:
        ConfigError: If one detector, or several that share a backbone, need more than
            `worker_bytes`.
    """
    if worker_bytes is not None:
        return _groups_within(spec, worker_bytes)
    if node_bytes is None or gpus >= 1:
        return None
    scheduled_bytes, cores = RAY_SHARE * node_bytes, max(int(cpus / nodes), 1)
    if workers is not None:
        return group_detectors(spec, scheduled_bytes / max(math.ceil(workers / nodes), 1))
    together = min(int(scheduled_bytes // estimate_total_bytes(spec)), cores)
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
        f"cluster.worker_bytes is {size(worker_bytes)}, but {names} need about {size(needed)}",
        hint=f"set cluster.worker_bytes to {needed} or more, or use fewer detectors",
    )


def _turn_bytes(spec: ScoringSpec) -> int:
    """Return the minimum memory of a process in which groups of detectors take turns."""
    return group_bytes(spec, largest_unit(spec)) + KEPT_BYTES


def _with_gpus(
    cpus: int, gpus: int, workers: int | None, pool_gmac: tuple[float, ...]
) -> ScoringLayout:
    max_scorers = int((cpus - WORKER_CPUS - COMMIT_CPUS) / GPU_SCORER_CPUS)  # 5 on a single core.
    scorers = _spread(max(min(workers or gpus, gpus, max_scorers), len(pool_gmac)), pool_gmac)
    scorer_gpus = 1.0 if gpus >= len(pool_gmac) else 1.0 / math.ceil(len(pool_gmac) / gpus)
    return ScoringLayout(
        "split",
        scorers,
        max(1, cpus - sum(scorers)),
        0,
        scorer_cpus=GPU_SCORER_CPUS,
        scorer_gpus=scorer_gpus,
    )


def _on_cores(
    cpus: int, gpus: int, workers: int | None, pool_gmac: tuple[float, ...]
) -> ScoringLayout:
    """Divide cores between decoding and each pool by their work, without a GPU.

    Detectors of different pools cannot share a process.
    """
    decoders, *scorers = _spread(
        max(min(workers or cpus, cpus), len(pool_gmac) + 1), (DECODE_GMAC, *pool_gmac)
    )
    each = min(
        WORKER_CPUS, math.floor(100 * (cpus - COMMIT_CPUS) / (decoders + sum(scorers))) / 100
    )
    return ScoringLayout("split", tuple(scorers), decoders, 0, worker_cpus=each, scorer_cpus=each)


def _spread(count: int, loads: Sequence[float]) -> tuple[int, ...]:
    """Divide a number of processes over stages.

    Each stage gets one. Every further process goes to the stage whose processes have most to do.
    """
    counts = [1] * len(loads)
    for _ in range(count - len(loads)):
        counts[max(range(len(loads)), key=lambda stage: loads[stage] / counts[stage])] += 1
    return tuple(counts)


def _whole_batches(members: int, slots: int) -> int:
    return max(members // slots, 1) * slots
