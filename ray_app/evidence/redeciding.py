"""A recorded row and its cards → the decision once more, by the code that decides in runs. Nothing is fetched, decoded or scored."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ray_app.detectors import DetectorCard
from ray_app.ensembles import EnsembleCard
from ray_app.images import ImageLimits
from ray_app.inference import ScoringSpec
from ray_app.runs import row_schema
from ray_app.runs.schema import DETAIL, SECOND_LOOK, STABILITY, reason_of

DECIDED = ("score", "probability", "calibrated", "verdict", "verdict_reason", DETAIL, SECOND_LOOK)
_CLOSE = 1e-9  # of a number: another processor's exp and log may round the last bits otherwise


class Decided(NamedTuple):
    """What the cards make of the recorded scores. `exact`: the row says the same to the last bit. `differs`: the columns that do not."""

    row: dict[str, Any]
    exact: bool
    differs: tuple[str, ...]


def spec_of(ensemble: EnsembleCard, cards: Mapping[str, DetectorCard], identity: Mapping[str, Any], *, device: str = "cpu") -> ScoringSpec:
    """The settings of the run that a record is of, on any device."""
    from ray_app.scoring.stability import stability_in

    return ScoringSpec(
        ensemble,
        cards,
        ImageLimits(**identity.get("limits", {})),
        {name: identity.get("precision", {}).get(name, "fp32") for name in cards},
        identity.get("resize", "exact"),
        identity.get("batch_slots", 1),
        device,
        stability=stability_in(dict(identity)),
    )


def decide_again(spec: ScoringSpec, row: Mapping[str, Any], guarantee: Mapping[str, Any] | None = None) -> Decided:
    """Apply the ensemble to a row's detector scores, and compare. `guarantee`: what the run's summary says of it, if it says anything."""
    from ray_app.scoring.guarantee import unlike_rows
    from ray_app.scoring.redeciding import decided

    rows = decided(_table(spec, row), spec)
    unlike = (guarantee or {}).get("unlike")
    [again] = (unlike_rows(rows, unlike) if unlike else rows).to_pylist()
    known = _of_today(row)
    told = {name: again.get(name) for name in DECIDED if name in known}
    return Decided(told, told == {name: known[name] for name in told}, tuple(name for name in told if not alike(told[name], known[name])))


def _of_today(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of an older schema with its reason as a word of the list."""
    if DETAIL in row:
        return row
    why = reason_of(row["verdict_reason"])
    return {**row, "verdict_reason": why and why.reason, DETAIL: why and why.detail}


def _table(spec: ScoringSpec, row: Mapping[str, Any]) -> pa.Table:
    """The row as a run's files hold it; what is no part of a decision is left out."""
    schema = row_schema(
        list(row["scores"] or spec.cards),
        speakers=list(row.get("replies") or ()),
        second_look=SECOND_LOOK in row,
        stability=STABILITY in row,
    )
    known = {field.name: field.type for field in schema}
    left_out = ("input", "provenance", "scored_at", "views")
    types = {name: known.get(name) or pa.array([value]).type for name, value in row.items() if name not in left_out}
    return pa.Table.from_pydict({name: pa.array([row[name]], _words(kind)) for name, kind in types.items()})


def _words(kind: pa.DataType) -> pa.DataType:
    """Words stand for themselves in a table of one row."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def alike(ours: Any, theirs: Any) -> bool:
    """Whether two values of JSON are equal, but for the last bits of their numbers."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(alike(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        return bool(np.isclose(ours, theirs, rtol=_CLOSE, atol=_CLOSE))
    return bool(ours == theirs)
