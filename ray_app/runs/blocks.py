"""All that a block's members have on disk, as tables: rows, masks, embeddings. A member whose own cannot be made costs itself alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.errors import Status, is_of_one_image
from ray_app.inference import Outcome, Readings, Scored
from ray_app.runs.features import feature_rows
from ray_app.runs.masks import mask_rows
from ray_app.runs.rows import result_rows


@dataclass(frozen=True)
class BlockTables:
    """`masks`: None where nobody localizes. `features`: per detector that keeps embeddings. `outcomes`: as the rows have them."""

    rows: pa.Table
    masks: pa.Table | None
    features: Mapping[str, pa.Table]
    outcomes: Sequence[Outcome]

    @property
    def bad(self) -> int:
        """How many images have no score."""
        return sum(outcome.status not in (Status.OK, Status.UNSUPPORTED_FORMAT) for outcome in self.outcomes)

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The members on which our own code failed, each with its traceback, as plain JSON."""
        return [
            self.rows.select(["image_id", "uri", "member"]).slice(row, 1).to_pylist()[0] | {"traceback": outcome.failure}
            for row, outcome in enumerate(self.outcomes)
            if outcome.failure is not None
        ]


def block_tables(
    members: pa.Table,
    scored: Scored,
    *,
    attempt: int,
    scored_at: datetime,
    perceptual_hash: bool = False,
    features: Mapping[str, Mapping[str, Any]] | None = None,
) -> BlockTables:
    """The tables of a block's members, in their order; `features`: per detector what decides its embeddings (see `feature_rows`).

    Should they not be had, every member is tried alone, and one that fails becomes `decoder_crashed`. Raises what was raised where that is
    no single member's (see `errors.is_of_one_image`).
    """

    def build(members: pa.Table, scored: Scored) -> BlockTables:
        ids = members["image_id"]
        kept = {
            name: feature_rows(ids.to_numpy(), scored.readings.embeddings[name], name, facts) for name, facts in (features or {}).items()
        }
        rows = result_rows(members, scored, attempt=attempt, scored_at=scored_at, perceptual_hash=perceptual_hash)
        return BlockTables(rows, mask_rows(ids, scored) if scored.readings.masks else None, kept, scored.outcomes)

    try:
        return build(members, scored)
    except Exception as error:
        if not is_of_one_image(error):
            raise
        whole = error
    failed = _failing_alone(build, members, scored)
    if not failed:
        raise whole
    return build(members, _without(scored, failed))


def _failing_alone(build: Callable[[pa.Table, Scored], object], members: pa.Table, scored: Scored) -> dict[int, Exception]:
    failed: dict[int, Exception] = {}
    for row in range(len(members)):
        try:
            build(members.slice(row, 1), _only(scored, slice(row, row + 1)))
        except Exception as error:
            if not is_of_one_image(error):
                raise
            failed[row] = error
    return failed


def _only(scored: Scored, rows: slice) -> Scored:
    """What was found of some members."""

    def cut(value: Any) -> Any:
        return {name: cut(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value[rows]

    decided = {field.name: getattr(scored.decisions, field.name) for field in fields(scored.decisions)}
    per_member = {name: cut(value) for name, value in decided.items() if value is not None and not isinstance(value, bool)}
    said = scored.identified
    return Scored(
        scored.outcomes[rows],
        Readings(**{field.name: cut(getattr(scored.readings, field.name)) for field in fields(Readings)}),
        replace(scored.decisions, **per_member),
        said and replace(said, **{name: getattr(said, name)[rows] for name in ("codes", "probability", "confidence", "ranking")}),
    )


def _without(scored: Scored, failed: Mapping[int, Exception]) -> Scored:
    """The same, where nothing was found of some members but that our code failed on them."""

    def cleared(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: cleared(inner) for name, inner in value.items()}
        # Numbers of a member without a score stand in no row.
        return value if isinstance(value, np.ndarray) else [None if row in failed else one for row, one in enumerate(value)]

    outcomes = [Outcome.of_failure(failed[row], outcome.facts) if row in failed else outcome for row, outcome in enumerate(scored.outcomes)]
    readings = Readings(**{field.name: cleared(getattr(scored.readings, field.name)) for field in fields(Readings)})
    return replace(scored, outcomes=outcomes, readings=readings)
