"""torch `DataLoader` scripts: the plain one that people write, in fp32 and under autocast, and one
with all of our own tricks.

Plain: PIL, torchvision transforms, two workers, batches of 32, the model in the main process with
torch's default threads. Tuned: one process per core that decodes with our decoder, scores in bf16
in static slots and sends nothing but scores.
"""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from benchmarks.contenders.contender import Contender, Record, arguments, printed, script, without
from benchmarks.measuring import cumulative
from benchmarks.work import Work, cores

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


def tuned(work: Work, count: int) -> Record:
    """Score `count` images in one process per core."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    from ray_app.detectors import load_card, load_detector
    from ray_app.images import ImageLimits, decode_image

    imported = time.time()

    class Share(IterableDataset):
        """Every worker's share of the photographs, scored where it is decoded."""

        def __init__(self, paths: list[Path]) -> None:
            self.paths = paths

        def __iter__(self) -> Iterator[tuple[float, Scored]]:
            worker, limits = get_worker_info(), ImageLimits()
            torch.set_num_threads(1)
            detector = load_detector(load_card(work.card))
            mine = iter(self.paths[worker.id :: worker.num_workers])
            while batch := list(islice(mine, detector.slots)):
                pixels = np.stack(
                    [
                        detector.prepare(decode_image(path.read_bytes(), limits).pixels)
                        for path in batch
                    ]
                )
                scores = detector.score(pixels).tolist()
                yield (
                    time.time(),
                    [(path.name, score) for path, score in zip(batch, scores, strict=True)],
                )

    batches, scores = [], {}
    for finished_at, scored in DataLoader(
        Share(work.files(count)), batch_size=None, num_workers=cores()
    ):
        batches.append((finished_at, len(scored)))
        scores |= dict(scored)
    return Record(cumulative(batches), scores, {"imported": imported})


def main() -> None:
    work, count, (variant,) = arguments()
    (tuned(work, count) if variant == "tuned" else plain(work, count, variant)).print()


DATALOADERS = tuple(
    Contender(
        f"dataloader_{name}",
        says,
        script("benchmarks.contenders.dataloader", variant),
        printed,
        lacks=without("torch", "torchvision"),
    )
    for name, variant, says in (
        ("tuned", "tuned", "a DataLoader given all of our own tricks"),
        ("plain_bf16", "bf16", "the DataLoader script that people write, under autocast bf16"),
        ("plain_fp32", "fp32", "the DataLoader script that people write, in fp32"),
    )
)

if __name__ == "__main__":
    main()
