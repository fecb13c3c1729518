"""A checkpoint measured on labelled rows, as the detector that it will be: `validate` while
training, `evaluate_splits` at the end.

Figures are kept by step in `validations/`: Ray's own list forgets those of checkpoints that it
drops.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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

if TYPE_CHECKING:
    from ray.train import Checkpoint

_CHOICE = 8  # names the stream of chance, beside those of order, augmentation and dropout
BEAT_EVERY_S = 5.0
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


def validate(checkpoint: "Checkpoint", **given: Any) -> dict[str, Any]:
    """What Ray Train calls for a checkpoint that was reported with `validation`: the figures that
    may choose the best one.

    `given["job"]` refers to the `TrainingJob`.
    """
    import ray

    job: TrainingJob = ray.get(given["job"])
    with checkpoint.as_directory() as folder:
        return validate_folder(job, Path(folder))


def validate_folder(job: TrainingJob, folder: Path, *, threads: int = 1) -> dict[str, Any]:
    """Judge a checkpoint's folder on the validation rows that the recipe chooses from, keep the
    figures, and return those in FIGURES.
    """
    step = checkpoints.read_step(folder)
    judged = _judged(job, folder, "validation", chosen_rows(job), threads)
    figures = figures_of(job, "validation", judged)
    job.out.write(f"{FOLDER}/{step:08d}.json", json.dumps({"step": step, **figures}).encode())
    return {name: figures[name] for name in FIGURES if figures.get(name) is not None}


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
        if split in job.shared:
            judged = _judged(
                job, folder, split, np.arange(len(job.rows(split))), job.layout.threads
            )
            for kind, details in (
                (run_directory.UNREADABLE, judged.reasons),
                (run_directory.MASKS, judged.odd_masks),
            ):
                file_notes.write_notes(
                    job.out, kind, split, file_notes.note_images(job.rows(split), split, details)
                )
            figures, device = (
                figures_of(job, split, judged),
                run_directory.device_name(job.layout.judging_device),
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


def on_ray(job: TrainingJob, function: Callable[..., Any], *given: Any) -> Any:
    """`function(job, *given)` as one task where checkpoints are judged. Raises the TouchstoneError
    that it raised.
    """
    import ray
    from ray.exceptions import RayTaskError

    layout = job.layout
    task = ray.remote(
        num_cpus=layout.validation_cpus, num_gpus=layout.validation_gpus, max_retries=2
    )(function)
    try:
        return ray.get(task.remote(ray.put(job), *given))
    except RayTaskError as error:
        if isinstance(error.cause, TouchstoneError):
            raise error.cause from None
        raise


def on_checkpoint(job: TrainingJob, name: str, function: Callable[[TrainingJob, Path], Any]) -> Any:
    """The same with the folder of a kept checkpoint: `function(job, folder)`."""
    return on_ray(job, _with_folder, name, function)


def _with_folder(job: TrainingJob, name: str, function: Callable[[TrainingJob, Path], Any]) -> Any:
    with checkpoints.fetched(job.out, name) as folder:
        return function(job, folder)


def _judged(job: TrainingJob, folder: Path, split: str, rows: Rows, threads: int) -> "Judged":
    device = job.layout.judging_device
    job.settle_process(device, threads)
    detector = detector_for(job.card, load_trained(job.config, job.card, folder), device=device)
    judged = judge(detector, _loaded(job, split, rows, detector.slots))
    if not len(judged.rows):
        raise TouchstoneError(
            f"not one of the {len(rows):,} {split} images could be read",
            hint="is the source still there?",
        )
    return judged


def _loaded(job: TrainingJob, split: str, rows: Rows, size: int) -> Iterator[loader.Batch]:
    """Batches of rows as they are, decoded a little ahead by a few threads, each with a loader of
    its own.

    The board gets a sign of life now and then.
    """
    own = threading.local()

    def load(part: Rows) -> loader.Batch:
        if not hasattr(own, "loader"):
            own.loader = loader.plain_loader(job, split)
        return own.loader.load(part, part)  # type: ignore[no-any-return]

    parts = (rows[start : start + size] for start in range(0, len(rows), size))
    beat_at = time.monotonic()
    with ThreadPoolExecutor(job.layout.judging_threads) as threads:
        waiting = deque(
            threads.submit(load, part) for part in islice(parts, 2 * job.layout.judging_threads)
        )
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(threads.submit(load, part) for part in islice(parts, 1))
            if time.monotonic() - beat_at >= BEAT_EVERY_S:
                beat_at = time.monotonic()
                job.board.beat.remote()


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


def unjudged_checkpoints(job: TrainingJob) -> list[checkpoints.CheckpointEntry]:
    """List the checkpoints that still have to be validated, because a session ended before that."""
    if job.config.method == "describe":
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


def remove_superseded_checkpoints(job: TrainingJob, judged: Sequence[Mapping[str, Any]]) -> None:
    """Delete all checkpoints but the last, the best `faults.keep`, and those still to be validated.

    Args:
        job: The training.
        judged: The figures of all validations so far, from one call of `validations`.
    """
    metric, unjudged, values = job.config.validation.metric, frozenset[int](), {}
    if job.config.method != "describe":  # its checkpoints are never validated: the last ones stay
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
