"""The directory of one collection (`Records`): which urls have ended, by rows in parts; and the tables that people read.

collect.json        whose directory it is
parts/              rows as processes committed them, the latest of an id counts; joined into one when a session ends
collected.parquet   the rows of the list that have an image; failed.parquet: those without, and why
A row counts where its image is there: the file, of its size, or the shard. What no row counts for is unfinished.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datajobs.download.config import CollectConfig
from ray_app.datajobs.download.sink import ENDINGS, OUTCOME
from ray_app.datajobs.download.url_table import UrlTable
from ray_app.datajobs.parts import OK, part_names, read_parts, remove_part, write_part
from ray_app.runs.directory import claim_directory
from ray_app.runs.table_files import write_tables
from ray_app.storage import Store, strip_secrets

_MANY_PARTS = 8
_ROWS = 10_000
_FACTS = ("sha256", "format", "width", "height", "size_bytes")
_REASONS = ("status", "detail", "http_status", "requests", "final_url")


@dataclass(frozen=True)
class State:
    """`rows`: one per id (`OUTCOME`). `left`: files without a row, by their names without ending."""

    rows: pa.Table
    left: Mapping[str, tuple[str, ...]]


class Records:
    """Where a collection lies. `images`: the store in which images go, below `folder` or as shards below data; `store`: all else."""

    def __init__(self, config: CollectConfig) -> None:
        self.config = config
        out = config.out.rstrip("/") or "/"
        self.url = out if config.form != "files" or config.folder else f"{out}/_collected"
        self.images, self.store = Store.open(config.out), Store.open(self.url)

    def claim(self) -> None:
        """Make the directory this command's, or check that it is. Raises IdentityError where files and shards would be mixed."""
        identity = {"format": 1, "form": self.config.form, "folder": self.config.folder}
        claim_directory(self.store, "collect.json", identity, same="form and folder")

    def read(self) -> State:
        """The rows that count, and the files that none of all rows names."""
        rows = self._table(part_names(self.store)).sort_by("ended_at")
        is_failed = pc.not_equal(rows["status"], OK)
        if self.config.form == "files":
            prefix = f"{self.config.folder}/" if self.config.folder else ""
            sizes = {prefix + name: size for name, size in self.images.sizes(self.config.folder).items()}
            rows = _last_of_each(rows)
            found = zip(rows["place"].to_pylist(), rows["size_bytes"].to_pylist(), rows["status"].to_pylist(), strict=True)
            counts = [status != OK or (place in sizes and sizes[place] in (None, size)) for place, size, status in found]
            rows, named = rows.filter(pa.array(counts, pa.bool_())), set(rows["place"].to_pylist())
            return State(rows, _images(path.rpartition("/")[2] for path in sizes if path not in named))
        there = pa.array([f"data/{name}" for name in self.images.names("data")], pa.string())
        return State(_last_of_each(rows.filter(pc.or_(is_failed, pc.is_in(rows["place"], value_set=there)))), {})

    def join(self) -> None:
        """Make one part of many. Killed in between, rows stand in two of them, which does no harm."""
        names = part_names(self.store)
        if len(names) >= _MANY_PARTS:
            write_part(self.store, secrets.token_hex(8), self._table(names).to_pylist(), OUTCOME)
            for name in names:
                remove_part(self.store, name)

    def _table(self, names: list[str]) -> pa.Table:
        return pa.concat_tables([OUTCOME.empty_table(), *(part.cast(OUTCOME) for _, part in read_parts(self.store, names))])

    def write_results(self, listed: UrlTable, rows: pa.Table) -> None:
        """collected.parquet, in the order of the list: `uri` (relative to it; `shard` where images are in shards), the list's columns,
        facts of the file; and failed.parquet. `rows`: one per id of the list.
        """
        order = pc.index_in(listed.rows["id"], value_set=rows["id"].combine_chunks())
        ordered, shown = rows.take(order), _without_secrets(listed.rows)
        is_ok = pc.equal(ordered["status"], OK)
        failed = {"id": shown["id"], "url": shown["url"], **{name: ordered[name] for name in _REASONS}}
        is_files = self.config.form == "files"
        up = "../" if is_files and not self.config.folder else ""
        places = [None if place is None else up + place for place in ordered["place"].to_pylist()]
        collected: dict[str, Any] = {"uri" if is_files else "shard": pa.array(places, pa.string())}
        collected |= dict(zip(shown.schema.names, shown.columns, strict=True)) | {name: ordered[name] for name in _FACTS}
        for name, columns, chosen in (("failed", failed, pc.invert(is_ok)), ("collected", collected, is_ok)):
            table = pa.table(columns).filter(chosen)
            write_tables(self.store, name, table.schema, (table.slice(start, _ROWS) for start in range(0, len(table), _ROWS)))


def _last_of_each(rows: pa.Table) -> pa.Table:
    """One row per id, the last."""
    last = {name: row for row, name in enumerate(rows["id"].to_pylist())}
    return rows.take(pa.array(sorted(last.values()), pa.int64()))


def _images(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        stem, _, ending = name.rpartition(".")
        if stem and ending.lower() in ENDINGS:
            found[stem] = (*found.get(stem, ()), name)
    return found


def _without_secrets(rows: pa.Table) -> pa.Table:
    urls = pa.array([strip_secrets(url) for url in rows["url"].to_pylist()], pa.string())
    return rows.set_column(rows.schema.names.index("url"), "url", urls)
