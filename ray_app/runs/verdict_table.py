"""A run's rows in a Delta table: `update_table` makes the table's rows of a run those of its `scores/`, `noted_table` says what it has.

The table holds every row of a run once. A commit has the rows of consecutive blocks of one manifest (a `Stretch`), and with them Delta's
transaction identifier for that stretch, whose version counts the commits of it: what is in the table is read from the table. Beside the
run, `table.json` says what each commit was of. It is written before the commit, so that a process that is killed between the two leaves a
note whose version is not the table's, and the stretch is written again: instead of the rows that are there, in the same commit. Rows that
a retry or another decision has changed replace the former ones in the same way.
"""

import contextlib
import json
import random
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.archives import manifests, read_blocks
from ray_app.errors import ConfigError, StorageError, one_line
from ray_app.runs import document, table_rows
from ray_app.runs.directory import RunDirectory, fingerprint
from ray_app.storage import Store, canonical, strip_secrets
from ray_app.storage.table_place import PROBE_FOLDER, creates_once, table_place
from ray_app.storage.urls import scheme_of

NOTE = "table.json"
COMMIT_ROWS = 250_000  # of one manifest: what is written again after a kill; the writer holds some 1.4 KiB of memory for each
_TRIES, _PAUSE_S = 8, 0.5  # of commits that another writer's have overtaken
_LOG = "_delta_log"
_COMMIT = re.compile(r"\d{20}(\.json|\.checkpoint\..*parquet)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CHECKPOINT = "10"  # commits between two checkpoints: an opening reads no more small files than this


@dataclass(frozen=True)
class Stretch:
    """Consecutive blocks first…last of a manifest, and of their last commit its number, what verdicts it had (see `_verdicts`), and the
    session that made it.
    """

    manifest: int
    first: int
    last: int
    rows: int
    version: int = 0
    verdicts: str = ""
    session: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """What tells it from others of the run."""
        return self.manifest, self.first


def check_table(url: str) -> None:
    """Whether rows could be appended to the table at a URL, or one be made there. Raises ConfigError where deltalake is missing, the place
    holds something else or a table of other columns, StorageError where it is out of reach or two writers would overwrite each other's.
    """
    table_place(url)
    if _is_there(url):
        _opened(url)
    store = Store.open(url)
    if scheme_of(url) != "file" and not creates_once(store):
        raise StorageError(
            f"--table {store.url}: this store has no conditional writes (it ignores or refuses If-None-Match): of two commits to one table "
            "at once, one would be lost",
            hint="keep the table on a store that has them, or on a disk",
        )


def update_table(run: RunDirectory, url: str, session: int) -> document.TableSummary:
    """Make the table's rows of a run those of its published files, from wherever an earlier call stopped; returns what the summary says.

    `session`: the number of this one. The table is made where there is none. Raises as `check_table`, and StorageError where others commit
    all the time, or the store fails.
    """
    from deltalake.exceptions import CommitFailedError

    run.check_settled()
    for left in reversed(range(_TRIES)):
        try:
            return _Update(run, url, session).done()
        except CommitFailedError as error:
            if not left:
                raise StorageError(
                    f"{strip_secrets(url)}: others committed to this table whenever this command tried to: {one_line(str(error))}",
                    hint="run the same command again",
                ) from error
            time.sleep(random.uniform(0.5, 1.5) * _PAUSE_S)  # each try begins with what is in the table by now
    raise AssertionError("the last try returns or raises")


def noted_table(run: RunDirectory) -> document.TableSummary | None:
    """Which table a run's rows were last appended to, how many it has, and whether they are as the run's are now; None where to none."""
    described = run.describe()
    if "table" not in described:
        return None
    note, verdicts = _Note.read(run), _verdicts(described)
    is_current = (
        all(one.verdicts == verdicts for one in note.stretches.values())
        and {one.manifest for one in note.stretches.values()} == set(manifests(run.store))
        and not _retried_after(run, note.session)
    )
    return document.TableSummary(url=note.url, rows=note.rows, appended=0, current=is_current)


def _retried_after(run: RunDirectory, session: int) -> bool:
    """Whether a session after that one replaced rows."""
    names = [name for name in run.store.names("sessions") if int(name.removesuffix(".json")) > session]
    return any(run.read_json(f"sessions/{name}").get("retries") for name in names)


@dataclass
class _Note:
    """`table.json`: where the rows are, in which commits, and the last session at whose end all of them were as the run's."""

    url: str
    stretches: dict[tuple[int, int], Stretch]
    session: int = 0

    @classmethod
    def read(cls, run: RunDirectory) -> "_Note":
        try:
            content = run.read_json(NOTE)
        except FileNotFoundError:
            return cls("", {})
        stretches = (Stretch(**fields) for fields in content["stretches"])
        return cls(content["url"], {one.place: one for one in stretches}, content["session"])

    def write(self, run: RunDirectory) -> None:
        stretches = [asdict(one) for _, one in sorted(self.stretches.items())]
        run.store.write(NOTE, json.dumps({"url": self.url, "session": self.session, "stretches": stretches}).encode())

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.stretches.values())


class _Update:
    """One pass over a run's manifests, with the table as it is at its beginning."""

    def __init__(self, run: RunDirectory, url: str, session: int) -> None:
        self._run, self._session = run, session
        self._table: Any = _made(url)
        described = _with_id(run)
        self._verdicts = _verdicts(described)
        run_id, ensemble = described["table"]["run_id"], str(described["ensemble"].get("name", ""))
        self._facts = table_rows.RowOrigin(run_id, run.store.url, ensemble, fingerprint(described["identity"]))
        self._nights = table_rows.Nights(run)
        note, place = _Note.read(run), strip_secrets(canonical(url))
        self._note = note if note.url == place else _Note(place, {})
        self._retried = bool(self._note.stretches) and _retried_after(run, self._note.session)
        self._appended = 0

    def done(self) -> document.TableSummary:
        for manifest in manifests(self._run.store):
            wanted = self._missing(manifest)
            if wanted:
                self._commit_manifest(manifest, wanted)
        if self._note.session != self._session:
            self._note.session = self._session
            self._note.write(self._run)
        return document.TableSummary(url=self._note.url, rows=self._note.rows, appended=self._appended, current=True)

    def _missing(self, manifest: int) -> list[Stretch]:
        """The stretches of a manifest whose rows are not in the table as they are in the run."""
        noted = sorted((one for one in self._note.stretches.values() if one.manifest == manifest), key=lambda one: one.first)
        if not noted:
            noted = _cut(self._run, manifest)
            self._note.stretches |= {one.place: one for one in noted}
        changed = self._changed(manifest, noted) if self._retried else set()
        return [one for one in noted if one.rows and (one.place in changed or not self._has(one))]

    def _has(self, stretch: Stretch) -> bool:
        """Whether its last commit came about, and had the verdicts of now."""
        return stretch.verdicts == self._verdicts and stretch.version > 0 and self._version(stretch) == stretch.version

    def _changed(self, manifest: int, noted: list[Stretch]) -> set[tuple[int, int]]:
        """Those with rows that were scored after they were committed."""
        attempts = np.concatenate(
            [np.empty(0, np.int32), *(table["attempt"].to_numpy() for table in self._run.tables(manifest, ["attempt"]))]
        )
        ends = np.cumsum([one.rows for one in noted])
        parts = np.split(attempts, ends[:-1])
        return {one.place for one, part in zip(noted, parts, strict=True) if part.max(initial=0) > max(one.session, self._note.session)}

    def _version(self, stretch: Stretch) -> int | None:
        found: int | None = self._table.transaction_version(self._app_id(stretch))
        return found

    def _app_id(self, stretch: Stretch) -> str:
        return f"touchstone/{self._facts.run_id}/{stretch.manifest}/{stretch.first}"

    def _commit_manifest(self, manifest: int, wanted: list[Stretch]) -> None:
        """Read the rows of a manifest once, and commit those of the stretches that are wanted."""
        rows = _RowsOfBlocks(self._run, manifest)
        for one in wanted:
            before = max(self._version(one) or 0, one.version)  # a table that was copied has rows, and knows of no commit
            noted = replace(one, version=before + 1, verdicts=self._verdicts, session=self._session)
            self._note.stretches[one.place] = noted
            self._note.write(self._run)
            self._commit(noted, rows, is_there=before > 0)
            self._appended += one.rows

    def _commit(self, stretch: Stretch, rows: "_RowsOfBlocks", *, is_there: bool) -> None:
        from deltalake import CommitProperties, Transaction, write_deltalake

        source = _Stream(
            batch
            for found, blocks in rows.of(stretch)
            for batch in table_rows.table_rows(found, blocks, stretch.manifest, self._facts, self._nights.of).to_batches()
        )
        where = (
            f"run_id = '{self._facts.run_id}' AND manifest = {stretch.manifest} AND block >= {stretch.first} AND block <= {stretch.last}"
        )
        placed: dict[str, Any] = {"mode": "overwrite", "predicate": where} if is_there else {"mode": "append"}
        with _translated(self._note.url, source):
            write_deltalake(
                self._table,
                pa.RecordBatchReader.from_batches(table_rows.TABLE_SCHEMA, source),
                schema_mode="merge",  # a table of an earlier version gets the columns that it does not have
                commit_properties=CommitProperties(app_transactions=[Transaction(self._app_id(stretch), stretch.version)]),
                **placed,
            )


class _RowsOfBlocks:
    """The rows of a manifest with the block of each, read once from its beginning."""

    def __init__(self, run: RunDirectory, manifest: int) -> None:
        self._tables = run.tables(manifest, table_rows.ROW_COLUMNS)
        self._members = np.fromiter((ref.members for ref in read_blocks(run.store, manifest)), np.int64)
        self._waiting: pa.Table | None = None
        self._at = 0

    def of(self, stretch: Stretch) -> Iterator[tuple[pa.Table, npt.NDArray[np.int32]]]:
        """Those of later blocks than were asked for before, a bounded table at a time."""
        start = int(self._members[: stretch.first].sum())
        blocks = np.repeat(np.arange(stretch.first, stretch.last + 1, dtype=np.int32), self._members[stretch.first : stretch.last + 1])
        while self._at < start + len(blocks):
            table = self._waiting or next(self._tables)
            skipped = min(max(start - self._at, 0), len(table))
            taken = min(start + len(blocks) - self._at, len(table)) - skipped
            left = table.slice(skipped + taken)
            self._waiting = left if len(left) else None
            begin = self._at + skipped - start
            self._at += skipped + taken
            if taken:
                yield table.slice(skipped, taken), blocks[begin : begin + taken]


class _Stream:
    """Batches that another library draws from its own threads: what they raise is kept, since that library makes a text of it."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self.failure: BaseException | None = None

    def __iter__(self) -> "_Stream":
        return self

    def __next__(self) -> pa.RecordBatch:
        try:
            return next(self._batches)
        except StopIteration:
            raise
        except BaseException as error:
            self.failure = error
            raise


@contextlib.contextmanager
def _translated(url: str, source: _Stream | None = None) -> Iterator[None]:
    """deltalake's errors as ours; that a commit was overtaken stays as it is, and what our own rows raised comes back."""
    from deltalake.exceptions import CommitFailedError, DeltaError

    try:
        yield
    except CommitFailedError:
        raise
    except BaseException as error:
        if source is not None and source.failure is not None:
            raise source.failure from None
        if not isinstance(error, (DeltaError, OSError)):
            raise
        what = one_line(" ".join(_COLOURS.sub("", str(error)).split()))
        raise StorageError(
            f"cannot use the table {strip_secrets(url)}: {what}", hint="run the same command again, or with another --table"
        ) from error


def _made(url: str) -> Any:
    """The table at a URL, made if there is none."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    place, options = table_place(url)
    if not _is_there(url):
        try:
            DeltaTable.create(
                place,
                schema=table_rows.TABLE_SCHEMA,
                partition_by=[table_rows.PARTITIONED_BY],
                configuration={"delta.checkpointInterval": _CHECKPOINT},
                storage_options=options,
            )
        except DeltaError:
            if not _is_there(url):  # it was not made by another at the same moment
                raise
    return _opened(url)


def _is_there(url: str) -> bool:
    """Whether there is a Delta table. Raises ConfigError for a place that holds anything else."""
    store = Store.open(url)
    # What lies there is listed before the log: rows that another writes meanwhile come after its first commit. A log without a commit,
    # and a probe, are of a table that another is about to make.
    others = [*store.names(""), *(set(store.folders("")) - {_LOG, PROBE_FOLDER})]
    if any(map(_COMMIT.fullmatch, store.names(_LOG))):
        return True
    if others:
        raise ConfigError(f"--table {store.url} is not empty, and is not a Delta table", hint="name a folder of its own for the table")
    return False


def _opened(url: str) -> Any:
    """The table. Raises ConfigError where it is another's: without our keys, otherwise divided, or with other types."""
    from deltalake import DeltaTable, Schema

    place, options = table_place(url)
    with _translated(url):
        table = DeltaTable(place, storage_options=options)
        theirs = {field.name: field.type for field in table.schema().fields}
        divided = table.metadata().partition_columns
    ours = {field.name: field.type for field in Schema.from_arrow(table_rows.TABLE_SCHEMA).fields}
    missing = [name for name, _ in table_rows.KEYS if name not in theirs]
    other = [name for name in ours if name in theirs and theirs[name] != ours[name]]
    if missing or other or divided != [table_rows.PARTITIONED_BY]:
        why = (f"it has no column {missing[0]}" if missing else f"its column {other[0]} is {theirs[other[0]]}" if other
               else f"it is partitioned by {', '.join(divided) or 'nothing'}")  # fmt: skip
        raise ConfigError(
            f"--table {strip_secrets(url)} is not a table that Touchstone made: {why}",
            hint="name another place, where the table is then made",
        )
    return table


def _with_id(run: RunDirectory) -> dict[str, Any]:
    """The description of a run, with an id of its own by which a table knows it wherever the run lies; made at the first time."""
    described = run.describe()
    if "table" not in described:
        described |= {"table": {"run_id": uuid.uuid4().hex}}
        run.write_json("run.json", described)
    return described


def _verdicts(described: Mapping[str, Any]) -> str:
    """What all verdicts of a run depend on, beside its scores: its identity, and why they all abstain, if they do."""
    return fingerprint({"identity": described["identity"], "unlike": described.get("unlike")})[:16]


def _cut(run: RunDirectory, manifest: int) -> list[Stretch]:
    """The blocks of a manifest in stretches of about `COMMIT_ROWS`."""
    members = np.fromiter((ref.members for ref in read_blocks(run.store, manifest)), np.int64)
    if not len(members):
        return [Stretch(manifest, 0, -1, 0)]  # of a listing that only found files gone
    ends = np.cumsum(members)
    firsts = np.unique(np.searchsorted(ends, np.arange(0, ends[-1], COMMIT_ROWS), side="right"))
    lasts = np.append(firsts[1:], len(members)) - 1
    return [
        Stretch(manifest, first, last, int(members[first : last + 1].sum()))
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
    ]
