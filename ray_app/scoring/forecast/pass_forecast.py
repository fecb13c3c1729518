"""What each pass of a run, and each detector, would take: `forecast_passes` probes them one after another, as a run has them in memory."""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ray_app.archives import ListedMember, ManifestMember
from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.inference.spec import counted_once
from ray_app.reports import plan_model
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.forecast.probe import Probe, probe_members
from ray_app.scoring.forecast.rates import ESTIMATED, MEASURED, Forecast, ImagePace, forecast_rates
from ray_app.scoring.layout import GMAC_PER_S, ScoringLayout
from ray_app.scoring.passes import PassPlan
from ray_app.scoring.run import layout_for
from ray_app.scoring.session import one_after_another
from ray_app.storage import Fetcher


@dataclass(frozen=True)
class PassForecast:
    """One pass: what it scores with, its processes, and what a probe said of it."""

    spec: ScoringSpec
    layout: ScoringLayout
    probe: Probe
    pace: ImagePace
    rates: Forecast


def pass_layouts(
    config: ScoreConfig, plan: PassPlan, cpus: float, gpus: float, memory_bytes: float
) -> list[tuple[ScoringSpec, ScoringLayout]]:
    """What each pass scores with, and its processes. Raises ClusterError when nothing fits."""
    return [(spec, layout_for(config, spec, cpus, gpus, memory_bytes)) for spec in plan.specs()]


def forecast_passes(
    passes: Sequence[tuple[ScoringSpec, ScoringLayout]],
    fetcher: Fetcher,
    sample: Sequence[ListedMember | ManifestMember],
    *,
    blocks: int,
    members: int,
    cpus: int,
    gpus: int,
    remote_out: bool,
) -> list[PassForecast]:
    """Probe every pass with the same sample; the detectors of one are gone before those of the next are loaded."""
    found = []
    for spec, layout in passes:
        probe, pace = probe_members(spec, layout, fetcher, sample, blocks=blocks, members=members, remote_out=remote_out)
        gmac = sum(ResourceEstimate.of(spec).pool_gmac)
        rates = forecast_rates(layout.limited_to(blocks), pace, spec.all_pools, cpus=cpus, gpus=gpus, gmac=gmac)
        found.append(PassForecast(spec, layout, probe, pace, rates))
        if len(passes) > 1:
            gc.collect()
    return found


def rate_of(passes: Sequence[PassForecast]) -> float:
    """Images a second through all passes, one after another."""
    if len(passes) == 1:
        return passes[0].rates.images_per_s
    return one_after_another([one.rates.images_per_s for one in passes]) or 0.0


def pass_facts(passes: Sequence[tuple[ScoringSpec, ScoringLayout]], found: Sequence[PassForecast]) -> list[plan_model.PlannedPass] | None:
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


def costs_of(
    config: ScoreConfig, passes: Sequence[PassForecast]
) -> tuple[dict[str, plan_model.PlannedDetector], plan_model.PlannedMillion]:
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
    rate = rate_of(passes)
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
    return costs, plan_model.PlannedMillion(hours=hours, cost=cost, share_read=read / total if is_known else None, passes=len(passes))


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
