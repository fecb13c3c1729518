"""What detectors said of the images of a block (`DetectorOutputs`) → decisions per image (`judge`),
and which generators made them (`identified`). No torch at import.

The outputs of detectors and of a describer are one table of columns, keyed by view, detector and
kind. A new kind needs nothing here: a field of `detectors.detector.BatchPrediction` is kept under
its name.
"""

import functools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ray_app.detectors import card_sections
from ray_app.ensembles import (
    Decisions,
    Finding,
    Thresholds,
    decide,
    decision,
    drawn_by_audit,
    find,
    second_looks,
)
from ray_app.errors import ConfigError, Status
from ray_app.identification import cards, identifier
from ray_app.identification.captions import Caption
from ray_app.images import ImageFileFacts
from ray_app.inference import batch
from ray_app.inference.spec import ScoringSpec

Scores = dict[str, npt.NDArray[np.float32]]

CLEAN = ""  # the view of an image as it is
# kinds: the fields of a `BatchPrediction`
SCORES, MASKS, REPLIES, EMBEDDINGS = "scores", "masks", "replies", "embeddings"
FAILURES = "failures"  # a kind: why a detector gave no score, of one that says so
CAPTIONS = "captions"  # a kind: what a describer says
# kinds that are one object per image, None = none; all others are float32 arrays, NaN = none
LISTS = (MASKS, REPLIES, CAPTIONS, FAILURES)


class OutputKey(NamedTuple):
    """Which column: the view's name (`CLEAN`: the image as it is), the name of the detector or
    describer, the kind of output.
    """

    view: str
    detector: str
    kind: str


@dataclass(frozen=True)
class DetectorOutputs:
    """What was found of some images, in their order; every column has one entry per image.

    By kind: `scores` (n,) float32 log-odds of fake; `embeddings` (n, d) float32; `masks` one (H, W)
    uint8 each, 255 = surely altered; `replies` one text each, of detectors that answer in words;
    `captions` one `Caption` each.
    """

    columns: Mapping[OutputKey, Any] = field(default_factory=dict)

    @classmethod
    def clean(cls, **kinds: Mapping[str, Any]) -> "DetectorOutputs":
        """Columns of images as they are, by kind and detector."""
        return cls(
            {
                OutputKey(CLEAN, name, kind): column
                for kind, columns in kinds.items()
                for name, column in columns.items()
            }
        )

    def of(self, kind: str, view: str = CLEAN) -> dict[str, Any]:
        """The columns of one kind and view, by detector."""
        found = {}
        for key, column in self.columns.items():
            if key.kind == kind and key.view == view:
                found[key.detector] = column
        return found

    def by_view(self, kind: str) -> dict[str, dict[str, Any]]:
        """The columns of one kind in every view but the clean one, by the view's name and by
        detector.
        """
        found: dict[str, dict[str, Any]] = {}
        for key, column in self.columns.items():
            if key.kind == kind and key.view != CLEAN:
                found.setdefault(key.view, {})[key.detector] = column
        return found

    @property
    def scores(self) -> Scores:
        """The scores of the images as they are, by detector."""
        return self.of(SCORES)

    @property
    def captions(self) -> Sequence[Caption | None]:
        """What a describer says, None = nothing; empty where none was asked."""
        return next(iter(self.of(CAPTIONS).values()), ())

    def joined(self, other: "DetectorOutputs") -> "DetectorOutputs":
        """Both, of the same images."""
        return DetectorOutputs({**self.columns, **other.columns})

    def among(self, names: Collection[str]) -> "DetectorOutputs":
        """The columns of some detectors, and captions."""
        return DetectorOutputs(
            {
                key: column
                for key, column in self.columns.items()
                if key.detector in names or key.kind == CAPTIONS
            }
        )

    def ranked(self, names: Iterable[str]) -> "DetectorOutputs":
        """Scores of these detectors alone, in this order; all else as it is. Raises KeyError where
        a detector has no scores.
        """
        columns = {}
        for key, column in self.columns.items():
            if key.kind != SCORES:
                columns[key] = column
                continue
            for name in names:
                ranked = OutputKey(key.view, name, key.kind)
                columns[ranked] = self.columns[ranked]
        return DetectorOutputs(columns)

    def in_order(self, names: Iterable[str], views: Iterable[str]) -> "DetectorOutputs":
        """The columns as detectors of these names give them who are asked together: view after
        view, and in each by name.
        """
        places = {name: place for place, name in enumerate(names)}
        shown = {view: place for place, view in enumerate([CLEAN, *views])}
        ordered = sorted(
            self.columns.items(), key=lambda item: (shown[item[0].view], places[item[0].detector])
        )
        return DetectorOutputs(dict(ordered))

    def rows(self, rows: slice) -> "DetectorOutputs":
        """What was found of some of the images."""
        return DetectorOutputs({key: column[rows] for key, column in self.columns.items()})

    def spread(self, rows: Sequence[int], count: int) -> "DetectorOutputs":
        """These columns at `rows` (one per image) of `count` images; of the others nothing was
        found.
        """
        columns = {}
        for key, column in self.columns.items():
            wide = blank(key.kind, count, np.shape(column)[1:] if key.kind not in LISTS else ())
            for place, row in enumerate(rows):
                wide[row] = column[place]
            columns[key] = wide
        return DetectorOutputs(columns)

    def without(self, rows: Collection[int]) -> "DetectorOutputs":
        """The same without objects of some images; their numbers stay, since those of an image
        without a score stand in no row.
        """
        return DetectorOutputs({
            key: [None if row in rows else one for row, one in enumerate(column)] if key.kind in LISTS else column
            for key, column in self.columns.items()
        })  # fmt: skip

    @staticmethod
    def chained(parts: Sequence["DetectorOutputs"]) -> "DetectorOutputs":
        """The same columns of some images, then of others."""
        if len(parts) == 1:
            return parts[0]
        return DetectorOutputs({
            key: [one for part in parts for one in part.columns[key]]
            if key.kind in LISTS
            else np.concatenate([part.columns[key] for part in parts])
            for key in parts[0].columns
        })  # fmt: skip


def blank(kind: str, count: int, shape: Sequence[int] = ()) -> Any:
    """A column of one kind in which nothing was found; `shape`: of one image's numbers."""
    return [None] * count if kind in LISTS else np.full((count, *shape), np.nan, np.float32)


def identified(
    spec: ScoringSpec, embeddings: Mapping[str, npt.NDArray[np.float32]]
) -> identifier.Identified | None:
    """What the spec's identifier says of all members; None where it has none, or where its
    detector's embeddings were not kept.

    Raises DetectorError where its weights are missing.
    """
    card = spec.identifier
    if card is None or card.detector not in embeddings:
        return None
    return _head(card.model_dump_json(), card.folder).identify(embeddings[card.detector])


def require_embeddings(spec: ScoringSpec) -> None:
    """Whether the profile's cards were fitted on the embeddings that the spec's detectors leave;
    numbers in bf16 stand for those in fp32.

    Raises ConfigError that says what differs, DetectorError where weights are missing or a detector
    leaves no embedding.
    """
    for card in (spec.identifier, spec.describer):
        if card is None or card.detector is None:
            continue
        # torch: only where there is something to compare
        from ray_app.detectors.linear_head import embedding_facts

        detector = spec.cards[card.detector]
        found = embedding_facts(
            detector, precision=spec.precision[card.detector], resize=spec.resize
        )
        wanted = {key: value for key, value in card.embedding.items() if key != "precision"}
        differing = [
            key for key, value in wanted.items() if _plain(value) != _plain(found.get(key))
        ]
        if differing or "width" not in wanted:
            differences = (
                "; ".join(
                    f"{key}: fitted on {wanted[key]}, here {found.get(key)}" for key in differing
                )
                or "its card states no width"
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
    """A number for JSON: None in place of NaN, which says that a detector or an ensemble has none."""
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class BlockResult:
    """Outcomes, outputs and decisions of some images, in their order; and which generators made
    them, where somebody was asked.

    `scores`: those of `outputs`, of the images as they are, by detector in the ensemble's order.
    `thresholds`: the ensemble's.
    """

    outcomes: list[batch.DecodeResult]
    outputs: DetectorOutputs
    scores: Scores
    decisions: Decisions
    identified: identifier.Identified | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def findings(self) -> list[Finding]:
        """What all that is known of each image comes to; of one without a score, what its file
        says. A bug of ours is raised.
        """
        verdicts = [
            verdict if one.status is Status.OK else None
            for one, verdict in zip(self.outcomes, self.decisions.verdict, strict=True)
        ]
        return [
            find(one.provenance, verdict, self.thresholds)
            for one, verdict in zip(self.outcomes, verdicts, strict=True)
        ]


def judge(
    spec: ScoringSpec,
    outcomes: Sequence[batch.DecodeResult],
    outputs: DetectorOutputs,
    clock: Callable[[str], AbstractContextManager[None]] | None = None,
    *,
    names: bool = True,
) -> BlockResult:
    """Decide on every image, and name generators where the spec has an identifier and `names` is
    set; an image that decoded, and that no detector could score although it should have, becomes
    `detector_failed`. `clock`: counts the naming, as the stage `identify`.
    """
    scores = outputs.of(SCORES)
    if list(scores) != list(spec.cards):
        outputs = outputs.ranked(spec.cards)
    sizes, formats, blank, checked = [], [], [], list(outcomes)
    for outcome in outcomes:
        facts = outcome.facts
        sizes.append((None, None) if facts is None else (facts.width, facts.height))
        formats.append(None if facts is None else facts.format)
        blank.append(facts is not None and NO_CONTENT in facts.flags)
    scores, replies = outputs.of(SCORES), outputs.of(REPLIES)
    remarks = {**outputs.of(FAILURES), **(remarks_on(replies) if replies else {})}
    scored = np.any(np.isfinite(list(scores.values())), axis=0).tolist()
    for row, outcome in enumerate(outcomes):
        if outcome.status is Status.OK and not scored[row] and _expected(spec, sizes[row]):
            checked[row] = replace(
                outcome, status=Status.DETECTOR_FAILED, detail=_failure(remarks, row)
            )
    drawn = [] if spec.ensemble.cascade is None else audited_among(spec, checked)
    doubts = range_doubts(
        spec,
        sizes,
        formats,
        facts_of(spec, [outcome.facts for outcome in outcomes]) if spec.bounded else {},
    )
    decisions = decide(
        spec.ensemble,
        scores,
        calibrations=spec.calibrations,
        out_of_range=doubts,
        remarks=remarks,
        audited=drawn,
        blank=blank,
    )
    named = None
    if spec.identifier is not None and names:
        with nullcontext() if clock is None else clock("identify"):
            named = identified(spec, outputs.of(EMBEDDINGS))
    return BlockResult(checked, outputs, scores, decisions, named, spec.ensemble.thresholds)


def audited_among(spec: ScoringSpec, outcomes: Sequence[batch.DecodeResult]) -> list[bool]:
    """Which members the audit of a cascade draws, by their bytes; empty for any other rule."""
    return drawn_by_audit(
        spec.ensemble,
        [None if outcome.facts is None else outcome.facts.sha256 for outcome in outcomes],
    )


def second_stage_rows(
    spec: ScoringSpec, outcomes: Sequence[batch.DecodeResult], outputs: DetectorOutputs
) -> list[int]:
    """The rows, ascending, that all members of a cascade look at; none of other rules. `outputs`:
    at least what the first ones gave.
    """
    if spec.ensemble.cascade is None:
        return []
    scores = outputs.scores
    first = {name: scores[name] for name in spec.first}
    reasons = (
        second_looks(spec.ensemble, first, spec.calibrations, audited_among(spec, outcomes)) or ()
    )
    return [
        row
        for row, why in enumerate(reasons)
        if why is not None and outcomes[row].status is Status.OK
    ]


def rows_to_describe(
    spec: ScoringSpec, outcomes: Sequence[batch.DecodeResult], outputs: DetectorOutputs
) -> list[int]:
    """The rows, ascending, that the profile wants words for: of what has a score all, or what the
    ensemble calls fake.

    `outputs`: what all detectors said.
    """
    profile = spec.ensemble.profile
    if profile is None or spec.describer is None:
        return []
    scored = judge(spec, outcomes, outputs, names=False)
    return [
        row
        for row, (outcome, verdict) in enumerate(
            zip(scored.outcomes, scored.decisions.verdict, strict=True)
        )
        if outcome.status is Status.OK and (profile.describe == "all" or verdict == "fake")
    ]


def remarks_on(replies: Mapping[str, Sequence[str | None]]) -> dict[str, list[str | None]]:
    """What to say of a detector that answered in words but gave no score, per detector and row."""
    return {
        name: [None if reply is None else f"it replied {reply!r}" for reply in texts]
        for name, texts in replies.items()
    }


def is_blank(flags: Sequence[str] | None) -> bool:
    """Whether an image with these flags shows nothing that could be judged."""
    return NO_CONTENT in (flags or ())


def facts_of(spec: ScoringSpec, files: Sequence[ImageFileFacts | None]) -> card_sections.Facts:
    """The facts that cards of the spec bound, of each file; None where one is not known."""
    fields = {name: card_sections.FACTS[name][0] for name in spec.bounded}
    return {
        name: [getattr(facts, field, None) for facts in files] for name, field in fields.items()
    }


def range_doubts(
    spec: ScoringSpec, sizes: Sizes, formats: Sequence[str | None], facts: card_sections.Facts
) -> dict[str, list[str | None]]:
    """Per detector and image (width, height in pixels; format; facts that cards bound): why the
    image lies outside the card's valid range or beyond a bound, or None. A detector that judges all
    of them is left out.

    Under `IMAGE`, where the ensemble's card knows what its calibration saw: why the image is none
    of that.
    """
    doubts: dict[str, list[str | None]] = {}
    population = spec.ensemble.population
    if population is not None and population.seen is not None:
        doubts[decision.IMAGE] = (
            list(map(population.seen.doubt, formats, *zip(*sizes, strict=True))) if sizes else []
        )
    # None becomes NaN, which lies inside of everything
    width, height = np.array(sizes, np.float64).reshape(-1, 2).T
    for name, card in spec.cards.items():
        fits = card.valid_range
        longest = np.inf if fits.max_side_px is None else fits.max_side_px
        largest = np.inf if fits.max_megapixels is None else fits.max_megapixels * 1e6
        beyond = (
            (np.minimum(width, height) < fits.min_side_px)
            | (np.maximum(width, height) > longest)
            | (width * height > largest)
        )
        outside: dict[int, str | None] = (
            dict(card.fragility.doubts(facts)) if card.fragility.abstains else {}
        )
        for row in np.flatnonzero(beyond).tolist():
            outside[row] = fits.doubt(int(width[row]), int(height[row]))
        if outside:
            doubts[name] = [outside.get(row) for row in range(len(sizes))]
    return doubts


def _expected(spec: ScoringSpec, size: tuple[int | None, int | None]) -> bool:
    """Whether at least one detector should have given a score for an image of this size."""
    width, height = size
    return (
        width is None
        or height is None
        or any(spec.is_scored(name, width, height) for name in spec.first)
    )


def _failure(remarks: Mapping[str, Sequence[str | None]], row: int) -> str:
    replies = [f"{name}: {texts[row]}" for name, texts in remarks.items() if texts[row] is not None]
    return "; ".join(["no detector gave a finite score", *replies])
