"""A plan (see `scoring.forecasting`) as lines for a terminal. Knows words, no numbers of its own."""

from collections.abc import Iterator, Mapping
from typing import Any

from ray_app.reports import wording

WIDTH = 11


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """What would be scored, what is shared, which processes do it, and how long that takes."""
    lines: list[tuple[str, str]] = [
        ("archive", f"{plan['members']:,} members, {wording.size(plan['size_bytes'])}"),
        ("ensemble", f"{plan['ensemble']}: {plan['rule']} over {len(plan['detectors'])}: {', '.join(plan['detectors'])}"),
        ("decode", _decoding(plan)),
        *_labelled("tensors", (f"{_shape(tensor)} for {', '.join(tensor['detectors'])}" for tensor in plan["tensors"])),
        *_labelled("backbones", (_shared(backbone) for backbone in plan["backbones"])),
        ("work", _work(plan)),
        ("layout", f"{plan['layout']}; blocks of up to {plan['block_members']:,} members"),
        ("memory", f"about {wording.size(plan['process_bytes'])} for a process that holds all detectors, by the sizes on their cards"),
        *_labelled("pools", (", ".join(pool) for pool in plan["pools"] if len(plan["pools"]) > 1)),
        *_probe(plan),
    ]
    return [f"{label:{WIDTH}}{text}" for label, text in lines]


def _decoding(plan: Mapping[str, Any]) -> str:
    if plan["kind"] == "fused" or not _keeps_sizes(plan):
        return "every image once"
    return "every image once for fixed sizes, and again where it is scored in its own"


def _work(plan: Mapping[str, Any]) -> str:
    if not plan["gmac_per_image"]:
        return "the cards state no size"
    return f"{plan['gmac_per_image']:,.3g} billion multiply-adds per image" + " (of one megapixel)" * _keeps_sizes(plan)


def _probe(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    probe = plan["probe"]
    if probe is None:
        yield "forecast", "none: no probe was made (GPUs are planned, or --probe 0)"
        return
    stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in probe["seconds"].items())
    yield "probe", f"{probe['images']} images on one core: {probe['seconds_per_image']:.3f} s each ({stages})"
    if probe["failed"]:
        yield "", f"{probe['failed']} of the sample could not be read or decoded: the forecast is that much too low"
    cost = "" if probe["cost"] is None else f", {probe['cost']:,.2f} at the price given"
    total = wording.duration(probe["hours"] * 3600)
    yield "forecast", f"{probe['images_per_s']:,.1f} images/s with {plan['workers']} workers, {total} in all{cost}"


def _shape(tensor: Mapping[str, Any]) -> str:
    shape, resize = tensor["shape"], tensor["preprocessing"].get("resize", {"mode": "none"})
    if shape is None:
        return "own size" if resize["mode"] == "none" else f"own aspect, at most {resize['size']} px"
    how = "crop" if resize["mode"] == "none" else f"{resize['mode']}, {tensor['preprocessing'].get('filter', 'bilinear')}"
    return f"{shape[0]} × {shape[1]} ({how.replace('_', ' ')})"


def _shared(backbone: Mapping[str, Any]) -> str:
    runs = [f"once for {' and '.join(users)}" for users in backbone["runs_once_for"]]
    held = ", held once" * (len(runs) > 1)
    return f"{backbone['name']} runs {', '.join(runs)}{held}"


def _labelled(label: str, texts: Iterator[str]) -> Iterator[tuple[str, str]]:
    for place, text in enumerate(texts):
        yield (label if place == 0 else "", text)


def _keeps_sizes(plan: Mapping[str, Any]) -> bool:
    return any(tensor["shape"] is None for tensor in plan["tensors"])
