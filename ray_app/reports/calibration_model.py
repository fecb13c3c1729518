"""The document of a calibration, `CARD.report.json`: `calibration` fills it, the terminal's lines and tests read it.

Its JSON schema: docs/schemas/calibration.json. Fields stand in the order of the file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ray_app.config import OptionalKey, Section
from ray_app.ensembles import Guarantee, LabelledPart, Thresholds
from ray_app.reports.evaluation.system_model import FigureFacts

CALIBRATION_SCHEMA = 1


class CalibrationImages(Section):
    """How many images could be used; `left_out`: how many could not, by reason."""

    used: int
    labelled: int
    left_out: Mapping[str, int]


class Chances(Section):
    """What scores are worth as chances."""

    log_loss: FigureFacts
    ece: FigureFacts


class CalibratedSystem(Section):
    """The ensemble or a detector on held-out images: as the run had it, and calibrated."""

    name: str
    calibration: str
    before: Chances
    after: Chances


class LookShares(Section):
    """The share of held-out images that go on: for the band, for the audit, and together."""

    band: float
    audit: float
    share: float


class CalibratedCascade(Section):
    """How many images go on, and what is found so and by all detectors on all images."""

    first: int
    band: tuple[float, float]
    share_allowed: float
    share_bound: float
    prevalence: float
    measured: LookShares
    found: float | None = None
    found_by_all_on_all: float | None = None


class LeftOutGenerator(Section):
    """Figures on a generator's images by a card that never saw it. `fitted_again`: whether the card that is written saw some."""

    generator: str
    n: int
    parts: Sequence[str]
    fitted_again: bool
    found: FigureFacts
    auc: FigureFacts
    log_loss: FigureFacts
    ece: FigureFacts


class QualityBand(Section):
    """Rates at the threshold, and chances, of JPEG files of such a quality."""

    quality: str
    n_real: int
    n_fake: int
    false_positives: FigureFacts
    found: FigureFacts
    log_loss: FigureFacts
    ece: FigureFacts


class CalibrationReport(Section):
    """What was fitted on what, what is promised, and what it is worth on images that it did not see. `report`: where this was written."""

    schema_number: int = Field(default=CALIBRATION_SCHEMA, alias="schema")
    version: str = ""
    run: str = ""
    labels: str = ""
    options: Mapping[str, Any] = {}
    detectors: Sequence[str] = ()
    rule: str = ""
    images: CalibrationImages
    told: Sequence[str] = ()
    parts: Sequence[LabelledPart] = ()
    generators: Sequence[str] = ()
    prevalence: float | None = None
    thresholds: Thresholds
    guarantee: Guarantee
    systems: Sequence[CalibratedSystem] = ()
    cascade: CalibratedCascade | None = None
    generators_left_out: Sequence[LeftOutGenerator] = ()
    generators_not_shown: int = 0
    qualities: Sequence[QualityBand] = ()
    card: str = ""
    notes: Sequence[str] = ()
    findings: Sequence[str] = ()
    report: OptionalKey[str] = None
