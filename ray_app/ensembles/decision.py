"""Combine detector scores into one score, one probability, and one verdict with a reason per image.

`decide` does all steps. `combine` returns only the scores. A cascade runs costly detectors only on
images that cheap detectors leave uncertain. `list_second_stage_reasons` and `select_audited` return
which images these are.

A rule is a function that combines the calibrated log-odds of the ensemble's members, which are
detectors. It takes an (n, members) float64 table and returns (n,) log-odds. NaN in any member gives
NaN. The rules compute on log-odds alone, in forms that neither overflow nor underflow. Products of
probabilities would lose all digits if the log-odds exceed ±30. `fit_stacking` fits the rule
`stacked`. It imports scikit-learn on first use.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.detectors.card import Platt
from ray_app.ensembles.card import (
    Cascade,
    CascadeStage,
    EnsembleCard,
    EnsembleMember,
    OutlierGate,
    Stacking,
)
from ray_app.ensembles.outliers import limit_outliers
from ray_app.errors import AbstainReason, ConfigError, Reason

Table = npt.NDArray[np.float64]
Column = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float32]
# The key in `out_of_range` for images outside the range of the ensemble as a whole.
IMAGE = ""


@dataclass(frozen=True)
class Decisions:
    """The verdicts of an ensemble on n images, with their scores and reasons, one list per column.

    Attributes:
        score: Ensemble scores (n,), log-odds of fake. NaN if a required detector has no score. All
            detectors of the ensemble are required. In a cascade, an image that does not enter the
            second stage requires only those of the first stage.
        calibrated: Whether the probabilities are calibrated.
        reason: Per image the reason why the verdict is abstain, or None for other verdicts.
        detail: Per image the variable part of the reason, such as names and numbers, or None.
        second_look: Per image why it enters the second stage of a cascade: "band" if its
            first-stage score is uncertain, "audit" if it is in the random sample, or None if it
            does not enter. None instead of a list if the ensemble is not a cascade.
    """

    score: Column
    probability: Column
    calibrated: bool
    verdict: list[str]
    reason: list[Reason | None]
    detail: list[str | None]
    second_look: list[str | None] | None = None


def decide(
    card: EnsembleCard,
    scores: Mapping[str, Scores],
    *,
    calibrations: Mapping[str, Platt | None],
    out_of_range: Mapping[str, Sequence[str | None]] | None = None,
    remarks: Mapping[str, Sequence[str | None]] | None = None,
    audited: Sequence[bool] = (),
    blank: Sequence[bool] = (),
) -> Decisions:
    """Turn the scores of an ensemble's detectors into verdicts, for a batch of images.

    The function applies the card's rule, calibration, and thresholds to log-odds (n,) by member, in
    the card's order, NaN for no score. If the score of a member (a detector of the ensemble) is
    missing or out of range, the verdict is abstain, and `Decisions.detail` names every such member.
    The other members are not reweighted. The verdict on a blank image is abstain for all scores. In
    a cascade, an image that does not enter the second stage needs only the scores of the
    first-stage detectors.

    `out_of_range` and `remarks` have reasons per member and image, or None; the key `IMAGE` of
    `out_of_range` is for the ensemble as a whole. An empty `audited` (`select_audited`) or `blank`
    applies to no image.
    """
    combined = combine(card, scores, calibrations, audited=audited)
    reasons = _abstain_reasons(scores, out_of_range or {}, remarks or {})
    stage_reasons = None
    if card.cascade is not None:
        stage_reasons = list_second_stage_reasons(card, scores, calibrations, audited) or []
        first_stage_reasons = _abstain_reasons(
            dict(list(scores.items())[: card.first]), out_of_range or {}, remarks or {}
        )
        reasons = {row: reason for row, reason in reasons.items() if stage_reasons[row]} | {
            row: reason for row, reason in first_stage_reasons.items() if not stage_reasons[row]
        }
    for row in np.flatnonzero(blank).tolist():
        reasons[row] = AbstainReason(Reason.NO_CONTENT)
    fake, real = combined >= card.thresholds.fake_above, combined <= card.thresholds.real_below
    decisions = Decisions(
        score=combined,
        probability=sigmoid(combined),
        calibrated=is_calibrated(card, calibrations),
        verdict=np.where(fake, "fake", np.where(real, "real", "abstain")).tolist(),
        reason=[None] * len(combined),
        detail=[None] * len(combined),
        second_look=stage_reasons,
    )
    for row in np.flatnonzero(~(fake | real)).tolist():
        reasons.setdefault(row, AbstainReason(Reason.INSIDE_BAND))
    for row, reason in reasons.items():
        decisions.verdict[row], decisions.reason[row], decisions.detail[row] = (
            "abstain",
            reason.reason,
            reason.detail,
        )
    return decisions


def combine(
    card: EnsembleCard,
    scores: Mapping[str, Scores],
    calibrations: Mapping[str, Platt | None],
    *,
    audited: Sequence[bool] = (),
) -> Column:
    """Combine the scores of an ensemble's members into one score per image, log-odds of fake (n,).

    The steps are the members' calibrations, the rule, the bias, and the ensemble's calibration.
    Arguments are those of `decide`. The result is NaN if the score of a required member is missing
    or infinite. In a cascade, an image that does not enter the second stage requires only the
    members of the first stage, otherwise all are required.
    """
    table = _table(scores, calibrations)
    if card.cascade is None:
        combined = _apply_rule(card.rule, card.stacking, table, card.members, card.gate)
    else:
        early, late = score_first_stage(card, table), _score_stage(card.cascade.late, table)
        combined = np.where(_needs_second_stage(card.cascade, early, audited), late, early)
    biased = combined + card.bias
    return biased if card.calibration is None else card.calibration(biased)


def list_second_stage_reasons(
    card: EnsembleCard,
    scores: Mapping[str, Scores],
    calibrations: Mapping[str, Platt | None],
    audited: Sequence[bool] = (),
) -> list[str | None] | None:
    """Return for each image the reason why it enters the second stage of a cascade.

    The second stage of a cascade runs all detectors of the ensemble. Only scores of the first stage
    are needed. The reason is "band" if the first-stage score is uncertain, else "audit" if the
    audit selected the image (`select_audited`), else None. The result is None instead of a list if
    the ensemble is not a cascade.
    """
    if card.cascade is None:
        return None
    first = dict(list(scores.items())[: card.first])
    early = score_first_stage(card, _table(first, calibrations))
    low, high = card.cascade.band
    in_band, needs_second = (
        (early >= low) & (early <= high),
        _needs_second_stage(card.cascade, early, audited),
    )
    return [
        "band" if inside else "audit" if needed else None
        for inside, needed in zip(in_band.tolist(), needs_second.tolist(), strict=True)
    ]


def is_audited(card: EnsembleCard, sha256: str) -> bool:
    """Return whether the audit of a cascade selects a file.

    The audit is a random sample of files that enter the second stage with any score. It depends
    only on the SHA-256 of the file's bytes, so it is the same on all machines. The result is False
    if the ensemble is not a cascade.
    """
    if card.cascade is None:
        return False
    number = int.from_bytes(hashlib.sha256(f"audit:{sha256}".encode()).digest()[:8])
    return number < card.cascade.audit_share * 2**64


def select_audited(card: EnsembleCard, digests: Sequence[str | None]) -> list[bool]:
    """Return which files the audit of a cascade selects.

    The audit is a random sample of files that enter the second stage with any score. A file without
    SHA-256 is not selected. The result is empty if the ensemble is not a cascade.
    """
    return (
        []
        if card.cascade is None
        else [digest is not None and is_audited(card, digest) for digest in digests]
    )


def score_first_stage(card: EnsembleCard, table: Table) -> Column:
    """Return the scores (n,) of images after the first stage of a cascade.

    In the first stage, only the first detectors of the ensemble score the images. Their calibrated
    log-odds are in the first columns of the table; further columns are not used.
    """
    assert card.cascade is not None
    return _score_stage(card.cascade.early, table[:, : card.first])


def _needs_second_stage(
    cascade: Cascade, early: Column, audited: Sequence[bool]
) -> npt.NDArray[np.bool_]:
    low, high = cascade.band
    selected = np.asarray(audited, bool) if len(audited) else np.zeros(len(early), bool)
    needed: npt.NDArray[np.bool_] = ((early >= low) & (early <= high)) | (
        selected & np.isfinite(early)
    )
    return needed


def _score_stage(stage: CascadeStage, table: Table) -> Column:
    return calibrate(_apply_rule(stage.rule, stage.stacking, table), stage.calibration)


def _table(scores: Mapping[str, Scores], calibrations: Mapping[str, Platt | None]) -> Table:
    """Return the calibrated member scores (n, members). A missing or infinite score is NaN."""
    table = np.stack(list(scores.values()), axis=1).astype(np.float64)
    table[~np.isfinite(table)] = np.nan
    for column, name in enumerate(scores):
        calibration = calibrations.get(name)
        if calibration is not None:
            table[:, column] = calibration(table[:, column].copy())
    return table


def is_calibrated(card: EnsembleCard, calibrations: Mapping[str, Platt | None]) -> bool:
    """Return whether the ensemble's probability is calibrated.

    The calibration is the ensemble's own, or that of its only member. Calibrated members of a
    larger ensemble are not enough, because their combined score is no longer calibrated.
    """
    by_member = any(calibrations.values()) and card.is_passthrough
    return card.calibration is not None or by_member


def make_abstain_reason(
    has_score: bool, outside: str | None, remark: str | None
) -> AbstainReason | None:
    """Return why a detector's score of an image cannot be used, or None if it can be used.

    `outside` is the reason why the image is outside the detector's valid range, and `remark` why
    there is no score.
    """
    if has_score:
        return None if outside is None else AbstainReason(Reason.OUT_OF_RANGE, outside)
    # Outside some ranges the detector does not run.
    if remark is None and outside is not None:
        return AbstainReason(Reason.OUT_OF_RANGE, f"no score ({outside})")
    return AbstainReason(Reason.NO_SCORE, "no score" if remark is None else f"no score ({remark})")


def sigmoid(score: Column) -> Column:
    """Convert log-odds to probabilities without overflow; NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0.0, -score))


def logit(probability: float) -> float:
    """Convert a probability greater than 0 and less than 1 to log-odds: log(p / (1 − p))."""
    return math.log(probability) - math.log1p(-probability)


def _apply_rule(
    rule: str,
    stacking: Stacking | None,
    table: Table,
    members: Sequence[EnsembleMember] = (),
    gate: OutlierGate | None = None,
) -> Column:
    # NaN is a missing score, not a computation error.
    with np.errstate(invalid="ignore"):
        if rule == "weighted":
            return weighted(table, np.array([member.weight for member in members]))
        if stacking is not None:
            return stacked(table, stacking)
        if rule == "gated-mean":
            return gated_mean(table, gate or OutlierGate())
        combined: Column = SYMMETRIC[rule](table)
        return combined


def calibrate(score: Column, calibration: Platt | None) -> Column:
    """Apply a calibration to log-odds; None returns them unchanged."""
    return score if calibration is None else calibration(score)


def _abstain_reasons(
    scores: Mapping[str, Scores],
    out_of_range: Mapping[str, Sequence[str | None]],
    remarks: Mapping[str, Sequence[str | None]],
) -> dict[int, AbstainReason]:
    """Return the reason to abstain by row number, for the rows that have a reason."""
    by_row: dict[int, list[AbstainReason]] = defaultdict(list)
    for row, outside in enumerate(out_of_range.get(IMAGE, ())):
        if outside is not None:
            by_row[row].append(AbstainReason(Reason.UNLIKE_CALIBRATION, outside))
    for name, column in scores.items():
        finite, ranges, remark = np.isfinite(column), out_of_range.get(name), remarks.get(name)
        for row in range(len(column)) if ranges else np.flatnonzero(~finite).tolist():
            reason = make_abstain_reason(
                bool(finite[row]), ranges[row] if ranges else None, remark[row] if remark else None
            )
            if reason is not None:
                by_row[row].append(AbstainReason(reason.reason, f"{name}: {reason.detail}"))
    return {row: _merge_reasons(reasons) for row, reasons in by_row.items()} if by_row else {}


def _merge_reasons(doubts: Sequence[AbstainReason]) -> AbstainReason:
    """Merge reasons: the first in the order of `Reason`, and all details."""
    reasons = {doubt.reason for doubt in doubts}
    return AbstainReason(
        next(reason for reason in Reason if reason in reasons),
        "; ".join(doubt.detail for doubt in doubts if doubt.detail),
    )


def mean_probability(table: Table) -> Column:
    """Apply the rule `mean-probability`: average the probabilities of the detectors.

    Log-odds of fake (n, detectors) → (n,), as in all rules.
    """
    return log_sum_exp(_log_sigmoid(table)) - log_sum_exp(_log_sigmoid(-table))


def soft_or(table: Table) -> Column:
    """Apply the rule `soft-or`: combine the detectors' probabilities of fake by a probabilistic OR.

    The detectors are treated as independent. With their probabilities p of fake, the result is
    logit(1 − Π(1 − p)). It is computed from odds, without probabilities: the odds a and b of two
    detectors combine to a + b + ab.
    """
    result = table[:, 0]
    for column in table.T[1:]:
        result = np.logaddexp(np.logaddexp(result, column), result + column)
    return result


def log_sum_exp(table: Table) -> Column:
    """Apply the rule `log-sum-exp`: add the odds of the detectors, and return the log of the sum.

    The result is not divided by the number of detectors.
    """
    result: Column = np.logaddexp.reduce(table, axis=1)
    return result


def weighted(table: Table, weights: Column) -> Column:
    """Apply the rule `weighted`: return the weighted sum of the detectors' log-odds.

    The weights (detectors,) need not sum to 1.
    """
    result: Column = (table * weights).sum(axis=1)
    return result


def gated_mean(table: Table, gate: OutlierGate) -> Column:
    """Apply the rule `gated-mean`: average the detectors' log-odds per image, without outliers.

    A detector is an outlier if it is far from the median of all detectors (`OutlierGate`). So a
    single detector has a bounded influence. A higher score of one detector may lower the result, if
    it makes the detector an outlier. The result is NaN if any detector has no score for the image.
    """
    distance = np.abs(table - np.median(table, axis=1, keepdims=True))
    spread = np.maximum(np.median(distance, axis=1, keepdims=True), gate.floor)
    near = ~(_NORMAL_MAD * distance > gate.deviations * spread)
    result: Column = np.where(near, table, 0.0).sum(axis=1) / near.sum(axis=1)
    return result


def stacked(table: Table, stacking: Stacking) -> Column:
    """Apply the rule `stacked`: a logistic regression on the detectors' standardised log-odds."""
    standardised = (table - np.array(stacking.mean)) / np.array(stacking.scale)
    return weighted(standardised, np.array(stacking.coefficients)) + stacking.intercept


# Median absolute deviation of the standard normal distribution, rounded as by Iglewicz and Hoaglin.
_NORMAL_MAD = 0.6745

SYMMETRIC: Mapping[str, Callable[[Table], Any]] = {
    "mean-logit": partial(np.mean, axis=1),
    "mean-probability": mean_probability,
    "soft-or": soft_or,
    "max": partial(np.max, axis=1),
    # With an even number of members, the mean of the middle two.
    "median": partial(np.median, axis=1),
    "log-sum-exp": log_sum_exp,
}
"""Rules without parameters that treat all members alike, by their name on a card."""


def _log_sigmoid(table: Table) -> Table:
    result: Table = -np.logaddexp(0.0, -table)
    return result


Labels = npt.NDArray[np.integer] | npt.NDArray[np.bool_]
# scikit-learn's C on standardised scores. It bounds the coefficients if the members separate the
# labels without error.
INVERSE_REGULARIZATION = 1.0


def fit_stacking(scores: Table, labels: Labels, seed: int = 0) -> Stacking:
    """Fit the rule `stacked`: a logistic regression on the detectors' calibrated scores.

    The log-odds that it predicts are calibrated for images with the same fraction of fakes as
    `labels`. A few scores of a detector far outside of the range of all others count as being at a
    limit (`limit_outliers`). The scores are (n, detectors) in the order of the ensemble's members.
    Raises ConfigError if the shapes do not match, a score is missing, or the labels are not exactly
    0 and 1 (fake), both present.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scores, fake = _check_training_data(scores, labels)
    scores = np.stack([limit_outliers(column, fake) for column in scores.T], axis=1)
    scaler = StandardScaler().fit(scores)
    model = LogisticRegression(C=INVERSE_REGULARIZATION, random_state=seed).fit(
        scaler.transform(scores), fake
    )
    return Stacking(
        mean=tuple(scaler.mean_.tolist()),
        scale=tuple(scaler.scale_.tolist()),
        coefficients=tuple(model.coef_[0].tolist()),
        intercept=float(model.intercept_[0]),
    )


def _check_training_data(scores: Table, labels: Labels) -> tuple[Table, npt.NDArray[np.bool_]]:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or np.shape(labels) != scores.shape[:1]:
        raise ConfigError(
            f"stacking: scores must be (n, members) and labels (n,), got {scores.shape} and {np.shape(labels)}"
        )
    missing = int((~np.isfinite(scores)).any(axis=1).sum())
    if missing:
        raise ConfigError(
            f"stacking: {missing} of {len(scores)} images lack the score of a member",
            hint="leave out those images",
        )
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise ConfigError(
            "stacking: labels must contain both 0 (real) and 1 (fake)",
            hint="give labelled images of both classes",
        )
    return scores, np.asarray(labels, bool)
