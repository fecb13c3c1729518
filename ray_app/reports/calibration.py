"""The report of `touchstone detectors calibrate` as lines for the terminal: `calibration_lines`.

The document of a calibration, `CARD.report.json`: `calibration` fills it, the terminal's lines and
tests read it.

Fields stand in the order of the file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ray_app.config import OptionalKey, Section
from ray_app.ensembles import Guarantee, LabelledPart, Thresholds
from ray_app.metrics.values import MetricValue
from ray_app.reports import format as wording
from ray_app.reports import text

CALIBRATION_SCHEMA = 1


class CalibrationImages(Section):
    """How many images could be used; `left_out`: how many could not, by reason."""

    used: int
    labelled: int
    left_out: Mapping[str, int]


class Chances(Section):
    """What scores are worth as chances."""

    log_loss: MetricValue
    ece: MetricValue


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
    """Figures on a generator's images by a card that never saw it. `fitted_again`: whether the card
    that is written saw some.
    """

    generator: str
    n: int
    parts: Sequence[str]
    fitted_again: bool
    found: MetricValue
    auc: MetricValue
    log_loss: MetricValue
    ece: MetricValue


class QualityBand(Section):
    """Rates at the threshold, and chances, of JPEG files of such a quality."""

    quality: str
    n_real: int
    n_fake: int
    false_positives: MetricValue
    found: MetricValue
    log_loss: MetricValue
    ece: MetricValue


class SelfCheck(Section):
    """The card tried on images that it was made from, as if they were an archive. `unlike`:
    properties in which they would be called so; `finding`: what is odd about it, in a sentence.
    """

    name: str
    false_positives: MetricValue
    unlike: Sequence[str] = ()
    finding: str | None = None


class CalibrationReport(Section):
    """What was fitted on what, what is promised, and what it is worth on images that it did not
    see. `report`: where this was written.
    """

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
    self_check: Sequence[SelfCheck] = ()
    card: str = ""
    notes: Sequence[str] = ()
    findings: Sequence[str] = ()
    report: OptionalKey[str] = None


_MOST_ROWS = 20


def calibration_lines(report: CalibrationReport, width: int = text.OUTPUT_WIDTH) -> list[str]:
    """A calibration in words: what was fitted on what, what is promised, what it is worth on images
    that it did not see.
    """
    images = report.images
    left = "; ".join(f"{count:,} {reason}" for reason, count in images.left_out.items())
    parts = [
        [part.name, f"{part.n_real:,}", f"{part.n_fake:,}", f"{part.groups:,}"]
        for part in report.parts
    ]
    systems = [
        [
            one.name,
            *(
                _number(getattr(when, figure))
                for figure in ("log_loss", "ece")
                for when in (one.before, one.after)
            ),
            one.calibration,
        ]
        for one in report.systems
    ]
    heads = ["on held-out images", "log-loss", "calibrated", "ECE", "calibrated", "calibration"]
    lines = [
        f"images: {images.used:,} of {images.labelled:,} labelled" + (f" (left out: {left})" if left else ""),
        *text.table(["part", "real", "fake", "groups"], parts, width, right={1, 2, 3}), "", *_promise(report), "",
        *text.table(heads, systems, width, right={1, 2, 3, 4}), *(_cascade(report.cascade) if report.cascade else []), "",
        *_generators(report, width), "", *_qualities(report.qualities, width), "",
    ]  # fmt: skip
    for sentence in [*report.findings, *report.told, *report.notes]:
        first, *more = text.paragraph(wording.visible(sentence), width - 6)
        lines += [f"note: {first}", *(f"      {line}" for line in more)]
    return [*lines, f"card: {report.card}", f"report: {report.report}"]


def _promise(report: CalibrationReport) -> list[str]:
    """What is promised, for which archives, and on how much that rests."""
    promise, thresholds = report.guarantee, report.thresholds
    found, scope = thresholds.true_positive_rate, []
    if promise.these_sources:
        scope = ["  promised for archives of these very sources, in these shares"]
    elif (
        promise.groups is not None
        and promise.effective is not None
        and promise.effective < promise.groups
    ):
        scope = [
            f"  all labelled reals are of {promise.groups:,} sources or looks, worth {promise.effective:,.0f} independent ones"
        ]
    return [
        f"fake at {thresholds.fake_above:.3f} and above: under {_share(promise.target_fpr)} of reals, "
        f"at {_share(promise.confidence)} confidence",
        f"  {promise.false_positives:,} of {promise.n_real:,} held-out reals reach it (at most {_share(promise.upper_bound)}); "
        f"{'there are no fakes to measure how many it finds' if found is None else f'it finds {_share(found)} of the fakes'}",
        *scope,
        f"real at {thresholds.real_below:.3f} and below: no more than {_share(report.options['miss'])} of those fakes; in between the "
        "verdict is abstain",
        f"probabilities are chances where {_share(report.prevalence)} of the images are fake",
    ]


def _cascade(cascade: CalibratedCascade) -> list[str]:
    measured = cascade.measured
    low, high = cascade.band
    return [
        "",
        f"cascade: {cascade.first} detector{'s' if cascade.first > 1 else ''} on every image, all where that says "
        f"{low:.3f} … {high:.3f}, and on {_share(measured.audit)} more for audit",
        f"  {_share(measured.share)} of held-out images go on (allowed: {_share(cascade.share_allowed)}) where "
        f"{_share(cascade.prevalence)} are fake",
        f"  finds {_share(cascade.found)} of the fakes; all detectors on all images: {_share(cascade.found_by_all_on_all)}",
    ]


def _generators(report: CalibrationReport, width: int) -> list[str]:
    every = report.generators_left_out
    rows = [
        [
            one.generator,
            f"{one.n:,}",
            _number(one.found, share=True),
            *map(_number, (one.auc, one.log_loss, one.ece)),
        ]
        for one in every[:_MOST_ROWS]
    ]
    hidden = len(every) - len(rows) + report.generators_not_shown
    more = [f"  and {hidden:,} more in the report"] if hidden else []
    return (
        text.table(
            ["generator, left out", "fakes", "found", "AUC", "log-loss", "ECE"],
            rows,
            width,
            right={1, 2, 3, 4, 5},
        )
        + more
    )


def _qualities(bands: Sequence[QualityBand], width: int) -> list[str]:
    rows = [
        [one.quality, f"{one.n_real:,}", f"{one.n_fake:,}",
         *(_number(rate, share=True) for rate in (one.false_positives, one.found)), _number(one.log_loss), _number(one.ece)]
        for one in bands
    ]  # fmt: skip
    heads = ["JPEG quality", "real", "fake", "false positives", "found", "log-loss", "ECE"]
    return text.table(heads, rows, width, right={1, 2, 3, 4, 5, 6})


def _number(figure: MetricValue, *, share: bool = False) -> str:
    if figure.value is None:
        return wording.NONE
    return _share(figure.value) if share else f"{figure.value:.3f}"


def _share(value: float | None) -> str:
    return wording.NONE if value is None else wording.stated(value)
