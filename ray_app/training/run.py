"""Run one training from its recipe to its results: `train`.

`train` records in `train.json` that the directory belongs to the recipe, and indexes the images,
which means that it lists them with their labels. It divides them into splits, trains, evaluates,
and exports. Every step can be interrupted anywhere; the same command resumes from what is in
storage. `prepare_data` returns the labelled rows of each split, and `make_job` the job that the
workers get. The recipe's method decides what is learned and written: `finish`,
`linear_probe.probe`, `identify`, or `describe`.

A single worker is this process, without Ray. Several workers, or a named cluster, run on Ray
(`uses_ray`), unless torchrun started this process. Under torchrun, the other processes only make
the training steps (`_follow`).
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa

from ray_app.archives import MapFunction, map_serial
from ray_app.archives.progress import ProgressLog
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import (
    cluster,
    has_other_nodes,
    map_on_ray,
    named_cluster,
    resources,
)
from ray_app.datasets import index, sampling, survey, training_prompts
from ray_app.datasets.config import DatasetSource, HeldOut
from ray_app.datasets.splits import Splits, make_splits, require_sources
from ray_app.detectors import (
    MIRROR_VARIABLE,
    DetectorCard,
    licences,
    publish_weights,
    resolve_weights,
)
from ray_app.detectors.cpu import cpu_precision
from ray_app.errors import ClusterError, ConfigError, resumable
from ray_app.inference.spec import choose_precision
from ray_app.reports import identification
from ray_app.reports.training import training_lines
from ray_app.storage import Guard, Lease, Store, apply_s3_settings, local_path
from ray_app.storage.node_budget import usable_cores
from ray_app.streams.worker_pool import map_in_pool
from ray_app.training import checkpoints, networks, validate
from ray_app.training.config import PROFILING, TrainConfig
from ray_app.training.export import METRICS, finish, push
from ray_app.training.job import TrainingJob, TrainingLayout, plan_workers
from ray_app.training.loader import make_loader, measure_real_images
from ray_app.training.local import (
    is_under_torchrun,
    join_torchrun,
    torchrun_machines,
    torchrun_rank,
    torchrun_world,
    train_here,
)
from ray_app.training.plan import format_plan, format_source_lines, plan_training
from ray_app.training.run_directory import FILE as CLAIM
from ray_app.training.run_directory import check_claim, claim_data, claim_recipe, restore_config
from ray_app.transforms.policies.papers import RealStatistics, load_statistics, save_statistics

SPLITS = "splits.json"
STATISTICS = "real_statistics.npz"
MEASURED_REALS = 2000


def list_milestones(order: sampling.SampleOrder, total: int, every: int | None) -> frozenset[int]:
    """Return the steps after which the network is validated, which include the last step.

    The steps are `every` steps apart. None validates at the end of each epoch.
    """
    if every is not None:
        return frozenset([*range(every, total, every), total])
    epochs = int(total * order.batch / order.rows_per_epoch)
    return frozenset(
        [
            *(
                order.count_steps(epoch)
                for epoch in range(1, epochs + 1)
                if order.count_steps(epoch) < total
            ),
            total,
        ]
    )


@dataclass(frozen=True)
class PreparedTraining:
    """The data of a training, as `prepare_data` returns them.

    Attributes:
        order: Computes which training rows a step loads.
        milestones: Steps after which the network is validated.
        guard: The web servers from which images may be fetched, if a list of images names their
            URLs.
    """

    splits: Splits
    order: sampling.SampleOrder
    total_steps: int
    milestones: frozenset[int]
    guard: Guard = field(default_factory=Guard)


def list_initial_cards(config: TrainConfig, card: DetectorCard) -> list[DetectorCard]:
    """Return a card for each set of weights that a training starts from.

    Callers check the licences of the cards, fetch the weights, and copy them to storage for other
    machines. The list has the detector's card, or one card per file under the recipe's
    `initial.weights`. It is empty if the weights are random.
    """
    if config.initial.start == "card":
        return [card]
    files = config.initial.weights.items()
    return [
        card.model_copy(
            update={
                "name": f"{config.name}-{part}",
                "weights": weights,
                "backbone": None,
                "terms": "permissive",
            }
        )
        for part, weights in files
    ]


def _check_prerequisites(
    config: TrainConfig, card: DetectorCard, out: Store, claim: Mapping[str, Any] | None
) -> None:
    """Check licences, weights, sources, and the statistics file before anything is started.

    If the claim of an earlier session has the data, neither the sources nor the statistics file are
    checked.
    """
    for initial_card in list_initial_cards(config, card):
        licences.require_accepted(initial_card, config.accept_licences)
        resolve_weights(initial_card)
    if claim is not None and "data" in claim["identity"]:
        return
    require_sources(config.data)
    for sources in (config.data.train, config.data.validation, config.data.test):
        for source in () if isinstance(sources, HeldOut) else sources:
            index.check_source(source, out)
    if config.augmentation.statistics is not None:
        load_statistics(Path(local_path(config.augmentation.statistics)))


def prepare_data(
    config: TrainConfig,
    out: Store,
    *,
    each: MapFunction = map_serial,
    reading: MapFunction = map_serial,
) -> PreparedTraining:
    """List the images of the recipe's sources with their labels, and divide them into splits.

    The list of a source, its index, is stored below `data/` in the training's directory. A source
    that has an index is not listed again. If the method is `describe`, all images have prompts, and
    no prompt is in two splits. `each` and `reading` are functions like `map`. `reading` is for
    tasks that read images. Raises ConfigError if the sources do not make valid splits.
    """
    guards: list[Guard] = []
    open_source = make_opener(out, each, reading, guards)
    if config.method == "describe":
        splits = training_prompts.drop_training_prompts(
            make_splits(config.data, training_prompts.with_prompts(open_source), one_class=True)
        )
    else:
        splits = make_splits(config.data, open_source, one_class=config.method in PROFILING)
    loop = config.loop
    order = sampling.SampleOrder(splits.train, config.sampling, loop.seed, loop.batch)
    total = loop.steps or order.count_steps(loop.epochs or 1.0)
    out.write(SPLITS, json.dumps(splits.findings, indent=2, ensure_ascii=False).encode())
    return PreparedTraining(
        splits,
        order,
        total,
        list_milestones(order, total, config.validation.every),
        reduce(Guard.merge, guards, Guard()),
    )


def make_opener(
    out: Store, each: MapFunction, reading: MapFunction, guards: list[Guard]
) -> Callable[[DatasetSource], pa.Table]:
    """Return a function that takes a data source and returns its labelled rows.

    The function lists the images of the source if the training's directory has no index of them.
    Sources that read the same files share an index, even if they are for different splits. The
    function appends the web servers that each source may fetch images from to `guards`. `each` and
    `reading` are as in `prepare_data`.
    """

    def open_source(source: DatasetSource) -> pa.Table:
        store = locate_index(source, out)
        rows = index.index_source(
            source,
            store,
            each=each,
            reading=reading,
            progress=ProgressLog("index"),
            requires_all_folders=True,
        )
        guards.append(index.get_source_guard(source, store))
        return rows

    return open_source


def locate_index(source: DatasetSource, out: Store) -> Store:
    """Return the folder for the index of a source, which lists the images with their labels.

    Two sources that differ only in `split`, `generators`, or `allow_private` share this folder.
    """
    content = source.model_dump_json(exclude={"split", "generators", "allow_private"})
    return out.subdir(f"data/{hashlib.sha256(content.encode()).hexdigest()[:12]}")


def make_job(
    config: TrainConfig,
    card: DetectorCard,
    out: Store,
    layout: TrainingLayout,
    prepared: PreparedTraining,
    *,
    is_on_ray: bool = False,
) -> TrainingJob:
    """Return the job, which contains everything that the workers of a training need.

    If other machines take part, its initial weights are copied to storage for them. Raises
    ConfigError if the batch cannot be divided equally among the workers.
    """
    for workers in range(layout.least, layout.workers + 1):
        prepared.order.shard(0, 0, workers)
    if layout.device == "cpu" and config.loop.precision == "auto":
        # The driver decides the precision. Otherwise workers on nodes of two kinds would average
        # gradients of two precisions.
        precision = (
            cpu_precision()
            if config.method == "describe"
            else choose_precision("cpu", card, "auto")
        )
        config = config.model_copy(
            update={"loop": config.loop.model_copy(update={"precision": precision})}
        )
    mirror = None
    # Workers read the initial weights from the mirror, because only the driver fetches.
    if is_on_ray and has_other_nodes():
        mirror = os.environ.get(MIRROR_VARIABLE) or f"{out.url}/weights"
        for initial_card in list_initial_cards(config, card):
            publish_weights(initial_card, mirror)
    tables = {
        "train": prepared.splits.train,
        "validation": prepared.splits.validation,
        "test": prepared.splits.test,
    }
    job = TrainingJob(
        config=config,
        card=card,
        out=out,
        layout=layout,
        total_steps=prepared.total_steps,
        milestones=prepared.milestones,
        tables={name: table for name, table in tables.items() if table is not None},
        order=prepared.order,
        is_on_ray=is_on_ray,
        mirror=mirror,
        guard=prepared.guard,
    )
    return replace(job, statistics=_load_statistics(job))


def _load_statistics(job: TrainingJob) -> RealStatistics | None:
    """Return the statistics of real images for openfake-v1; None for other policies.

    They are read from the recipe's file, or measured once on a sample of the training images and
    stored.
    """
    augmentation = job.config.augmentation
    if augmentation.statistics is not None:
        return load_statistics(Path(local_path(augmentation.statistics)))
    if augmentation.policy != "openfake-v1":
        return None
    if not job.out.exists(STATISTICS):
        validate.run_on_device(job, _measure_statistics)
    with checkpoints.provide_local_folder(job.out, [STATISTICS]) as folder:
        return load_statistics(folder / STATISTICS)


def _measure_statistics(job: TrainingJob) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / STATISTICS
        save_statistics(
            path,
            measure_real_images(make_loader(job, "train"), MEASURED_REALS, job.config.loop.seed),
        )
        job.out.write_file(STATISTICS, path)


# Copies of a batch in the object store of a local cluster: loaded, in transfer, and in use.
BATCHES_IN_STORE = 12
MIN_STORE_BYTES = 256 * 2**20


class TrainingResult(NamedTuple):
    """The result of a training.

    Attributes:
        facts: The content of `metrics.json`, or of the plan of a dry run.
        was_complete: Whether an earlier session had finished the training.
    """

    facts: dict[str, Any]
    was_complete: bool = False
    is_plan: bool = False

    def lines(self) -> list[str]:
        """Return the metrics or the plan as lines for the terminal."""
        method = self.facts.get("method", "")
        if self.is_plan:
            plan_by_method = {
                "identify": identification.identifier_plan_lines,
                "describe": identification.describer_plan_lines,
            }
            lines = plan_by_method.get(method, format_plan)(self.facts)
            sources = format_source_lines(self.facts["sources"], one_class=method in PROFILING)
            return [*lines, *sources]
        by_method = {
            "identify": identification.identifier_lines,
            "describe": identification.describer_lines,
        }
        lines = by_method.get(method, training_lines)(self.facts)
        pushed = [f"pushed to {self.facts['pushed']}"] if "pushed" in self.facts else []
        return [*lines, *pushed]


@apply_s3_settings
def train(config: TrainConfig, *, dry_run: bool = False) -> TrainingResult:
    """Train by a recipe into `config.out`, and resume if an earlier session was interrupted.

    An error after which the same call resumes the training has the note `errors.RESUMABLE`, which
    the command line prints. A dry run returns only the plan, starts no cluster, and needs no `out`.
    If there is an `out`, the list of the labelled images is written there. Under torchrun, `facts`
    of every rank but 0 are empty. Raises IdentityError if the directory belongs to another recipe
    or is in use, and KeyboardInterrupt if the training was asked to stop.
    """
    if dry_run:
        return TrainingResult(_make_plan(config), is_plan=True)
    if not config.out:
        raise ConfigError(
            "a training needs a directory for its files: --out DIR is missing",
            hint="run touchstone train CONFIG --out DIR",
        )
    out = Store.open(config.out)
    config = restore_config(_apply_torchrun(config), out)
    if torchrun_rank() > 0:
        _follow(config, out)
        return TrainingResult({})
    claim = check_claim(out, config)
    was_complete = claim is not None and out.exists(METRICS)
    metrics = json.loads(out.read(METRICS)) if was_complete else _train(config, out, claim)
    card = metrics.get("card") or {}
    if not was_complete and card.get("terms", "permissive") != "permissive":
        # It has the terms that were accepted for the initial weights, or that the recipe states.
        licences.remember_licence(card["name"], card["licence"])
    if config.export.push is not None:
        metrics["pushed"] = push(out.url, config.export.push)
    return TrainingResult(metrics, was_complete)


def _train(
    config: TrainConfig, out: Store, earlier_claim: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Claim the directory, train, and finish. Return the content of `metrics.json`."""
    checkpoints.refuse_older(out)
    card = networks.training_card(config)
    _check_prerequisites(config, card, out, earlier_claim)
    with Lease(out, unguarded=config.unguarded), resumable(KeyboardInterrupt):
        claim = claim_recipe(out, config)
        try:
            with (
                resumable(ClusterError),
                _start_processes(config, card) as each,
                _restore_threads(),
            ):
                print("train  indexing and splitting the images", file=sys.stderr, flush=True)
                prepared = prepare_data(config, out, **each)
                findings = prepared.splits.findings
                claim_data(out, claim, findings)
                layout = _plan_layout(config)
                job = make_job(config, card, out, layout, prepared, is_on_ray=uses_ray(config))
                return _finish_by_method(job, findings, claim)
        except ConfigError:
            if earlier_claim is None and checkpoints.latest_checkpoint(out) is None:
                # Nothing was learned, so another recipe may use the directory.
                out.delete(CLAIM)
            raise


def uses_ray(config: TrainConfig) -> bool:
    """Return whether Ray runs the training.

    Ray is used for several workers, or for a cluster that `cluster.address` or RAY_ADDRESS names,
    but not under torchrun.
    """
    is_on_cluster = named_cluster(config.cluster.address) is not None
    return not is_under_torchrun() and (config.workers.count > 1 or is_on_cluster)


@contextmanager
def _start_processes(config: TrainConfig, card: DetectorCard) -> Iterator[dict[str, MapFunction]]:
    """Start or join the training's Ray cluster, and yield the functions that run indexing."""
    if not uses_ray(config):
        yield {}
        return
    with cluster(_configure_cluster(config, card.preprocessing.shape)):
        yield {"each": map_on_ray, "reading": map_in_pool}


@contextmanager
def _restore_threads() -> Iterator[None]:
    """Restore the number of torch's threads after the block."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _plan_layout(config: TrainConfig) -> TrainingLayout:
    """Return the processes for the machines that the training uses."""
    if not uses_ray(config):
        return _plan_without_ray(config)
    cpus, gpus, _ = resources(config.cluster)
    return plan_workers(config.workers, cpus=cpus, gpus=gpus, node_cpus=_get_largest_node_cpus())


def _plan_without_ray(config: TrainConfig) -> TrainingLayout:
    """Return the processes for this machine, or for those that torchrun uses."""
    import torch

    machines = torchrun_machines()
    gpus = torch.cuda.device_count() if config.cluster.gpus is None else config.cluster.gpus
    return plan_workers(
        config.workers,
        cpus=float(machines * (config.cluster.cpus or usable_cores())),
        gpus=float(machines * gpus),
    )


def _apply_torchrun(config: TrainConfig) -> TrainConfig:
    """Return the config with one worker per process of torchrun; unchanged without torchrun."""
    if not is_under_torchrun():
        return config
    workers = config.workers.model_copy(update={"count": torchrun_world(), "least": None})
    return config.model_copy(update={"workers": workers})


def _follow(config: TrainConfig, out: Store) -> None:
    """Make the training steps with rank 0, after it has prepared the directory.

    Methods without steps, and everything after the steps, are done by rank 0 alone.
    """
    has_steps = config.method == "fine-tune" or (
        config.describe is not None and config.describe.tier != "retrieval"
    )
    if out.exists(METRICS) or not has_steps:
        return
    layout = _plan_without_ray(config)
    join_torchrun(layout.device)
    job = make_job(config, networks.training_card(config), out, layout, prepare_data(config, out))
    if config.method == "describe":
        from ray_app.training.captioner import make_captioning_job

        job = make_captioning_job(job)
    train_here(job)


def _finish_by_method(
    job: TrainingJob, findings: dict[str, Any], claim: dict[str, Any]
) -> dict[str, Any]:
    """Learn and finish by the recipe's method. Return the content of `metrics.json`."""
    if job.config.method == "identify":
        from ray_app.training.identify import identify

        return identify(job, findings, claim)
    if job.config.method == "describe":
        from ray_app.training.describe import describe

        return describe(job, findings, claim, _fit)
    _fit(job)
    return finish(job, findings, claim)


def _fit(job: TrainingJob) -> None:
    """Train from the latest complete checkpoint to the last step, unless that is done."""
    checkpoints.remove_incomplete(job.out)
    latest = checkpoints.latest_checkpoint(job.out)
    if latest is None and (count := checkpoints.count_folders(job.out)):
        print(
            f"train  no complete checkpoint in {job.out.url}/{checkpoints.FOLDER} ({count} without the file {checkpoints.DONE}): "
            "training starts at step 0",
            file=sys.stderr,
            flush=True,
        )
    validate.remove_validations_after(job.out, 0 if latest is None else latest.step)
    is_trained = latest is not None and latest.finished
    if job.config.method == "linear-probe":
        if not is_trained:
            from ray_app.training.linear_probe import probe

            probe(job)
    elif not job.is_on_ray:
        # This also runs if all steps are made, because other processes of torchrun wait for it.
        train_here(job)
    elif not is_trained:
        from ray_app.training.trainer import fit

        fit(job)
    checkpoints.remove_incomplete(job.out)
    validate.remove_superseded_checkpoints(job)


def _make_plan(config: TrainConfig) -> dict[str, Any]:
    """Return the plan of a dry run.

    If a source is too large to count row by row, or the data have one class only, the plan is an
    estimate from what the sources state.
    """
    with TemporaryDirectory(prefix="touchstone-") as scratch:
        card, out = networks.training_card(config), Store.open(config.out or scratch)
        require_sources(config.data)
        splits = {
            "train": config.data.train,
            "validation": config.data.validation,
            "test": config.data.test,
        }
        named_sources = [
            (name, source)
            for name, split_sources in splits.items()
            if not isinstance(split_sources, HeldOut)
            for source in split_sources
        ]
        max_bytes = math.inf if config.method in PROFILING else survey.MAX_BYTES
        sources = [
            {"for": name, **survey.survey(source, locate_index(source, out), max_bytes)}
            for name, source in named_sources
        ]
        n_real, n_fake = (
            sum(counts[label] for counts in sources if counts["for"] == "train")
            for label in ("real", "fake")
        )
        is_counted = all(counts["indexed"] for counts in sources) and (
            bool(n_real and n_fake) or config.method in PROFILING
        )
        prepared = prepare_data(config, out) if is_counted else None
        if prepared is not None and config.method == "identify":
            from ray_app.training import identify

            return {**identify.plan_identifier(config, card, prepared.splits), "sources": sources}
        if prepared is not None and config.method == "describe":
            from ray_app.training import describe

            return {
                **describe.plan_describer(config, card, prepared.splits, prepared.total_steps),
                "sources": sources,
            }
        layout = _plan_without_ray(config)
        rows = (
            prepared.order.rows_per_epoch
            if prepared
            else config.sampling.epoch_rows or n_real + n_fake or 1
        )
        return {
            **plan_training(config, card, rows, layout),
            "data": prepared and prepared.splits.findings,
            "sources": sources,
        }


def _configure_cluster(config: TrainConfig, shape: tuple[int, int] | None) -> ClusterConfig:
    """Return the config's cluster, with an object store for the batches in flight.

    A size that the config sets stays, and so does the cluster if images have no common size.
    """
    if config.cluster.object_store_bytes is not None or shape is None:
        return config.cluster
    planes = 5 if config.loss.name == "maskclip" else 3
    batches_bytes = BATCHES_IN_STORE * config.loop.batch * planes * shape[0] * shape[1]
    return config.cluster.model_copy(update={"object_store_bytes": MIN_STORE_BYTES + batches_bytes})


def _get_largest_node_cpus() -> float:
    """Return the CPUs of the largest live node, or infinity if no node has any.

    In that case an autoscaler will bring nodes whose CPUs are not known yet.
    """
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return max(node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]) or math.inf
