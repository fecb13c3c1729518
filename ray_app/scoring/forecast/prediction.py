"""What a probe of the sample says of a run: every pass and each detector, the slowest stage, rate and hours (`predicted`)."""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_app.errors import Status
from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.inference.spec import counted_once
from ray_app.reports import plan_model
from ray_app.reports.run import measured_rate
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.forecast.probe import Probe, probe_members
from ray_app.scoring.forecast.rates import ESTIMATED, MEASURED, Forecast, ImagePace, forecast_rates
from ray_app.scoring.forecast.survey import Survey
from ray_app.scoring.layout import GMAC_PER_S, ScoringLayout
from ray_app.scoring.session import one_after_another
from ray_app.storage import Fetcher

STARTING_S = 15.0  # for Ray to start its processes and these to load detectors; machines that an autoscaler brings take minutes more
Passes = Sequence[tuple[ScoringSpec, ScoringLayout]]


@dataclass(frozen=True)
class PassForecast:
    """One pass: what it scores with, its processes, and what a probe said of it."""

    spec: ScoringSpec
    layout: ScoringLayout
    probe: Probe
    pace: ImagePace
    rates: Forecast


def predicted(
    config: ScoreConfig,
    passes: Passes,
    fetcher: Fetcher,
    found: Survey,
    machine: tuple[int, int],
    *,
    blocks: int,
    listing_s: float,
    remote_out: bool,
) -> tuple[dict[str, Any], Probe | None]:
    """Stages, the slowest of them, rate and hours by the keys of a plan, on a `machine` of so many cores and GPUs; and the probe of the
    slowest pass. All but the passes is None where nothing was drawn.

    Every pass is probed with the same sample, one after another, as a run has them in memory.
    """
    if not found.sample:
        nothing_to_do = None if found.members else _time(None, "nothing to do", 0, 0.0, listing_s, passes=0)
        return {"passes": _pass_facts(passes, ()), "probe": None, "stages": (), "bottleneck": None, "forecast": nothing_to_do}, None
    made = []
    for spec, layout in passes:
        probe, pace = probe_members(spec, layout, fetcher, found.sample, blocks=blocks, members=found.members, remote_out=remote_out)
        gmac = sum(ResourceEstimate.of(spec).pool_gmac)
        rates = forecast_rates(layout.limited_to(blocks), pace, spec.all_pools, cpus=machine[0], gpus=machine[1], gmac=gmac)
        made.append(PassForecast(spec, layout, probe, pace, rates))
        if len(passes) > 1:
            gc.collect()  # the detectors of one are gone before those of the next are loaded
    slowest = min(made, key=lambda one: one.rates.images_per_s)
    probed, rates, layout = slowest.probe, slowest.rates, slowest.layout
    busy = layout.limited_to(blocks)
    cut = f"{blocks} block{'s' * (blocks > 1)}"
    few = f"so few files make {cut}, for {busy.workers} of {layout.workers} processes: a smaller cluster is as fast"
    mean_bytes = probed.mean_bytes if found.unsized else found.mean_bytes
    rate = rates.images_per_s if len(made) == 1 else one_after_another([one.rates.images_per_s for one in made]) or 0.0
    facts = {
        "passes": _pass_facts(passes, made),
        "slowest_pass": 1 + made.index(slowest) if len(made) > 1 else None,
        "probe": _probe_facts(slowest.spec, probed, slowest.pace.scored_by),
        "cascade": _cascade(config, slowest.spec, probed, rates.images_per_s),
        "stages": rates.stages,
        "bottleneck": plan_model.PlannedBottleneck(
            stage=rates.bottleneck.stage, advice=few if busy.workers < layout.workers else rates.advice, scorers_busy=rates.busy
        ),
        "forecast": _time(rate, slowest.pace.scored_by, found.members, mean_bytes, listing_s, passes=len(made)),
        **_costs(config, made, rate),
    }
    return facts, probed


def _pass_facts(passes: Passes, found: Sequence[PassForecast]) -> list[plan_model.PlannedPass] | None:
    """The passes of a plan; None where there is one."""
    if len(passes) < 2:
        return None
    rates: list[float | None] = [round(one.rates.images_per_s, 3) for one in found]
    return [
        plan_model.PlannedPass(
            detectors=list(spec.cards),
            kind=layout.kind,
            layout=layout.described,
            workers=layout.workers,
            process_bytes=ResourceEstimate.of(spec).process_bytes,
            gmac_per_image=round(sum(ResourceEstimate.of(spec).pool_gmac), 3),
            backbones=backbones_of(spec),
            images_per_s=rate,
        )
        for (spec, layout), rate in zip(passes, rates or [None] * len(passes), strict=True)
    ]


def backbones_of(spec: ScoringSpec) -> list[plan_model.PlannedBackbone]:
    """Each named backbone with the groups of detectors for which it runs once per image."""
    groups: dict[str, dict[object, list[str]]] = {}
    for name, card in spec.cards.items():
        if card.backbone is not None:
            groups.setdefault(card.backbone.name, {}).setdefault((card.preprocessing, spec.precision[name]), []).append(name)
    return [plan_model.PlannedBackbone(name=name, runs_once_for=list(users.values())) for name, users in groups.items()]


def _costs(config: ScoreConfig, passes: Sequence[PassForecast], rate: float) -> dict[str, Any]:
    """What each detector takes of the time of an image, and what a million images take, by the price of the machines."""
    spent: dict[str, float | None] = {}
    alone: dict[str, float | None] = {}
    for one in passes:
        spent |= {name: _spent_s(one, name) for name in one.spec.cards}
        alone |= {name: _alone_s(one, name) for name in one.spec.cards}
    read = sum(one.pace.fetch_cpu + one.pace.decode + one.pace.prepare for one in passes)
    known = [seconds for seconds in spent.values() if seconds is not None]
    total = read + sum(known) + sum(one.pace.write for one in passes)
    is_known = len(known) == len(spent) and total > 0
    hours = 1e6 / rate / 3600 if rate and math.isfinite(rate) and is_known else None
    cost = None if hours is None or not config.prices.per_hour else hours * config.prices.per_hour
    costs = {
        name: plan_model.PlannedDetector(
            ms_per_image=_ms(alone[name]),
            spent_ms=_ms(seconds),
            share=seconds / total if is_known and seconds is not None else None,
            cost_per_million=cost * seconds / total if cost is not None and seconds is not None else None,
            basis=next(one.pace.scored_by for one in passes if name in one.spec.cards),
        )
        for name, seconds in spent.items()
    }
    million = plan_model.PlannedMillion(hours=hours, cost=cost, share_read=read / total if is_known else None, passes=len(passes))
    return {"costs": costs, "million": million}


def _spent_s(one: PassForecast, name: str) -> float | None:
    """Seconds for an image of the archive, of which a share goes on in a cascade."""
    if one.pace.scored_by == MEASURED:
        time = one.probe.times.get(name)
        if time is None or not time.images:
            return None
        return time.seconds / time.images * (one.probe.share if name in one.spec.late else one.spec.passes)
    sizes = {name: card.size.gmac for name, card in one.spec.cards.items() if card.size}
    once = counted_once(sizes, one.spec, lambda card: (card.preprocessing, card.own_pool))
    return one.spec.passes * once[name] / GMAC_PER_S["gpu"] if one.pace.scored_by == ESTIMATED and name in once else None


def _alone_s(one: PassForecast, name: str) -> float | None:
    if one.pace.scored_by == MEASURED:
        time = one.probe.times.get(name)
        return time.ms_per_image / 1000 if time is not None and time.ms_per_image is not None else None
    size = one.spec.cards[name].size
    return None if size is None else size.gmac / GMAC_PER_S["gpu"]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 4)


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
        refused_share=plan_model.RefusedShare(value=share.value, low=share.low, high=share.high),
        examples=probed.examples,
        bytes_per_member=round(probed.mean_bytes),
    )


def _time(
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
