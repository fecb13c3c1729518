"""When each generator was released, as labels or a run's own columns tell it. Knows labelled rows; knows no scores."""

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

FIELD = "release_date"
COLUMNS = ("input", FIELD, "generator", "label")


def releases_of(tables: Iterable[pa.Table]) -> Mapping[str, str]:
    """By generator of fakes the earliest `release_date` of its rows, as text that begins with the year.

    Tables have `COLUMNS`; where a row's label tells no date, that of its column `input` holds. Generators of which nothing is told are
    left out; so is a date that does not begin with a year.
    """
    found: dict[str, str] = {}
    for table in tables:
        dates = pc.coalesce(table[FIELD].cast(pa.string()), _own_dates(table))
        rows = pa.table({"generator": table["generator"].cast(pa.string()), "date": dates})
        dated = pc.and_(pc.equal(table["label"].cast(pa.string()), "fake"), pc.match_substring_regex(dates, r"^\d{4}"))
        for row in rows.filter(dated).group_by("generator").aggregate([("date", "min")]).to_pylist():
            found[row["generator"]] = min(row["date_min"], found.get(row["generator"], row["date_min"]))
    return found


def _own_dates(table: pa.Table) -> pa.Array:
    """What the run's own column says, row by row."""
    inputs = table["input"].combine_chunks()
    if pa.types.is_struct(inputs.type) and FIELD in [one.name for one in inputs.type]:
        return pc.struct_field(inputs, FIELD).cast(pa.string())
    return pa.nulls(len(table), pa.string())
