"""One session of `touchstone data generate`: `generate_images` reads, draws, makes what is missing,
publishes. The same command resumes.

generate.json       what is made, how: another command on the same directory is refused images/,
masks/     what was made parts/              the rows of each block; a block is done when they are
there generated.parquet   the rows of all images that were made: what `touchstone data index` and
`touchstone score` take failed.parquet      the rows of those that were not, each with its status
summary.json        the figures, when all blocks are done
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

from ray_app.archives import Each, in_turn
from ray_app.cluster.progress import Progress
from ray_app.datajobs.generate import pipelines, requests
from ray_app.datajobs.generate.config import (
    GenerateConfig,
    PipelineCard,
    load_pipeline_card,
    require_accepted,
)
from ray_app.datajobs.generate.worker import BLANKED, FAILED, SCHEMA, GenerationWorker
from ray_app.datajobs.parts import OK, labelled, part_names, read_parts, remove_part, work_through
from ray_app.errors import ClusterError, ConfigError, Status, resumable
from ray_app.reports import format as wording
from ray_app.runs.directory import claim_directory, claimed_by, is_claimed
from ray_app.runs.table_files import write_tables
from ray_app.storage import Lease, Store, with_s3_settings
from ray_app.streams.worker_pool import in_pool

_STALL_S = 3600.0  # a first block waits for tens of gigabytes of weights
_WORKER_CPUS = 0.5
_RETRIES = 5  # of a block whose process died: once it may be the node, but not for ever
_SAME = "pipeline, prompts, seed and settings"
_MEANING = {
    BLANKED: "the pipeline's safety checker put black in its place; no file was kept",
    FAILED: "the pipeline raised on it",
}


@with_s3_settings
def generate_images(config: GenerateConfig, *, retry: bool = False) -> dict[str, Any]:
    """Make what `config` describes in `config.out`, from wherever an earlier session of the same
    command stopped; returns the content of `summary.json`, in which `made` may be 0.

    With `retry`, blocks with images that failed are made again. Raises ConfigError, IdentityError,
    DetectorError (licence or model), StorageError, ClusterError, and KeyboardInterrupt; those that
    the same call resumes from carry the note RESUMABLE.
    """
    if not config.out:
        raise ConfigError(
            "no directory: --out DIR is missing",
            hint="touchstone data generate CONFIG --prompts FILE --out DIR",
        )
    start = time.monotonic()
    card = card_of(config)
    require_accepted(card, config.accept_licences)
    pipelines.pipeline_class(card)
    prompts = requests.read_prompts(config, images=card.task == "inpainting")
    store = Store.open(config.out)
    wanted = requests.make_requests(
        prompts,
        per_prompt=config.per_prompt,
        base_seed=config.seed,
        sizes=config.sizes or card.sizes,
        encoding=config.encode,
    )
    model = _model(card, store)
    identity = _identity(config, card, model, wanted)
    is_claimed(store, "generate.json", identity, same=_SAME)  # Raises before the lease is written.
    with (
        Lease(store, unguarded=config.unguarded) as lease,
        resumable(KeyboardInterrupt, ClusterError),
    ):
        claim_directory(store, "generate.json", identity, same=_SAME)
        if retry:
            for name, rows in read_parts(store):
                # what a safety checker blanked would be blanked again
                if set(rows["status"].to_pylist()) - {OK, BLANKED}:
                    remove_part(store, name)
        done = set(part_names(store))
        pending = [
            block
            for block in requests.cut_blocks(wanted, config.block_images)
            if block.name not in done
        ]
        if pending:
            _make(config, card, model, store, lease, pending, total=len(wanted))
        summary = _publish(store, len(wanted))
        session = {
            "blocks": len(pending),
            "wall_s": round(time.monotonic() - start, 2),
            **lease.facts(),
        }
        summary |= {"task": card.task, "session": session}
        store.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return summary


def card_of(config: GenerateConfig) -> PipelineCard:
    """Return the config's card, with the model and the revision that the config names. Raises
    ConfigError.
    """
    card = load_pipeline_card(config.pipeline)
    # All others are names on the hub.
    is_path = config.model is not None and config.model.startswith(("/", ".", "~"))
    model = str(Path(config.model or "").expanduser().resolve()) if is_path else config.model
    chosen = {"model": model, "revision": config.revision}
    return card.model_copy(
        update={key: value for key, value in chosen.items() if value is not None}
    )


def _publish(store: Store, wanted: int) -> dict[str, Any]:
    """Write the tables and return the figures. Raises ClusterError where the rows are not one for
    each of the `wanted` images.
    """
    statuses, formats, generators, masks = Counter[str](), Counter[str](), Counter[str](), 0
    seen = set[int]()
    for _, table in read_parts(store):
        statuses.update(table["status"].to_pylist())
        seen.update(table["index"].to_pylist())
        made = table.filter(pc.equal(table["status"], OK))
        formats.update(made["format"].to_pylist())
        generators.update(made["generator"].to_pylist())
        masks += len(made) - made["mask"].null_count
    if len(seen) != wanted or statuses.total() != wanted:
        message = f"{store.url}: {statuses.total()} rows of {len(seen)} images, of {wanted}"
        raise ClusterError(message, hint="please report this: it is a bug")
    for name, is_meant in (("generated", pc.equal), ("failed", pc.not_equal)):
        write_tables(
            store,
            name,
            SCHEMA,
            (
                # Parts of earlier versions have further columns.
                table.filter(is_meant(table["status"], OK)).select(SCHEMA.names)
                for _, table in read_parts(store)
            ),
        )
    return {"out": store.url, "images": wanted, "made": statuses[OK], "statuses": dict(statuses.most_common()),
            "formats": dict(formats.most_common()), "generators": dict(generators), "masks": masks}  # fmt: skip


def _model(card: PipelineCard, store: Store) -> pipelines.Model:
    """The card's model; a branch of the hub stays at the commit that the directory was begun with."""
    begun = claimed_by(store, "generate.json")
    if (
        begun
        and card.revision is None
        and card.local_folder is None
        and begun["model"]["place"] == card.model
    ):
        return pipelines.Model(card.model, begun["model"]["revision"], False)
    return pipelines.find_model(card)


def _identity(
    config: GenerateConfig,
    card: PipelineCard,
    model: pipelines.Model,
    wanted: Sequence[requests.ImageRequest],
) -> dict[str, Any]:
    """What another command on the same directory must match: all that decides which pixels lie in
    which file.
    """
    chosen = config.model_dump(
        mode="json",
        include={"per_prompt", "limit", "seed", "steps", "guidance", "sizes", "generator", "encode", "masks", "paste", "mark",
                 "block_images", "device", "precision"},
    )  # fmt: skip
    facts = card.facts() | {"model": None}
    return {"format": 2, "command": "generate", "card": facts, "model": {"place": model.place, "revision": model.revision},
            "orders": requests.digest_of_requests(wanted), **chosen}  # fmt: skip


def _make(
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
    with _workers(config) as (each, device):
        precision = (
            config.precision
            if config.precision != "auto"
            else card.precision
            if device == "cuda"
            else "fp32"
        )
        say = f"{total:,} images by {card.name} in {precision} on {device}, {len(pending):,} blocks to be made"
        worker = GenerationWorker(store, card, model, config, device, precision)
        work_through(each, worker, pending, progress=progress, lease=lease, say=say)


@contextmanager
def _workers(config: GenerateConfig) -> Iterator[tuple[Each, str]]:
    """What makes the blocks, and on which device: this process where one worker is enough and no
    cluster is named, else a pool.
    """
    from ray_app.cluster.ray_cluster import cluster, named_cluster, resources

    wanted, own = config.cluster, _own_gpus(config)
    if named_cluster(wanted.address) is None and (wanted.workers or max(own, 1)) == 1:
        yield in_turn, _device(config, own)
        return

    with cluster(wanted):
        cpus, gpus, _ = resources(wanted)
        device = _device(config, gpus)
        workers = wanted.workers or max(1, int(gpus) if device == "cuda" else 1)
        share = min(1.0, gpus / workers) if device == "cuda" else 0.0
        stall_s, cores = wanted.stall_timeout_s or _STALL_S, min(_WORKER_CPUS, cpus / workers)
        pooled = partial(
            in_pool,
            size=workers,
            cpus=cores,
            gpus=share,
            labels=wanted.labels,
            retries=_RETRIES,
            ordered=False,
        )
        yield partial(pooled, stall_s=stall_s), device


def _device(config: GenerateConfig, gpus: float) -> str:
    return config.device if config.device != "auto" else "cuda" if gpus else "cpu"


def _own_gpus(config: GenerateConfig) -> int:
    if config.device == "cpu":
        return 0
    import torch

    return int(torch.cuda.device_count())


@labelled
def generate_lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was made, what was not and where that is listed, and the commands that take it."""
    out = wording.visible(summary["out"])
    names = ", ".join(summary["generators"])
    yield (
        "made",
        f"{summary['made']:,} of {wording.counted(summary['images'], 'image')}"
        + (f" by {names}" if names else ""),
    )
    yield (
        "files",
        ", ".join(f"{count:,} {name}" for name, count in summary["formats"].items()) or "none",
    )
    if len(summary["formats"]) == 1:
        yield (
            "",
            "all in one format, which may give the fakes away: see encode.format and encode.quality",
        )
    if summary["masks"]:
        yield "masks", f"{summary['masks']:,} in {out}/masks"
    if bad := {status: count for status, count in summary["statuses"].items() if status != OK}:
        yield (
            "not made",
            f"{sum(bad.values()):,}, listed in {out}/failed.parquet; --retry tries again what failed",
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
