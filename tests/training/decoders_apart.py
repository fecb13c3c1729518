"""Two trainers, each on a node without cores, and a node with cores for what decodes: what each of
them gets of every step.

    python -m tests.training.decoders_apart LABELS FOLDER      → FOLDER/alone.json, FOLDER/one.json, FOLDER/RANK.json

`alone.json`: without Ray; `one.json`: one reader with one loader. A cluster wants a process of its
own.
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.train.v2.api.config import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ray_app.storage import Store
from ray_app.streams.pool import messages
from ray_app.training import loader, ray_data
from ray_app.training.job import plan_workers
from ray_app.training.loader import make_training_loader
from ray_app.training.networks import training_card
from ray_app.training.run import make_job, prepare_data
from tests.training.trainings import config

STORE_BYTES = 100 * 2**20


def main(labels, folder):
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES}
    )
    for room in (
        {"num_cpus": 0, "resources": {"trainer": 1}},
        {"num_cpus": 0, "resources": {"trainer": 1}},
        {"num_cpus": 2},
    ):
        cluster.add_node(wait=False, object_store_memory=STORE_BYTES, **room)
    cluster.wait_for_nodes(timeout=120)
    ray.init(address=cluster.address, log_to_driver=False)
    job = prepared(config(labels), Store.open(str(folder / "out")))
    note(folder / "alone.json", steps=alone(job))
    single = of(job, workers=1, loaders=1)
    (only,) = ray_data.Shards(single).configure(
        {ray_data.TRAIN: ray_data.make_step_dataset(single)}, 1, None, None
    )
    note(
        folder / "one.json",
        steps=[images(batch) for several in messages(only[ray_data.TRAIN]) for _, batch in several],
    )
    together = of(job, workers=2, loaders=2)
    DataParallelTrainer(
        trained,
        train_loop_config={"folder": str(folder)},
        datasets={ray_data.TRAIN: lambda: ray_data.make_step_dataset(together)},
        dataset_config=ray_data.Shards(together),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"trainer": 1}),
        run_config=RunConfig(storage_path=str(folder / "ray"), name="train"),
    ).fit()
    ray.shutdown()
    cluster.shutdown()


def prepared(recipe, out):
    return make_job(
        recipe,
        training_card(recipe),
        out,
        plan_workers(recipe.workers, cpus=2, gpus=0),
        prepare_data(recipe, out),
    )


def of(job, *, workers, loaders):
    layout = replace(job.layout, workers=workers, least=workers, loaders=loaders)
    return {"job": ray.put(replace(job, layout=layout))}


def alone(job):
    batches, order = make_training_loader(job), job.order
    return [images(batches.load_steps(order, [step])) for step in range(job.total_steps)]


def trained(given):
    """In each trainer's process."""
    decoded = []
    decode = loader.decode_image

    def counted(*words, **options):
        decoded.append(1)
        return decode(*words, **options)

    loader.decode_image = counted
    steps = [images(batch) for batch in ray_data.batches(0)]
    node = ray.get_runtime_context().get_node_id()
    note(
        Path(given["folder"]) / f"{ray.train.get_context().get_world_rank()}.json",
        steps=steps,
        decoded=len(decoded),
        node=node,
    )


def images(batch):
    """The images of a batch: row, label and pixels of each."""
    return [
        [int(row), int(label), hashlib.sha256(image.tobytes()).hexdigest()]
        for row, label, image in zip(batch["row"], batch["label"], batch["image"], strict=True)
    ]


def note(path, **facts):
    path.write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
