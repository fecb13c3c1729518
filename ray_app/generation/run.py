"""One session of `touchstone generate`: read, draw, make what is not there, publish. Interrupted anywhere, the same command goes on."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ray_app.archives import name_of
from ray_app.errors import ClusterError, ConfigError, ExitCode, resumable
from ray_app.generation.cards import PipelineCard, load_pipeline_card
from ray_app.generation.config import GenerateConfig
from ray_app.generation.directory import GeneratedDirectory
from ray_app.generation.licences import require_accepted
from ray_app.generation.looks import Measured, measure, plain_look
from ray_app.generation.making import Job, Maker
from ray_app.generation.models import Model, fetch_model, find_model, pipeline_class
from ray_app.generation.orders import Block, Order, cut_blocks, digest_of_orders, make_orders
from ray_app.generation.prompts import read_prompts
from ray_app.scoring.progress import Progress
from ray_app.storage import Lease, Store

_STALL_S = 3600.0  # a first block waits for tens of gigabytes of weights
_WORKER_CPUS = 0.5


class Making(Protocol):
    """What makes blocks: this process, or actors."""

    def __call__(self, job: Job, blocks: Sequence[Block], /) -> Iterator[dict[str, int]]:
        """A report for each block as it is committed."""


@dataclass(frozen=True)
class Finished:
    """How a job ended: `exit_code` is DONE, or TOO_MANY_BAD where not one image was made; `summary` is the content of `summary.json`."""

    exit_code: ExitCode
    summary: dict[str, Any]


def generate_images(config: GenerateConfig, *, retry: bool = False) -> Finished:
    """Make what `config` orders in `config.out`, from wherever an earlier session of the same command stopped.

    With `retry`, blocks with images that failed are made again. Raises ConfigError, IdentityError, DetectorError (licence or model),
    StorageError, ClusterError, and KeyboardInterrupt; those that the same call resumes from carry the note RESUMABLE.
    """
    if not config.out:
        raise ConfigError("no directory: --out DIR is missing", hint="touchstone generate CONFIG --prompts FILE --out DIR")
    start = time.monotonic()
    card = card_of(config)
    require_accepted(card, config.accept_licences)
    pipeline_class(card)
    prompts = read_prompts(config, images=card.task == "inpainting")
    directory = GeneratedDirectory(Store.open(config.out))
    measured = _measured(config, directory)
    looks = measured.looks if measured else (plain_look(config.encode),)
    orders = make_orders(prompts, per_prompt=config.per_prompt, base_seed=config.seed, sizes=config.sizes or card.sizes, looks=looks)
    model = _model(card, directory)
    with Lease(directory.store, unguarded=config.unguarded) as lease, resumable(KeyboardInterrupt, ClusterError):
        directory.claim(_identity(config, card, model, orders))
        if measured is not None:
            directory.keep_looks(measured)
        if retry:
            directory.reopen()
        blocks = cut_blocks(orders, config.block_images)
        pending = directory.pending(blocks)
        if pending:
            _make(config, card, model, directory, lease, pending, total=len(orders))
        summary = directory.publish(len(orders))
        summary |= {"like": measured.facts() if measured else None, "task": card.task,
                    "session": {"blocks": len(pending), "wall_s": round(time.monotonic() - start, 2), **lease.facts()}}  # fmt: skip
        directory.store.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return Finished(ExitCode.DONE if summary["made"] else ExitCode.TOO_MANY_BAD, summary)


def card_of(config: GenerateConfig) -> PipelineCard:
    """The config's card, with another model or revision where it asks for one. Raises ConfigError."""
    card = load_pipeline_card(config.pipeline)
    asked = {"model": config.model, "revision": config.revision}
    changed = card.model_copy(update={key: value for key, value in asked.items() if value is not None})
    changed._folder = card.folder
    return changed


def _measured(config: GenerateConfig, directory: GeneratedDirectory) -> Measured | None:
    if config.like is None:
        return None
    return directory.looks() or measure(config.like, config.limits, config.retry, allow_private=config.allow_private)


def _model(card: PipelineCard, directory: GeneratedDirectory) -> Model:
    """The card's model; a branch of the hub stays at the commit that the directory was begun with."""
    begun = directory.described()
    if begun and card.revision is None and card.local_folder is None and begun["model"]["place"] == card.model:
        return Model(card.model, begun["model"]["revision"], False)
    return find_model(card)


def _identity(config: GenerateConfig, card: PipelineCard, model: Model, orders: Sequence[Order]) -> dict[str, Any]:
    """What another command on the same directory must match: all that decides which pixels lie in which file."""
    chosen = config.model_dump(
        mode="json",
        include={"per_prompt", "limit", "seed", "steps", "guidance", "sizes", "generator", "encode", "masks", "paste", "mark",
                 "block_images", "device", "precision"},
    )  # fmt: skip
    like = config.like and config.like.model_dump(mode="json") | {"source": name_of(config.like.source)}
    facts = card.facts() | {"model": None}
    return {"command": "generate", "card": facts, "model": {"place": model.place, "revision": model.revision}, "like": like,
            "orders": digest_of_orders(orders), **chosen}  # fmt: skip


def _make(
    config: GenerateConfig,
    card: PipelineCard,
    model: Model,
    directory: GeneratedDirectory,
    lease: Lease,
    pending: Sequence[Block],
    *,
    total: int,
) -> None:
    fetch_model(card, model)
    progress = Progress(total, done=total - sum(len(block.orders) for block in pending), name="generate")
    try:
        with _workers(config) as (making, device):
            precision = config.precision if config.precision != "auto" else card.precision if device == "cuda" else "fp32"
            progress.say(f"{total:,} images by {card.name} in {precision} on {device}, {len(pending):,} blocks to be made")
            for report in making(Job(directory.store, card, model, config, device, precision), pending):
                progress.advance(report["images"], report["bad"])
                lease.check()
    finally:
        progress.close()


@contextmanager
def _workers(config: GenerateConfig) -> Iterator[tuple[Making, str]]:
    """What makes the blocks, and on which device: this process where one worker is enough and no cluster is named, else actors."""
    from ray_app.scoring.cluster import cluster, named_cluster, resources

    asked, own = config.cluster, _own_gpus(config)
    if named_cluster(asked.address) is None and (asked.workers or max(own, 1)) == 1:
        yield _here, _device(config, own)
        return
    from ray_app.generation.pool import made_by_actors

    with cluster(asked):
        cpus, gpus, _ = resources(asked)
        device = _device(config, gpus)
        workers = asked.workers or max(1, int(gpus) if device == "cuda" else 1)
        share = min(1.0, gpus / workers) if device == "cuda" else 0.0
        stall_s = asked.stall_timeout_s or _STALL_S
        yield partial(made_by_actors, workers=workers, cpus=min(_WORKER_CPUS, cpus / workers), gpus=share, stall_s=stall_s), device


def _here(job: Job, blocks: Sequence[Block]) -> Iterator[dict[str, int]]:
    maker = Maker(job)
    return (maker(block) for block in blocks)


def _device(config: GenerateConfig, gpus: float) -> str:
    return config.device if config.device != "auto" else "cuda" if gpus else "cpu"


def _own_gpus(config: GenerateConfig) -> int:
    if config.device == "cpu":
        return 0
    import torch

    return int(torch.cuda.device_count())
