"""`touchstone filter`: the archive of a finished run without the members that it flags, and the list of those. Deletes nothing."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ray_app.archives import guard_of
from ray_app.archives.rows import as_type, joined_inputs
from ray_app.errors import ClusterError
from ray_app.packing.config import FilterConfig
from ray_app.packing.directory import claim
from ray_app.packing.kept import KeptMembers, decisions_digest
from ray_app.packing.packed import free_names
from ray_app.packing.removing import COLUMNS, REMOVED, Reasons, goes
from ray_app.packing.session import write_shards
from ray_app.packing.streaming import write_tables
from ray_app.runs import RunDirectory, check_conservation, current_tables, fingerprint
from ray_app.storage import Lease, Store

_LISTED = ("uri", "member", "occurrence", "sha256")


def filter_run(config: FilterConfig, *, retry: bool = False) -> dict[str, Any]:
    """Write what is left of a run's archive, and what was taken out of it and why; returns the content of `summary.json`.

    Bytes that are read again are those that were scored, or the member is listed in `unpacked.parquet`. Raises ConfigError (the run is
    unfinished), IdentityError, StorageError, ClusterError, and KeyboardInterrupt after saying how to go on.
    """
    run = RunDirectory.open(config.run)
    described = run.describe_settled()
    members = check_conservation(run)
    store = Store.open(config.out)
    with Lease(store, unguarded=config.unguarded) as lease:
        claim(store, _identity(config, run, described))
        removed = write_tables(store, "removed", REMOVED, _removed(run, config.drop, Reasons.of(described["ensemble"])), csv=True)
        facts = {
            "run": run.store.url,
            "drop": list(config.drop),
            "current": members,
            "removed": removed,
            "kept": members - removed,
            **lease.facts(),
        }
        if config.form == "list":
            columns = _own_columns(run)
            kept = write_tables(store, "kept", _list_schema(columns), _listed(run, config.drop, columns), csv=True)
            summary: dict[str, Any] = {"out": store.url, "form": "list"}
        else:
            sources = tuple(described["identity"]["source"])
            archive = None if removed == members else KeptMembers(run, sources, config.drop)
            allowed = config.model_copy(update={"allow_private": config.allow_private or guard_of(run.store).allow_private})
            summary = write_shards(archive, sources, allowed, config.form, lease, store, retry=retry)
            kept = summary["members"]
        if kept + removed != members:
            raise ClusterError(
                f"{store.url}: {kept} members kept and {removed} removed, of {members}", hint="please report this: it is a bug"
            )
        summary |= facts
        store.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return summary


def _identity(config: FilterConfig, run: RunDirectory, described: Mapping[str, Any]) -> dict[str, Any]:
    """What another command on the same directory must match; `decisions` differs as soon as other members would go."""
    chosen = config.model_dump(mode="json", include={"form", "drop", "shard_mb", "max_member_bytes"})
    decided = {"fingerprint": fingerprint(described["identity"]), "decisions": decisions_digest(run, config.drop)}
    return {"command": "filter", "run": run.store.url, **chosen, **decided}


def _removed(run: RunDirectory, drop: Sequence[str], reasons: Reasons) -> Iterator[pa.Table]:
    for rows in current_tables(run, COLUMNS):
        yield reasons.removed(rows.filter(pa.array(goes(rows, drop))))


def _own_columns(run: RunDirectory) -> Mapping[str, pa.DataType]:
    """The source's own columns with the types that hold them in every listing."""
    first = {file.manifest: file for file in reversed(run.published())}
    schemas = [next(run.file_tables(file, ["input"])).schema for file in first.values()]
    given = joined_inputs((schema.field("input").type for schema in schemas if "input" in schema.names), as_text=True)
    return {field.name: field.type for field in given or ()}


def _list_schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    names = free_names(list(columns), _LISTED)
    plain = [pa.field(name, REMOVED.field(name).type) for name in _LISTED]
    return pa.schema([*plain, *(pa.field(names[column], kind) for column, kind in columns.items())])


def _listed(run: RunDirectory, drop: Sequence[str], columns: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    schema = _list_schema(columns)
    for rows in current_tables(run, [*_LISTED, "verdict", "status", "input"]):
        rows = rows.filter(pa.array(~goes(rows, drop)))
        given = (
            dict(zip([field.name for field in rows.schema.field("input").type], rows["input"].combine_chunks().flatten(), strict=True))
            if "input" in rows.schema.names
            else {}
        )
        own = [as_type(given[column], kind) if column in given else pa.nulls(len(rows), kind) for column, kind in columns.items()]
        yield pa.Table.from_arrays([*(rows[name].cast(schema.field(name).type) for name in _LISTED), *own], schema=schema)
