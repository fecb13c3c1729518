"""Plan what a scoring run takes and costs, before it starts (`plan_run`).

The stages of a run score a sample of the archive on this machine. The time of the run is estimated
from the measured seconds per image, the number of members, and the number of processes on the
planned machines. The speed of GPUs that this machine lacks is estimated from the multiply-adds on
the cards of the detectors.

A plan starts no cluster, and writes nothing into the run directory.
"""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from ray_app.archives import BlockPlan, create_fetcher, cut_blocks, iter_block_sizes
from ray_app.archives.progress import ProgressLog
from ray_app.cluster.config import RAY_SHARE
from ray_app.errors import ConfigError, Status
from ray_app.images.limits import worst_bytes
from ray_app.inference import DESCRIBED, RESCORED, RESCORED_MS, ResourceEstimate, ScoringSpec
from ray_app.inference.block_reader import MEMBER_BYTES
from ray_app.inference.groups import DetectorGroups
from ray_app.inference.spec import departures
from ray_app.metrics.intervals import proportion
from ray_app.reports import plan_model
from ray_app.reports.folders import describe_closed_folders
from ray_app.runs import RunDirectory, document
from ray_app.scoring import guarantee, identity, session
from ray_app.scoring.backlog import Listing
from ray_app.scoring.config import ClusterDescription, ScoreConfig, apply_cluster
from ray_app.scoring.layout import GMAC_PER_S, ScoringLayout
from ray_app.scoring.rates import (
    ESTIMATED,
    MEASURED,
    PlannedMachines,
    PlannedPool,
    count_gmac,
    find_bottleneck,
    read_pools,
)
from ray_app.scoring.run import check_detectors, estimate_memory, groups_for, layout_for
from ray_app.scoring.sample import SampleWork, score_sample
from ray_app.scoring.survey import (
    Survey,
    describe_progress,
    find_earlier_work,
    members_to_score,
    survey,
)
from ray_app.storage import Fetcher, apply_s3_settings, node_budget

# The time for Ray to start its processes, and for these to load detectors. Machines that an
# autoscaler starts need minutes more.
STARTING_S = 15.0
# PUT requests for the run directory, in addition to one per block and the parts of a manifest:
# summaries, report, log, lease.
FEW = 12
GETS_PER_BLOCK = 3  # Its members, and its rows when they are compacted.
EXAMPLES = 2  # Of refused members, per status.


@apply_s3_settings
def plan_run(
    config: ScoreConfig,
    *,
    probe: int = 64,
    cluster: ClusterDescription | None = None,
    price_per_hour: float | None = None,
) -> plan_model.Plan:
    """Estimate the time and the cost of a run before it starts.

    The source is listed, and a sample of its files is scored on this machine to measure the speed.
    This fetches the weights of the detectors.

    Args:
        config: The config of the run.
        probe: The number of members (files) to score, to measure the speed. 0 predicts no speed.
        cluster: The machines. None uses those of the config, or else this machine.
        price_per_hour: The price of all machines together. None uses that of the config.

    Returns:
        The plan: the work, the processes, the expected time, and the cost.

    Raises:
        ConfigError: If the source is empty, or a card is unknown.
        IdentityError: If `config.out` is the run of another command.
        DetectorError: If weights are missing, or a licence was not accepted.
    """
    if not config.source:
        raise ConfigError("the argument SOURCE is missing", hint="run touchstone plan SOURCE")
    config = apply_cluster(config, cluster, price_per_hour)
    session.require_prices(config)
    settings = identity.resolve(config, RunDirectory.open(config.out) if config.out else None)
    check_detectors(settings)
    config = settings.config
    machines = _machines(config, cluster)
    spec = settings.spec(machines.gpus)
    layout, groups, memory = _layout(config, spec, machines)
    fetcher = create_fetcher(config.source, config.retry, allow_private=config.allow_private)
    before = find_earlier_work(settings, spec)
    source, listing = _survey_source(settings, spec, before, fetcher, probe)
    blocks = len(before.pending) if before else 0
    blocks = blocks or _count_blocks(layout.block_plan(spec.slots), source)
    # Rows go to a store that bills requests if the run is in one. If there is no run directory yet,
    # the source decides.
    is_store = session.is_billed(config.out) if config.out else bool(source.billed)
    used = layout.limited_to(blocks)
    work, pools = None, list[PlannedPool]()
    if source.sample:
        decode_bytes = _decode_bytes(config, machines)
        work = score_sample(
            config, spec, layout, groups, fetcher, source.sample, decode_bytes=decode_bytes
        )
        per_member = blocks / source.members
        pools = read_pools(
            spec, used, work, machines, blocks_per_member=per_member, is_store=is_store
        )
    time_s = _time(spec, work, pools, source, listing.seconds)
    lists = source.lists * (before is None or before.state != "unfinished")
    requests = _requests(spec, source, listing, blocks, lists=lists, is_store=is_store)
    bytes_read = _bytes_read(source, work) + listing.bytes_read
    return plan_model.Plan(
        members=source.members,
        size_bytes=source.size_bytes,
        unknown_sizes=source.unsized,
        kinds={kind: plan_model.PlannedKind(**counts) for kind, counts in source.kinds.items()},
        refused_in_listing=dict(source.refused),
        run=describe_progress(RunDirectory.open(config.out), before, blocks, source.members)
        if config.out and before
        else None,
        unlike=_unlike(config, spec, work),
        cluster=_cluster(config, cluster, machines),
        kind=layout.kind,
        layout=layout.described,
        block_members=layout.block_members,
        workers=layout.workers,
        process_bytes=memory.process_bytes,
        memory=plan_model.PlannedMemory(
            **memory.model_dump(), worst_bytes=worst_bytes(config.limits)
        ),
        blocks=blocks,
        listing=listing,
        groups=[list(group) for group in groups.groups] if groups else None,
        **_describe_ensemble(spec, work),
        probe=_probe(spec, work, len(source.sample)) if work else None,
        stages=[stage for pool in pools for stage in pool.stages()],
        bottleneck=find_bottleneck(spec, layout, used, pools, blocks, machines) if pools else None,
        forecast=time_s,
        **(_costs(spec, work, pools) if work else {}),
        requests=requests,
        bytes_read=bytes_read,
        prices=config.prices.model_dump(mode="json"),
        **_bill(config, requests, bytes_read if source.billed else 0, source.members, time_s),
    )


def _survey_source(
    settings: identity.Settings,
    spec: ScoringSpec,
    before: Listing | None,
    fetcher: Fetcher,
    sample: int,
) -> tuple[Survey, plan_model.PlannedListing]:
    """List the members that the run would score.

    Folders that could not be listed are reported on stderr.

    Args:
        settings: The settings of the run.
        spec: The scoring specification.
        before: The work of an earlier command; None for a new run.
        fetcher: Reads lists and containers.
        sample: The number of members to sample.
    """
    start = time.monotonic()
    source = survey(
        members_to_score(settings, before, fetcher),
        sample=sample,
        max_bytes=spec.limits.max_bytes,
        progress=ProgressLog("listing").count,
    )
    closed = source.closed_folders
    if closed.count:
        sentence = describe_closed_folders(closed.count, closed.example)
        print(f"listing: {sentence}", file=sys.stderr, flush=True)
    listing = plan_model.PlannedListing(
        seconds=round(time.monotonic() - start, 2),
        gets=fetcher.counts["requests"],
        bytes_read=fetcher.bytes_read,
    )
    return source, listing


def _machines(config: ScoreConfig, cluster: ClusterDescription | None) -> PlannedMachines:
    """Return the machines of a described cluster, or else nodes like this machine."""
    cpus = config.cluster.cpus or node_budget.usable_cores()
    gpus = config.cluster.gpus or 0
    if cluster is not None:
        memory_bytes = cluster.memory_bytes or math.inf
        return PlannedMachines(cpus, gpus, cluster.workers, cluster.smallest_bytes, memory_bytes)
    nodes = max(cpus / node_budget.usable_cores(), 1)
    node_bytes = node_budget.node_memory()
    return PlannedMachines(cpus, gpus, math.ceil(nodes), node_bytes, RAY_SHARE * node_bytes * nodes)


def _layout(
    config: ScoreConfig, spec: ScoringSpec, machines: PlannedMachines
) -> tuple[ScoringLayout, DetectorGroups | None, document.Memory]:
    """Return the layout of the run.

    Returns:
        The processes, the groups of detectors that take turns in each process, and the memory of a
        node that the processes need.
    """
    cpus, gpus = machines.cpus, machines.gpus
    nodes, node_bytes = machines.nodes, machines.node_bytes
    groups = groups_for(config, spec, cpus, gpus, nodes, node_bytes)
    layout = layout_for(config, spec, groups, cpus, gpus, machines.memory_bytes)
    return layout, groups, estimate_memory(config, spec, groups, layout, nodes, node_bytes)


def _decode_bytes(config: ScoreConfig, machines: PlannedMachines) -> int:
    """Return the memory that large images of the sample may use together.

    It is that of a node of the run, but no more than this machine can provide.
    """
    local_bytes = node_budget.node_memory()
    node_bytes = min(machines.node_bytes or local_bytes, local_bytes)
    return config.cluster.decode_bytes or node_budget.compute_budget(node_bytes)


def _count_blocks(plan: BlockPlan, source: Survey) -> int:
    """Return the number of blocks, if all members have about the mean size."""
    blocks, remaining, limit = 0, source.members, source.members
    sizes = iter_block_sizes(plan)
    if plan.max_block_bytes is not None and source.mean_bytes:
        limit = max(int(plan.max_block_bytes / source.mean_bytes), 1)
    while remaining > 0:
        remaining, blocks = remaining - min(next(sizes), limit), blocks + 1
    return blocks


def _time(
    spec: ScoringSpec,
    work: SampleWork | None,
    pools: Sequence[PlannedPool],
    source: Survey,
    listing_s: float,
) -> plan_model.PlannedTime | None:
    """Return the hours to start, to list, and to score all members at the rate of the slowest pool.

    The start of machines by an autoscaler is not included.

    Args:
        spec: The scoring specification.
        work: The work on the sample, or None.
        pools: The pools with their rates.
        source: The members.
        listing_s: The seconds of the listing.

    Returns:
        None if the time is unknown.
    """
    if work is None and source.members:
        return None
    rate = min((pool.images_per_s for pool in pools), default=None)
    basis = MEASURED if work and work.has_scored else ESTIMATED if work else "nothing to do"
    seconds = STARTING_S + listing_s + (source.members / rate if rate else 0.0)
    per_member = _bytes_read(source, work) / max(source.members, 1)
    return plan_model.PlannedTime(
        images_per_s=rate,
        hours=seconds / 3600,
        bytes_per_s=None if rate is None else round(rate * per_member),
        starting_s=STARTING_S,
        listing_s=listing_s,
        basis=basis,
        assumed_gmac_per_s=GMAC_PER_S["gpu"] if basis == ESTIMATED else None,
    )


def _bytes_read(source: Survey, work: SampleWork | None) -> int:
    """Return the bytes of all members, with the mean of the sample for members of unknown size."""
    mean = work.counts[MEMBER_BYTES] / len(work.outcomes) if work else source.mean_bytes
    return source.size_bytes + round(source.unsized * mean)


def _probe(spec: ScoringSpec, work: SampleWork, sample_size: int) -> plan_model.ProbeResult:
    """Return the statuses of the sample, with examples. `sample_size` members were drawn."""
    statuses, examples = dict[str, int](), dict[str, list[plan_model.ProbeExample]]()
    for outcome in work.outcomes:
        statuses[outcome.status] = statuses.get(outcome.status, 0) + 1
        of_status = examples.setdefault(outcome.status, []) if outcome.detail is not None else []
        if len(of_status) < EXAMPLES:
            member = outcome.member
            of_status.append(
                plan_model.ProbeExample(member.uri, member.member, outcome.detail or "")
            )
    members = len(work.outcomes)
    refused = members - statuses.get(Status.OK, 0)
    return plan_model.ProbeResult(
        sample_size=sample_size,
        members=members,
        scored=members if work.has_scored else 0,
        score_basis=MEASURED if work.has_scored else ESTIMATED,
        device=spec.device,
        processes=work.processes,
        statuses=dict(sorted(statuses.items(), key=lambda item: -item[1])),
        refused=refused,
        refused_share=proportion(refused, members, "no member was tried"),
        examples=examples,
        bytes_per_member=round(work.counts[MEMBER_BYTES] / members),
    )


def _unlike(config: ScoreConfig, spec: ScoringSpec, work: SampleWork | None) -> str | None:
    """Return why all verdicts of the run would abstain, because the archive is unlike the calibration.

    The reason comes from the last summary of the run, or else from the sample.

    Args:
        config: The settings of the run.
        spec: The ensemble.
        work: The work on the sample, or None.

    Returns:
        None if the archive is not unlike the images of the calibration, or was not compared.
    """
    run = RunDirectory.open(config.out) if config.out else None
    if run is not None and run.store.exists("summary.json"):
        comparison = run.read_json("summary.json").get("guarantee") or {}
        unlike: str | None = comparison.get("unlike")
        return unlike
    if work is None or config.waive_guarantee or not guarantee.has_comparison(spec.ensemble):
        return None
    tally = guarantee.ArchiveTally(spec)
    for rows in work.rows:
        tally.add(rows)
    return guarantee.describe_unlike(guarantee.list_shifts(tally))


def _costs(spec: ScoringSpec, work: SampleWork, pools: Sequence[PlannedPool]) -> dict[str, Any]:
    """Return by key of the plan the time per image of each detector and of each cascade stage."""
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
        ResourceEstimate.from_spec(spec).second_stage_share,
        None,
    )
    if work.has_scored:
        fraction = work.counts.get(RESCORED, 0) / count
        second_s = work.counts.get(RESCORED_MS, 0) / 1000 / count
        seconds = {"first": total_s - second_s, "second": second_s}
    return plan_model.PlannedCascade(
        first=list(spec.first), second=list(spec.late), share=fraction, seconds_per_image=seconds
    )


def _requests(
    spec: ScoringSpec,
    source: Survey,
    listing: plan_model.PlannedListing,
    blocks: int,
    *,
    lists: int,
    is_store: bool,
) -> plan_model.PlannedRequests:
    """Return the requests that a store bills.

    Args:
        spec: The scoring specification.
        source: The members.
        listing: The requests of the listing.
        blocks: The number of blocks.
        lists: The number of LIST requests.
        is_store: Whether the rows are in a store that bills requests.
    """
    per_block = 1 + bool(spec.localizers) + len(spec.features)
    puts = blocks * per_block + math.ceil(blocks / cut_blocks.BLOCKS_PER_FILE) + FEW
    gets = source.gets + listing.gets + is_store * blocks * GETS_PER_BLOCK
    return plan_model.PlannedRequests(list=lists, get=gets, put=is_store * puts)


def _bill(
    config: ScoreConfig,
    requests: plan_model.PlannedRequests,
    billed_bytes: int,
    members: int,
    time_s: plan_model.PlannedTime | None,
) -> dict[str, Any]:
    """Return the cost of bytes and hours, and the fraction of the work that the limits allow.

    Without a probe, the cost of machines is unknown.

    Args:
        config: The settings of the run, with prices and limits.
        requests: The requests.
        billed_bytes: The bytes that leave a store.
        members: The number of members.
        time_s: The planned time, or None if it is unknown.
    """
    hours = time_s.hours if time_s else None
    cost = session.compute_cost(
        config.prices, hours or 0.0, {session.GETS: requests.get, session.BYTES: billed_bytes}
    )
    each = cost.total / members * 1000 if members and hours is not None else None
    needed = ((config.max_hours, hours), (config.max_cost, hours and cost.total))
    fractions = [limit / need for limit, need in needed if limit is not None and need]
    return {
        "cost": plan_model.PlannedCost(
            compute=None if hours is None else cost.compute,
            egress=cost.egress,
            total=cost.total,
            compute_share=None if hours is None else cost.compute_share,
            per_1000_members=each,
        ),
        "stops": plan_model.PlannedStops(
            max_hours=config.max_hours,
            max_cost=config.max_cost,
            share=None if hours is None else min([1.0, *fractions]),
        ),
    }


def _describe_ensemble(spec: ScoringSpec, work: SampleWork | None) -> dict[str, Any]:
    """Return by key of the plan what scores the images, and what the detectors share."""
    card, guaranteed, profile = spec.ensemble, spec.ensemble.guarantee, None
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
        "guarantee": guaranteed
        and plan_model.PlannedGuarantee(
            target_fpr=guaranteed.target_fpr,
            confidence=guaranteed.confidence,
            upper_bound=guaranteed.upper_bound,
            population=card.population.what if card.population else None,
            otherwise=departures(card.settings, spec.precision, spec.resize),
        ),
        "views": [view.name for view in spec.views] or None,
        "profile": profile,
        "features": {name: facts["width"] for name, facts in spec.features.items()} or None,
        "tensors": _tensors(spec),
        "backbones": _backbones(spec),
        "pools": [list(pool) for pool in spec.all_pools],
        "gmac_per_image": round(count_gmac(spec), 3),
    }


def _described_fraction(spec: ScoringSpec, work: SampleWork | None) -> float | None:
    if work is None:
        return None
    if not work.has_scored:
        return ResourceEstimate.from_spec(spec).share_described
    return work.counts.get(DESCRIBED, 0) / len(work.outcomes)


def _tensors(spec: ScoringSpec) -> list[plan_model.PlannedTensor]:
    """Return each distinct preprocessing with the detectors that share its tensor."""
    users = list(spec.inputs.items())
    if spec.describer and spec.describer_preprocessing:
        users.append((spec.describer.name, spec.describer_preprocessing))
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
            key = (spec.inputs[name], spec.precision[name])
            groups.setdefault(card.backbone.name, {}).setdefault(key, []).append(name)
    return [
        plan_model.PlannedBackbone(name=name, runs_once_for=list(users.values()))
        for name, users in groups.items()
    ]


def _cluster(
    config: ScoreConfig, cluster: ClusterDescription | None, machines: PlannedMachines
) -> plan_model.PlannedCluster:
    name = cluster.name if cluster else "as stated" if config.cluster.cpus else "this machine"
    nodes = cluster.nodes if cluster else ()
    return plan_model.PlannedCluster(
        name=name,
        cpus=machines.cpus,
        gpus=machines.gpus,
        price_per_hour=config.prices.per_hour,
        nodes=[plan_model.PlannedNodes(**node.model_dump()) for node in nodes],
    )
