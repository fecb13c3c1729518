"""Members and what was found about them → one Arrow table of result rows. Columnar; nothing is looked up, nothing is dropped.

`with_reasons` makes rows of an older schema speak as those of today.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.ensembles import Decisions
from ray_app.errors import Status
from ray_app.inference import Scored
from ray_app.profiling.describing import Described
from ray_app.profiling.identifying import Identified
from ray_app.runs.masks import mask_measures
from ray_app.runs.schema import DETAIL, SECOND_LOOK, STABILITY, reason_of, row_schema
from ray_app.runs.stability import stability_column

FACTS = ("sha256", "format", "width", "height", "mode", "frames", "orientation", "icc", "flags", "decoder", "quality")


def result_rows(members: pa.Table, scored: Scored, *, attempt: int, scored_at: datetime, perceptual_hash: bool = False) -> pa.Table:
    """One row per member of the manifest table, in its order. Raises AssertionError when the counts differ."""
    count = len(members)
    assert count == len(scored.outcomes), f"{count} members, {len(scored.outcomes)} outcomes"
    masks, replies = scored.readings.masks, scored.readings.replies
    given = members.schema.field("input").type if "input" in members.schema.names else None
    views = scored.readings.views
    schema = row_schema(
        list(scored.scores),
        given,
        list(masks),
        list(replies),
        views=list(views),
        perceptual_hash=perceptual_hash,
        second_look=scored.decisions.second_look is not None,
        stability=bool(scored.readings.stability),
        identified=scored.identified is not None,
        described=bool(scored.readings.described),
    )
    has_score = np.array([outcome.status is Status.OK for outcome in scored.outcomes], dtype=bool)
    columns: dict[str, Any] = {name: members[name].combine_chunks() for name in ("image_id", "uri", "member", "occurrence")}
    if "input" in schema.names:
        columns["input"] = members["input"].combine_chunks()
    columns["status"] = [outcome.status.value for outcome in scored.outcomes]
    columns["detail"] = [outcome.detail for outcome in scored.outcomes]
    for name in FACTS:
        columns[name] = [None if outcome.facts is None else getattr(outcome.facts, name) for outcome in scored.outcomes]
    columns["scores"] = _scores(scored, schema, has_score)
    if views:
        kind = schema.field("views").type
        seen = [_struct(kind.field(view).type, list(scores.values()), has_score) for view, scores in views.items()]
        columns["views"] = pa.StructArray.from_arrays(seen, fields=list(kind), mask=pa.array(~has_score))
    if scored.readings.stability:
        columns[STABILITY] = stability_column(list(scored.readings.stability.values()), schema.field(STABILITY).type, has_score)
    for name, measured in mask_measures(masks).items():
        columns[name] = _struct(schema.field(name).type, measured, has_score)
    if replies:
        columns["replies"] = pa.array([dict(zip(replies, said, strict=True)) for said in zip(*replies.values(), strict=True)],
                                      schema.field("replies").type)  # fmt: skip
    columns |= decided_columns(scored.decisions, has_score)
    columns |= identified_columns(scored.identified, has_score) if scored.identified is not None else {}
    columns |= described_columns(scored.readings.described, has_score) if scored.readings.described else {}
    columns["attempt"] = [attempt] * count
    columns["scored_at"] = [scored_at] * count
    columns["reused"] = has_score & np.array([outcome.said is not None for outcome in scored.outcomes], dtype=bool)
    columns["phash"] = [outcome.phash for outcome in scored.outcomes]
    columns["provenance"] = [outcome.provenance for outcome in scored.outcomes]
    arrays = [as_array(columns.get(field.name), field, count) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def decided_columns(decisions: Decisions, has_score: np.ndarray) -> dict[str, Any]:
    """The columns that an ensemble's decision fills; null where a row has no score. `second_look` stands only where a cascade decided."""
    looks = decisions.second_look
    return {
        **({} if looks is None else {SECOND_LOOK: [why if ok else None for why, ok in zip(looks, has_score, strict=True)]}),
        "score": pa.array(decisions.score, mask=~(has_score & np.isfinite(decisions.score))),
        "probability": pa.array(decisions.probability, mask=~(has_score & np.isfinite(decisions.probability))),
        "calibrated": pa.array(np.full(len(has_score), decisions.calibrated), mask=~has_score),
        "verdict": [verdict if ok else None for verdict, ok in zip(decisions.verdict, has_score, strict=True)],
        "verdict_reason": [reason if ok else None for reason, ok in zip(decisions.reason, has_score, strict=True)],
        DETAIL: [detail if ok else None for detail, ok in zip(decisions.detail, has_score, strict=True)],
    }


def identified_columns(identified: Identified, has_score: np.ndarray) -> dict[str, Any]:
    """The columns that an identifier fills; null where a row has no score."""
    there = has_score & np.isfinite(identified.confidence)
    codes = np.where(there, identified.codes, -1).tolist()
    classes, families = identified.classes, identified.families
    rankings = zip(identified.ranking.tolist(), there.tolist(), strict=True)
    return {
        "predicted_generator": [classes[code] if code >= 0 else None for code in codes],
        "generator_family": [families[code] if code >= 0 else None for code in codes],
        "generator_probability": pa.array(identified.probability, pa.float32(), mask=~there),
        "generator_confidence": pa.array(identified.confidence, pa.float32(), mask=~there),
        "generator_ranking": [[classes[code] for code in ranking] if ok else None for ranking, ok in rankings],
    }


def described_columns(described: Sequence[Described | None], has_score: np.ndarray) -> dict[str, Any]:
    """The columns that a describer fills; null where nothing was said, or a row has no score."""
    said = [one if ok else None for one, ok in zip(described, has_score, strict=True)]
    likelihood = np.array([np.nan if one is None or one.likelihood is None else one.likelihood for one in said], np.float32)
    return {
        "predicted_prompt": [None if one is None else one.text for one in said],
        "prompt_likelihood": pa.array(likelihood, mask=~np.isfinite(likelihood)),
    }


def _scores(scored: Scored, schema: pa.Schema, has_score: np.ndarray) -> pa.Array:
    return _struct(schema.field("scores").type, list(scored.scores.values()), has_score)


def _struct(kind: pa.DataType, columns: Sequence[np.ndarray], has_score: np.ndarray) -> pa.Array:
    children = [pa.array(column, pa.float32(), mask=~np.isfinite(column)) for column in columns]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=pa.array(~has_score))


def as_array(values: Any, field: pa.Field, count: int) -> pa.Array:
    """Values as the column that the schema wants; None = a column of nulls."""
    if values is None:
        return pa.nulls(count, field.type)
    if isinstance(values, pa.Array):
        return values if values.type == field.type else values.cast(field.type)
    if pa.types.is_dictionary(field.type):
        return pa.array(values, field.type.value_type).dictionary_encode()
    return pa.array(values, field.type)


def with_reasons(rows: pa.Table) -> pa.Table:
    """Rows with a `verdict_reason` that is a `Reason`, and its `verdict_detail`: rows from before schema 6 had one sentence."""
    if DETAIL in rows.column_names:
        return rows
    told = rows["verdict_reason"].combine_chunks().cast(pa.string()).dictionary_encode()
    doubts = [reason_of(text) for text in told.dictionary.to_pylist()]
    reasons = pa.array([why and why.reason for why in doubts], pa.string()).take(told.indices)
    details = pa.array([why and why.detail for why in doubts], pa.string()).take(told.indices)
    place = rows.schema.get_field_index("verdict_reason")
    return rows.set_column(place, "verdict_reason", reasons).add_column(place + 1, DETAIL, details)
