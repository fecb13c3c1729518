"""What people and other commands read of a collection: the images with their words, and the urls without one. Writes tables."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.collecting.metadata import Listed
from ray_app.collecting.state import Records
from ray_app.collecting.statuses import OK
from ray_app.packing.streaming import write_tables
from ray_app.storage import strip_secrets

COLLECTED, FAILED = "collected", "failed"
_ROWS = 10_000
_FACTS = ("sha256", "format", "width", "height", "size_bytes")
_REASONS = ("status", "detail", "http_status", "requests", "final_url")


def write_results(records: Records, listed: Listed, rows: pa.Table) -> None:
    """collected.parquet, in the order of the list: `uri` (relative to it; `shard` where images are in shards), the list's columns, facts of
    the file. failed.parquet: urls without an image, and why. `rows`: one per id of the list.
    """
    order = pc.index_in(listed.rows["id"], value_set=rows["id"].combine_chunks())
    ordered = rows.take(order)
    is_ok = pc.equal(ordered["status"], OK)
    told = _without_secrets(listed.rows)
    failed = pa.table({"id": told["id"], "url": told["url"], **{name: ordered[name] for name in _REASONS}}).filter(pc.invert(is_ok))
    write_tables(records.store, FAILED, failed.schema, _pieces(failed))
    collected = _collected(records, told, ordered).filter(is_ok)
    write_tables(records.store, COLLECTED, collected.schema, _pieces(collected))


def _collected(records: Records, told: pa.Table, ordered: pa.Table) -> pa.Table:
    is_files = records.config.form == "files"
    up = "../" if is_files and not records.config.folder else ""
    places = [None if place is None else up + place for place in ordered["place"].to_pylist()]
    columns: dict[str, Any] = {"uri" if is_files else "shard": pa.array(places, pa.string())}
    columns |= dict(zip(told.schema.names, told.columns, strict=True))
    return pa.table(columns | {name: ordered[name] for name in _FACTS})


def _without_secrets(rows: pa.Table) -> pa.Table:
    at = rows.schema.names.index("url")
    return rows.set_column(at, "url", pa.array([strip_secrets(url) for url in rows["url"].to_pylist()], pa.string()))


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, len(table), _ROWS):
        yield table.slice(start, _ROWS)
