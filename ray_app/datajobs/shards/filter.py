"""`touchstone runs filter`: `filter_run` writes the archive of a finished run without the members that it flags, and the list of those.

Deletes nothing. `KeptMembers` is the run as an archive: the members that stay, with the hash of the bytes that were scored.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import Archive, ListedMember, guard_of, manifest, manifests, read_vanished
from ray_app.archives.members import ListedWithColumns
from ray_app.archives.sources import SourceSection
from ray_app.datajobs.shards import writer
from ray_app.datajobs.shards.config import FilterConfig
from ray_app.datajobs.shards.run import FORMAT, claim, write_shards
from ray_app.errors import ClusterError, ConfigError, Status
from ray_app.reports import format as wording
from ray_app.runs import RunDirectory, check_conservation, current_tables, fingerprint, reader, score_files, table_files
from ray_app.runs.rows import with_reasons
from ray_app.runs.schema import DETAIL
from ray_app.storage import Fetcher, Lease, Store, with_s3_settings

_LISTED = ("uri", "member", "occurrence", "sha256")
_TEXT, _NUMBER = pa.string(), pa.float64()
_NAMES = [("uri", _TEXT), ("member", _TEXT), ("occurrence", pa.int32()), ("sha256", _TEXT)]
REMOVED = pa.schema([*_NAMES, ("verdict", _TEXT), ("score", _NUMBER), ("probability", _NUMBER), ("status", _TEXT), ("reason", _TEXT)])
COLUMNS = ["image_id", *REMOVED.names[:-1], "detail", "calibrated", "verdict_reason", DETAIL]
_DECIDING = ["image_id", "verdict", "status"]


@with_s3_settings
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
        # What another command on the same directory must match; `decisions` differs as soon as other members would go.
        chosen = config.model_dump(mode="json", include={"form", "drop", "shard_mb", "max_member_bytes"})
        decided = {"fingerprint": fingerprint(described["identity"]), "decisions": decisions_digest(run, config.drop)}
        claim(store, {"format": FORMAT, "command": "filter", "run": run.store.url, **chosen, **decided})
        ensemble = described["ensemble"]
        gone = (_removed(rows.filter(pa.array(is_removed(rows, config.drop))), ensemble) for rows in current_tables(run, COLUMNS))
        removed = table_files.write_tables(store, "removed", REMOVED, gone, forms=("parquet", "csv"))
        facts = {"run": run.store.url, "drop": list(config.drop), "current": members, "removed": removed, "kept": members - removed}
        if config.form == "list":
            columns = _own_columns(run)
            listed = _listed(run, config.drop, columns)
            kept = table_files.write_tables(store, "kept", _list_schema(columns), listed, forms=("parquet", "csv"))
            summary: dict[str, Any] = {"out": store.url, "form": "list"}
        else:
            sources = tuple(described["identity"]["source"])
            archive = None if removed == members else KeptMembers(run, sources, config.drop)
            allowed = config.model_copy(update={"allow_private": config.allow_private or guard_of(run.store).allow_private})
            summary = write_shards(archive, sources, allowed, config.form, lease, store, retry=retry)
            kept = summary["members"]
        if kept + removed != members:
            message = f"{store.url}: {kept} files kept and {removed} removed, of {members}"
            raise ClusterError(message, hint="please report this: it is a bug")
        summary |= facts | lease.facts()
        store.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return summary


def _removed(rows: pa.Table, ensemble: Mapping[str, Any]) -> pa.Table:
    """Rows that go, as the removal list has them (`REMOVED`)."""
    plain = [pc.cast(rows[name], REMOVED.field(name).type) for name in REMOVED.names if name != "reason"]
    reasons = [removal_reason(row, ensemble) for row in with_reasons(rows).select(COLUMNS).to_pylist()]
    return pa.Table.from_arrays([*plain, pa.array(reasons, pa.string())], schema=REMOVED)


def removal_reason(row: Mapping[str, Any], ensemble: Mapping[str, Any]) -> str:
    """Why one row goes, in one sentence. `ensemble`: the card that decided, as `run.json` keeps it."""
    if row["status"] != Status.OK:
        message = f"{wording.meaning(row['status'])} ({row['status']})"
        return f"no score: {message}" + (f": {row['detail']}" if row["detail"] else "")
    members = [member["detector"] for member in ensemble["members"]]
    rule = f"{ensemble['rule']} of " if len(members) > 1 else ""
    judge = f"ensemble {ensemble['name']} ({rule}{', '.join(members)})"
    if row["probability"] is None:
        figures = "no probability"
    else:
        calibrated = "calibrated" if row["calibrated"] else "not calibrated: the plain sigmoid of the score"
        figures = f"probability {wording.probability(row['probability'])} ({calibrated})"
    if row["verdict"] != "fake":
        why = "no evidence found" if row["verdict_reason"] is None else wording.why(row["verdict_reason"], row[DETAIL])
        return f"{row['verdict']} by {judge}: {why}; {figures}"
    threshold = ensemble["thresholds"]["fake_above"]
    return f"fake by {judge}: score {row['score']:+.4g} is not below the threshold {threshold:g}; {figures}"


def _own_columns(run: RunDirectory) -> Mapping[str, pa.DataType]:
    """The source's own columns with the types that hold them in every listing."""
    first = {tuple(file.manifests()): file for file in reversed(run.published())}
    schemas = [next(run.rows_in(file.path, ["input"])).schema for file in first.values()]
    given = manifest.joined_inputs((schema.field("input").type for schema in schemas if "input" in schema.names), as_text=True)
    return {field.name: field.type for field in given or ()}


def _list_schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    names = writer.free_names(list(columns), _LISTED)
    plain = [pa.field(name, REMOVED.field(name).type) for name in _LISTED]
    return pa.schema([*plain, *(pa.field(names[column], kind) for column, kind in columns.items())])


def _listed(run: RunDirectory, drop: Sequence[str], columns: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    schema = _list_schema(columns)
    for rows in current_tables(run, [*_LISTED, "verdict", "status", "input"]):
        rows = rows.filter(pa.array(~is_removed(rows, drop)))
        given = (
            dict(zip([field.name for field in rows.schema.field("input").type], rows["input"].combine_chunks().flatten(), strict=True))
            if "input" in rows.schema.names
            else {}
        )
        own = [manifest.as_type(given[column], kind) if column in given else pa.nulls(len(rows), kind) for column, kind in columns.items()]
        yield pa.Table.from_arrays([*(rows[name].cast(schema.field(name).type) for name in _LISTED), *own], schema=schema)


def is_removed(rows: pa.Table, drop: Sequence[str]) -> npt.NDArray[np.bool_]:
    """For each row whether it is removed: its verdict is in `drop`, or it has no score and `failed` is."""
    verdicts = [word for word in drop if word != "failed"]
    removed = pc.fill_null(pc.is_in(rows["verdict"].cast(pa.string()), pa.array(verdicts, pa.string())), False)
    if "failed" in drop:
        removed = pc.or_(removed, pc.not_equal(rows["status"].cast(pa.string()), Status.OK.value))
    return np.asarray(removed.to_numpy())


class KeptMembers(Archive):
    """The members of a run that `drop` leaves. `sources`: what the run scored, for reading it again."""

    def __init__(self, run: RunDirectory, sources: Sequence[str], drop: Sequence[str]) -> None:
        super().__init__(sources)
        self._run, self._drop = run, tuple(drop)

    def numbered_sections(self) -> Iterator[tuple[int, int, SourceSection]]:
        """One section per published file of rows."""
        for number, file in enumerate(self._run.published()):
            yield 0, number, KeptSection(self._run, file, self._drop)

    def empty(self, found: int, opened: int) -> ConfigError:
        """What to say when every member goes."""
        return ConfigError(f"{self._run.store.url}: no file is left", hint="removed.parquet lists them all")


@dataclass(frozen=True)
class KeptSection:
    """The members whose rows are in one file: manifest and rows are in the same order, so both are read once, side by side."""

    run: RunDirectory
    file: score_files.Published
    drop: tuple[str, ...]

    def found(self, fetcher: Fetcher) -> Iterator[tuple[str, ListedMember]]:
        """Members as the manifest has them, `EXPECTED` beside the source's own columns."""
        rows = self._rows()
        for member in reader.members_in(self.run, self.file):
            image_id, stays, sha256 = next(rows, (None, False, None))
            if image_id != member.image_id:
                raise ClusterError(f"{self.run.store.url}: {self.file.path} is not in its manifest's order",
                                   hint="please report this: it is a bug")  # fmt: skip
            if stays:
                name = member.uri if member.member is None else f"{member.uri}/{member.member}"
                # Listings of one run may have a column in different types, which cannot be changed any more.
                yield name, ListedWithColumns(member.uri, member.member, member.occurrence, member.version, member.size_bytes,
                                      {**member.input, writer.EXPECTED: sha256}, member.place, member.refused)  # fmt: skip

    def _rows(self) -> Iterator[tuple[int, bool, str | None]]:
        gone = pa.array(read_vanished(self.run.store, manifests(self.run.store)[-1]))
        for table in self.run.rows_in(self.file.path, [*_DECIDING, "sha256"]):
            stays = ~is_removed(table, self.drop) & ~pc.is_in(table["image_id"], gone).to_numpy()
            yield from zip(table["image_id"].to_pylist(), stays.tolist(), table["sha256"].to_pylist(), strict=True)


def decisions_digest(run: RunDirectory, drop: Sequence[str]) -> str:
    """SHA-256 over (id, goes) of all current members: equal as long as the same members go."""
    digest = hashlib.sha256()
    for table in current_tables(run, _DECIDING):
        digest.update(table["image_id"].to_numpy().tobytes())
        digest.update(np.packbits(is_removed(table, drop)).tobytes())
    return digest.hexdigest()
