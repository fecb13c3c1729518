"""Compute the embeddings of labelled images, by any detector whose head takes one vector per image.

    compute_embeddings(job, {"train": None, "validation": rows})  # None: all rows of the split.
    stored = read_embeddings(job.out, "train")  # Embeddings with vectors (n, d), labels, rows.
    prompts = get_label_column(job.rows("train"), stored.rows, "prompt")

`embed_images` computes the vectors. The embeddings of `loop.batch` images are one file,
`features/SPLIT/NUMBER.npz`, so that a resumed training computes only missing files. Images of the
training split are augmented once, as the recipe sets. Images of other splits are prepared as
scoring does. An image that cannot be read has no embedding.

`detectors fit` stores embeddings by the SHA-256 of an image's bytes (`FeatureFolder`), so that they
can be used again with other labels of the same images.
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
from ray_app.training.loader import BatchLoader, TrainingSample, make_loader, make_training_loader

if TYPE_CHECKING:
    from ray_app.detectors import Detector

FOLDER = "features"
BLOCK_IMAGES = 256
"""Images per file of a `FeatureFolder`."""

Vector = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
RequestedRows = Mapping[str, Integers | None]
DetectorLoader = Callable[[TrainingJob], "Detector"]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of n readable images, in the order of their rows.

    Attributes:
        vectors: Embeddings (n, d).
        labels: Labels (n,), 1 for fake.
        rows: Row numbers (n,) in the split.
        precision: The precision in which they were computed, `bf16` or `fp32`.
        unreadable: The reason why a row has no embedding, by row number. It is not stored.
    """

    vectors: Vectors
    labels: Integers
    rows: Integers
    precision: str = "fp32"
    unreadable: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)


def load_scoring_detector(job: TrainingJob) -> "Detector":
    """Load the detector of the job's card on the workers' device, as `touchstone score` does."""
    from ray_app.detectors import load_detector

    return load_detector(job.card, device=job.layout.device, resize="exact")


def compute_embeddings(
    job: TrainingJob,
    requested: RequestedRows,
    *,
    load_detector: DetectorLoader = load_scoring_detector,
) -> None:
    """Compute and store the requested embeddings that are not in the training's directory yet.

    Args:
        job: The job.
        requested: Ascending row numbers by split. None for all rows of the split.
        load_detector: Loads the detector. It is called in every process, and must be a function at
            the top level of a module.

    Raises:
        DetectorError: The detector has no embeddings.
        TouchstoneError: More images cannot be read than `faults.max_bad_fraction` allows.
    """
    size = job.config.loop.batch
    blocks = []
    for split, selected in requested.items():
        rows = np.arange(len(job.rows(split))) if selected is None else selected
        blocks += [
            _Block(split, first, rows[first : first + size]) for first in range(0, len(rows), size)
        ]
    stored_names = {split: set(job.out.names(f"{FOLDER}/{split}")) for split in requested}
    missing = [
        block
        for block in blocks
        if Path(_block_name(block.split, block.first)).name not in stored_names[block.split]
    ]
    if missing:
        _run_blocks(job, missing, load_detector, count=sum(len(block.rows) for block in blocks))
    for split in requested:
        _require_readable(
            job, split, sum(len(block.rows) for block in blocks if block.split == split)
        )


def store_block(out: Store, split: str, first: int, embedded: Embeddings) -> None:
    """Store the embeddings of one block, up to `loop.batch` rows of a split, as a file.

    Args:
        out: The directory of the training.
        split: Name of the split.
        first: Position of the block's first row in the rows that `compute_embeddings` got for the
            split. It names the file.
        embedded: The embeddings of the block.
    """
    _write_block(
        out,
        _block_name(split, first),
        features=embedded.vectors,
        labels=embedded.labels,
        rows=embedded.rows,
        precision=embedded.precision,
    )


def read_embeddings(out: Store, split: str) -> Embeddings:
    """Return all stored embeddings of a split.

    Raises:
        TouchstoneError: The split has no stored embeddings, or some were computed in bf16 and
            others in fp32.
    """
    blocks = [
        block for block in _read_blocks(out.subdir(f"{FOLDER}/{split}")) if len(block["rows"])
    ]
    if not blocks:
        raise TouchstoneError(
            f"none of the {split} images could be read", hint="check that the source still exists"
        )
    precisions = sorted({str(block["precision"]) for block in blocks})
    if len(precisions) > 1:
        raise TouchstoneError(
            f"{out.url}/{FOLDER}: some embeddings were computed in {precisions[0]} and some in {precisions[1]}",
            hint=f"delete {FOLDER}/ and run the same command, which computes all embeddings again",
        )
    vectors, labels, rows = (
        np.concatenate([block[name] for block in blocks]) for name in ("features", "labels", "rows")
    )
    return Embeddings(vectors, labels, rows, precisions[0])


def get_label_column(rows: pa.Table, indices: Integers, name: str) -> list[Any]:
    """Return the values of a label column for some rows, with None for a row without a value.

    Args:
        rows: The labelled rows of a split.
        indices: Row numbers.
        name: Name of the column, a field of `datasets.labels.INPUT`.
    """
    values: list[Any] = (
        rows["input"].combine_chunks().field(name).take(pa.array(indices)).to_pylist()
    )
    return values


def describe_embeddings(card: DetectorCard, embedded: Embeddings) -> dict[str, Any]:
    """Return what decided the values of embeddings, such as the backbone and the precision.

    A model that reads embeddings has these settings on its card, which show later what embeddings
    it accepts. Such a model is an identifier, which names the generator of a fake, or a describer,
    which predicts the prompt. See `detectors.linear_head.embedding_facts`.

    Args:
        card: Card of the detector that computed the embeddings.
        embedded: The embeddings.

    Returns:
        The settings as plain JSON.
    """
    facts = embedding_facts(
        card, precision="bf16" if embedded.precision == "bf16" else "fp32", resize="exact"
    )
    content: dict[str, Any] = json.loads(json.dumps(facts))
    return content


def get_groups(rows: pa.Table, indices: Integers) -> list[str]:
    """Return the value of the label column `group` for some rows.

    Images of one group, such as those of one prompt or scene, must not be in two folds of a
    cross-validation.

    Args:
        rows: The labelled rows of a split.
        indices: Row numbers.

    Returns:
        The name of each row's group. A row without a group gets a name that no other row has.
    """
    names = get_label_column(rows, indices, "group")
    return [
        name if name is not None else f"row {row}" for name, row in zip(names, indices, strict=True)
    ]


def embed(detector: "Detector", loader: BatchLoader, rows: Integers) -> Embeddings:
    """Compute the embeddings of some rows in this process, without Ray.

    A row that cannot be read has no embedding, and its reason is in `Embeddings.unreadable`.

    Args:
        detector: A detector whose method `keep_embeddings` was called.
        loader: Reads and prepares the images of the rows.
        rows: Ascending row numbers (n,).
    """
    labels, unreadable = dict[int, int](), dict[int, str]()

    def readable() -> Iterator[tuple[int, Pixels]]:
        for slot, sample in loader.iter_samples(rows, rows):
            row = int(rows[slot])
            if isinstance(sample, TrainingSample):
                labels[row] = sample.label
                yield row, sample.image
            else:
                unreadable[row] = str(sample)

    vectors = dict(embed_images(detector, readable()))
    readable_rows = sorted(vectors)
    return Embeddings(
        np.stack([vectors[row] for row in readable_rows])
        if readable_rows
        else np.empty((0, 0), np.float32),
        np.array([labels[row] for row in readable_rows], np.int64),
        np.array(readable_rows, np.int64),
        detector.precision,
        unreadable,
    )


def embed_images(
    detector: "Detector", images: Iterable[tuple[Key, Pixels]]
) -> Iterator[tuple[Key, Vector]]:
    """Yield the key and the embedding (d,) of each prepared image, in order.

    One batch of images is in memory at a time. A batch that is not full is padded with black
    images, as in scoring. If the detector accepts images of any size, a batch is one image.

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
        tensor = torch.from_numpy(np.stack(pixels))
        vectors = detector.read(detector.normalise(tensor)).embeddings
        assert vectors is not None, "keep_embeddings was called"
        keys = [key for key, _ in batch]
        yield from zip(keys, vectors.float().cpu().numpy()[: len(keys)], strict=True)


class BlockEmbedder:
    """Computes the embeddings of blocks of rows, and stores them in the training's directory.

    A block is up to `loop.batch` rows of one split. Its embeddings are one file.
    """

    def __init__(self, job: TrainingJob, load_detector: DetectorLoader) -> None:
        job.prepare_process()
        self._job, self._loaders = job, dict[str, BatchLoader]()
        self._detector = load_detector(job)
        self._detector.keep_embeddings()

    def embed_block(self, block: "_Block") -> tuple[int, list[dict[str, Any]]]:
        """Compute and store the embeddings of a block of rows.

        Returns:
            The number of rows of the block, and a note on each image that could not be read, as
            `file_notes.note_images` returns them.
        """
        embedded = embed(self._detector, self._loader(block.split), block.rows)
        notes = file_notes.note_images(
            self._job.rows(block.split), block.split, embedded.unreadable
        )
        file_notes.write_notes(
            self._job.out,
            run_directory.UNREADABLE,
            f"features-{block.split}-{block.first:08d}",
            notes,
        )
        # This file is written last, because it marks the block as done.
        store_block(self._job.out, block.split, block.first, embedded)
        return len(block.rows), notes

    def _loader(self, split: str) -> BatchLoader:
        if split not in self._loaders:
            self._loaders[split] = (
                make_training_loader(self._job)
                if split == "train"
                else make_loader(self._job, split)
            )
        return self._loaders[split]


class Embedder(Stage):
    """A stage of Ray Data whose processes compute and store the embeddings of blocks of rows.

    A block is up to `loop.batch` rows of one split. Each process has a `BlockEmbedder`.
    """

    def start(self, *args: Any) -> None:
        """Load the detector into this process.

        Args:
            *args: A `ray_data.SharedJob`, and the function that loads the detector.
        """
        from ray_app.training.ray_data import read_job

        shared, load_detector = args
        self._blocks = BlockEmbedder(read_job(shared), load_detector)

    def work(self, message: "_Block") -> tuple[int, list[dict[str, Any]]]:
        """Compute and store the embeddings of a block of rows.

        Args:
            message: The block.

        Returns:
            The number of its rows, and a note on each image that could not be read; see
            `BlockEmbedder.embed_block`.
        """
        return self._blocks.embed_block(message)


class _Block(NamedTuple):
    """Rows of a split whose embeddings are one file.

    Attributes:
        split: Name of the split.
        first: Position of the first row among the requested rows.
        rows: Row numbers.
    """

    split: str
    first: int
    rows: Integers


def _run_blocks(
    job: TrainingJob, missing: list[_Block], load_detector: DetectorLoader, *, count: int
) -> None:
    from ray_app.cluster.progress import Progress

    progress = Progress(
        count, done=count - sum(len(block.rows) for block in missing), name="features"
    )
    log = file_notes.FileLog(job.out)
    embedded = (_embed_on_ray if job.is_on_ray else _embed_here)(job, missing, load_detector)
    with closing(progress), closing(embedded) as blocks:
        for images, notes in blocks:
            progress.advance(images, len(notes))
            for line in log.lines(notes):
                progress.say(line)


def _embed_here(
    job: TrainingJob, blocks: list[_Block], load_detector: DetectorLoader
) -> Generator[tuple[int, list[dict[str, Any]]], None, None]:
    embedder = BlockEmbedder(job, load_detector)
    return (embedder.embed_block(block) for block in blocks)


def _embed_on_ray(
    job: TrainingJob, blocks: list[_Block], load_detector: DetectorLoader
) -> Generator[tuple[int, list[dict[str, Any]]], None, None]:
    import ray

    from ray_app.streams.pool import Pool, stream

    layout = job.layout
    workers = min(layout.workers, len(blocks))
    pool = Pool(
        Embedder,
        ({"job": ray.put(job)}, load_detector),
        workers,
        workers,
        layout.worker_cpus,
        layout.worker_gpus,
        job.config.cluster.labels,
    )
    return stream(partial(iter, blocks), [pool], name="features")


def _require_readable(job: TrainingJob, split: str, count: int) -> None:
    n_unreadable, limit = (
        count - len(read_embeddings(job.out, split)),
        job.config.faults.max_bad_fraction,
    )
    if n_unreadable > limit * count:
        examples = file_notes.join_examples(
            note for note in file_notes.list_unreadable(job.out) if note["split"] == split
        )
        raise TouchstoneError(
            f"{n_unreadable:,} of {count:,} {split} images could not be read, more than {limit:.1%}{f', for example {examples}' if examples else ''}",
            hint=f"repair the files that {job.out.url}/{run_directory.UNREADABLE}/ names, or allow more by --set faults.max_bad_fraction=…",
        )


def require_own_weights(job: TrainingJob) -> None:
    """Raise ConfigError if the recipe changes the detector whose embeddings it uses.

    The keys `initial`, `card`, and `lora` change it. A model that names generators (identifier) or
    predicts prompts (describer) must learn from the embeddings that `touchstone score` computes
    later. They are those of the unchanged detector.
    """
    config = job.config
    if config.initial.start != "card" or config.card or config.lora:
        raise ConfigError(
            f"{config.name}: method {config.method} needs embeddings of {config.detector} as it is; `initial`, `card`, or `lora` changes it",
            hint="remove these keys, or set `detector` to the card of your own detector",
        )


def _block_name(split: str, first: int) -> str:
    return f"{FOLDER}/{split}/{first:08d}.npz"


class FeatureFolder:
    """The stored embeddings of images, by the SHA-256 of the image files.

    Several detectors can use one folder, because each has a subfolder.

    Args:
        url: Path or fsspec URL of the folder.
        detector: The detector that computes the embeddings. Detectors with equal `embedding_facts`
            share a subfolder.

    Attributes:
        vectors: The stored embeddings (d,) of the detector, by SHA-256.
    """

    def __init__(self, url: str, detector: "Detector") -> None:
        facts = embedding_facts(detector.card, precision=detector.precision, resize=detector.resize)
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self._store = Store.open(url).subdir(digest[:16])
        self._detector = detector
        self.vectors: dict[str, Vector] = {}
        for block in _read_blocks(self._store):
            self.vectors |= zip(block["sha256"].tolist(), block["features"], strict=True)

    def compute(self, images: Iterable[tuple[str, Pixels]]) -> None:
        """Compute and store the embeddings of images.

        If the work is interrupted, the embeddings that were computed so far are stored.

        Args:
            images: The SHA-256 and the prepared pixels of each image that the folder does not have.
        """
        block: dict[str, Vector] = {}
        try:
            for sha256, vector in embed_images(self._detector, images):
                block[sha256] = vector
                if len(block) == BLOCK_IMAGES:
                    self._add_block(block)
                    block = {}
        finally:
            if block:
                self._add_block(block)

    def _add_block(self, block: Mapping[str, Vector]) -> None:
        features = np.stack(list(block.values()))
        _write_block(self._store, f"{min(block)}.npz", sha256=list(block), features=features)
        self.vectors |= block


def _write_block(store: Store, name: str, **arrays: npt.ArrayLike) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    store.write(name, buffer.getvalue())


def _read_blocks(store: Store) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Yield the blocks of a folder by name. Raise StorageError for a damaged file."""
    for name in sorted(store.names("")):
        try:
            with np.load(io.BytesIO(store.read(name)), allow_pickle=False) as file:
                yield dict(file)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise StorageError(
                f"{store.url}/{name}: not a file of features: {error}",
                hint="delete the file and run the same command, which computes its features again",
            ) from None
