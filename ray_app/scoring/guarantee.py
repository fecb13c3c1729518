"""Compare the archive of a run with the images that its ensemble was calibrated on.

The guarantee of an ensemble, a maximum false-positive rate, holds only for similar images.
`count_archive` counts the images of a run by property. `compare` compares these counts with those
of the calibration. `decide_rows` computes new verdicts from stored scores.

Differences are reported. If a difference is beyond a limit, every reader of the run returns the
verdict `abstain` (`runs.current.mark_unlike`). One difference cannot be found without labels: if
real images of a new kind get high scores, the archive only seems to contain more fakes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.ensembles import (
    EnsembleCard,
    PopulationTally,
    compute_properties,
    decide,
    select_audited,
)
from ray_app.inference import ScoringSpec, describe_range_violations, describe_replies, is_blank
from ray_app.inference.spec import (
    departures,
    describe_guarantee_departures,
    list_uncalibrated_decoders,
)
from ray_app.metrics.drift import Shift, find_shifts
from ray_app.runs import ChangedRows, CurrentRows, RunDirectory, current, document, fingerprint
from ray_app.runs.rows import as_array, bounded_facts, decision_columns, with_findings
from ray_app.runs.schema import DETAIL, SECOND_LOOK, UNLIKE

COLUMNS = [
    "image_id",
    "score",
    "scores",
    "format",
    "width",
    "height",
    "quality",
    "decoder",
    SECOND_LOOK,
]
WAIVED = "waive_guarantee"  # The key in a run's identity, set if the user waived the guarantee.
_MAX_NAMED = 3


class ArchiveTally:
    """Counts of an archive's images by property, to compare them with an ensemble's calibration.

    Attributes:
        population: For each property, such as the size of the image, the number of images per bin
            (a range of values or a category).
        decoders: The number of images per decoder, which is a library such as `simplejpeg 1.9.0`.
            If the card lists the formats of the calibration, images in other formats do not count.
        images: The number of images with a score.
    """

    def __init__(self, spec: ScoringSpec) -> None:
        self._spec = spec
        population = spec.ensemble.population
        self.population = PopulationTally(population.features if population else ())
        self._formats = population.seen.formats if population and population.seen else ()
        self.decoders, self.images = Counter[str](), 0

    def add(self, table: pa.Table) -> None:
        """Add result rows to the counts. The table must have the columns `COLUMNS`.

        Only rows with a score are counted. Their verdicts have no influence.
        """
        rows = table.filter(pc.is_valid(table["score"]))
        self.images += len(rows)
        detectors = [
            name.removeprefix("score:")
            for name in self.population.counts
            if name.startswith("score:")
        ]
        self.population.add(_properties(rows, detectors, self._spec.late))
        if self._formats:
            is_known = pc.is_in(rows["format"].cast(pa.string()), pa.array(self._formats))
            rows = rows.filter(is_known)
        self.decoders.update(pc.drop_null(rows["decoder"].cast(pa.string())).to_pylist())

    def update(self, counts: document.ArchiveCounts, *, sign: int = 1) -> None:
        """Add counts in the form that `facts` returns, or subtract them if `sign` is -1.

        For example, add the counts of the last summary, and subtract those of replaced rows.
        """
        for name, column in counts.counts.items():
            self.population.counts[name] += sign * np.array(column, np.int64)
        for name, count in counts.decoders.items():
            self.decoders[name] += sign * count
        self.images += sign * counts.images

    def facts(self) -> document.ArchiveCounts:
        """Return the counts in the form in which `summary.json` stores them."""
        return document.ArchiveCounts(
            card=_card_digest(self._spec),
            counts={name: column.tolist() for name, column in self.population.counts.items()},
            decoders={name: count for name, count in sorted(self.decoders.items()) if count},
            images=self.images,
        )


def count_archive(
    spec: ScoringSpec,
    rows: CurrentRows,
    changed: ChangedRows | None = None,
    before: document.ArchiveCounts | None = None,
) -> ArchiveTally:
    """Count the images of a run by property, to compare them with the calibration of its ensemble.

    Only the current (newest) row of each file counts. If the counts of the last summary are given,
    only rows that changed since are read.

    Args:
        spec: The ensemble.
        rows: The current rows of the run.
        changed: The rows that changed since `before`. None counts all rows.
        before: The counts of the last summary. If they belong to another card, all rows are
            counted.

    Returns:
        The counts.
    """
    tally = ArchiveTally(spec)
    if before is None or changed is None or before.card != _card_digest(spec):
        for table in rows.tables(COLUMNS):
            tally.add(table)
        return tally
    removed = ArchiveTally(spec)
    for table in changed.removed(COLUMNS):
        removed.add(table)
    tally.update(before)
    tally.update(removed.facts(), sign=-1)
    for table in changed.added(COLUMNS):
        tally.add(table)
    return tally


def _card_digest(spec: ScoringSpec) -> str:
    return fingerprint({"card": spec.ensemble.model_dump(mode="json"), "late": list(spec.late)})


def has_comparison(card: EnsembleCard) -> bool:
    """Return whether an ensemble's card has data with which an archive can be compared.

    The data are a guarantee (a maximum false-positive rate), or statistics of the images of the
    calibration (`population`).
    """
    return card.guarantee is not None or card.population is not None


def compare(run: RunDirectory, spec: ScoringSpec, tally: ArchiveTally) -> document.GuaranteeSummary:
    """Compare the images, settings, and decoders of a run with those of its card's calibration.

    Args:
        run: The run directory.
        spec: The ensemble, whose card has a guarantee or statistics of its calibration
            (`population`).
        tally: The counts of the run's images, as `count_archive` returns them.

    Returns:
        The `guarantee` section of `summary.json`. If the archive differs so much that every verdict
        has to be `abstain`, its key `unlike` is the reason.
    """
    card, identity = spec.ensemble, run.describe()["identity"]
    scored = departures(card.settings, identity["precision"], identity["resize"])
    decoders = {name for name, count in tally.decoders.items() if count}
    unknown = list_uncalibrated_decoders(card.settings, decoders)
    shifts = list_shifts(tally)
    waived = bool(identity.get(WAIVED))
    noticed = [_format_shift(shift) for shift in shifts if shift.noticed]
    reasons = [
        *([f"images differ in {', '.join(noticed)}"] if noticed else []),
        *describe_guarantee_departures(scored, unknown),
    ]
    is_enough = any(shift.tells for shift in shifts)
    return document.GuaranteeSummary(
        holds=False if reasons else True if is_enough else None,
        why="; ".join(reasons)
        if reasons
        else None
        if is_enough
        else _why_unknown(card, tally.images),
        unlike=None if waived else describe_unlike(shifts),
        waived=waived,
        target_fpr=card.guarantee.target_fpr if card.guarantee else None,
        confidence=card.guarantee.confidence if card.guarantee else None,
        upper_bound=card.guarantee.upper_bound if card.guarantee else None,
        population=card.population.what if card.population else None,
        images=tally.images,
        shifts=shifts,
        decoders=unknown,
        settings=scored,
        counted=tally.facts(),
    )


def describe_unlike(shifts: Sequence[document.ShiftSummary]) -> str | None:
    """Return the reason why every verdict has to be `abstain`, or None if there is none.

    The reason names the properties in which the archive differs too much from the calibration.
    """
    largest_first = sorted(shifts, key=lambda shift: -(shift.psi or 0.0))
    beyond = [_format_shift(shift) for shift in largest_first if shift.beyond]
    return f"{UNLIKE}: {', '.join(beyond[:_MAX_NAMED])}" if beyond else None


def list_shifts(tally: ArchiveTally) -> list[document.ShiftSummary]:
    """Measure for each property how much the archive differs from the images of the calibration.

    A property is for example the format, the size, or the score. The difference is measured as a
    population stability index (PSI).
    """
    shifts = find_shifts(tally.population.bins())
    return [_summarise(feature, shift) for feature, shift in shifts.items()]


def _summarise(feature: str, shift: Shift) -> document.ShiftSummary:
    return document.ShiftSummary(
        feature=feature,
        psi=shift.psi,
        limit=shift.limit,
        noticed=shift.is_noticed,
        beyond=shift.is_beyond,
        fakes=shift.fakes,
        images=shift.images,
        tells=shift.is_conclusive,
    )


def decide_rows(rows: pa.Table, spec: ScoringSpec) -> pa.Table:
    """Compute new verdicts and findings from the stored scores of result rows.

    A finding is the strongest evidence on the origin of a file, from its metadata and its verdict.

    Args:
        rows: The result rows.
        spec: The ensemble that decides.

    Returns:
        The rows with the new values.
    """
    has_score = pc.equal(rows["status"].cast(pa.string()), "ok").to_numpy()
    scores = {
        name: pc.struct_field(rows["scores"].combine_chunks(), name).to_numpy(zero_copy_only=False)
        for name in spec.cards
    }
    sizes = list(zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True))
    scores = {name: np.asarray(column, np.float32) for name, column in scores.items()}
    replies = rows["replies"].combine_chunks() if "replies" in rows.column_names else None
    remarks = describe_replies(
        {name: pc.struct_field(replies, name).to_pylist() for name in spec.speakers}
        if replies is not None
        else {}
    )
    audited = select_audited(spec.ensemble, rows["sha256"].to_pylist())
    out_of_range = describe_range_violations(
        spec, sizes, rows["format"].to_pylist(), bounded_facts(rows, spec.bounded)
    )
    decisions = decide(spec.ensemble, scores, calibrations=spec.calibrations, out_of_range=out_of_range, remarks=remarks, audited=audited,
                       blank=[is_blank(flags) for flags in rows["flags"].to_pylist()])  # fmt: skip
    rows = _set_second_look_column(rows, is_needed=decisions.second_look is not None)
    for name, values in decision_columns(decisions, has_score).items():
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(
            index, rows.schema.field(index), as_array(values, rows.schema.field(index), len(rows))
        )
    return with_findings(rows, spec.ensemble.thresholds)


def _set_second_look_column(rows: pa.Table, *, is_needed: bool) -> pa.Table:
    """Return rows with a column for the second stage of a cascade, or without it for other rules."""
    is_present = SECOND_LOOK in rows.column_names
    if is_needed and not is_present:
        index = rows.schema.get_field_index(DETAIL) + 1
        return rows.add_column(
            index, SECOND_LOOK, pa.nulls(len(rows), pa.dictionary(pa.int32(), pa.string()))
        )
    return rows.drop_columns([SECOND_LOOK]) if is_present and not is_needed else rows


def _properties(rows: pa.Table, detectors: list[str], late: Sequence[str]) -> Mapping[str, Any]:
    """Return the properties of rows that the card's population has.

    Args:
        rows: The rows.
        detectors: The detectors whose scores are properties.
        late: The members of a cascade's second stage. Their scores count only for images that the
            second stage was to score, because rows that were decided again may have scores for all
            images.
    """
    scores = rows["scores"].combine_chunks()
    content = {
        name: current.numbers(pc.struct_field(scores, name))
        for name in detectors
        if scores.type.get_field_index(name) >= 0
    }
    for name in set(late) & content.keys() if SECOND_LOOK in rows.column_names else ():
        content[name] = np.where(rows[SECOND_LOOK].is_valid().to_numpy(), content[name], np.nan)
    return compute_properties(
        score=current.numbers(rows["score"]),
        scores=content,
        formats=rows["format"].cast(pa.string()).to_pylist(),
        width=current.numbers(rows["width"]),
        height=current.numbers(rows["height"]),
        quality=current.numbers(rows["quality"]) if "quality" in rows.column_names else None,
    )


def _format_shift(shift: document.ShiftSummary) -> str:
    return f"{shift.feature} (PSI {shift.psi:.2g})"


def _why_unknown(card: EnsembleCard, images: int) -> str:
    if card.population is None or not card.population.features:
        return "the card does not say what its images were like"
    return f"{images:,} images with a score are too few to compare"
