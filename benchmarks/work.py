"""The work that every contender gets: photographs on disk, one detector, and how many images it is
measured over.

Knows folders and cards. Knows nothing about contenders.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.photographs import write_photographs
from benchmarks.seeded import seeded_card, write_card
from ray_app.config import find_config
from ray_app.ensembles import EnsembleCard, build_ensemble, load_ensemble_card

SIZE, QUALITY = (1024, 768), 90
DETECTORS = {
    "decode_bound": "touchstone-tiny",
    # The ensemble `default`: one image is resized and cropped, and one is cropped.
    "default_ensemble": "touchstone-photo",
    "compute_bound": "community-forensics-vits384",
    # without its card's wish for fp32, whose scores bf16 changes by up to 0.075
    "clip_bound": "unifd",
}


@dataclass(frozen=True)
class Work:
    """One detector over one folder of photographs; plain JSON, since each contender reads it in a
    process of its own.

    `card` is a YAML file. `ensemble` is a shipped ensemble that means the same, or that has further
    detectors, or None.
    """

    name: str
    card: str
    ensemble: str | None
    folder: str

    def ensemble_card(self) -> EnsembleCard:
        """The ensemble that is scored."""
        return load_ensemble_card(self.ensemble) if self.ensemble else build_ensemble([self.card])

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def files(self, count: int | None = None) -> list[Path]:
        """The first `count` photographs, in the order in which an archive is listed."""
        return sorted(Path(self.folder).iterdir())[:count]


def prepare_work(
    folder: Path, photographs: int, names: Sequence[str] = tuple(DETECTORS)
) -> list[Work]:
    """Write photographs and cards under `folder`: the shipped tiny detector, and the published ones
    with seeded weights.
    """
    archive = folder / "photographs"
    write_photographs(archive, photographs, size=SIZE, quality=QUALITY)
    seeded = folder / "seeded"
    seeded.mkdir()
    return [_work(name, archive, seeded) for name in names]


def _work(name: str, archive: Path, seeded: Path) -> Work:
    detector = DETECTORS[name]
    if name == "decode_bound":
        return Work(name, str(find_config("detectors", detector)), "tiny", str(archive))
    if name == "default_ensemble":
        return Work(name, str(find_config("detectors", detector)), "default", str(archive))
    card = seeded_card(detector, seeded).model_copy(update={"precision": "auto"})
    return Work(name, str(write_card(card, seeded / f"{detector}.yaml")), None, str(archive))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def discard(folder: Path) -> None:
    """Remove what a contender left on disk."""
    shutil.rmtree(folder, ignore_errors=True)
