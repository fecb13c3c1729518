"""Which rows of a run are shown, and in which order (`RowFilter`, `selected_tables`)."""

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

# what is asked for where the identifier names none of the generators that it knows
UNKNOWN = "unknown"
_NO_ORDER = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)


@dataclass(frozen=True)
class RowFilter:
    """Conditions that all hold; None = any. `finding`: words that stand in it. `match`: a glob (*
    and ?) on the uri. Scores are log-odds, bounds included; `since`: rows of then or later.
    """

    verdict: str | None = None
    status: str | None = None
    generator: str | None = None
    match: str | None = None
    min_score: float | None = None
    max_score: float | None = None
    finding: str | None = None
    since: datetime | None = None

    def of(self, table: pa.Table) -> pa.Table:
        """The rows of a table of current rows for which they hold."""
        for name, wanted in (("verdict", self.verdict), ("status", self.status)):
            if wanted is not None:
                table = table.filter(pc.equal(table[name].cast(pa.string()), wanted))
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
            # as SQL has a pattern with * and ?
            like = re.sub(r"[\\%_]", r"\\\g<0>", self.match).replace("*", "%").replace("?", "_")
            table = table.filter(pc.match_like(table["uri"].cast(pa.string()), like))
        if self.min_score is not None:
            table = table.filter(pc.greater_equal(table["score"], self.min_score))
        if self.max_score is not None:
            table = table.filter(pc.less_equal(table["score"], self.max_score))
        return table if self.generator is None else of_generator(table, self.generator)


def selected_tables(
    run: directory.RunDirectory,
    conditions: RowFilter,
    *,
    order: str | None = None,
    limit: int | None = None,
    vanished: bool = False,
    unfinished: bool = False,
) -> Iterator[pa.Table]:
    """The current rows that fulfil conditions, a bounded table at a time, at most `limit` of them.

    `order`: a column, smallest first, or with a minus before it largest first; rows without a value
    come last, equal ones stay in the order of the archive. What is ordered is in memory together:
    the first `limit` rows, or all that fulfil them. Raises ConfigError for a column that has no
    order, for a generator that neither the index of generators nor this run knows, and where there
    is no run. `unfinished`: also rows of listings that are still being scored.
    """
    if conditions.generator is not None:
        require_known_generator(run, conditions.generator)
    found: Iterator[pa.Table] = (
        conditions.of(table)
        for table in current_tables(run, vanished=vanished, unfinished=unfinished)
    )
    if order is not None:
        found = _ordered(found, order.removeprefix("-"), order.startswith("-"), limit)
    left = limit
    for table in found:
        part = table if left is None else table.slice(0, left)
        left = None if left is None else left - len(part)
        if len(part):
            yield part
        if left == 0:
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
        known = [
            field.name
            for field in table.schema
            if not any(is_kind(field.type) for is_kind in _NO_ORDER)
        ]
        raise ConfigError(
            f"there is no column {column} to sort by{did_you_mean(column, known)}",
            hint=f"one of {', '.join(known)}; a minus before it reverses the order",
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


def of_generator(table: pa.Table, wanted: str) -> pa.Table:
    """The rows that a profile says are of a generator or of a family, by any spelling of its name;
    `unknown`: of none that it knows.
    """
    if "generator_confidence" not in table.column_names:
        return table.slice(0, 0)
    names, families = (
        table["predicted_generator"].to_pylist(),
        table["generator_family"].to_pylist(),
    )
    if wanted == UNKNOWN:
        return table.filter(
            pc.and_(
                pc.is_null(table["predicted_generator"]), pc.is_valid(table["generator_confidence"])
            )
        )
    meant = {
        pair: generators.matches(wanted, *pair) for pair in set(zip(names, families, strict=True))
    }
    return table.filter(
        pa.array([meant[pair] for pair in zip(names, families, strict=True)], pa.bool_())
    )


def require_known_generator(run: directory.RunDirectory, name: str) -> None:
    """Raises ConfigError for a generator of which neither the index of generators nor the run
    knows, and for a run that named none.
    """
    if not run.exists():
        raise run.missing()
    if not (run.describe()["ensemble"].get("profile") or {}).get("identifier"):
        raise ConfigError(
            f"{run.store.url}: this run named no generators",
            hint="score with an ensemble whose `profile` has an identifier",
        )
    if name == UNKNOWN or generators.find_generator(name) is not None:
        return
    columns = ["image_id", "generator_confidence", "predicted_generator", "generator_family"]
    named: set[str] = set()
    for table in current_tables(run, columns):
        if len(of_generator(table, name)):
            return
        named.update(
            pc.unique(table["predicted_generator"].cast(pa.string()).drop_null()).to_pylist()
        )
    raise ConfigError(
        f"no generator is called {name}",
        hint=f"this run names {', '.join(sorted(named)) or 'none'}; `unknown` stands for images of none of them",
    )
