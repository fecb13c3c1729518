"""Give each result row of a run its label (`LabelledRows`), in a temporary DuckDB database.

The labels are from a file or an index of labelled images (`read_labels`), or from the column
`input` of the run itself (`own_labels`). Data beyond a fixed memory limit is on disk, so millions
of rows and labels need no more memory than thousands.
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

from ray_app.archives import MapFunction
from ray_app.archives.label_tables import columns_hint
from ray_app.datasets.label_reader import TEXTS, TRUTH, Labels, read_input
from ray_app.datasets.labels import warn_of_spellings
from ray_app.datasets.masks import may_name
from ray_app.errors import ConfigError, StorageError
from ray_app.evaluation.groups import GroupCoder
from ray_app.evaluation.systems import Systems
from ray_app.runs import CurrentRows, RunDirectory
from ray_app.storage import Guard

Tables = Callable[[Sequence[str]], Iterable[pa.Table]]
"""Return labelled rows with the requested columns; a column that does not exist is null.

The function is called once for each pass over the rows.
"""
KEYS = ("image_id", "sha256", "uri")
INPUT_KEY, VIEWS = "input", "views"
"""The key of labels that are in the run's own column `input`, and the column of view scores."""
_GROUP = ("label", "generator", "kind")
_GENERATOR_TEXTS = ("release_date", "architecture")
_LABEL_TEXTS = ("mask_uri", "prompt", *_GENERATOR_TEXTS, "source")
_KIND_PHRASES = {"real": "real", "whole": "fake", "local": "fake, edited locally,"}
_MEMORY, _THREADS = "512MB", 2
# Number of labels whose keys are grouped in one query, so that the query fits into _MEMORY.
_GROUP_BATCH_SIZE = 4_000_000
_ROWS = 65_536


class Database:
    """A DuckDB database that keeps data beyond its memory limit in a temporary folder.

    Raises StorageError if a statement fails, for example because the folder has too little free
    space.
    """

    def __init__(self) -> None:
        import duckdb  # Imported here so that other commands start without it.

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
        """Close and delete the database."""
        self._db.close()
        self._folder.cleanup()

    def add(self, table: str, rows: pa.Table) -> None:
        """Append rows to a table of the database; create the table and missing columns first.

        A column of the Arrow type null is left out.
        """
        rows = rows.select(
            [field.name for field in rows.schema if not pa.types.is_null(field.type)]
        )
        self._db.register("added", rows)
        existing = self._columns.setdefault(table, set())
        if not existing:
            self.execute(f"CREATE TABLE {table} AS FROM added LIMIT 0")
        for name, kind, *_ in self.execute("DESCRIBE FROM added"):
            if existing and name not in existing:
                self.execute(f"ALTER TABLE {table} ADD COLUMN {quote_name(name)} {kind}")
        existing.update(rows.column_names)
        self.execute(f"INSERT INTO {table} BY NAME FROM added")
        self._db.unregister("added")

    def list_columns(self, table: str) -> list[str]:
        """Return the names of a table's columns."""
        return [name for name, *_ in self.execute(f"DESCRIBE {table}")]

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return all its rows as tuples."""
        with self._errors():
            rows: list[tuple[Any, ...]] = self._db.execute(sql, list(values)).fetchall()
            return rows

    def query(self, sql: str, *values: Any) -> pa.Table:
        """Run a query and return its rows as one table."""
        with self._errors():
            return self._db.sql(sql, params=list(values)).to_arrow_table()

    def iter_tables(self, sql: str) -> Iterator[pa.Table]:
        """Run a query and yield its rows in batches. Other queries may run between the batches."""
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
                hint="set TMPDIR to a folder with more free space",
            ) from error


@dataclass
class LabelledRows:
    """Labels of images and, after a call of `join`, also the rows of a run, each with its label.

    Use an object as a context manager. The database is deleted when the context ends, so that
    nothing can be read afterwards.

    Attributes:
        key: The column that joins labels to rows, one of `KEYS` such as `sha256`. It is `INPUT_KEY`
            if the labels are in the run's own column `input`.
        guard: The web servers that may be requested to read true masks, if labels have their URLs.
        doubled: Number of labels that repeat an earlier label of an image.
        other: Key of the first row without a label; None if every row has one.
        other_image: Path of the image of the first row without a label.
        unused_key: Key of the first label without a row; None if every label has one.
        faults: Sentences on known faults of the labelled data, if the labels are an index.
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
        """Number of labels that are used: those of the split, without repeated labels."""
        return self.rows - self.other_split - self.doubled

    def read(self, source: Labels, names: Sequence[str]) -> None:
        """Read all labels of a file or an index of labelled images into the database.

        Use `read_labels` instead, which creates the object and calls this method. If an image has
        several equal labels, the first is kept. Raises ConfigError if a key or a label is missing,
        the split has no label, or two labels of an image differ.
        """
        split = self.split if "split" in names else None
        columns = [
            name
            for name in (*_key_columns(self.key), *_GROUP, *TEXTS, *(["split"] if split else []))
            if name in names
        ]
        for table in source.tables(columns):
            codes, keys = self._coder.encode(table, complete=True), _read_keys(self.key, table)
            if keys.null_count:
                raise ConfigError(
                    f"{self.name}, row {self.rows + pc.index(pc.is_null(keys), True).as_py() + 1}: the column `{self.key}` is empty",
                    hint=f"give every row a value of `{self.key}`, which finds the image of the label",
                )
            label_columns = {f"label_{name}": table[name] for name in TEXTS if name in names}
            positions = pa.array(np.arange(self.rows, self.rows + len(table)))
            labels = pa.table(
                {"key": keys, "place": positions, "code": pa.array(codes), **label_columns}
            ).filter(_is_in_split(table, split))
            self.database.add("labels", labels)
            self.rows, self.other_split = (
                self.rows + len(table),
                self.other_split + len(table) - len(labels),
            )
        if self.rows == self.other_split:
            raise ConfigError(
                f"{self.name}: no labelled image"
                + (f" is in the split '{split}'" if self.rows else ""),
                hint="set --split to a split of the labels"
                if self.rows
                else "give a file with a label, real or fake, in each row",
            )
        self._drop_duplicates()

    def join(
        self,
        run: RunDirectory,
        columns: Sequence[str],
        *,
        systems: Systems | None = None,
        map_fn: MapFunction | None = None,
    ) -> "LabelledRows":
        """Read the newest row of each file of a run, join it with the labels, and return self.

        Files that the last listing no longer found are left out. `VIEWS` in `columns` adds the
        scores of perturbed copies of images. Scores of `systems` are columns with the names of
        `systems.read_score_columns`. Raises ConfigError if the run has no finished listing, or its
        own column has an invalid label.
        """
        score_columns = ("scores", "score", *systems.columns) if systems else ()
        selected = dict.fromkeys(
            ["image_id", "uri", "member", *columns, *_key_columns(self.key), *score_columns]
        )
        rows = CurrentRows.read(run)
        reader, files = _Reader(rows, tuple(selected), systems), rows.files()
        tables = (
            reader.tables(files)
            if map_fn is None
            else chain.from_iterable(map_fn(reader, [[path] for path in files]))
        )
        row, source = 0, f"the columns of {run.store.url}"
        for table in chain([_EMPTY], tables):
            self.database.add("rows", self._prepare_rows(table, row, source))
            row += len(table)
        if self.key == INPUT_KEY:
            self.database.execute("ALTER TABLE rows RENAME TO joined")
        else:
            self.database.execute(
                "CREATE TABLE joined AS SELECT rows.*, labels.* EXCLUDE (key, place) FROM rows LEFT JOIN labels ON rows.key = labels.key"
            )
            self.database.execute("DROP TABLE rows")
        for name in set(columns) - {INPUT_KEY, VIEWS, *self.database.list_columns("joined")}:
            self.database.execute(f"ALTER TABLE joined ADD COLUMN {quote_name(name)} VARCHAR")
        groups = {
            name: pa.array([getattr(group, name) for group in self._coder.groups], pa.string())
            for name in _GROUP
        }
        self.database.add(
            "groups",
            pa.table({"code": pa.array(range(len(self._coder.groups)), pa.int32()), **groups}),
        )
        self._count_matches()
        fakes = (group.generator for group in self._coder.groups if group.label == "fake")
        warn_of_spellings(fakes, self.name)
        return self

    def tables(
        self, columns: Sequence[str], *, include_unlabelled: bool = False
    ) -> Iterator[pa.Table]:
        """Yield the labelled rows in batches, in the order in which `join` read them.

        The labels have `label`, `generator`, `kind`, and texts such as `mask_uri` and `prompt`.
        Other names are columns of the run. A column that does not exist is null. Raises ConfigError
        if a label from the archive itself (the run's column `input`) names a mask that must not be
        read. An archive may be untrusted, so it may not name private files (`may_name`).
        """
        existing = self.database.list_columns("joined")
        checked = self.key == INPUT_KEY and "mask_uri" in columns
        parts = [
            f"{_select_expression(name, existing)} AS {quote_name(name)}"
            for name in dict.fromkeys([*columns, *(["uri", "member"] * checked)])
        ]
        condition = "" if include_unlabelled else "WHERE code IS NOT NULL"
        for table in self.database.iter_tables(
            f"SELECT {', '.join(parts)} FROM joined LEFT JOIN groups USING (code) {condition} ORDER BY row"
        ):
            if checked:
                _check_masks(table)
            yield table.select(list(columns))

    def _drop_duplicates(self) -> None:
        """Keep the first label of each image; raise ConfigError if two differ."""
        parts, n_doubled, differing = self.rows // _GROUP_BATCH_SIZE + 1, 0, None
        for part in range(parts):
            duplicates = f"SELECT key, count(*) - 1 AS more, min(code) <> max(code) AS differ FROM labels WHERE hash(key) % {parts} = {part}"
            duplicates += " GROUP BY key HAVING count(*) > 1"
            [(more, key)] = self.database.execute(
                f"SELECT coalesce(sum(more), 0), min(key) FILTER (differ) FROM ({duplicates})"
            )
            n_doubled, differing = n_doubled + int(more), key if differing is None else differing
        if differing is not None:
            rows = self.database.query(
                "SELECT place, code FROM labels WHERE key = ? ORDER BY place", differing
            ).to_pylist()
            pair = rows[0], next(row for row in rows if row["code"] != rows[0]["code"])
            groups = [self._coder.groups[row["code"]] for row in pair]
            phrases = [
                f"row {row['place'] + 1} is {_KIND_PHRASES[group.kind]} of {group.generator}"
                for row, group in zip(pair, groups, strict=True)
            ]
            raise ConfigError(
                f"{self.name}: {self.key} {_format_key(differing)} has two labels: {', '.join(phrases)}",
                hint="keep one of the two rows",
            )
        self.doubled = n_doubled
        if self.doubled:
            self.database.execute(
                "DELETE FROM labels USING labels AS first WHERE labels.key = first.key AND labels.place > first.place"
            )

    def _prepare_rows(self, table: pa.Table, row: int, source: str) -> pa.Table:
        """Return rows of a run with their numbers and with their keys or their own labels.

        The first row has the number `row`, from zero.
        """
        names = (*TRUTH, *TEXTS) if self.key == INPUT_KEY else TEXTS
        fields = read_input(table, source, names, row + 1)
        columns: dict[str, Any] = {"row": pa.array(np.arange(row, row + len(table)))}
        prefix = "label" if self.key == INPUT_KEY else "own"
        columns |= {
            f"{prefix}_{name}": fields[name] for name in TEXTS if name in fields.column_names
        }
        if self.key != INPUT_KEY:
            columns["key"] = _read_keys(self.key, table)
        elif "label" in fields.column_names:
            codes = self._coder.encode(fields, complete=False)
            is_in = _is_in_split(fields, self.split if "split" in fields.column_names else None)
            columns["code"] = pc.if_else(
                pc.and_(is_in, pa.array(codes >= 0)), pa.array(codes), None
            )
        else:
            columns["code"] = pa.nulls(len(table), pa.int32())
        return pa.table(
            columns | {name: table[name] for name in table.column_names if name != INPUT_KEY}
        )

    def _count_matches(self) -> None:
        """Count rows and labels with and without a match, and keep an example without one."""
        [(self.joined, self.others)] = self.database.execute(
            "SELECT count(code), count(*) - count(code) FROM joined"
        )
        key = "NULL" if self.key == INPUT_KEY else "key"
        for other, *path_parts in self.database.execute(
            f"SELECT {key}, uri, member FROM joined WHERE code IS NULL ORDER BY row LIMIT 1"
        ):
            self.other_image = "/".join(part for part in path_parts if part is not None)
            self.other = self.other_image if other is None else _format_key(other)
        if self.key == INPUT_KEY:
            self.rows = self.joined
            return
        unused = "SELECT count(*), arg_min(key, place) FROM labels ANTI JOIN joined ON labels.key = joined.key"
        [(self.unused, first)] = self.database.execute(unused)
        self.unused_key = None if first is None else _format_key(first)


def read_labels(
    source: Labels, *, key: str | None = None, split: str | None = None
) -> LabelledRows:
    """Read all labels of a file or an index of labelled images, to be joined with a run.

    `key` is by default the first of `KEYS` that the labels have. The result is a context manager.
    Raises ConfigError if a key or a label is missing, two labels of an image differ, or the split
    does not exist.
    """
    names = source.find_columns()
    selected_key = key or next((name for name in KEYS if name in names), None)
    if selected_key is None or selected_key not in names or "label" not in names:
        raise ConfigError(
            f"{source.name}: labels need the column `label` and one of {', '.join(KEYS)}",
            hint=columns_hint(source.list_columns()),
        )
    labels = LabelledRows(source.name, selected_key, source.guard, split)
    with contextlib.ExitStack() as stack:
        stack.enter_context(labels)
        labels.read(source, names)
        stack.pop_all()
    return labels


def own_labels(url: str, split: str | None = None) -> LabelledRows:
    """Return an object for labels that the run itself has in its column `input`.

    The labels are read when `LabelledRows.join` reads the run.
    """
    return LabelledRows(f"the columns of {url}", INPUT_KEY, Guard(), split)


def _key_columns(key: str) -> list[str]:
    return ["uri", "member"] if key == "uri" else [key]


def _read_keys(key: str, table: pa.Table) -> pa.ChunkedArray:
    """Return the key of each row's image (n,).

    A key is a number, a digest, or a URI followed by a zero character and the name inside the
    archive.
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


def quote_name(name: str) -> str:
    """Return the name of a column in quotes for SQL."""
    return '"' + name.replace('"', '""') + '"'


_EMPTY = pa.table(
    {
        name: pa.array([], pa.int64() if name == "image_id" else pa.string())
        for name in ("image_id", "sha256", "uri", "member")
    }
)


@dataclass(frozen=True)
class _Reader:
    """Read files of a run. Picklable, because tasks need it."""

    rows: CurrentRows
    columns: tuple[str, ...]
    systems: Systems | None

    def __call__(self, files: Sequence[str]) -> list[pa.Table]:
        return list(self.tables(files))

    def tables(self, files: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the current rows of some files.

        If there are systems, a column for each score replaces the structs of scores.
        """
        for table in self.rows.tables(self.columns, files=files):
            scores = self.systems.read_score_columns(table) if self.systems else {}
            names = [
                name
                for name in table.column_names
                if not scores or name not in ("scores", "score", VIEWS)
            ]
            yield pa.table({**{name: _plain(table[name]) for name in names}, **scores})


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _select_expression(name: str, existing: Sequence[str]) -> str:
    """Return the SQL of a column of labelled rows.

    The source is the truth, a text of the labels, or the run's own column.
    """
    if name in _GROUP:
        return f"groups.{name}"
    if name in _LABEL_TEXTS:
        columns = [f"label_{name}", *([f"own_{name}"] if name in _GENERATOR_TEXTS else [])]
        return f"coalesce({', '.join([*(column for column in columns if column in existing), 'NULL::VARCHAR'])})"
    return quote_name(name) if name in existing else "NULL::VARCHAR"


def _format_key(key: Any) -> str:
    return str(key).replace("\0", "/")


def _is_in_split(table: pa.Table, split: str | None) -> pa.Array:
    """Return which rows (n,) belong to the split.

    All rows do if no split is requested or no row has one.
    """
    if split is None or table["split"].null_count == len(table):
        return pa.array(np.ones(len(table), np.bool_))
    return pa.array(
        np.asarray(pc.fill_null(pc.equal(table["split"].cast(pa.string()), split), False))
    )


def _check_masks(rows: pa.Table) -> None:
    """Check that the archives of images may name the paths of their masks.

    Raises ConfigError otherwise.
    """
    for uri, member, mask in zip(
        *(rows[name].to_pylist() for name in ("uri", "member", "mask_uri")), strict=True
    ):
        if mask is not None and not may_name(uri or "", member, mask):
            raise ConfigError(
                f"{uri}: this image may not name a mask at {mask}, because an untrusted source could make Touchstone read private files",
                hint="give the labels as a file: --labels FILE",
            )
