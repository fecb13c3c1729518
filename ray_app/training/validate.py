"""A checkpoint measured on labelled rows, as the detector that it will be: `validate_checkpoint`
while training, `evaluate_splits` at the end.

The metrics are kept by step in `validations/`.
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
from ray_app.detectors.card import DetectorCard, default_slots
from ray_app.detectors.precision import Precision, resolve_precision
from ray_app.errors import TouchstoneError
from ray_app.inference.small_pictures import thumbnail
from ray_app.metrics import FIGURES, detection_figures, pixel_figures
from ray_app.storage import Store
from ray_app.training import checkpoints, file_notes, loader, run_directory
from ray_app.training.detector import load_trained
from ray_app.training.job import TrainingJob
from ray_app.training.learner import WEIGHTS
from ray_app.training.worker import Worker

_CHOICE = 8  # names the stream of chance, beside those of order, augmentation and dropout
MOST_MISTAKES = 12
Rows = npt.NDArray[np.int64]
FOLDER = "validations"
NOT_SAVED = "0" * 64  # stands for the digest of weights that are in no file yet


@dataclass(frozen=True)
class SplitEvaluation:
    """One split as the chosen network judges it, with figures, the worst mistakes as pictures, and
    the name of the device.
    """

    judged: "Judged"
    figures: dict[str, Any]
    mistakes: list[dict[str, Any]]
    device: str


def validate_checkpoint(
    job: TrainingJob, checkpoint: checkpoints.CheckpointEntry, worker: Worker
) -> bool:
    """Judge a checkpoint on the validation rows that the recipe chooses from, and keep the metrics.
    All workers call it, and each takes its part of the rows.

    Returns:
        Whether it was judged. Otherwise the training was asked to stop meanwhile.
    """
    with checkpoints.fetched(job.out, checkpoint.name, [WEIGHTS]) as folder:
        rows = np.array_split(chosen_rows(job), worker.world)[worker.rank]
        judged = _judge_rows(job, folder, "validation", rows, worker)
    parts = worker.gather(None if judged is None else judged.to_json())
    if None in parts:
        return False
    if worker.rank == 0:
        whole = _joined([Judged.from_json(part) for part in parts])
        _require_any(whole, "validation")
        content = {"step": checkpoint.step, **figures_of(job, "validation", whole)}
        job.out.write(f"{FOLDER}/{checkpoint.step:08d}.json", json.dumps(content).encode())
    return True


def validate_alone(job: TrainingJob, checkpoint: checkpoints.CheckpointEntry) -> None:
    """Judge a checkpoint outside of the loop; see `validate_checkpoint`."""
    validate_checkpoint(job, checkpoint, Worker(device=job.layout.device))


def _require_any(judged: "Judged", split: str) -> None:
    if not len(judged.rows):
        raise TouchstoneError(
            f"not one of the {len(judged.unreadable):,} {split} images could be read",
            hint="is the source still there?",
        )


def chosen_rows(job: TrainingJob) -> Rows:
    """The validation rows by which checkpoints are compared: all, or the same few every time."""
    count, most = len(job.rows("validation")), job.config.validation.most_images
    if most is None or most >= count:
        return np.arange(count)
    drawn = np.random.default_rng([job.config.loop.seed, _CHOICE]).choice(
        count, most, replace=False
    )
    return np.sort(drawn)


def evaluate_splits(job: TrainingJob, folder: Path) -> dict[str, SplitEvaluation]:
    """All rows of validation and, where there is one, test, judged by the network of a checkpoint's
    folder.
    """
    found = {}
    for split in ("validation", "test"):
        if split in job.tables:
            worker = Worker(device=job.layout.device)
            judged = _judge_rows(job, folder, split, np.arange(len(job.rows(split))), worker)
            assert judged is not None, "only a loop is asked to stop"
            _require_any(judged, split)
            for kind, details in (
                (run_directory.UNREADABLE, judged.reasons),
                (run_directory.MASKS, judged.odd_masks),
            ):
                file_notes.write_notes(
                    job.out, kind, split, file_notes.note_images(job.rows(split), split, details)
                )
            figures, device = (
                figures_of(job, split, judged),
                run_directory.device_name(job.layout.device),
            )
            found[split] = SplitEvaluation(judged, figures, _mistakes(job, split, judged), device)
    return found


def figures_of(job: TrainingJob, split: str, judged: "Judged") -> dict[str, Any]:
    """Detection figures, and those of masks where there are some; `unreadable` counts the rows that
    have no score.
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


def on_device(job: TrainingJob, function: Callable[..., Any], *given: Any) -> Any:
    """Return `function(job, *given)`, computed on the device of a worker: in this process or, for a
    job on Ray, as a task. Raises the TouchstoneError that the function raises.
    """
    if not job.on_ray:
        job.settle_process()
        return function(job, *given)
    import ray
    from ray.exceptions import RayTaskError

    layout = job.layout
    task = ray.remote(num_cpus=layout.worker_cpus, num_gpus=layout.worker_gpus, max_retries=2)(
        _in_task
    )
    try:
        return ray.get(task.remote(ray.put(job), function, *given))
    except RayTaskError as error:
        if isinstance(error.cause, TouchstoneError):
            raise error.cause from None
        raise


def _in_task(job: TrainingJob, function: Callable[..., Any], *given: Any) -> Any:
    job.settle_process()
    return function(job, *given)


def on_checkpoint(job: TrainingJob, name: str, function: Callable[[TrainingJob, Path], Any]) -> Any:
    """Return `function(job, folder)` for the folder of a kept checkpoint; see `on_device`."""
    return on_device(job, _with_folder, name, function)


def _with_folder(job: TrainingJob, name: str, function: Callable[[TrainingJob, Path], Any]) -> Any:
    with checkpoints.fetched(job.out, name) as folder:
        return function(job, folder)


def _judge_rows(
    job: TrainingJob, folder: Path, split: str, rows: Rows, worker: Worker
) -> "Judged | None":
    """Return a worker's outputs for some rows; None if the training was asked to stop meanwhile."""
    network = load_trained(job.config, job.card, folder)
    detector = detector_for(job.card, network, device=worker.device)
    is_stopped = False

    def batches() -> Iterator[loader.Batch]:
        nonlocal is_stopped
        for batch in _loaded(job, split, rows, detector.slots):
            if is_stopped := worker.is_stopping():
                return
            yield batch
            worker.beat()

    judged = judge(detector, batches())
    return None if is_stopped else judged


def _loaded(job: TrainingJob, split: str, rows: Rows, size: int) -> Iterator[loader.Batch]:
    """Batches of rows as they are, decoded a little ahead by a few threads, each with a loader of
    its own.
    """
    own = threading.local()

    def load(part: Rows) -> loader.Batch:
        if not hasattr(own, "loader"):
            own.loader = loader.plain_loader(job, split)
        return own.loader.load(part, part)  # type: ignore[no-any-return]

    parts = (rows[start : start + size] for start in range(0, len(rows), size))
    count = job.layout.decoding_threads
    with ThreadPoolExecutor(count) as threads:
        waiting = deque(threads.submit(load, part) for part in islice(parts, 2 * count))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(threads.submit(load, part) for part in islice(parts, 1))


def _mistakes(job: TrainingJob, split: str, judged: "Judged") -> list[dict[str, Any]]:
    """The images on the wrong side of 0, the most certain ones first, as small pictures without
    metadata.
    """
    wrong = np.flatnonzero((judged.scores > 0) != (judged.labels == 1))
    worst = wrong[np.argsort(-np.abs(judged.scores[wrong]), kind="stable")][:MOST_MISTAKES]
    if not len(worst):
        return []
    table, mistakes = job.rows(split), []
    pictures = dict(loader.plain_loader(job, split).images(judged.rows[worst]))
    for place, number in zip(worst, judged.rows[worst].tolist(), strict=True):
        if isinstance(picture := pictures.get(number), Image.Image):
            row = table.slice(number, 1).to_pylist()[0]
            facts = {
                "label": "fake" if judged.labels[place] else "real",
                "generator": row["input"]["generator"],
            }
            name = row["member"] or row["uri"].rpartition("/")[2]
            mistakes.append(
                {
                    "jpeg": thumbnail(picture),
                    **facts,
                    "score": float(judged.scores[place]),
                    "name": name,
                }
            )
    return mistakes


def validations(out: Store) -> list[dict[str, Any]]:
    """The figures of all checkpoints that were judged, by their steps."""
    return [json.loads(out.read(f"{FOLDER}/{name}")) for name in out.names(FOLDER)]


def describe_last(job: TrainingJob) -> str:
    """Return the last validation in a few words."""
    metric, last = job.config.validation.metric, validations(job.out)[-1]
    value = last.get(metric)
    return "" if value is None else f"{metric} {value:.4f} at {last['step']:,}"


def unjudged_checkpoints(job: TrainingJob) -> list[checkpoints.CheckpointEntry]:
    """List the checkpoints that still have to be validated, because a session ended before that."""
    if not job.is_validated:
        return []
    judged = {figures["step"] for figures in validations(job.out)}
    due = (
        entry
        for entry in checkpoints.list_checkpoints(job.out)
        if entry.finished or entry.step in job.milestones
    )
    return [entry for entry in due if entry.step not in judged]


def remove_validations_after(out: Store, step: int) -> None:
    """Delete the figures of checkpoints that no longer exist: of those after `step`, at which
    training resumes.
    """
    for figures in validations(out):
        if figures["step"] > step:
            out.delete(f"{FOLDER}/{figures['step']:08d}.json")


def remove_superseded_checkpoints(job: TrainingJob) -> None:
    """Delete all checkpoints but the last, the best `faults.keep`, and those still to be validated."""
    metric, unjudged, values = job.config.validation.metric, frozenset[int](), {}
    if job.is_validated:  # Otherwise the last ones stay.
        judged = validations(job.out)
        sign = 1 if FIGURES[metric] == "max" else -1
        unjudged = job.milestones - {figures["step"] for figures in judged}
        values = {
            figures["step"]: sign * figures[metric]
            for figures in judged
            if figures.get(metric) is not None
        }
    checkpoints.remove_superseded(
        job.out, keep=job.config.faults.keep, values=values, unjudged=unjudged
    )


def is_better(metric: str, one: float, than: float) -> bool:
    """Whether a value of this metric is better than another."""
    return one > than if FIGURES[metric] == "max" else one < than


def is_out_of_patience(job: TrainingJob) -> bool:
    """Whether as many checkpoints as the recipe's patience were judged since the best one."""
    wanted = job.config.validation
    if wanted.patience is None:
        return False
    best, since = None, 0
    for one in validations(job.out):
        if (value := one.get(wanted.metric)) is None:
            continue
        best, since = (
            (value, 0)
            if best is None or is_better(wanted.metric, value, best)
            else (best, since + 1)
        )
    return since >= wanted.patience


class Judged(NamedTuple):
    """A detector's outputs for labelled images: one entry per readable image, in the order of the
    batches.

    `rows` (n,) int64; `labels` (n,) int64, 1 = fake; `scores` (n,) float64 log-odds of fake.
    `unreadable` int64 rows that have no score. `pixels`: `pixel_figures` over all images with a
    mask, None where the detector does not say where. `reasons`: why a row has no score;
    `odd_masks`: rows of fakes whose masks are "empty" or "full".
    """

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    unreadable: npt.NDArray[np.int64]
    pixels: dict[str, Any] | None = None
    reasons: Mapping[int, str] = {}
    odd_masks: Mapping[int, str] = {}

    def to_json(self) -> list[Any]:
        """Return what metrics are computed from, as plain JSON."""
        return [*(values.tolist() for values in self[:4]), self.pixels]

    @classmethod
    def from_json(cls, content: list[Any]) -> "Judged":
        """Return what `to_json` was called on, without reasons and odd masks."""
        rows, labels, scores, unreadable, pixels = content
        return cls(
            np.array(rows, np.int64),
            np.array(labels, np.int64),
            np.array(scores, np.float64),
            np.array(unreadable, np.int64),
            pixels,
        )


def detector_for(
    card: DetectorCard,
    network: nn.Module,
    *,
    device: str,
    precision: Precision = "auto",
    slots: int | None = None,
) -> Detector:
    """A detector from what `load_trained` gives, as `load_detector` will make it from the exported
    files. Takes the network over.
    """
    return Detector(
        card, network, fake=0 if card.output.sign is not None else card.output.index_among(card.output.labels), device=device,
        precision=resolve_precision(precision, device, card.precision), resize="exact", slots=slots or default_slots(device),
        weights_sha256=NOT_SAVED,
    )  # fmt: skip


def judge(detector: Detector, batches: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Judged:
    """Score batches as `BatchLoader.load` gives them, of any sizes, one in memory at a time.

    Masks are compared where batches hold some and the detector gives some. Raises TouchstoneError
    where a score is no number.
    """
    seen: list[tuple[npt.NDArray[Any], ...]] = [(np.empty(0, np.int64),) * 4]
    places, reasons, odd_masks = [], dict[int, str](), dict[int, str]()
    for batch in batches:
        usable = batch["usable"]
        reasons |= {
            int(batch["row"][slot]): str(batch["detail"][slot]) for slot in (~usable).nonzero()[0]
        }
        odd_masks |= file_notes.find_odd_masks(batch)
        scores, masks = _read(detector, batch["image"][usable])
        seen.append((batch["row"][usable], batch["label"][usable], scores, batch["row"][~usable]))
        if masks is not None and "mask" in batch:
            places.append(pixel_figures(masks, batch["mask"][usable]))
    rows, labels, all_scores, unreadable = (
        np.concatenate(parts) for parts in zip(*seen, strict=True)
    )
    if (strange := rows[~np.isfinite(all_scores)]).size:
        raise TouchstoneError(f"{detector.card.name}: no finite score for {len(strange)} images (row {strange[0]} first)",
                              hint="training diverged: lower optimiser.rate, or set loop.precision to fp32")  # fmt: skip
    pixels = _together(places) if places else None
    return Judged(
        rows, labels, all_scores.astype(np.float64), unreadable, pixels, reasons, odd_masks
    )


def _read(
    detector: Detector, images: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    """Scores (N,), and masks (N, S, S) where there are some; black images fill the last part, as in
    scoring.
    """
    if not detector.card.masks:
        return detector.score(images), None
    scores, masks = [np.empty(0, np.float32)], []
    for start in range(0, len(images), detector.slots):
        part = images[start : start + detector.slots]
        filled = np.concatenate(
            [part, np.zeros((detector.slots - len(part), *part.shape[1:]), np.uint8)]
        )
        reading = detector.read(detector.normalise(torch.from_numpy(filled)))
        assert isinstance(reading.masks, torch.Tensor), "the card says that there are masks"
        scores.append(reading.scores[: len(part)].cpu().numpy())
        masks.append(reading.masks[: len(part)].cpu().numpy())
    return np.concatenate(scores), np.concatenate(masks) if masks else None


def _joined(parts: Sequence[Judged]) -> Judged:
    """Return the outputs of neighbouring rows as those of all."""
    places = [part.pixels for part in parts if part.pixels is not None]
    return Judged(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.unreadable for part in parts]),
        _together(places) if places else None,
    )


def _together(places: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all images from those of the batches: means weighted by how many altered images
    each held.
    """
    counts = [place["n"] for place in places]
    names = ("pixel_f1", "pixel_iou")
    if not any(counts):
        return {**dict.fromkeys(names), "n": 0}
    means = {
        name: float(np.average([place[name] or 0.0 for place in places], weights=counts))
        for name in names
    }
    return {**means, "n": sum(counts)}
