"""One training from its recipe to its results: `train` claims the directory, indexes and divides
the images, learns, judges, exports.

Every step can be interrupted anywhere; the same command resumes from the facts on disk. Before the
first step `prepare_data` has the labelled rows of each split, `make_job` the job that the workers
get; what is learned and written is the recipe's method's: `finish`, `linear_probe.probe`, `identify`
or `describe`.

One worker is this process, without Ray. Several, and a named cluster, are a matter of Ray
(`uses_ray`), unless torchrun started this process: then the others make the same steps, and
nothing else (`_follow`).
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

from ray_app.archives import Each, in_turn
from ray_app.archives.progress import ProgressLog
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import (
    cluster,
    has_other_nodes,
    named_cluster,
    on_ray,
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
from ray_app.inference.spec import precision_on
from ray_app.reports import identification
from ray_app.reports.training import training_lines
from ray_app.storage import Guard, Lease, Store, local_path, with_s3_settings
from ray_app.storage.node_budget import usable_cores
from ray_app.streams.worker_pool import in_pool
from ray_app.training import checkpoints, networks, validate
from ray_app.training.config import PROFILING, TrainConfig
from ray_app.training.export import METRICS, finish, push
from ray_app.training.job import TrainingJob, TrainingLayout, plan_workers
from ray_app.training.loader import measure_real, plain_loader
from ray_app.training.local import (
    is_under_torchrun,
    join_torchrun,
    torchrun_machines,
    torchrun_rank,
    torchrun_world,
    train_here,
)
from ray_app.training.plan import plan, plan_lines, source_lines
from ray_app.training.run_directory import FILE as CLAIM
from ray_app.training.run_directory import check_claim, claim_data, claim_recipe, config_as_begun
from ray_app.transforms.policies.papers import RealStatistics, load_statistics, save_statistics

SPLITS = "splits.json"
STATISTICS = "real_statistics.npz"
MEASURED_REALS = 2000


def milestones(order: sampling.SampleOrder, total: int, every: int | None) -> frozenset[int]:
    """Return the steps after which the network is validated, which include the last step.

    Args:
        order: The order of the samples.
        total: The number of steps.
        every: The number of steps between two validations. None for the end of each epoch.
    """
    if every is not None:
        return frozenset([*range(every, total, every), total])
    epochs = int(total * order.batch / order.rows_per_epoch)
    return frozenset(
        [
            *(order.steps(epoch) for epoch in range(1, epochs + 1) if order.steps(epoch) < total),
            total,
        ]
    )


@dataclass(frozen=True)
class PreparedTraining:
    """The data of a training: `splits` with their rows, the order of the training rows, and how
    many steps there are.

    `guard`: which web servers are asked for images that lists name.
    """

    splits: Splits
    order: sampling.SampleOrder
    total_steps: int
    milestones: frozenset[int]
    guard: Guard = field(default_factory=Guard)


def initial_cards(config: TrainConfig, card: DetectorCard) -> list[DetectorCard]:
    """What training begins with, each as a card of its own: the detector's weights, or the recipe's
    files.
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


def _check(
    config: TrainConfig, card: DetectorCard, out: Store, begun: Mapping[str, Any] | None
) -> None:
    """Refuse what would fail later: licences, weights on this machine, and the beginning of each
    source, unless the claim of a training that was `begun` has its data. Raises as `train`.
    """
    for started in initial_cards(config, card):
        licences.require_accepted(started, config.accept_licences)
        resolve_weights(started)
    if begun is not None and "data" in begun["identity"]:
        return
    require_sources(config.data)
    for sources in (config.data.train, config.data.validation, config.data.test):
        for source in () if isinstance(sources, HeldOut) else sources:
            index.check_source(source, out)
    if config.augmentation.statistics is not None:
        load_statistics(Path(local_path(config.augmentation.statistics)))


def prepare_data(
    config: TrainConfig, out: Store, *, each: Each = in_turn, reading: Each = in_turn
) -> PreparedTraining:
    """Index what is not indexed yet, into `data/`, and divide it. Raises ConfigError, StorageError.

    The images that a describer learns from have prompts, and no prompt is in two splits.
    """
    guards: list[Guard] = []
    open_source = opener(out, each, reading, guards)
    if config.method == "describe":
        splits = training_prompts.without_training_prompts(
            make_splits(config.data, training_prompts.with_prompts(open_source), one_class=True)
        )
    else:
        splits = make_splits(config.data, open_source, one_class=config.method in PROFILING)
    loop = config.loop
    order = sampling.SampleOrder(splits.train, config.sampling, loop.seed, loop.batch)
    total = loop.steps or order.steps(loop.epochs or 1.0)
    out.write(SPLITS, json.dumps(splits.findings, indent=2, ensure_ascii=False).encode())
    return PreparedTraining(
        splits,
        order,
        total,
        milestones(order, total, config.validation.every),
        reduce(Guard.joined, guards, Guard()),
    )


def opener(
    out: Store, each: Each, reading: Each, guards: list[Guard]
) -> Callable[[DatasetSource], pa.Table]:
    """Opens a source's rows; those of one place are indexed once, whatever part of them each split
    takes. Adds its guard to `guards`.
    """

    def open_source(source: DatasetSource) -> pa.Table:
        store = index_of(source, out)
        rows = index.index_source(
            source,
            store,
            each=each,
            reading=reading,
            progress=ProgressLog("index"),
            requires_all_folders=True,
        )
        guards.append(index.guard_of_source(source, store))
        return rows

    return open_source


def index_of(source: DatasetSource, out: Store) -> Store:
    """Where a training keeps the index of a source: one for all that read the same, whatever part
    of it.
    """
    place = source.model_dump_json(exclude={"split", "generators", "allow_private"})
    return out.below(f"data/{hashlib.sha256(place.encode()).hexdigest()[:12]}")


def make_job(
    config: TrainConfig,
    card: DetectorCard,
    out: Store,
    layout: TrainingLayout,
    prepared: PreparedTraining,
    *,
    on_ray: bool = False,
) -> TrainingJob:
    """Return all that workers are given. Raises ConfigError if the batch cannot be shared."""
    for workers in range(layout.least, layout.workers + 1):
        prepared.order.share(0, 0, workers)
    if layout.device == "cpu" and config.loop.precision == "auto":
        # Decided here, not by each worker: on nodes of two kinds they would average gradients of
        # two precisions.
        precision = (
            cpu_precision() if config.method == "describe" else precision_on("cpu", card, "auto")
        )
        config = config.model_copy(
            update={"loop": config.loop.model_copy(update={"precision": precision})}
        )
    mirror = None
    # where they find the weights that training begins with: the driver alone fetches
    if on_ray and has_other_nodes():
        mirror = os.environ.get(MIRROR_VARIABLE) or f"{out.url}/weights"
        for started in initial_cards(config, card):
            publish_weights(started, mirror)
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
        on_ray=on_ray,
        mirror=mirror,
        guard=prepared.guard,
    )
    return replace(job, statistics=_statistics(job))


def _statistics(job: TrainingJob) -> RealStatistics | None:
    """What openfake-v1 matches fakes to: the recipe's file, or measured once on a sample of the
    training images and kept.
    """
    wanted = job.config.augmentation
    if wanted.statistics is not None:
        return load_statistics(Path(local_path(wanted.statistics)))
    if wanted.policy != "openfake-v1":
        return None
    if not job.out.exists(STATISTICS):
        validate.on_device(job, _measure)
    with checkpoints.local_folder(job.out, [STATISTICS]) as folder:
        return load_statistics(folder / STATISTICS)


def _measure(job: TrainingJob) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / STATISTICS
        save_statistics(
            path, measure_real(plain_loader(job, "train"), MEASURED_REALS, job.config.loop.seed)
        )
        job.out.write_file(STATISTICS, path)


# of one step, in the object store of a local cluster: loaded, on their way, and in use
BATCHES_IN_STORE = 12
LEAST_STORE_BYTES = 256 * 2**20


class Trained(NamedTuple):
    """The result of a training.

    Attributes:
        facts: The content of `metrics.json`, or of the plan of a dry run.
        was_there: Whether nothing had to be done.
        is_plan: Whether it was a dry run.
    """

    facts: dict[str, Any]
    was_there: bool = False
    is_plan: bool = False

    def lines(self) -> list[str]:
        """Return the result for people."""
        method = self.facts.get("method", "")
        if self.is_plan:
            plan_by_method = {
                "identify": identification.identifier_plan_lines,
                "describe": identification.describer_plan_lines,
            }
            lines = plan_by_method.get(method, plan_lines)(self.facts)
            sources = source_lines(self.facts["sources"], one_class=method in PROFILING)
            return [*lines, *sources]
        by_method = {
            "identify": identification.identifier_lines,
            "describe": identification.describer_lines,
        }
        lines = by_method.get(method, training_lines)(self.facts)
        pushed = [f"pushed to {self.facts['pushed']}"] if "pushed" in self.facts else []
        return [*lines, *pushed]


@with_s3_settings
def train(config: TrainConfig, *, dry_run: bool = False) -> Trained:
    """Train by a recipe into `config.out`, from wherever an earlier session of the same command
    stopped.

    Raises ConfigError, IdentityError (the directory is another recipe's or in use), DetectorError,
    StorageError, ClusterError, and KeyboardInterrupt when it was asked to stop. Those that the same
    call resumes from carry the note RESUMABLE. A dry run needs no `out`, starts no cluster and
    trains nothing; with an `out` it leaves the index there. Under torchrun, rank 0 alone returns
    facts.
    """
    if dry_run:
        return Trained(_planned(config), is_plan=True)
    if not config.out:
        raise ConfigError(
            "no directory for the card: --out DIR is missing",
            hint="touchstone train CONFIG --out DIR",
        )
    out = Store.open(config.out)
    config = config_as_begun(_among_torchrun(config), out)
    if torchrun_rank() > 0:
        _follow(config, out)
        return Trained({})
    begun = check_claim(out, config)
    was_there = begun is not None and out.exists(METRICS)
    facts = json.loads(out.read(METRICS)) if was_there else _trained(config, out, begun)
    if config.export.push is not None:
        facts["pushed"] = push(out.url, config.export.push)
    return Trained(facts, was_there)


def _trained(config: TrainConfig, out: Store, begun: Mapping[str, Any] | None) -> dict[str, Any]:
    """Claim the directory, train and finish; returns the content of `metrics.json`."""
    checkpoints.refuse_older(out)
    card = networks.training_card(config)
    _check(config, card, out, begun)
    with Lease(out, unguarded=config.unguarded), resumable(KeyboardInterrupt):
        claim = claim_recipe(out, config)
        try:
            with resumable(ClusterError), _processes(config, card) as each, _kept_threads():
                print("train  indexing and dividing the images", file=sys.stderr, flush=True)
                prepared = prepare_data(config, out, **each)
                findings = prepared.splits.findings
                claim_data(out, claim, findings)
                layout = _plan_layout(config)
                job = make_job(config, card, out, layout, prepared, on_ray=uses_ray(config))
                return _by_method(job, findings, claim)
        except ConfigError:
            if begun is None and checkpoints.latest_checkpoint(out) is None:
                out.delete(CLAIM)  # nothing was learned: the recipe that is to come may differ
            raise


def uses_ray(config: TrainConfig) -> bool:
    """Return whether Ray runs the training: several workers, or a cluster that has a name."""
    is_on_cluster = named_cluster(config.cluster.address) is not None
    return not is_under_torchrun() and (config.workers.count > 1 or is_on_cluster)


@contextmanager
def _processes(config: TrainConfig, card: DetectorCard) -> Iterator[dict[str, Each]]:
    """Start or join the Ray that the training uses. Yields what runs the steps of indexing."""
    if not uses_ray(config):
        yield {}
        return
    with cluster(_cluster_for(config, card.preprocessing.shape)):
        yield {"each": on_ray, "reading": in_pool}


@contextmanager
def _kept_threads() -> Iterator[None]:
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
    return plan_workers(config.workers, cpus=cpus, gpus=gpus, node_cpus=_largest_node_cpus())


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


def _among_torchrun(config: TrainConfig) -> TrainConfig:
    """Return the config with as many workers as torchrun started processes; as it is without."""
    if not is_under_torchrun():
        return config
    workers = config.workers.model_copy(update={"count": torchrun_world(), "least": None})
    return config.model_copy(update={"workers": workers})


def _follow(config: TrainConfig, out: Store) -> None:
    """Make the steps with rank 0, once it has prepared the directory. What has no steps, and all
    that comes after them, rank 0 does alone.
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
        from ray_app.training.captioner import captioning_job

        job = captioning_job(job)
    train_here(job)


def _by_method(job: TrainingJob, findings: dict[str, Any], claim: dict[str, Any]) -> dict[str, Any]:
    """Learn and finish by the recipe's method; returns the content of `metrics.json`."""
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
            f"train  no checkpoint in {job.out.url}/{checkpoints.FOLDER} is complete ({count} without the file {checkpoints.DONE}): "
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
    elif not job.on_ray:
        train_here(
            job
        )  # Also if all is trained: the other processes of torchrun wait for this one.
    elif not is_trained:
        from ray_app.training.trainer import fit

        fit(job)
    checkpoints.remove_incomplete(job.out)
    validate.remove_superseded_checkpoints(job)


def _planned(config: TrainConfig) -> dict[str, Any]:
    """The dry run. What is too large to be counted row by row, or of one class, is planned by what
    its sources tell.
    """
    with TemporaryDirectory(prefix="touchstone-") as scratch:
        card, out = networks.training_card(config), Store.open(config.out or scratch)
        require_sources(config.data)
        splits = {
            "train": config.data.train,
            "validation": config.data.validation,
            "test": config.data.test,
        }
        given = [
            (name, source)
            for name, of in splits.items()
            if not isinstance(of, HeldOut)
            for source in of
        ]
        most = math.inf if config.method in PROFILING else survey.MOST_BYTES
        sources = [
            {"for": name, **survey.survey(source, index_of(source, out), most)}
            for name, source in given
        ]
        real, fake = (
            sum(one[label] for one in sources if one["for"] == "train")
            for label in ("real", "fake")
        )
        is_whole = all(one["indexed"] for one in sources) and (
            bool(real and fake) or config.method in PROFILING
        )
        prepared = prepare_data(config, out) if is_whole else None
        if prepared is not None and config.method == "identify":
            from ray_app.training import identify

            return {**identify.planned(config, card, prepared.splits), "sources": sources}
        if prepared is not None and config.method == "describe":
            from ray_app.training import describe

            return {
                **describe.planned(config, card, prepared.splits, prepared.total_steps),
                "sources": sources,
            }
        layout = _plan_without_ray(config)
        rows = (
            prepared.order.rows_per_epoch
            if prepared
            else config.sampling.epoch_rows or real + fake or 1
        )
        return {
            **plan(config, card, rows, layout),
            "data": prepared and prepared.splits.findings,
            "sources": sources,
        }


def _cluster_for(config: TrainConfig, shape: tuple[int, int] | None) -> ClusterConfig:
    """The config's cluster; a local one gets an object store that holds the batches under way."""
    if config.cluster.object_store_bytes is not None or shape is None:
        return config.cluster
    planes = 5 if config.loss.name == "maskclip" else 3
    needed = BATCHES_IN_STORE * config.loop.batch * planes * shape[0] * shape[1]
    return config.cluster.model_copy(update={"object_store_bytes": LEAST_STORE_BYTES + needed})


def _largest_node_cpus() -> float:
    """CPUs of the largest node that is there; inf while none has any, since those that an
    autoscaler brings are not known.
    """
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return max(node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]) or math.inf
