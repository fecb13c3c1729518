"""Find which listed members are new, and which known members vanished (`IdTable`).

A member's id is a part of its digest (`identity_digest`). DuckDB joins the ids of listed members
with the ids of earlier manifests, because they may not fit into memory. Two members with the same
id but different digests collide, which is very rare. If one of them is in an earlier manifest, it
keeps the id. Otherwise the member that is listed first gets the id. The other members are hashed
again until each has an id of its own.
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

# A member's position combines how often it was hashed again, the number of its raw file, and its
# row there. The lowest position claims an id first.
_REHASH_STEP, _ROW_BITS = 1 << 56, 32
_ROW_MASK = (1 << _ROW_BITS) - 1
_FILES_AT_ONCE, _ROWS_AHEAD = 8, 8 * raw_listing.RAW_ROWS
# The memory and the threads of DuckDB up to a number of ids. DuckDB needs some 140 MB in addition,
# and stores the remaining data in a temporary folder.
_MEMORY = ((2_500_000, "64MB", 2), (math.inf, "160MB", 4))
# Ids that are grouped at once. Groups must fit into that memory: 2**19 ids do, 2**20 do not.
_MAX_GROUPED_IDS = 1 << 18

_CLAIMS = pa.schema([("image_id", pa.int64()), ("word", pa.int64()), ("position", pa.int64())])
# An id of an earlier manifest has the position -1.
_GROUP_IDS = """
    SELECT image_id, arg_min(word, position) AS holder, min(position) AS first, max(position) AS last, min(word) <> max(word) AS collides
    FROM (SELECT image_id, word, -1 AS position FROM known UNION ALL FROM claims)
    WHERE image_id BETWEEN ? AND ? GROUP BY image_id"""
_SELECT_COLLIDED = "SELECT position, word FROM claims JOIN held USING (image_id) WHERE collides AND word <> holder ORDER BY position"
_MOVE = "UPDATE claims SET image_id = again.image_id, position = again.position FROM again WHERE claims.position = again.before"
_SELECT_NEW = "SELECT first % ? FROM held WHERE first >= 0"
_SELECT_NEW_IDS = "SELECT image_id, holder AS check FROM held WHERE first >= 0 AND image_id BETWEEN ? AND ? ORDER BY image_id"
_SELECT_REHASHED = "SELECT first % $1 AS place, image_id FROM held WHERE first >= $1 ORDER BY place"
_ADD_TO_KNOWN = "INSERT INTO known SELECT image_id, holder FROM held WHERE first >= 0"
_SELECT_VANISHED = """
    SELECT image_id FROM held
    WHERE first < 0 AND (last < 0 OR collides AND image_id NOT IN (
        SELECT image_id FROM claims JOIN held USING (image_id) WHERE collides AND word = holder))
    ORDER BY image_id"""


@dataclass(frozen=True)
class ChosenMembers:
    """The members of one raw file that are written into a manifest, because they are new.

    A raw file has all members that a listing found, before known members are left out.

    Attributes:
        file: The raw file.
        rows: The number of chosen members.
        kept: A bit for each row of the file, set for chosen members. None if all are chosen.
        ids: A tuple (row, new id) for each member that was hashed again, because its first id
            belongs to another member.
    """

    file: raw_listing.RawFile
    rows: int
    kept: bytes | None
    ids: tuple[tuple[int, int], ...]

    def tables(self, store: Store, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of the chosen members in order, as tables of up to some thousand rows.

        A member whose id already belonged to another member has its new id.
        """
        if not self.rows:
            return
        is_chosen = (
            None
            if self.kept is None
            else np.unpackbits(np.frombuffer(self.kept, np.uint8), count=self.file.rows).astype(
                bool
            )
        )
        start = 0
        for table in self.file.tables(store, columns):
            with_ids = self._replace_ids(table, start)
            yield (
                with_ids
                if is_chosen is None
                else with_ids.filter(pa.array(is_chosen[start : start + len(table)]))
            )
            start += len(table)

    def _replace_ids(self, table: pa.Table, start: int) -> pa.Table:
        new = [
            (row - start, image_id)
            for row, image_id in self.ids
            if start <= row < start + len(table)
        ]
        if not new or "image_id" not in table.schema.names:
            return table
        ids = table["image_id"].to_numpy().copy()
        ids[[row for row, _ in new]] = [image_id for _, image_id in new]
        return table.set_column(0, table.schema.field("image_id"), pa.array(ids))


class IdTable:
    """The ids of all members of a run, which show what is new in a listing.

    The ids are in a temporary DuckDB database, so use the table as a context manager. The ids of
    earlier manifests are read once. The table takes the memory of DuckDB, a bit per listed member,
    and 8 bytes per vanished member.

    Args:
        store: The run directory.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stack = contextlib.ExitStack()
        self._db: Any = None
        self._known_count = self._max_ids = 0

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
        """Find the listed members that the run does not have yet, and write their ids to files.

        Args:
            folder: The folder of the manifest or portion that gets the members. Its folder `ids/`
                gets the files.
            files: The raw files with the listed members.
            digest: Computes further digests of members whose ids collide.
            id_rows: About how many ids one written file has at most.
            without: Sorted ids of members that are left out even if they are new.

        Returns:
            The new members of each raw file, in the order of `files`.

        Raises:
            StorageError: The store cannot be read or written, or the folder for temporary files has
                too little space.
        """
        with _database_errors():
            db = self._open_database()
            self._max_ids = max(self._max_ids, self._known_count + sum(file.rows for file in files))
            _resize(db, self._max_ids)
            db.register("claimed", _CLAIMS.empty_table())
            db.execute("CREATE OR REPLACE TABLE claims AS FROM claimed")
            self._claim(files, without)
            _find_holders(db, self._known_count)
            while collided := db.execute(_SELECT_COLLIDED).fetchall():
                _rehash(db, self._store, files, collided, digest)
                _find_holders(db, self._known_count)
            _write_ids(db, self._store, folder, id_rows)
            return _collect_chosen(db, files)

    def vanished(self) -> members.Ids:
        """Return the sorted ids of members of earlier manifests that are not listed now.

        The listed members are those of the last call of `choose_new`.
        """
        with _database_errors():
            ids: members.Ids = (
                self._db.sql(_SELECT_VANISHED).to_arrow_table()["image_id"].to_numpy()
            )
        return ids

    def keep_new(self) -> None:
        """Add the ids that `choose_new` found to the known ids.

        Call this after the manifest with these members, or a portion (part) of it, is written.
        """
        with _database_errors():
            [(count,)] = self._db.execute(_ADD_TO_KNOWN).fetchall()
        self._known_count += count

    def _open_database(self) -> Any:
        """Return the database; the first call opens it and reads the known ids."""
        if self._db is None:
            with contextlib.ExitStack() as stack:
                db, count = stack.enter_context(_database()), 0
                for table in known_ids.read_known_ids(self._store):
                    db.register("read", table)
                    db.execute("INSERT INTO known FROM read")
                    count += len(table)
                self._stack, self._db, self._known_count = stack.pop_all(), db, count
        return self._db

    def _claim(self, files: Sequence[raw_listing.RawFile], without: members.Ids | None) -> None:
        jobs = ((file.rows, partial(_read_raw_ids, self._store, file)) for file in files)
        for file_number, table in enumerate(
            fetch.read_ahead(jobs, depth_bytes=_ROWS_AHEAD, threads=_FILES_AT_ONCE)
        ):
            assert not isinstance(table, InputError), "a store does not raise InputError"
            positions = (file_number << _ROW_BITS) + np.arange(len(table))
            if without is not None:
                is_allowed = ~np.isin(table["image_id"].to_numpy(), without)
                table, positions = table.filter(pa.array(is_allowed)), positions[is_allowed]
            columns = [table["image_id"], table["check"], pa.array(positions, pa.int64())]
            self._db.register("claimed", pa.table(columns, schema=_CLAIMS))
            self._db.execute("INSERT INTO claims FROM claimed")


@contextlib.contextmanager
def _database() -> Iterator[Any]:
    """Open an empty database that reads no file and no network, and delete it afterwards."""
    import duckdb  # Imported here, because reading a manifest does not need it.

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
def _database_errors() -> Iterator[None]:
    """Raise errors of DuckDB, which runs out of memory or disk space, as StorageError."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise StorageError(
            f"cannot compare image ids in the temporary folder {tempfile.gettempdir()}: {error}",
            hint="set TMPDIR to a folder with more space",
        ) from error


def _resize(db: Any, ids: int) -> None:
    """Set the memory and the threads for this number of ids."""
    memory, threads = next(
        (memory, threads) for max_ids, memory, threads in _MEMORY if ids <= max_ids
    )
    db.execute(f"SET memory_limit='{memory}'; SET threads={threads}")


def _find_holders(db: Any, known_count: int) -> None:
    """Find which member holds each id, for as many ids at a time as fit into memory."""
    [(count,)] = db.execute("SELECT count(*) FROM claims").fetchall()
    count += known_count
    for part, ids in enumerate(_split_id_range(count, _MAX_GROUPED_IDS)):
        db.execute(
            ("INSERT INTO held" if part else "CREATE OR REPLACE TABLE held AS") + _GROUP_IDS, ids
        )


def _split_id_range(count: int, max_ids: int) -> list[tuple[int, int]]:
    """Return the first and the last id of ranges that divide all ids by their top bits.

    There are enough ranges that each has about `max_ids` of `count` ids or fewer.
    """
    bits = max(0, -(-count // max_ids) - 1).bit_length()
    firsts = [(part << (64 - bits)) - (1 << 63) for part in range(1 << bits)]
    return [(first, first + (1 << (64 - bits)) - 1) for first in firsts]


def _read_raw_ids(store: Store, file: raw_listing.RawFile, _: object) -> pa.Table:
    return pa.concat_tables(file.tables(store, ["image_id", "check"]))


def _rehash(
    db: Any,
    store: Store,
    files: Sequence[raw_listing.RawFile],
    collided: Sequence[tuple[int, int]],
    digest: members.Digest,
) -> None:
    """Let members (position, check word) whose id belongs to another member claim their next id."""
    new_claims = []
    by_file = sorted((position % _REHASH_STEP, position) for position, _ in collided)
    for file_number, entries in groupby(by_file, lambda entry: entry[0] >> _ROW_BITS):
        rows = [
            row
            for table in files[file_number].tables(store)
            for row in table.drop_columns("check").to_pylist()
        ]
        for file_row, position in entries:
            new_position = position + _REHASH_STEP
            image_id = members.first_word(
                digest(
                    reader.listed_row(dict(rows[file_row & _ROW_MASK])),
                    new_position // _REHASH_STEP,
                )
            )
            new_claims.append({"before": position, "image_id": image_id, "position": new_position})
    db.register("again", pa.Table.from_pylist(new_claims))
    db.execute(_MOVE)


def _write_ids(db: Any, store: Store, folder: str, id_rows: int) -> None:
    """Write the new ids, sorted, into 2**bits files by their top bits.

    Each id has the next word of its member's digest with it.
    """
    [(count,)] = db.execute("SELECT count(*) FROM held WHERE first >= 0").fetchall()
    id_ranges = _split_id_range(count, id_rows)
    bits = len(id_ranges).bit_length() - 1
    for bucket, ids in enumerate(id_ranges):
        table = db.sql(_SELECT_NEW_IDS, params=ids).to_arrow_table()
        if len(table):
            path = f"{folder}/ids/{bits}-{bucket:05}.parquet"
            manifest.create_file(store, path, manifest.to_parquet_bytes(table))


def _collect_chosen(db: Any, files: Sequence[raw_listing.RawFile]) -> list[ChosenMembers]:
    starts = np.cumsum([0, *(-(-file.rows // 8) for file in files)])
    bits = np.zeros(starts[-1], np.uint8)
    for batch in db.sql(_SELECT_NEW, params=[_REHASH_STEP]).to_arrow_reader():
        positions = batch.column(0).to_numpy()
        rows = positions & _ROW_MASK
        np.bitwise_or.at(
            bits, starts[positions >> _ROW_BITS] + (rows >> 3), (128 >> (rows & 7)).astype(np.uint8)
        )
    rehashed = defaultdict(list)
    for position, image_id in db.execute(_SELECT_REHASHED, [_REHASH_STEP]).fetchall():
        rehashed[position >> _ROW_BITS].append((position & _ROW_MASK, image_id))
    selection = []
    for position, file in enumerate(files):
        file_bits = bits[starts[position] : starts[position + 1]]
        rows = int(np.bitwise_count(file_bits).sum())
        selection.append(
            ChosenMembers(
                file,
                rows,
                None if rows == file.rows else file_bits.tobytes(),
                tuple(rehashed[position]),
            )
        )
    return selection
