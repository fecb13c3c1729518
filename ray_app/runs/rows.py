"""Build the result rows of a run as Arrow tables, one row for each image file.

`result_rows` returns the result rows of some files. `block_tables` returns all tables of a block, a
group of files that is scored and stored together. `read_outcomes` reads the results of decoding
back from rows. A finding is the conclusion on the origin of a file. If verdicts or thresholds have
changed, `with_findings` derives the findings again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.detectors import card_sections
from ray_app.ensembles import Decisions, Finding, Thresholds, find_origin
from ray_app.errors import Status, is_image_error
from ray_app.identification.captions import Caption
from ray_app.images import ImageFileFacts
from ray_app.inference import BlockResult, DecodeResult
from ray_app.inference.decision import EMBEDDINGS, MASKS, REPLIES, SCORES
from ray_app.runs.artifacts import feature_rows, mask_measures, mask_rows
from ray_app.runs.schema import DETAIL, FINDING, GROUNDS, SECOND_LOOK, row_schema

_schema = lru_cache(maxsize=64)(row_schema)  # All blocks of a run have the same schema.
FACTS = tuple(field.name for field in fields(ImageFileFacts))
OUTCOME_COLUMNS = ("status", "detail", "provenance", *FACTS)


def result_rows(
    members: pa.Table,
    scored: BlockResult,
    *,
    attempt: int,
    scored_at: datetime,
    measured: tuple[str, ...] = (),
) -> pa.Table:
    """Build the result rows of some image files, with their statuses, scores, and verdicts.

    Args:
        members: The files, as rows of a manifest, which is a list of files to score.
        scored: The results of decoding and scoring these files.
        attempt: The number of the session, one command's work on the run.
        scored_at: The time of scoring.
        measured: Names of the columns with properties of the pixels to store, such as `texture`.

    Returns:
        One row for each file, in the order of `members`.

    Raises:
        AssertionError: If `members` and `scored` have different numbers of files.
    """
    count = len(members)
    assert count == len(scored.outcomes), f"{count} members, {len(scored.outcomes)} outcomes"
    outputs = scored.outputs
    masks, replies = outputs.get(MASKS), outputs.get(REPLIES)
    captions: Sequence[Caption | None] = ()
    views: dict[str, dict[str, Any]] = {}
    if len(outputs.columns) > len(scored.scores):  # There are outputs besides the clean scores.
        captions, views = outputs.captions, outputs.by_view(SCORES)
    input_type = members.schema.field("input").type if "input" in members.schema.names else None
    schema = _schema(
        tuple(scored.scores),
        input_type,
        tuple(masks),
        tuple(replies),
        views=tuple(views),
        second_look=scored.decisions.second_look is not None,
        identified=scored.identified is not None,
        described=bool(captions),
        measured=measured,
    )
    has_score = np.array([outcome.status is Status.OK for outcome in scored.outcomes], dtype=bool)
    columns: dict[str, Any] = {}
    for name in (
        "image_id",
        "uri",
        "member",
        "occurrence",
        *(["input"] if "input" in schema.names else []),
    ):
        columns[name] = members[name].combine_chunks()
    columns["status"] = [outcome.status.value for outcome in scored.outcomes]
    columns["detail"] = [outcome.detail for outcome in scored.outcomes]
    for name in FACTS:
        columns[name] = [
            None if outcome.facts is None else getattr(outcome.facts, name)
            for outcome in scored.outcomes
        ]
    columns["scores"] = _struct(
        schema.field("scores").type, list(scored.scores.values()), has_score
    )
    if views:
        kind = schema.field("views").type
        view_scores = [
            _struct(kind.field(view).type, list(scores.values()), has_score)
            for view, scores in views.items()
        ]
        columns["views"] = pa.StructArray.from_arrays(
            view_scores, fields=list(kind), mask=pa.array(~has_score)
        )
    for name, measures in mask_measures(masks).items() if masks else ():
        columns[name] = _struct(schema.field(name).type, measures, has_score)
    if replies:
        columns["replies"] = pa.array([dict(zip(replies, texts, strict=True)) for texts in zip(*replies.values(), strict=True)],
                                      schema.field("replies").type)  # fmt: skip
    columns |= finding_columns(scored.findings) | decision_columns(scored.decisions, has_score)
    columns |= scored.identified.to_columns(has_score) if scored.identified is not None else {}
    columns |= caption_columns(captions, has_score) if captions else {}
    columns["attempt"] = [attempt] * count
    columns["scored_at"] = [scored_at] * count
    columns["provenance"] = [outcome.provenance for outcome in scored.outcomes]
    arrays = [as_array(columns.get(field.name), field, count) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def read_outcomes(rows: pa.Table) -> list[DecodeResult]:
    """Read the results of decoding the images back from stored result rows.

    So images can be scored again from stored embeddings, without decoding the images.

    Args:
        rows: Result rows with the columns `OUTCOME_COLUMNS`, such as `status` and `width`. Columns
            that their run does not have may be missing.

    Returns:
        The status, details, facts, and provenance of each row.
    """
    outcomes = []
    for row in rows.to_pylist():
        facts = {name: row.get(name) for name in FACTS} | {"flags": tuple(row["flags"] or ())}
        outcomes.append(
            DecodeResult(
                Status(row["status"]),
                row["detail"],
                None if row["sha256"] is None else ImageFileFacts(**facts),
                row["provenance"],
            )
        )
    return outcomes


def decision_columns(decisions: Decisions, has_score: np.ndarray) -> dict[str, Any]:
    """Return the columns of result rows that store an ensemble's decisions, by name.

    Examples are `score`, `probability`, and `verdict`. The column `second_look` is included only if
    the ensemble is a cascade.

    Args:
        decisions: The decisions on the images (n,).
        has_score: Whether each image has a score (n,). Other rows get nulls.

    Returns:
        The columns (n,).
    """
    second_look = decisions.second_look
    text, hidden = pa.string(), ~has_score
    return {
        **({} if second_look is None else {SECOND_LOOK: pa.array(second_look, text, mask=hidden)}),
        "score": pa.array(decisions.score, mask=~(has_score & np.isfinite(decisions.score))),
        "probability": pa.array(
            decisions.probability, mask=~(has_score & np.isfinite(decisions.probability))
        ),
        "calibrated": pa.array(np.full(len(has_score), decisions.calibrated), mask=hidden),
        "verdict": pa.array(decisions.verdict, text, mask=hidden),
        "verdict_reason": pa.array(decisions.reason, text, mask=hidden),
        DETAIL: pa.array(decisions.detail, text, mask=hidden),
    }


def finding_columns(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the columns `finding` and `grounds` of result rows, by name.

    A finding is the conclusion on the origin of a file. Its grounds are the evidence for and
    against it, such as the verdict of the detectors.
    """
    return {
        FINDING: [finding.finding for finding in findings],
        GROUNDS: [[ground.model_dump() for ground in finding.grounds] for finding in findings],
    }


def caption_columns(captions: Sequence[Caption | None], has_score: np.ndarray) -> dict[str, Any]:
    """Return the row columns with predicted prompts and their likelihoods, by name.

    A caption is a predicted prompt. A row without a caption or without a score has nulls.
    """
    visible = [
        caption if scored else None for caption, scored in zip(captions, has_score, strict=True)
    ]
    return {
        "predicted_prompt": pa.array(
            [None if caption is None else caption.text for caption in visible], pa.string()
        ),
        "prompt_likelihood": pa.array(
            [None if caption is None else caption.likelihood for caption in visible], pa.float32()
        ),
    }


def _struct(kind: pa.DataType, columns: Sequence[np.ndarray], has_score: np.ndarray) -> pa.Array:
    children = []
    for column in columns:
        children.append(pa.array(column, pa.float32(), mask=~np.isfinite(column)))
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=pa.array(~has_score))


def as_array(values: Any, field: pa.Field, count: int) -> pa.Array:
    """Convert values to an Arrow array for a column.

    Args:
        values: The values. None gives an array of nulls.
        field: The field of the schema, which has the type.
        count: The number of rows.

    Returns:
        The array, whose type is that of the field.
    """
    if values is None:
        return pa.nulls(count, field.type)
    if isinstance(values, pa.Array):
        return values if values.type == field.type else values.cast(field.type)
    if pa.types.is_dictionary(field.type):
        return pa.array(values, field.type.value_type).dictionary_encode()
    return pa.array(values, field.type)


def with_findings(rows: pa.Table, thresholds: Thresholds) -> pa.Table:
    """Return result rows with findings that are derived again, for example after new verdicts.

    A finding is the conclusion on the origin of a file. It follows from the file's statements on
    its own origin, from the verdict of the detectors, and from their error rates.

    Args:
        rows: Result rows with `provenance`, `verdict`, `score`, `finding`, and `grounds`.
        thresholds: The thresholds of the ensemble with their measured error rates.

    Returns:
        The rows with new columns `finding` and `grounds`, the evidence for the finding.
    """
    pairs = zip(rows["provenance"].to_pylist(), rows["verdict"].to_pylist(), strict=True)
    findings = [find_origin(text, verdict, thresholds) for text, verdict in pairs]
    rows = rows.drop_columns([FINDING, GROUNDS])
    index, schema = rows.schema.get_field_index("score"), _schema(())
    for step, (name, values) in enumerate(finding_columns(findings).items()):
        field = schema.field(name)
        rows = rows.add_column(index + step, field, as_array(values, field, len(rows)))
    return rows


def bounded_facts(rows: pa.Table, names: Iterable[card_sections.FactName]) -> card_sections.Facts:
    """Read image facts, such as the JPEG quality, from result rows.

    The card of a detector (its YAML file) may state for which values of these facts the detector is
    valid. The verdict on an image with another value is `abstain`.

    Args:
        rows: The result rows (n,).
        names: The names of the facts.

    Returns:
        The values (n,) of each fact, by name. A value is None if the run did not measure the fact.
    """
    columns = {name: card_sections.FACTS[name][0] for name in names}
    return {
        name: rows[column].to_pylist() if column in rows.column_names else [None] * len(rows)
        for name, column in columns.items()
    }


@dataclass(frozen=True)
class BlockTables:
    """The tables that are written for a block, a fixed range of an archive's files (members).

    Attributes:
        rows: The result rows.
        masks: The masks of altered pixels; None if no detector returns masks.
        features: The embeddings, by name of the detector.
        bad: The number of members with a status other than `ok` and `unsupported_format`.
        failures: The members on which Touchstone's own code failed, each with its traceback, as
            plain JSON.
    """

    rows: pa.Table
    masks: pa.Table | None
    features: Mapping[str, pa.Table]
    bad: int
    failures: Sequence[Mapping[str, Any]]


# If the rows of a member cannot be built, only that member fails.
def block_tables(
    members: pa.Table,
    scored: BlockResult,
    *,
    attempt: int,
    scored_at: datetime,
    measured: tuple[str, ...] = (),
    features: Mapping[str, Mapping[str, Any]] | None = None,
) -> BlockTables:
    """Build the tables of a block from the results of its members, in the order of the members.

    If building the tables raises an exception, each member is tried alone. A member that raises an
    exception then gets the status `decoder_crashed`, and the tables are built again. The exception
    is raised if it is not about one image (see `errors.is_image_error`), or if each member alone
    succeeds.

    Args:
        members: The files, as rows of a manifest, which is a list of files to score.
        scored: The results of decoding and scoring these files.
        attempt: The number of the session, one command's work on the run.
        scored_at: The time of scoring.
        measured: Names of the columns with properties of the pixels to store, such as `texture`.
        features: The settings that determine the embeddings to store, by name of the detector (see
            `feature_rows`). None stores no embeddings.

    Returns:
        The tables.
    """

    def build(members: pa.Table, scored: BlockResult) -> BlockTables:
        ids = members["image_id"]
        vectors = scored.outputs.get(EMBEDDINGS)
        tables = {}
        for name, facts in (features or {}).items():
            tables[name] = feature_rows(ids.to_numpy(), vectors[name], name, facts)
        bad, failures = 0, []
        for row, outcome in enumerate(scored.outcomes):
            bad += outcome.status not in (Status.OK, Status.UNSUPPORTED_FORMAT)
            if outcome.failure is not None:
                [member] = members.select(["image_id", "uri", "member"]).slice(row, 1).to_pylist()
                failures.append(member | {"traceback": outcome.failure})
        rows = result_rows(members, scored, attempt=attempt, scored_at=scored_at, measured=measured)
        return BlockTables(
            rows,
            mask_rows(ids, scored) if scored.outputs.get(MASKS) else None,
            tables,
            bad,
            failures,
        )

    try:
        return build(members, scored)
    except Exception as error:
        if not is_image_error(error):
            raise
        block_error = error
    failed = _failing_alone(build, members, scored)
    if not failed:
        raise block_error
    return build(members, _without(scored, failed))


def _failing_alone(
    build: Callable[[pa.Table, BlockResult], object], members: pa.Table, scored: BlockResult
) -> dict[int, Exception]:
    failed: dict[int, Exception] = {}
    for row in range(len(members)):
        try:
            build(members.slice(row, 1), _only(scored, slice(row, row + 1)))
        except Exception as error:
            if not is_image_error(error):
                raise
            failed[row] = error
    return failed


def _only(scored: BlockResult, rows: slice) -> BlockResult:
    """Return the results of some members."""
    decision_fields = {
        field.name: getattr(scored.decisions, field.name) for field in fields(scored.decisions)
    }
    per_member = {
        name: value[rows]
        for name, value in decision_fields.items()
        if value is not None and not isinstance(value, bool)
    }
    return BlockResult(
        scored.outcomes[rows],
        scored.outputs.rows(rows),
        {name: column[rows] for name, column in scored.scores.items()},
        replace(scored.decisions, **per_member),
        scored.identified and scored.identified.select(rows),
        scored.thresholds,
    )


def _without(scored: BlockResult, failed: Mapping[int, Exception]) -> BlockResult:
    """Return the results with a failure of Touchstone's own code for some members."""
    outcomes = [
        DecodeResult.from_failure(failed[row], outcome.facts) if row in failed else outcome
        for row, outcome in enumerate(scored.outcomes)
    ]
    return replace(scored, outcomes=outcomes, outputs=scored.outputs.without(failed))
