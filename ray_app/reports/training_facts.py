"""What a training tells of itself, as the report reads it. Every key has a default, unknown keys and nulls are let pass."""

import math
from collections.abc import Mapping
from typing import Any

from ray_app.detectors.cards import Calibration
from ray_app.metrics import FIGURES
from ray_app.reports.run_summary import Section


class GeneratorFigures(Section):
    """Figures of one generator's images; of `tpr` and `tnr` only that of its label."""

    n: int = 0
    label: str = ""
    auc: float | None = None
    auc_interval: tuple[float, ...] = ()
    tpr: float | None = None
    tnr: float | None = None
    interval: tuple[float, ...] = ()


class Figures(Section):
    """Figures of one split (ray_app.metrics.detection_figures, and those of masks where there are any)."""

    n_real: int = 0
    n_fake: int = 0
    auc: float | None = None
    auc_interval: tuple[float, ...] = ()
    average_precision: float | None = None
    mean_generator_auc: float | None = None
    worst_generator_auc: float | None = None
    tpr_at_fpr_1: float | None = None
    tpr_at_fpr_1_interval: tuple[float, ...] = ()
    balanced_accuracy: float | None = None
    f1: float | None = None
    loss: float | None = None
    pixel_f1: float | None = None
    pixel_iou: float | None = None
    generators: Mapping[str, GeneratorFigures] = {}

    def value(self, name: str) -> float | None:
        """A figure by its name in FIGURES; None where it was not measured or is none of those."""
        number: float | None = getattr(self, name) if name in FIGURES else None
        return number

    def interval(self, name: str) -> tuple[float, ...]:
        """The ends of a figure's 95 % interval, where it has one."""
        ends: tuple[float, ...] = getattr(self, f"{name}_interval", ())
        return ends

    def hardest(self, label: str, most: int) -> list[tuple[str, GeneratorFigures]]:
        """The generators of one label, the least AUC first; those that have none come last."""
        mine = [(name, figures) for name, figures in self.generators.items() if figures.label == label]
        return sorted(mine, key=lambda item: (math.inf if item[1].auc is None else item[1].auc, item[0]))[:most]


class HistoryPoint(Section):
    """One step of the training, or a few that were averaged."""

    step: int = 0
    loss: float = math.nan
    rate: float = math.nan
    gradient_norm: float = math.nan
    images_per_s: float = math.nan


class Mistake(Section):
    """One image that the network tells wrong; `jpeg`: its thumbnail, re-encoded and free of metadata."""

    jpeg: bytes = b""
    label: str = ""
    generator: str = ""
    score: float = math.nan
    name: str = ""


class SplitCounts(Section):
    """What one split holds; `generators`: images of each, sources of real ones included."""

    images: int = 0
    real: int = 0
    fake: int = 0
    generators: Mapping[str, int] = {}


class SetAside(Section):
    """Images of the training sources that are in no split, and why."""

    images: int = 0
    why: Mapping[str, int] = {}


class Shared(Section):
    """How many images of one split have their like in another: the same place, the same bytes, the same looks, the same group."""

    image_id: int = 0
    sha256: int = 0
    phash: int = 0
    group: int = 0
    examples: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether the two splits share anything."""
        return bool(self.image_id or self.sha256 or self.phash or self.group)


class Leakage(Section):
    """What every two splits share. `checked`: whether every split has hashes of that name; without, a count of 0 says nothing. `unhashed`:
    how many images have none all the same.
    """

    checked: Mapping[str, bool] = {}
    unhashed: Mapping[str, int] = {}
    pairs: Mapping[str, Shared] = {}


class DataFindings(Section):
    """What is known of the data (ray_app.datasets.splitting.Splits)."""

    splits: Mapping[str, SplitCounts] = {}
    set_aside: SetAside = SetAside()
    leakage: Leakage = Leakage()


class TrainingFacts(Section):
    """A training from beginning to end. `out`: where its files lie. `validations`: for each its `step` and figures, side by side.

    `calibration_note`: why there is no calibration. `calibration_error`: of calibrated probabilities, on images that did not calibrate.
    `unreadable`: images that were met in training and had to be left out.
    """

    name: str = ""
    title: str = ""
    out: str = ""
    metric: str = "auc"
    best_step: int | None = None
    steps: int = 0
    seconds: float | None = None
    history: tuple[HistoryPoint, ...] = ()
    validations: tuple[Mapping[str, Any], ...] = ()
    validation: Figures = Figures()
    test: Figures | None = None
    unreadable: int = 0
    calibration: Calibration | None = None
    calibration_note: str = ""
    calibration_error: float | None = None
    mistakes: tuple[Mistake, ...] = ()
    data: DataFindings = DataFindings()
    recipe: Mapping[str, Any] = {}
    environment: Mapping[str, Any] = {}
    card: Mapping[str, Any] = {}

    @property
    def span(self) -> tuple[int, int]:
        """The steps that a chart shows: all of the training, though it ended early or is still going on."""
        return 0, max([self.steps, 1, *(point.step for point in self.history), *(step for step, _ in self.validated("loss"))])

    def validated(self, name: str) -> list[tuple[int, float]]:
        """One figure at every validation, by step; left out where it was not measured."""
        found = [(validation.get("step"), validation.get(name)) for validation in self.validations]
        return [(step, float(value)) for step, value in found if isinstance(step, int) and isinstance(value, int | float)]
