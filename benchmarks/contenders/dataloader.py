"""torch `DataLoader` scripts: the plain one that people write, in fp32 and under autocast, and one
with all of our own tricks.

Plain: PIL, torchvision transforms, two workers, batches of 32, the model in the main process with
torch's default threads. Tuned: one process per core that decodes with our decoder, scores in bf16
in static slots and sends nothing but scores.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders.contender import Contender, Record, arguments, printed, script, without
from benchmarks.measuring import cumulative
from benchmarks.work import DETECTORS, Work, cores

if TYPE_CHECKING:
    from ray_app.detectors import Detector

# Of one detector with one logit.
SINGLE = ("decode_bound", "compute_bound")
# AHEAD is torch's own default: batches that each worker prepares in advance
WORKERS, BATCH, AHEAD = 2, 32, 2
Scored = list[tuple[str, float]]


def plain(work: Work, count: int, precision: str) -> Record:
    """Score `count` images; the loader is given more, so that it never runs dry while the rate is
    measured.
    """
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from benchmarks.contenders.as_people_write import log_odds, pil_transform, plain_model
    from ray_app.detectors import load_card

    imported = time.time()
    card = load_card(work.card)

    class Photographs(Dataset):
        def __init__(self, paths: list[Path], length: int) -> None:
            self.paths, self.length, self.transform = (
                paths,
                length,
                pil_transform(card.preprocessing),
            )

        def __len__(self) -> int:
            return self.length

        def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
            path = self.paths[index % len(self.paths)]
            return path.name, self.transform(Image.open(path).convert("RGB"))

    model = plain_model(card)
    loaded = time.time()
    loader = DataLoader(
        Photographs(work.files(count), count + WORKERS * AHEAD * BATCH),
        batch_size=BATCH,
        num_workers=WORKERS,
    )
    batches, scores = [], {}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for names, images in islice(loader, -(-count // BATCH)):
            scores |= dict(zip(names, log_odds(card, model(images)), strict=True))
            batches.append((time.time(), len(names)))
    return Record(cumulative(batches), scores, {"imported": imported, "model loaded": loaded})


def score_batches(
    detectors: "Sequence[Detector]", paths: Iterator[Path]
) -> Iterator[tuple[float, Scored]]:
    """Yield the time at which each batch is scored, with the mean log-odds of its images."""
    import numpy as np

    from benchmarks.contenders.detectors import DECODED
    from ray_app.images import ImageLimits, decode_image

    limits, slots = ImageLimits(), detectors[0].slots
    while decoded := list(islice(paths, DECODED)):
        arrays: list[list[Any]] = [[] for _ in detectors]
        for path in decoded:
            image = decode_image(path.read_bytes(), limits).pixels
            for detector, prepared in zip(detectors, arrays, strict=True):
                prepared.append(detector.prepare(image))
        for start in range(0, len(decoded), slots):
            batch = slice(start, start + slots)
            columns = [
                detector.score(np.stack(prepared[batch]))
                for detector, prepared in zip(detectors, arrays, strict=True)
            ]
            scores = np.mean(columns, axis=0).tolist()
            named = [(path.name, score) for path, score in zip(decoded[batch], scores, strict=True)]
            yield time.time(), named


def tuned(work: Work, count: int, *, is_exact: bool) -> Record:
    """Score `count` images in one process per core."""
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    from benchmarks.contenders.detectors import load_all

    imported = time.time()

    class Share(IterableDataset):
        """Every worker's share of the photographs, scored where it is decoded."""

        def __init__(self, paths: list[Path]) -> None:
            self.paths = paths

        def __iter__(self) -> Iterator[tuple[float, Scored]]:
            worker = get_worker_info()
            torch.set_num_threads(1)
            detectors = load_all(work, is_exact=is_exact)
            yield from score_batches(detectors, iter(self.paths[worker.id :: worker.num_workers]))

    batches, scores = [], {}
    for finished_at, scored in DataLoader(
        Share(work.files(count)), batch_size=None, num_workers=cores()
    ):
        batches.append((finished_at, len(scored)))
        scores |= dict(scored)
    return Record(cumulative(batches), scores, {"imported": imported})


def main() -> None:
    work, count, (variant,) = arguments()
    if variant.startswith("tuned"):
        tuned(work, count, is_exact=variant == "tuned_pillow").print()
    else:
        plain(work, count, variant).print()


DATALOADERS = tuple(
    Contender(
        f"dataloader_{name}",
        says,
        script("benchmarks.contenders.dataloader", variant),
        printed,
        lacks=without("torch", "torchvision"),
        works=works,
    )
    for name, variant, says, works in (
        ("tuned", "tuned", "a DataLoader given all of our own tricks", tuple(DETECTORS)),
        (
            "tuned_pillow",
            "tuned_pillow",
            "the same, but with Pillow's resize",
            ("default_ensemble", "compute_bound"),
        ),
        (
            "plain_bf16",
            "bf16",
            "the DataLoader script that people write, under autocast bf16",
            SINGLE,
        ),
        ("plain_fp32", "fp32", "the DataLoader script that people write, in fp32", SINGLE),
    )
)

if __name__ == "__main__":
    main()
