"""A plan (`plan_model.Plan`) as lines for the terminal: `plan_lines`."""

from collections.abc import Iterator
from functools import partial
from itertools import chain

from ray_app.archives.containers import COMPRESSED
from ray_app.reports import format as wording
from ray_app.reports.plan_model import Plan, PlannedBackbone, PlannedTensor
from ray_app.reports.run import describe_guarantee, unlike_sentence
from ray_app.reports.text import OUTPUT_WIDTH, table

_NO_PRICE = "not known: no price per hour is given (--cluster NAME or FILE, or --price-per-hour)"
WIDTH = 11
_LONGEST_EXAMPLE = 90
_FLOAT_BYTES = 4
_FORMATS = {
    "files": "files of their own",
    "tar": "tar",
    "zip": "zip",
    "parquet": "Parquet",
} | dict.fromkeys(COMPRESSED, "compressed tar")
# a label, which stands at the first of its lines alone, and a text
Lines = Iterator[tuple[str, str]]


def plan_lines(plan: Plan, width: int = OUTPUT_WIDTH) -> list[str]:
    """What would be scored and what is left of it, which processes do it, how fast, what holds them
    up, and what it costs.
    """
    room = width - WIDTH - 1
    parts = (
        _archive,
        _asked,
        _images,
        _nodes,
        _memory,
        _probe,
        partial(_stages, width=room),
        partial(_detectors, width=room),
        _forecast,
        _requests,
        partial(_cost, width=room),
    )
    lines, last = list[str](), ""
    for label, text in chain.from_iterable(part(plan) for part in parts):
        lines.append(f"{'' if label == last else label:{WIDTH}} {text}")
        last = label
    return lines


def _archive(plan: Plan) -> Lines:
    """The files to score, the progress of an earlier run, and whether they are unlike the images
    of the calibration.
    """
    run, unknown = plan.run, plan.unknown_sizes
    if unlike := unlike_sentence(plan.unlike):
        yield "unlike", unlike
    sizes = wording.size(plan.size_bytes) + (f" and {unknown:,} of unknown size" if unknown else "")
    left = " to score" if run else ""
    yield (
        "archive",
        f"{wording.counted(plan.members, 'file')}{left}, {'of unknown size' if unknown == plan.members > 0 else sizes}",
    )
    for kind, kept in plan.kinds.items() if set(plan.kinds) - {"files"} else ():
        inside = f" in {wording.counted(kept.containers, 'file')}" if kept.containers else ""
        known = f", {wording.size(kept.size_bytes)}" if kept.size_bytes else ""
        yield "archive", f"{kept.members:,} {_FORMATS.get(kind, kind)}{inside}{known}"
    for status, number in plan.refused_in_listing.items():
        yield "archive", f"{number:,} refused by the listing: {status}, {wording.meaning(status)}"
    if run is not None and run.state == "begun":
        yield (
            "run",
            f"{wording.visible(run.url)}: begun, but its listing never ended and is made again",
        )
    elif run is not None:
        done = f"{wording.counted(run.members_done, 'file')} in {wording.counted(run.blocks_done, 'block')}"
        rest = f"{wording.counted(run.members_left, 'file')} in {wording.counted(run.blocks_left, 'block')}"
        yield "run", f"{wording.visible(run.url)}: {run.state}; {done} done before, skipped"
        if run.state == "unfinished":
            yield "run", f"left: {rest}; the listing is there and is not made again"
        else:
            yield (
                "run",
                f"left: {rest}, new or changed since"
                if run.members_left
                else "left: nothing; no file is new or changed",
            )


def _asked(plan: Plan) -> Lines:
    """The ensemble, what its card promises, and what else is wanted of each image."""
    yield (
        "ensemble",
        f"{plan.ensemble}: {plan.rule} over {len(plan.detectors)}: {', '.join(plan.detectors)}",
    )
    if (promised := plan.guarantee) is not None:
        yield (
            "guarantee",
            describe_guarantee(
                promised.target_fpr,
                promised.upper_bound,
                promised.confidence,
                promised.population,
            ),
        )
        if promised.otherwise:
            yield "guarantee", f"does not hold: scored otherwise, {', '.join(promised.otherwise)}"
        else:
            yield (
                "guarantee",
                "at its end the run compares the archive with those images; where they differ much, all verdicts abstain",
            )
    if views := plan.views:
        yield (
            "perturb",
            f"{len(views) + 1} passes over every image, decoded once: as it is, and {', '.join(views)}",
        )
    if looks := plan.cascade:
        on_about = (
            f"{', '.join(looks.second)} on about {wording.percent(looks.share)} of the images"
        )
        yield "cascade", f"{', '.join(looks.first)} on all, {on_about}"
        if looks.seconds_per_image:
            first, second = (looks.seconds_per_image[look] for look in ("first", "second"))
            yield (
                "cascade",
                f"a core spends {first:.2g} s on each image for the first look, {second:.2g} s for its share of the second",
            )


def _images(plan: Plan) -> Lines:
    """What is kept and named of each image, how often it is decoded, for whom it is prepared, and
    what its networks compute.
    """
    for name, width in (plan.features or {}).items():
        kept = wording.size(_FLOAT_BYTES * width * plan.members)
        yield (
            "embeddings",
            f"{width:,} numbers per image, of {name}: about {kept} in the run directory, for other heads",
        )
    profile = plan.profile
    if profile and profile.identifier:
        yield "profile", f"{profile.identifier} names the generator of every image"
    if profile and profile.describer:
        whom = "all images" if profile.describe == "all" else "what is called fake"
        share = "" if profile.share is None else f", {wording.percent(profile.share)} of the images"
        yield "profile", f"{profile.describer} predicts the prompt of {whom}{share}"
    again = plan.kind != "fused" and plan.keeps_sizes
    yield (
        "decode",
        "every image once for fixed sizes, and again where it is scored in its own"
        if again
        else "every image once",
    )
    for tensor in plan.tensors:
        yield "tensors", f"{_shape(tensor)} for {', '.join(tensor.detectors)}"
    for backbone in plan.backbones:
        yield "backbones", _shared(backbone)
    of_what = " (of one megapixel)" * plan.keeps_sizes
    gmac = f"{wording.number(plan.gmac_per_image)} billion multiply-adds per image{of_what}"
    yield "work", gmac if plan.gmac_per_image else "the cards state no size"


def _nodes(plan: Plan) -> Lines:
    """The machines, and the processes on them."""
    cluster = plan.cluster
    gpus = wording.counted(cluster.gpus, "GPU") if cluster.gpus else "no GPU"
    is_priced = cluster.nodes or cluster.price_per_hour
    price = (
        f"{wording.number(cluster.price_per_hour, decimals=2)} per hour"
        if is_priced
        else "no price per hour given"
    )
    yield (
        "cluster",
        f"{wording.visible(cluster.name or 'of no name')}: {wording.counted(cluster.cpus, 'core')}, {gpus}; {price}",
    )
    for node in cluster.nodes:
        has = f"{node.cpus} cores" + (
            f", {node.gpus} × {wording.visible(node.gpu or 'GPU')}" if node.gpus else ""
        )
        each = f"{wording.number(node.price_per_hour, decimals=2)} per hour each"
        yield "cluster", f"{node.count} × {wording.visible(node.name or 'node')}: {has}; {each}"
    yield (
        "layout",
        f"{plan.layout}; {wording.counted(plan.blocks, 'block')} of up to {plan.block_members:,} files",
    )
    for number, group in enumerate(plan.groups or (), 1):
        yield "turns", f"{number}: {', '.join(group)}"


def _memory(plan: Plan) -> Lines:
    """What processes and large images take on each node, and the pools of detectors."""
    memory = plan.memory
    held = " in which detectors take turns" if plan.groups else " that holds all detectors"
    yield (
        "memory",
        f"about {wording.size(plan.process_bytes)} for a process{held}, by the sizes on their cards",
    )
    if memory.total_bytes is None or memory.decode_bytes is None or memory.file_bytes is None:
        yield (
            "memory",
            "and a quarter of each node's memory, which nobody has stated, for large images, which take turns",
        )
    else:
        decoding, files = wording.size(memory.decode_bytes), wording.size(memory.file_bytes)
        together = _counted_processes(memory.processes, "process")
        most = f"at most {wording.size(memory.total_bytes)} on a node: {together}"
        yield (
            "memory",
            f"{most}, {decoding} for large images, which take turns, {files} for large files",
        )
        if memory.worst_bytes > memory.decode_bytes:
            refused = f"images that take more than {decoding} to decode are image_too_large there"
            let_in = f"though the limits let in up to {wording.size(memory.worst_bytes)}"
            yield (
                "memory",
                f"{refused}, {let_in}: --set cluster.decode_bytes={memory.worst_bytes} where there is so much",
            )
    if len(plan.pools) > 1:
        yield from (("pools", ", ".join(pool)) for pool in plan.pools)


def _probe(plan: Plan) -> Lines:
    """The members that were tried, and what of them was refused."""
    probe = plan.probe
    if probe is None:
        return
    work = "scored" if probe.scored else "decoded"
    by = _counted_processes(probe.processes, "process")
    yield (
        "probe",
        f"{wording.counted(probe.members, 'file')}, drawn evenly, {work} by {by} of this machine, as in a run",
    )
    low, high = map(wording.percent, probe.refused_share.interval or (0.0, 1.0))
    if not probe.refused:
        yield (
            "probe",
            f"none of {probe.members} refused; of the archive at most {high} (95 % interval)",
        )
        return
    counts = ", ".join(
        f"{number} {status}" for status, number in probe.statuses.items() if status != "ok"
    )
    yield (
        "probe",
        f"{probe.refused} of {probe.members} refused: {counts}; of the archive {low} to {high} (95 % interval)",
    )
    for status, examples in probe.examples.items():
        name = wording.shortened(
            wording.file_name(examples[0].uri, examples[0].member), _LONGEST_EXAMPLE
        )
        yield (
            "probe",
            f"  {status}: e.g. {name}: {wording.shortened(examples[0].detail, _LONGEST_EXAMPLE)}",
        )


def _stages(plan: Plan, width: int) -> Lines:
    """What each stage reaches, and which one holds the others up."""
    rows = []
    for stage in plan.stages:
        seconds, rate = stage.seconds_per_image, stage.images_per_s
        on_gpu = stage.stage in ("score", "describe") and plan.kind == "split" and plan.cluster.gpus
        rows.append([
            stage.stage,
            wording.NONE if seconds is None else f"{seconds:.2g}" if seconds < 0.01 else f"{seconds:.3f}",
            "not known" if rate is None else f"{wording.number(rate)} images/s",
            _counted_processes(stage.processes, "GPU process" if on_gpu else "process"),
            stage.basis + (f" ({', '.join(stage.detectors)})" if len(plan.pools) > 1 and stage.detectors else ""),
        ])  # fmt: skip
    if rows:
        yield from (
            ("stages", line)
            for line in table(
                ["stage", "s per image", "at most", "with", ""], rows, width, right={1, 2}
            )
        )
        if plan.kind == "fused":
            yield (
                "stages",
                "each process does all of it in turn; “at most” is what it would reach if it did nothing else",
            )
        else:
            yield (
                "stages",
                "fetch, decode and prepare share their cores; “at most” is what each would reach alone",
            )
    if plan.bottleneck:
        yield "bottleneck", f"{plan.bottleneck.stage}: {plan.bottleneck.advice}"


def _detectors(plan: Plan, width: int) -> Lines:
    """What each of several detectors takes."""
    heads, rows = ["detector", "ms per image", "with others", "of the time", ""], []
    for name, cost in (plan.costs or {}).items():
        times = (
            wording.NONE if spent is None else wording.number(spent)
            for spent in (cost.ms_per_image, cost.spent_ms)
        )
        fraction = wording.NONE if cost.share is None else wording.percent(cost.share)
        rows.append([name, *times, fraction, cost.basis])
    if len(rows) > 1:
        yield from (("detectors", line) for line in table(heads, rows, width, right={1, 2, 3}))
        if plan.backbones:
            yield (
                "detectors",
                "“ms per image”: alone, on one core or GPU; with others the first that shares a backbone pays for it",
            )


def _forecast(plan: Plan) -> Lines:
    """Rate and hours, and where a limit of the run would stop it."""
    forecast, stops = plan.forecast, plan.stops
    if forecast is None or forecast.images_per_s is None:
        yield (
            "forecast",
            "none: no probe was made (--probe 0)" if forecast is None else "nothing to do",
        )
        return
    total, starting, listing = (
        wording.duration(seconds)
        for seconds in (3600 * forecast.hours, forecast.starting_s, forecast.listing_s)
    )
    rate = f"{forecast.images_per_s:,.1f} images/s ({wording.size(forecast.bytes_per_s or 0)}/s from the source)"
    parts = f"{starting} of it starting and {listing} listing; machines that have yet to come add their time"
    yield "forecast", f"{rate}: {total} in all, {parts}"
    if forecast.assumed_gmac_per_s:
        assumed = f"multiply-adds on their cards at {forecast.assumed_gmac_per_s:,.0f} billion a second on each GPU"
        yield "forecast", f"the detectors' time is no measurement, since no GPU is here: {assumed}"
    if stops.share is not None and stops.share < 1:
        given = {"--max-hours": stops.max_hours, "--max-cost": stops.max_cost}
        limits = " and ".join(
            f"{name} {limit:g}" for name, limit in given.items() if limit is not None
        )
        share = f"about {wording.percent(stops.share)} of that"
        yield "forecast", f"{limits} would stop it at {share}; the same command goes on from there"


def _requests(plan: Plan) -> Lines:
    """The requests to the stores, and how many bytes come from the source."""
    requests, read = plan.requests, f"{wording.size(plan.bytes_read)} read"
    if not requests.any:
        yield "requests", f"none that a store would bill: everything is on this machine; {read}"
        return
    yield (
        "requests",
        f"{requests.list:,} LIST, {requests.get:,} GET, {requests.put:,} PUT, at the least; {read}",
    )
    if any(kind.startswith("tar.") for kind in plan.kinds) and plan.workers > 1:
        why = "they can only be read from their beginning, by every worker that gets a part of one"
        yield "requests", f"more for compressed tars: {why}"


def _cost(plan: Plan, width: int) -> Lines:
    """The bill line by line and in total, in whatever currency the prices are."""
    cost, prices, forecast = plan.cost, plan.prices, plan.forecast
    is_priced = bool(prices["per_hour"] or plan.cluster.nodes)
    total = "without the machines"
    if cost.compute is None or forecast is None or not is_priced:
        rows = [
            ["compute", wording.NONE, "not known: no probe was made" if is_priced else _NO_PRICE]
        ]
    else:
        hours = f"{wording.number(forecast.hours)} hours at {prices['per_hour']:g} per hour"
        rows = [["compute", wording.number(cost.compute, decimals=2), hours]]
    if plan.requests.any:
        rows.append(
            [
                "egress",
                wording.number(cost.egress, decimals=2),
                f"{wording.size(plan.bytes_read)} at {prices['egress_per_gb']:g} per GB",
            ]
        )
    if cost.compute is not None and is_priced:
        each = (
            ""
            if cost.per_1000_members is None
            else f", {wording.number(cost.per_1000_members, decimals=2)} per 1,000 files"
        )
        share = (
            ""
            if cost.compute_share is None
            else f"; {wording.percent(cost.compute_share)} of it is compute"
        )
        total = f"in the currency of the prices{each}{share}"
    rows.append(["total", wording.number(cost.total, decimals=2), total])
    yield from (("cost", line) for line in table(rows[0], rows[1:], width, right={1}))


def _counted_processes(count: int, word: str) -> str:
    return wording.counted(count, word).replace("processs", "processes")


def _shape(tensor: PlannedTensor) -> str:
    shape, resize = tensor.shape, tensor.preprocessing.get("resize", {"mode": "none"})
    if shape is None:
        return (
            "own size" if resize["mode"] == "none" else f"own aspect, at most {resize['size']} px"
        )
    how = (
        "crop"
        if resize["mode"] == "none"
        else f"{resize['mode']}, {tensor.preprocessing.get('filter', 'bilinear')}"
    )
    return f"{shape[0]} × {shape[1]} ({how.replace('_', ' ')})"


def _shared(backbone: PlannedBackbone) -> str:
    runs = [f"once for {' and '.join(users)}" for users in backbone.runs_once_for]
    held = ", held once" * (len(runs) > 1)
    return f"{backbone.name} runs {', '.join(runs)}{held}"
