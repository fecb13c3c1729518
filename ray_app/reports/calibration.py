"""The result of `touchstone detectors calibrate`, and how it is printed.

A calibration chooses the thresholds of an ensemble on labelled images, and writes them to a card
(YAML). `Calibration` has the result, and `calibration_lines` formats it for the terminal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_app import __version__
from ray_app.ensembles import EnsembleCard, OperatingPoint
from ray_app.reports import format as wording
from ray_app.reports import text

SCHEMA = 2


@dataclass(frozen=True)
class Calibration:
    """The result of `touchstone detectors calibrate`: an ensemble card with chosen thresholds.

    The card is the YAML file that defines the ensemble. The rule that combines the detectors'
    scores, and the calibrations, were fitted on some of the labelled images. The others are held
    out: only the thresholds were chosen, and their error rates measured, on them.

    Attributes:
        card: The card as it was written.
        path: Path of the card.
        run: URL of the run whose images are labelled.
        labels: Name of the labels to show, such as the path of their file.
        detectors: Names of the detectors in the run.
        used: Number of labelled images that were used, for fitting or held out.
        labelled: Number of rows of the run that have a label.
        left_out: Number of labelled images that were not used, by reason.
        remarks: Sentences on the run and the labels, to print as notes.
        miss: Maximum fraction of fakes at or below the card's threshold `real_below`, which the
            user requested. It is measured on held-out fakes. None if only real images were given.
        held_out: Path of the labels of the held-out images, such as `calibrated.held-out.csv`. None
            if only real images were given.
        commands: Commands that evaluate the card on the held-out images, or that use it.
    """

    card: EnsembleCard
    path: str
    run: str
    labels: str
    detectors: Sequence[str]
    used: int
    labelled: int
    left_out: Mapping[str, int]
    remarks: Sequence[str]
    miss: float | None
    held_out: str | None
    commands: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-compatible values, which `--json` prints.

        They include the thresholds of the card and its guarantee, a bound on the false-positive
        rate. The other fitted values are only in the file of the card.
        """
        keys = {"rule", "thresholds", "guarantee", "operating_points", "notes"}
        population = self.card.population
        return {
            "schema": SCHEMA,
            "version": __version__,
            "run": self.run,
            "labels": self.labels,
            "detectors": list(self.detectors),
            "images": {
                "used": self.used,
                "labelled": self.labelled,
                "left_out": dict(self.left_out),
            },
            "remarks": list(self.remarks),
            "parts": [part.model_dump(mode="json") for part in population.parts]
            if population
            else [],
            "prevalence": population.prevalence if population else None,
            **self.card.model_dump(mode="json", include=keys),
            "card": self.path,
            "held_out": self.held_out,
            "commands": list(self.commands),
        }


def calibration_lines(calibration: Calibration, width: int = text.OUTPUT_WIDTH) -> list[str]:
    """Return the result of a calibration as lines for a terminal with `width` columns."""
    left_out = "; ".join(f"{n:,} {reason}" for reason, n in calibration.left_out.items())
    population = calibration.card.population
    parts = [
        [part.name, f"{part.n_real:,}", f"{part.n_fake:,}", f"{part.groups:,}"]
        for part in (population.parts if population else ())
    ]
    lines = [
        f"images: {calibration.used:,} of {calibration.labelled:,} labelled"
        + (f" (left out: {left_out})" if left_out else ""),
        *(
            text.table(["part", "real", "fake", "groups"], parts, width, right={1, 2, 3})
            if parts
            else ()
        ),
        "",
        *_guarantee_lines(calibration),
        "",
        *_point_lines(calibration.card.operating_points, width),
        "",
    ]
    for sentence in [*calibration.remarks, calibration.card.notes]:
        first, *more = text.paragraph(wording.escape_invisible(sentence), width - 6)
        lines += [f"note: {first}", *(f"      {line}" for line in more)]
    return [
        *lines,
        f"card: {calibration.path}",
        *(
            ["use it:"]
            if calibration.held_out is None
            else [
                f"held-out part: {calibration.held_out}",
                "evaluate the card on the held-out part:",
            ]
        ),
        *(f"  {command}" for command in calibration.commands),
    ]


def _guarantee_lines(calibration: Calibration) -> list[str]:
    """Return lines on the rates of the thresholds, their archives, and the data behind them."""
    thresholds, guarantee = calibration.card.thresholds, calibration.card.guarantee
    population, cascade = calibration.card.population, calibration.card.cascade
    lines = []
    if guarantee is not None:
        is_kept = guarantee.upper_bound <= guarantee.target_fpr
        bound = guarantee.target_fpr if is_kept else guarantee.upper_bound
        basis = "guaranteed" if is_kept else "measured"
        recall = thresholds.true_positive_rate
        reals = "reals" if calibration.held_out is None else "held-out reals"
        lines += [
            f"fake at {thresholds.fake_above:.3f} and above: at most {_percent(bound)} of reals, {basis} with "
            f"{_percent(guarantee.confidence)} confidence",
            f"  {guarantee.false_positives:,} of {guarantee.n_real:,} {reals} reach it; "
            + (
                "there are no fakes"
                if recall is None
                else f"it finds {_percent(recall)} of the fakes"
            ),
        ]
        if guarantee.these_sources:
            lines.append("  for archives of these same sources in these same proportions")
        elif guarantee.groups and guarantee.effective and guarantee.effective < guarantee.groups:
            lines.append(
                f"  all labelled reals are of {guarantee.groups:,} sources or looks, worth {guarantee.effective:,.0f} independent ones"
            )
    passed = (
        "no fakes were given, so how many are missed is not known"
        if calibration.miss is None
        else f"no more than {_percent(calibration.miss)} of the held-out fakes"
    )
    lines.append(
        f"real at {thresholds.real_below:.3f} and below: {passed}; in between the verdict is abstain"
    )
    if population is not None:
        lines.append(
            f"probabilities are right if {_percent(population.prevalence)} of the images are fake"
        )
    if cascade is not None:
        low, high = cascade.band
        lines.append(
            f"cascade: {wording.pluralize(cascade.first, 'detector')} on every image, all detectors from {low:.3f} to {high:.3f} "
            f"and on {_percent(cascade.audit_share)} more, together about {_percent(cascade.expected_share)} of the images"
        )
    return lines


def _point_lines(points: Sequence[OperatingPoint], width: int) -> list[str]:
    headers = ["false-positive rate", "fake at", "measured", "at most", "finds", "the rate is"]
    rows = [
        [
            _percent(point.rate),
            f"{point.threshold:.3f}",
            _percent(point.false_positive_rate),
            _percent(point.upper_bound),
            _percent(point.recall),
            "guaranteed" if point.is_guaranteed else "measured",
        ]
        for point in points
    ]
    return text.table(headers, rows, width, right={0, 1, 2, 3, 4})


def _percent(value: float | None) -> str:
    return wording.percent(value, 3)
