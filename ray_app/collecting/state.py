"""What has become of every url so far: rows in parts, the latest of an id counts. Knows the records of one directory, no host.

collect.json        whose directory it is
parts/              rows as the workers committed them; joined into one when a session ends
A row counts where its image is there: the file, of its size, or the shard. What no row counts for is unfinished.
"""

import io
import json
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.collecting.config import CollectConfig
from ray_app.collecting.keeping import PARTS
from ray_app.collecting.names import ENDINGS
from ray_app.collecting.statuses import OK
from ray_app.collecting.wanted import OUTCOME
from ray_app.errors import IdentityError
from ray_app.runs.claiming import refuse_others
from ray_app.storage import Store

_FORMAT = 1
_READERS = 16
_MANY_PARTS = 8


@dataclass(frozen=True)
class State:
    """`rows`: one per id (`OUTCOME`). `left`: files without a row, by their names without ending."""

    rows: pa.Table
    left: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Records:
    """The directory of one collection, and where its rows lie."""

    config: CollectConfig

    @property
    def url(self) -> str:
        """Where rows, tables and the summary are."""
        out = self.config.out.rstrip("/") or "/"
        return out if self.config.form != "files" or self.config.folder else f"{out}/_collected"

    @property
    def images(self) -> Store:
        """Where images go: files below `folder`, shards below data."""
        return Store.open(self.config.out)

    @property
    def store(self) -> Store:
        """Where all else goes."""
        return Store.open(self.url)

    def claim(self) -> None:
        """Make the directory this command's, or see that it is. Raises IdentityError where files and shards would be mixed."""
        ours = {"format": _FORMAT, "form": self.config.form, "folder": self.config.folder}
        store = self.store
        try:
            theirs = json.loads(store.read("collect.json"))
        except FileNotFoundError:
            refuse_others(store, "collect.json")
            store.write("collect.json", json.dumps(ours).encode())
            return
        if ours != theirs:
            differing = ", ".join(f"{key} {theirs.get(key)!r}, not {ours[key]!r}" for key in ours if ours[key] != theirs.get(key))
            raise IdentityError(f"{store.url} was made otherwise: {differing}", hint="give another --out, or the same form")

    def read(self) -> State:
        """The rows that count, and the files that none of all rows names."""
        rows = self._latest()
        places, sizes = self._places()
        is_ok = pc.equal(rows["status"], OK)
        known = sizes if self.config.form == "files" else dict.fromkeys(places)
        told = zip(rows["place"].to_pylist(), rows["size_bytes"].to_pylist(), is_ok.to_pylist(), strict=True)
        counts = [not ok or (place in known and known[place] in (None, size)) for place, size, ok in told]
        rows = rows.filter(pa.array(counts, pa.bool_()))
        return State(rows, self._left(rows, sizes))

    def join(self) -> None:
        """Make one part of many. Killed in between, rows stand in two of them, which does no harm."""
        names = self.store.names(PARTS)
        if len(names) < _MANY_PARTS:
            return
        file = io.BytesIO()
        pq.write_table(self._table(names), file, compression="zstd")
        self.store.write(f"{PARTS}/{secrets.token_hex(8)}.parquet", file.getvalue())
        for name in names:
            self.store.delete(f"{PARTS}/{name}")

    def _latest(self) -> pa.Table:
        """One row per id: the last by time, and of shards the one that is there."""
        table = self._table(self.store.names(PARTS)).sort_by("ended_at")
        if self.config.form != "files":
            there = pa.array([f"data/{name}" for name in self.images.names("data")], pa.string())
            table = table.filter(pc.or_(pc.not_equal(table["status"], OK), pc.is_in(table["place"], value_set=there)))
        last = {name: row for row, name in enumerate(table["id"].to_pylist())}
        return table.take(pa.array(sorted(last.values()), pa.int64()))

    def _table(self, names: list[str]) -> pa.Table:
        with ThreadPoolExecutor(_READERS) as pool:
            parts = list(pool.map(lambda name: pq.read_table(io.BytesIO(self.store.read(f"{PARTS}/{name}"))), names))
        return pa.concat_tables([OUTCOME.empty_table(), *(part.cast(OUTCOME) for part in parts)])

    def _places(self) -> tuple[set[str], dict[str, int | None]]:
        """Shards that are there; files with their sizes."""
        if self.config.form != "files":
            return {f"data/{name}" for name in self.images.names("data")}, {}
        prefix = f"{self.config.folder}/" if self.config.folder else ""
        return set(), {prefix + name: size for name, size in self.images.sizes(self.config.folder).items()}

    def _left(self, rows: pa.Table, sizes: Mapping[str, int | None]) -> dict[str, tuple[str, ...]]:
        named, left = set(rows["place"].to_pylist()), dict[str, tuple[str, ...]]()
        for stem, name in _images(path.rpartition("/")[2] for path in sizes if path not in named):
            left[stem] = (*left.get(stem, ()), name)
        return left


def _images(names: Iterator[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        stem, _, ending = name.rpartition(".")
        if stem and ending.lower() in ENDINGS:
            yield stem, name
