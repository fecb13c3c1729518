"""Result rows as a Delta table has them (`TABLE_SCHEMA`, `table_rows`): flat, the same columns for every run, whatever detectors it has.

Scores are a map from a detector's name, so that runs with different ensembles stand in one table; words are plain strings, and what varies
from source to source (`input`) is JSON. Delta has no unsigned and no dictionary types.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.runs.directory import RunDirectory
from ray_app.runs.rows import with_reasons

# What tells one row from another; first, since Delta keeps statistics of the first columns, by which files are passed over.
KEYS = [
    ("night", pa.date32()),
    ("run_id", pa.string()),
    ("manifest", pa.int32()),
    ("block", pa.int32()),
    ("image_id", pa.int64()),
]
TABLE_SCHEMA = pa.schema(
    [
        *KEYS,
        ("uri", pa.string()),
        ("member", pa.string()),
        ("occurrence", pa.int32()),
        ("status", pa.string()),
        ("detail", pa.string()),
        ("verdict", pa.string()),
        ("verdict_reason", pa.string()),
        ("verdict_detail", pa.string()),
        ("score", pa.float64()),
        ("probability", pa.float64()),
        ("calibrated", pa.bool_()),
        ("scores", pa.map_(pa.string(), pa.float32())),
        ("predicted_generator", pa.string()),
        ("generator_family", pa.string()),
        ("predicted_prompt", pa.string()),
        ("provenance", pa.string()),
        ("sha256", pa.string()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("flags", pa.list_(pa.string())),
        ("input", pa.string()),
        ("attempt", pa.int32()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
        ("run", pa.string()),
        ("ensemble", pa.string()),
        ("fingerprint", pa.string()),
    ]
)
PARTITIONED_BY = "night"
_ADDED = {"night", "run_id", "manifest", "block", "run", "ensemble", "fingerprint"}
ROW_COLUMNS = [name for name in TABLE_SCHEMA.names if name not in _ADDED]  # of result rows; a run may have fewer


@dataclass(frozen=True)
class RowOrigin:
    """What all rows of a run share: its own id, where it lies, which ensemble decided, and the fingerprint of the run's identity."""

    run_id: str
    run: str
    ensemble: str
    fingerprint: str


class Nights:
    """The date (UTC) on which the session that scored a row began, by the row's `attempt`: a night has one date, past midnight too."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._dates: dict[int, date | None] = {}

    def of(self, attempt: int, scored_at: datetime) -> date:
        """That of one row; where the run has no such session, the date on which the row was scored."""
        if attempt not in self._dates:
            try:
                began = self._run.read_json(f"sessions/{attempt:05d}.json")["started_at"]
                self._dates[attempt] = datetime.fromisoformat(began).astimezone(UTC).date()
            except (FileNotFoundError, KeyError, ValueError):
                self._dates[attempt] = None
        return self._dates[attempt] or scored_at.astimezone(UTC).date()


def table_rows(
    rows: pa.Table, blocks: npt.NDArray[np.int32], manifest: int, facts: RowOrigin, night_of: Callable[[int, datetime], date]
) -> pa.Table:
    """The same rows in `TABLE_SCHEMA`; `blocks` (n,): the block of each. What a run has no column for is null."""
    rows, count = with_reasons(rows), len(rows)
    columns = {
        "night": _nights(rows, night_of),
        "manifest": pa.array(np.full(count, manifest, np.int32)),
        "block": pa.array(np.asarray(blocks, np.int32)),
        "scores": _score_map(rows["scores"].combine_chunks()),
        **{name: pa.array([getattr(facts, name)] * count, pa.string()) for name in ("run_id", "run", "ensemble", "fingerprint")},
    }
    if "input" in rows.column_names:
        columns["input"] = pa.array([_as_json(one) for one in rows["input"].to_pylist()], pa.string())
    for field in TABLE_SCHEMA:
        if field.name not in columns:
            there = field.name in rows.column_names
            columns[field.name] = rows[field.name].cast(field.type) if there else pa.nulls(count, field.type)
    return pa.table([columns[name] for name in TABLE_SCHEMA.names], schema=TABLE_SCHEMA)


def _nights(rows: pa.Table, night_of: Callable[[int, datetime], date]) -> pa.Array:
    """A column of dates, asked for once for each attempt and each date of scoring."""
    days = rows["scored_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy() // (24 * 3600 * 10**6)
    pairs, places = np.unique(np.stack([rows["attempt"].to_numpy(), days]), axis=1, return_inverse=True)
    dates = [night_of(int(attempt), datetime.fromtimestamp(int(day) * 24 * 3600, UTC)) for attempt, day in pairs.T]
    return pa.array(dates, pa.date32()).take(pa.array(places.ravel()))


def _score_map(scores: pa.StructArray) -> pa.MapArray:
    """A struct of scores as a map by the detectors' names; null where a row has none, a null value where one detector gave none."""
    names = [field.name for field in scores.type]
    there = np.asarray(scores.is_valid())
    values = np.stack(
        [np.asarray(pc.fill_null(pc.struct_field(scores, [place]), np.nan), np.float32) for place in range(len(names))], axis=1
    )
    said = values[there].ravel()
    keys = pa.array(names, pa.string()).take(pa.array(np.tile(np.arange(len(names)), int(there.sum()))))
    offsets = pa.array(np.concatenate([[0], np.cumsum(there) * len(names)]).astype(np.int32), mask=np.append(~there, False))
    return pa.MapArray.from_arrays(offsets, keys, pa.array(said, pa.float32(), mask=~np.isfinite(said)))


def _as_json(given: dict[str, object] | None) -> str | None:
    return None if given is None else json.dumps(given, default=str, ensure_ascii=False)
