"""A trained network judged on labelled batches, as the detector that it will be. Knows detectors; sums up nothing but masks."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ray_app.detectors import Detector
from ray_app.detectors.cards import DetectorCard, default_slots
from ray_app.detectors.precision import Precision, resolve_precision
from ray_app.errors import TouchstoneError
from ray_app.metrics import pixel_figures

NOT_SAVED = "0" * 64  # stands for the digest of weights that are in no file yet


class Judged(NamedTuple):
    """What a detector said of labelled images: one entry per readable image, in the order of the batches.

    `rows` (n,) int64; `labels` (n,) int64, 1 = fake; `scores` (n,) float64 log-odds of fake. `unreadable` int64 rows that have no score.
    `pixels`: `pixel_figures` over all images with a mask, None where the detector does not say where.
    """

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    unreadable: npt.NDArray[np.int64]
    pixels: dict[str, Any] | None = None


def detector_for(
    card: DetectorCard, network: nn.Module, *, device: str, precision: Precision = "auto", slots: int | None = None
) -> Detector:
    """A detector from what `load_trained` gives, as `load_detector` will make it from the exported files. Takes the network over."""
    return Detector(
        card, network, fake=0 if card.output.sign is not None else card.output.index_among(card.output.labels), device=device,
        precision=resolve_precision(precision, device, card.precision), resize="exact", slots=slots or default_slots(device),
        weights_sha256=NOT_SAVED,
    )  # fmt: skip


def judge(detector: Detector, batches: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Judged:
    """Score batches as `BatchLoader.load` gives them, of any sizes, one in memory at a time.

    Masks are compared where batches hold some and the detector gives some. Raises TouchstoneError where a score is no number.
    """
    seen: list[tuple[npt.NDArray[Any], ...]] = [(np.empty(0, np.int64),) * 4]
    places = []
    for batch in batches:
        usable = batch["usable"]
        scores, masks = _read(detector, batch["image"][usable])
        seen.append((batch["row"][usable], batch["label"][usable], scores, batch["row"][~usable]))
        if masks is not None and "mask" in batch:
            places.append(pixel_figures(masks, batch["mask"][usable]))
    rows, labels, all_scores, unreadable = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    if (strange := rows[~np.isfinite(all_scores)]).size:
        raise TouchstoneError(f"{detector.card.name}: no finite score for {len(strange)} images (row {strange[0]} first)",
                              hint="training diverged: lower optimiser.rate, or set loop.precision to fp32")  # fmt: skip
    return Judged(rows, labels, all_scores.astype(np.float64), unreadable, _together(places) if places else None)


def _read(detector: Detector, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    """Scores (N,), and masks (N, S, S) where there are some; black images fill the last part, as in scoring."""
    if not detector.card.masks:
        return detector.score(images), None
    scores, masks = [np.empty(0, np.float32)], []
    for start in range(0, len(images), detector.slots):
        part = images[start : start + detector.slots]
        filled = np.concatenate([part, np.zeros((detector.slots - len(part), *part.shape[1:]), np.uint8)])
        reading = detector.read(detector.normalise(torch.from_numpy(filled)))
        assert reading.masks is not None, "the card says that there are masks"
        scores.append(reading.scores[: len(part)].cpu().numpy())
        masks.append(reading.masks[: len(part)].cpu().numpy())
    return np.concatenate(scores), np.concatenate(masks) if masks else None


def _together(places: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all images from those of the batches: means weighted by how many altered images each held."""
    counts = [place["n"] for place in places]
    names = ("pixel_f1", "pixel_iou")
    if not any(counts):
        return {**dict.fromkeys(names), "n": 0}
    means = {name: float(np.average([place[name] or 0.0 for place in places], weights=counts)) for name in names}
    return {**means, "n": sum(counts)}
