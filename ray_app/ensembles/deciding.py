"""Scores of the members → one score, one probability, one verdict and its reason. Plain numpy over columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_app.detectors.cards import Calibration
from ray_app.ensembles.cards import EnsembleCard, Thresholds

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Decisions:
    """Columns of equal length; `score` is NaN and `probability` NaN where a member had no score."""

    score: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]
    calibrated: bool
    verdict: list[str]
    reason: list[str | None]


def decide(
    card: EnsembleCard,
    scores: Mapping[str, Scores],
    *,
    calibrations: Mapping[str, Calibration | None],
    out_of_range: Mapping[str, Sequence[str | None]] | None = None,
) -> Decisions:
    """Apply an ensemble's rule and thresholds to columns of detector scores (log-odds of fake, NaN = none).

    `scores` has one column per member, in the card's order. `out_of_range` says per member and row why the image lies outside that
    member's valid range. A missing or out-of-range member makes the verdict `abstain`; nothing is renormalised.
    """
    combined = combine(card, scores, calibrations)
    verdicts, reasons = [], []
    for row in range(len(combined)):
        verdict, reason = _verdict(float(combined[row]), card.thresholds)
        doubt = _doubt(row, scores, out_of_range or {})
        verdicts.append("abstain" if doubt else verdict)
        reasons.append(doubt or reason)
    calibrated = all(calibrations.get(name) is not None for name in scores)
    return Decisions(combined, sigmoid(combined), calibrated, verdicts, reasons)


def combine(card: EnsembleCard, scores: Mapping[str, Scores], calibrations: Mapping[str, Calibration | None]) -> npt.NDArray[np.float64]:
    """The ensemble score per row: the rule over calibrated member scores (identity without a calibration)."""
    columns = [_calibrate(column.astype(np.float64), calibrations.get(name)) for name, column in scores.items()]
    table = np.stack(columns, axis=1)
    if card.rule == "mean-logit":
        result: npt.NDArray[np.float64] = table.mean(axis=1) + card.bias
        return result
    weights = np.array([member.weight for member in card.members])
    weighted: npt.NDArray[np.float64] = table @ weights + card.bias
    return weighted


def sigmoid(score: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """P(fake) from log-odds, without overflow at either end; NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0.0, -score))


def _calibrate(score: npt.NDArray[np.float64], calibration: Calibration | None) -> npt.NDArray[np.float64]:
    return score if calibration is None else calibration.slope * score + calibration.intercept


def _verdict(score: float, thresholds: Thresholds) -> tuple[str, str | None]:
    if score >= thresholds.fake_above:
        return "fake", None
    if score <= thresholds.real_below:
        return "real", None
    return "abstain", "inside the abstain band"


def _doubt(row: int, scores: Mapping[str, Scores], out_of_range: Mapping[str, Sequence[str | None]]) -> str | None:
    for name, column in scores.items():
        if not np.isfinite(column[row]):
            return f"{name}: no score"
        reason = out_of_range.get(name)
        if reason is not None and reason[row] is not None:
            return f"{name}: {reason[row]}"
    return None
