"""What every trainer gets: labelled photographs in an index, and one recipe. Knows folders and
recipes; knows nothing about trainers.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.photographs import write_photographs
from benchmarks.work import QUALITY, SIZE

# to train on, and for the one validation after the last step: both are read from the page cache
PHOTOGRAPHS, JUDGED = 384, 16
WORKS = ("compute_bound", "input_bound")

_CARDS: dict[str, dict[str, Any]] = {
    "compute_bound": {
        "detector": "community-forensics-vits384",
        "card": {
            "architecture": {"name": "vit_tiny_patch16_224"},
            "preprocessing": {"resize": {"mode": "short_side", "size": 256}, "center_crop": 224},
        },
        "augmentation": {"policy": "flips", "arguments": {"crop": 224}},
    },
    "input_bound": {
        "detector": "touchstone-tiny",
        "augmentation": {"policy": "flips", "arguments": {"crop": 128}},
    },
}
DETECTORS = {"compute_bound": "ViT-tiny at 224 px", "input_bound": "touchstone-tiny at 128 px"}
BATCH = 16


@dataclass(frozen=True)
class TrainingWork:
    """One recipe, as a file that both trainers read, of so many steps in so many processes."""

    name: str
    config: Path
    steps: int
    workers: int


def write_labelled_photographs(
    folder: Path, *, train: int = PHOTOGRAPHS, judged: int = JUDGED
) -> Path:
    """An index of photographs whose labels mean nothing: a step takes the same time whatever there
    is to learn.
    """
    from ray_app.datasets.config import DatasetSource
    from ray_app.datasets.index import build_index
    from ray_app.storage import Store

    paths = write_photographs(folder / "photographs", train + judged, size=SIZE, quality=QUALITY)
    labels = folder / "photographs" / "labels.csv"
    with labels.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        for index, path in enumerate(paths):
            writer.writerow(
                [
                    path.name,
                    "fake" if index % 2 else "real",
                    "train" if index < train else "validation",
                ]
            )
    build_index(DatasetSource(at=(f"list::{labels}",)), Store.open(str(folder / "index")))
    return folder / "index"


def write_work(
    folder: Path, name: str, index: Path, *, steps: int, workers: int = 1
) -> TrainingWork:
    """A recipe that trains on an index; everything about processes and threads but `workers` is at
    its default.
    """
    recipe = {
        "name": name.replace("_", "-"),
        **_CARDS[name],
        "initial": {"start": "random"},
        "data": {
            "train": [{"at": str(index), "split": "train"}],
            "validation": [{"at": str(index), "split": "validation"}],
            "licence": "CC0",
        },
        "optimiser": {"rate": 1.0e-4},
        "loop": {"steps": steps, "batch": BATCH},
        "validation": {"every": steps},
        "workers": {"count": workers},
    }
    path = folder / f"{name}-{steps}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return TrainingWork(name, path, steps, workers)
