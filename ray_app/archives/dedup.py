"""Find out which listed members are new, and which known ones vanished (`IdTable`), by one join of
ids in DuckDB.

Members with one id but different digests collide. The one known before, else the first listed,
keeps the id; the others are hashed again until each has an id of its own. That happens a handful of
times in a lifetime.
"""

import contextlib
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.archives import known_ids, manifest, members, raw_listing, reader
from ray_app.errors import InputError, StorageError
from ray_app.storage import Store, fetch

# A member's position: how often it was hashed again, the number of its raw file, its row there. The
# lowest position claims an id first.
_HASHED_AGAIN, _ROW_BITS = 1 << 56, 32
_ROW_MASK = (1 << _ROW_BITS) - 1
_FILES_AT_ONCE, _ROWS_AHEAD = 8, 8 * raw_listing.RAW_ROWS
# What DuckDB may take up to this number of ids, and its threads. It takes some 140 MB in addition,
# and keeps the rest in a temporary folder.
_MEMORY = ((2_500_000, "64MB", 2), (math.inf, "160MB", 4))
# Ids that are grouped at once. Groups must fit into that memory: 2**19 of them do, 2**20 do not.
_HELD_AT_ONCE = 1 << 18

_CLAIMS = pa.schema([("image_id", pa.int64()), ("word", pa.int64()), ("position", pa.int64())])
# An id of an earlier manifest has the position -1.
_HELD = """
    SELECT image_id, arg_min(word, position) AS holder, min(position) AS first, max(position) AS last, min(word) <> max(word) AS collides
    FROM (SELECT image_id, word, -1 AS position FROM known UNION ALL FROM claims)
    WHERE image_id BETWEEN ? AND ? GROUP BY image_id"""
_COLLIDED = "SELECT position, word FROM claims JOIN held USING (image_id) WHERE collides AND word <> holder ORDER BY position"
_MOVE = "UPDATE claims SET image_id = again.image_id, position = again.position FROM again WHERE claims.position = again.before"
_NEW = "SELECT first % ? FROM held WHERE first >= 0"
_NEW_IDS = "SELECT image_id, holder AS check FROM held WHERE first >= 0 AND image_id BETWEEN ? AND ? ORDER BY image_id"
_OTHER_IDS = "SELECT first % $1 AS place, image_id FROM held WHERE first >= $1 ORDER BY place"
_KEEP = "INSERT INTO known SELECT image_id, holder FROM held WHERE first >= 0"
_VANISHED = """
    SELECT image_id FROM held
    WHERE first < 0 AND (last < 0 OR collides AND image_id NOT IN (
        SELECT image_id FROM claims JOIN held USING (image_id) WHERE collides AND word = holder))
    ORDER BY image_id"""


@dataclass(frozen=True)
class ChosenMembers:
    """The `rows` members of one raw file that a manifest gets. `kept`: a bit for each row of the
    file, None = all of them; `ids`: row and id of those that were hashed again.
    """

    file: raw_listing.RawFile
    rows: int
    kept: bytes | None
    ids: tuple[tuple[int, int], ...]

    def tables(self, store: Store, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Their rows with their ids, a bounded table at a time."""
        if not self.rows:
            return
        stays = (
            None
            if self.kept is None
            else np.unpackbits(np.frombuffer(self.kept, np.uint8), count=self.file.rows).astype(
                bool
            )
        )
        at = 0
        for table in self.file.tables(store, columns):
            renamed = self._renamed(table, at)
            yield (
                renamed if stays is None else renamed.filter(pa.array(stays[at : at + len(table)]))
            )
            at += len(table)

    def _renamed(self, table: pa.Table, at: int) -> pa.Table:
        new = [(row - at, number) for row, number in self.ids if at <= row < at + len(table)]
        if not new or "image_id" not in table.schema.names:
            return table
        ids = table["image_id"].to_numpy().copy()
        ids[[row for row, _ in new]] = [number for _, number in new]
        return table.set_column(0, table.schema.field("image_id"), pa.array(ids))


class IdTable:
    """The ids of a run, in a database of this process. Use as a context manager.

    The ids of earlier manifests are read once. Memory: what DuckDB is given, and in addition a bit
    per listed member and 8 bytes per vanished one.

    Args:
        store: The run directory.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stack = contextlib.ExitStack()
        self._db: Any = None
        self._known = self._most = 0

    def __enter__(self) -> "IdTable":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def choose_new(
        self,
        folder: str,
        files: Sequence[raw_listing.RawFile],
        digest: members.Digest,
        id_rows: int,
        *,
        without: members.Ids | None = None,
    ) -> list[ChosenMembers]:
        """Write the ids of new members, and return which members of each raw file are new.

        Args:
            folder: The folder of the manifest or portion that gets the members.
            files: The listed members.
            digest: Computes further digests of members whose ids collide.
            id_rows: About how many ids a file gets at most.
            without: Sorted ids of members to leave out.

        Raises:
            StorageError: The store, or the folder for temporary files, fails.
        """
        with _errors_of_database():
            db = self._open_database()
            self._most = max(self._most, self._known + sum(file.rows for file in files))
            _resize(db, self._most)
            db.register("claimed", _CLAIMS.empty_table())
            db.execute("CREATE OR REPLACE TABLE claims AS FROM claimed")
            self._claim(files, without)
            _hold(db, self._known)
            while collided := db.execute(_COLLIDED).fetchall():
                _hash_again(db, self._store, files, collided, digest)
                _hold(db, self._known)
            _write_ids(db, self._store, folder, id_rows)
            return _chosen(db, files)

    def vanished(self) -> members.Ids:
        """Return the sorted ids of earlier manifests that are not among the listed members."""
        with _errors_of_database():
            ids: members.Ids = self._db.sql(_VANISHED).to_arrow_table()["image_id"].to_numpy()
        return ids

    def keep_new(self) -> None:
        """Add the new ids to the known ones, once their manifest or portion counts."""
        with _errors_of_database():
            [(count,)] = self._db.execute(_KEEP).fetchall()
        self._known += count

    def _open_database(self) -> Any:
        """Return the database, which has the known ids once it is opened."""
        if self._db is None:
            with contextlib.ExitStack() as stack:
                db, known = stack.enter_context(_database()), 0
                for table in known_ids.known_ids(self._store):
                    db.register("read", table)
                    db.execute("INSERT INTO known FROM read")
                    known += len(table)
                self._stack, self._db, self._known = stack.pop_all(), db, known
        return self._db

    def _claim(self, files: Sequence[raw_listing.RawFile], without: members.Ids | None) -> None:
        jobs = ((file.rows, partial(_ids_of, self._store, file)) for file in files)
        for place, table in enumerate(
            fetch.read_ahead(jobs, depth_bytes=_ROWS_AHEAD, threads=_FILES_AT_ONCE)
        ):
            assert not isinstance(table, InputError), "a store raises no such thing"
            positions = (place << _ROW_BITS) + np.arange(len(table))
            if without is not None:
                stays = ~np.isin(table["image_id"].to_numpy(), without)
                table, positions = table.filter(pa.array(stays)), positions[stays]
            columns = [table["image_id"], table["check"], pa.array(positions, pa.int64())]
            self._db.register("claimed", pa.table(columns, schema=_CLAIMS))
            self._db.execute("INSERT INTO claims FROM claimed")


@contextlib.contextmanager
def _database() -> Iterator[Any]:
    """Open an empty database that reads no file and no network, and is deleted afterwards."""
    import duckdb  # here: reading a manifest does not need it

    with tempfile.TemporaryDirectory(prefix="touchstone-ids-") as folder:
        db = duckdb.connect(
            config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        )
        try:
            db.execute("SET preserve_insertion_order=false")
            db.execute("SET temp_directory=?", [folder])
            db.execute("SET enable_external_access=false")
            db.execute("CREATE TABLE known (image_id BIGINT, word BIGINT)")
            yield db
        finally:
            db.close()


@contextlib.contextmanager
def _errors_of_database() -> Iterator[None]:
    """Raise errors of DuckDB as StorageError: it runs out of memory or disk space."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise StorageError(
            f"cannot join ids in {tempfile.gettempdir()}: {error}",
            hint="set TMPDIR to a folder with more space",
        ) from error


def _resize(db: Any, ids: int) -> None:
    """Set the memory and the threads for this number of ids."""
    memory, threads = next((memory, threads) for most, memory, threads in _MEMORY if ids <= most)
    db.execute(f"SET memory_limit='{memory}'; SET threads={threads}")


def _hold(db: Any, known: int) -> None:
    """Find which member holds each id, for as many ids at a time as fit into memory."""
    [(count,)] = db.execute("SELECT count(*) FROM claims").fetchall()
    count += known
    for part, ids in enumerate(_stretches(count, _HELD_AT_ONCE)):
        db.execute(("INSERT INTO held" if part else "CREATE OR REPLACE TABLE held AS") + _HELD, ids)


def _stretches(count: int, most: int) -> list[tuple[int, int]]:
    """The first and the last id of stretches by top bits, so many that each has at most about
    `most` of `count` ids.
    """
    bits = max(0, -(-count // most) - 1).bit_length()
    firsts = [(part << (64 - bits)) - (1 << 63) for part in range(1 << bits)]
    return [(first, first + (1 << (64 - bits)) - 1) for first in firsts]


def _ids_of(store: Store, file: raw_listing.RawFile, _: object) -> pa.Table:
    return pa.concat_tables(file.tables(store, ["image_id", "check"]))


def _hash_again(
    db: Any,
    store: Store,
    files: Sequence[raw_listing.RawFile],
    collided: Sequence[tuple[int, int]],
    digest: members.Digest,
) -> None:
    """Let members (position, check word) whose id is another's claim their next id."""
    moved = []
    by_file = sorted((position % _HASHED_AGAIN, position) for position, _ in collided)
    for file, places in groupby(by_file, lambda one: one[0] >> _ROW_BITS):
        rows = [
            row
            for table in files[file].tables(store)
            for row in table.drop_columns("check").to_pylist()
        ]
        for place, position in places:
            again = position + _HASHED_AGAIN
            number = members.first_word(
                digest(reader.listed_row(dict(rows[place & _ROW_MASK])), again // _HASHED_AGAIN)
            )
            moved.append({"before": position, "image_id": number, "position": again})
    db.register("again", pa.Table.from_pylist(moved))
    db.execute(_MOVE)


def _write_ids(db: Any, store: Store, folder: str, id_rows: int) -> None:
    """The new ids, sorted, in 2**bits files by their top bits, each with the next word of its
    member's digest.
    """
    [(count,)] = db.execute("SELECT count(*) FROM held WHERE first >= 0").fetchall()
    stretches = _stretches(count, id_rows)
    bits = len(stretches).bit_length() - 1
    for bucket, ids in enumerate(stretches):
        table = db.sql(_NEW_IDS, params=ids).to_arrow_table()
        if len(table):
            path = f"{folder}/ids/{bits}-{bucket:05}.parquet"
            manifest.create_file(store, path, manifest.parquet_bytes(table))


def _chosen(db: Any, files: Sequence[raw_listing.RawFile]) -> list[ChosenMembers]:
    starts = np.cumsum([0, *(-(-file.rows // 8) for file in files)])
    bits = np.zeros(starts[-1], np.uint8)
    for batch in db.sql(_NEW, params=[_HASHED_AGAIN]).to_arrow_reader():
        places = batch.column(0).to_numpy()
        rows = places & _ROW_MASK
        np.bitwise_or.at(
            bits, starts[places >> _ROW_BITS] + (rows >> 3), (128 >> (rows & 7)).astype(np.uint8)
        )
    others = defaultdict(list)
    for place, image_id in db.execute(_OTHER_IDS, [_HASHED_AGAIN]).fetchall():
        others[place >> _ROW_BITS].append((place & _ROW_MASK, image_id))
    found = []
    for place, file in enumerate(files):
        kept = bits[starts[place] : starts[place + 1]]
        rows = int(np.bitwise_count(kept).sum())
        found.append(
            ChosenMembers(
                file, rows, None if rows == file.rows else kept.tobytes(), tuple(others[place])
            )
        )
    return found
