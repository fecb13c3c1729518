"""What a scoring run will do and cost, before anything is spent: `forecast` takes a survey, a short probe, rates and prices together.

Starts no cluster and writes nothing: cores and GPUs are those described or stated in the config, else this machine's.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict

from ray_app.archives import BlockPlan, block_sizes, cut_blocks, fetcher_of
from ray_app.cluster.config import RAY_SHARE
from ray_app.errors import ConfigError, Status
from ray_app.images.limits import worst_bytes
from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.inference.spec import departures
from ray_app.reports import plan_model
from ray_app.reports.run import measured_rate
from ray_app.runs import RunDirectory
from ray_app.scoring import identity, session
from ray_app.scoring.backlog import listing_log
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.forecast.pass_forecast import backbones_of, costs_of, forecast_passes, pass_facts, pass_layouts, rate_of
from ray_app.scoring.forecast.probe import Probe
from ray_app.scoring.forecast.rates import ESTIMATED, ClusterDescription, planned_for
from ray_app.scoring.forecast.survey import RunProgress, Survey, members_to_score, standing, survey
from ray_app.scoring.layout import GMAC_PER_S, ScoringLayout
from ray_app.scoring.passes import PassPlan, plan_passes
from ray_app.scoring.run import check_detectors, layout_of_passes, memory_of
from ray_app.storage import Fetcher, node_budget, strip_secrets

# Of the run directory, besides one PUT per block and the parts of a manifest: summaries, report, log, lease.
FEW = 12
GETS_PER_BLOCK = 3  # its members, and its rows when they are compacted
STARTING_S = 15.0  # for Ray to start its processes and these to load detectors; machines that an autoscaler brings take minutes more


def forecast(
    config: ScoreConfig, *, probe: int = 64, cluster: ClusterDescription | None = None, price_per_hour: float | None = None
) -> plan_model.Plan:
    """The plan. `probe` members, drawn evenly, are read, decoded and scored for the rates (0 = no probe).

    Weights are fetched. Raises ConfigError for an empty source or unknown card, IdentityError where `config.out` is another command's
    run, DetectorError for weights that are missing.
    """
    if not config.source:
        raise ConfigError("nothing to plan: SOURCE is missing", hint="touchstone plan SOURCE")
    config = planned_for(config, cluster, price_per_hour)
    session.require_prices(config)
    resolved = identity.resolve(config, RunDirectory.open(config.out) if config.out else None)
    check_detectors(resolved)
    config = resolved.config
    cpus, gpus = config.cluster.cpus or _cores_here(), config.cluster.gpus or 0
    spec = resolved.spec(gpus)
    nodes, node_bytes = _nodes(cluster, cpus)
    plan = plan_passes(config, spec, cpus=cpus, gpus=gpus, nodes=nodes, node_bytes=node_bytes)
    passes = pass_layouts(config, plan, cpus, gpus, _memory_bytes(cluster, cpus))
    layout = layout_of_passes(config, plan, cpus, gpus, _memory_bytes(cluster, cpus))
    fetcher = fetcher_of(config.source, config.retry, allow_private=config.allow_private)
    before, began = standing(resolved, spec), time.monotonic()
    items = members_to_score(config, before, fetcher)
    found = survey(items, sample=probe, max_bytes=spec.limits.max_bytes, progress=listing_log(config))
    blocks = (
        len(before.pending) if before and len(before.pending) else _blocks(layout.block_plan(spec.slots), found.members, found.mean_bytes)
    )
    listing = plan_model.PlannedListing(
        seconds=round(time.monotonic() - began, 2), gets=fetcher.counts["requests"], bytes_read=fetcher.bytes_read
    )
    probed, prediction = _predicted(config, passes, fetcher, found, blocks, listing.seconds)
    already = None if before is None else _standing_facts(before, found, blocks)
    archive = found.facts(already, _cluster_facts(config, cluster, cpus, gpus), config.table and strip_secrets(config.table))
    work = _work_facts(spec, layout, probed, memory=_memory(config, plan, layout, nodes, node_bytes), blocks=blocks, listing=listing)
    bill = _bill(config, spec, found, archive.run, work, prediction)
    return plan_model.Plan.of_parts(archive, work, prediction, bill)


def _predicted(
    config: ScoreConfig,
    passes: Sequence[tuple[ScoringSpec, ScoringLayout]],
    fetcher: Fetcher,
    found: Survey,
    blocks: int,
    listing_s: float,
) -> tuple[Probe | None, plan_model.PlannedPrediction]:
    """What a probe of the sample says: stages, the slowest, the rate. All of it None where nothing was drawn, but for the passes."""
    if not found.sample:
        planned_time = None if found.members else _forecast_facts(None, "nothing to do", 0, 0.0, listing_s, passes=0)
        facts = pass_facts(passes, ())
        return None, plan_model.PlannedPrediction(passes=facts, probe=None, stages=(), bottleneck=None, forecast=planned_time)
    remote_out = _is_store(config, found)
    cpus, gpus = config.cluster.cpus or _cores_here(), config.cluster.gpus or 0
    made = forecast_passes(passes, fetcher, found.sample, blocks=blocks, members=found.members, cpus=cpus, gpus=gpus, remote_out=remote_out)
    slowest = min(made, key=lambda one: one.rates.images_per_s)
    probed, rates, pace, layout = slowest.probe, slowest.rates, slowest.pace, slowest.layout
    busy = layout.limited_to(blocks)
    cut = f"{blocks} block{'s' * (blocks > 1)}"
    few = f"so few files make {cut}, for {busy.workers} of {layout.workers} processes: a smaller cluster is as fast"
    mean_bytes = probed.mean_bytes if found.unsized else found.mean_bytes
    costs, million = costs_of(config, made)
    return probed, plan_model.PlannedPrediction(
        passes=pass_facts(passes, made),
        slowest_pass=1 + made.index(slowest) if len(made) > 1 else None,
        costs=costs,
        million=million,
        probe=_probe_facts(slowest.spec, probed, pace.scored_by),
        cascade=_cascade(config, slowest.spec, probed, rates.images_per_s),
        stages=[plan_model.PlannedStage(**asdict(stage)) for stage in rates.stages],
        bottleneck=plan_model.PlannedBottleneck(
            stage=rates.bottleneck.stage,
            advice=few if busy.workers < layout.workers else rates.advice,
            scorers_busy=rates.busy,
        ),
        forecast=_forecast_facts(rate_of(made), pace.scored_by, found.members, mean_bytes, listing_s, passes=len(made)),
    )


def _bill(
    config: ScoreConfig,
    spec: ScoringSpec,
    found: Survey,
    run: plan_model.PlannedRun | None,
    work: plan_model.PlannedWork,
    prediction: plan_model.PlannedPrediction,
) -> plan_model.PlannedBill:
    """Requests, bytes and what they and the hours cost; without a probe the machines' part is not known."""
    blocks, listing, is_store = work.blocks, work.listing, _is_store(config, found)
    mean_bytes = prediction.probe.bytes_per_member if prediction.probe and found.unsized else found.mean_bytes
    per_block = 1 + bool(spec.localizers) + len(spec.features)
    passes = len(prediction.passes or (None,))
    lists_anew = run is None or run.state != "unfinished"
    requests = plan_model.PlannedRequests(
        list=found.lists * lists_anew,
        get=passes * found.gets + listing.gets + is_store * blocks * (GETS_PER_BLOCK + (passes - 1) * (passes + 2) // 2),
        put=is_store * (blocks * (per_block + passes - 1) + math.ceil(blocks / cut_blocks.BLOCKS_PER_FILE) + FEW),
    )
    expected = passes * found.expected_bytes(mean_bytes) + listing.bytes_read
    hours = prediction.forecast.hours if prediction.forecast else None
    counts = {
        session.GETS: requests.gets,
        session.PUTS: requests.puts,
        session.LISTS: requests.lists,
        session.BYTES: expected * bool(found.billed),
    }
    cost = session.spent(config.prices, hours or 0.0, counts)
    known = cost.facts().given() if hours is not None else cost.facts().given() | {"compute": None, "compute_share": None}
    each = cost.total / found.members * 1000 if found.members and hours is not None else None
    return plan_model.PlannedBill(
        requests=requests,
        bytes_read=expected,
        prices=config.prices.model_dump(mode="json"),
        cost=plan_model.PlannedCost(**known, per_1000_members=each),
        stops=_stops(config, hours, cost.total),
    )


def _work_facts(
    spec: ScoringSpec,
    layout: ScoringLayout,
    probed: Probe | None,
    *,
    memory: plan_model.PlannedMemory,
    blocks: int,
    listing: plan_model.PlannedListing,
) -> plan_model.PlannedWork:
    """Detectors, what they share, and the processes they run in."""
    cost, views = ResourceEstimate.of(spec), spec.stability
    return plan_model.PlannedWork(
        ensemble=spec.ensemble.name,
        rule=spec.ensemble.rule,
        detectors=list(spec.cards),
        guarantee=_promised(spec),
        views=[view.name for view in spec.views] or None,
        stability=plan_model.PlannedStability(views=views.count, margin=views.margin, share=probed.near if probed else None)
        if views
        else None,
        profile=_profile(spec, probed),
        features={name: facts["width"] for name, facts in spec.features.items()} or None,
        tensors=_tensors(spec),
        backbones=backbones_of(spec),
        pools=[list(pool) for pool in spec.all_pools],
        kind=layout.kind,
        layout=layout.described,
        block_members=layout.block_members,
        workers=layout.workers,
        process_bytes=memory.process_bytes,
        gmac_per_image=round(sum(cost.pool_gmac), 3),
        memory=memory,
        blocks=blocks,
        listing=listing,
    )


def _profile(spec: ScoringSpec, probed: Probe | None) -> plan_model.PlannedProfile | None:
    """Who names generators and who predicts prompts, of which share of the images."""
    profile = spec.ensemble.profile
    if profile is None:
        return None
    identifier, share = spec.identifier.name if spec.identifier else None, probed.share_described if probed else None
    if spec.describer is None:
        return plan_model.PlannedProfile(identifier=identifier, describer=None)
    return plan_model.PlannedProfile(identifier=identifier, describer=spec.describer.name, describe=profile.describe, share=share)


def _promised(spec: ScoringSpec) -> plan_model.PlannedGuarantee | None:
    """What the ensemble's card guarantees, and why it would not hold whatever the archive is like; None where it promises nothing."""
    card, promise = spec.ensemble, spec.ensemble.guarantee
    if promise is None:
        return None
    return plan_model.PlannedGuarantee(
        target_fpr=promise.target_fpr,
        confidence=promise.confidence,
        population=card.population.what if card.population else None,
        otherwise=departures(card.settings, spec.precision, spec.resize),
    )


def _tensors(spec: ScoringSpec) -> list[plan_model.PlannedTensor]:
    """Each distinct preprocessing with the detectors that share its tensor."""
    users = [(name, card.preprocessing) for name, card in spec.cards.items()]
    users += [(spec.describer.name, spec.describer.preprocessing)] if spec.describer and spec.describer.preprocessing else []
    return [
        plan_model.PlannedTensor(
            preprocessing=preprocessing.model_dump(mode="json", exclude_defaults=True),
            shape=preprocessing.shape,
            detectors=[name for name, its in users if its == preprocessing],
        )
        for preprocessing in spec.preprocessings
    ]


def _cluster_facts(config: ScoreConfig, described: ClusterDescription | None, cpus: int, gpus: int) -> plan_model.PlannedCluster:
    name = described.name if described else "as stated" if config.cluster.cpus else "this machine"
    nodes = [plan_model.PlannedNodes(**node.model_dump()) for node in described.nodes] if described else ()
    return plan_model.PlannedCluster(name=name, cpus=cpus, gpus=gpus, price_per_hour=config.prices.per_hour, nodes=nodes)


def _standing_facts(before: RunProgress, found: Survey, blocks: int) -> plan_model.PlannedRun:
    return plan_model.PlannedRun(
        url=before.run.store.url,
        state=before.state,
        blocks_done=len(before.blocks) - len(before.pending),
        members_done=before.blocks.members - before.pending.members,
        blocks_left=blocks,
        members_left=found.members,
    )


def _cascade(config: ScoreConfig, spec: ScoringSpec, probed: Probe, images_per_s: float) -> plan_model.PlannedCascade | None:
    """Of a cascade: the share of images that is expected to go on, and what a million images cost for either look by the time it takes."""
    if not spec.late:
        return None
    first_s = sum(probed.seconds[stage] for stage in ("fetch_cpu", "decode", "prepare")) / probed.members + probed.first_s
    second_s = probed.second_s
    million = config.prices.per_hour * 1e6 / images_per_s / 3600
    spent_s = {"first": first_s, "second": second_s}
    return plan_model.PlannedCascade(
        first=list(spec.first),
        second=list(spec.late),
        share=probed.share,
        seconds_per_image=spent_s if probed.scored else None,
        cost_per_million={look: million * one / (first_s + second_s) for look, one in spent_s.items()} if probed.scored else None,
    )


def _probe_facts(spec: ScoringSpec, probed: Probe, scored_by: str) -> plan_model.ProbeResult:
    refused = probed.members - probed.statuses[Status.OK]
    share = measured_rate(refused / probed.members, probed.members)
    return plan_model.ProbeResult(
        members=probed.members,
        scored=probed.scored,
        score_basis=scored_by,
        device=spec.device,
        statuses=dict(probed.statuses.most_common()),
        refused=refused,
        refused_share=plan_model.RefusedShare(**asdict(share)),
        examples=probed.examples,
        bytes_per_member=round(probed.mean_bytes),
    )


def _forecast_facts(
    images_per_s: float | None, basis: str, members: int, mean_bytes: float, listing_s: float, *, passes: int
) -> plan_model.PlannedTime:
    """`hours`: starting, listing, then all members at the rate of the slowest stage, in every pass. Machines that have yet to come are not
    in it.
    """
    starting_s = STARTING_S * max(passes, 1)
    return plan_model.PlannedTime(
        images_per_s=images_per_s,
        hours=(starting_s + listing_s + (members / images_per_s if images_per_s else 0.0)) / 3600,
        bytes_per_s=None if images_per_s is None else round(images_per_s * passes * mean_bytes),
        starting_s=starting_s,
        listing_s=listing_s,
        basis=basis,
        assumed_gmac_per_s=GMAC_PER_S["gpu"] if basis == ESTIMATED else None,
    )


def _stops(config: ScoreConfig, hours: float | None, total: float) -> plan_model.PlannedStops:
    """The limits that the run was given, and the share of the work that they leave it time or money for."""
    shares = [
        limit / needed for limit, needed in ((config.max_hours, hours), (config.max_cost, hours and total)) if limit is not None and needed
    ]
    return plan_model.PlannedStops(
        max_hours=config.max_hours, max_cost=config.max_cost, share=min([1.0, *shares]) if hours is not None else None
    )


def _blocks(plan: BlockPlan, members: int, mean_bytes: float) -> int:
    """Into how many blocks so many members are cut, if they are all of about this size."""
    blocks = 0
    sizes, most = block_sizes(plan), members
    if plan.max_block_bytes is not None and mean_bytes:
        most = max(int(plan.max_block_bytes / mean_bytes), 1)
    while members > 0:
        members, blocks = members - min(next(sizes), most), blocks + 1
    return blocks


def _is_store(config: ScoreConfig, found: Survey) -> bool:
    """Whether rows go to a store that bills requests: where the run is, or, as long as neither is known, where the source is."""
    return session.is_billed(config.out) if config.out else bool(found.billed)


def _cores_here() -> int:
    return len(os.sched_getaffinity(0))


def _nodes(described: ClusterDescription | None, cpus: int) -> tuple[int, int | None]:
    """How many nodes work, and the memory of the smallest; None where nobody has stated it. Without a description, nodes like this one."""
    if described is not None:
        return described.workers, described.smallest_bytes
    return max(math.ceil(cpus / _cores_here()), 1), node_budget.node_memory()


def _memory(config: ScoreConfig, plan: PassPlan, layout: ScoringLayout, nodes: int, node_bytes: int | None) -> plan_model.PlannedMemory:
    """What a run takes of a node's memory, of the smallest; and what no image within the limits takes more than to be decoded."""
    memory = memory_of(config, plan, layout, nodes, node_bytes)
    return plan_model.PlannedMemory(**memory.given(), worst_bytes=worst_bytes(config.limits))


def _memory_bytes(described: ClusterDescription | None, cpus: int) -> float:
    """What Ray would find: 70 % of this machine's memory, more where more cores are planned than it has."""
    if described is not None:
        return described.memory_bytes or math.inf
    return RAY_SHARE * node_budget.node_memory() * max(cpus / _cores_here(), 1)
