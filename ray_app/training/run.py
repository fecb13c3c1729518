"""One training from its recipe to its card: `train` claims the directory, indexes and divides the images, trains, judges, exports.

Every step can be interrupted anywhere; the same command resumes from the facts on disk.
"""

import json
import math
import os
import sys
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster, on_ray, resources
from ray_app.detectors import DetectorCard
from ray_app.errors import ClusterError, ConfigError, ExitCode, resumable
from ray_app.storage import Lease, Store
from ray_app.training import checkpoints
from ray_app.training.config import TrainConfig
from ray_app.training.data import check_data, make_job, prepare_data, trained_card
from ray_app.training.finish import METRICS, finish
from ray_app.training.job import TrainingJob, plan_workers
from ray_app.training.run_directory import FILE as CLAIM
from ray_app.training.run_directory import as_begun, check_claim, claim_data, claim_recipe

BATCHES_IN_STORE = 12  # of one step, in the object store of a local cluster: loaded, on their way, and in use
LEAST_STORE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Trained:
    """How a training ended. `facts`: the content of `metrics.json`, or of a dry run's plan; `was_there`: nothing had to be done."""

    exit_code: ExitCode
    facts: dict[str, Any]
    was_there: bool = False


def train(config: TrainConfig, *, dry_run: bool = False) -> Trained:
    """Train by a recipe into `config.out`, from wherever an earlier session of the same command stopped.

    Raises ConfigError, IdentityError (the directory is another recipe's or in use), DetectorError, StorageError, ClusterError, and
    KeyboardInterrupt when it was asked to stop. Those that the same call resumes from carry the note RESUMABLE. A dry run needs no `out`,
    starts no cluster and trains nothing; with an `out` it leaves the index there.
    """
    if dry_run:
        return _planned(config)
    if not config.out:
        raise ConfigError("no directory for the card: --out DIR is missing", hint="touchstone train CONFIG --out DIR")
    out = Store.open(config.out)
    config = as_begun(config, out)
    begun = check_claim(out, config)
    if begun is not None and out.exists(METRICS):
        return _pushed(config, out, Trained(ExitCode.DONE, json.loads(out.read(METRICS)), was_there=True))
    card = trained_card(config)
    if begun is None or "data" not in begun["identity"]:
        check_data(config, out)
    with Lease(out, unguarded=config.unguarded), resumable(KeyboardInterrupt):
        claim = claim_recipe(out, config)
        try:
            with resumable(ClusterError), cluster(_cluster_for(config, card.preprocessing.shape)):
                facts = _learned(config, card, out, claim)
        except ConfigError:
            if begun is None and not checkpoints.kept(out):
                out.delete(CLAIM)  # nothing was learned: the recipe that is to come may differ
            raise
        return _pushed(config, out, Trained(ExitCode.DONE, facts))


def _learned(config: TrainConfig, card: DetectorCard, out: Store, claim: dict[str, Any]) -> dict[str, Any]:
    """Index, divide, train and finish; returns the content of `metrics.json`."""
    print("train  indexing and dividing the images", file=sys.stderr, flush=True)
    prepared = prepare_data(config, out, each=on_ray)
    claim_data(out, claim, prepared.splits.findings)
    cpus, gpus, _ = resources(config.cluster)
    layout = plan_workers(config.workers, cpus=cpus, gpus=gpus, node_cpus=_largest_node_cpus())
    return _made(make_job(config, card, out, layout, prepared), prepared.splits.findings, claim)


def _pushed(config: TrainConfig, out: Store, trained: Trained) -> Trained:
    if config.export.push is None:
        return trained
    from ray_app.training.finish import push

    return replace(trained, facts={**trained.facts, "pushed": push(out.url, config.export.push)})


def _made(job: TrainingJob, findings: dict[str, Any], claim: dict[str, Any]) -> dict[str, Any]:
    """Learn and finish by the recipe's method; returns the content of `metrics.json`."""
    if job.config.method == "identify":
        from ray_app.training.identifier.run import identify

        return identify(job, findings, claim)
    if job.config.method == "describe":
        from ray_app.training.captioner.run import describe

        return describe(job, findings, claim, _fit)
    _fit(job)
    return finish(job, findings, claim)


def _fit(job: TrainingJob) -> None:
    """Train, unless all that is left to do comes after that."""
    checkpoints.mend_list(job.out)
    checkpoints.remove_orphans(job.out)
    if not checkpoints.is_trained(job.out):
        if job.config.method == "linear-probe":
            from ray_app.training.linear_probe import probe

            probe(job)
        else:
            from ray_app.training.trainer import fit

            fit(job)
    checkpoints.remove_orphans(job.out)


def _planned(config: TrainConfig) -> Trained:
    """The dry run."""
    from ray_app.training.networks import training_card
    from ray_app.training.plan import plan

    with TemporaryDirectory(prefix="touchstone-") as scratch:
        card = training_card(config)
        prepared = prepare_data(config, Store.open(config.out or scratch))
        if config.method == "identify":
            from ray_app.training.identifier.run import planned

            return Trained(ExitCode.DONE, planned(config, card, prepared.splits))
        if config.method == "describe":
            from ray_app.training.captioner import run

            return Trained(ExitCode.DONE, run.planned(config, card, prepared.splits, prepared.total_steps))
        cpus, gpus = config.cluster.cpus or os.cpu_count() or 1, config.cluster.gpus
        if gpus is None:
            import torch

            gpus = torch.cuda.device_count()
        layout = plan_workers(config.workers, cpus=float(cpus), gpus=float(gpus))
        facts = plan(config, card, prepared.order, prepared.total_steps, layout, prepared.splits.findings)
        return Trained(ExitCode.DONE, facts)


def _cluster_for(config: TrainConfig, shape: tuple[int, int] | None) -> ClusterConfig:
    """The config's cluster; a local one gets an object store that holds the batches under way."""
    if config.cluster.object_store_bytes is not None or shape is None:
        return config.cluster
    planes = 5 if config.loss.name == "maskclip" else 3
    needed = BATCHES_IN_STORE * config.loop.batch * planes * shape[0] * shape[1]
    return config.cluster.model_copy(update={"object_store_bytes": LEAST_STORE_BYTES + needed})


def _largest_node_cpus() -> float:
    """CPUs of the largest node that is there; inf while none has any, since those that an autoscaler brings are not known."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return max(node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]) or math.inf
