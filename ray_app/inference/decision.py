"""Detector outputs of a block → decisions per image (`judge`), and which generators made them (`identified`). No torch at import."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.attribution import cards, identifier
from ray_app.detectors import fragility
from ray_app.ensembles import Decisions, decide, decision, drawn_by_audit, second_looks
from ray_app.errors import ConfigError, Status
from ray_app.images import ImageFileFacts
from ray_app.inference import batch, stability
from ray_app.inference.outputs import CLEAN, EMBEDDINGS, FAILURES, REPLIES, SCORES, STABILITY, DetectorOutputs, OutputKey, Scores
from ray_app.inference.spec import ScoringSpec


def identified(spec: ScoringSpec, embeddings: Mapping[str, npt.NDArray[np.float32]]) -> identifier.Identified | None:
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
        from ray_app.detectors.linear_head import embedding_facts  # torch: only where there is something to compare

        detector = spec.cards[card.detector]
        found = embedding_facts(detector, precision=spec.precision[card.detector], resize=spec.resize)
        wanted = {key: value for key, value in card.embedding.items() if key != "precision"}
        differing = [key for key, value in wanted.items() if _plain(value) != _plain(found.get(key))]
        if differing or "width" not in wanted:
            differences = (
                "; ".join(f"{key}: fitted on {wanted[key]}, here {found.get(key)}" for key in differing) or "its card states no width"
            )
            raise ConfigError(
                f"{card.name} was fitted on other embeddings of {card.detector}: {differences}",
                hint="train it on this detector, or score with the detector and settings that it was fitted on",
            )


def _plain(fact: Any) -> str:
    return json.dumps(fact, sort_keys=True)


@functools.lru_cache(maxsize=4)
def _head(described: str, folder: Path) -> identifier.Identifier:
    """Read once per process. `described`: the card as JSON."""
    card = cards.IdentifierCard.model_validate_json(described)
    card._folder = folder
    return identifier.Identifier(card)


NO_CONTENT = "no_content"  # the flag of an image that shows nothing
Sizes = Sequence[tuple[int | None, int | None]]  # (width, height) in pixels


def finite(value: float | np.floating[Any]) -> float | None:
    """A number as people and JSON are told it: None where a detector or an ensemble has none (NaN)."""
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class BlockResult:
    """Outcomes, outputs and decisions of some images, in their order; and which generators made them, where somebody was asked.

    `scores`: those of `outputs`, of the images as they are, by detector in the ensemble's order.
    """

    outcomes: list[batch.DecodeResult]
    outputs: DetectorOutputs
    scores: Scores
    decisions: Decisions
    identified: identifier.Identified | None = None


def judge(
    spec: ScoringSpec, outcomes: Sequence[batch.DecodeResult], outputs: DetectorOutputs, clock: batch.StageClock | None = None
) -> BlockResult:
    """Decide on every image, and name generators; an image that decoded, and that no detector could score although it should have,
    becomes `detector_failed`. `clock`: what naming is counted on, as the stage `identify`.
    """
    result = decided_on(spec, outcomes, outputs)
    if spec.identifier is None:
        return result
    with (clock or batch.StageClock())("identify"):
        return replace(result, identified=identified(spec, result.outputs.of(EMBEDDINGS)))


def decided_on(spec: ScoringSpec, outcomes: Sequence[batch.DecodeResult], outputs: DetectorOutputs) -> BlockResult:
    """The same, of verdicts alone."""
    outputs = with_repeated(outcomes, outputs.ranked(spec.cards))
    scores, replies = outputs.of(SCORES), outputs.of(REPLIES)
    remarks = {**outputs.of(FAILURES), **(remarks_on(replies) if replies else {})}
    scored = np.any(np.isfinite(list(scores.values())), axis=0).tolist()
    sizes, formats, blank, checked = [], [], [], list(outcomes)
    for row, outcome in enumerate(outcomes):
        facts = outcome.facts
        sizes.append((None, None) if facts is None else (facts.width, facts.height))
        formats.append(None if facts is None else facts.format)
        blank.append(facts is not None and NO_CONTENT in facts.flags)
        if outcome.status is Status.OK and not scored[row] and _expected(spec, sizes[row]):
            checked[row] = replace(outcome, status=Status.DETECTOR_FAILED, detail=_failure(remarks, row))
    drawn = [] if spec.ensemble.cascade is None else audited_among(spec, checked)
    doubts = range_doubts(spec, sizes, formats, facts_of(spec, [outcome.facts for outcome in outcomes]) if spec.bounded else {})
    decisions = decide(
        spec.ensemble, scores, calibrations=spec.calibrations, out_of_range=doubts, remarks=remarks, audited=drawn, blank=blank
    )
    if spec.stability is not None:
        decisions = outlived(spec, decisions, list(outputs.by_view(STABILITY).values()), drawn)
    return BlockResult(checked, outputs, scores, decisions)


def outlived(spec: ScoringSpec, decisions: Decisions, views: Sequence[Scores], audited: Sequence[bool]) -> Decisions:
    """The decisions that the spec's stability leaves standing; `views` has scores per detector, in the spec's order, of every view."""
    if spec.stability is None:
        return decisions
    return stability.settled(spec.ensemble, decisions, views, calibrations=spec.calibrations, margin=spec.stability.margin, audited=audited)


def audited_among(spec: ScoringSpec, outcomes: Sequence[batch.DecodeResult]) -> list[bool]:
    """Which members the audit of a cascade draws, by their bytes; empty for any other rule."""
    return drawn_by_audit(spec.ensemble, [None if outcome.facts is None else outcome.facts.sha256 for outcome in outcomes])


def second_stage_rows(spec: ScoringSpec, outcomes: Sequence[batch.DecodeResult], outputs: DetectorOutputs) -> list[int]:
    """The rows, ascending, that all members of a cascade look at; none of other rules. `outputs`: at least what the first ones gave."""
    if spec.ensemble.cascade is None:
        return []
    scores = outputs.scores
    first = {name: scores[name] for name in spec.first}
    reasons = second_looks(spec.ensemble, first, spec.calibrations, audited_among(spec, outcomes)) or ()
    return [row for row, why in enumerate(reasons) if why is not None and outcomes[row].status is Status.OK]


def rows_to_describe(spec: ScoringSpec, outcomes: Sequence[batch.DecodeResult], outputs: DetectorOutputs) -> list[int]:
    """The rows, ascending, that the profile wants words for: of what has a score all, or what the ensemble calls fake.

    `outputs`: what all detectors said, recompressed views included.
    """
    profile = spec.ensemble.profile
    if profile is None or spec.describer is None:
        return []
    scored = decided_on(spec, outcomes, outputs)
    return [
        row
        for row, (outcome, verdict) in enumerate(zip(scored.outcomes, scored.decisions.verdict, strict=True))
        if outcome.status is Status.OK and (profile.describe == "all" or verdict == "fake")
    ]


def with_repeated(outcomes: Sequence[batch.DecodeResult], outputs: DetectorOutputs) -> DetectorOutputs:
    """The outputs, with what was said before of those images that no detector has looked at again."""
    repeated = []
    for row, outcome in enumerate(outcomes):
        if outcome.said is not None:
            repeated.append((row, outcome.said))
    if not repeated:
        return outputs
    columns = dict(outputs.columns)
    for name, column in outputs.of(SCORES).items():
        columns[OutputKey(CLEAN, name, SCORES)] = scores = column.copy()
        for row, said in repeated:
            value = said.scores.get(name) if said.twin is None else scores[said.twin]
            scores[row] = np.nan if value is None else value
    for name, column in outputs.of(REPLIES).items():
        columns[OutputKey(CLEAN, name, REPLIES)] = texts = list(column)
        for row, said in repeated:
            texts[row] = said.replies.get(name) if said.twin is None else texts[said.twin]
    return DetectorOutputs(columns)


def remarks_on(replies: Mapping[str, Sequence[str | None]]) -> dict[str, list[str | None]]:
    """What to say of a detector that answered in words but gave no score, per detector and row."""
    return {name: [None if reply is None else f"it replied {reply!r}" for reply in texts] for name, texts in replies.items()}


def is_blank(flags: Sequence[str] | None) -> bool:
    """Whether an image with these flags shows nothing that could be judged."""
    return NO_CONTENT in (flags or ())


def facts_of(spec: ScoringSpec, files: Sequence[ImageFileFacts | None]) -> fragility.Facts:
    """The facts that cards of the spec bound, of each file; None where one is not known."""
    fields = {name: fragility.FACTS[name][0] for name in spec.bounded}
    return {name: [getattr(facts, field, None) for facts in files] for name, field in fields.items()}


def range_doubts(spec: ScoringSpec, sizes: Sizes, formats: Sequence[str | None], facts: fragility.Facts) -> dict[str, list[str | None]]:
    """Per detector and image (width, height in pixels; format; facts that cards bound): why the image lies outside the card's valid
    range or beyond a bound, or None. A detector that judges all of them is left out.

    Under `IMAGE`, where the ensemble's card knows what its calibration saw: why the image is none of that.
    """
    doubts: dict[str, list[str | None]] = {}
    population = spec.ensemble.population
    if population is not None and population.seen is not None:
        doubts[decision.IMAGE] = list(map(population.seen.doubt, formats, *zip(*sizes, strict=True))) if sizes else []
    width, height = np.array(sizes, np.float64).reshape(-1, 2).T  # None becomes NaN, which lies inside of everything
    for name, card in spec.cards.items():
        fits = card.valid_range
        longest = np.inf if fits.max_side_px is None else fits.max_side_px
        largest = np.inf if fits.max_megapixels is None else fits.max_megapixels * 1e6
        beyond = (np.minimum(width, height) < fits.min_side_px) | (np.maximum(width, height) > longest) | (width * height > largest)
        outside = {row: fits.doubt(int(width[row]), int(height[row])) for row in np.flatnonzero(beyond).tolist()}
        outside = {**card.fragility.doubts(facts), **outside} if card.fragility.abstains else outside
        if outside:
            doubts[name] = [None] * len(sizes)
        for row, why in outside.items():
            doubts[name][row] = why
    return doubts


def _expected(spec: ScoringSpec, size: tuple[int | None, int | None]) -> bool:
    """Whether at least one detector should have given a score for an image of this size."""
    width, height = size
    return width is None or height is None or any(spec.is_scored(name, width, height) for name in spec.first)


def _failure(remarks: Mapping[str, Sequence[str | None]], row: int) -> str:
    replies = [f"{name}: {texts[row]}" for name, texts in remarks.items() if texts[row] is not None]
    return "; ".join(["no detector gave a finite score", *replies])
