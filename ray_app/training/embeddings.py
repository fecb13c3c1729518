"""The embeddings of a training's images, by any detector whose head takes one vector per image:
computed on Ray Data, kept in files.

    compute_embeddings(job, {"train": None, "validation": rows})     # a Ray Data actor pool; null = all rows of the split
    found = kept_embeddings(job.out, "train")                        # no Ray: Embeddings(vectors (n, d) float32, labels, rows)
    prompts = column_of(job.rows("train"), found.rows, "prompt")     # a label column of the same images

A block of `loop.batch` images is one file, `features/SPLIT/NUMBER.npz`: whatever was interrupted
computes no block again. Training images are seen as the recipe's augmentation changes them, once;
those of other splits as scoring would see them. What cannot be read has no row.

The linear probe, `probe`, fits scikit-learn's head to them; what comes out is a checkpoint like
that of any training.
"""

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_app.cluster.progress import Progress
from ray_app.detectors import DetectorCard, linear_head
from ray_app.detectors.registry import HEADS
from ray_app.errors import ConfigError, TouchstoneError
from ray_app.storage import Store
from ray_app.streams.pool import Pool, stream
from ray_app.streams.stage import Stage
from ray_app.training import (
    checkpoints,
    export,
    file_notes,
    learner,
    networks,
    run_directory,
    validate,
)
from ray_app.training.job import TrainingJob
from ray_app.training.loader import BatchLoader, TrainingSample, plain_loader, training_loader

if TYPE_CHECKING:
    from ray_app.detectors import Detector

CLASSIFIER: linear_head.Classifier = "logistic"
FOLDER = "features"

Vectors = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Wanted = Mapping[str, Integers | None]
MakeDetector = Callable[[TrainingJob], "Detector"]


@dataclass(frozen=True)
class Embeddings:
    """Of n readable images, in the order of their rows: `vectors` (n, d), `labels` (n,) 1 = fake,
    `rows` (n,) places in the split.

    `precision`: in which they were computed, `bf16` or `fp32`. `unreadable`: why the other rows
    have none; it is not kept with them.
    """

    vectors: Vectors
    labels: Integers
    rows: Integers
    precision: str = "fp32"
    unreadable: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)


def scoring_detector(job: TrainingJob) -> "Detector":
    """The detector of the job's card as `touchstone score` loads it."""
    from ray_app.detectors import load_detector

    return load_detector(job.card, device=job.layout.device)


def compute_embeddings(
    job: TrainingJob, wanted: Wanted, *, make: MakeDetector = scoring_detector
) -> None:
    """Compute what is missing of these splits' rows (ascending; None = all), each block once, and
    keep it.

    `make` is called in every process, and must be a module's function. Raises DetectorError where
    the detector has no embedding, TouchstoneError where more images cannot be read than
    `faults.max_bad_fraction` allows.
    """
    blocks = []
    for split, chosen in wanted.items():
        rows, size = (
            np.arange(len(job.rows(split))) if chosen is None else chosen,
            job.config.loop.batch,
        )
        blocks += [
            _Block(split, first, rows[first : first + size]) for first in range(0, len(rows), size)
        ]
    there = {split: set(job.out.names(f"{FOLDER}/{split}")) for split in wanted}
    missing = [
        block
        for block in blocks
        if Path(_file(block.split, block.first)).name not in there[block.split]
    ]
    if missing:
        _run(job, missing, make, count=sum(len(block.rows) for block in blocks))
    for split in wanted:
        _require_readable(
            job, split, sum(len(block.rows) for block in blocks if block.split == split)
        )


def keep_block(out: Store, split: str, first: int, found: Embeddings) -> None:
    """Keep a block of a split's rows; `first`: which of the wanted ones it begins with."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        features=found.vectors,
        labels=found.labels,
        rows=found.rows,
        precision=found.precision,
    )
    out.write(_file(split, first), buffer.getvalue())


def kept_embeddings(out: Store, split: str) -> Embeddings:
    """All that a training directory keeps of a split. Raises TouchstoneError where that is nothing,
    or of two precisions.
    """
    parts = [
        np.load(io.BytesIO(out.read(f"{FOLDER}/{split}/{name}")), allow_pickle=False)
        for name in sorted(out.names(f"{FOLDER}/{split}"))
    ]
    if not sum(len(part["rows"]) for part in parts):
        raise TouchstoneError(
            f"not one of the {split} images could be read", hint="is the source still there?"
        )
    full = [part for part in parts if len(part["rows"])]
    made_in = sorted({str(part["precision"]) for part in full})
    if len(made_in) > 1:
        raise TouchstoneError(
            f"{out.url}: some features were computed in {made_in[0]} and some in {made_in[1]}",
            hint=f"remove {FOLDER}/, and they are made anew",
        )
    vectors, labels, rows = (
        np.concatenate([part[name] for part in full]) for name in ("features", "labels", "rows")
    )
    return Embeddings(vectors, labels, rows, made_in[0])


def column_of(rows: pa.Table, places: Integers, name: str) -> list[Any]:
    """A column of the labels (`datasets.labels.INPUT`) of some rows of a labelled table; None where
    an image has none.
    """
    values: list[Any] = (
        rows["input"].combine_chunks().field(name).take(pa.array(places)).to_pylist()
    )
    return values


def embedding_of(card: DetectorCard, found: Embeddings) -> dict[str, Any]:
    """What decided these embeddings (`detectors.linear_head.embedding_facts`), as plain JSON for a
    card that reads such ones.
    """
    facts = linear_head.embedding_facts(
        card, precision="bf16" if found.precision == "bf16" else "fp32", resize="exact"
    )
    content: dict[str, Any] = json.loads(json.dumps(facts))
    return content


def groups_of(rows: pa.Table, places: Integers) -> list[str]:
    """The group of each row; a row without one is its own."""
    named = column_of(rows, places, "group")
    return [
        name if name is not None else f"row {row}" for name, row in zip(named, places, strict=True)
    ]


def embed(detector: "Detector", loader: BatchLoader, rows: Integers) -> Embeddings:
    """The embeddings of some rows, one batch of the detector's slots in memory; rows that cannot be
    read are left out. No Ray.

    `detector` keeps embeddings (`Detector.keep_embeddings`). Where it takes any size, images go
    through one by one.
    """
    step = min(detector.card.batch or detector.slots, detector.slots)
    vectors, labels, places = [np.empty((0, 0), np.float32)], [np.empty(0, np.int64)], [rows[:0]]
    unreadable: dict[int, str] = {}
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        made: dict[int, TrainingSample] = {}
        for slot, found in loader.made(part, part):
            if isinstance(found, TrainingSample):
                made[slot] = found
            else:
                unreadable[int(part[slot])] = str(found)
        if slots := sorted(made):
            vectors.append(_read(detector, [made[slot].image for slot in slots], step))
            labels.append(np.array([made[slot].label for slot in slots], np.int64))
            places.append(part[slots])
    return Embeddings(
        np.concatenate(vectors[1:] or vectors),
        np.concatenate(labels),
        np.concatenate(places),
        detector.precision,
        unreadable,
    )


def _read(detector: "Detector", images: list[npt.NDArray[np.uint8]], step: int) -> Vectors:
    """(n, d) of prepared images; every batch is filled up to `step` slots, as in scoring."""
    if detector.card.preprocessing.shape is None:
        batches = [image[None] for image in images]
    else:
        batches = [np.stack([*images, *[np.zeros_like(images[0])] * (step - len(images))])]
    found = []
    for batch in batches:
        vectors = detector.read(detector.normalise(torch.from_numpy(batch))).embeddings
        assert vectors is not None, "keep_embeddings was called"
        found.append(vectors.float().cpu().numpy())
    return np.concatenate(found)[: len(images)]


class Embedder(Stage):
    """A block of rows in, their embeddings into the training's directory."""

    def start(self, *given: Any) -> None:
        """`given`: the job, and what makes the detector."""
        job, make = given
        job.settle_process(job.layout.device, job.layout.threads)
        self._job, self._loaders = job, dict[str, BatchLoader]()
        self._detector = make(job)
        self._detector.keep_embeddings()

    def work(self, message: "_Block") -> tuple[int, list[dict[str, Any]]]:
        """The rows of a block → how many there were, and notes on those that could not be read; the
        block's file is written last.
        """
        found = embed(self._detector, self._loader(message.split), message.rows)
        notes = file_notes.note_images(
            self._job.rows(message.split), message.split, found.unreadable
        )
        file_notes.write_notes(
            self._job.out,
            run_directory.UNREADABLE,
            f"features-{message.split}-{message.first:08d}",
            notes,
        )
        keep_block(self._job.out, message.split, message.first, found)
        return len(message.rows), notes

    def _loader(self, split: str) -> BatchLoader:
        if split not in self._loaders:
            self._loaders[split] = (
                training_loader(self._job) if split == "train" else plain_loader(self._job, split)
            )
        return self._loaders[split]


class _Block(NamedTuple):
    """Rows of a split whose embeddings are one file; `first`: which of the wanted ones it begins
    with.
    """

    split: str
    first: int
    rows: Integers


def _run(job: TrainingJob, missing: list[_Block], make: MakeDetector, *, count: int) -> None:
    layout = job.layout
    workers = min(layout.workers, len(missing))
    pool = Pool(
        Embedder,
        (job, make),
        workers,
        workers,
        layout.worker_cpus,
        layout.worker_gpus,
        job.config.cluster.labels,
    )
    progress = Progress(count, done=count - sum(len(one.rows) for one in missing), name="features")
    log = file_notes.FileLog(job.out)
    with (
        closing(progress),
        closing(stream(partial(iter, missing), [pool], name="features")) as blocks,
    ):
        for images, notes in blocks:
            progress.advance(images, len(notes))
            for line in log.lines(notes):
                progress.say(line)


def _require_readable(job: TrainingJob, split: str, count: int) -> None:
    bad, most = count - len(kept_embeddings(job.out, split)), job.config.faults.max_bad_fraction
    if bad > most * count:
        examples = file_notes.join_examples(
            note for note in file_notes.list_unreadable(job.out) if note["split"] == split
        )
        raise TouchstoneError(
            f"{bad:,} of {count:,} {split} images could not be read, more than {most:.1%}{f', for example {examples}' if examples else ''}",
            hint=f"repair the files that {job.out.url}/{run_directory.UNREADABLE}/ names, or allow more by --set faults.max_bad_fraction=…",
        )


def require_own_weights(job: TrainingJob) -> None:
    """Refuse a recipe whose embeddings no `touchstone score` would make. Raises ConfigError."""
    config = job.config
    if config.initial.start != "card" or config.card or config.lora:
        raise ConfigError(
            f"{config.name}: method {config.method} reads embeddings of {config.detector} as it is; `initial`, `card` and `lora` change it",
            hint="leave them out, or give the card of a detector of your own as `detector`",
        )


def _file(split: str, first: int) -> str:
    return f"{FOLDER}/{split}/{first:08d}.npz"


def probe(job: TrainingJob) -> None:
    """Compute what features are missing, fit the head, and keep network and head as the one
    checkpoint.

    Raises ConfigError for a card without a head on features, and for too few images of a class;
    TouchstoneError where too many cannot be read.
    """
    if job.card.family not in HEADS:
        raise ConfigError(
            f"{job.card.name}: a linear probe is for cards of the families {' and '.join(HEADS)}",
            hint="method: fine-tune",
        )
    compute_embeddings(job, {"train": None}, make=frozen_detector)
    found = kept_embeddings(job.out, "train")
    rows = job.rows("train")
    generators = [name or "" for name in column_of(rows, found.rows, "generator")]
    weights = linear_head.even_weights(found.labels, generators, job.config.sampling.generators)
    head = linear_head.fit_head(found.vectors, found.labels, CLASSIFIER, weights=weights)
    folds = linear_head.cross_validated_auc(
        found.vectors, found.labels, CLASSIFIER, groups_of(rows, found.rows), weights=weights
    )
    job.out.write(
        export.PROBE, json.dumps({"images": len(found), "cross_validated_auc": folds}).encode()
    )
    _keep(job, head)


def frozen_detector(job: TrainingJob) -> "Detector":
    """The network as training would begin with it: its backbone is that of the recipe, its head
    need not exist.
    """
    network = networks.network_for(job.config, job.card).eval().requires_grad_(False)
    return validate.detector_for(job.card, network, device=job.layout.device)


def _keep(job: TrainingJob, head: linear_head.Head) -> None:
    """The network with its fitted head as a checkpoint of the run, as `Learner.save` names the
    file.
    """
    from safetensors.torch import save_file

    network: Any = networks.network_for(job.config, job.card)
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
        save_file(
            {name: tensor.contiguous() for name, tensor in network.state_dict().items()},
            Path(folder) / learner.WEIGHTS,
        )
        checkpoints.save_checkpoint(
            job.out, Path(folder), checkpoints.new_name(job.total_steps), finished=True
        )
