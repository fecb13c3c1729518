"""What the detectors said of a block → decisions per member. Plain numpy; no torch.

Which generators made the images of a block, by the embeddings that detectors left; whether a profile suits these. No torch at import.
"""

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.attribution.captioners import Caption
from ray_app.attribution.cards import IdentifierCard
from ray_app.attribution.identifier import Identified, Identifier
from ray_app.ensembles import Decisions, decide, drawn_by_audit, second_looks
from ray_app.ensembles.decision import IMAGE
from ray_app.errors import ConfigError, Status
from ray_app.inference.batch import DecodeResult, Pixels
from ray_app.inference.spec import ScoringSpec
from ray_app.inference.stability import settled
from ray_app.inference.timing import StageClock


def identified(spec: ScoringSpec, embeddings: Mapping[str, npt.NDArray[np.float32]]) -> Identified | None:
    """What the spec's identifier says of all members; None where it has none, or where its detector's embeddings were not kept.

    Raises DetectorError where its weights are missing.
    """
    card = spec.identifier
    if card is None or card.detector not in embeddings:
        return None
    return _head(card.model_dump_json(), card.folder).identify(embeddings[card.detector])


def require_embeddings(spec: ScoringSpec) -> None:
    """Whether the profile's cards were fitted on the embeddings that the spec's detectors leave; numbers in bf16 stand for those in fp32.

    Raises ConfigError that says what differs, DetectorError where weights are missing or a detector leaves no embedding.
    """
    for card in (spec.identifier, spec.describer):
        if card is None or card.detector is None:
            continue
        from ray_app.detectors.embeddings import embedding_facts  # torch: only where there is something to compare

        detector = spec.cards[card.detector]
        found = embedding_facts(detector, precision=spec.precision[card.detector], resize=spec.resize)
        wanted = {key: value for key, value in card.embedding.items() if key != "precision"}
        differing = [key for key, value in wanted.items() if _plain(value) != _plain(found.get(key))]
        if differing or "width" not in wanted:
            told = "; ".join(f"{key}: fitted on {wanted[key]}, here {found.get(key)}" for key in differing) or "its card says no width"
            raise ConfigError(
                f"{card.name} was fitted on other embeddings of {card.detector}: {told}",
                hint="train it on this detector, or score with the detector and settings that it was fitted on",
            )


def _plain(fact: Any) -> str:
    return json.dumps(fact, sort_keys=True)


@functools.lru_cache(maxsize=4)
def _head(described: str, folder: Path) -> Identifier:
    """Read once per process. `described`: the card as JSON."""
    card = IdentifierCard.model_validate_json(described)
    card._folder = folder
    return Identifier(card)


Scores = dict[str, npt.NDArray[np.float32]]
Masks = Mapping[str, Sequence[Pixels | None]]


def finite(value: float | np.floating[Any]) -> float | None:
    """A number as people and JSON are told it: None where a detector or an ensemble has none (NaN)."""
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class DetectorOutputs:
    """What detectors said of some members, in their order. `scores`: log-odds of fake, NaN = none.

    `masks`: per localizer (H, W) uint8, 255 = surely altered, None = none. `replies`: per detector that answers in words.
    `views` and `view_masks`: scores and masks of the same members as perturbations show them, by the perturbation's name.
    `embeddings`: per detector that keeps them (members, d) float32 of the clean pass, NaN where there is none.
    `stability`: scores of recompressed views, by their names, of members near a threshold; NaN for all others.
    `described`: the words that members may have been made from, None = nothing said; empty where nobody was asked.
    """

    scores: Scores
    masks: Masks = field(default_factory=dict)
    replies: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    views: Mapping[str, Scores] = field(default_factory=dict)
    view_masks: Mapping[str, Masks] = field(default_factory=dict)
    embeddings: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    stability: Mapping[str, Scores] = field(default_factory=dict)
    described: Sequence[Caption | None] = ()

    def joined(self, other: "DetectorOutputs") -> "DetectorOutputs":
        """Both, of other detectors on the same members."""
        return DetectorOutputs(
            {**self.scores, **other.scores},
            {**self.masks, **other.masks},
            {**self.replies, **other.replies},
            {view: {**self.views.get(view, {}), **other.views.get(view, {})} for view in {**self.views, **other.views}},
            {view: {**self.view_masks.get(view, {}), **other.view_masks.get(view, {})} for view in {**self.view_masks, **other.view_masks}},
            {**self.embeddings, **other.embeddings},
            {view: {**self.stability.get(view, {}), **other.stability.get(view, {})} for view in {**self.stability, **other.stability}},
            self.described or other.described,
        )

    def spread(self, rows: Sequence[int], count: int) -> "DetectorOutputs":
        """These readings at `rows` (one per reading) of `count` members; of the others nothing was said. Embeddings, words: left out."""

        def scores(columns: Mapping[str, npt.NDArray[np.float32]]) -> Scores:
            wide = {name: np.full(count, np.nan, np.float32) for name in columns}
            for name, column in columns.items():
                wide[name][list(rows)] = column
            return wide

        def lists(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
            placed = {name: dict(zip(rows, column, strict=True)) for name, column in columns.items()}
            return {name: [column.get(row) for row in range(count)] for name, column in placed.items()}

        return DetectorOutputs(
            scores(self.scores),
            lists(self.masks),
            lists(self.replies),
            {view: scores(columns) for view, columns in self.views.items()},
            {view: lists(columns) for view, columns in self.view_masks.items()},
        )

    @staticmethod
    def chained(parts: Sequence["DetectorOutputs"]) -> "DetectorOutputs":
        """Readings of the same detectors on some members, then on others."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        return DetectorOutputs(
            {name: np.concatenate([part.scores[name] for part in parts]) for name in first.scores},
            {name: [mask for part in parts for mask in part.masks[name]] for name in first.masks},
            {name: [text for part in parts for text in part.replies[name]] for name in first.replies},
            {view: {name: np.concatenate([part.views[view][name] for part in parts]) for name in columns}
             for view, columns in first.views.items()},
            {view: {name: [mask for part in parts for mask in part.view_masks[view][name]] for name in columns}
             for view, columns in first.view_masks.items()},
            {name: np.concatenate([part.embeddings[name] for part in parts]) for name in first.embeddings},
            {view: {name: np.concatenate([part.stability[view][name] for part in parts]) for name in columns}
             for view, columns in first.stability.items()},
            [one for part in parts for one in part.described],
        )  # fmt: skip

    def among(self, names: Collection[str]) -> "DetectorOutputs":
        """Those of some detectors."""
        return DetectorOutputs(
            {name: column for name, column in self.scores.items() if name in names},
            {name: column for name, column in self.masks.items() if name in names},
            {name: column for name, column in self.replies.items() if name in names},
            {view: {name: column for name, column in scores.items() if name in names} for view, scores in self.views.items()},
            {view: {name: column for name, column in masks.items() if name in names} for view, masks in self.view_masks.items()},
            {name: vectors for name, vectors in self.embeddings.items() if name in names},
            {view: {name: column for name, column in scores.items() if name in names} for view, scores in self.stability.items()},
            self.described,
        )


@dataclass(frozen=True)
class BlockResult:
    """Outcomes, readings and decisions of some members, in their order; and which generators made them, where somebody was asked."""

    outcomes: list[DecodeResult]
    readings: DetectorOutputs
    decisions: Decisions
    identified: Identified | None = None

    @property
    def scores(self) -> Scores:
        """Per detector, in the ensemble's order."""
        return self.readings.scores


def judge(spec: ScoringSpec, outcomes: Sequence[DecodeResult], readings: DetectorOutputs, clock: StageClock | None = None) -> BlockResult:
    """Decide on every member, and name generators; a member that decoded, and that no detector could score although it should have,
    becomes `detector_failed`. `clock`: what naming is counted on, as the stage `identify`.
    """
    scored = decided_on(spec, outcomes, readings)
    with (clock or StageClock())("identify"):
        return replace(scored, identified=identified(spec, scored.readings.embeddings))


def decided_on(spec: ScoringSpec, outcomes: Sequence[DecodeResult], readings: DetectorOutputs) -> BlockResult:
    """The same, of verdicts alone."""
    views = {view: {name: scores[name] for name in spec.cards} for view, scores in readings.views.items()}
    asked = {view: {name: scores[name] for name in spec.cards} for view, scores in readings.stability.items()}
    readings = replace(readings, scores={name: readings.scores[name] for name in spec.cards}, views=views, stability=asked)
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
    doubts = range_doubts(spec, sizes, [None if outcome.facts is None else outcome.facts.format for outcome in outcomes])
    drawn = audited_among(spec, checked)
    decisions = decide(spec.ensemble, readings.scores, calibrations=spec.calibrations, out_of_range=doubts, remarks=remarks, audited=drawn,
                       blank=[outcome.facts is not None and is_blank(outcome.facts.flags) for outcome in outcomes])  # fmt: skip
    decisions = outlived(spec, decisions, list(readings.stability.values()), drawn)
    return BlockResult(checked, readings, decisions)


def outlived(spec: ScoringSpec, decisions: Decisions, views: Sequence[Scores], audited: Sequence[bool]) -> Decisions:
    """The decisions that the spec's stability leaves standing; `views` has scores per detector, in the spec's order, of every view."""
    if spec.stability is None:
        return decisions
    return settled(spec.ensemble, decisions, views, calibrations=spec.calibrations, margin=spec.stability.margin, audited=audited)


def audited_among(spec: ScoringSpec, outcomes: Sequence[DecodeResult]) -> list[bool]:
    """Which members the audit of a cascade draws, by their bytes; empty for any other rule."""
    return drawn_by_audit(spec.ensemble, [None if outcome.facts is None else outcome.facts.sha256 for outcome in outcomes])


def going_on(spec: ScoringSpec, outcomes: Sequence[DecodeResult], readings: DetectorOutputs) -> list[int]:
    """The rows, ascending, that all members of a cascade look at; none of other rules. `readings`: at least what the first ones said."""
    first = {name: readings.scores[name] for name in spec.first}
    looks = second_looks(spec.ensemble, first, spec.calibrations, audited_among(spec, outcomes)) or ()
    return [row for row, why in enumerate(looks) if why is not None and outcomes[row].status is Status.OK]


def with_repeated(outcomes: Sequence[DecodeResult], readings: DetectorOutputs) -> DetectorOutputs:
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


def is_blank(flags: Sequence[str] | None) -> bool:
    """Whether an image with these flags shows nothing that could be judged."""
    return "no_content" in (flags or ())


def range_doubts(
    spec: ScoringSpec, sizes: Sequence[tuple[int | None, int | None]], formats: Sequence[str | None]
) -> dict[str, list[str | None]]:
    """Per detector and image (width, height in pixels; format): why the image lies outside the card's valid range, or None.

    Under `IMAGE`, where the ensemble's card knows what its calibration saw: why the image is none of that.
    """
    doubts = {
        name: [None if width is None or height is None else spec.doubt(name, width, height) for width, height in sizes]
        for name in spec.cards
    }
    population = spec.ensemble.population
    if population is None or population.seen is None:
        return doubts
    seen = population.seen
    return {IMAGE: [seen.doubt(format, *size) for format, size in zip(formats, sizes, strict=True)], **doubts}


def _expected(spec: ScoringSpec, size: tuple[int | None, int | None]) -> bool:
    """Whether at least one detector should have given a score for an image of this size."""
    width, height = size
    return width is None or height is None or any(spec.is_scored(name, width, height) for name in spec.first)


def _failure(remarks: Mapping[str, Sequence[str | None]], row: int) -> str:
    said = [f"{name}: {texts[row]}" for name, texts in remarks.items() if texts[row] is not None]
    return "; ".join(["no detector gave a finite score", *said])
