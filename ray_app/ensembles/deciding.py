"""Scores of the members → one score, one probability, one verdict and its reason. Plain numpy over columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_app.detectors.cards import Calibration
from ray_app.ensembles.cards import EnsembleCard, Thresholds
from ray_app.ensembles.rules import SYMMETRIC, Column, Table, stacked, weighted

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Decisions:
    """Columns of equal length; `score` is NaN and `probability` NaN where a member had no score."""

    score: Column
    probability: Column
    calibrated: bool
    verdict: list[str]
    reason: list[str | None]


def decide(
    card: EnsembleCard,
    scores: Mapping[str, Scores],
    *,
    calibrations: Mapping[str, Calibration | None],
    out_of_range: Mapping[str, Sequence[str | None]] | None = None,
    remarks: Mapping[str, Sequence[str | None]] | None = None,
) -> Decisions:
    """Apply an ensemble's rule, calibration and thresholds to columns of detector scores (log-odds of fake, NaN = none).

    `scores` has one column per member, in the card's order. `out_of_range` says per member and row why the image lies outside that
    member's valid range, `remarks` why it gave no score. A missing or out-of-range member makes the verdict `abstain`, and the reason
    names every such member; nothing is renormalised.
    """
    combined = combine(card, scores, calibrations)
    verdicts, reasons = [], []
    for score, why in zip(combined.tolist(), _doubts(scores, out_of_range or {}, remarks or {}), strict=True):
        verdict, reason = ("abstain", why) if why else _verdict(score, card.thresholds)
        verdicts.append(verdict)
        reasons.append(reason)
    return Decisions(combined, sigmoid(combined), is_calibrated(card, calibrations), verdicts, reasons)


def combine(card: EnsembleCard, scores: Mapping[str, Scores], calibrations: Mapping[str, Calibration | None]) -> Column:
    """The ensemble score per row: rule over calibrated member scores, bias, ensemble calibration (identity where there is none).

    NaN where a member's score is missing or infinite.
    """
    columns = [calibrate(column.astype(np.float64), calibrations.get(name)) for name, column in scores.items()]
    table = np.stack(columns, axis=1)
    table[~np.isfinite(table)] = np.nan
    with np.errstate(invalid="ignore"):  # a NaN among the members is a missing score, not an accident
        return calibrate(_apply_rule(card, table) + card.bias, card.calibration)


def is_calibrated(card: EnsembleCard, calibrations: Mapping[str, Calibration | None]) -> bool:
    """Whether the ensemble's probability is calibrated: by the ensemble's own calibration, or by that of an only member.

    `calibrations` has one entry per member. Several calibrated members are not enough: what a rule makes of them is no longer calibrated.
    """
    by_member = card.leaves_one_score_alone and any(calibration is not None for calibration in calibrations.values())
    return card.calibration is not None or by_member


def doubt(has_score: bool, outside: str | None, remark: str | None) -> str | None:
    """Why what one member says of an image does not count, or None; `outside` and `remark` as for `decide`."""
    if has_score:
        return outside
    why = remark or outside  # beyond some range a detector is not asked at all
    return "no score" if why is None else f"no score ({why})"


def sigmoid(score: Column) -> Column:
    """P(fake) from log-odds, without overflow at either end; NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0.0, -score))


def _apply_rule(card: EnsembleCard, table: Table) -> Column:
    if card.rule == "weighted":
        return weighted(table, np.array([member.weight for member in card.members]))
    if card.stacking is not None:
        return stacked(table, card.stacking)
    return SYMMETRIC[card.rule](table)


def calibrate(score: Column, calibration: Calibration | None) -> Column:
    """Calibrated log-odds; None leaves them as they are."""
    return score if calibration is None else calibration.slope * score + calibration.intercept


def _verdict(score: float, thresholds: Thresholds) -> tuple[str, str | None]:
    if score >= thresholds.fake_above:
        return "fake", None
    if score <= thresholds.real_below:
        return "real", None
    return "abstain", "inside the abstain band"


def _doubts(
    scores: Mapping[str, Scores], out_of_range: Mapping[str, Sequence[str | None]], remarks: Mapping[str, Sequence[str | None]]
) -> list[str | None]:
    """Per row, what keeps the members from an answer, or None."""
    doubts = []
    for name, column in scores.items():
        nothing = [None] * len(column)
        rows = zip(np.isfinite(column).tolist(), out_of_range.get(name, nothing), remarks.get(name, nothing), strict=True)
        doubts.append([None if why is None else f"{name}: {why}" for why in (doubt(*row) for row in rows)])
    return ["; ".join(filter(None, row)) or None for row in zip(*doubts, strict=True)]
