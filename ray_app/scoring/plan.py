"""What a scoring run will take and cost, before anything is spent (`plan_run`).

The workers of a run score a sample of the archive on this machine. The seconds that they measure,
times the members, over the processes of the planned machines are the plan. GPUs that are not on
this machine are estimated from the multiply-adds on the cards.

Starts no cluster, and writes nothing into the run directory.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_app.archives import BlockPlan, block_sizes, cut_blocks, fetcher_of
from ray_app.archives.progress import ProgressLog
from ray_app.cluster.config import RAY_SHARE
from ray_app.errors import ConfigError, Status
from ray_app.images.limits import worst_bytes
from ray_app.inference import DESCRIBED, LOOKED, LOOKED_MS, ResourceEstimate, ScoringSpec
from ray_app.inference.block_reader import MEMBER_BYTES
from ray_app.inference.spec import departures
from ray_app.reports import plan_model
from ray_app.reports.folders import describe_closed_folders
from ray_app.reports.format import measured
from ray_app.reports.run import measured_rate
from ray_app.runs import RunDirectory, document
from ray_app.scoring import guarantee, identity, session
from ray_app.scoring.config import ClusterDescription, ScoreConfig, planned_for
from ray_app.scoring.layout import GMAC_PER_S, ScoringLayout
from ray_app.scoring.passes import plan_passes
from ray_app.scoring.run import check_detectors, layout_for, memory_of, widest_layout
from ray_app.scoring.sample import SampleWork, score_sample
from ray_app.scoring.survey import Survey, members_to_score, progress_of, standing, survey
from ray_app.storage import node_budget, with_s3_settings

MEASURED, ESTIMATED, UNKNOWN = "measured", "estimated", "unknown"
# For Ray to start its processes and these to load detectors. Machines that an autoscaler brings
# take minutes more.
STARTING_S = 15.0
PUT_S = 0.1  # to commit a block to a store, which a sample on the local disk does not measure
# Of the run directory, in addition to one PUT per block and the parts of a manifest: summaries,
# report, log, lease.
FEW = 12
GETS_PER_BLOCK = 3  # its members, and its rows when they are compacted
EXAMPLES = 2  # of refused members, per status

_RESIZES = "or, where a grey level does not matter, --set resize=fast"
_FASTER = "make blocks larger: --set block_members=4096; or put the run directory on faster storage"
_FEWER_WORDS = "describe only what is flagged (profile.describe), with fewer beams, or with a cheaper describer"
_ADVICE = {
    "fetch": "run nearer to the bucket, or give more processes: reading is the slowest part",
    "wait": "large images wait for memory: give nodes more of it, or --set cluster.decode_bytes=… if they have it",
    "decode": "add cores, each adds {each} images/s: {twice} instead of {cpus} halve the time; a GPU would not help",
    "prepare": f"add cores, each adds {{each}} images/s, {_RESIZES}",
    "score": "add cores, each adds {each} images/s: {twice} instead of {cpus} halve the time; or take a lighter ensemble",
    "identify": "add cores, each adds {each} images/s",
    "describe": f"{_FEWER_WORDS}; or add cores, each adds {{each}} images/s",
    "write": _FASTER,
}


@dataclass(frozen=True)
class _Machines:
    """The machines of a plan: cores and GPUs of all nodes, and memory.

    Attributes:
        nodes: Nodes with cores.
        node_bytes: Memory of the smallest of them; None if it is not stated.
        memory_bytes: Memory that Ray schedules on, of all nodes.
    """

    cpus: int
    gpus: int
    nodes: int
    node_bytes: int | None
    memory_bytes: float


@dataclass(frozen=True)
class _Pool:
    """Processes that do the same work side by side.

    Attributes:
        seconds: By stage, what one process spends on an image of the archive; None if unknown.
        at_once: How many images they work on at once, as whole cores or GPUs.
        processes: How many processes they are.
        basis: By stage, whether its seconds were measured, where that differs from `measured`.
        detectors: The detectors that they hold.
    """

    seconds: Mapping[str, float | None]
    at_once: float
    processes: int
    basis: Mapping[str, str]
    detectors: tuple[str, ...] = ()

    @property
    def total_s(self) -> float:
        """Seconds per image of all stages that are known."""
        return sum(seconds or 0.0 for seconds in self.seconds.values())

    @property
    def images_per_s(self) -> float:
        """What they do if nothing holds them up."""
        return self.at_once / max(self.total_s, 1e-9)

    @property
    def slowest(self) -> str:
        """The stage that takes most of their time."""
        return max(self.seconds, key=lambda stage: self.seconds[stage] or 0.0)

    def stages(self) -> list[plan_model.PlannedStage]:
        """Return what each stage does at most: alone if it shares the processes with others."""
        return [
            plan_model.PlannedStage(
                stage=stage,
                seconds_per_image=seconds,
                images_per_s=self.at_once / seconds if seconds else None,
                processes=self.processes,
                basis=self.basis.get(stage, MEASURED),
                detectors=self.detectors if stage in ("score", "describe") else (),
            )
            for stage, seconds in self.seconds.items()
        ]


@with_s3_settings
def plan_run(
    config: ScoreConfig,
    *,
    probe: int = 64,
    cluster: ClusterDescription | None = None,
    price_per_hour: float | None = None,
) -> plan_model.Plan:
    """Plan a run of a config. Weights are fetched.

    Args:
        config: The config of the run.
        probe: How many members to score for the rates; 0 predicts no rate.
        cluster: The machines. Without it, those of the config or this one.
        price_per_hour: What the machines cost together.

    Raises:
        ConfigError: The source is empty, or a card is unknown.
        IdentityError: `config.out` is the run of another command.
        DetectorError: Weights are missing.
    """
    if not config.source:
        raise ConfigError("nothing to plan: SOURCE is missing", hint="touchstone plan SOURCE")
    config = planned_for(config, cluster, price_per_hour)
    session.require_prices(config)
    settings = identity.resolve(config, RunDirectory.open(config.out) if config.out else None)
    check_detectors(settings)
    config = settings.config
    machines = _machines(config, cluster)
    spec = settings.spec(machines.gpus)
    layout, memory = _layout(config, spec, machines)
    fetcher = fetcher_of(config.source, config.retry, allow_private=config.allow_private)
    before, start = standing(settings, spec), time.monotonic()
    found = survey(
        members_to_score(settings, before, fetcher),
        sample=probe,
        max_bytes=spec.limits.max_bytes,
        progress=ProgressLog("listing").count,
    )
    closed = found.closed_folders
    if closed.count:
        sentence = describe_closed_folders(closed.count, closed.example)
        print(f"listing: {sentence}", file=sys.stderr, flush=True)
    listing = plan_model.PlannedListing(
        seconds=round(time.monotonic() - start, 2),
        gets=fetcher.counts["requests"],
        bytes_read=fetcher.bytes_read,
    )
    blocks = len(before.pending) if before else 0
    blocks = blocks or _count_blocks(layout.block_plan(spec.slots), found)
    # Rows go to a store that bills requests if the run or, as long as there is none, the source is
    # in one.
    is_store = session.is_billed(config.out) if config.out else bool(found.billed)
    work = None
    if found.sample:
        decode_bytes = _decode_bytes(config, machines)
        work = score_sample(config, spec, layout, fetcher, found.sample, decode_bytes=decode_bytes)
    used = layout.limited_to(blocks)
    pools = list[_Pool]()
    if work is not None:
        write_s = _write_s(work, blocks / found.members, is_store=is_store)
        pools = _pools(spec, used, work, machines, write_s)
    time_s = _time(spec, work, pools, found, listing.seconds)
    lists = found.lists * (before is None or before.state != "unfinished")
    requests = _requests(spec, found, listing, blocks, lists=lists, is_store=is_store)
    bytes_read = _bytes_read(found, work) + listing.bytes_read
    return plan_model.Plan(
        members=found.members,
        size_bytes=found.size_bytes,
        unknown_sizes=found.unsized,
        kinds={kind: plan_model.PlannedKind(**counts) for kind, counts in found.kinds.items()},
        refused_in_listing=dict(found.refused),
        run=progress_of(RunDirectory.open(config.out), before, blocks, found.members)
        if config.out and before
        else None,
        unlike=_unlike(config, spec, work),
        cluster=_cluster(config, cluster, machines),
        kind=layout.kind,
        layout=layout.described,
        block_members=layout.block_members,
        workers=layout.workers,
        process_bytes=memory.process_bytes,
        memory=plan_model.PlannedMemory(**memory.given(), worst_bytes=worst_bytes(config.limits)),
        blocks=blocks,
        listing=listing,
        **_asked(spec, work),
        probe=_probe(spec, work) if work else None,
        stages=[stage for pool in pools for stage in pool.stages()],
        bottleneck=_bottleneck(spec, layout, used, pools, blocks, machines) if pools else None,
        forecast=time_s,
        **(_costs(spec, work, pools) if work else {}),
        requests=requests,
        bytes_read=bytes_read,
        prices=config.prices.model_dump(mode="json"),
        **_bill(config, requests, bytes_read if found.billed else 0, found.members, time_s),
    )


def _machines(config: ScoreConfig, described: ClusterDescription | None) -> _Machines:
    """Return the described machines; without a description, nodes are like this one."""
    cpus = config.cluster.cpus or node_budget.usable_cores()
    gpus = config.cluster.gpus or 0
    if described is not None:
        memory_bytes = described.memory_bytes or math.inf
        return _Machines(cpus, gpus, described.workers, described.smallest_bytes, memory_bytes)
    nodes = max(cpus / node_budget.usable_cores(), 1)
    node_bytes = node_budget.node_memory()
    return _Machines(cpus, gpus, math.ceil(nodes), node_bytes, RAY_SHARE * node_bytes * nodes)


def _layout(
    config: ScoreConfig, spec: ScoringSpec, machines: _Machines
) -> tuple[ScoringLayout, document.Memory]:
    """Return the processes of the run, and what they take of each node's memory."""
    cpus, gpus = machines.cpus, machines.gpus
    nodes, node_bytes = machines.nodes, machines.node_bytes
    groups = plan_passes(config, spec, cpus=cpus, gpus=gpus, nodes=nodes, node_bytes=node_bytes)
    layouts = [
        layout_for(config, group, cpus, gpus, machines.memory_bytes) for group in groups.specs()
    ]
    layout = widest_layout(layouts)
    return layout, memory_of(config, groups, layout, nodes, node_bytes)


def _decode_bytes(config: ScoreConfig, machines: _Machines) -> int:
    """Return what large images of the sample may take together: as on a node of the run, and no
    more than this machine has for them.
    """
    here = node_budget.node_memory()
    node_bytes = min(machines.node_bytes or here, here)
    return config.cluster.decode_bytes or node_budget.budget_of(node_bytes)


def _count_blocks(plan: BlockPlan, found: Survey) -> int:
    """Return into how many blocks the members are cut, if all have about the mean size."""
    blocks, left, most = 0, found.members, found.members
    sizes = block_sizes(plan)
    if plan.max_block_bytes is not None and found.mean_bytes:
        most = max(int(plan.max_block_bytes / found.mean_bytes), 1)
    while left > 0:
        left, blocks = left - min(next(sizes), most), blocks + 1
    return blocks


def _pools(
    spec: ScoringSpec,
    layout: ScoringLayout,
    work: SampleWork,
    machines: _Machines,
    write_s: float,
) -> list[_Pool]:
    """Return the pools of a layout with what a process of each spends on an image."""
    count = len(work.outcomes)
    per_image: list[dict[str, float | None]] = [
        {stage: spent / count for stage, spent in seconds.items() if spent}
        for seconds in work.seconds
    ]
    first = per_image[0]
    # Members drawn here and there from a container bring their neighbours along, which a run needs,
    # too.
    needed = work.counts[MEMBER_BYTES] / max(work.counts["bytes_read"], 1)
    first["fetch"] = (first.get("fetch") or 0.0) * min(needed, 1.0)
    basis = dict[str, str]()
    if not work.has_scored:
        scored = _estimated_s(spec, sum(first.get(stage) or 0.0 for stage in ("decode", "prepare")))
        basis = dict.fromkeys(("score", "describe"), UNKNOWN if None in scored else ESTIMATED)
        basis["write"] = ESTIMATED
        names = ["describe" if pool not in spec.pools else "score" for pool in spec.all_pools]
        per_image += [{name: seconds} for name, seconds in zip(names, scored, strict=True)]
        per_image.append({})
    per_image[-1]["write"] = write_s
    if layout.kind == "fused":
        joined = {stage: seconds for part in per_image for stage, seconds in part.items()}
        at_once = min(layout.workers, machines.cpus)  # More processes than cores share them.
        return [_Pool(joined, at_once, layout.workers, basis, tuple(spec.cards))]
    crowded = 1.0 if layout.scorer_gpus else min(1.0, machines.cpus / layout.workers)
    decoders, committers = layout.decoders, layout.committers
    decoding, *scoring, committing = per_image
    return [
        _Pool(decoding, decoders * crowded, decoders, {}),
        *(
            _Pool(
                _as_scoring(seconds),
                size * (layout.scorer_gpus or crowded),
                size,
                basis,
                pool,
            )
            for seconds, size, pool in zip(scoring, layout.scorers, spec.all_pools, strict=True)
        ),
        _Pool(committing, committers, committers, basis),
    ]


def _as_scoring(seconds: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the seconds of scorers; images that they decode themselves count as scoring."""
    described = {stage: spent for stage, spent in seconds.items() if stage == "describe"}
    others = [spent for stage, spent in seconds.items() if stage != "describe"]
    if not others:
        return described
    known = [spent for spent in others if spent is not None]
    return {"score": sum(known) if len(known) == len(others) else None, **described}


def _estimated_s(spec: ScoringSpec, decode_s: float) -> list[float | None]:
    """Return the seconds per image of each pool on a GPU, by the multiply-adds on the cards; None
    if a card states none.

    A scorer decodes again, in `decode_s`, for each preprocessing that keeps sizes and for the
    second stage of a cascade.
    """
    estimate, seconds = ResourceEstimate.of(spec), list[float | None]()
    for pool, gmac in zip(spec.all_pools, estimate.pool_gmac, strict=True):
        cards = [spec.cards[name] for name in pool if name in spec.cards]
        native = {
            card.preprocessing
            for card in cards
            if card.preprocessing.shape is None and card.name in spec.first
        }
        again = len(native) + estimate.second_stage_share * bool(set(pool) & set(spec.late))
        is_sized = all(card.size for card in cards) and (
            len(cards) == len(pool) or bool(spec.describer and spec.describer.gmac)
        )
        seconds.append(gmac / GMAC_PER_S["gpu"] + decode_s * again if is_sized else None)
    return seconds


def _write_s(work: SampleWork, blocks_per_member: float, *, is_store: bool) -> float:
    """Return what committing takes per image. It takes about as long for a large block as for a
    small one, so the time of a block is what counts.
    """
    spent = work.seconds[-1].get("write", 0.0) / work.processes
    return (spent + PUT_S * is_store) * blocks_per_member


def _time(
    spec: ScoringSpec,
    work: SampleWork | None,
    pools: Sequence[_Pool],
    found: Survey,
    listing_s: float,
) -> plan_model.PlannedTime | None:
    """Return hours: starting, listing, then all members at the rate of the slowest pool. None if it
    is not known. Machines that have yet to come are not in it.
    """
    if work is None and found.members:
        return None
    rate = min((pool.images_per_s for pool in pools), default=None)
    basis = MEASURED if work and work.has_scored else ESTIMATED if work else "nothing to do"
    seconds = STARTING_S + listing_s + (found.members / rate if rate else 0.0)
    per_member = _bytes_read(found, work) / max(found.members, 1)
    return plan_model.PlannedTime(
        images_per_s=rate,
        hours=seconds / 3600,
        bytes_per_s=None if rate is None else round(rate * per_member),
        starting_s=STARTING_S,
        listing_s=listing_s,
        basis=basis,
        assumed_gmac_per_s=GMAC_PER_S["gpu"] if basis == ESTIMATED else None,
    )


def _bytes_read(found: Survey, work: SampleWork | None) -> int:
    """Return the bytes of all members. Those of unknown size count as the mean of the sample."""
    mean = work.counts[MEMBER_BYTES] / len(work.outcomes) if work else found.mean_bytes
    return found.size_bytes + round(found.unsized * mean)


def _bottleneck(
    spec: ScoringSpec,
    layout: ScoringLayout,
    used: ScoringLayout,
    pools: Sequence[_Pool],
    blocks: int,
    machines: _Machines,
) -> plan_model.PlannedBottleneck:
    """Return the stage that sets the rate, and what would raise it."""
    slowest = min(pools, key=lambda pool: pool.images_per_s)
    scoring = min((pool.images_per_s for pool in pools[1:-1]), default=math.inf)
    if used.workers < layout.workers:
        cut = f"{blocks} block{'s' * (blocks > 1)}"
        advice = f"so few files make {cut}, for {used.workers} of {layout.workers} processes: a smaller cluster is as fast"
    elif layout.kind == "fused":
        advice = _fused_advice(spec, slowest, machines)
    elif slowest is pools[0]:
        advice = _decoding_advice(layout, slowest, scoring, machines)
    elif slowest is pools[-1]:
        few = f"the {slowest.processes} committers are too few: more scorers bring more"
        advice = f"{few}; {_FASTER}" if slowest.slowest == "write" else few
    else:
        words = f"{_FEWER_WORDS}; or " if slowest.slowest == "describe" else ""
        advice = words + _scoring_advice(layout, scoring, pools[0].images_per_s, machines)
    busy = None if math.isinf(scoring) else min(slowest.images_per_s / scoring, 1.0)
    return plan_model.PlannedBottleneck(stage=slowest.slowest, advice=advice, scorers_busy=busy)


def _fused_advice(spec: ScoringSpec, pool: _Pool, machines: _Machines) -> str:
    cpus, gmac = machines.cpus, _gmac(spec)
    each = measured(pool.images_per_s / pool.at_once)
    advice = _ADVICE[pool.slowest].format(cpus=cpus, twice=2 * cpus, each=each)
    on_core = sum(pool.seconds.get(stage) or 0.0 for stage in ("decode", "prepare"))
    if pool.slowest == "score" and gmac:
        with_gpu = min(GMAC_PER_S["gpu"] / gmac, max(cpus - 1, 1) / max(on_core, 1e-9))
        if with_gpu > 1.5 * pool.images_per_s:
            advice += f"; one GPU with {cpus} cores: about {with_gpu:,.0f} images/s (estimated)"
    return advice


def _decoding_advice(
    layout: ScoringLayout, pool: _Pool, scoring: float, machines: _Machines
) -> str:
    if pool.slowest in ("fetch", "wait"):
        return _ADVICE[pool.slowest]
    faster = f", {_RESIZES}" if pool.slowest == "prepare" else ""
    if math.isinf(scoring):
        return f"add cores, each adds {measured(pool.images_per_s / pool.at_once)} images/s{faster}"
    busy, gpus = pool.images_per_s / scoring, machines.gpus
    cores = machines.cpus - layout.decoders + math.ceil(layout.decoders / busy)
    what = ("the GPU" if gpus == 1 else f"the {gpus} GPUs") if layout.scorer_gpus else "the scorers"
    advice = f"raise cores from {machines.cpus:,} to {cores:,} to keep {what} busy, idle {100 * (1 - busy):.0f} % of the time{faster}"
    enough = math.ceil(gpus * busy)
    if layout.scorer_gpus and enough < gpus:
        return f"plan {enough} of the {gpus} GPUs, which is as fast, and cheaper; or {advice}"
    return advice


def _scoring_advice(
    layout: ScoringLayout, scoring: float, decoding: float, machines: _Machines
) -> str:
    if not layout.scorer_gpus:
        return "add cores or a GPU, or take a lighter ensemble"
    fed = math.floor(machines.gpus * decoding / scoring)
    if fed <= machines.gpus:
        return "cores and GPUs are in balance: more of both, or a lighter ensemble"
    return f"add GPUs: the cores could feed {fed:,} instead of {machines.gpus}; or take a lighter ensemble"


def _probe(spec: ScoringSpec, work: SampleWork) -> plan_model.ProbeResult:
    """Return what the sample showed of the files."""
    statuses, examples = dict[str, int](), dict[str, list[document.Example]]()
    for one in work.outcomes:
        statuses[one.status] = statuses.get(one.status, 0) + 1
        shown = examples.setdefault(one.status, []) if one.detail is not None else []
        if len(shown) < EXAMPLES:
            member = one.member
            shown.append(
                document.Example(uri=member.uri, member=member.member, detail=one.detail or "")
            )
    members = len(work.outcomes)
    refused = members - statuses.get(Status.OK, 0)
    fraction = measured_rate(refused / members, members)
    return plan_model.ProbeResult(
        members=members,
        scored=members if work.has_scored else 0,
        score_basis=MEASURED if work.has_scored else ESTIMATED,
        device=spec.device,
        processes=work.processes,
        statuses=dict(sorted(statuses.items(), key=lambda item: -item[1])),
        refused=refused,
        refused_share=plan_model.RefusedShare(
            value=fraction.value, low=fraction.low, high=fraction.high
        ),
        examples=examples,
        bytes_per_member=round(work.counts[MEMBER_BYTES] / members),
    )


def _unlike(config: ScoreConfig, spec: ScoringSpec, work: SampleWork | None) -> str | None:
    """Return in what the sample differs so much from the calibration that all verdicts would
    abstain; None if it does not, or if nothing was compared.
    """
    card = spec.ensemble
    if work is None or config.waive_guarantee or not guarantee.has_comparison(card):
        return None
    tally = guarantee.ArchiveTally(spec)
    for rows in work.rows:
        tally.add(rows)
    beyond = [shift for shift in guarantee.shifts_of(card, tally.population) if shift.beyond]
    return ", ".join(f"{shift.feature} (PSI {shift.psi:.2g})" for shift in beyond) or None


def _costs(spec: ScoringSpec, work: SampleWork, pools: Sequence[_Pool]) -> dict[str, Any]:
    """Return by the keys of a plan what each detector and each stage of a cascade takes of the
    seconds that are spent on an image.
    """
    count, total_s = len(work.outcomes), sum(pool.total_s for pool in pools)
    costs = {
        name: plan_model.PlannedDetector(
            ms_per_image=time_s.ms_per_image,
            spent_ms=round(1000 * time_s.seconds / count, 4),
            share=time_s.seconds / count / total_s,
            basis=MEASURED,
        )
        for name, time_s in session.detector_times(work.counts).items()
    }
    return {"costs": costs or None, "cascade": _cascade(spec, work, total_s)}


def _cascade(
    spec: ScoringSpec, work: SampleWork, total_s: float
) -> plan_model.PlannedCascade | None:
    if not spec.late:
        return None
    count, fraction, seconds = (
        len(work.outcomes),
        ResourceEstimate.of(spec).second_stage_share,
        None,
    )
    if work.has_scored:
        fraction = work.counts.get(LOOKED, 0) / count
        second_s = work.counts.get(LOOKED_MS, 0) / 1000 / count
        seconds = {"first": total_s - second_s, "second": second_s}
    return plan_model.PlannedCascade(
        first=list(spec.first), second=list(spec.late), share=fraction, seconds_per_image=seconds
    )


def _requests(
    spec: ScoringSpec,
    found: Survey,
    listing: plan_model.PlannedListing,
    blocks: int,
    *,
    lists: int,
    is_store: bool,
) -> plan_model.PlannedRequests:
    """Return the requests that a store bills: for the source, and if `is_store` for the rows."""
    per_block = 1 + bool(spec.localizers) + len(spec.features)
    puts = blocks * per_block + math.ceil(blocks / cut_blocks.BLOCKS_PER_FILE) + FEW
    gets = found.gets + listing.gets + is_store * blocks * GETS_PER_BLOCK
    return plan_model.PlannedRequests(list=lists, get=gets, put=is_store * puts)


def _bill(
    config: ScoreConfig,
    requests: plan_model.PlannedRequests,
    billed_bytes: int,
    members: int,
    time_s: plan_model.PlannedTime | None,
) -> dict[str, Any]:
    """Return what bytes and hours cost, and what fraction of the work the run's limits allow. The
    cost of machines is not known without a probe.
    """
    hours = time_s.hours if time_s else None
    cost = session.spent(
        config.prices, hours or 0.0, {session.GETS: requests.gets, session.BYTES: billed_bytes}
    )
    unknown = {"compute": None, "compute_share": None} if hours is None else {}
    each = cost.total / members * 1000 if members and hours is not None else None
    needed = ((config.max_hours, hours), (config.max_cost, hours and cost.total))
    fractions = [limit / much for limit, much in needed if limit is not None and much]
    return {
        "cost": plan_model.PlannedCost(**{**cost.given(), **unknown, "per_1000_members": each}),
        "stops": plan_model.PlannedStops(
            max_hours=config.max_hours,
            max_cost=config.max_cost,
            share=None if hours is None else min([1.0, *fractions]),
        ),
    }


def _asked(spec: ScoringSpec, work: SampleWork | None) -> dict[str, Any]:
    """Return by the keys of a plan what scores the images, and what they share."""
    card, promise, profile = spec.ensemble, spec.ensemble.guarantee, None
    if card.profile is not None:
        profile = plan_model.PlannedProfile(
            identifier=spec.identifier.name if spec.identifier else None,
            describer=spec.describer.name if spec.describer else None,
            describe=card.profile.describe if spec.describer else None,
            share=_described_fraction(spec, work) if spec.describer else None,
        )
    return {
        "ensemble": card.name,
        "rule": card.rule,
        "detectors": list(spec.cards),
        "guarantee": promise
        and plan_model.PlannedGuarantee(
            target_fpr=promise.target_fpr,
            confidence=promise.confidence,
            population=card.population.what if card.population else None,
            otherwise=departures(card.settings, spec.precision, spec.resize),
        ),
        "views": [view.name for view in spec.views] or None,
        "profile": profile,
        "features": {name: facts["width"] for name, facts in spec.features.items()} or None,
        "tensors": _tensors(spec),
        "backbones": _backbones(spec),
        "pools": [list(pool) for pool in spec.all_pools],
        "gmac_per_image": round(_gmac(spec), 3),
    }


def _described_fraction(spec: ScoringSpec, work: SampleWork | None) -> float | None:
    if work is None:
        return None
    if not work.has_scored:
        return ResourceEstimate.of(spec).share_described
    return work.counts.get(DESCRIBED, 0) / len(work.outcomes)


def _gmac(spec: ScoringSpec) -> float:
    """Return billions of multiply-adds for one image."""
    return sum(ResourceEstimate.of(spec).pool_gmac)


def _tensors(spec: ScoringSpec) -> list[plan_model.PlannedTensor]:
    """Return each distinct preprocessing with the detectors that share its tensor."""
    users = [(name, card.preprocessing) for name, card in spec.cards.items()]
    if spec.describer and spec.describer.preprocessing:
        users.append((spec.describer.name, spec.describer.preprocessing))
    return [
        plan_model.PlannedTensor(
            preprocessing=preprocessing.model_dump(mode="json", exclude_defaults=True),
            shape=preprocessing.shape,
            detectors=[name for name, used in users if used == preprocessing],
        )
        for preprocessing in spec.preprocessings
    ]


def _backbones(spec: ScoringSpec) -> list[plan_model.PlannedBackbone]:
    """Return each named backbone with the groups of detectors for which it runs once per image."""
    groups: dict[str, dict[object, list[str]]] = {}
    for name, card in spec.cards.items():
        if card.backbone is not None:
            key = (card.preprocessing, spec.precision[name])
            groups.setdefault(card.backbone.name, {}).setdefault(key, []).append(name)
    return [
        plan_model.PlannedBackbone(name=name, runs_once_for=list(users.values()))
        for name, users in groups.items()
    ]


def _cluster(
    config: ScoreConfig, described: ClusterDescription | None, machines: _Machines
) -> plan_model.PlannedCluster:
    name = described.name if described else "as stated" if config.cluster.cpus else "this machine"
    nodes = described.nodes if described else ()
    return plan_model.PlannedCluster(
        name=name,
        cpus=machines.cpus,
        gpus=machines.gpus,
        price_per_hour=config.prices.per_hour,
        nodes=[plan_model.PlannedNodes(**node.model_dump()) for node in nodes],
    )
