"""Run `touchstone data generate`: `generate_images` is the entry point.

`generate_images` reads the prompts, generates the missing blocks, and writes the tables. The output
directory has these files:

- `generate.json`: pipeline, prompts, and settings. A command with other settings is rejected.
- `images/` and `masks/`: the generated files.
- `parts/`: the rows of each block. A block with rows is done.
- `generated.parquet`: the rows of all generated images, which `touchstone data index` and
  `touchstone score` read.
- `failed.parquet`: the rows of all other images, each with its status.
- `summary.json`: the counts, written when all blocks are done.
"""

import json
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from ray_app.archives import MapFunction, map_serial
from ray_app.cluster.progress import Progress
from ray_app.datajobs.generate import pipelines, requests
from ray_app.datajobs.generate.config import (
    GenerateConfig,
    PipelineCard,
    load_pipeline_card,
    require_accepted,
)
from ray_app.datajobs.generate.worker import BLANKED, FAILED, SCHEMA, GenerationWorker
from ray_app.datajobs.parts import (
    OK,
    format_labels,
    list_parts,
    read_parts,
    remove_part,
    run_units,
)
from ray_app.errors import ClusterError, ConfigError, Status, resumable
from ray_app.reports import format as text_format
from ray_app.runs.directory import claim_directory, is_claimed, read_claiming_identity
from ray_app.runs.table_files import write_tables
from ray_app.storage import Lease, Store, apply_s3_settings
from ray_app.streams.worker_pool import map_in_pool

_STALL_S = 3600.0  # The first block waits until tens of gigabytes of weights are loaded.
_WORKER_CPUS = 0.5
# Retries of a block whose process died. One death may be the fault of the node, many are not.
_RETRIES = 5
_SAME = "pipeline, prompts, seed and settings"
_MEANING = {
    BLANKED: "the pipeline's safety checker replaced the image with a black one; no file was written",
    FAILED: "the pipeline raised an exception",
}


@apply_s3_settings
def generate_images(config: GenerateConfig, *, retry: bool = False) -> dict[str, Any]:
    """Generate the images of a job in `config.out`, or resume an earlier call.

    `retry` generates blocks with failed images again. Images that the pipeline's safety checker
    blanked do not count as failed. The result is the content of `summary.json`, whose `made` is 0
    if no image was generated. ClusterError and KeyboardInterrupt have the RESUMABLE note: the same
    call resumes.
    """
    if not config.out:
        raise ConfigError(
            "--out DIR is missing: the images need a directory",
            hint="run touchstone data generate CONFIG --prompts FILE --out DIR",
        )
    start = time.monotonic()
    card = resolve_card(config)
    require_accepted(card, config.accept_licences)
    pipelines.find_pipeline_class(card)
    prompts = requests.read_prompts(config, images=card.task == "inpainting")
    store = Store.open(config.out)
    image_requests = requests.make_requests(
        prompts,
        per_prompt=config.per_prompt,
        base_seed=config.seed,
        sizes=config.sizes or card.sizes,
        encoding=config.encode,
    )
    model = _find_model(card, store)
    identity = _make_identity(config, card, model, image_requests)
    is_claimed(store, "generate.json", identity, same=_SAME)  # Raises before the lease is written.
    with (
        Lease(store, unguarded=config.unguarded) as lease,
        resumable(KeyboardInterrupt, ClusterError),
    ):
        claim_directory(store, "generate.json", identity, same=_SAME)
        if retry:
            for name, rows in read_parts(store):
                # The safety checker would replace the same images again.
                if set(rows["status"].to_pylist()) - {OK, BLANKED}:
                    remove_part(store, name)
        done = set(list_parts(store))
        pending = [
            block
            for block in requests.cut_blocks(image_requests, config.block_images)
            if block.name not in done
        ]
        if pending:
            _generate_blocks(config, card, model, store, lease, pending, total=len(image_requests))
        summary = _write_tables(store, len(image_requests))
        session = {
            "blocks": len(pending),
            "wall_s": round(time.monotonic() - start, 2),
            **lease.facts(),
        }
        summary |= {"task": card.task, "session": session}
        store.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return summary


def resolve_card(config: GenerateConfig) -> PipelineCard:
    """Load the pipeline card that a job names.

    If the config sets a model or a revision, these replace those of the card.
    """
    card = load_pipeline_card(config.pipeline)
    # Other values are ids on the hub.
    is_path = config.model is not None and config.model.startswith(("/", "."))
    model = str(Path(config.model or "").resolve()) if is_path else config.model
    overrides = {"model": model, "revision": config.revision}
    return card.model_copy(
        update={key: value for key, value in overrides.items() if value is not None}
    )


def _write_tables(store: Store, total: int) -> dict[str, Any]:
    """Write the tables and return the counts.

    Raises ClusterError if there is not exactly one row for each of the `total` images.
    """
    statuses, formats, generators, masks = Counter[str](), Counter[str](), Counter[str](), 0
    indices = set[int]()
    for _, table in read_parts(store):
        statuses.update(table["status"].to_pylist())
        indices.update(table["index"].to_pylist())
        generated = table.filter(pc.equal(table["status"], OK))
        formats.update(generated["format"].to_pylist())
        generators.update(generated["generator"].to_pylist())
        masks += len(generated) - generated["mask"].null_count
    if len(indices) != total or statuses.total() != total:
        message = f"{store.url}: there must be one row for each of {total} images, got {statuses.total()} rows of {len(indices)} images"
        raise ClusterError(message, hint="report this: it is a bug in Touchstone")
    for name, compare in (("generated", pc.equal), ("failed", pc.not_equal)):
        write_tables(
            store,
            name,
            SCHEMA,
            (
                # Parts of earlier versions have further columns.
                table.filter(compare(table["status"], OK)).select(SCHEMA.names)
                for _, table in read_parts(store)
            ),
        )
    return {"out": store.url, "images": total, "made": statuses[OK], "statuses": dict(statuses.most_common()),
            "formats": dict(formats.most_common()), "generators": dict(generators), "masks": masks}  # fmt: skip


def _find_model(card: PipelineCard, store: Store) -> pipelines.Model:
    """Find the model of a card. A model on the hub keeps the commit of the existing directory."""
    existing = read_claiming_identity(store, "generate.json")
    if (
        existing
        and card.revision is None
        and card.local_folder is None
        and existing["model"]["place"] == card.model
    ):
        return pipelines.Model(card.model, existing["model"]["revision"], False)
    return pipelines.find_model(card)


def _make_identity(
    config: GenerateConfig,
    card: PipelineCard,
    model: pipelines.Model,
    image_requests: Sequence[requests.ImageRequest],
) -> dict[str, Any]:
    """Return the identity of the directory: all settings that determine the pixels of each file."""
    settings = config.model_dump(
        mode="json",
        include={"per_prompt", "limit", "seed", "steps", "guidance", "sizes", "generator", "encode", "masks", "paste", "mark",
                 "block_images", "device", "precision"},
    )  # fmt: skip
    facts = card.facts() | {"model": None}
    return {"format": 2, "command": "generate", "card": facts, "model": {"place": model.location, "revision": model.revision},
            "orders": requests.hash_requests(image_requests), **settings}  # fmt: skip


def _generate_blocks(
    config: GenerateConfig,
    card: PipelineCard,
    model: pipelines.Model,
    store: Store,
    lease: Lease,
    pending: Sequence[requests.GenerationBlock],
    *,
    total: int,
) -> None:
    pipelines.fetch_model(card, model)
    progress = Progress(
        total, done=total - sum(len(block.requests) for block in pending), name="generate"
    )
    with _workers(config) as (map_fn, device):
        precision = (
            config.precision
            if config.precision != "auto"
            else card.precision
            if device == "cuda"
            else "fp32"
        )
        message = f"{total:,} images by {card.name} in {precision} on {device}, {len(pending):,} blocks left to generate"
        worker = GenerationWorker(store, card, model, config, device, precision)
        run_units(map_fn, worker, pending, progress=progress, lease=lease, message=message)


@contextmanager
def _workers(config: GenerateConfig) -> Iterator[tuple[MapFunction, str]]:
    """Yield the function that runs blocks, and its device.

    Blocks run in this process if one worker is enough and no cluster is named, else in a pool on
    Ray.
    """
    from ray_app.cluster.ray_cluster import cluster, named_cluster, resources

    cluster_config, local_gpus = config.cluster, _count_local_gpus(config)
    if (
        named_cluster(cluster_config.address) is None
        and (cluster_config.workers or max(local_gpus, 1)) == 1
    ):
        yield map_serial, _choose_device(config, local_gpus)
        return

    with cluster(cluster_config):
        cpus, gpus, _ = resources(cluster_config)
        device = _choose_device(config, gpus)
        workers = cluster_config.workers or max(1, int(gpus) if device == "cuda" else 1)
        worker_gpus = min(1.0, gpus / workers) if device == "cuda" else 0.0
        stall_s, worker_cpus = (
            cluster_config.stall_timeout_s or _STALL_S,
            min(_WORKER_CPUS, cpus / workers),
        )
        map_items = partial(
            map_in_pool,
            size=workers,
            cpus=worker_cpus,
            gpus=worker_gpus,
            labels=cluster_config.labels,
            retries=_RETRIES,
            ordered=False,
        )
        yield partial(map_items, stall_s=stall_s), device


def _choose_device(config: GenerateConfig, gpus: float) -> str:
    return config.device if config.device != "auto" else "cuda" if gpus else "cpu"


def _count_local_gpus(config: GenerateConfig) -> int:
    if config.device == "cpu":
        return 0
    import torch

    return int(torch.cuda.device_count())


@format_labels
def generate_lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the lines of text that the command prints about generated and failed images.

    If any image was generated, the last lines are commands that use the images. Each line is a
    label and a text, which `format_labels` joins.
    """
    out = text_format.escape_invisible(summary["out"])
    names = ", ".join(summary["generators"])
    yield (
        "generated",
        f"{summary['made']:,} of {text_format.pluralize(summary['images'], 'image')}"
        + (f" by {names}" if names else ""),
    )
    yield (
        "files",
        ", ".join(f"{count:,} {name}" for name, count in summary["formats"].items()) or "none",
    )
    if len(summary["formats"]) == 1:
        yield (
            "",
            "all files have one format, by which a detector may recognise fakes: see encode.format and encode.quality",
        )
    if summary["masks"]:
        yield "masks", f"{summary['masks']:,} in {out}/masks"
    if bad := {status: count for status, count in summary["statuses"].items() if status != OK}:
        yield (
            "failed",
            f"{sum(bad.values()):,}, listed in {out}/failed.parquet; use --retry to try again, except for blanked images",
        )
        for status, count in bad.items():
            yield "", f"{count:,} {status}: {_MEANING.get(status) or Status(status).meaning}"
    if summary["made"]:
        table, root = (
            f"{out}/generated.parquet",
            ["--set", f"arguments.root={out}"] if summary["masks"] else [],
        )
        yield (
            "next",
            shlex.join(
                [
                    "touchstone",
                    "data",
                    "index",
                    table,
                    "--layout",
                    "columns",
                    *root,
                    "--out",
                    "INDEX",
                ]
            ),
        )
        yield "", shlex.join(["touchstone", "score", table, "--out", "RUN"])
