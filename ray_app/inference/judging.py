"""What the detectors said of a block → decisions per member. Plain numpy; no torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.ensembles import Decisions, decide
from ray_app.errors import Status
from ray_app.inference.batches import Outcome, Pixels
from ray_app.inference.spec import ScoringSpec

Scores = dict[str, npt.NDArray[np.float32]]
Masks = Mapping[str, Sequence[Pixels | None]]


def finite(value: float | np.floating[Any]) -> float | None:
    """A number as people and JSON are told it: None where a detector or an ensemble has none (NaN)."""
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class Readings:
    """What detectors said of some members, in their order. `scores`: log-odds of fake, NaN = none.

    `masks`: per localizer (H, W) uint8, 255 = surely altered, None = none. `replies`: per detector that answers in words.
    `views` and `view_masks`: scores and masks of the same members as perturbations show them, by the perturbation's name.
    """

    scores: Scores
    masks: Masks = field(default_factory=dict)
    replies: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    views: Mapping[str, Scores] = field(default_factory=dict)
    view_masks: Mapping[str, Masks] = field(default_factory=dict)

    def joined(self, other: "Readings") -> "Readings":
        """Both, of other detectors on the same members."""
        return Readings(
            {**self.scores, **other.scores},
            {**self.masks, **other.masks},
            {**self.replies, **other.replies},
            {view: {**self.views.get(view, {}), **other.views.get(view, {})} for view in {**self.views, **other.views}},
            {view: {**self.view_masks.get(view, {}), **other.view_masks.get(view, {})} for view in {**self.view_masks, **other.view_masks}},
        )

    def among(self, names: Collection[str]) -> "Readings":
        """Those of some detectors."""
        return Readings(
            {name: column for name, column in self.scores.items() if name in names},
            {name: column for name, column in self.masks.items() if name in names},
            {name: column for name, column in self.replies.items() if name in names},
            {view: {name: column for name, column in scores.items() if name in names} for view, scores in self.views.items()},
            {view: {name: column for name, column in masks.items() if name in names} for view, masks in self.view_masks.items()},
        )


@dataclass(frozen=True)
class Scored:
    """Outcomes, readings and decisions of some members, in their order."""

    outcomes: list[Outcome]
    readings: Readings
    decisions: Decisions

    @property
    def scores(self) -> Scores:
        """Per detector, in the ensemble's order."""
        return self.readings.scores


def judge(spec: ScoringSpec, outcomes: Sequence[Outcome], readings: Readings) -> Scored:
    """Decide on every member; one that decoded, and that no detector could score although it should have, becomes `detector_failed`."""
    views = {view: {name: scores[name] for name in spec.cards} for view, scores in readings.views.items()}
    readings = replace(readings, scores={name: readings.scores[name] for name in spec.cards}, views=views)
    readings = with_repeated(outcomes, readings)
    sizes = [(None, None) if outcome.facts is None else (outcome.facts.width, outcome.facts.height) for outcome in outcomes]
    remarks = remarks_on(readings.replies)
    scored = np.any([np.isfinite(column) for column in readings.scores.values()], axis=0)
    checked = [
        replace(outcome, status=Status.DETECTOR_FAILED, detail=_failure(remarks, row))
        if outcome.status is Status.OK and not scored[row] and _expected(spec, sizes[row])
        else outcome
        for row, outcome in enumerate(outcomes)
    ]
    doubts = range_doubts(spec, sizes)
    decisions = decide(spec.ensemble, readings.scores, calibrations=spec.calibrations, out_of_range=doubts, remarks=remarks)
    return Scored(checked, readings, decisions)


def with_repeated(outcomes: Sequence[Outcome], readings: Readings) -> Readings:
    """The readings, with what was said before of those members that no detector has looked at again."""
    repeated = [(row, outcome.said) for row, outcome in enumerate(outcomes) if outcome.said is not None]
    if not repeated:
        return readings
    scores = {name: column.copy() for name, column in readings.scores.items()}
    replies = {name: list(texts) for name, texts in readings.replies.items()}
    for row, said in repeated:
        for name, column in scores.items():
            value = said.scores.get(name) if said.twin is None else column[said.twin]
            column[row] = np.nan if value is None else value
        for name, texts in replies.items():
            texts[row] = said.replies.get(name) if said.twin is None else texts[said.twin]
    return replace(readings, scores=scores, replies=replies)


def remarks_on(replies: Mapping[str, Sequence[str | None]]) -> dict[str, list[str | None]]:
    """What to say of a detector that answered in words but gave no score, per detector and row."""
    return {name: [None if reply is None else f"it replied {reply!r}" for reply in texts] for name, texts in replies.items()}


def range_doubts(spec: ScoringSpec, sizes: Sequence[tuple[int | None, int | None]]) -> dict[str, list[str | None]]:
    """Per detector and image (width, height in pixels): why the image lies outside the card's valid range, or None."""
    return {
        name: [None if width is None or height is None else spec.doubt(name, width, height) for width, height in sizes]
        for name in spec.cards
    }


def _expected(spec: ScoringSpec, size: tuple[int | None, int | None]) -> bool:
    """Whether at least one detector should have given a score for an image of this size."""
    width, height = size
    return width is None or height is None or any(spec.is_scored(name, width, height) for name in spec.cards)


def _failure(remarks: Mapping[str, Sequence[str | None]], row: int) -> str:
    said = [f"{name}: {texts[row]}" for name, texts in remarks.items() if texts[row] is not None]
    return "; ".join(["no detector gave a finite score", *said])
