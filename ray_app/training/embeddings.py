"""The embeddings of labelled images, by any detector whose head takes one vector per image.

    compute_embeddings(job, {"train": None, "validation": rows})     # null = all rows of the split
    found = kept_embeddings(job.out, "train")                        # no Ray: Embeddings(vectors (n, d) float32, labels, rows)
    prompts = column_of(job.rows("train"), found.rows, "prompt")     # a label column of the same images

`embed_images` computes them, and a block of images is one file, so that what was interrupted
computes no block again. The rows of a training are in `features/SPLIT/NUMBER.npz`, a block being
`loop.batch` images: those of the training split as the recipe's augmentation changes them, once;
those of other splits as scoring would see them. What cannot be read has no row. `detectors fit`
keeps images by the SHA-256 of their bytes (`FeatureFolder`), so that other labels of them need no
new features.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_app.detectors import DetectorCard
from ray_app.detectors.linear_head import embedding_facts
from ray_app.detectors.preprocessing import Pixels
from ray_app.errors import ConfigError, StorageError, TouchstoneError
from ray_app.storage import Store
from ray_app.streams.stage import Stage
from ray_app.training import file_notes, run_directory
from ray_app.training.job import TrainingJob
from ray_app.training.loader import BatchLoader, TrainingSample, plain_loader, training_loader

if TYPE_CHECKING:
    from ray_app.detectors import Detector

FOLDER = "features"
BLOCK_IMAGES = 256
"""Images of one file of a `FeatureFolder`."""

Vector = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Wanted = Mapping[str, Integers | None]
MakeDetector = Callable[[TrainingJob], "Detector"]
Key = TypeVar("Key")


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
    size = job.config.loop.batch
    blocks = []
    for split, chosen in wanted.items():
        rows = np.arange(len(job.rows(split))) if chosen is None else chosen
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
    _write_block(
        out,
        _file(split, first),
        features=found.vectors,
        labels=found.labels,
        rows=found.rows,
        precision=found.precision,
    )


def kept_embeddings(out: Store, split: str) -> Embeddings:
    """All that a training directory keeps of a split. Raises TouchstoneError where that is nothing,
    or of two precisions.
    """
    full = [block for block in _read_blocks(out.below(f"{FOLDER}/{split}")) if len(block["rows"])]
    if not full:
        raise TouchstoneError(
            f"not one of the {split} images could be read", hint="is the source still there?"
        )
    made_in = sorted({str(block["precision"]) for block in full})
    if len(made_in) > 1:
        raise TouchstoneError(
            f"{out.url}: some features were computed in {made_in[0]} and some in {made_in[1]}",
            hint=f"remove {FOLDER}/, and they are made anew",
        )
    vectors, labels, rows = (
        np.concatenate([block[name] for block in full]) for name in ("features", "labels", "rows")
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
    facts = embedding_facts(
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
    """Return the embeddings of some rows (n,) without those that cannot be read. No Ray.

    Args:
        detector: A detector that keeps embeddings.
        loader: Reads the rows.
        rows: Ascending.
    """
    labels, unreadable = dict[int, int](), dict[int, str]()

    def readable() -> Iterator[tuple[int, Pixels]]:
        for slot, found in loader.made(rows, rows):
            row = int(rows[slot])
            if isinstance(found, TrainingSample):
                labels[row] = found.label
                yield row, found.image
            else:
                unreadable[row] = str(found)

    vectors = dict(embed_images(detector, readable()))
    places = sorted(vectors)
    return Embeddings(
        np.stack([vectors[row] for row in places]) if places else np.empty((0, 0), np.float32),
        np.array([labels[row] for row in places], np.int64),
        np.array(places, np.int64),
        detector.precision,
        unreadable,
    )


def embed_images(
    detector: "Detector", images: Iterable[tuple[Key, Pixels]]
) -> Iterator[tuple[Key, Vector]]:
    """Yield each prepared image's key with its embedding (d,), one batch of images in memory.

    A batch is filled up to the detector's slots, as in scoring. If the detector takes any size,
    images go through one by one.

    Args:
        detector: A detector that keeps embeddings (`Detector.keep_embeddings`).
        images: (height, width, 3) pixels, each with its key.
    """
    step = min(detector.card.batch or detector.slots, detector.slots)
    is_one_size = detector.card.preprocessing.shape is not None
    remaining = iter(images)
    while batch := list(islice(remaining, step if is_one_size else 1)):
        pixels = [image for _, image in batch]
        if is_one_size:
            pixels += [np.zeros_like(pixels[0])] * (step - len(pixels))
        given = torch.from_numpy(np.stack(pixels))
        vectors = detector.read(detector.normalise(given)).embeddings
        assert vectors is not None, "keep_embeddings was called"
        keys = [key for key, _ in batch]
        yield from zip(keys, vectors.float().cpu().numpy()[: len(keys)], strict=True)


class BlockEmbedder:
    """A block of rows in, their embeddings into the training's directory."""

    def __init__(self, job: TrainingJob, make: MakeDetector) -> None:
        job.settle_process()
        self._job, self._loaders = job, dict[str, BatchLoader]()
        self._detector = make(job)
        self._detector.keep_embeddings()

    def embed_block(self, block: "_Block") -> tuple[int, list[dict[str, Any]]]:
        """The rows of a block → how many there were, and notes on those that could not be read; the
        block's file is written last.
        """
        found = embed(self._detector, self._loader(block.split), block.rows)
        notes = file_notes.note_images(self._job.rows(block.split), block.split, found.unreadable)
        file_notes.write_notes(
            self._job.out,
            run_directory.UNREADABLE,
            f"features-{block.split}-{block.first:08d}",
            notes,
        )
        keep_block(self._job.out, block.split, block.first, found)
        return len(block.rows), notes

    def _loader(self, split: str) -> BatchLoader:
        if split not in self._loaders:
            self._loaders[split] = (
                training_loader(self._job) if split == "train" else plain_loader(self._job, split)
            )
        return self._loaders[split]


class Embedder(Stage):
    """A `BlockEmbedder` in a process of Ray Data."""

    def start(self, *given: Any) -> None:
        """`given`: the shared job, and what makes the detector."""
        from ray_app.training.ray_data import read_job

        shared, make = given
        self._blocks = BlockEmbedder(read_job(shared), make)

    def work(self, message: "_Block") -> tuple[int, list[dict[str, Any]]]:
        """See `BlockEmbedder`."""
        return self._blocks.embed_block(message)


class _Block(NamedTuple):
    """Rows of a split whose embeddings are one file; `first`: which of the wanted ones it begins
    with.
    """

    split: str
    first: int
    rows: Integers


def _run(job: TrainingJob, missing: list[_Block], make: MakeDetector, *, count: int) -> None:
    from ray_app.cluster.progress import Progress

    progress = Progress(count, done=count - sum(len(one.rows) for one in missing), name="features")
    log = file_notes.FileLog(job.out)
    embedded = (_embed_on_ray if job.on_ray else _embed_here)(job, missing, make)
    with closing(progress), closing(embedded) as blocks:
        for images, notes in blocks:
            progress.advance(images, len(notes))
            for line in log.lines(notes):
                progress.say(line)


def _embed_here(
    job: TrainingJob, blocks: list[_Block], make: MakeDetector
) -> Generator[tuple[int, list[dict[str, Any]]], None, None]:
    embedder = BlockEmbedder(job, make)
    return (embedder.embed_block(block) for block in blocks)


def _embed_on_ray(
    job: TrainingJob, blocks: list[_Block], make: MakeDetector
) -> Generator[tuple[int, list[dict[str, Any]]], None, None]:
    import ray

    from ray_app.streams.pool import Pool, stream

    layout = job.layout
    workers = min(layout.workers, len(blocks))
    pool = Pool(
        Embedder,
        ({"job": ray.put(job)}, make),
        workers,
        workers,
        layout.worker_cpus,
        layout.worker_gpus,
        job.config.cluster.labels,
    )
    return stream(partial(iter, blocks), [pool], name="features")


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


class FeatureFolder:
    """The embeddings of images by the SHA-256 of their bytes, in a folder for all backbones.

    Args:
        url: Path or fsspec URL of the folder.
        detector: The detector that computes them. Others whose `embedding_facts` are equal share
            them.
    """

    def __init__(self, url: str, detector: "Detector") -> None:
        facts = embedding_facts(detector.card, precision=detector.precision, resize=detector.resize)
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self._store = Store.open(url).below(digest[:16])
        self._detector = detector
        self.vectors: dict[str, Vector] = {}
        for block in _read_blocks(self._store):
            self.vectors |= zip(block["sha256"].tolist(), block["features"], strict=True)

    def compute(self, images: Iterable[tuple[str, Pixels]]) -> None:
        """Compute and keep the embeddings of images that the folder does not have, each with its
        SHA-256. An interruption keeps those that were computed.
        """
        block: dict[str, Vector] = {}
        try:
            for sha256, vector in embed_images(self._detector, images):
                block[sha256] = vector
                if len(block) == BLOCK_IMAGES:
                    self._keep(block)
                    block = {}
        finally:
            if block:
                self._keep(block)

    def _keep(self, block: Mapping[str, Vector]) -> None:
        features = np.stack(list(block.values()))
        _write_block(self._store, f"{min(block)}.npz", sha256=list(block), features=features)
        self.vectors |= block


def _write_block(store: Store, name: str, **arrays: npt.ArrayLike) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    store.write(name, buffer.getvalue())


def _read_blocks(store: Store) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Yield the blocks of a folder by name. Raises StorageError for a damaged file."""
    for name in sorted(store.names("")):
        try:
            with np.load(io.BytesIO(store.read(name)), allow_pickle=False) as file:
                yield dict(file)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise StorageError(
                f"{store.url}/{name}: not a file of features: {error}",
                hint="delete it, and the same command computes its features again",
            ) from None
