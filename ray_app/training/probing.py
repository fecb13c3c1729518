"""The linear probe: features of every training image once, by a frozen backbone, and a head that scikit-learn fits to all of them.

What comes out is a checkpoint like that of any training, so judging, calibration and export are the same. Features are kept in
`features/`, block by block: a probe that was interrupted computes no block again.
"""

import io
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.detectors import MIRROR_VARIABLE
from ray_app.detectors.heads import Classifier, Features, Head, cross_validated_auc, fit_head
from ray_app.errors import ConfigError, TouchstoneError
from ray_app.scoring.progress import Progress
from ray_app.training import checkpoints
from ray_app.training.finishing import PROBE
from ray_app.training.job import Job
from ray_app.training.streaming import Batch, Stage, training_loader, whole

FOLDER = "features"
CLASSIFIER: Classifier = "logistic"


def probe(job: Job) -> None:
    """Compute what features are missing, fit the head, and keep network and head as the one checkpoint.

    Raises ConfigError for a card without a head on features, and for too few images of a class; TouchstoneError where too many cannot
    be read.
    """
    if job.card.family != "clip-linear":
        raise ConfigError(f"{job.card.name}: a linear probe is for cards of family clip-linear", hint="method: fine-tune")
    _compute(job)
    features, labels, rows = _kept(job)
    bad, most = len(job.rows("train")) - len(rows), job.config.faults.max_bad_fraction
    if bad > most * len(job.rows("train")):
        raise TouchstoneError(f"{bad:,} training images could not be read, more than {most:.1%}", hint="--set faults.max_bad_fraction=…")
    head = fit_head(features, labels, CLASSIFIER)
    groups = _groups(job, rows)
    folds = cross_validated_auc(features, labels, CLASSIFIER, groups)
    job.out.write(PROBE, json.dumps({"images": len(rows), "cross_validated_auc": folds}).encode())
    _keep(job, head)


class FeatureMaker(Stage):
    """A block of training rows in, their features into the run."""

    def start(self, job: Job, *given: Any) -> None:
        """Load the network with its backbone."""
        import torch

        from ray_app.learning.judging import detector_for
        from ray_app.learning.networks import network_for

        if job.mirror is not None:
            os.environ[MIRROR_VARIABLE] = job.mirror
        if job.layout.device == "cpu":
            torch.set_num_threads(job.layout.threads)
        self._job, self._loader = job, training_loader(job)
        self._detector = detector_for(job.card, network_for(job.config, job.card).eval().requires_grad_(False), device=job.layout.device)

    def work(self, table: pa.Table) -> Batch:
        """The first row of a block → how many images it has; the block's file is written."""
        first = table["first"][0].as_py()
        rows = np.arange(first, min(first + self._job.config.loop.batch, len(self._job.rows("train"))))
        features, labels, usable = zip(*self._parts(rows), strict=True)
        buffer = io.BytesIO()
        known = np.concatenate(usable)
        np.savez(buffer, features=np.concatenate(features)[known], labels=np.concatenate(labels)[known], rows=rows[known])
        self._job.out.write(_file(first), buffer.getvalue())
        return {"images": np.array([len(rows)]), "bad": np.array([int((~known).sum())])}

    def _parts(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[Features, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        for start in range(0, len(rows), self._detector.slots):
            part = rows[start : start + self._detector.slots]
            batch = self._loader.load(part, part)
            yield self._features(batch["image"]), batch["label"], batch["usable"]

    def _features(self, pixels: npt.NDArray[np.uint8]) -> Features:
        import torch

        from ray_app.detectors.precision import autocast

        network: Any = self._detector.network
        with torch.inference_mode(), autocast(self._detector.device, self._detector.precision):
            features: Features = network.features(self._detector.normalise(torch.from_numpy(pixels))).float().cpu().numpy()
        return features


def _compute(job: Job) -> None:
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.data.read_api import from_blocks

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    count, there = len(job.rows("train")), set(job.out.names(FOLDER))
    missing = [first for first in range(0, count, job.config.loop.batch) if Path(_file(first)).name not in there]
    if not missing:
        return
    layout = job.layout
    made = from_blocks([pa.table({"first": [first]}) for first in missing]).map_batches(
        FeatureMaker,
        fn_constructor_args=(job,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(layout.workers, len(missing)), max_tasks_in_flight_per_actor=2),
        num_cpus=layout.worker_cpus,
        num_gpus=layout.worker_gpus or None,
        label_selector=dict(job.config.cluster.labels) or None,
    )
    progress = Progress(count, done=count - sum(min(job.config.loop.batch, count - first) for first in missing), name="features")
    for told in made.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        progress.advance(int(whole(told)["images"].sum()), int(told["bad"].sum()))
    progress.close()


def _file(first: int) -> str:
    return f"{FOLDER}/{first:08d}.npz"


def _kept(job: Job) -> tuple[Features, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All features (n, d), labels (n,) and rows (n,) of readable images, in the order of the rows."""
    parts = [np.load(io.BytesIO(job.out.read(f"{FOLDER}/{name}")), allow_pickle=False) for name in job.out.names(FOLDER)]
    features, labels, rows = (np.concatenate([part[name] for part in parts]) for name in ("features", "labels", "rows"))
    return features, labels, rows


def _groups(job: Job, rows: npt.NDArray[np.int64]) -> list[str]:
    """The group of each row; a row without one is its own."""
    named = job.rows("train")["input"].combine_chunks().field("group").take(pa.array(rows)).to_pylist()
    return [name if name is not None else f"row {row}" for name, row in zip(named, rows, strict=True)]


def _keep(job: Job, head: Head) -> None:
    """The network with its fitted head as a checkpoint of the run, as `Learner.save` names the file."""
    import torch
    from safetensors.torch import save_file

    from ray_app.learning.learner import WEIGHTS
    from ray_app.learning.networks import network_for

    network: Any = network_for(job.config, job.card)
    weight, bias = torch.from_numpy(head.weight), torch.tensor([head.bias])
    output = job.card.output
    with torch.no_grad():
        if output.sign is not None:
            network.fc.weight.copy_(output.sign * weight)
            network.fc.bias.copy_(output.sign * bias)
        else:  # two logits, whose difference is the score
            fake = output.index_among(output.labels)
            for index, side in ((fake, 0.5), (1 - fake, -0.5)):
                network.fc.weight[index].copy_(side * weight[0])
                network.fc.bias[index].copy_(side * bias[0])
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, Path(folder) / WEIGHTS)
        checkpoints.write_facts(Path(folder), step=job.total_steps, finished=True)
        checkpoints.put(job.out, Path(folder), step=job.total_steps)
