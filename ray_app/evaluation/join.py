"""The rows of a run joined with labels (`LabelledRows`), in a DuckDB database in a temporary
folder: one join, whatever the labels are.

`read_labels` takes a file or an index of labels, `own_labels` the column `input` of the run itself.
What does not fit into `_MEMORY` is on disk, so that millions of rows and labels need no more memory
than thousands.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import Each
from ray_app.archives.label_tables import columns_hint
from ray_app.datasets.label_reader import TEXTS, TRUTH, Labels, read_input
from ray_app.datasets.masks import may_name
from ray_app.errors import ConfigError, StorageError
from ray_app.evaluation.groups import GroupCoder
from ray_app.evaluation.systems import Systems
from ray_app.runs import CurrentRows, RunDirectory
from ray_app.storage import Guard

Tables = Callable[[Sequence[str]], Iterable[pa.Table]]
"""Labelled rows with the columns asked for, null where there is no such column; called as often as
they are read.
"""
KEYS = ("image_id", "sha256", "uri")
OWN, VIEWS = "input", "views"
"""The key of labels that stand in the run's own column `input`."""
_GROUP = ("label", "generator", "kind")
_OF_GENERATORS = ("release_date", "architecture")
_OF_LABELS = ("mask_uri", "prompt", *_OF_GENERATORS, "source")
_IN_WORDS = {"real": "real", "whole": "fake", "local": "fake, edited locally,"}
_MEMORY, _THREADS = "512MB", 2
# labels whose keys are counted together: that many fit into the memory
_GROUPED_AT_ONCE = 4_000_000
_ROWS = 65_536


class Database:
    """A DuckDB database in a temporary folder. Raises StorageError where the folder has too little
    room.
    """

    def __init__(self) -> None:
        import duckdb  # commands that do not evaluate are spared its start

        self._folder = tempfile.TemporaryDirectory(prefix="touchstone-evaluation-")
        config: dict[str, Any] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "memory_limit": _MEMORY,
            "threads": _THREADS,
        }
        self._db: Any = duckdb.connect(config=config | {"temp_directory": self._folder.name})
        self._db.execute(
            "SET preserve_insertion_order=false; SET enable_external_access=false; SET lock_configuration=true"
        )
        self._columns: dict[str, set[str]] = {}

    def close(self) -> None:
        """Remove it."""
        self._db.close()
        self._folder.cleanup()

    def add(self, table: str, rows: pa.Table) -> None:
        """Append rows to a table, which gets the columns that it does not have yet; a column of
        nulls alone is left out.
        """
        rows = rows.select([one.name for one in rows.schema if not pa.types.is_null(one.type)])
        self._db.register("added", rows)
        known = self._columns.setdefault(table, set())
        if not known:
            self.rows(f"CREATE TABLE {table} AS FROM added LIMIT 0")
        for name, kind, *_ in self.rows("DESCRIBE FROM added"):
            if known and name not in known:
                self.rows(f"ALTER TABLE {table} ADD COLUMN {quoted(name)} {kind}")
        known.update(rows.column_names)
        self.rows(f"INSERT INTO {table} BY NAME FROM added")
        self._db.unregister("added")

    def columns(self, table: str) -> list[str]:
        """The names of a table's columns."""
        return [name for name, *_ in self.rows(f"DESCRIBE {table}")]

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """The few rows that a statement gives, if any."""
        with self._errors():
            found: list[tuple[Any, ...]] = self._db.execute(sql, list(values)).fetchall()
            return found

    def table(self, sql: str, *values: Any) -> pa.Table:
        """The rows that a query gives."""
        with self._errors():
            return self._db.sql(sql, params=list(values)).to_arrow_table()

    def tables(self, sql: str) -> Iterator[pa.Table]:
        """The rows that a query gives, some at a time; other queries may be made in between."""
        with self._errors():
            for batch in self._db.cursor().sql(sql).to_arrow_reader(_ROWS):
                yield pa.Table.from_batches([batch])

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        import duckdb

        try:
            yield
        except duckdb.Error as error:
            raise StorageError(
                f"cannot join labels in {self._folder.name}: {error}",
                hint="TMPDIR names a folder with more room",
            ) from error


@dataclass
class LabelledRows:
    """Labels; and after `join` the rows of a run, each with its label. To be used in a `with`,
    after which nothing can be read any more.

    `name`: of the labels in messages. `key`: what joins labels to rows, one of `KEYS` or `OWN`.
    `guard`: the web servers that may be asked for masks. `rows`: labels read, of which
    `other_split` belong to another split and `doubled` stand there again. `joined`: rows with a
    label; `others`: rows without, `other`: the first of them by its key, `other_image`: its path;
    `unused`: labels without a row, `unused_key`: the first of them. `faults`: sentences on the data of an index.
    """

    name: str
    key: str
    guard: Guard
    split: str | None = None
    rows: int = 0
    doubled: int = 0
    other_split: int = 0
    joined: int = 0
    others: int = 0
    other: str | None = None
    other_image: str | None = None
    unused: int = 0
    unused_key: str | None = None
    faults: list[str] = field(default_factory=list)
    database: Database = field(default_factory=Database, repr=False)

    def __post_init__(self) -> None:
        self._coder = GroupCoder(self.name)

    def __enter__(self) -> "LabelledRows":
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    @property
    def distinct(self) -> int:
        """Labels of the split, each counted once."""
        return self.rows - self.other_split - self.doubled

    def read(self, source: Labels, names: Sequence[str]) -> None:
        """Add the labels of a file or an index. Raises ConfigError for labels without key or label,
        and for contradictory ones.
        """
        split = self.split if "split" in names else None
        columns = [
            name
            for name in (*_key_columns(self.key), *_GROUP, *TEXTS, *(["split"] if split else []))
            if name in names
        ]
        for table in source.tables(columns):
            codes, keys = self._coder.encode(table, complete=True), _keys_of(self.key, table)
            if keys.null_count:
                raise ConfigError(
                    f"{self.name}, row {self.rows + pc.index(pc.is_null(keys), True).as_py() + 1}: no {self.key}"
                )
            texts = {f"label_{name}": table[name] for name in TEXTS if name in names}
            places = pa.array(np.arange(self.rows, self.rows + len(table)))
            labels = pa.table(
                {"key": keys, "place": places, "code": pa.array(codes), **texts}
            ).filter(_of_split(table, split))
            self.database.add("labels", labels)
            self.rows, self.other_split = (
                self.rows + len(table),
                self.other_split + len(table) - len(labels),
            )
        if self.rows == self.other_split:
            raise ConfigError(
                f"{self.name}: no labels" + (f" of split '{split}'" if self.rows else "")
            )
        self._once()

    def join(
        self,
        run: RunDirectory,
        columns: Sequence[str],
        *,
        systems: Systems | None = None,
        each: Each | None = None,
    ) -> "LabelledRows":
        """Join the labels with the current rows of a run: these columns of them, and those of
        `systems.score_columns`. Returns itself.

        With `VIEWS` among the columns scores of views are there, too. `each`: reads the run's
        files, in tasks. Raises ConfigError where there is no run, and for labels of its own that
        are none.
        """
        of_scores = ("scores", "score", *systems.columns) if systems else ()
        wanted = dict.fromkeys(
            ["image_id", "uri", "member", *columns, *_key_columns(self.key), *of_scores]
        )
        rows = CurrentRows.read(run)
        reader, files = _Reader(rows, tuple(wanted), systems), rows.files()
        pieces = (
            reader.tables(files)
            if each is None
            else chain.from_iterable(each(reader, [[path] for path in files]))
        )
        row, where = 0, f"the columns of {run.store.url}"
        for table in chain([_EMPTY], pieces):
            self.database.add("rows", self._numbered(table, row, where))
            row += len(table)
        if self.key == OWN:
            self.database.rows("ALTER TABLE rows RENAME TO joined")
        else:
            self.database.rows(
                "CREATE TABLE joined AS SELECT rows.*, labels.* EXCLUDE (key, place) FROM rows LEFT JOIN labels ON rows.key = labels.key"
            )
            self.database.rows("DROP TABLE rows")
        for name in set(columns) - {OWN, VIEWS, *self.database.columns("joined")}:
            self.database.rows(f"ALTER TABLE joined ADD COLUMN {quoted(name)} VARCHAR")
        groups = {
            name: pa.array([getattr(group, name) for group in self._coder.groups], pa.string())
            for name in _GROUP
        }
        self.database.add(
            "groups",
            pa.table({"code": pa.array(range(len(self._coder.groups)), pa.int32()), **groups}),
        )
        self._count()
        return self

    def tables(self, columns: Sequence[str], *, every: bool = False) -> Iterator[pa.Table]:
        """The labelled rows in the order of the run, with these columns: the run's, and `label`,
        `generator`, `kind` and `TEXTS` of the labels; null where there is none. `every`: also the
        rows without a label.

        Raises ConfigError for a mask that the run's own column may not name.
        """
        there = self.database.columns("joined")
        checked = self.key == OWN and "mask_uri" in columns
        parts = [
            f"{_expression(name, there)} AS {quoted(name)}"
            for name in dict.fromkeys([*columns, *(["uri", "member"] * checked)])
        ]
        where = "" if every else "WHERE code IS NOT NULL"
        for table in self.database.tables(
            f"SELECT {', '.join(parts)} FROM joined LEFT JOIN groups USING (code) {where} ORDER BY row"
        ):
            if checked:
                _check_masks(table)
            yield table.select(list(columns))

    def _once(self) -> None:
        """Raises ConfigError for an image with two labels that differ; of equal ones the first
        stays.
        """
        parts, doubled, differing = self.rows // _GROUPED_AT_ONCE + 1, 0, None
        for part in range(parts):
            twice = f"SELECT key, count(*) - 1 AS more, min(code) <> max(code) AS differ FROM labels WHERE hash(key) % {parts} = {part}"
            twice += " GROUP BY key HAVING count(*) > 1"
            [(more, key)] = self.database.rows(
                f"SELECT coalesce(sum(more), 0), min(key) FILTER (differ) FROM ({twice})"
            )
            doubled, differing = doubled + int(more), key if differing is None else differing
        if differing is not None:
            rows = self.database.table(
                "SELECT place, code FROM labels WHERE key = ? ORDER BY place", differing
            ).to_pylist()
            pair = rows[0], next(row for row in rows if row["code"] != rows[0]["code"])
            groups = [self._coder.groups[row["code"]] for row in pair]
            rows_in_words = [
                f"row {row['place'] + 1} says {_IN_WORDS[one.kind]} of {one.generator}"
                for row, one in zip(pair, groups, strict=True)
            ]
            raise ConfigError(
                f"{self.name}: {self.key} {_shown(differing)} is labelled twice: {', '.join(rows_in_words)}",
                hint="keep one of the two rows",
            )
        self.doubled = doubled
        if self.doubled:
            self.database.rows(
                "DELETE FROM labels USING labels AS first WHERE labels.key = first.key AND labels.place > first.place"
            )

    def _numbered(self, table: pa.Table, row: int, where: str) -> pa.Table:
        """Return rows of a run with their numbers and with their keys or their own labels.

        Args:
            table: The rows.
            row: The number of the first row, from zero.
            where: The name of the rows in messages.
        """
        wanted = (*TRUTH, *TEXTS) if self.key == OWN else TEXTS
        fields = read_input(table, where, wanted, row + 1)
        columns: dict[str, Any] = {"row": pa.array(np.arange(row, row + len(table)))}
        prefix = "label" if self.key == OWN else "own"
        columns |= {
            f"{prefix}_{name}": fields[name] for name in TEXTS if name in fields.column_names
        }
        if self.key != OWN:
            columns["key"] = _keys_of(self.key, table)
        elif "label" in fields.column_names:
            codes = self._coder.encode(fields, complete=False)
            is_in = _of_split(fields, self.split if "split" in fields.column_names else None)
            columns["code"] = pc.if_else(
                pc.and_(is_in, pa.array(codes >= 0)), pa.array(codes), None
            )
        else:
            columns["code"] = pa.nulls(len(table), pa.int32())
        return pa.table(columns | {name: table[name] for name in table.column_names if name != OWN})

    def _count(self) -> None:
        """How many rows and labels belong together, and one example of each that do not."""
        [(self.joined, self.others)] = self.database.rows(
            "SELECT count(code), count(*) - count(code) FROM joined"
        )
        key = "NULL" if self.key == OWN else "key"
        for other, *place in self.database.rows(
            f"SELECT {key}, uri, member FROM joined WHERE code IS NULL ORDER BY row LIMIT 1"
        ):
            self.other_image = "/".join(part for part in place if part is not None)
            self.other = self.other_image if other is None else _shown(other)
        if self.key == OWN:
            self.rows = self.joined
            return
        unused = "SELECT count(*), arg_min(key, place) FROM labels ANTI JOIN joined ON labels.key = joined.key"
        [(self.unused, first)] = self.database.rows(unused)
        self.unused_key = None if first is None else _shown(first)


def read_labels(
    source: Labels, *, key: str | None = None, split: str | None = None
) -> LabelledRows:
    """All labels of a file or an index. `key`: None = the first of KEYS that there is. `split`:
    only labels of it, where they name any.

    Raises ConfigError for labels without key or label, for doubled ones that contradict each other,
    and for a split that is not there.
    """
    named = source.find_columns()
    chosen = key or next((name for name in KEYS if name in named), None)
    if chosen is None or chosen not in named or "label" not in named:
        raise ConfigError(
            f"{source.name}: labels need the column `label` and one of {', '.join(KEYS)}",
            hint=columns_hint(source.list_columns()),
        )
    labels = LabelledRows(source.name, chosen, source.guard, split)
    with contextlib.ExitStack() as stack:
        stack.enter_context(labels)
        labels.read(source, named)
        stack.pop_all()
    return labels


def own_labels(url: str, split: str | None = None) -> LabelledRows:
    """The labels that a run carries in its own column `input`; only those of `split` where their
    rows have any.
    """
    return LabelledRows(f"the columns of {url}", OWN, Guard(), split)


def _key_columns(key: str) -> list[str]:
    """What is read of labels and of rows for a key."""
    return ["uri", "member"] if key == "uri" else [key]


def _keys_of(key: str, table: pa.Table) -> pa.ChunkedArray:
    """What names each row's image (n,): a number, a digest, or an address with the name inside an
    archive after a zero.
    """
    if key == "image_id":
        return table["image_id"]
    if key == "sha256":
        return pc.utf8_lower(table["sha256"].cast(pa.string()))
    uris = table["uri"].cast(pa.string())
    if "member" not in table.column_names or table["member"].null_count == len(table):
        return uris
    members = table["member"].cast(pa.string())
    return pc.if_else(
        pc.is_valid(members),
        pc.binary_join_element_wise(uris, members, "\0", null_handling="replace"),
        uris,
    )


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


_EMPTY = pa.table(
    {
        name: pa.array([], pa.int64() if name == "image_id" else pa.string())
        for name in ("image_id", "sha256", "uri", "member")
    }
)


@dataclass(frozen=True)
class _Reader:
    """Reads files of a run. Picklable, as tasks need it."""

    rows: CurrentRows
    columns: tuple[str, ...]
    systems: Systems | None

    def __call__(self, files: Sequence[str]) -> list[pa.Table]:
        return list(self.tables(files))

    def tables(self, files: Sequence[str]) -> Iterator[pa.Table]:
        """Their current rows, with a column for each score instead of the structs of scores where
        systems are asked for.
        """
        for table in self.rows.tables(self.columns, files=files):
            scores = self.systems.score_columns(table) if self.systems else {}
            kept = [
                name
                for name in table.column_names
                if not scores or name not in ("scores", "score", VIEWS)
            ]
            yield pa.table({**{name: _plain(table[name]) for name in kept}, **scores})


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _expression(name: str, there: Sequence[str]) -> str:
    """What a column of labelled rows is read from: the truth, a text of the labels, or the run's
    own column.
    """
    if name in _GROUP:
        return f"groups.{name}"
    if name in _OF_LABELS:
        places = [f"label_{name}", *([f"own_{name}"] if name in _OF_GENERATORS else [])]
        return f"coalesce({', '.join([*(place for place in places if place in there), 'NULL::VARCHAR'])})"
    return quoted(name) if name in there else "NULL::VARCHAR"


def _shown(key: Any) -> str:
    return str(key).replace("\0", "/")


def _of_split(table: pa.Table, split: str | None) -> pa.Array:
    """Which rows (n,) belong to the split: all where none is asked for, or no row names any."""
    if split is None or table["split"].null_count == len(table):
        return pa.array(np.ones(len(table), np.bool_))
    return pa.array(
        np.asarray(pc.fill_null(pc.equal(table["split"].cast(pa.string()), split), False))
    )


def _check_masks(rows: pa.Table) -> None:
    """Raises ConfigError for a mask's address that the archive in which its image lies may not
    name.
    """
    for uri, member, mask in zip(
        *(rows[name].to_pylist() for name in ("uri", "member", "mask_uri")), strict=True
    ):
        if mask is not None and not may_name(uri or "", member, mask):
            raise ConfigError(
                f"{uri}: what lies in an archive may not say that a mask lies at {mask}",
                hint="give the labels as a file: --labels FILE",
            )
