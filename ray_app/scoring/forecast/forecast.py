"""What a scoring run will do and cost, before anything is spent: `forecast` takes a survey, a short
probe, rates and prices together.

Starts no cluster and writes nothing: cores and GPUs are those described or stated in the config,
else this machine's.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_app.archives import BlockPlan, block_sizes, cut_blocks, fetcher_of
from ray_app.archives.progress import ProgressLog
from ray_app.cluster.config import RAY_SHARE
from ray_app.errors import ConfigError, Status
from ray_app.images.limits import worst_bytes
from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.inference.spec import departures
from ray_app.reports import plan_model
from ray_app.reports.folders import describe_closed_folders
from ray_app.reports.run import measured_rate
from ray_app.runs import RunDirectory
from ray_app.scoring import identity, session
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.forecast.probe import Probe, probe_members
from ray_app.scoring.forecast.rates import (
    ESTIMATED,
    ClusterDescription,
    Forecast,
    forecast_rates,
    planned_for,
)
from ray_app.scoring.forecast.survey import Survey, members_to_score, progress_of, standing, survey
from ray_app.scoring.layout import GMAC_PER_S, ScoringLayout
from ray_app.scoring.run import check_detectors, groups_for, layout_for, memory_of
from ray_app.storage import node_budget, with_s3_settings

# for Ray to start its processes and these to load detectors; machines that an autoscaler brings
# take minutes more
STARTING_S = 15.0
# to commit a block: a PUT and its answer, or a local file; not measured, since nothing is written
WRITE_S = {True: 0.1, False: 0.01}
# Of the run directory, besides one PUT per block and the parts of a manifest: summaries, report,
# log, lease.
FEW = 12
GETS_PER_BLOCK = 3  # its members, and its rows when they are compacted


@dataclass(frozen=True)
class PassForecast:
    """One pass over the files: what it scores with, its processes, and what a probe says of it."""

    spec: ScoringSpec
    layout: ScoringLayout
    probe: Probe
    rates: Forecast


@with_s3_settings
def forecast(
    config: ScoreConfig,
    *,
    probe: int = 64,
    cluster: ClusterDescription | None = None,
    price_per_hour: float | None = None,
) -> plan_model.Plan:
    """The plan. `probe` members, drawn evenly, are read, decoded and scored for the rates (0 = no
    probe), the same in every pass.

    Weights are fetched. Raises ConfigError for an empty source or unknown card, IdentityError where
    `config.out` is another command's run, DetectorError for weights that are missing.
    """
    if not config.source:
        raise ConfigError("nothing to plan: SOURCE is missing", hint="touchstone plan SOURCE")
    config = planned_for(config, cluster, price_per_hour)
    session.require_prices(config)
    settings = identity.resolve(config, RunDirectory.open(config.out) if config.out else None)
    check_detectors(settings)
    config = settings.config
    cpus, gpus = config.cluster.cpus or node_budget.usable_cores(), config.cluster.gpus or 0
    nodes, node_bytes, memory_bytes = _memory_there(cluster, cpus)
    spec = settings.spec(gpus)
    groups = groups_for(config, spec, cpus, gpus, nodes, node_bytes)
    layout = layout_for(config, spec, groups, cpus, gpus, memory_bytes)
    memory = memory_of(config, spec, groups, layout, nodes, node_bytes)
    fetcher = fetcher_of(config.source, config.retry, allow_private=config.allow_private)
    before, began = standing(settings, spec), time.monotonic()
    members = members_to_score(settings, before, fetcher)
    found = survey(
        members,
        sample=probe,
        max_bytes=spec.limits.max_bytes,
        progress=ProgressLog("listing").count,
    )
    if found.closed_folders.count:
        sentence = describe_closed_folders(found.closed_folders.count, found.closed_folders.example)
        print(f"listing: {sentence}", file=sys.stderr, flush=True)
    listing = plan_model.PlannedListing(
        seconds=round(time.monotonic() - began, 2),
        gets=fetcher.counts["requests"],
        bytes_read=fetcher.bytes_read,
    )
    blocks = len(before.pending) if before else 0
    blocks = blocks or _blocks(layout.block_plan(spec.slots), found.members, found.mean_bytes)
    # Rows go to a store that bills requests: where the run is, or, as long as neither is known,
    # where the source is.
    is_store = session.is_billed(config.out) if config.out else bool(found.billed)
    made = list[PassForecast]()
    if found.sample:
        probed = probe_members(
            spec, layout, fetcher, found.sample, write_s=WRITE_S[is_store] * blocks / found.members
        )
        rates = forecast_rates(
            layout.limited_to(blocks),
            probed.pace,
            spec.all_pools,
            cpus=cpus,
            gpus=gpus,
            gmac=_gmac(spec),
        )
        made.append(PassForecast(spec, layout, probed, rates))
    slowest = made[0] if made else None
    mean_bytes = (
        slowest.probe.mean_bytes if slowest is not None and found.unsized else found.mean_bytes
    )
    prediction = _predicted(
        config, made, slowest, blocks, found.members, mean_bytes, listing.seconds
    )
    lists = found.lists * (before is None or before.state != "unfinished")
    requests = _requests(spec, found, listing, 1, blocks, lists=lists, is_store=is_store)
    expected = found.expected_bytes(mean_bytes) + listing.bytes_read
    bill = _bill(
        config, requests, expected if found.billed else 0, found.members, prediction["forecast"]
    )
    return plan_model.Plan(
        members=found.members,
        size_bytes=found.size_bytes,
        unknown_sizes=found.unsized,
        kinds={kind: plan_model.PlannedKind(**counts) for kind, counts in found.kinds.items()},
        refused_in_listing=dict(found.refused),
        run=progress_of(RunDirectory.open(config.out), before, blocks, found.members)
        if config.out and before
        else None,
        cluster=_cluster(config, cluster, cpus, gpus),
        kind=layout.kind,
        layout=layout.described,
        block_members=layout.block_members,
        workers=layout.workers,
        process_bytes=memory.process_bytes,
        memory=plan_model.PlannedMemory(**memory.given(), worst_bytes=worst_bytes(config.limits)),
        blocks=blocks,
        listing=listing,
        groups=[list(group) for group in groups.groups] if groups else None,
        **prediction,
        **_work(spec, slowest.probe if slowest else None),
        requests=requests,
        bytes_read=expected,
        prices=config.prices.model_dump(mode="json"),
        **bill,
    )


# What is predicted: stages, the slowest of them, rate and hours, and what each detector takes.
def _predicted(
    config: ScoreConfig,
    made: Sequence[PassForecast],
    slowest: PassForecast | None,
    blocks: int,
    members: int,
    mean_bytes: float,
    listing_s: float,
) -> dict[str, Any]:
    """By the keys of a plan what the probes of all passes say. Without any, rate and hours are
    known only where there is nothing to do.
    """
    if slowest is None:
        nothing_to_do = (
            None if members else _time(None, "nothing to do", 0, 0.0, listing_s, passes=0)
        )
        return {"probe": None, "stages": (), "bottleneck": None, "forecast": nothing_to_do}
    probed, rates, layout = slowest.probe, slowest.rates, slowest.layout
    bottleneck, workers = rates.bottleneck, layout.limited_to(blocks).workers
    if workers < layout.workers:
        cut = f"{blocks} block{'s' * (blocks > 1)}"
        advice = f"so few files make {cut}, for {workers} of {layout.workers} processes: a smaller cluster is as fast"
        bottleneck = bottleneck.model_copy(update={"advice": advice})
    rate = rates.images_per_s
    refused = probed.members - probed.statuses[Status.OK]
    share = measured_rate(refused / probed.members, probed.members)
    return {
        "probe": plan_model.ProbeResult(
            members=probed.members,
            scored=probed.scored,
            score_basis=probed.pace.scored_by,
            device=slowest.spec.device,
            statuses=dict(probed.statuses.most_common()),
            refused=refused,
            refused_share=plan_model.RefusedShare(
                value=share.value, low=share.low, high=share.high
            ),
            examples=probed.examples,
            bytes_per_member=round(probed.mean_bytes),
        ),
        "cascade": _cascade(config, slowest) if slowest.spec.late else None,
        "stages": rates.stages,
        "bottleneck": bottleneck,
        "forecast": _time(
            rate, probed.pace.scored_by, members, mean_bytes, listing_s, passes=len(made)
        ),
        **_costs(config, made, rate),
    }


def _time(
    images_per_s: float | None,
    basis: str,
    members: int,
    mean_bytes: float,
    listing_s: float,
    *,
    passes: int,
) -> plan_model.PlannedTime:
    """`hours`: starting, listing, then all members at the rate of the slowest stage, in every pass.
    Machines that have yet to come are not in it.
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


def _costs(config: ScoreConfig, passes: Sequence[PassForecast], rate: float) -> dict[str, Any]:
    """What each detector takes of the time of an image, and what a million images take, by the
    price of the machines.
    """
    spent = {name: seconds for one in passes for name, seconds in one.probe.spent_s.items()}
    read = sum(one.probe.pace.on_core for one in passes)
    known = [seconds for seconds in spent.values() if seconds is not None]
    total = read + sum(known) + sum(one.probe.pace.write for one in passes)
    is_known = len(known) == len(spent) and total > 0
    hours = 1e6 / rate / 3600 if rate and math.isfinite(rate) and is_known else None
    cost = None if hours is None or not config.prices.per_hour else hours * config.prices.per_hour
    costs = {
        name: plan_model.PlannedDetector(
            ms_per_image=_ms(one.probe.alone_s[name]),
            spent_ms=_ms(seconds),
            share=seconds / total if is_known and seconds is not None else None,
            cost_per_million=cost * seconds / total
            if cost is not None and seconds is not None
            else None,
            basis=one.probe.pace.scored_by,
        )
        for one in passes
        for name, seconds in one.probe.spent_s.items()
    }
    million = plan_model.PlannedMillion(
        hours=hours, cost=cost, share_read=read / total if is_known else None
    )
    return {"costs": costs, "million": million}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 4)


def _cascade(config: ScoreConfig, one: PassForecast) -> plan_model.PlannedCascade:
    """The share of images that is expected to go on, and what a million images cost for either look
    by the time it takes.
    """
    probed = one.probe
    million = config.prices.per_hour * 1e6 / one.rates.images_per_s / 3600
    spent_s = {"first": probed.pace.on_core + probed.first_s, "second": probed.second_s}
    return plan_model.PlannedCascade(
        first=list(one.spec.first),
        second=list(one.spec.late),
        share=probed.share,
        seconds_per_image=spent_s if probed.scored else None,
        cost_per_million={
            look: million * seconds / sum(spent_s.values()) for look, seconds in spent_s.items()
        }
        if probed.scored
        else None,
    )


def _requests(
    spec: ScoringSpec,
    found: Survey,
    listing: plan_model.PlannedListing,
    passes: int,
    blocks: int,
    *,
    lists: int,
    is_store: bool,
) -> plan_model.PlannedRequests:
    """Requests that a store bills: for the source, and where `is_store` for the rows of each block
    and what each pass finds of it.
    """
    per_block = 1 + bool(spec.localizers) + len(spec.features)
    gets = (
        passes * found.gets
        + listing.gets
        + is_store * blocks * (GETS_PER_BLOCK + (passes - 1) * (passes + 2) // 2)
    )
    puts = is_store * (
        blocks * (per_block + passes - 1) + math.ceil(blocks / cut_blocks.BLOCKS_PER_FILE) + FEW
    )
    return plan_model.PlannedRequests(list=lists, get=gets, put=puts)


def _bill(
    config: ScoreConfig,
    requests: plan_model.PlannedRequests,
    billed_bytes: int,
    members: int,
    time_s: plan_model.PlannedTime | None,
) -> dict[str, Any]:
    """What bytes and hours cost, and how far the run's limits let it come; the machines' part is
    not known without a probe.
    """
    hours = time_s.hours if time_s else None
    cost = session.spent(
        config.prices, hours or 0.0, {session.GETS: requests.gets, session.BYTES: billed_bytes}
    )
    unknown = {"compute": None, "compute_share": None} if hours is None else {}
    each = cost.total / members * 1000 if members and hours is not None else None
    needed = ((config.max_hours, hours), (config.max_cost, hours and cost.total))
    shares = [limit / much for limit, much in needed if limit is not None and much]
    share = None if hours is None else min([1.0, *shares])
    return {
        "cost": plan_model.PlannedCost(**{**cost.given(), **unknown, "per_1000_members": each}),
        "stops": plan_model.PlannedStops(
            max_hours=config.max_hours, max_cost=config.max_cost, share=share
        ),
    }


# What does the work, and what for.
def _work(spec: ScoringSpec, probed: Probe | None) -> dict[str, Any]:
    """Detectors, what they share, and what else was asked for; shares of the images are those that
    a probe found.
    """
    card, promise, profile = spec.ensemble, spec.ensemble.guarantee, None
    if card.profile is not None:
        described = (
            {"describe": card.profile.describe, "share": probed.share_described if probed else None}
            if spec.describer
            else {}
        )
        who = {
            "identifier": spec.identifier and spec.identifier.name,
            "describer": spec.describer and spec.describer.name,
        }
        profile = plan_model.PlannedProfile.model_validate(who | described)
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


def _gmac(spec: ScoringSpec) -> float:
    """Billions of multiply-adds for one image."""
    return sum(ResourceEstimate.of(spec).pool_gmac)


def _tensors(spec: ScoringSpec) -> list[plan_model.PlannedTensor]:
    """Each distinct preprocessing with the detectors that share its tensor."""
    users = [(name, card.preprocessing) for name, card in spec.cards.items()]
    users += (
        [(spec.describer.name, spec.describer.preprocessing)]
        if spec.describer and spec.describer.preprocessing
        else []
    )
    return [
        plan_model.PlannedTensor(
            preprocessing=preprocessing.model_dump(mode="json", exclude_defaults=True),
            shape=preprocessing.shape,
            detectors=[name for name, its in users if its == preprocessing],
        )
        for preprocessing in spec.preprocessings
    ]


def _backbones(spec: ScoringSpec) -> list[plan_model.PlannedBackbone]:
    """Each named backbone with the groups of detectors for which it runs once per image."""
    groups: dict[str, dict[object, list[str]]] = {}
    for name, card in spec.cards.items():
        if card.backbone is not None:
            groups.setdefault(card.backbone.name, {}).setdefault(
                (card.preprocessing, spec.precision[name]), []
            ).append(name)
    return [
        plan_model.PlannedBackbone(name=name, runs_once_for=list(users.values()))
        for name, users in groups.items()
    ]


def _cluster(
    config: ScoreConfig, described: ClusterDescription | None, cpus: int, gpus: int
) -> plan_model.PlannedCluster:
    name = described.name if described else "as stated" if config.cluster.cpus else "this machine"
    nodes = (
        [plan_model.PlannedNodes(**node.model_dump()) for node in described.nodes]
        if described
        else ()
    )
    return plan_model.PlannedCluster(
        name=name, cpus=cpus, gpus=gpus, price_per_hour=config.prices.per_hour, nodes=nodes
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


def _memory_there(described: ClusterDescription | None, cpus: int) -> tuple[int, int | None, float]:
    """How many nodes work, the memory of the smallest in bytes (None: not stated), and what Ray
    would schedule on in all.

    Without a description, nodes are like this one.
    """
    if described is not None:
        return described.workers, described.smallest_bytes, described.memory_bytes or math.inf
    like_this = cpus / node_budget.usable_cores()
    return (
        max(math.ceil(like_this), 1),
        node_budget.node_memory(),
        RAY_SHARE * node_budget.node_memory() * max(like_this, 1),
    )
