"""What a training will do and need before anything is started (`touchstone train --dry-run`):
`plan`, `plan_lines`.

Memory is counted and measured: parameters, gradients and optimiser state from the network's
tensors, activations from one image.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from ray_app.detectors import DetectorCard
from ray_app.detectors.detector import Normalise
from ray_app.detectors.precision import ResolvedPrecision, autocast
from ray_app.inference.spec import precision_on
from ray_app.training import job, networks
from ray_app.training.config import Initial, TrainConfig

_MIB = 2**20


def plan(
    config: TrainConfig, card: DetectorCard, rows: int, layout: job.TrainingLayout
) -> dict[str, Any]:
    """What the dry run says of the training itself, as plain JSON. `rows`: of an epoch."""
    steps = config.loop.steps or max(
        1, math.ceil((config.loop.epochs or 1.0) * rows / config.loop.batch - 1e-9)
    )
    share = config.loop.batch // layout.workers
    micro = min(config.loop.micro_batch or share, share)
    return {
        "name": config.name,
        "detector": config.detector,
        "steps": steps,
        "rows_per_epoch": rows,
        "epochs": round(steps * config.loop.batch / rows, 3),
        "batch": config.loop.batch,
        "images_per_worker_and_step": share,
        "micro_batch": micro,
        "memory": memory(config, card, micro, layout),
        "layout": asdict(layout),
    }


def memory(
    config: TrainConfig, card: DetectorCard, micro_batch: int, layout: job.TrainingLayout
) -> dict[str, Any]:
    """Bytes that one worker needs for the network and for `micro_batch` images; nothing is learned
    and no weights are read.

    FSDP2 divides what belongs to the network among the workers; DDP keeps it whole in each.
    """
    network = networks.network_for(
        config.model_copy(update={"initial": Initial(start="random")}), card
    )
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    learning_bytes = _bytes(learning)
    optimiser = config.optimiser
    moments = 2 if optimiser.name in ("adam", "adamw") else 1 if optimiser.momentum else 0
    precision = precision_on("cuda" if layout.worker_gpus else "cpu", card, config.loop.precision)
    divided = layout.workers if config.workers.strategy == "fsdp2" else 1
    parts = {
        "parameters": _bytes([*network.parameters(), *network.buffers()]) // divided,
        "gradients": learning_bytes // divided,
        "optimiser": moments * learning_bytes // divided,
        "activations": activation_bytes(card, network, precision) * micro_batch,
    }
    counts = {
        name: sum(map(torch.numel, every))
        for name, every in (("parameters", network.parameters()), ("learning", learning))
    }
    return {"counts": counts, "bytes": parts | {"together": sum(parts.values())}}


def activation_bytes(
    card: DetectorCard, network: torch.nn.Module, precision: ResolvedPrecision
) -> int:
    """What two images leave behind for the way back, halved: measured on this machine's CPU."""
    assert card.preprocessing.shape is not None, "networks that are trained have one input size"
    height, width = card.preprocessing.shape
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    # Norms of batches would take up what they see.
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        autocast("cpu", precision),
    ):
        answer = networks.Learning(network.train())(Normalise(card.preprocessing)(images))
    del answer
    return sum(kept.values()) // 2


def plan_lines(planned: Mapping[str, Any]) -> list[str]:
    """The dry run in words, for the terminal."""
    layout, memory_of = planned["layout"], planned["memory"]
    lines = [
        f"{planned['name']}: {planned['steps']:,} steps of {planned['batch']:,} images, {planned['epochs']:g} epochs"
        f" of {planned['rows_per_epoch']:,} images",
        f"workers   {_workers(layout)}; {planned['images_per_worker_and_step']:,} images per worker and step,"
        f" {planned['micro_batch']:,} at once",
        f"network   {memory_of['counts']['parameters']:,} parameters, {memory_of['counts']['learning']:,} of them learn",
        "memory    "
        + ", ".join(f"{name} {size / _MIB:,.0f} MiB" for name, size in memory_of["bytes"].items())
        + " per worker",
    ]
    return [*lines, *_data_lines(planned["data"])] if planned["data"] else lines


def source_lines(sources: Iterable[Mapping[str, Any]], *, one_class: bool = False) -> list[str]:
    """What each source holds: files, splits, published numbers, documented faults; and what is of
    one class alone, where that is wrong.
    """
    lines, counts = [], defaultdict[str, Counter[str]](Counter)
    for source in sources:
        size = (
            ""
            if source["files"] is None
            else f": {source['files']:,} files, {source['size_bytes'] / 1e9:,.1f} GB"
        )
        lines.append(
            f"{source['for'] + ' ':<10}{' '.join([*source['at'], *source['include']])}{size}; {source['counted']}"
        )
        about = "" if source["exact"] else "~"
        for one in source["splits"]:
            words = f"{one['real'] + one['fake']:,} rows: {about}{one['real']:,} real, {about}{one['fake']:,} fake"
            lines.append(
                f"          {one['split'] or 'no split'}  {words}{'' if one['taken'] else ', not taken'}"
            )
        told = [one for one in source["published"] if one["published"] is not None]
        lines += [
            f"          {one['subset']}  published {one['published']:,}, found {one['rows']:,}"
            for one in told
        ]
        lines += [f"fault     {line}" for line in source["faults"]]
        counts[source["for"]].update(real=source["real"], fake=source["fake"])
    ones = [
        (name, "fake" if count["fake"] else "real")
        for name, count in counts.items()
        if not (one_class or all(count.values()))
    ]
    return [
        *lines,
        *(
            f"WARNING   data.{name}: only {label} images are found; a detector needs both"
            for name, label in ones
        ),
    ]


def _workers(layout: Mapping[str, Any]) -> str:
    count = (
        f"{layout['least']} to {layout['workers']}"
        if layout["least"] != layout["workers"]
        else str(layout["workers"])
    )
    gpus = f", {layout['worker_gpus']:g} GPU" if layout["worker_gpus"] else ""
    return f"{count} with {layout['worker_cpus']:g} CPU{gpus} and {layout['loaders']} loaders of {layout['loader_cpus']:g} CPU each"


def _data_lines(findings: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, split in findings["splits"].items():
        lines.append(
            f"{name + ' ':<10}{split['images']:,} images: {split['real']:,} real, {split['fake']:,} fake"
        )
        lines += [
            f"          {generator}  {images:,}"
            for generator, images in split["generators"].items()
        ]
    aside, leakage = findings["set_aside"], findings["leakage"]
    if aside["images"]:
        lines.append(
            f"set aside {aside['images']:,} images: "
            + ", ".join(f"{why} {images:,}" for why, images in aside["why"].items())
        )
    if unknown := [name for name, checked in leakage["checked"].items() if not checked]:
        lines.append(
            f"leakage   by {' and '.join(unknown)} not checked: touchstone data index --hash {','.join(unknown)}"
        )
    for pair, found in leakage["pairs"].items():
        message = ", ".join(
            f"{name} {count:,}" for name, count in found.items() if name != "examples" and count
        )
        lines.append(f"leakage   {pair}: {message or 'none found'}")
    return [*lines, "whether every image can be read is seen while training"]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
