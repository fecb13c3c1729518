"""Turn the outputs of detectors (`DetectorOutputs`) into a verdict on each image (`judge`).

`DetectorOutputs` is a table with one row per image. A column is identified by the view of the image
(unchanged, or after one perturbation), the detector, and the kind of output, such as `scores`. Each
field of `detectors.detector.BatchPrediction` is a kind, so a new field needs no code here.
Importing this module does not import torch.
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
    find_origin,
    list_second_stage_reasons,
    select_audited,
)
from ray_app.errors import ConfigError, Status
from ray_app.identification import cards, identifier
from ray_app.identification.captions import Caption
from ray_app.images import ImageFileFacts
from ray_app.inference import batch
from ray_app.inference.spec import ScoringSpec

Scores = dict[str, npt.NDArray[np.float32]]

CLEAN = ""  # The view of an unchanged image.
# These kinds are the fields of a `BatchPrediction`.
SCORES, MASKS, REPLIES, EMBEDDINGS = "scores", "masks", "replies", "embeddings"
FAILURES = "failures"  # A kind: the reason for a missing score, if the detector states it.
CAPTIONS = "captions"  # A kind: the captions of a describer.
# Columns of these kinds are lists with one object per image, or None. Columns of all other kinds
# are float32 arrays, with NaN for a missing value.
LISTS = (MASKS, REPLIES, CAPTIONS, FAILURES)


class OutputKey(NamedTuple):
    """The key of a column in `DetectorOutputs`.

    Attributes:
        view: The name of the perturbation of the image. `CLEAN`, which is "", is the unchanged
            image.
        detector: The name of the detector, or of the describer that writes captions.
        kind: The kind of output, such as `scores` or `masks`.
    """

    view: str
    detector: str
    kind: str


@dataclass(frozen=True)
class DetectorOutputs:
    """The outputs of detectors, as columns with one entry per image.

    All columns have the images in the same order.

    A column belongs to a detector, a view, and a kind of output. A view is the unchanged image
    (`CLEAN`), or the image after one perturbation. The kinds are:

    - `scores`: log-odds of fake, float32 of shape (n,);
    - `embeddings`: float32 of shape (n, d);
    - `masks`: one (H, W) uint8 array per image, in which 255 means surely altered;
    - `replies`: one text per image, from detectors that reply with text;
    - `captions`: one `Caption` per image;
    - `failures`: for each image, the reason for a missing score, or None.
    """

    columns: Mapping[OutputKey, Any] = field(default_factory=dict)

    @classmethod
    def clean(cls, **kinds: Mapping[str, Any]) -> "DetectorOutputs":
        """Create outputs for unchanged images.

        Each keyword is a kind of output, such as `scores`. Its value is a dict with one column per
        detector. An example is `DetectorOutputs.clean(scores={"name": column})`.
        """
        return cls(
            {
                OutputKey(CLEAN, name, kind): column
                for kind, columns in kinds.items()
                for name, column in columns.items()
            }
        )

    def get(self, kind: str, view: str = CLEAN) -> dict[str, Any]:
        """Return the columns of one kind of output, such as `scores`, by detector.

        Args:
            kind: The kind of output.
            view: The name of a perturbation. The default is the unchanged image.

        Returns:
            The columns. Empty if no detector has this output.
        """
        columns = {}
        for key, column in self.columns.items():
            if key.kind == kind and key.view == view:
                columns[key.detector] = column
        return columns

    def by_view(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the outputs of one kind for perturbed images, without those of unchanged images.

        Args:
            kind: The kind of output, such as `scores`.

        Returns:
            By perturbation and then by detector, the column of outputs, one for each image.
        """
        columns: dict[str, dict[str, Any]] = {}
        for key, column in self.columns.items():
            if key.kind == kind and key.view != CLEAN:
                columns.setdefault(key.view, {})[key.detector] = column
        return columns

    @property
    def scores(self) -> Scores:
        """The log-odds of fake of the unchanged images, by detector. NaN is a missing score."""
        return self.get(SCORES)

    @property
    def captions(self) -> Sequence[Caption | None]:
        """The caption of each image, which is a guess at its prompt. None for no caption.

        Empty if no describer, the model that writes captions, has run.
        """
        return next(iter(self.get(CAPTIONS).values()), ())

    def merge(self, other: "DetectorOutputs") -> "DetectorOutputs":
        """Return the columns of both outputs together. Both must be for the same images."""
        return DetectorOutputs({**self.columns, **other.columns})

    def among(self, names: Collection[str]) -> "DetectorOutputs":
        """Return only the columns of the detectors in `names`, and the captions."""
        return DetectorOutputs(
            {
                key: column
                for key, column in self.columns.items()
                if key.detector in names or key.kind == CAPTIONS
            }
        )

    def select_scores(self, names: Iterable[str]) -> "DetectorOutputs":
        """Return the outputs with scores of only the detectors in `names`, in that order.

        Other kinds of outputs, such as masks, are returned for all detectors.

        Raises:
            KeyError: A detector has no scores.
        """
        columns = {}
        for key, column in self.columns.items():
            if key.kind != SCORES:
                columns[key] = column
                continue
            for name in names:
                ordered = OutputKey(key.view, name, key.kind)
                columns[ordered] = self.columns[ordered]
        return DetectorOutputs(columns)

    def sort(self, names: Iterable[str], views: Iterable[str]) -> "DetectorOutputs":
        """Return the columns in the order of `views`, and within a view in the order of `names`.

        The unchanged images come first. Use this after `merge`, so that the order does not depend
        on which process ran which detector.

        Args:
            names: The names of the detectors.
            views: The names of the perturbations.

        Returns:
            The outputs with the same columns, sorted.
        """
        detector_ranks = {name: rank for rank, name in enumerate(names)}
        view_ranks = {view: rank for rank, view in enumerate([CLEAN, *views])}
        ordered = sorted(
            self.columns.items(),
            key=lambda item: (view_ranks[item[0].view], detector_ranks[item[0].detector]),
        )
        return DetectorOutputs(dict(ordered))

    def rows(self, rows: slice) -> "DetectorOutputs":
        """Return the outputs for the images in a slice of rows."""
        return DetectorOutputs({key: column[rows] for key, column in self.columns.items()})

    def spread(self, rows: Sequence[int], count: int) -> "DetectorOutputs":
        """Return a table of `count` rows, in which entry i of each column is at `rows[i]`.

        All other rows have no value. Use this to merge outputs of some images, such as those of a
        second stage, with outputs of all images.
        """
        columns = {}
        for key, column in self.columns.items():
            wide = blank(key.kind, count, np.shape(column)[1:] if key.kind not in LISTS else ())
            for index, row in enumerate(rows):
                wide[row] = column[index]
            columns[key] = wide
        return DetectorOutputs(columns)

    def without(self, rows: Collection[int]) -> "DetectorOutputs":
        """Return the outputs with masks, replies, captions, and failures set to None at `rows`.

        Use it for images whose status is no longer `ok`. Scores at `rows` stay, but the result row
        of such an image leaves them out. Embeddings also stay. They are stored apart from the rows.
        """
        return DetectorOutputs({
            key: [None if row in rows else item for row, item in enumerate(column)] if key.kind in LISTS else column
            for key, column in self.columns.items()
        })  # fmt: skip

    @staticmethod
    def concatenate(parts: Sequence["DetectorOutputs"]) -> "DetectorOutputs":
        """Concatenate outputs for different images, which must have the same columns."""
        if len(parts) == 1:
            return parts[0]
        return DetectorOutputs({
            key: [item for part in parts for item in part.columns[key]]
            if key.kind in LISTS
            else np.concatenate([part.columns[key] for part in parts])
            for key in parts[0].columns
        })  # fmt: skip


def blank(kind: str, count: int, shape: Sequence[int] = ()) -> Any:
    """Create a column without values: a list of None, or an array of NaN.

    Args:
        kind: The kind of output, which decides between list and array.
        count: The number of images.
        shape: The shape of the value of one image in an array, () for a number.
    """
    return [None] * count if kind in LISTS else np.full((count, *shape), np.nan, np.float32)


def identified(
    spec: ScoringSpec, embeddings: Mapping[str, npt.NDArray[np.float32]]
) -> identifier.Identified | None:
    """Predict with which generator each image was made.

    The prediction is that of the identifier, a model that reads the embeddings of one detector. The
    card of the ensemble may name an identifier.

    Args:
        spec: The spec of the whole ensemble.
        embeddings: The embeddings (n, d) of the images, by detector.

    Returns:
        The predictions for all images. None if the ensemble has no identifier, or if `embeddings`
        lacks the detector whose embeddings the identifier reads.

    Raises:
        DetectorError: The weights of the identifier are missing.
    """
    card = spec.identifier
    if card is None or card.detector not in embeddings:
        return None
    return _load_identifier(card.model_dump_json(), card.folder).identify(embeddings[card.detector])


def require_embeddings(spec: ScoringSpec) -> None:
    """Check that an ensemble's identifier and describer fit the embeddings that they will read.

    The identifier predicts the generator of an image, and the describer its prompt. Both may read
    the embeddings of a detector. They must have been fitted on embeddings with the detector and
    settings of the spec. Embeddings in bf16 and in fp32, and of both resize modes, are treated as
    equal.

    Raises:
        ConfigError: The embeddings differ. The message lists the differences.
        DetectorError: Weights are missing, or a detector has no embedding.
    """
    for card in (spec.identifier, spec.describer):
        if card is None or card.detector is None:
            continue
        # This imports torch, so import it only if there is something to compare.
        from ray_app.detectors.linear_head import embedding_facts

        detector = spec.cards[card.detector]
        actual = embedding_facts(
            detector,
            precision=spec.precision[card.detector],
            resize=spec.choose_resize(card.detector),
        )
        expected = {
            key: value
            for key, value in card.embedding.items()
            if key not in ("precision", "resize")
        }
        differing = [
            key for key, value in expected.items() if _plain(value) != _plain(actual.get(key))
        ]
        if differing or "width" not in expected:
            differences = (
                "; ".join(
                    f"{key}: fitted on {expected[key]}, now {actual.get(key)}" for key in differing
                )
                or "the card does not record their width"
            )
            raise ConfigError(
                f"{card.name} was fitted on other embeddings of {card.detector}: {differences}",
                hint=f"train {card.name} on this detector, or score with the detector and settings that it was fitted on",
            )


def _plain(fact: Any) -> str:
    return json.dumps(fact, sort_keys=True)


@functools.lru_cache(maxsize=4)
def _load_identifier(card_json: str, folder: Path) -> identifier.Identifier:
    """Load an identifier, once per process. `card_json` is its card as JSON."""
    card = cards.IdentifierCard.model_validate_json(card_json)
    card._folder = folder
    return identifier.Identifier(card)


NO_CONTENT = "no_content"  # The flag of an image without content, such as a blank page.
Sizes = Sequence[tuple[int | None, int | None]]  # Width and height in pixels.


def finite(value: float | np.floating[Any]) -> float | None:
    """Return a number for JSON. A missing score, which is NaN, becomes None."""
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class BlockResult:
    """The results of scoring a sequence of images. All attributes have the order of the images.

    Attributes:
        outcomes: The decoding result of each image.
        outputs: The outputs of the detectors.
        scores: The scores of the unchanged images in `outputs`, by detector in the order of the
            ensemble.
        decisions: The verdicts of the ensemble, with their reasons, scores, and probabilities.
        identified: The generators of the images. None if the spec has no identifier.
        thresholds: The thresholds that the ensemble decides with.
    """

    outcomes: list[batch.DecodeResult]
    outputs: DetectorOutputs
    scores: Scores
    decisions: Decisions
    identified: identifier.Identified | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def findings(self) -> list[Finding]:
        """The finding for each image: the conclusion on its origin, with the evidence for it.

        The evidence is the verdict, and what the file states about its origin. If an image has no
        score, the only evidence is what its file states.
        """
        verdicts = [
            verdict if outcome.status is Status.OK else None
            for outcome, verdict in zip(self.outcomes, self.decisions.verdict, strict=True)
        ]
        return [
            find_origin(outcome.provenance, verdict, self.thresholds)
            for outcome, verdict in zip(self.outcomes, verdicts, strict=True)
        ]


def judge(
    spec: ScoringSpec,
    outcomes: Sequence[batch.DecodeResult],
    outputs: DetectorOutputs,
    clock: Callable[[str], AbstractContextManager[None]] | None = None,
    *,
    names: bool = True,
) -> BlockResult:
    """Decide from the detectors' outputs whether each image is fake, and predict its generator.

    The status of a decoded image becomes `detector_failed` if no detector gave a score. The status
    stays `ok` if the image is outside the sizes that the detectors score.

    Args:
        spec: The spec that the images were scored with.
        outcomes: The decoding result of each image.
        outputs: The outputs of the detectors.
        clock: Measures the time for identifying generators as the stage `identify`. None for no
            measurement.
        names: Whether to predict the names of generators. Ignored if the ensemble has no
            identifier.

    Returns:
        The outcomes with changed statuses, the outputs, the decisions, and the generators.
    """
    scores = outputs.get(SCORES)
    if list(scores) != list(spec.cards):
        outputs = outputs.select_scores(spec.cards)
    sizes, formats, blank, checked = [], [], [], list(outcomes)
    for outcome in outcomes:
        facts = outcome.facts
        sizes.append((None, None) if facts is None else (facts.width, facts.height))
        formats.append(None if facts is None else facts.format)
        blank.append(facts is not None and NO_CONTENT in facts.flags)
    scores, replies = outputs.get(SCORES), outputs.get(REPLIES)
    remarks = {**outputs.get(FAILURES), **(describe_replies(replies) if replies else {})}
    scored = np.any(np.isfinite(list(scores.values())), axis=0).tolist()
    for row, outcome in enumerate(outcomes):
        if outcome.status is Status.OK and not scored[row] and _is_score_expected(spec, sizes[row]):
            checked[row] = replace(
                outcome, status=Status.DETECTOR_FAILED, detail=_describe_failure(remarks, row)
            )
    audited = [] if spec.ensemble.cascade is None else find_audited_members(spec, checked)
    out_of_range = describe_range_violations(
        spec,
        sizes,
        formats,
        collect_bounded_facts(spec, [outcome.facts for outcome in outcomes])
        if spec.bounded
        else {},
    )
    decisions = decide(
        spec.ensemble,
        scores,
        calibrations=spec.calibrations,
        out_of_range=out_of_range,
        remarks=remarks,
        audited=audited,
        blank=blank,
    )
    generators = None
    if spec.identifier is not None and names:
        with nullcontext() if clock is None else clock("identify"):
            generators = identified(spec, outputs.get(EMBEDDINGS))
    return BlockResult(checked, outputs, scores, decisions, generators, spec.ensemble.thresholds)


def find_audited_members(spec: ScoringSpec, outcomes: Sequence[batch.DecodeResult]) -> list[bool]:
    """Return for each image whether the audit of a cascade selects it.

    The second stage of a cascade scores the images that its first stage leaves undecided. To check
    the first stage, it also scores a random sample of all images, the audit. The hash of a file
    decides whether it is in the sample.

    Args:
        spec: The spec of the whole ensemble.
        outcomes: The decoding result of each image.

    Returns:
        One bool per image. Empty if the ensemble is not a cascade.
    """
    return select_audited(
        spec.ensemble,
        [None if outcome.facts is None else outcome.facts.sha256 for outcome in outcomes],
    )


def second_stage_rows(
    spec: ScoringSpec, outcomes: Sequence[batch.DecodeResult], outputs: DetectorOutputs
) -> list[int]:
    """Return the positions of the images that the second stage of a cascade must score.

    They are the images that the first stage leaves undecided, and those that the audit selects as a
    check. An image without a first-stage score is not among them.

    Args:
        spec: The spec of the whole ensemble.
        outcomes: The decoding result of each image.
        outputs: At least the outputs of the first stage.

    Returns:
        Indices into `outcomes`, ascending. Empty if the ensemble is not a cascade.
    """
    if spec.ensemble.cascade is None:
        return []
    scores = outputs.scores
    first = {name: scores[name] for name in spec.first}
    reasons = (
        list_second_stage_reasons(
            spec.ensemble, first, spec.calibrations, find_audited_members(spec, outcomes)
        )
        or ()
    )
    return [
        row
        for row, reason in enumerate(reasons)
        if reason is not None and outcomes[row].status is Status.OK
    ]


def rows_to_describe(
    spec: ScoringSpec, outcomes: Sequence[batch.DecodeResult], outputs: DetectorOutputs
) -> list[int]:
    """Return the positions of the images that get a caption, which is a guess at their prompt.

    The card of the ensemble requests captions either for all images with a score, or only for the
    images with the verdict `fake`.

    Args:
        spec: The spec of the whole ensemble.
        outcomes: The decoding result of each image.
        outputs: The outputs of all detectors.

    Returns:
        Indices into `outcomes`, ascending. Empty if the ensemble requests no captions.
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


def describe_replies(replies: Mapping[str, Sequence[str | None]]) -> dict[str, list[str | None]]:
    """Turn replies of detectors that gave no score into remarks, which quote the replies.

    A remark explains the missing score of one image. It is None if there is no reply.

    Args:
        replies: For each detector, the reply for each image, or None.

    Returns:
        For each detector, the remark for each image.
    """
    return {
        name: [None if reply is None else f"it replied {reply!r}" for reply in column]
        for name, column in replies.items()
    }


def is_blank(flags: Sequence[str] | None) -> bool:
    """Return whether an image has no content to judge, such as a blank page.

    `flags` are the flags of its `ImageFileFacts`. None counts as no flags.
    """
    return NO_CONTENT in (flags or ())


def collect_bounded_facts(
    spec: ScoringSpec, files: Sequence[ImageFileFacts | None]
) -> card_sections.Facts:
    """Collect the facts of images on which a detector's decision to abstain depends.

    The card of a detector can set bounds on facts, such as `jpeg_quality`. The detector abstains on
    an image beyond a bound.

    Args:
        spec: The spec of the whole ensemble.
        files: The facts of each file. None if they are unknown.

    Returns:
        For each fact that a card bounds, its value for each file. None for an unknown value.
    """
    fields = {name: card_sections.FACTS[name][0] for name in spec.bounded}
    return {
        name: [getattr(facts, field, None) for facts in files] for name, field in fields.items()
    }


def describe_range_violations(
    spec: ScoringSpec, sizes: Sizes, formats: Sequence[str | None], facts: card_sections.Facts
) -> dict[str, list[str | None]]:
    """Describe for each detector why images are out of the range that the detector can judge.

    The card of a detector states a valid range of image sizes. It may also set bounds on facts of
    an image, such as its texture. An image outside the range or beyond a bound is out of range.

    Args:
        spec: The spec of the whole ensemble.
        sizes: Width and height of each image in pixels.
        formats: The format of each image.
        facts: The facts from `collect_bounded_facts`.

    Returns:
        By detector, the reason for each image, or None for an image in range. A detector for which
        all images are in range is left out. If the card of the ensemble records the sizes and
        formats of its calibration images, there is also the key `IMAGE`. It has the reason why each
        image differs from the calibration images, or None.
    """
    reasons: dict[str, list[str | None]] = {}
    population = spec.ensemble.population
    if population is not None and population.seen is not None:
        reasons[decision.IMAGE] = (
            list(map(population.seen.describe_mismatch, formats, *zip(*sizes, strict=True)))
            if sizes
            else []
        )
    # None becomes NaN, which compares as inside every range.
    width, height = np.array(sizes, np.float64).reshape(-1, 2).T
    for name, card in spec.cards.items():
        valid_range = card.valid_range
        max_side_px = np.inf if valid_range.max_side_px is None else valid_range.max_side_px
        max_pixels = (
            np.inf if valid_range.max_megapixels is None else valid_range.max_megapixels * 1e6
        )
        is_outside = (
            (np.minimum(width, height) < valid_range.min_side_px)
            | (np.maximum(width, height) > max_side_px)
            | (width * height > max_pixels)
        )
        reasons_by_row: dict[int, str | None] = (
            dict(card.fragility.describe_mismatches(facts)) if card.fragility.abstains else {}
        )
        for row in np.flatnonzero(is_outside).tolist():
            reasons_by_row[row] = valid_range.describe_mismatch(int(width[row]), int(height[row]))
        if reasons_by_row:
            reasons[name] = [reasons_by_row.get(row) for row in range(len(sizes))]
    return reasons


def _is_score_expected(spec: ScoringSpec, size: tuple[int | None, int | None]) -> bool:
    """Return whether at least one detector should score an image of this size."""
    width, height = size
    return (
        width is None
        or height is None
        or any(spec.is_scored(name, width, height) for name in spec.first)
    )


def _describe_failure(remarks: Mapping[str, Sequence[str | None]], row: int) -> str:
    replies = [
        f"{name}: {column[row]}" for name, column in remarks.items() if column[row] is not None
    ]
    return "; ".join(["no detector gave a finite score", *replies])
