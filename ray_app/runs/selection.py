"""Select and sort rows of a run, for example to show them (`RowFilter`, `selected_tables`)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.config import did_you_mean
from ray_app.errors import ConfigError
from ray_app.identification import generators
from ray_app.runs import directory
from ray_app.runs.current import current_tables
from ray_app.runs.schema import FINDING

# The name for images of which the identifier names none of the generators that it knows.
UNKNOWN = "unknown"
_NO_ORDER = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)


@dataclass(frozen=True)
class RowFilter:
    """Conditions on the columns of a row, all of which must be true. None accepts any value.

    Attributes:
        verdict: The verdict.
        status: The status.
        generator: The predicted generator or its family. `unknown` selects images that resemble no
            known generator.
        match: A glob (* and ?) for the URI of the file or of the archive that contains it.
        min_score: The minimum score (log-odds).
        max_score: The maximum score (log-odds).
        finding: Text that the finding contains, in upper or lower case. A finding is the
            conclusion on the origin of the file.
        since: The earliest time of scoring.
    """

    verdict: str | None = None
    status: str | None = None
    generator: str | None = None
    match: str | None = None
    min_score: float | None = None
    max_score: float | None = None
    finding: str | None = None
    since: datetime | None = None

    def select(self, table: pa.Table) -> pa.Table:
        """Return the rows of a table for which all conditions are true."""
        for name, value in (("verdict", self.verdict), ("status", self.status)):
            if value is not None:
                table = table.filter(pc.equal(table[name].cast(pa.string()), value))
        if self.since is not None:
            table = table.filter(
                pc.greater_equal(
                    table["scored_at"], pa.scalar(self.since, table.schema.field("scored_at").type)
                )
            )
        if self.finding is not None:
            table = table.filter(
                pc.match_substring(table[FINDING].cast(pa.string()), self.finding, ignore_case=True)
            )
        if self.match is not None:
            # Turn a glob with * and ? into an SQL pattern.
            like = re.sub(r"[\\%_]", r"\\\g<0>", self.match).replace("*", "%").replace("?", "_")
            table = table.filter(pc.match_like(table["uri"].cast(pa.string()), like))
        if self.min_score is not None:
            table = table.filter(pc.greater_equal(table["score"], self.min_score))
        if self.max_score is not None:
            table = table.filter(pc.less_equal(table["score"], self.max_score))
        return table if self.generator is None else filter_by_generator(table, self.generator)


def selected_tables(
    run: directory.RunDirectory,
    conditions: RowFilter,
    *,
    order: str | None = None,
    limit: int | None = None,
    vanished: bool = False,
    unfinished: bool = False,
) -> Iterator[pa.Table]:
    """Yield the current rows that match conditions, as tables of bounded size.

    The current row of a file is its newest row. If `order` is set, the first `limit` rows, or all
    matching rows, are in memory together.

    Args:
        run: The run.
        conditions: The conditions.
        order: A column to sort by, smallest value first. A leading minus reverses the order. Rows
            without a value come last, and rows with equal values stay in the order of the archive.
        limit: The maximum number of rows; None yields all.
        vanished: Also yield rows of files that the last listing no longer found.
        unfinished: Also yield rows of listings that are still being scored.

    Raises:
        ConfigError: If there is no run or no finished listing, or if the column cannot be sorted.
            Also if rows cannot be filtered by the generator (`require_known_generator`).
    """
    if conditions.generator is not None:
        require_known_generator(run, conditions.generator)
    tables: Iterator[pa.Table] = (
        conditions.select(table)
        for table in current_tables(run, vanished=vanished, unfinished=unfinished)
    )
    if order is not None:
        tables = _ordered(tables, order.removeprefix("-"), order.startswith("-"), limit)
    remaining = limit
    for table in tables:
        part = table if remaining is None else table.slice(0, remaining)
        remaining = None if remaining is None else remaining - len(part)
        if len(part):
            yield part
        if remaining == 0:
            return


def _ordered(
    tables: Iterator[pa.Table], column: str, descending: bool, limit: int | None
) -> Iterator[pa.Table]:
    best: pa.Table | None = None
    for table in tables:
        best = table if best is None else pa.concat_tables([best, table], promote_options="default")
        if limit is not None and len(best) > limit:
            best = _sorted(best, column, descending).slice(0, limit).combine_chunks()
    if best is not None:
        yield _sorted(best, column, descending)


def _sorted(table: pa.Table, column: str, descending: bool) -> pa.Table:
    if column not in table.column_names or any(
        is_kind(table.schema.field(column).type) for is_kind in _NO_ORDER
    ):
        valid = [
            field.name
            for field in table.schema
            if not any(is_kind(field.type) for is_kind in _NO_ORDER)
        ]
        raise ConfigError(
            f"there is no column '{column}' to sort by{did_you_mean(column, valid)}",
            hint=f"use one of {', '.join(valid)}; a leading minus reverses the order",
        )
    keys = (
        table[column].cast(pa.string())
        if pa.types.is_dictionary(table[column].type)
        else table[column]
    )
    indices = pc.sort_indices(
        pa.table({"key": keys}), sort_keys=[("key", "descending" if descending else "ascending")]
    )
    return table.take(indices)


def filter_by_generator(table: pa.Table, name: str) -> pa.Table:
    """Select the rows whose predicted generator, or its family, has the given name.

    Args:
        table: Result rows.
        name: The name, such as "sdxl", in any spelling (see `generators.matches`). `unknown`
            selects rows of images that resemble no known generator.

    Returns:
        The selected rows. The table is empty if the run does not identify generators.
    """
    if "generator_confidence" not in table.column_names:
        return table.slice(0, 0)
    names, families = (
        table["predicted_generator"].to_pylist(),
        table["generator_family"].to_pylist(),
    )
    if name == UNKNOWN:
        return table.filter(
            pc.and_(
                pc.is_null(table["predicted_generator"]), pc.is_valid(table["generator_confidence"])
            )
        )
    is_match = {
        pair: generators.matches(name, *pair) for pair in set(zip(names, families, strict=True))
    }
    return table.filter(
        pa.array([is_match[pair] for pair in zip(names, families, strict=True)], pa.bool_())
    )


def require_known_generator(run: directory.RunDirectory, name: str) -> None:
    """Raise ConfigError if rows of a run cannot be filtered by this generator name.

    The first possible reason is that the run did not identify generators. The second is that
    neither the rows nor the index of known generators (`generators.yaml`) have the name.
    """
    if not run.exists():
        raise run.missing_run_error()
    if not (run.describe()["ensemble"].get("profile") or {}).get("identifier"):
        raise ConfigError(
            f"{run.store.url}: this run did not identify generators",
            hint="score with an ensemble whose `profile` has an identifier",
        )
    if name == UNKNOWN or generators.find_generator(name) is not None:
        return
    columns = ["image_id", "generator_confidence", "predicted_generator", "generator_family"]
    run_generators: set[str] = set()
    for table in current_tables(run, columns):
        if len(filter_by_generator(table, name)):
            return
        run_generators.update(
            pc.unique(table["predicted_generator"].cast(pa.string()).drop_null()).to_pylist()
        )
    raise ConfigError(
        f"no generator is called '{name}'",
        hint=f"use a generator of this run ({', '.join(sorted(run_generators)) or 'none'}), or `unknown` for images of none of them",
    )
