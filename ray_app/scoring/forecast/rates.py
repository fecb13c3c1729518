"""How fast the stages of a layout go and which one is the bottleneck, from seconds per image:
`forecast_rates`.

Fused, every process does one stage after another. Split, the stages run side by side and the
slowest sets the pace.

A cluster on paper, for `touchstone plan`: machines, their number and price. `load_cluster` reads
one, `planned_for` applies it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from ray_app.cluster.config import RAY_SHARE
from ray_app.config import Frozen, find_config, load_yaml
from ray_app.reports.format import measured
from ray_app.reports.plan_model import PlannedBottleneck, PlannedStage
from ray_app.scoring.config import Prices, ScoreConfig, TrafficPrices
from ray_app.scoring.layout import GMAC_PER_S, ScoringLayout


class Nodes(Frozen):
    """Some machines of one type. `price_per_hour` is that of one."""

    name: str = ""
    count: int = Field(default=1, ge=1)
    cpus: int = Field(
        ge=0, description="cores that work is scheduled on: 0 for a head node that does none"
    )
    gpus: int = Field(default=0, ge=0)
    gpu: str | None = Field(default=None, description="the GPU's name, for people")
    memory_gb: float | None = Field(default=None, gt=0)
    price_per_hour: float = Field(ge=0)


class ClusterDescription(Frozen):
    """A cluster in configs/clusters, or in a file of the user's. `prices`: null = as the run's
    config says.
    """

    name: str = ""
    nodes: tuple[Nodes, ...] = Field(min_length=1)
    prices: TrafficPrices | None = None

    @model_validator(mode="after")
    def _has_cores(self) -> "ClusterDescription":
        if not self.cpus:
            raise ValueError("its nodes have no cores to schedule on")
        return self

    @property
    def cpus(self) -> int:
        """Cores of all nodes."""
        return sum(node.count * node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.count * node.gpus for node in self.nodes)

    @property
    def memory_bytes(self) -> float | None:
        """What Ray would schedule on; None where a working node does not state its memory."""
        working = [node for node in self.nodes if node.cpus]
        if any(node.memory_gb is None for node in working):
            return None
        return RAY_SHARE * 1e9 * sum(node.count * (node.memory_gb or 0.0) for node in working)

    @property
    def workers(self) -> int:
        """Nodes that do work."""
        return sum(node.count for node in self.nodes if node.cpus)

    @property
    def smallest_bytes(self) -> int | None:
        """Memory of the smallest of them; None where one does not state it."""
        stated = [node.memory_gb for node in self.nodes if node.cpus]
        return None if None in stated else int(1e9 * min(one for one in stated if one is not None))

    @property
    def price_per_hour(self) -> float:
        """Of all nodes together."""
        return sum(node.count * node.price_per_hour for node in self.nodes)


def load_cluster(name_or_path: str | Path) -> ClusterDescription:
    """A shipped description by its name, or one from a file. Raises ConfigError."""
    return load_yaml(find_config("clusters", name_or_path), ClusterDescription)


def planned_for(
    config: ScoreConfig, described: ClusterDescription | None, price_per_hour: float | None
) -> ScoreConfig:
    """The config as it would run on the described cluster: its cores, GPUs and prices take the
    place of the config's.

    `price_per_hour` of all machines together, where given, takes the place of both.
    """
    changed: dict[str, Any] = {}
    prices = config.prices.model_dump()
    if described is not None:
        changed["cluster"] = config.cluster.model_copy(
            update={"cpus": described.cpus, "gpus": described.gpus}
        )
        prices |= {
            "per_hour": described.price_per_hour,
            **(described.prices.model_dump() if described.prices else {}),
        }
    if price_per_hour is not None:
        prices["per_hour"] = price_per_hour
    return config.model_copy(update={**changed, "prices": Prices(**prices)})


MEASURED, ESTIMATED, UNKNOWN = "measured", "estimated", "unknown"
_RESIZES = "or, where a grey level does not matter, --set resize=fast"
_LARGER, _FASTER = "--set block_members=1024", "put the run directory on faster storage"
_FEWER_WORDS = "describe only what is flagged (profile.describe), with fewer beams, or with a cheaper describer"
_FUSED_ADVICE = {
    "fetch": "run nearer to the bucket, or give more processes: reading is the slowest part",
    "decode": "add cores, each adds {each} images/s: {twice} instead of {cpus} halve the time; a GPU would not help",
    "prepare": f"add cores, each adds {{each}} images/s, {_RESIZES}",
    "score": "add cores, each adds {each} images/s: {twice} instead of {cpus} halve the time; or take a lighter ensemble",
    "identify": "add cores, each adds {each} images/s",
    "describe": _FEWER_WORDS + "; or add cores, each adds {each} images/s",
    "write": f"make blocks larger: {_LARGER}; or {_FASTER}",
}


@dataclass(frozen=True)
class ImagePace:
    """Seconds that one process spends on one image. `score` has one number per pool of detectors,
    None where it is not known.

    `fetch` is wall time, most of it waiting; `fetch_cpu` is what of it keeps the core from other
    work. `identify` and `describe` are of a profile; None: it has no such thing. `describe` is
    spread over all images, described or not, 0 where its time is not known. A describer that
    `describes_apart`, in processes of its own, is the last number of `score` instead.
    """

    fetch: float = 0.0
    fetch_cpu: float = 0.0
    decode: float = 0.0
    prepare: float = 0.0
    score: tuple[float | None, ...] = ()
    write: float = 0.0
    scored_by: str = MEASURED
    identify: float | None = None
    describe: float | None = None
    describes_apart: bool = False

    @property
    def on_core(self) -> float:
        """What fetching, decoding and preparing keep a core from other work."""
        return self.fetch_cpu + self.decode + self.prepare

    def slowed(self, by: float) -> "ImagePace":
        """Where so many processes share a core."""
        score = tuple(None if seconds is None else seconds * by for seconds in self.score)
        describe = None if self.describe is None else self.describe * by
        busy = {name: getattr(self, name) * by for name in ("fetch_cpu", "decode", "prepare")}
        return replace(self, score=score, describe=describe, **busy)


class Forecast(NamedTuple):
    """`images_per_s` is that of the whole; `bottleneck`: the stage that sets it, what would raise
    it, how long the scorers work.
    """

    stages: Sequence[PlannedStage]
    images_per_s: float
    bottleneck: PlannedBottleneck


def forecast_rates(
    layout: ScoringLayout,
    pace: ImagePace,
    pools: tuple[tuple[str, ...], ...],
    *,
    cpus: int,
    gpus: int,
    gmac: float,
) -> Forecast:
    """The stages, the rate of the whole and what would raise it. `gmac`: billions of multiply-adds
    per image, 0 where not known.
    """
    if layout.kind == "fused":
        return _fused(layout, pace, pools, cpus, gmac)
    return _split(layout, pace, pools, cpus, gpus)


def _fused(
    layout: ScoringLayout,
    pace: ImagePace,
    pools: tuple[tuple[str, ...], ...],
    cpus: int,
    gmac: float,
) -> Forecast:
    at_once = min(layout.workers, cpus)  # more processes than cores share them
    spent = {
        "fetch": pace.fetch,
        "decode": pace.decode,
        "prepare": pace.prepare,
        "score": sum(seconds or 0.0 for seconds in pace.score),
    }
    spent |= {
        name: seconds
        for name, seconds in (("identify", pace.identify), ("describe", pace.describe))
        if seconds is not None
    }
    spent["write"] = pace.write
    bases = {
        "score": UNKNOWN if None in pace.score else pace.scored_by,
        "describe": MEASURED if pace.describe else UNKNOWN,
        "write": ESTIMATED,
    }
    stages = [
        _stage(
            name,
            seconds,
            at_once,
            layout.workers,
            bases.get(name, MEASURED),
            sum(pools, ()) if name == "score" else (),
        )
        for name, seconds in spent.items()
    ]
    busy_s = pace.fetch_cpu + sum(spent.values()) - pace.fetch
    rate = at_once / max(pace.fetch, busy_s, 1e-9)
    # Reading runs ahead of the rest: it is in the way only where it is slower than all of it.
    slowest = (
        "fetch"
        if pace.fetch >= busy_s
        else max((name for name in spent if name != "fetch"), key=lambda name: spent[name])
    )
    advice = _FUSED_ADVICE[slowest].format(cpus=cpus, twice=2 * cpus, each=measured(rate / at_once))
    with_gpu = (
        min(GMAC_PER_S["gpu"] / gmac, max(cpus - 1, 1) / max(pace.on_core, 1e-9)) if gmac else 0.0
    )
    if slowest == "score" and with_gpu > 1.5 * rate:
        advice += f"; one GPU beside {cpus} cores: about {with_gpu:,.0f} images/s (estimated)"
    return Forecast(
        stages, rate, PlannedBottleneck(stage=slowest, advice=advice, scorers_busy=None)
    )


def _split(
    layout: ScoringLayout, pace: ImagePace, pools: tuple[tuple[str, ...], ...], cpus: int, gpus: int
) -> Forecast:
    decoders, committers = layout.decoders, layout.committers
    if not layout.scorer_gpus and layout.workers > cpus:
        pace = pace.slowed(layout.workers / cpus)
    decoding = [
        _stage(name, seconds, decoders, decoders, MEASURED)
        for name, seconds in (
            ("fetch", pace.fetch),
            ("decode", pace.decode),
            ("prepare", pace.prepare),
        )
    ]
    scoring, scored = _scoring(layout, pace, pools)
    naming = (
        []
        if pace.identify is None
        else [_stage("identify", pace.identify, committers, committers, MEASURED)]
    )
    stages = [
        *decoding,
        *scoring,
        *naming,
        _stage("write", pace.write, committers, committers, ESTIMATED),
    ]
    decoded = decoders / max(pace.fetch, pace.on_core, 1e-9)
    named, written = (
        committers / max(pace.identify or 0.0, 1e-9),
        committers / max(pace.write, 1e-9),
    )
    rate = min(decoded, scored, named, written)
    few = f"the {committers} committers, one for each scorer, are too few" if committers > 1 else (
        "the one committer, beside one scorer, is too few")  # fmt: skip
    if rate == named:
        slowest, advice = "identify", f"{few} to name generators: more scorers bring more"
    elif rate == written:
        slowest, advice = (
            "write",
            f"{few} to write: more scorers bring more; make blocks larger: {_LARGER}; or {_FASTER}",
        )
    elif rate == scored:
        slowest = min(
            scoring,
            key=lambda stage: math.inf if stage.images_per_s is None else stage.images_per_s,
        ).stage
        advice = f"{_FEWER_WORDS}; or " * (slowest == "describe") + _scoring_advice(
            layout, scored, decoded, gpus
        )
    elif pace.fetch >= pace.on_core:
        slowest, advice = (
            "fetch",
            "run nearer to the bucket, or give more cores: each reads ahead for itself",
        )
    else:
        slowest = "decode" if pace.decode >= pace.prepare else "prepare"
        advice = _decoding_advice(layout, slowest, scored, decoded, cpus, gpus)
    busy = None if math.isinf(scored) else rate / scored
    return Forecast(
        stages, rate, PlannedBottleneck(stage=slowest, advice=advice, scorers_busy=busy)
    )


def _scoring(
    layout: ScoringLayout, pace: ImagePace, pools: tuple[tuple[str, ...], ...]
) -> tuple[list[PlannedStage], float]:
    """The stage of each pool, after them that of a describer, and the images per second that all of
    them together let through.
    """
    shares = [count * (layout.scorer_gpus or 1.0) for count in layout.scorers]
    names = ["score"] * (len(pools) - pace.describes_apart) + ["describe"] * pace.describes_apart
    stages = [
        _stage(name, seconds, share, count, pace.scored_by if seconds else UNKNOWN, pool)
        for name, seconds, share, count, pool in zip(
            names, pace.score, shares, layout.scorers, pools, strict=True
        )
    ]
    spent = [seconds or 0.0 for seconds in pace.score]
    if pace.describe is not None:
        basis = pace.scored_by if pace.describe else UNKNOWN
        stages.append(_stage("describe", pace.describe, shares[-1], layout.scorers[-1], basis))
        spent[-1] += pace.describe  # the last pool does it too
    return stages, min(
        (share / seconds for share, seconds in zip(shares, spent, strict=True) if seconds),
        default=math.inf,
    )


def _decoding_advice(
    layout: ScoringLayout, stage: str, scored: float, decoded: float, cpus: int, gpus: int
) -> str:
    faster = f", {_RESIZES}" if stage == "prepare" else ""
    if math.isinf(scored):
        return f"add cores, each adds {measured(decoded / layout.decoders)} images/s{faster}"
    wanted = cpus - layout.decoders + math.ceil(scored / decoded * layout.decoders)
    what = ("the GPU" if gpus == 1 else f"the {gpus} GPUs") if layout.scorer_gpus else "the scorers"
    advice = f"raise cores from {cpus:,} to {wanted:,} to keep {what} busy, idle {100 * (1 - decoded / scored):.0f} % of the time{faster}"
    enough = math.ceil(gpus * decoded / scored)
    if layout.scorer_gpus and enough < gpus:
        return f"plan {enough} of the {gpus} GPUs, which is as fast, and cheaper; or {advice}"
    return advice


def _scoring_advice(layout: ScoringLayout, scored: float, decoded: float, gpus: int) -> str:
    if not layout.scorer_gpus:
        return "add cores or a GPU, or take a lighter ensemble"
    fed = math.floor(gpus * decoded / scored)
    if fed <= gpus:
        return "cores and GPUs are in balance: more of both, or a lighter ensemble"
    return f"add GPUs: the cores could feed {fed:,} instead of {gpus}; or take a lighter ensemble"


def _stage(
    name: str,
    seconds: float | None,
    at_once: float,
    processes: int,
    basis: str,
    detectors: tuple[str, ...] = (),
) -> PlannedStage:
    """What a stage does at most on its processes: alone if they share it with others. None where
    its pace is not known.
    """
    rate = None if not seconds else at_once / seconds
    return PlannedStage(
        stage=name,
        seconds_per_image=seconds,
        images_per_s=rate,
        processes=processes,
        basis=basis,
        detectors=detectors,
    )
