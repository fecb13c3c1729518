"""Format the result of `touchstone plan` (`plan_model.Plan`) for the terminal: `plan_lines`."""

from collections.abc import Iterator
from functools import partial
from itertools import chain

from ray_app.archives.containers import COMPRESSED
from ray_app.reports import format as wording
from ray_app.reports.plan_model import Plan, PlannedBackbone, PlannedTensor
from ray_app.reports.run import describe_guarantee, unlike_sentence
from ray_app.reports.text import OUTPUT_WIDTH, table

_NO_PRICE = "not known: no price per hour is set (--cluster NAME or FILE, or --price-per-hour)"
WIDTH = 11
_MAX_EXAMPLE_WIDTH = 90
_FLOAT_BYTES = 4
_FORMATS = {
    "files": "separate files",
    "tar": "tar",
    "zip": "zip",
    "parquet": "Parquet",
} | dict.fromkeys(COMPRESSED, "compressed tar")
# Pairs of a label and a text. The label is only shown at the first of consecutive lines that have it.
Lines = Iterator[tuple[str, str]]


def plan_lines(plan: Plan, width: int = OUTPUT_WIDTH) -> list[str]:
    """Return the plan of a scoring run as lines for the terminal.

    The lines describe the archive, the work per image, machines, rates, and costs.

    Args:
        plan: The plan.
        width: Width of the terminal in columns, at which tables wrap.

    Returns:
        The lines. Each begins with a label, such as "archive", or with spaces if it has the label
        of the line above.
    """
    text_width = width - WIDTH - 1
    parts = (
        _describe_archive,
        _describe_ensemble,
        _describe_images,
        _describe_nodes,
        _describe_memory,
        _describe_probe,
        partial(_describe_stages, width=text_width),
        partial(_describe_detectors, width=text_width),
        _describe_forecast,
        _describe_requests,
        partial(_describe_cost, width=text_width),
    )
    lines, last = list[str](), ""
    for label, text in chain.from_iterable(part(plan) for part in parts):
        lines.append(f"{'' if label == last else label:{WIDTH}} {text}")
        last = label
    return lines


def _describe_archive(plan: Plan) -> Lines:
    """Describe the files to score, the existing run, and a difference from calibration images."""
    run, unknown = plan.run, plan.unknown_sizes
    if unlike := unlike_sentence(plan.unlike):
        yield "unlike", unlike
    sizes = wording.size(plan.size_bytes) + (f" and {unknown:,} of unknown size" if unknown else "")
    to_score = " to score" if run else ""
    yield (
        "archive",
        f"{wording.pluralize(plan.members, 'file')}{to_score}, {'of unknown size' if unknown == plan.members > 0 else sizes}",
    )
    for kind, members in plan.kinds.items() if set(plan.kinds) - {"files"} else ():
        containers = (
            f" in {wording.pluralize(members.containers, 'file')}" if members.containers else ""
        )
        size = f", {wording.size(members.size_bytes)}" if members.size_bytes else ""
        yield "archive", f"{members.members:,} {_FORMATS.get(kind, kind)}{containers}{size}"
    for status, count in plan.refused_in_listing.items():
        yield (
            "archive",
            f"{count:,} rejected by the listing: {status}, {wording.describe_status(status)}",
        )
    if run is not None and run.state == "begun":
        yield (
            "run",
            f"{wording.escape_invisible(run.url)}: started, but its listing did not finish and starts again",
        )
    elif run is not None:
        done = f"{wording.pluralize(run.members_done, 'file')} in {wording.pluralize(run.blocks_done, 'block')}"
        remaining = f"{wording.pluralize(run.members_left, 'file')} in {wording.pluralize(run.blocks_left, 'block')}"
        yield (
            "run",
            f"{wording.escape_invisible(run.url)}: {run.state}; {done} already done, skipped",
        )
        if run.state == "unfinished":
            yield "run", f"left: {remaining}; the existing listing is used"
        else:
            yield (
                "run",
                f"left: {remaining}, new or changed since"
                if run.members_left
                else "left: nothing; no file is new or changed",
            )


def _describe_ensemble(plan: Plan) -> Lines:
    """Describe the ensemble, its guarantee, perturbations, and the stages of a cascade."""
    yield (
        "ensemble",
        f"{plan.ensemble}: {plan.rule} over {len(plan.detectors)}: {', '.join(plan.detectors)}",
    )
    if (guarantee := plan.guarantee) is not None:
        yield (
            "guarantee",
            describe_guarantee(
                guarantee.target_fpr,
                guarantee.upper_bound,
                guarantee.confidence,
                guarantee.population,
            ),
        )
        if guarantee.otherwise:
            yield (
                "guarantee",
                f"does not hold for these settings: {', '.join(guarantee.otherwise)}",
            )
        else:
            yield (
                "guarantee",
                "at its end, the run compares the archive with those images; if they differ much, all verdicts abstain",
            )
    if views := plan.views:
        yield (
            "perturb",
            f"{len(views) + 1} passes over every image, decoded once: unchanged, and {', '.join(views)}",
        )
    if cascade := plan.cascade:
        second_stage = (
            f"{', '.join(cascade.second)} on about {wording.percent(cascade.share)} of the images"
        )
        yield "cascade", f"{', '.join(cascade.first)} on all, {second_stage}"
        if cascade.seconds_per_image:
            first, second = (cascade.seconds_per_image[stage] for stage in ("first", "second"))
            yield (
                "cascade",
                f"per image of the archive, a core needs {first:.2g} s for the first stage and on average {second:.2g} s for the second",
            )


def _describe_images(plan: Plan) -> Lines:
    """Describe the work on each image: embeddings, profile, decoding, tensors, and backbones."""
    for name, width in (plan.features or {}).items():
        size = wording.size(_FLOAT_BYTES * width * plan.members)
        yield (
            "embeddings",
            f"{width:,} numbers per image, of {name}: about {size} in the run directory, for other heads",
        )
    profile = plan.profile
    if profile and profile.identifier:
        yield "profile", f"{profile.identifier} names the generator of every image"
    if profile and profile.describer:
        subject = "all images" if profile.describe == "all" else "images called fake"
        fraction = (
            "" if profile.share is None else f", {wording.percent(profile.share)} of the images"
        )
        yield "profile", f"{profile.describer} predicts the prompt of {subject}{fraction}"
    decodes_twice = plan.kind != "fused" and plan.keeps_sizes
    yield (
        "decode",
        "every image once for fixed sizes, and again if a detector scores it in its own size"
        if decodes_twice
        else "every image once",
    )
    for tensor in plan.tensors:
        yield "tensors", f"{_format_shape(tensor)} for {', '.join(tensor.detectors)}"
    for backbone in plan.backbones:
        yield "backbones", _format_backbone(backbone)
    image_size = " (of one megapixel)" * plan.keeps_sizes
    gmac = f"{wording.number(plan.gmac_per_image)} billion multiply-adds per image{image_size}"
    yield "work", gmac if plan.gmac_per_image else "not stated on the cards"


def _describe_nodes(plan: Plan) -> Lines:
    """Describe the machines, and the processes on them."""
    cluster = plan.cluster
    gpus = wording.pluralize(cluster.gpus, "GPU") if cluster.gpus else "no GPU"
    is_priced = cluster.nodes or cluster.price_per_hour
    price = (
        f"{wording.number(cluster.price_per_hour, decimals=2)} per hour"
        if is_priced
        else "no price per hour set"
    )
    yield (
        "cluster",
        f"{wording.escape_invisible(cluster.name or 'unnamed')}: {wording.pluralize(cluster.cpus, 'core')}, {gpus}; {price}",
    )
    for node in cluster.nodes:
        resources = f"{node.cpus} cores" + (
            f", {node.gpus} × {wording.escape_invisible(node.gpu or 'GPU')}" if node.gpus else ""
        )
        node_price = f"{wording.number(node.price_per_hour, decimals=2)} per hour each"
        yield (
            "cluster",
            f"{node.count} × {wording.escape_invisible(node.name or 'node')}: {resources}; {node_price}",
        )
    yield (
        "layout",
        f"{plan.layout}; {wording.pluralize(plan.blocks, 'block')}, each of at most {plan.block_members:,} files",
    )
    for index, group in enumerate(plan.groups or (), 1):
        yield "turns", f"{index}: {', '.join(group)}"


def _describe_memory(plan: Plan) -> Lines:
    """Describe the memory of processes and large images on each node, and pools of detectors."""
    memory = plan.memory
    detectors = " in which detectors take turns" if plan.groups else " that holds all detectors"
    yield (
        "memory",
        f"about {wording.size(plan.process_bytes)} for a process{detectors}, by the sizes on their cards",
    )
    if memory.total_bytes is None or memory.decode_bytes is None or memory.file_bytes is None:
        yield (
            "memory",
            "and a quarter of the memory of each node, whose size is not known, for large images, which take turns",
        )
    else:
        decoding, files = wording.size(memory.decode_bytes), wording.size(memory.file_bytes)
        processes = _count_processes(memory.processes, "process")
        total = f"at most {wording.size(memory.total_bytes)} on a node: {processes}"
        yield (
            "memory",
            f"{total}, {decoding} for large images, which take turns, {files} for large files",
        )
        if memory.worst_bytes > memory.decode_bytes:
            rejected = f"images that take more than {decoding} to decode are image_too_large there"
            admitted = f"although the limits admit up to {wording.size(memory.worst_bytes)}"
            yield (
                "memory",
                f"{rejected}, {admitted}: use --set cluster.decode_bytes={memory.worst_bytes} if nodes have enough memory",
            )
    if len(plan.pools) > 1:
        yield from (("pools", ", ".join(pool)) for pool in plan.pools)


def _describe_probe(plan: Plan) -> Lines:
    """Describe the sample that was scored, and how many of its files were rejected."""
    probe = plan.probe
    if probe is None:
        return
    action = "scored" if probe.scored else "decoded"
    processes = _count_processes(probe.processes, "process")
    size = max(probe.sample_size, probe.members)
    members = f"{probe.members:,} of {size:,}" if size > probe.members else f"{size:,}"
    noun = "file" if size == 1 else "files"
    yield (
        "probe",
        f"{members} {noun}, drawn evenly, {action} by {processes} of this machine, as in a run",
    )
    low, high = map(wording.percent, probe.refused_share.interval or (0.0, 1.0))
    if not probe.refused:
        yield (
            "probe",
            f"none of {probe.members} rejected; of the archive at most {high} (95 % interval)",
        )
        return
    counts = ", ".join(
        f"{count} {status}" for status, count in probe.statuses.items() if status != "ok"
    )
    yield (
        "probe",
        f"{probe.refused} of {probe.members} rejected: {counts}; of the archive {low} to {high} (95 % interval)",
    )
    for status, examples in probe.examples.items():
        name = wording.truncate(
            wording.file_name(examples[0].uri, examples[0].member), _MAX_EXAMPLE_WIDTH
        )
        yield (
            "probe",
            f"  {status}: e.g. {name}: {wording.truncate(examples[0].detail, _MAX_EXAMPLE_WIDTH)}",
        )


def _describe_stages(plan: Plan, width: int) -> Lines:
    """Describe the maximum rate of each stage, and the bottleneck."""
    rows = []
    for stage in plan.stages:
        seconds, rate = stage.seconds_per_image, stage.images_per_s
        on_gpu = stage.stage in ("score", "describe") and plan.kind == "split" and plan.cluster.gpus
        rows.append([
            stage.stage,
            wording.NONE if seconds is None else f"{seconds:.2g}" if seconds < 0.01 else f"{seconds:.3f}",
            "not known" if rate is None else f"{wording.number(rate)} images/s",
            _count_processes(stage.processes, "GPU process" if on_gpu else "process"),
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
                "each process runs all stages in turn; “at most” is the rate if it ran only this stage",
            )
        else:
            yield (
                "stages",
                "fetch, decode and prepare share their cores; “at most” is the rate of each stage alone",
            )
    if plan.bottleneck:
        yield "bottleneck", f"{plan.bottleneck.stage}: {plan.bottleneck.advice}"
        if (cores := plan.bottleneck.cores_per_gpu) is not None:
            yield "bottleneck", f"cores that keep one GPU busy: {max(cores, 1):,.0f}"


def _describe_detectors(plan: Plan, width: int) -> Lines:
    """Describe the time of each detector if there are several."""
    headers, rows = ["detector", "ms per image", "with others", "of the time", ""], []
    for name, cost in (plan.costs or {}).items():
        times = (
            wording.NONE if time_ms is None else wording.number(time_ms)
            for time_ms in (cost.ms_per_image, cost.spent_ms)
        )
        fraction = wording.NONE if cost.share is None else wording.percent(cost.share)
        rows.append([name, *times, fraction, cost.basis])
    if len(rows) > 1:
        yield from (("detectors", line) for line in table(headers, rows, width, right={1, 2, 3}))
        if plan.backbones:
            yield (
                "detectors",
                "“ms per image”: alone, on one core or GPU; “with others”: the first detector of a shared backbone includes its time",
            )


def _describe_forecast(plan: Plan) -> Lines:
    """Describe the rate and the hours, and the fraction of the work within the run's limits."""
    forecast, stops = plan.forecast, plan.stops
    if forecast is None or forecast.images_per_s is None:
        yield (
            "forecast",
            "none: there was no probe (--probe 0)" if forecast is None else "nothing to do",
        )
        return
    total, starting, listing = (
        wording.duration(seconds)
        for seconds in (3600 * forecast.hours, forecast.starting_s, forecast.listing_s)
    )
    rate = f"{forecast.images_per_s:,.1f} images/s ({wording.size(forecast.bytes_per_s or 0)}/s from the source)"
    parts = f"including {starting} to start and {listing} to list; machines that are not running yet take longer"
    yield "forecast", f"{rate}: {total} in total, {parts}"
    if forecast.assumed_gmac_per_s:
        assumption = f"multiply-adds on their cards at {forecast.assumed_gmac_per_s:,.0f} billion a second on each GPU"
        yield (
            "forecast",
            f"the detectors' time is not measured, because this machine has no GPU: {assumption}",
        )
    if stops.share is not None and stops.share < 1:
        options = {"--max-hours": stops.max_hours, "--max-cost": stops.max_cost}
        limits = " and ".join(
            f"{name} {limit:g}" for name, limit in options.items() if limit is not None
        )
        fraction = f"about {wording.percent(stops.share)} of that"
        yield (
            "forecast",
            f"{limits} would stop it at {fraction}; run the same command again to resume",
        )


def _describe_requests(plan: Plan) -> Lines:
    """Describe the requests to the stores, and the bytes that are read from the source."""
    requests, read = plan.requests, f"{wording.size(plan.bytes_read)} read"
    if not requests.any:
        yield "requests", f"none that a store would bill: everything is on this machine; {read}"
        return
    yield (
        "requests",
        f"at least {requests.list:,} LIST, {requests.get:,} GET, {requests.put:,} PUT; {read}",
    )
    if any(kind.startswith("tar.") for kind in plan.kinds) and plan.workers > 1:
        reason = "every worker with a part of such a file reads it from its start"
        yield "requests", f"more for compressed tar files: {reason}"


def _describe_cost(plan: Plan, width: int) -> Lines:
    """Describe the cost line by line and in total, in the currency of the prices."""
    cost, prices, forecast = plan.cost, plan.prices, plan.forecast
    is_priced = bool(prices["per_hour"] or plan.cluster.nodes)
    total = "without the machines"
    if cost.compute is None or forecast is None or not is_priced:
        rows = [
            ["compute", wording.NONE, "not known: there was no probe" if is_priced else _NO_PRICE]
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
        unit_cost = (
            ""
            if cost.per_1000_members is None
            else f", {wording.number(cost.per_1000_members, decimals=2)} per 1,000 files"
        )
        compute_fraction = (
            ""
            if cost.compute_share is None
            else f"; {wording.percent(cost.compute_share)} of it is compute"
        )
        total = f"in the currency of the prices{unit_cost}{compute_fraction}"
    rows.append(["total", wording.number(cost.total, decimals=2), total])
    yield from (("cost", line) for line in table(rows[0], rows[1:], width, right={1}))


def _count_processes(count: int, noun: str) -> str:
    return wording.pluralize(count, noun).replace("processs", "processes")


def _format_shape(tensor: PlannedTensor) -> str:
    shape, resize = tensor.shape, tensor.preprocessing.get("resize", {"mode": "none"})
    if shape is None:
        return (
            "own size" if resize["mode"] == "none" else f"own aspect, at most {resize['size']} px"
        )
    method = (
        "crop"
        if resize["mode"] == "none"
        else f"{resize['mode']}, {tensor.preprocessing.get('filter', 'bilinear')}"
    )
    return f"{shape[0]} × {shape[1]} ({method.replace('_', ' ')})"


def _format_backbone(backbone: PlannedBackbone) -> str:
    runs = [f"once for {' and '.join(users)}" for users in backbone.runs_once_for]
    loaded_once = ", loaded once" * (len(runs) > 1)
    return f"{backbone.name} runs {', '.join(runs)}{loaded_once}"
