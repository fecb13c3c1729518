"""A plan (`plan_model.Plan`) as lines for the terminal: `plan_lines`, and the requests and the bill (`request_lines`, `cost_lines`)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ray_app.archives.containers import COMPRESSED
from ray_app.reports import format as wording
from ray_app.reports.plan_model import Plan, PlannedBackbone, PlannedCost, PlannedStage, PlannedTensor
from ray_app.reports.run import promise
from ray_app.reports.text import table

_NO_PRICE = "not known: no price per hour is given (--cluster NAME or FILE, or --price-per-hour)"
WIDTH = 11
_LONGEST_EXAMPLE = 90
_FLOAT_BYTES = 4
_FORMATS = {"files": "files of their own", "tar": "tar", "zip": "zip", "parquet": "Parquet"} | dict.fromkeys(COMPRESSED, "compressed tar")


def plan_lines(found: Plan | Mapping[str, Any]) -> list[str]:
    """What would be scored and what is left of it, which processes do it, how fast, what holds them up, and what it costs."""
    plan = Plan.model_validate(found)
    lines = []
    for label, texts in _PARAGRAPHS.items():
        for place, text in enumerate(texts(plan)):
            lines.append(f"{label if place == 0 else '':{WIDTH}} {text}")
    return lines


def request_lines(plan: Plan) -> Iterator[str]:
    """The requests to the stores, and how many bytes come from the source."""
    requests = plan.requests
    read = f"{wording.size(plan.bytes_read)} read"
    if not requests.any:
        yield f"none that a store would bill: everything is on this machine; {read}"
        return
    yield f"{requests.lists:,} LIST, {requests.gets:,} GET, {requests.puts:,} PUT, at the least; {read}"
    if any(kind.startswith("tar.") for kind in plan.kinds) and plan.workers > 1:
        yield "more for compressed tars: they can only be read from their beginning, by every worker that gets a part of one"


def cost_lines(plan: Plan) -> Iterator[str]:
    """The bill line by line and in total, in whatever currency the prices are."""
    cost, prices, requests, forecast = plan.cost, plan.prices, plan.requests, plan.forecast
    hours = None if forecast is None else forecast.hours
    is_priced = bool(prices["per_hour"] or plan.cluster.nodes)
    if cost.compute is None or hours is None or not is_priced:
        rows = [["compute", wording.NONE, "not known: no probe was made" if is_priced else _NO_PRICE]]
    else:
        rows = [["compute", wording.money(cost.compute), f"{wording.measured(hours)} hours at {prices['per_hour']:g} per hour"]]
    puts, gets = prices["put_per_1000"], prices["get_per_1000"]
    if requests.any:
        rows += [
            ["LIST", wording.money(cost.lists), f"{requests.lists:,} at {puts:g} per 1,000"],
            ["GET", wording.money(cost.gets), f"{requests.gets:,} at {gets:g} per 1,000"],
            ["PUT", wording.money(cost.puts), f"{requests.puts:,} at {puts:g} per 1,000"],
            ["egress", wording.money(cost.egress), f"{wording.size(plan.bytes_read)} at {prices['egress_per_gb']:g} per GB"],
        ]
    rows.append(["total", wording.money(cost.total), _total(cost, is_priced)])
    yield from table(rows[0], rows[1:], right={1})


def _total(cost: PlannedCost, is_priced: bool) -> str:
    if cost.compute is None or not is_priced:
        return "without the machines"
    each = "" if cost.per_1000_members is None else f", {wording.money(cost.per_1000_members)} per 1,000 files"
    share = "" if cost.compute_share is None else f"; {wording.percent(cost.compute_share)} of it is compute"
    return f"in the currency of the prices{each}{share}"


def _archive(plan: Plan) -> Iterator[str]:
    left = " to score" if plan.run else ""
    unknown = plan.unknown_sizes
    sizes = wording.size(plan.size_bytes) + (f" and {unknown:,} of unknown size" if unknown else "")
    yield f"{wording.counted(plan.members, 'file')}{left}, {'of unknown size' if unknown == plan.members > 0 else sizes}"
    if set(plan.kinds) - {"files"}:
        for kind, kept in plan.kinds.items():
            inside = f" in {wording.counted(kept.containers, 'file')}" if kept.containers else ""
            known = f", {wording.size(kept.size_bytes)}" if kept.size_bytes else ""
            yield f"{kept.members:,} {_FORMATS.get(kind, kind)}{inside}{known}"
    for status, number in plan.refused_in_listing.items():
        yield f"{number:,} refused by the listing: {status}, {wording.meaning(status)}"


def _standing(plan: Plan) -> Iterator[str]:
    run = plan.run
    if run is None:
        return
    if run.state == "begun":
        yield f"{wording.visible(run.url)}: begun, but its listing never ended and is made again"
        return
    done = f"{wording.counted(run.members_done, 'file')} in {wording.counted(run.blocks_done, 'block')}"
    left = f"{wording.counted(run.members_left, 'file')} in {wording.counted(run.blocks_left, 'block')}"
    yield f"{wording.visible(run.url)}: {run.state}; {done} done before, skipped"
    if run.state == "unfinished":
        yield f"left: {left}; the listing is there and is not made again"
    else:
        yield f"left: {left}, new or changed since" if run.members_left else "left: nothing; no file is new or changed"


def _tabulated(plan: Plan) -> Iterator[str]:
    if plan.table is not None:
        yield f"{wording.visible(plan.table)}: {wording.counted(plan.members, 'row')} at most are appended once all are final"


def _promised(plan: Plan) -> Iterator[str]:
    promised = plan.guarantee
    if promised is None:
        return
    yield promise(promised.target_fpr, promised.confidence, promised.population)
    if promised.otherwise:
        yield f"does not hold: scored otherwise, {', '.join(promised.otherwise)}"
    else:
        yield "at its end the run compares the archive with those images; where they differ much, all verdicts abstain"


def _perturbing(plan: Plan) -> Iterator[str]:
    views = plan.views
    if views:
        yield f"{len(views) + 1} passes over every image, decoded once: as it is, and {', '.join(views)}"


def _cascading(plan: Plan) -> Iterator[str]:
    looks = plan.cascade
    if not looks:
        return
    yield f"{', '.join(looks.first)} on all, {', '.join(looks.second)} on about {wording.percent(looks.share)} of the images"
    if looks.seconds_per_image:
        first, second = (looks.seconds_per_image[look] for look in ("first", "second"))
        cost = looks.cost_per_million or {}
        money = f"; a million images cost {wording.money(cost['first'])} and {wording.money(cost['second'])}" if sum(cost.values()) else ""
        yield f"a core spends {first:.2g} s on each image for the first look, {second:.2g} s for its share of the second{money}"


def _recompressing(plan: Plan) -> Iterator[str]:
    requested = plan.stability
    if requested:
        more = wording.counted(requested.views, "recompressed view")
        share = requested.share
        how_many = "they are not in the forecast" if share is None else f"{wording.percent(share)} of the probed images"
        yield f"{more} of every image within {requested.margin:g} log-odds of a threshold; {how_many}"


def _keeping(plan: Plan) -> Iterator[str]:
    for name, width in (plan.features or {}).items():
        kept = wording.size(_FLOAT_BYTES * width * plan.members)
        yield f"{width:,} numbers per image, of {name}: about {kept} in the run directory, for touchstone runs rescore"


def _profiling(plan: Plan) -> Iterator[str]:
    profile = plan.profile
    if not profile:
        return
    if profile.identifier:
        yield f"{profile.identifier} names the generator of every image"
    if profile.describer:
        whom = "all images" if profile.describe == "all" else "what is called fake"
        share = profile.share
        yield f"{profile.describer} predicts the prompt of {whom}" + ("" if share is None else f", {wording.percent(share)} of the images")


def _decoding(plan: Plan) -> Iterator[str]:
    again = plan.kind != "fused" and plan.keeps_sizes
    yield "every image once for fixed sizes, and again where it is scored in its own" if again else "every image once"


def _work(plan: Plan) -> Iterator[str]:
    if not plan.gmac_per_image:
        yield "the cards state no size"
        return
    yield f"{wording.measured(plan.gmac_per_image)} billion multiply-adds per image" + " (of one megapixel)" * plan.keeps_sizes


def _cluster(plan: Plan) -> Iterator[str]:
    cluster = plan.cluster
    gpus = wording.counted(cluster.gpus, "GPU") if cluster.gpus else "no GPU"
    is_priced = cluster.nodes or cluster.price_per_hour
    price = f"{wording.money(cluster.price_per_hour)} per hour" if is_priced else "no price per hour given"
    yield f"{wording.visible(cluster.name or 'of no name')}: {wording.counted(cluster.cpus, 'core')}, {gpus}; {price}"
    for node in cluster.nodes:
        has = f"{node.cpus} cores" + (f", {node.gpus} × {wording.visible(node.gpu or 'GPU')}" if node.gpus else "")
        yield f"{node.count} × {wording.visible(node.name or 'node')}: {has}; {wording.money(node.price_per_hour)} per hour each"


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    yield f"about {wording.size(plan.process_bytes)} for a process that holds all detectors, by the sizes on their cards"
    if memory.total_bytes is None or memory.decode_bytes is None or memory.file_bytes is None:
        yield "and a quarter of each node's memory, which nobody has stated, for large images, which take turns"
        return
    decoding, files = wording.size(memory.decode_bytes), wording.size(memory.file_bytes)
    together = wording.counted(memory.processes, "process").replace("processs", "processes")
    yield (
        f"at most {wording.size(memory.total_bytes)} on a node: {together}, {decoding} for large images, which take turns, "
        f"{files} for large files"
    )
    if memory.worst_bytes > memory.decode_bytes:
        yield (
            f"images that take more than {decoding} to decode are image_too_large there, though the limits let in up to "
            f"{wording.size(memory.worst_bytes)}: --set cluster.decode_bytes={memory.worst_bytes} where there is so much"
        )


def _probe(plan: Plan) -> Iterator[str]:
    probe = plan.probe
    if probe is None:
        return
    scored = "" if probe.scored in (0, probe.members) else f"; the detectors were slow, so that {probe.scored} were scored"
    yield f"{wording.counted(probe.members, 'file')}, drawn evenly, on one core of this machine{scored}"
    if not probe.refused:
        most = wording.percent(probe.refused_share.high)
        yield f"none of {probe.members} refused; of the archive at most {most} (95 % interval)"
        return
    counts = ", ".join(f"{number} {status}" for status, number in probe.statuses.items() if status != "ok")
    low, high = (wording.percent(getattr(probe.refused_share, end)) for end in ("low", "high"))
    yield f"{probe.refused} of {probe.members} refused: {counts}; of the archive {low} to {high} (95 % interval)"
    for status, examples in probe.examples.items():
        name = wording.file_name(examples[0].uri, examples[0].member)
        yield f"  {status}: e.g. {wording.shortened(name, _LONGEST_EXAMPLE)}: {wording.shortened(examples[0].detail, _LONGEST_EXAMPLE)}"


def _stages(plan: Plan) -> Iterator[str]:
    if not plan.stages:
        return
    if plan.slowest_pass is not None:
        yield f"of pass {plan.slowest_pass}, the slowest:"
    several = len(plan.pools) > 1
    rows = [["stage", "s per image", "at most", "with", ""]]
    for stage in plan.stages:
        seconds, rate = stage.seconds_per_image, stage.images_per_s
        rows.append([
            stage.stage,
            wording.NONE if seconds is None else f"{seconds:.2g}" if seconds < 0.01 else f"{seconds:.3f}",
            "not known" if rate is None else f"{wording.measured(rate)} images/s",
            _processes(plan, stage),
            stage.basis + (f" ({', '.join(stage.detectors)})" if several and stage.detectors else ""),
        ])  # fmt: skip
    yield from table(rows[0], rows[1:], right={1, 2})
    if plan.kind == "fused":
        yield "each process does all of it in turn; “at most” is what it would reach if it did nothing else"
    else:
        yield "fetch, decode and prepare share their cores; “at most” is what each would reach alone"


def _passing(plan: Plan) -> Iterator[str]:
    passes = plan.passes or ()
    if passes:
        yield f"{len(passes)}, one after another, since the detectors do not fit together; each fetches and decodes every image once"
    for number, one in enumerate(passes, 1):
        rate = "" if one.images_per_s is None else f"; {wording.measured(one.images_per_s)} images/s"
        yield f"{number}: {', '.join(one.detectors)}"
        yield f"   {one.layout}, about {wording.size(one.process_bytes)} for a process{rate}"
        once = [_shared(backbone) for backbone in one.backbones if any(len(users) > 1 for users in backbone.runs_once_for)]
        yield from (f"   {words}" for words in once)


def _detectors(plan: Plan) -> Iterator[str]:
    costs = plan.costs or {}
    if len(costs) < 2:
        return
    rows = [["detector", "ms per image", "beside others", "of the time", "per million", ""]]
    for name, cost in costs.items():
        known = (wording.NONE if one is None else wording.measured(one) for one in (cost.ms_per_image, cost.spent_ms))
        share = wording.NONE if cost.share is None else wording.percent(cost.share)
        money = wording.NONE if cost.cost_per_million is None else wording.money(cost.cost_per_million)
        rows.append([name, *known, share, money, cost.basis])
    yield from table(rows[0], rows[1:], right={1, 2, 3, 4})
    if plan.backbones:
        yield "“ms per image”: alone, on one core or GPU; beside others the first that shares a backbone pays for it"


def _million(plan: Plan) -> Iterator[str]:
    million = plan.million
    if million is None or million.hours is None:
        return
    cost = "" if million.cost is None else f", {wording.money(million.cost)} for the machines"
    again = f", which each of {million.passes} passes repeats" if million.passes > 1 else ""
    read = "" if million.share_read is None else f"; {wording.percent(million.share_read)} of the time is reading and decoding{again}"
    yield f"a million images take {wording.duration(3600 * million.hours)}{cost}{read}"


def _processes(plan: Plan, stage: PlannedStage) -> str:
    on_gpu = stage.stage in ("score", "describe") and plan.kind == "split" and plan.cluster.gpus
    return wording.counted(stage.processes, "GPU process" if on_gpu else "process").replace("processs", "processes")


def _forecast(plan: Plan) -> Iterator[str]:
    forecast = plan.forecast
    if forecast is None:
        yield "none: no probe was made (--probe 0)"
    elif forecast.images_per_s is None:
        yield "nothing to do"
    else:
        total, starting, listing = (
            wording.duration(seconds) for seconds in (3600 * forecast.hours, forecast.starting_s, forecast.listing_s)
        )
        rate = f"{forecast.images_per_s:,.1f} images/s ({wording.size(forecast.bytes_per_s or 0)}/s from the source)"
        yield f"{rate}: {total} in all, {starting} of it starting and {listing} listing; machines that have yet to come add their time"
        if forecast.assumed_gmac_per_s:
            assumed = f"{forecast.assumed_gmac_per_s:,.0f} billion a second on each GPU"
            yield f"the detectors' time is no measurement, since no GPU is here: multiply-adds on their cards at {assumed}"
        stops = plan.stops
        if stops.share is not None and stops.share < 1:
            given = {"--max-hours": stops.max_hours, "--max-cost": stops.max_cost}
            limits = " and ".join(f"{name} {limit:g}" for name, limit in given.items() if limit is not None)
            yield f"{limits} would stop it at about {wording.percent(stops.share)} of that; the same command goes on from there"


def _shape(tensor: PlannedTensor) -> str:
    shape, resize = tensor.shape, tensor.preprocessing.get("resize", {"mode": "none"})
    if shape is None:
        return "own size" if resize["mode"] == "none" else f"own aspect, at most {resize['size']} px"
    how = "crop" if resize["mode"] == "none" else f"{resize['mode']}, {tensor.preprocessing.get('filter', 'bilinear')}"
    return f"{shape[0]} × {shape[1]} ({how.replace('_', ' ')})"


def _shared(backbone: PlannedBackbone) -> str:
    runs = [f"once for {' and '.join(users)}" for users in backbone.runs_once_for]
    held = ", held once" * (len(runs) > 1)
    return f"{backbone.name} runs {', '.join(runs)}{held}"


# In the order in which they are printed; one without any text is left out.
_PARAGRAPHS: Mapping[str, Callable[[Plan], Iterable[str]]] = {
    "archive": _archive,
    "run": _standing,
    "table": _tabulated,
    "ensemble": lambda plan: [f"{plan.ensemble}: {plan.rule} over {len(plan.detectors)}: {', '.join(plan.detectors)}"],
    "guarantee": _promised,
    "perturb": _perturbing,
    "stability": _recompressing,
    "cascade": _cascading,
    "embeddings": _keeping,
    "profile": _profiling,
    "decode": _decoding,
    "tensors": lambda plan: [f"{_shape(tensor)} for {', '.join(tensor.detectors)}" for tensor in plan.tensors],
    "backbones": lambda plan: map(_shared, plan.backbones),
    "work": _work,
    "cluster": _cluster,
    "passes": _passing,
    "layout": lambda plan: [f"{plan.layout}; {wording.counted(plan.blocks, 'block')} of up to {plan.block_members:,} files"],
    "memory": _memory,
    "pools": lambda plan: [", ".join(pool) for pool in plan.pools if len(plan.pools) > 1],
    "probe": _probe,
    "stages": _stages,
    "bottleneck": lambda plan: [f"{plan.bottleneck.stage}: {plan.bottleneck.advice}"] if plan.bottleneck else [],
    "detectors": _detectors,
    "million": _million,
    "forecast": _forecast,
    "requests": request_lines,
    "cost": cost_lines,
}
