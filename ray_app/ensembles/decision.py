"""Members' scores → one score, one probability, one verdict and its reason per image, over columns.

`decide` is all of it; `combine` gives the score, `second_looks` and `drawn_by_audit` which images a
cascade's later members score.

The rules, several calibrated log-odds per image → one: each takes an (n, members) float64 table and
gives (n,) log-odds; NaN in any member gives NaN. Each is computed on log-odds alone, in a form that
neither overflows nor underflows: products of probabilities lose all digits where |x| passes 30
(golden/detectors.md §3). `fit_stacking` fits the `stacked` one; scikit-learn is loaded on first
use.
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
from ray_app.errors import ConfigError, Doubt, Reason

Table = npt.NDArray[np.float64]
Column = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float32]
# in `out_of_range`, in a member's place: what lies outside of the ensemble's range, whoever looks
IMAGE = ""


@dataclass(frozen=True)
class Decisions:
    """Columns of equal length; `score` is NaN and `probability` NaN where a member had no score."""

    score: Column
    probability: Column
    calibrated: bool
    verdict: list[str]
    reason: list[Reason | None]
    detail: list[str | None]  # what varies in a reason: names, figures
    # of a cascade: why all members looked (`band`, `audit`), None where the first sufficed
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
    """Apply an ensemble's rule, calibration and thresholds to columns of detector scores (log-odds
    of fake, NaN = none).

    `scores` has one column per member, in the card's order. `out_of_range` says per member and row
    why the image lies outside that member's valid range (under `IMAGE`: outside the ensemble's),
    `remarks` why it gave no score. A missing or out-of-range member makes the verdict `abstain`,
    and the detail names every such member; nothing is renormalised. So does an image that shows
    nothing (`blank`; none if left out), whatever anybody says of it. Of a cascade, `audited` says
    which rows were drawn (see `is_audited`; none if left out), and where the first members suffice
    nobody else is missed.
    """
    combined = combine(card, scores, calibrations, audited=audited)
    doubts = _doubts(scores, out_of_range or {}, remarks or {})
    looks = None
    if card.cascade is not None:
        looks = second_looks(card, scores, calibrations, audited) or []
        sufficed = _doubts(
            dict(list(scores.items())[: card.first]), out_of_range or {}, remarks or {}
        )
        doubts = {row: why for row, why in doubts.items() if looks[row]} | {
            row: why for row, why in sufficed.items() if not looks[row]
        }
    for row in np.flatnonzero(blank).tolist():
        doubts[row] = Doubt(Reason.NO_CONTENT)
    fake, real = combined >= card.thresholds.fake_above, combined <= card.thresholds.real_below
    decisions = Decisions(
        score=combined,
        probability=sigmoid(combined),
        calibrated=is_calibrated(card, calibrations),
        verdict=np.where(fake, "fake", np.where(real, "real", "abstain")).tolist(),
        reason=[None] * len(combined),
        detail=[None] * len(combined),
        second_look=looks,
    )
    for row in np.flatnonzero(~(fake | real)).tolist():
        doubts.setdefault(row, Doubt(Reason.INSIDE_BAND))
    for row, why in doubts.items():
        decisions.verdict[row], decisions.reason[row], decisions.detail[row] = (
            "abstain",
            why.reason,
            why.detail,
        )
    return decisions


def combine(
    card: EnsembleCard,
    scores: Mapping[str, Scores],
    calibrations: Mapping[str, Platt | None],
    *,
    audited: Sequence[bool] = (),
) -> Column:
    """The ensemble score per row: rule over calibrated member scores, bias, ensemble calibration
    (identity where there is none).

    NaN where the score of a member that is needed is missing or infinite. `audited` as for
    `decide`.
    """
    table = _table(scores, calibrations)
    if card.cascade is None:
        combined = _by_rule(card.rule, card.stacking, table, card.members, card.gate)
    else:
        early, late = early_scores(card, table), _staged(card.cascade.late, table)
        combined = np.where(_goes_on(card.cascade, early, audited), late, early)
    biased = combined + card.bias
    return biased if card.calibration is None else card.calibration(biased)


def second_looks(
    card: EnsembleCard,
    scores: Mapping[str, Scores],
    calibrations: Mapping[str, Platt | None],
    audited: Sequence[bool] = (),
) -> list[str | None] | None:
    """Per row of a cascade why all members look at it, `band` or `audit`, or None; None for any
    other rule.

    Of `scores` only the first members' columns are needed. A row that has no early score goes on to
    nobody.
    """
    if card.cascade is None:
        return None
    first = dict(list(scores.items())[: card.first])
    early = early_scores(card, _table(first, calibrations))
    low, high = card.cascade.band
    in_band, goes = (early >= low) & (early <= high), _goes_on(card.cascade, early, audited)
    return [
        "band" if band else "audit" if on else None
        for band, on in zip(in_band.tolist(), goes.tolist(), strict=True)
    ]


def is_audited(card: EnsembleCard, sha256: str) -> bool:
    """Whether a file is among the share of a cascade's images that all members look at: by its
    bytes alone, so the same everywhere.
    """
    if card.cascade is None:
        return False
    drawn = int.from_bytes(hashlib.sha256(f"audit:{sha256}".encode()).digest()[:8])
    return drawn < card.cascade.audit_share * 2**64


def drawn_by_audit(card: EnsembleCard, digests: Sequence[str | None]) -> list[bool]:
    """Which files the audit of a cascade draws, by their SHA-256 in hex (None = not known, and not
    drawn); empty for any other rule.
    """
    return (
        []
        if card.cascade is None
        else [digest is not None and is_audited(card, digest) for digest in digests]
    )


def early_scores(card: EnsembleCard, table: Table) -> Column:
    """What a cascade's first stage says: log-odds (n,) from calibrated member scores (n, first or
    more members).
    """
    assert card.cascade is not None
    return _staged(card.cascade.early, table[:, : card.first])


def _goes_on(cascade: Cascade, early: Column, audited: Sequence[bool]) -> npt.NDArray[np.bool_]:
    low, high = cascade.band
    drawn = np.asarray(audited, bool) if len(audited) else np.zeros(len(early), bool)
    goes: npt.NDArray[np.bool_] = ((early >= low) & (early <= high)) | (drawn & np.isfinite(early))
    return goes


def _staged(stage: CascadeStage, table: Table) -> Column:
    return calibrate(_by_rule(stage.rule, stage.stacking, table), stage.calibration)


def _table(scores: Mapping[str, Scores], calibrations: Mapping[str, Platt | None]) -> Table:
    """Calibrated member scores (n, members); NaN where one is missing or infinite."""
    table = np.stack(list(scores.values()), axis=1).astype(np.float64)
    table[~np.isfinite(table)] = np.nan
    for place, name in enumerate(scores):
        calibration = calibrations.get(name)
        if calibration is not None:
            table[:, place] = calibration(table[:, place].copy())
    return table


def is_calibrated(card: EnsembleCard, calibrations: Mapping[str, Platt | None]) -> bool:
    """Whether the ensemble's probability is calibrated: by the ensemble's own calibration, or by
    that of an only member.

    `calibrations` has one entry per member. Several calibrated members are not enough: what a rule
    makes of them is no longer calibrated.
    """
    by_member = any(calibrations.values()) and card.leaves_one_score_alone
    return card.calibration is not None or by_member


def doubt(has_score: bool, outside: str | None, remark: str | None) -> Doubt | None:
    """Why what one member says of an image does not count, or None; `outside` and `remark` as for
    `decide`.
    """
    if has_score:
        return None if outside is None else Doubt(Reason.OUT_OF_RANGE, outside)
    if remark is None and outside is not None:  # beyond some range a detector is not asked at all
        return Doubt(Reason.OUT_OF_RANGE, f"no score ({outside})")
    return Doubt(Reason.NO_SCORE, "no score" if remark is None else f"no score ({remark})")


def sigmoid(score: Column) -> Column:
    """P(fake) from log-odds, without overflow at either end; NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0.0, -score))


def logit(chance: float) -> float:
    """The log-odds of a chance between 0 and 1."""
    return math.log(chance) - math.log1p(-chance)


def _by_rule(
    rule: str,
    stacking: Stacking | None,
    table: Table,
    members: Sequence[EnsembleMember] = (),
    gate: OutlierGate | None = None,
) -> Column:
    # a NaN among the members is a missing score, not an accident
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
    """Calibrated log-odds; None leaves them as they are."""
    return score if calibration is None else calibration(score)


def _doubts(
    scores: Mapping[str, Scores],
    out_of_range: Mapping[str, Sequence[str | None]],
    remarks: Mapping[str, Sequence[str | None]],
) -> dict[int, Doubt]:
    """What keeps the members from an answer, of those rows where something does."""
    found: dict[int, list[Doubt]] = defaultdict(list)
    for row, outside in enumerate(out_of_range.get(IMAGE, ())):
        if outside is not None:
            found[row].append(Doubt(Reason.UNLIKE_CALIBRATION, outside))
    for name, column in scores.items():
        finite, beyond, remark = np.isfinite(column), out_of_range.get(name), remarks.get(name)
        for row in range(len(column)) if beyond else np.flatnonzero(~finite).tolist():
            why = doubt(
                bool(finite[row]), beyond[row] if beyond else None, remark[row] if remark else None
            )
            if why is not None:
                found[row].append(Doubt(why.reason, f"{name}: {why.detail}"))
    return {row: _together(doubts) for row, doubts in found.items()} if found else {}


def _together(doubts: Sequence[Doubt]) -> Doubt:
    """The first reason in the order of the list, and all details."""
    reasons = {why.reason for why in doubts}
    return Doubt(
        next(one for one in Reason if one in reasons),
        "; ".join(why.detail for why in doubts if why.detail),
    )


def mean_probability(table: Table) -> Column:
    """The log-odds of the mean probability: the log of Σ p over Σ (1 − p) (golden/detectors.md §3)."""
    return log_sum_exp(_log_sigmoid(table)) - log_sum_exp(_log_sigmoid(-table))


def soft_or(table: Table) -> Column:
    """The log-odds that at least one member is right to say fake, were they independent: logit(1 −
    Π(1 − p)) (detectors.md §4).

    For two members the odds are a + b + ab; folding that over all of them needs no probability.
    """
    result = table[:, 0]
    for column in table.T[1:]:
        result = np.logaddexp(np.logaddexp(result, column), result + column)
    return result


def log_sum_exp(table: Table) -> Column:
    """The log of the summed odds, not divided by the number of members (detectors.md §4)."""
    result: Column = np.logaddexp.reduce(table, axis=1)
    return result


def weighted(table: Table, weights: Column) -> Column:
    """Σ weight × log-odds."""
    result: Column = (table * weights).sum(axis=1)
    return result


def gated_mean(table: Table, gate: OutlierGate) -> Column:
    """The mean of the log-odds of those members that do not lie far from the median of all, image
    by image; see `OutlierGate`.

    It lies between the lowest and the highest member. What one member says has bounded weight: far
    enough off it has none, so that a higher score of one member may make the result lower. NaN of
    any member gives NaN, as with every rule: who is missing is not outvoted.
    """
    distance = np.abs(table - np.median(table, axis=1, keepdims=True))
    spread = np.maximum(np.median(distance, axis=1, keepdims=True), gate.floor)
    near = ~(_MAD_OF_ONE * distance > gate.deviations * spread)
    result: Column = np.where(near, table, 0.0).sum(axis=1) / near.sum(axis=1)
    return result


def stacked(table: Table, stacking: Stacking) -> Column:
    """The log-odds of a logistic regression on standardised log-odds."""
    standardised = (table - np.array(stacking.mean)) / np.array(stacking.scale)
    return weighted(standardised, np.array(stacking.coefficients)) + stacking.intercept


# the median distance from the median of a normal distribution of deviation 1, as Iglewicz and
# Hoaglin round it
_MAD_OF_ONE = 0.6745

SYMMETRIC: Mapping[str, Callable[[Table], Any]] = {
    "mean-logit": partial(np.mean, axis=1),
    "mean-probability": mean_probability,
    "soft-or": soft_or,
    "max": partial(np.max, axis=1),
    # of an even number of members the mean of the two in the middle
    "median": partial(np.median, axis=1),
    "log-sum-exp": log_sum_exp,
}
"""The rules that need no numbers of their own and treat all members alike, by the name on a card.
"""


def _log_sigmoid(table: Table) -> Table:
    result: Table = -np.logaddexp(0.0, -table)
    return result


Labels = npt.NDArray[np.integer] | npt.NDArray[np.bool_]
# scikit-learn's C on standardised scores: bounds the coefficients where the members separate the
# labels without error
STRENGTH = 1.0


def fit_stacking(scores: Table, labels: Labels, seed: int = 0) -> Stacking:
    """A logistic regression on calibrated member scores.

    `scores` is (n, members) log-odds in the card's order, `labels` (n,) with 1 = fake. Its log-odds
    hold at the labels' own share of fakes. `seed` fixes whatever the solver draws. Raises
    ConfigError where a score is missing or all labels are alike.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scores, fake = _checked(scores, labels)
    scaler = StandardScaler().fit(scores)
    model = LogisticRegression(C=STRENGTH, random_state=seed).fit(scaler.transform(scores), fake)
    return Stacking(
        mean=tuple(scaler.mean_.tolist()),
        scale=tuple(scaler.scale_.tolist()),
        coefficients=tuple(model.coef_[0].tolist()),
        intercept=float(model.intercept_[0]),
    )


def _checked(scores: Table, labels: Labels) -> tuple[Table, npt.NDArray[np.bool_]]:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or np.shape(labels) != scores.shape[:1]:
        raise ConfigError(
            f"stacking: scores {scores.shape} and labels {np.shape(labels)}; expected (n, members) and (n,)"
        )
    missing = int((~np.isfinite(scores)).any(axis=1).sum())
    if missing:
        raise ConfigError(
            f"stacking: {missing} of {len(scores)} images lack a member's score",
            hint="leave those images out",
        )
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise ConfigError(
            "stacking: labels must be 0 (real) and 1 (fake), both present",
            hint="give labelled images of both classes",
        )
    return scores, np.asarray(labels, bool)
