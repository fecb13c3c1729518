"""The work that every contender gets: photographs on disk, one detector, and how many images it is measured over.

Knows folders and cards. Knows nothing about contenders.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.seeded import seeded_card
from ray_app.config import find_config
from ray_app.datasets.simulation.archive import write_photographs

SIZE, QUALITY = (1024, 768), 90
DETECTORS = {"decode_bound": "touchstone-tiny", "compute_bound": "community-forensics-vits384"}


@dataclass(frozen=True)
class Work:
    """One detector over one folder of photographs; plain JSON, since each contender reads it in a process of its own.

    `card` is a YAML file. `ensemble` is the shipped ensemble that means the same, or None.
    """

    name: str
    card: str
    ensemble: str | None
    folder: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def files(self, count: int | None = None) -> list[Path]:
        """The first `count` photographs, in the order in which an archive is listed."""
        return sorted(Path(self.folder).iterdir())[:count]


def prepare_work(folder: Path, photographs: int) -> list[Work]:
    """Write photographs and cards under `folder`: the shipped tiny detector, and the published one with seeded weights."""
    archive = folder / "photographs"
    write_photographs(archive, photographs, size=SIZE, quality=QUALITY)
    seeded = folder / "seeded"
    seeded.mkdir()
    return [
        Work("decode_bound", str(find_config("detectors", DETECTORS["decode_bound"])), "tiny", str(archive)),
        Work("compute_bound", str(_with_seeded_weights(DETECTORS["compute_bound"], seeded)), None, str(archive)),
    ]


def _with_seeded_weights(name: str, folder: Path) -> Path:
    """A shipped card as a file of its own, with seeded weights beside it."""
    target = folder / f"{name}.yaml"
    target.write_text(yaml.safe_dump(seeded_card(name, folder).model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    return target


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def discard(folder: Path) -> None:
    """Remove what a contender left on disk."""
    shutil.rmtree(folder, ignore_errors=True)
