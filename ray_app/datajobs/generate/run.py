"""One session of `touchstone data generate`: `generate_images` reads, draws, makes what is missing, publishes. The same command resumes.

generate.json       what is made, how: another command on the same directory is refused
looks.json          how the real set's files are stored, measured once
images/, masks/     what was made
parts/              the rows of each block; a block is done when they are there
generated.parquet   the rows of all images that were made: what `touchstone data index` and `touchstone score` take
failed.parquet      the rows of those that were not, each with its status
summary.json        the figures, when all blocks are done
"""

import io
import json
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.archives import Each, in_turn, name_of
from ray_app.cluster.progress import Progress
from ray_app.datajobs.generate import pipelines, requests, rows, worker
from ray_app.datajobs.generate.config import GenerateConfig, PipelineCard, load_pipeline_card, require_accepted
from ray_app.errors import ClusterError, ConfigError, ExitCode, resumable
from ray_app.runs.directory import claim_directory
from ray_app.runs.table_files import write_tables
from ray_app.storage import Lease, Store
from ray_app.streams.each import Applier

_STALL_S = 3600.0  # a first block waits for tens of gigabytes of weights
_WORKER_CPUS = 0.5
_FORMAT = 1
_RETRIES = 5  # of a block whose process died: once it may be the node, but not for ever


@dataclass(frozen=True)
class GenerationResult:
    """How a job ended: `exit_code` is DONE, or TOO_MANY_BAD where not one image was made; `summary` is the content of `summary.json`."""

    exit_code: ExitCode
    summary: dict[str, Any]


def generate_images(config: GenerateConfig, *, retry: bool = False) -> GenerationResult:
    """Make what `config` orders in `config.out`, from wherever an earlier session of the same command stopped.

    With `retry`, blocks with images that failed are made again. Raises ConfigError, IdentityError, DetectorError (licence or model),
    StorageError, ClusterError, and KeyboardInterrupt; those that the same call resumes from carry the note RESUMABLE.
    """
    if not config.out:
        raise ConfigError("no directory: --out DIR is missing", hint="touchstone data generate CONFIG --prompts FILE --out DIR")
    start = time.monotonic()
    card = card_of(config)
    require_accepted(card, config.accept_licences)
    pipelines.pipeline_class(card)
    prompts = requests.read_prompts(config, images=card.task == "inpainting")
    directory = GeneratedDirectory(Store.open(config.out))
    measured = _measured(config, directory)
    looks = measured.looks if measured else (requests.plain_look(config.encode),)
    orders = requests.make_requests(
        prompts, per_prompt=config.per_prompt, base_seed=config.seed, sizes=config.sizes or card.sizes, looks=looks
    )
    model = _model(card, directory)
    with Lease(directory.store, unguarded=config.unguarded) as lease, resumable(KeyboardInterrupt, ClusterError):
        directory.claim(_identity(config, card, model, orders))
        if measured is not None:
            directory.keep_looks(measured)
        if retry:
            directory.reopen()
        blocks = requests.cut_blocks(orders, config.block_images)
        pending = directory.pending(blocks)
        if pending:
            _make(config, card, model, directory, lease, pending, total=len(orders))
        summary = directory.publish(len(orders))
        summary |= {"like": measured.facts() if measured else None, "task": card.task,
                    "session": {"blocks": len(pending), "wall_s": round(time.monotonic() - start, 2), **lease.facts()}}  # fmt: skip
        directory.store.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return GenerationResult(ExitCode.DONE if summary["made"] else ExitCode.TOO_MANY_BAD, summary)


def card_of(config: GenerateConfig) -> PipelineCard:
    """The config's card, with another model or revision where it names one. Raises ConfigError."""
    card = load_pipeline_card(config.pipeline)
    chosen = {"model": config.model, "revision": config.revision}
    changed = card.model_copy(update={key: value for key, value in chosen.items() if value is not None})
    changed._folder = card.folder
    return changed


@dataclass(frozen=True)
class GeneratedDirectory:
    """What a job makes, on any fsspec URL."""

    store: Store

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make the directory this job's, or check that it already is. Raises IdentityError with the differences."""
        ours = {"format": _FORMAT, **identity}
        claim_directory(self.store, "generate.json", ours, same="pipeline, prompts, seed and settings")

    def described(self) -> dict[str, Any] | None:
        """What the directory was begun with; None where nothing was."""
        try:
            return dict(json.loads(self.store.read("generate.json")))
        except FileNotFoundError:
            return None

    def looks(self) -> requests.FileStyles | None:
        """The looks that were measured when the directory was begun."""
        try:
            content = json.loads(self.store.read("looks.json"))
        except FileNotFoundError:
            return None
        looks = [
            requests.FileStyle(one["format"], one["quality"], one["subsampling"], tuple(one["size"]) if one["size"] else None)
            for one in content["looks"]
        ]
        return requests.FileStyles(tuple(looks), content["left_out"])

    def keep_looks(self, measured: requests.FileStyles) -> None:
        """Write them down, so that a later session draws from the same."""
        content = {"looks": [asdict(look) for look in measured.looks], "left_out": measured.left_out}
        self.store.write("looks.json", json.dumps(content).encode())

    def pending(self, blocks: Sequence[requests.GenerationBlock]) -> list[requests.GenerationBlock]:
        """Blocks that are not done."""
        done = set(self.store.names("parts"))
        return [block for block in blocks if block.path.removeprefix("parts/") not in done]

    def reopen(self) -> int:
        """Take back the blocks with images that failed, so that they are made again; returns how many. What a safety checker blanked
        would be blanked again and is no failure.
        """
        failed = [path for path, table in self._parts() if set(table["status"].to_pylist()) - {rows.OK, rows.BLANKED}]
        for path in failed:
            self.store.delete(path)
        return len(failed)

    def publish(self, ordered: int) -> dict[str, Any]:
        """Write the tables and return the figures. Raises ClusterError where the rows are not one for each of the `ordered` images."""
        statuses, formats, generators, masks = Counter[str](), Counter[str](), Counter[str](), 0
        seen, noises = set[int](), set[str]()
        for _, table in self._parts():
            statuses.update(table["status"].to_pylist())
            seen.update(table["index"].to_pylist())
            made = table.filter(pc.equal(table["status"], rows.OK))
            formats.update(made["format"].to_pylist())
            generators.update(made["generator"].to_pylist())
            noises.update(made["latents_sha256"].to_pylist())
            masks += len(made) - made["mask"].null_count
        if len(seen) != ordered or statuses.total() != ordered:
            raise ClusterError(
                f"{self.store.url}: {statuses.total()} rows of {len(seen)} images, of {ordered}", hint="please report this: it is a bug"
            )
        write_tables(self.store, "generated", rows.SCHEMA, (table.filter(pc.equal(table["status"], rows.OK)) for _, table in self._parts()))
        write_tables(
            self.store, "failed", rows.SCHEMA, (table.filter(pc.not_equal(table["status"], rows.OK)) for _, table in self._parts())
        )
        return {"out": self.store.url, "images": ordered, "made": statuses[rows.OK], "statuses": dict(statuses.most_common()),
                "formats": dict(formats.most_common()), "generators": dict(generators), "noises": len(noises), "masks": masks}  # fmt: skip

    def _parts(self) -> Iterator[tuple[str, pa.Table]]:
        for name in self.store.names("parts"):
            yield f"parts/{name}", pq.read_table(io.BytesIO(self.store.read(f"parts/{name}")))


def _measured(config: GenerateConfig, directory: GeneratedDirectory) -> requests.FileStyles | None:
    if config.like is None:
        return None
    return directory.looks() or requests.measure(config.like, config.limits, config.retry, allow_private=config.allow_private)


def _model(card: PipelineCard, directory: GeneratedDirectory) -> pipelines.Model:
    """The card's model; a branch of the hub stays at the commit that the directory was begun with."""
    begun = directory.described()
    if begun and card.revision is None and card.local_folder is None and begun["model"]["place"] == card.model:
        return pipelines.Model(card.model, begun["model"]["revision"], False)
    return pipelines.find_model(card)


def _identity(
    config: GenerateConfig, card: PipelineCard, model: pipelines.Model, orders: Sequence[requests.ImageRequest]
) -> dict[str, Any]:
    """What another command on the same directory must match: all that decides which pixels lie in which file."""
    chosen = config.model_dump(
        mode="json",
        include={"per_prompt", "limit", "seed", "steps", "guidance", "sizes", "generator", "encode", "masks", "paste", "mark",
                 "block_images", "device", "precision"},
    )  # fmt: skip
    like = config.like and config.like.model_dump(mode="json") | {"source": name_of(config.like.source)}
    facts = card.facts() | {"model": None}
    return {"command": "generate", "card": facts, "model": {"place": model.place, "revision": model.revision}, "like": like,
            "orders": requests.digest_of_orders(orders), **chosen}  # fmt: skip


def _make(
    config: GenerateConfig,
    card: PipelineCard,
    model: pipelines.Model,
    directory: GeneratedDirectory,
    lease: Lease,
    pending: Sequence[requests.GenerationBlock],
    *,
    total: int,
) -> None:
    pipelines.fetch_model(card, model)
    progress = Progress(total, done=total - sum(len(block.orders) for block in pending), name="generate")
    try:
        with _workers(config) as (each, device):
            precision = config.precision if config.precision != "auto" else card.precision if device == "cuda" else "fp32"
            progress.say(f"{total:,} images by {card.name} in {precision} on {device}, {len(pending):,} blocks to be made")
            maker = worker.GenerationWorker(worker.GenerationJob(directory.store, card, model, config, device, precision))
            with closing(each(maker, pending)) as reports:
                for report in reports:
                    progress.advance(report["images"], report["bad"])
                    lease.check()
    finally:
        progress.close()


@contextmanager
def _workers(config: GenerateConfig) -> Iterator[tuple[Each, str]]:
    """What makes the blocks, and on which device: this process where one worker is enough and no cluster is named, else a pool."""
    from ray_app.cluster.ray_cluster import cluster, named_cluster, resources

    wanted, own = config.cluster, _own_gpus(config)
    if named_cluster(wanted.address) is None and (wanted.workers or max(own, 1)) == 1:
        yield in_turn, _device(config, own)
        return

    from ray_app.streams.pool import Pool, stream

    with cluster(wanted):
        cpus, gpus, _ = resources(wanted)
        device = _device(config, gpus)
        workers = wanted.workers or max(1, int(gpus) if device == "cuda" else 1)
        share = min(1.0, gpus / workers) if device == "cuda" else 0.0

        def pooled(maker: Any, blocks: Any, /) -> Generator[Any, None, None]:
            size = min(workers, len(blocks))
            pool = Pool(Applier, (maker,), size, size, min(_WORKER_CPUS, cpus / workers), share, wanted.labels, _RETRIES)
            return stream(partial(iter, blocks), [pool], name="generate", stall_s=wanted.stall_timeout_s or _STALL_S)

        yield pooled, device


def _device(config: GenerateConfig, gpus: float) -> str:
    return config.device if config.device != "auto" else "cuda" if gpus else "cpu"


def _own_gpus(config: GenerateConfig) -> int:
    if config.device == "cpu":
        return 0
    import torch

    return int(torch.cuda.device_count())
