"""Measure a checkpoint on labelled rows, with the scores that the exported detector will have.

The training loop calls `validate_checkpoint`, which stores the metrics of a checkpoint in
`validations/`, before any calibration. At the end of a training, `evaluate_splits` calibrates and
measures the best checkpoint.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from ray_app.detectors import Detector
from ray_app.detectors.card import DetectorCard, Platt, default_slots
from ray_app.detectors.precision import Precision, resolve_precision
from ray_app.errors import TouchstoneError
from ray_app.inference.small_pictures import thumbnail
from ray_app.metrics import FIGURES, detection_figures, fit_platt, pixel_figures
from ray_app.storage import Store
from ray_app.training import checkpoints, file_notes, loader, run_directory
from ray_app.training.detector import load_trained
from ray_app.training.job import TrainingJob
from ray_app.training.learner import WEIGHTS
from ray_app.training.worker import Worker

_CHOICE = 8  # Random stream of this module, apart from those of order, augmentation, and dropout.
MAX_MISTAKES = 12
Rows = npt.NDArray[np.int64]
FOLDER = "validations"
NOT_SAVED = "0" * 64  # In place of the digest of weights that are in no file yet.


@dataclass(frozen=True)
class SplitEvaluation:
    """The scores and metrics of the best checkpoint on one split.

    Attributes:
        judged: The scores of the images, before calibration.
        mistakes: The wrongly judged images whose calibrated log-odds are furthest from 0. Each is a
            dict with a thumbnail and facts such as the label.
    """

    judged: "ScoredRows"
    figures: dict[str, Any]
    mistakes: list[dict[str, Any]]


@dataclass(frozen=True)
class CheckpointEvaluation:
    """The calibration of the best checkpoint, and its evaluation with this calibration.

    Attributes:
        calibration: Platt scaling, fitted on the validation split. None if that is impossible.
        calibration_note: Reason why there is no calibration. None if there is one.
    """

    splits: Mapping[str, SplitEvaluation]
    calibration: Platt | None
    calibration_note: str | None
    device: str


def validate_checkpoint(
    job: TrainingJob, checkpoint: checkpoints.CheckpointEntry, worker: Worker
) -> bool:
    """Score a checkpoint on the recipe's validation rows, and return whether metrics are stored.

    All workers call this function, and each scores its part of the rows. False means that the
    training was asked to stop meanwhile.
    """
    with checkpoints.fetch_checkpoint(job.out, checkpoint.name, [WEIGHTS]) as folder:
        rows = np.array_split(select_validation_rows(job), worker.world)[worker.rank]
        scored_part = _score_rows(job, folder, "validation", rows, worker)
    parts = worker.gather(None if scored_part is None else scored_part.to_json())
    if None in parts:
        return False
    if worker.rank == 0:
        scored = _concatenate([ScoredRows.from_json(part) for part in parts])
        _require_any(scored, "validation")
        content = {"step": checkpoint.step, **compute_metrics(job, "validation", scored)}
        job.out.write(f"{FOLDER}/{checkpoint.step:08d}.json", json.dumps(content).encode())
    return True


def validate_alone(job: TrainingJob, checkpoint: checkpoints.CheckpointEntry) -> None:
    """Validate a checkpoint in this process alone, outside of the training loop.

    See `validate_checkpoint`, which stores the metrics.
    """
    validate_checkpoint(job, checkpoint, Worker(device=job.layout.device))


def _require_any(judged: "ScoredRows", split: str) -> None:
    if not len(judged.rows):
        raise TouchstoneError(
            f"none of the {len(judged.unreadable):,} {split} images could be read",
            hint="check that the source still exists",
        )


def select_validation_rows(job: TrainingJob) -> Rows:
    """Return the numbers of the validation rows on which all checkpoints are compared.

    They are all rows, or a random sample of `validation.most_images` rows. The sample is the same
    for every checkpoint.
    """
    count, max_images = len(job.rows("validation")), job.config.validation.most_images
    if max_images is None or max_images >= count:
        return np.arange(count)
    rows = np.random.default_rng([job.config.loop.seed, _CHOICE]).choice(
        count, max_images, replace=False
    )
    return np.sort(rows)


def evaluate_splits(job: TrainingJob, folder: Path) -> CheckpointEvaluation:
    """Calibrate the network of a checkpoint on validation, and measure validation and test with it.

    The metrics are therefore those of the exported detector.
    """
    evaluations: dict[str, SplitEvaluation] = {}
    calibration, why_not = None, None
    for split in ("validation", "test"):
        if split in job.tables:
            worker = Worker(device=job.layout.device)
            judged = _score_rows(job, folder, split, np.arange(len(job.rows(split))), worker)
            assert judged is not None, "only a loop is asked to stop"
            _require_any(judged, split)
            for kind, details in (
                (run_directory.UNREADABLE, judged.reasons),
                (run_directory.MASKS, judged.odd_masks),
            ):
                file_notes.write_notes(
                    job.out, kind, split, file_notes.note_images(job.rows(split), split, details)
                )
            if split == "validation":
                calibration, why_not = _calibrate(judged)
            calibrated = judged.calibrate(calibration)
            evaluations[split] = SplitEvaluation(
                judged,
                compute_metrics(job, split, calibrated),
                _select_mistakes(job, split, calibrated),
            )
    device = run_directory.get_device_name(job.layout.device)
    return CheckpointEvaluation(evaluations, calibration, why_not, device)


def _calibrate(judged: "ScoredRows") -> tuple[Platt | None, str | None]:
    """Fit Platt scaling to scores. Return it, or None and why it is impossible.

    A network that learned nothing cannot be calibrated.
    """
    try:
        return fit_platt(judged.scores, judged.labels), None
    except ValueError as error:
        return None, str(error)


def compute_metrics(job: TrainingJob, split: str, judged: "ScoredRows") -> dict[str, Any]:
    """Return the metrics of a split, with those of masks if `judged` has them.

    `unreadable` counts the rows without a score.
    """
    generators = (
        job.rows(split)["input"].combine_chunks().field("generator").take(judged.rows).to_pylist()
    )
    pixels = judged.pixels or {}
    return {
        **detection_figures(judged.scores, judged.labels, generators),
        **pixels,
        "unreadable": len(judged.unreadable),
    }


def run_on_device(job: TrainingJob, function: Callable[..., Any], *args: Any) -> Any:
    """Call `function(job, *args)` on a machine that has the device of the job's workers.

    For a job on Ray, the function runs as a Ray task with the resources of a worker. Otherwise it
    runs in this process. The function must be at the top level of a module.
    """
    if not job.is_on_ray:
        job.prepare_process()
        return function(job, *args)
    import ray
    from ray.exceptions import RayTaskError

    layout = job.layout
    task = ray.remote(num_cpus=layout.worker_cpus, num_gpus=layout.worker_gpus, max_retries=2)(
        _run_in_task
    )
    try:
        return ray.get(task.remote(ray.put(job), function, *args))
    except RayTaskError as error:
        if isinstance(error.cause, TouchstoneError):
            raise error.cause from None
        raise


def _run_in_task(job: TrainingJob, function: Callable[..., Any], *args: Any) -> Any:
    job.prepare_process()
    return function(job, *args)


def run_on_checkpoint(
    job: TrainingJob, name: str, function: Callable[[TrainingJob, Path], Any]
) -> Any:
    """Call `function(job, folder)` with a stored checkpoint as a local folder.

    The function, at the top level of a module, runs where `run_on_device` runs it.
    """
    return run_on_device(job, _with_folder, name, function)


def _with_folder(job: TrainingJob, name: str, function: Callable[[TrainingJob, Path], Any]) -> Any:
    with checkpoints.fetch_checkpoint(job.out, name) as folder:
        return function(job, folder)


def _score_rows(
    job: TrainingJob, folder: Path, split: str, rows: Rows, worker: Worker
) -> "ScoredRows | None":
    """Return a worker's scores of some rows; None if the training was asked to stop meanwhile."""
    network = load_trained(job.config, job.card, folder)
    detector = build_detector(job.card, network, device=worker.device)
    is_stopped = False

    def batches() -> Iterator[loader.Batch]:
        nonlocal is_stopped
        for batch in _load_batches(job, split, rows, detector.slots):
            if is_stopped := worker.is_stopping():
                return
            yield batch
            worker.beat()

    judged = score_batches(detector, batches())
    return None if is_stopped else judged


def _load_batches(job: TrainingJob, split: str, rows: Rows, size: int) -> Iterator[loader.Batch]:
    """Yield batches of images without augmentation, which a few threads decode ahead.

    Each thread has a loader of its own.
    """
    thread_local = threading.local()

    def load(part: Rows) -> loader.Batch:
        if not hasattr(thread_local, "loader"):
            thread_local.loader = loader.make_loader(job, split)
        return thread_local.loader.load(part, part)  # type: ignore[no-any-return]

    parts = (rows[start : start + size] for start in range(0, len(rows), size))
    count = job.layout.decoding_threads
    with ThreadPoolExecutor(count) as threads:
        pending = deque(threads.submit(load, part) for part in islice(parts, 2 * count))
        while pending:
            yield pending.popleft().result()
            pending.extend(threads.submit(load, part) for part in islice(parts, 1))


def _select_mistakes(job: TrainingJob, split: str, judged: "ScoredRows") -> list[dict[str, Any]]:
    """Return the images on the wrong side of 0, the most certain ones first.

    They are up to `MAX_MISTAKES` thumbnails without metadata, each with its label and score.
    """
    wrong = np.flatnonzero((judged.scores > 0) != (judged.labels == 1))
    worst = wrong[np.argsort(-np.abs(judged.scores[wrong]), kind="stable")][:MAX_MISTAKES]
    if not len(worst):
        return []
    table, mistakes = job.rows(split), []
    images = dict(loader.make_loader(job, split).iter_images(judged.rows[worst]))
    for index, number in zip(worst, judged.rows[worst].tolist(), strict=True):
        if isinstance(image := images.get(number), Image.Image):
            row = table.slice(number, 1).to_pylist()[0]
            facts = {
                "label": "fake" if judged.labels[index] else "real",
                "generator": row["input"]["generator"],
            }
            name = row["member"] or row["uri"].rpartition("/")[2]
            mistakes.append(
                {
                    "jpeg": thumbnail(image),
                    **facts,
                    "score": float(judged.scores[index]),
                    "name": name,
                }
            )
    return mistakes


def read_validations(out: Store) -> list[dict[str, Any]]:
    """Return the metrics of all validated checkpoints, ordered by step."""
    return [json.loads(out.read(f"{FOLDER}/{name}")) for name in out.names(FOLDER)]


def describe_last(job: TrainingJob) -> str:
    """Return the metric and the step of the last validation as text, such as "auc 0.9312 at 2,000".

    The metric is the recipe's `validation.metric`. The text is empty if the metric is undefined. At
    least one validation must be stored.
    """
    metric, last = job.config.validation.metric, read_validations(job.out)[-1]
    value = last.get(metric)
    return "" if value is None else f"{metric} {value:.4f} at {last['step']:,}"


def list_unjudged_checkpoints(job: TrainingJob) -> list[checkpoints.CheckpointEntry]:
    """List the checkpoints that must be validated and have no stored metrics yet."""
    if not job.is_validated:
        return []
    validated_steps = {metrics["step"] for metrics in read_validations(job.out)}
    due = (
        entry
        for entry in checkpoints.list_checkpoints(job.out)
        if entry.finished or entry.step in job.milestones
    )
    return [entry for entry in due if entry.step not in validated_steps]


def remove_validations_after(out: Store, step: int) -> None:
    """Delete the validation metrics of checkpoints after `step`, at which a training resumes.

    The training makes and validates these checkpoints again.
    """
    for metrics in read_validations(out):
        if metrics["step"] > step:
            out.delete(f"{FOLDER}/{metrics['step']:08d}.json")


def remove_superseded_checkpoints(job: TrainingJob) -> None:
    """Delete the checkpoints that a training no longer needs.

    The last checkpoint, the best `faults.keep`, and those that must be validated stay.
    """
    metric, steps_to_validate, values = job.config.validation.metric, frozenset[int](), {}
    if job.is_validated:  # Otherwise the last checkpoints stay.
        validated = read_validations(job.out)
        sign = 1 if FIGURES[metric] == "max" else -1
        steps_to_validate = job.milestones - {metrics["step"] for metrics in validated}
        values = {
            metrics["step"]: sign * metrics[metric]
            for metrics in validated
            if metrics.get(metric) is not None
        }
    checkpoints.remove_superseded(
        job.out, keep=job.config.faults.keep, values=values, unjudged=steps_to_validate
    )


def is_better(metric: str, value: float, other: float) -> bool:
    """Return whether a value of a metric of `FIGURES` is better than another value."""
    return value > other if FIGURES[metric] == "max" else value < other


def is_out_of_patience(job: TrainingJob) -> bool:
    """Return whether training should stop early, because validations do not improve any more.

    This is so if `validation.patience` checkpoints were validated since the best one. Without this
    setting, return False.
    """
    config = job.config.validation
    if config.patience is None:
        return False
    best, since = None, 0
    for metrics in read_validations(job.out):
        if (value := metrics.get(config.metric)) is None:
            continue
        best, since = (
            (value, 0)
            if best is None or is_better(config.metric, value, best)
            else (best, since + 1)
        )
    return since >= config.patience


class ScoredRows(NamedTuple):
    """A detector's scores for labelled images, without the images that could not be read.

    Attributes:
        rows: (n,) int64 row numbers in the split, in batch order.
        labels: (n,) int64, 1 for fake.
        scores: (n,) float64 log-odds of fake.
        unreadable: int64 numbers of the rows whose images could not be read. They have no score.
        pixels: Metrics of the predicted masks (`metrics.pixel_figures`) over all images with a
            mask. None if the detector predicts no masks.
        odd_masks: "empty" or "full" by row number, for fakes whose stored mask marks nothing or
            everything.
    """

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    unreadable: npt.NDArray[np.int64]
    pixels: dict[str, Any] | None = None
    reasons: Mapping[int, str] = {}
    odd_masks: Mapping[int, str] = {}

    def calibrate(self, calibration: Platt | None) -> "ScoredRows":
        """Return the rows with calibrated scores; unchanged without a calibration."""
        return self if calibration is None else self._replace(scores=calibration(self.scores))

    def to_json(self) -> list[Any]:
        """Return the fields except `reasons` and `odd_masks` as plain JSON; see `from_json`."""
        return [*(values.tolist() for values in self[:4]), self.pixels]

    @classmethod
    def from_json(cls, content: list[Any]) -> "ScoredRows":
        """Return the object that `to_json` serialised, without reasons and odd masks."""
        rows, labels, scores, unreadable, pixels = content
        return cls(
            np.array(rows, np.int64),
            np.array(labels, np.int64),
            np.array(scores, np.float64),
            np.array(unreadable, np.int64),
            pixels,
        )


def build_detector(
    card: DetectorCard,
    network: nn.Module,
    *,
    device: str,
    precision: Precision = "auto",
    slots: int | None = None,
) -> Detector:
    """Build a detector around a trained network, to score images before the network is exported.

    Its scores are those that `load_detector` will compute from the exported files. The network then
    belongs to the detector. `slots` is the number of images of a forward pass. None is the default
    of the device.
    """
    return Detector(
        card, network, fake=0 if card.output.sign is not None else card.output.index_among(card.output.labels), device=device,
        precision=resolve_precision(precision, device, card.precision), resize="exact", slots=slots or default_slots(device),
        weights_sha256=NOT_SAVED,
    )  # fmt: skip


def score_batches(
    detector: Detector, batches: Iterable[Mapping[str, npt.NDArray[Any]]]
) -> ScoredRows:
    """Score batches of any sizes, as `BatchLoader.load` returns them.

    One batch is in memory at a time. If the detector predicts masks and the batches have masks, the
    predicted masks are compared with those of the batches. Raises TouchstoneError if a score is not
    finite.
    """
    chunks: list[tuple[npt.NDArray[Any], ...]] = [(np.empty(0, np.int64),) * 4]
    pixel_metrics, reasons, odd_masks = [], dict[int, str](), dict[int, str]()
    for batch in batches:
        usable = batch["usable"]
        reasons |= {
            int(batch["row"][slot]): str(batch["detail"][slot]) for slot in (~usable).nonzero()[0]
        }
        odd_masks |= file_notes.find_odd_masks(batch)
        scores, masks = _score_images(detector, batch["image"][usable])
        chunks.append((batch["row"][usable], batch["label"][usable], scores, batch["row"][~usable]))
        if masks is not None and "mask" in batch:
            pixel_metrics.append(pixel_figures(masks, batch["mask"][usable]))
    rows, labels, all_scores, unreadable = (
        np.concatenate(parts) for parts in zip(*chunks, strict=True)
    )
    if (invalid_rows := rows[~np.isfinite(all_scores)]).size:
        raise TouchstoneError(f"{detector.card.name}: scores of {len(invalid_rows)} images are not finite (row {invalid_rows[0]} first)",
                              hint="lower optimiser.rate, or set loop.precision to fp32, because training diverged")  # fmt: skip
    pixels = _average_pixel_metrics(pixel_metrics) if pixel_metrics else None
    return ScoredRows(
        rows, labels, all_scores.astype(np.float64), unreadable, pixels, reasons, odd_masks
    )


def _score_images(
    detector: Detector, images: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    """Return scores (N,), and masks (N, S, S) if the card has masks.

    Black images fill the last part, as in scoring.
    """
    if not detector.card.masks:
        return detector.score(images), None
    scores, masks = [np.empty(0, np.float32)], []
    for start in range(0, len(images), detector.slots):
        part = images[start : start + detector.slots]
        padded = np.concatenate(
            [part, np.zeros((detector.slots - len(part), *part.shape[1:]), np.uint8)]
        )
        reading = detector.read(detector.normalise(torch.from_numpy(padded)))
        assert isinstance(reading.masks, torch.Tensor), "the card says that there are masks"
        scores.append(reading.scores[: len(part)].cpu().numpy())
        masks.append(reading.masks[: len(part)].cpu().numpy())
    return np.concatenate(scores), np.concatenate(masks) if masks else None


def _concatenate(parts: Sequence[ScoredRows]) -> ScoredRows:
    """Concatenate the outputs of neighbouring rows."""
    pixel_metrics = [part.pixels for part in parts if part.pixels is not None]
    return ScoredRows(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.unreadable for part in parts]),
        _average_pixel_metrics(pixel_metrics) if pixel_metrics else None,
    )


def _average_pixel_metrics(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean pixel metrics of batches, weighted by their numbers of altered images."""
    counts = [part["n"] for part in parts]
    names = ("pixel_f1", "pixel_iou")
    if not any(counts):
        return {**dict.fromkeys(names), "n": 0}
    means = {
        name: float(np.average([part[name] or 0.0 for part in parts], weights=counts))
        for name in names
    }
    return {**means, "n": sum(counts)}
