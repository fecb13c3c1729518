"""Before the first step: `prepare_data` has the labelled rows of each split, `make_job` the job that the workers get."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path

import pyarrow as pa

from ray_app.archives import Each, in_turn
from ray_app.datasets.config import DatasetSource, HeldOut
from ray_app.datasets.index import check_source, guard_of_source, index_source
from ray_app.datasets.labelling import ProgressLog, apart, with_prompts
from ray_app.datasets.sampling import SampleOrder
from ray_app.datasets.splits import Splits, make_splits, require_sources
from ray_app.detectors import MIRROR_VARIABLE, DetectorCard, publish_weights, resolve_weights
from ray_app.detectors.licences import require_accepted
from ray_app.storage import Guard, Store, local_path
from ray_app.training.config import PROFILING, TrainConfig
from ray_app.training.job import TrainingJob, TrainingLayout
from ray_app.training.networks import training_card
from ray_app.transforms.policy import RealStatistics, load_statistics, save_statistics

SPLITS = "splits.json"
STATISTICS = "real_statistics.npz"
MEASURED_REALS = 2000


def milestones(order: SampleOrder, total: int, every: int | None) -> frozenset[int]:
    """The steps after which the network is judged: every so many or, with null, at the end of each epoch; and the last."""
    if every is not None:
        return frozenset([*range(every, total, every), total])
    epochs = int(total * order.batch / order.rows_per_epoch)
    return frozenset([*(order.steps(epoch) for epoch in range(1, epochs + 1) if order.steps(epoch) < total), total])


@dataclass(frozen=True)
class PreparedTraining:
    """The data of a training: `splits` with their rows, the order of the training rows, and how many steps there are.

    `guard`: which web servers are asked for images that lists name.
    """

    splits: Splits
    order: SampleOrder
    total_steps: int
    milestones: frozenset[int]
    guard: Guard = field(default_factory=Guard)


def trained_card(config: TrainConfig) -> DetectorCard:
    """The card of what is trained. What it begins with is then accepted, and on this machine. Raises ConfigError, DetectorError."""
    card = training_card(config)
    for started in started_from(config, card):
        require_accepted(started, config.accept_licences)
        resolve_weights(started)
    return card


def started_from(config: TrainConfig, card: DetectorCard) -> list[DetectorCard]:
    """What training begins with, each as a card of its own: the detector's weights, or the recipe's files."""
    if config.initial.start == "card":
        return [card]
    files = config.initial.weights.items()
    return [
        card.model_copy(update={"name": f"{config.name}-{part}", "weights": weights, "backbone": None, "terms": "permissive"})
        for part, weights in files
    ]


def check_data(config: TrainConfig, out: Store) -> None:
    """Whether the images can be indexed, as far as the beginning of each source tells: nothing is written. Raises as `prepare_data`."""
    require_sources(config.data)
    for sources in (config.data.train, config.data.validation, config.data.test):
        for source in () if isinstance(sources, HeldOut) else sources:
            check_source(source, out)
    if config.augmentation.statistics is not None:
        load_statistics(Path(local_path(config.augmentation.statistics)))


def prepare_data(config: TrainConfig, out: Store, *, each: Each = in_turn) -> PreparedTraining:
    """Index what is not indexed yet, into `data/`, and divide it. Raises ConfigError, StorageError."""
    guards: list[Guard] = []
    splits = _divided(config, opener(out, each, guards))
    loop = config.loop
    order = SampleOrder(splits.train, config.sampling, loop.seed, loop.batch)
    total = loop.steps or order.steps(loop.epochs or 1.0)
    out.write(SPLITS, json.dumps(splits.findings, indent=2, ensure_ascii=False).encode())
    return PreparedTraining(splits, order, total, milestones(order, total, config.validation.every), reduce(Guard.joined, guards, Guard()))


def _divided(config: TrainConfig, open_source: Callable[[DatasetSource], pa.Table]) -> Splits:
    """The splits of the recipe's images; those that a describer learns from have prompts, and no prompt is in two splits."""
    if config.method == "describe":
        return apart(make_splits(config.data, with_prompts(open_source), one_class=True))
    return make_splits(config.data, open_source, one_class=config.method in PROFILING)


def opener(out: Store, each: Each, guards: list[Guard]) -> Callable[[DatasetSource], pa.Table]:
    """Opens a source's rows; those of one place are indexed once, whatever part of them each split takes. Adds its guard to `guards`."""

    def open_source(source: DatasetSource) -> pa.Table:
        place = source.model_dump_json(exclude={"split", "generators", "allow_private"})
        name = hashlib.sha256(place.encode()).hexdigest()[:12]
        store = out.below(f"data/{name}")
        rows = index_source(source, store, each=each, progress=ProgressLog("index"))
        guards.append(guard_of_source(source, store))
        return rows

    return open_source


def make_job(config: TrainConfig, card: DetectorCard, out: Store, layout: TrainingLayout, prepared: PreparedTraining) -> TrainingJob:
    """Everything that workers are given, in Ray's object store once. Raises ConfigError where the batch cannot be shared."""
    import ray

    from ray_app.cluster.ray_cluster import has_other_nodes
    from ray_app.training.history import put_up

    for workers in range(layout.least, layout.workers + 1):
        prepared.order.share(0, 0, workers)
    tables = {"train": prepared.splits.train, "validation": prepared.splits.validation, "test": prepared.splits.test}
    shared = {name: ray.put(table) for name, table in tables.items() if table is not None}
    job = TrainingJob(
        config=config,
        card=card,
        out=out,
        layout=layout,
        total_steps=prepared.total_steps,
        milestones=prepared.milestones,
        shared=shared | {"order": ray.put(prepared.order)},
        mirror=_mirror(config, card, out) if has_other_nodes() else None,
        board=put_up(),
        guard=prepared.guard,
    )
    return replace(job, statistics=_statistics(job))


def _mirror(config: TrainConfig, card: DetectorCard, out: Store) -> str:
    """Where workers on other machines find the weights that training begins with: the driver alone fetches."""
    mirror = os.environ.get(MIRROR_VARIABLE) or f"{out.url}/weights"
    for started in started_from(config, card):
        publish_weights(started, mirror)
    return mirror


def _statistics(job: TrainingJob) -> RealStatistics | None:
    """What openfake-v1 matches fakes to: the recipe's file, or measured once on a sample of the training images and kept."""
    wanted = job.config.augmentation
    if wanted.statistics is not None:
        return load_statistics(Path(local_path(wanted.statistics)))
    if wanted.policy != "openfake-v1":
        return None
    if not job.out.exists(STATISTICS):
        from ray_app.training.validate import on_ray

        job.out.write(STATISTICS, on_ray(job, _measured))
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        file.write(job.out.read(STATISTICS))
        file.flush()
        return load_statistics(Path(file.name))


def _measured(job: TrainingJob) -> bytes:
    from ray_app.training.loader import measure_real, plain_loader

    statistics = measure_real(plain_loader(job, "train"), MEASURED_REALS, job.config.loop.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / STATISTICS
        save_statistics(path, statistics)
        return path.read_bytes()
