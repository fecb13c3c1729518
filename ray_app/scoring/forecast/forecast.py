"""What a scoring run will do and cost, before anything is spent: `forecast` takes a survey, a short probe, rates and prices together.

Starts no cluster and writes nothing: cores and GPUs are those described or stated in the config, else this machine's.
"""

import math
import os
import time
from typing import Any

from ray_app.archives import BlockPlan, block_sizes, cut_blocks, fetcher_of
from ray_app.cluster.config import RAY_SHARE
from ray_app.errors import ConfigError
from ray_app.images.limits import worst_bytes
from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.inference.spec import departures
from ray_app.reports import plan_model
from ray_app.runs import RunDirectory
from ray_app.scoring import identity, session
from ray_app.scoring.backlog import listing_log
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.forecast.prediction import Passes, backbones_of, predicted
from ray_app.scoring.forecast.probe import Probe
from ray_app.scoring.forecast.rates import ClusterDescription, planned_for
from ray_app.scoring.forecast.survey import Survey, members_to_score, standing, survey
from ray_app.scoring.passes import plan_passes
from ray_app.scoring.run import check_detectors, layout_for, memory_of, widest_layout
from ray_app.storage import node_budget, strip_secrets

# Of the run directory, besides one PUT per block and the parts of a manifest: summaries, report, log, lease.
FEW = 12
GETS_PER_BLOCK = 3  # its members, and its rows when they are compacted


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
    nodes, node_bytes, memory_bytes = _memory_there(cluster, cpus)
    spec = resolved.spec(gpus)
    plan = plan_passes(config, spec, cpus=cpus, gpus=gpus, nodes=nodes, node_bytes=node_bytes)
    passes: Passes = [(one, layout_for(config, one, cpus, gpus, memory_bytes)) for one in plan.specs()]
    layout = widest_layout([one for _, one in passes])
    fetcher = fetcher_of(config.source, config.retry, allow_private=config.allow_private)
    before, began = standing(resolved, spec), time.monotonic()
    items = members_to_score(config, before, fetcher)
    found = survey(items, sample=probe, max_bytes=spec.limits.max_bytes, progress=listing_log(config))
    listing = plan_model.PlannedListing(
        seconds=round(time.monotonic() - began, 2), gets=fetcher.counts["requests"], bytes_read=fetcher.bytes_read
    )
    blocks = len(before.pending) if before else 0
    blocks = blocks or _blocks(layout.block_plan(spec.slots), found.members, found.mean_bytes)
    # Rows go to a store that bills requests: where the run is, or, as long as neither is known, where the source is.
    is_store = session.is_billed(config.out) if config.out else bool(found.billed)
    prediction, probed = predicted(
        config, passes, fetcher, found, (cpus, gpus), blocks=blocks, listing_s=listing.seconds, remote_out=is_store
    )
    memory = memory_of(config, plan, layout, nodes, node_bytes)
    content: dict[str, Any] = {
        "members": found.members,
        "size_bytes": found.size_bytes,
        "unknown_sizes": found.unsized,
        "kinds": found.kinds,
        "refused_in_listing": dict(found.refused),
        "run": None if before is None else before.facts(blocks, found.members),
        "table": config.table and strip_secrets(config.table),
        "cluster": _cluster(config, cluster, cpus, gpus),
        "kind": layout.kind,
        "layout": layout.described,
        "block_members": layout.block_members,
        "workers": layout.workers,
        "process_bytes": memory.process_bytes,
        "memory": plan_model.PlannedMemory(**memory.given(), worst_bytes=worst_bytes(config.limits)),
        "blocks": blocks,
        "listing": listing,
        **prediction,
        **_work(spec, probed),
    }
    lists_anew = before is None or before.state != "unfinished"
    bill = _bill(config, spec, found, content, passes=len(passes), lists=found.lists * lists_anew, is_store=is_store)
    return plan_model.Plan.model_validate(content | bill)


def _bill(
    config: ScoreConfig, spec: ScoringSpec, found: Survey, content: dict[str, Any], *, passes: int, lists: int, is_store: bool
) -> dict[str, Any]:
    """Requests, bytes, and what they and the hours cost; the machines' part is not known without a probe. `content`: of the plan so far."""
    blocks, listing, probe, time_s = (content[key] for key in ("blocks", "listing", "probe", "forecast"))
    mean_bytes = probe.bytes_per_member if probe and found.unsized else found.mean_bytes
    per_block = 1 + bool(spec.localizers) + len(spec.features)
    gets = passes * found.gets + listing.gets + is_store * blocks * (GETS_PER_BLOCK + (passes - 1) * (passes + 2) // 2)
    puts = is_store * (blocks * (per_block + passes - 1) + math.ceil(blocks / cut_blocks.BLOCKS_PER_FILE) + FEW)
    expected = passes * found.expected_bytes(mean_bytes) + listing.bytes_read
    hours = time_s.hours if time_s else None
    counts = {session.GETS: gets, session.PUTS: puts, session.LISTS: lists, session.BYTES: expected * bool(found.billed)}
    cost = session.spent(config.prices, hours or 0.0, counts)
    unknown = {"compute": None, "compute_share": None} if hours is None else {}
    each = cost.total / found.members * 1000 if found.members and hours is not None else None
    needed = ((config.max_hours, hours), (config.max_cost, hours and cost.total))
    shares = [limit / much for limit, much in needed if limit is not None and much]
    return {
        "requests": {"list": lists, "get": gets, "put": puts},
        "bytes_read": expected,
        "prices": config.prices.model_dump(mode="json"),
        "cost": plan_model.PlannedCost(**{**cost.given(), **unknown, "per_1000_members": each}),
        "stops": plan_model.PlannedStops(
            max_hours=config.max_hours, max_cost=config.max_cost, share=min([1.0, *shares]) if hours is not None else None
        ),
    }


def _work(spec: ScoringSpec, probed: Probe | None) -> dict[str, Any]:
    """Detectors, what they share, and what else was asked for; shares of the images are those that a probe found."""
    card, views = spec.ensemble, spec.stability
    return {
        "ensemble": card.name,
        "rule": card.rule,
        "detectors": list(spec.cards),
        "guarantee": _promised(spec),
        "views": [view.name for view in spec.views] or None,
        "stability": views and plan_model.PlannedStability(views=views.count, margin=views.margin, share=probed.near if probed else None),
        "profile": _profile(spec, probed.share_described if probed else None),
        "features": {name: facts["width"] for name, facts in spec.features.items()} or None,
        "tensors": _tensors(spec),
        "backbones": backbones_of(spec),
        "pools": [list(pool) for pool in spec.all_pools],
        "gmac_per_image": round(sum(ResourceEstimate.of(spec).pool_gmac), 3),
    }


def _profile(spec: ScoringSpec, share: float | None) -> plan_model.PlannedProfile | None:
    """Who names generators and who predicts prompts, of which share of the images."""
    profile = spec.ensemble.profile
    if profile is None:
        return None
    identifier = spec.identifier.name if spec.identifier else None
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


def _cluster(config: ScoreConfig, described: ClusterDescription | None, cpus: int, gpus: int) -> plan_model.PlannedCluster:
    name = described.name if described else "as stated" if config.cluster.cpus else "this machine"
    nodes = [plan_model.PlannedNodes(**node.model_dump()) for node in described.nodes] if described else ()
    return plan_model.PlannedCluster(name=name, cpus=cpus, gpus=gpus, price_per_hour=config.prices.per_hour, nodes=nodes)


def _blocks(plan: BlockPlan, members: int, mean_bytes: float) -> int:
    """Into how many blocks so many members are cut, if they are all of about this size."""
    blocks = 0
    sizes, most = block_sizes(plan), members
    if plan.max_block_bytes is not None and mean_bytes:
        most = max(int(plan.max_block_bytes / mean_bytes), 1)
    while members > 0:
        members, blocks = members - min(next(sizes), most), blocks + 1
    return blocks


def _cores_here() -> int:
    return len(os.sched_getaffinity(0))


def _memory_there(described: ClusterDescription | None, cpus: int) -> tuple[int, int | None, float]:
    """How many nodes work, the memory of the smallest in bytes (None: not stated), and what Ray would schedule on in all.

    Without a description, nodes are like this one.
    """
    if described is not None:
        return described.workers, described.smallest_bytes, described.memory_bytes or math.inf
    like_this = cpus / _cores_here()
    return max(math.ceil(like_this), 1), node_budget.node_memory(), RAY_SHARE * node_budget.node_memory() * max(like_this, 1)
