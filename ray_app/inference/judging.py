"""Detector scores of a block → decisions per member. Plain numpy; no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_app.ensembles import Decisions, decide
from ray_app.errors import Status
from ray_app.inference.decoding import Outcome
from ray_app.inference.spec import ScoringSpec

Scores = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Scored:
    """Outcomes, detector scores (NaN = none) and decisions of some members, in their order."""

    outcomes: list[Outcome]
    scores: Scores
    decisions: Decisions


def judge(spec: ScoringSpec, outcomes: Sequence[Outcome], scores: Scores) -> Scored:
    """Decide on every member; one that decoded but that no detector could score becomes `detector_failed`."""
    failed = ~np.any([np.isfinite(column) for column in scores.values()], axis=0)
    checked = [
        Outcome(Status.DETECTOR_FAILED, "no detector gave a finite score", outcome.facts)
        if outcome.status is Status.OK and failed[row]
        else outcome
        for row, outcome in enumerate(outcomes)
    ]
    sizes = [(None, None) if outcome.facts is None else (outcome.facts.width, outcome.facts.height) for outcome in checked]
    doubts = range_doubts(spec, sizes)
    return Scored(checked, scores, decide(spec.ensemble, scores, calibrations=spec.calibrations, out_of_range=doubts))


def range_doubts(spec: ScoringSpec, sizes: Sequence[tuple[int | None, int | None]]) -> dict[str, list[str | None]]:
    """Per detector and image (width, height in pixels): why the image lies outside the card's valid range, or None."""
    return {
        name: [None if width is None or height is None else card.valid_range.doubt(width, height) for width, height in sizes]
        for name, card in spec.cards.items()
    }
