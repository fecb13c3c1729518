"""Predict the steps and the memory of a training, for `touchstone train --dry-run`.

`plan_training` trains nothing. It counts the bytes of parameters, gradients, and optimiser state
from the network's tensors. It measures the bytes of activations per image on this machine's CPU.
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
from ray_app.inference.spec import choose_precision
from ray_app.reports.format import size as format_size
from ray_app.training import job, networks
from ray_app.training.config import Initial, TrainConfig

_MIB = 2**20


def plan_training(
    config: TrainConfig, card: DetectorCard, rows: int, layout: job.TrainingLayout
) -> dict[str, Any]:
    """Predict the number of steps and the memory of a training, as plain JSON.

    Args:
        config: The settings.
        card: The card of the network to train.
        rows: Number of rows of an epoch.
        layout: The number of workers and their resources.

    Returns:
        `name` and `detector` of the recipe, `steps`, `rows_per_epoch`, `epochs`, `batch`,
        `images_per_worker_and_step`, `micro_batch`, `memory` (see `estimate_memory`), and `layout`.
    """
    steps = config.loop.steps or max(
        1, math.ceil((config.loop.epochs or 1.0) * rows / config.loop.batch - 1e-9)
    )
    worker_batch = config.loop.batch // layout.workers
    micro_batch = min(config.loop.micro_batch or worker_batch, worker_batch)
    return {
        "name": config.name,
        "detector": config.detector,
        "steps": steps,
        "rows_per_epoch": rows,
        "epochs": round(steps * config.loop.batch / rows, 3),
        "batch": config.loop.batch,
        "images_per_worker_and_step": worker_batch,
        "micro_batch": micro_batch,
        "memory": estimate_memory(config, card, micro_batch, layout),
        "layout": asdict(layout),
    }


def estimate_memory(
    config: TrainConfig, card: DetectorCard, micro_batch: int, layout: job.TrainingLayout
) -> dict[str, Any]:
    """Return the bytes that one worker needs for the network and for a micro-batch.

    No training step is made, and no weights are read. FSDP2 divides the network among the workers.
    With DDP, each worker holds the whole network.

    Args:
        config: The settings.
        card: The card of the network to train.
        micro_batch: Images that one worker computes at once.
        layout: The number of workers and their resources.

    Returns:
        `bytes` by purpose, such as `gradients`, with their sum `together`. `counts` has the number
        of `parameters`, and how many of them are `learning`.
    """
    network = networks.build_training_network(
        config.model_copy(update={"initial": Initial(start="random")}), card
    )
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    learning_bytes = _count_bytes(trained)
    optimiser = config.optimiser
    moments = 2 if optimiser.name in ("adam", "adamw") else 1 if optimiser.momentum else 0
    precision = choose_precision(
        "cuda" if layout.worker_gpus else "cpu", card, config.loop.precision
    )
    n_parts = layout.workers if config.workers.strategy == "fsdp2" else 1
    parts = {
        "parameters": _count_bytes([*network.parameters(), *network.buffers()]) // n_parts,
        "gradients": learning_bytes // n_parts,
        "optimiser": moments * learning_bytes // n_parts,
        "activations": measure_activation_bytes(card, network, precision) * micro_batch,
    }
    counts = {
        name: sum(map(torch.numel, tensors))
        for name, tensors in (("parameters", network.parameters()), ("learning", trained))
    }
    return {"counts": counts, "bytes": parts | {"together": sum(parts.values())}}


def measure_activation_bytes(
    card: DetectorCard, network: torch.nn.Module, precision: ResolvedPrecision
) -> int:
    """Return the bytes per image that the backward pass needs, measured on this machine's CPU.

    Args:
        card: The card of the network.
        network: The network.
        precision: The precision of the device that will train.
    """
    assert card.preprocessing.shape is not None, "networks that are trained have one input size"
    height, width = card.preprocessing.shape
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    # Training mode changes the running statistics of batch normalisation. The network is discarded.
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        autocast("cpu", precision),
    ):
        answer = networks.TrainingModule(network.train())(Normalise(card.preprocessing)(images))
    del answer
    return sum(sizes.values()) // 2


def format_plan(plan: Mapping[str, Any]) -> list[str]:
    """Return the plan of a dry run as lines for the terminal.

    The plan is that of `plan_training` with the added key `data`. The value of `data` is the counts
    of the splits (`Splits.findings`), or None if the dry run did not make splits.
    """
    layout, memory = plan["layout"], plan["memory"]
    lines = [
        f"{plan['name']}: {plan['steps']:,} steps of {plan['batch']:,} images, {plan['epochs']:g} epochs"
        f" of {plan['rows_per_epoch']:,} images",
        f"workers   {_format_workers(layout)}; {plan['images_per_worker_and_step']:,} images per worker and step,"
        f" {plan['micro_batch']:,} at once",
        f"network   {memory['counts']['parameters']:,} parameters, {memory['counts']['learning']:,} of them learn",
        "memory    "
        + ", ".join(f"{name} {size / _MIB:,.0f} MiB" for name, size in memory["bytes"].items())
        + " per worker",
    ]
    return [*lines, *_format_data(plan["data"])] if plan["data"] else lines


def format_source_lines(
    sources: Iterable[Mapping[str, Any]], *, one_class: bool = False
) -> list[str]:
    """Return lines for the terminal on each data source of a training, for a dry run.

    The lines show the files, the images per split, and known faults of published data.

    Args:
        sources: Counts of files, splits, and labels of each source, as `survey.survey` returns
            them. The added key `for` has the split that the source is for.
        one_class: Whether the data may have only real or only fake images. Otherwise a split that
            lacks one of them gets a warning.
    """
    lines, counts = [], defaultdict[str, Counter[str]](Counter)
    for source in sources:
        size = (
            ""
            if source["files"] is None
            else f": {source['files']:,} files, {format_size(source['size_bytes'])}"
        )
        lines.append(
            f"{source['for'] + ' ':<10}{' '.join([*source['at'], *source['include']])}{size}; {source['counted']}"
        )
        prefix = "" if source["exact"] else "~"
        for item in source["splits"]:
            text = f"{item['real'] + item['fake']:,} rows: {prefix}{item['real']:,} real, {prefix}{item['fake']:,} fake"
            lines.append(
                f"          {item['split'] or 'no split'}  {text}{'' if item['taken'] else ', not used here'}"
            )
        published_subsets = [item for item in source["published"] if item["published"] is not None]
        lines += [
            f"          {item['subset']}  published {item['published']:,}, found {item['rows']:,}"
            for item in published_subsets
        ]
        lines += [f"fault     {line}" for line in source["faults"]]
        counts[source["for"]].update(real=source["real"], fake=source["fake"])
    one_class_splits = [
        (name, "fake" if count["fake"] else "real")
        for name, count in counts.items()
        if not (one_class or all(count.values()))
    ]
    return [
        *lines,
        *(
            f"WARNING   data.{name}: only {label} images are found; a detector needs both"
            for name, label in one_class_splits
        ),
    ]


def _format_workers(layout: Mapping[str, Any]) -> str:
    count = (
        f"{layout['least']} to {layout['workers']}"
        if layout["least"] != layout["workers"]
        else str(layout["workers"])
    )
    gpus = f", {layout['worker_gpus']:g} GPU" if layout["worker_gpus"] else ""
    return f"{count} with {layout['worker_cpus']:g} CPU{gpus} and {layout['loaders']} loaders of {layout['loader_cpus']:g} CPU each"


def _format_data(findings: Mapping[str, Any]) -> list[str]:
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
            + ", ".join(f"{reason} {images:,}" for reason, images in aside["why"].items())
        )
    if unchecked := [name for name, checked in leakage["checked"].items() if not checked]:
        lines.append(
            f"leakage   by {' and '.join(unchecked)} not checked: touchstone data index --hash {','.join(unchecked)}"
        )
    for pair, counts in leakage["pairs"].items():
        message = ", ".join(
            f"{name} {count:,}" for name, count in counts.items() if name != "examples" and count
        )
        lines.append(f"leakage   {pair}: {message or 'none found'}")
    return [*lines, "unreadable images are not known before training"]


def _count_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
