"""Estimate how many images per second a run will score on planned machines, for `touchstone plan`.

`read_pools` computes the rates from the seconds that a sample took. `find_bottleneck` finds the
stage that limits the rate of the run. In a fused layout every process runs one stage after another.
In a split layout pools of processes work in parallel, and the slowest pool limits the rate. The
rates of GPUs that did not score the sample are estimated from the multiply-adds on the cards of the
detectors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.inference.block_reader import MEMBER_BYTES
from ray_app.reports.format import number
from ray_app.reports.plan_model import PlannedBottleneck, PlannedStage
from ray_app.scoring.layout import GMAC_PER_S, MIN_GPU_S, ScoringLayout
from ray_app.scoring.sample import SampleWork

MEASURED, ESTIMATED, UNKNOWN = "measured", "estimated", "unknown"
# Seconds to commit a block to a store, which a sample on the local disk does not measure.
PUT_S = 0.1

_RESIZES = "or, if images are resized exactly, --set resize=fast"
_FASTER = "make blocks larger: --set block_members=4096; or put the run directory on faster storage"
_FEWER_WORDS = (
    "describe only flagged images (profile.describe), with fewer beams, or with a cheaper describer"
)
_ADVICE = {
    "fetch": "run closer to the bucket, or use more processes: reading is the slowest part",
    "wait": "large images wait for memory: use nodes with more memory, or --set cluster.decode_bytes=… if they have enough",
    "decode": "add cores, each adds {each} images/s: {twice} instead of {cpus} halve the time; a GPU would not help",
    "prepare": f"add cores, each adds {{each}} images/s, {_RESIZES}",
    "score": "add cores, each adds {each} images/s: {twice} instead of {cpus} halve the time; or use a lighter ensemble",
    "identify": "add cores, each adds {each} images/s",
    "describe": f"{_FEWER_WORDS}; or add cores, each adds {{each}} images/s",
    "load": "detectors take turns in memory: give each process more memory, --set cluster.worker_bytes=…",
    "write": _FASTER,
}


@dataclass(frozen=True)
class PlannedMachines:
    """The machines on which `touchstone plan` assumes that a run scores.

    Attributes:
        cpus: Cores of all nodes.
        gpus: GPUs of all nodes.
        nodes: Number of nodes that do work. A head node without cores for work does not count.
        node_bytes: Memory of the smallest of these nodes; None if it is not known.
        memory_bytes: Memory of all nodes that Ray schedules on.
    """

    cpus: int
    gpus: int
    nodes: int
    node_bytes: int | None
    memory_bytes: float


@dataclass(frozen=True)
class PlannedPool:
    """A pool of processes that do the same work in parallel, with their planned speed.

    Attributes:
        seconds: By stage, such as `decode` or `score`, the seconds that one process needs per image
            of the archive. None if unknown.
        at_once: The number of images that the pool works on at the same time. It may be a fraction:
            a process with half a GPU, for example, counts as 0.5.
        processes: The number of processes.
        basis: `estimated` or `unknown`, for each stage whose seconds were not measured on the
            sample.
        detectors: The detectors that the processes load.
    """

    seconds: Mapping[str, float | None]
    at_once: float
    processes: int
    basis: Mapping[str, str]
    detectors: tuple[str, ...] = ()

    @property
    def total_s(self) -> float:
        """Seconds per image, summed over the stages whose seconds are known."""
        return sum(seconds or 0.0 for seconds in self.seconds.values())

    @property
    def images_per_s(self) -> float:
        """Images per second that the pool can process if no other pool delays it."""
        return self.at_once / max(self.total_s, 1e-9)

    @property
    def slowest(self) -> str:
        """The name of the stage that takes most of the pool's time, such as `decode`."""
        return max(self.seconds, key=lambda stage: self.seconds[stage] or 0.0)

    def stages(self) -> list[PlannedStage]:
        """Return the stages of the pool, each with its seconds per image and its rate.

        The rate of a stage is the rate of a pool whose processes do nothing else.
        """
        return [
            PlannedStage(
                stage=stage,
                seconds_per_image=seconds,
                images_per_s=self.at_once / seconds if seconds else None,
                processes=self.processes,
                basis=self.basis.get(stage, MEASURED),
                detectors=self.detectors if stage in ("score", "describe") else (),
            )
            for stage, seconds in self.seconds.items()
        ]


def read_pools(
    spec: ScoringSpec,
    layout: ScoringLayout,
    work: SampleWork,
    machines: PlannedMachines,
    *,
    blocks_per_member: float,
    is_store: bool,
) -> list[PlannedPool]:
    """Compute the speed of each pool of a run's processes from the work that a sample took.

    A pool has processes that do the same work. In a fused layout, there is one pool.

    Args:
        spec: The scoring specification.
        layout: The planned processes, with no more per stage than there are blocks.
        work: The measured work on the sample.
        machines: The planned machines.
        blocks_per_member: Blocks of the run divided by its members. Committing a large block takes
            about as long as committing a small one.
        is_store: Whether rows are written to a store that bills requests.

    Returns:
        The pools in the order in which images pass them, each with the seconds per image.
    """
    count = len(work.outcomes)
    per_image: list[dict[str, float | None]] = [
        {stage: total / count for stage, total in seconds.items() if total}
        for seconds in work.seconds
    ]
    pools = spec.all_pools if layout.groups == 1 else (tuple(spec.cards),)
    first = per_image[0]
    # The sampled members of a container are read with their neighbours, which a run needs, too.
    needed = work.counts[MEMBER_BYTES] / max(work.counts["bytes_read"], 1)
    first["fetch"] = (first.get("fetch") or 0.0) * min(needed, 1.0)
    basis = {"write": ESTIMATED} if is_store or not work.has_scored else {}
    if not work.has_scored:
        scored = _estimate_s(spec, sum(first.get(stage) or 0.0 for stage in ("decode", "prepare")))
        basis |= dict.fromkeys(("score", "describe"), UNKNOWN if None in scored else ESTIMATED)
        names = ["describe" if pool not in spec.pools else "score" for pool in spec.all_pools]
        if layout.groups > 1:
            known_s = [seconds for seconds in scored if seconds is not None]
            scored = [sum(known_s) if len(known_s) == len(scored) else None]
            names = ["score"]
        per_image += [{name: seconds} for name, seconds in zip(names, scored, strict=True)]
        per_image.append({})
    # Each process had one block.
    for part, seconds in zip(per_image, work.seconds, strict=False):
        if "load" in part:
            part["load"] = seconds["load"] / work.processes * blocks_per_member
    block_s = work.seconds[-1].get("write", 0.0) / work.processes + PUT_S * is_store
    per_image[-1]["write"] = block_s * blocks_per_member
    if layout.kind == "fused":
        merged = {stage: seconds for part in per_image for stage, seconds in part.items()}
        at_once = min(layout.workers, machines.cpus)  # More processes than cores share the cores.
        return [PlannedPool(merged, at_once, layout.workers, basis, tuple(spec.cards))]
    crowded = 1.0 if layout.scorer_gpus else min(1.0, machines.cpus / layout.workers)
    decoders, committers = layout.decoders, layout.committers
    decoding, *scoring, committing = per_image
    return [
        PlannedPool(decoding, decoders * crowded, decoders, {}),
        *(
            PlannedPool(
                _merge_scoring(seconds),
                size * (layout.scorer_gpus or crowded),
                size,
                basis,
                pool,
            )
            for seconds, size, pool in zip(scoring, layout.scorers, pools, strict=True)
        ),
        PlannedPool(committing, committers, committers, basis),
    ]


def _merge_scoring(seconds: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the seconds of scorers, with images that they decode themselves counted as scoring."""
    describing = {stage: time_s for stage, time_s in seconds.items() if stage == "describe"}
    others = [time_s for stage, time_s in seconds.items() if stage != "describe"]
    if not others:
        return describing
    known_s = [time_s for time_s in others if time_s is not None]
    return {"score": sum(known_s) if len(known_s) == len(others) else None, **describing}


def _estimate_s(spec: ScoringSpec, decode_s: float) -> list[float | None]:
    """Return the seconds per image of each pool on a GPU, by the multiply-adds on the cards.

    A scorer decodes again for each preprocessing that keeps sizes, and for the second stage of a
    cascade.

    Args:
        spec: The scoring specification.
        decode_s: The seconds of decoding an image once.

    Returns:
        None for a pool with a card that states no multiply-adds.
    """
    estimate, seconds = ResourceEstimate.from_spec(spec), list[float | None]()
    for pool, gmac in zip(spec.all_pools, estimate.pool_gmac, strict=True):
        cards = [spec.cards[name] for name in pool if name in spec.cards]
        native = {
            card.preprocessing
            for card in cards
            if card.preprocessing.shape is None and card.name in spec.first
        }
        repeats = len(native) + estimate.second_stage_share * bool(set(pool) & set(spec.late))
        is_sized = all(card.size for card in cards) and (
            len(cards) == len(pool) or bool(spec.describer and spec.describer.gmac)
        )
        network_s = max(gmac / GMAC_PER_S["gpu"], MIN_GPU_S)
        seconds.append(network_s + decode_s * repeats if is_sized else None)
    return seconds


def find_bottleneck(
    spec: ScoringSpec,
    layout: ScoringLayout,
    used: ScoringLayout,
    pools: Sequence[PlannedPool],
    blocks: int,
    machines: PlannedMachines,
) -> PlannedBottleneck:
    """Find the stage that limits the rate of a run, such as `decode`.

    Args:
        spec: The scoring specification.
        layout: The planned processes, which do not depend on the number of blocks.
        used: The same layout, reduced to the number of blocks if there are fewer blocks than
            processes in a stage.
        pools: The pools of processes with their rates.
        blocks: The number of blocks of the run.
        machines: The planned machines.

    Returns:
        The stage, advice how to raise the rate, and how busy the scorers are.
    """
    slowest = min(pools, key=lambda pool: pool.images_per_s)
    scoring = min((pool.images_per_s for pool in pools[1:-1]), default=math.inf)
    if used.workers < layout.workers:
        cut = f"{blocks} block{'s' * (blocks > 1)}"
        advice = f"there are only {cut}, for {used.workers} of {layout.workers} processes: a smaller cluster is as fast"
    elif layout.kind == "fused":
        advice = _fused_advice(spec, slowest, machines)
    elif slowest is pools[0]:
        advice = _decoding_advice(layout, slowest, scoring, machines)
    elif slowest is pools[-1]:
        more = f"the {slowest.processes} committers are too few: use more scorers, which add committers"
        advice = f"{more}; {_FASTER}" if slowest.slowest == "write" else more
    else:
        prefix = f"{_FEWER_WORDS}; or " if slowest.slowest == "describe" else ""
        advice = prefix + _scoring_advice(layout, scoring, pools[0].images_per_s, machines)
    busy = None if math.isinf(scoring) else min(slowest.images_per_s / scoring, 1.0)
    on_gpus = bool(layout.scorer_gpus) and not math.isinf(scoring)
    gpus = sum(pool.at_once for pool in pools[1:-1])
    return PlannedBottleneck(
        stage=slowest.slowest,
        advice=advice,
        scorers_busy=busy,
        cores_per_gpu=pools[0].total_s * scoring / gpus if on_gpus else None,
    )


def _fused_advice(spec: ScoringSpec, pool: PlannedPool, machines: PlannedMachines) -> str:
    cpus, gmac = machines.cpus, count_gmac(spec)
    each = number(pool.images_per_s / pool.at_once)
    advice = _ADVICE[pool.slowest].format(cpus=cpus, twice=2 * cpus, each=each)
    on_core = sum(pool.seconds.get(stage) or 0.0 for stage in ("decode", "prepare"))
    if pool.slowest == "score" and gmac:
        with_gpu = min(GMAC_PER_S["gpu"] / gmac, max(cpus - 1, 1) / max(on_core, 1e-9))
        if with_gpu > 1.5 * pool.images_per_s:
            advice += f"; one GPU with {cpus} cores: about {with_gpu:,.0f} images/s (estimated)"
    return advice


def _decoding_advice(
    layout: ScoringLayout, pool: PlannedPool, scoring: float, machines: PlannedMachines
) -> str:
    if pool.slowest in ("fetch", "wait"):
        return _ADVICE[pool.slowest]
    faster = f", {_RESIZES}" if pool.slowest == "prepare" else ""
    if math.isinf(scoring):
        return f"add cores, each adds {number(pool.images_per_s / pool.at_once)} images/s{faster}"
    busy, gpus = pool.images_per_s / scoring, machines.gpus
    cores = machines.cpus - layout.decoders + math.ceil(layout.decoders / busy)
    users = (
        ("the GPU" if gpus == 1 else f"the {gpus} GPUs") if layout.scorer_gpus else "the scorers"
    )
    advice = f"raise cores from {machines.cpus:,} to {cores:,} to keep {users} busy, idle {100 * (1 - busy):.0f} % of the time{faster}"
    enough = math.ceil(gpus * busy)
    if layout.scorer_gpus and enough < gpus:
        return f"plan {enough} of the {gpus} GPUs, which is as fast and cheaper; or {advice}"
    return advice


def _scoring_advice(
    layout: ScoringLayout, scoring: float, decoding: float, machines: PlannedMachines
) -> str:
    if not layout.scorer_gpus:
        return "add cores or a GPU, or use a lighter ensemble"
    fed = math.floor(machines.gpus * decoding / scoring)
    if fed <= machines.gpus:
        return "add both cores and GPUs, which are in balance, or use a lighter ensemble"
    return f"add GPUs: the cores could feed {fed:,} instead of {machines.gpus}; or use a lighter ensemble"


def count_gmac(spec: ScoringSpec) -> float:
    """Return the billions of multiply-adds that an ensemble needs for one image."""
    return sum(ResourceEstimate.from_spec(spec).pool_gmac)
