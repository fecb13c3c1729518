"""When each generator was released, as a run's own columns tell it. Knows labelled rows; knows no scores."""

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

COLUMNS = ("input", "generator", "label")
FIELD = "release_date"


def releases_of(tables: Iterable[pa.Table]) -> Mapping[str, str]:
    """By generator of fakes the earliest `release_date` of its rows' column `input`, as text that begins with the year.

    Tables have `COLUMNS`. Generators of which nothing is told are left out; so is a date that does not begin with a year.
    """
    found: dict[str, str] = {}
    for table in tables:
        inputs = table["input"].combine_chunks()
        if not pa.types.is_struct(inputs.type) or FIELD not in [one.name for one in inputs.type]:
            continue
        dates = pc.struct_field(inputs, FIELD).cast(pa.string())
        rows = pa.table({"generator": table["generator"].cast(pa.string()), "date": dates})
        dated = pc.and_(pc.equal(table["label"].cast(pa.string()), "fake"), pc.match_substring_regex(dates, r"^\d{4}"))
        for row in rows.filter(dated).group_by("generator").aggregate([("date", "min")]).to_pylist():
            found[row["generator"]] = min(row["date_min"], found.get(row["generator"], row["date_min"]))
    return found
