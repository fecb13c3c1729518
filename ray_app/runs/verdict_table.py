"""A run's rows in a Delta table: `update_table` makes the table's rows of a run those of its `scores/`, `noted_table` says what it has.

The table holds every row of a run once: flat, the same columns for every run, whatever detectors it has (`TABLE_SCHEMA`). Some rows at a
time are merged by run, manifest, block and image: what is not there is inserted, what a retry or another decision has changed is replaced,
and all else stays, so that a merge may be repeated. Beside the run, `table.json` says how many rows, in the order of manifests and blocks,
are in the table as the run has them; the table's own log counts the commits of this run (Delta's transaction identifier), so that a table
which is another one by now is noticed.

deltalake reaches stores by a client of its own (Rust's object_store) that reads fewer variables than botocore and fsspec: it gets what
those found (`table_place`). Commits of two writers at once are kept apart by conditional writes, and `creates_once` tries whether a store
has them.
"""

import contextlib
import json
import os
import random
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import manifests, read_blocks, read_complete
from ray_app.archives.cut_blocks import TableStream
from ray_app.errors import ConfigError, StorageError, one_line
from ray_app.runs import document
from ray_app.runs.directory import RunDirectory, fingerprint
from ray_app.runs.rows import with_findings, with_reasons
from ray_app.storage import Store, canonical, errors, strip_secrets, urls

# What identifies a row; first, since Delta keeps statistics of the first columns, by which files are passed over.
KEYS = [("night", pa.date32()), ("run_id", pa.string()), ("manifest", pa.int32()), ("block", pa.int32()), ("image_id", pa.int64())]
_OF_RUN = ("run_id", "run", "ensemble", "fingerprint")  # the same in all rows of a run
TABLE_SCHEMA = pa.schema(
    [
        *KEYS,
        *((name, pa.string()) for name in ("uri", "member")),
        ("occurrence", pa.int32()),
        *((name, pa.string()) for name in ("status", "detail", "finding", "verdict", "verdict_reason", "verdict_detail")),
        ("score", pa.float64()),
        ("probability", pa.float64()),
        ("calibrated", pa.bool_()),
        ("scores", pa.map_(pa.string(), pa.float32())),  # by detector, so that runs with different ensembles stand in one table
        *(
            (name, pa.string())
            for name in ("predicted_generator", "generator_family", "predicted_prompt", "provenance", "sha256", "format")
        ),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("flags", pa.list_(pa.string())),
        ("input", pa.string()),  # JSON: it varies from source to source
        ("attempt", pa.int32()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
        *((name, pa.string()) for name in _OF_RUN[1:]),
    ]
)
PARTITIONED_BY = "night"
_COLUMNS = [name for name in TABLE_SCHEMA.names if name not in {"night", "manifest", "block", *_OF_RUN}]  # of a run, which may have fewer

NOTE = "table.json"
COMMIT_ROWS = 100_000  # of one manifest: what is merged again after a kill, and is in memory, some 1.4 KiB for each
_TRIES, _PAUSE_S = 8, 0.5  # of commits that another writer's have overtaken
_LOG = "_delta_log"
_COMMIT = re.compile(r"\d{20}(\.json|\.checkpoint\..*parquet)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CHECKPOINT = "10"  # commits between two checkpoints: an opening reads no more small files than this
_DIFFERS = " OR ".join(
    ["source.attempt <> target.attempt", "source.fingerprint <> target.fingerprint"]
    + [f"(source.{name} IS DISTINCT FROM target.{name})" for name in ("verdict", "verdict_reason", "verdict_detail")]
)


def check_table(url: str) -> None:
    """Whether rows could be appended to the table at a URL, or one be made there. Raises ConfigError where deltalake is missing, the place
    holds something else or a table of other columns, StorageError where it is out of reach or two writers would overwrite each other's.
    """
    table_place(url)
    if _is_there(url):
        _opened(url)
    store = Store.open(url)
    if urls.scheme_of(url) != "file" and not creates_once(store):
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
    run.check_settled()
    appended = sum(_merged(run, url, session))
    note = _read_note(run)
    return document.TableSummary(url=note.url, rows=note.done, appended=appended, current=True)


def noted_table(run: RunDirectory) -> document.TableSummary | None:
    """Which table a run's rows were last appended to, how many it has, and whether they are as the run's are now; None where to none."""
    described = run.describe()
    if "table" not in described:
        return None
    note = _read_note(run)
    infos = (read_complete(run.store, number) for number in manifests(run.store))
    is_whole = note.done == sum(info.members for info in infos if info is not None)
    is_current = is_whole and note.verdicts == _verdicts(described) and not _retried_after(run, note.session)
    return document.TableSummary(url=note.url, rows=note.done, appended=0, current=is_current)


def _retried_after(run: RunDirectory, session: int) -> bool:
    """Whether a session after that one replaced rows."""
    names = [name for name in run.store.names("sessions") if int(name.removesuffix(".json")) > session]
    return any(run.read_json(f"sessions/{name}").get("retries") for name in names)


@dataclass(frozen=True)
class _Note:
    """`table.json`. Of the run's rows in their order the first `done` are in the table at `url` as the run has them, with these `verdicts`
    (see `_verdicts`) and what was retried up to `session`; `commits`: of this run to the table by then.
    """

    url: str = ""
    done: int = 0
    commits: int = 0
    verdicts: str = ""
    session: int = 0


def _read_note(run: RunDirectory) -> _Note:
    try:
        content = run.read_json(NOTE)
    except FileNotFoundError:
        return _Note()
    return _Note(content["url"]) if "stretches" in content else _Note(**content)  # up to 0.18, commits had other identifiers


def _write_note(run: RunDirectory, note: _Note) -> None:
    run.store.write(NOTE, json.dumps(asdict(note)).encode())


def _merged(run: RunDirectory, url: str, session: int) -> Iterator[int]:
    """Merge what is not in the table as it is in the run, some rows at a time; yields for each how many were new or changed."""
    described = run.describe()
    if "table" not in described:  # an id of its own, by which a table knows the run wherever it lies
        described |= {"table": {"run_id": uuid.uuid4().hex}}
        run.write_json("run.json", described)
    table: Any = _made(url)
    run_id, verdicts, place = described["table"]["run_id"], _verdicts(described), strip_secrets(canonical(url))
    app, before = f"touchstone/{run_id}", _read_note(run)
    is_there = (
        (before.url, before.verdicts) == (place, verdicts)
        and not _retried_after(run, before.session)
        and (table.transaction_version(app) or 0) >= before.commits
    )
    note = _Note(place, before.done if is_there else 0, before.commits, verdicts, session)
    of_run = dict(zip(_OF_RUN, (run_id, run.store.url, str(described["ensemble"].get("name", "")), fingerprint(described["identity"])),
                      strict=True))  # fmt: skip

    @cache
    def began(attempt: int) -> date | None:
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
            return datetime.fromisoformat(run.read_json(f"sessions/{attempt:05d}.json")["started_at"]).astimezone(UTC).date()
        return None

    end = 0
    for manifest in manifests(run.store):
        sizes = np.fromiter((ref.members for ref in read_blocks(run.store, manifest)), np.int64)
        start, end = end, end + int(sizes.sum())
        if end <= note.done:
            continue
        rows, blocks = TableStream(run.tables(manifest, _COLUMNS)), np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        if note.done > start:
            rows.take(note.done - start)
        for first in range(max(note.done, start), end, COMMIT_ROWS):
            last = min(first + COMMIT_ROWS, end)
            some = _table_rows(rows.take(last - first), blocks[first - start : last - start], manifest, of_run, began)
            with _translated(url):
                changed = _merge(table, some, app)
            note = replace(note, done=last, commits=table.transaction_version(app) or 0)
            _write_note(run, note)
            yield changed
    _write_note(run, note)


def _merge(table: Any, rows: pa.Table, app: str) -> int:
    """Merge rows of one manifest of a run in one commit, or in none where nothing is new; returns how many are new or changed."""
    from deltalake import CommitProperties, Transaction
    from deltalake.exceptions import CommitFailedError

    blocks = pc.min_max(rows["block"]).as_py()
    here = (
        f"target.run_id = '{rows['run_id'][0]}' AND target.manifest = {rows['manifest'][0]} "
        f"AND target.block >= {blocks['min']} AND target.block <= {blocks['max']} AND target.image_id = source.image_id"
    )
    for left in reversed(range(_TRIES)):
        commit = CommitProperties(app_transactions=[Transaction(app, (table.transaction_version(app) or 0) + 1)])
        merging = table.merge(rows, here, source_alias="source", target_alias="target", merge_schema=True, commit_properties=commit)
        try:
            found = merging.when_matched_update_all(_DIFFERS).when_not_matched_insert_all().execute()
            return int(found["num_target_rows_inserted"] + found["num_target_rows_updated"])
        except CommitFailedError:  # another writer's commit was first, and changed what this one relies on
            if not left:
                raise
            time.sleep(random.uniform(0.5, 1.5) * _PAUSE_S)
            table.update_incremental()
    raise AssertionError("the last try returns or raises")


def _nights(rows: pa.Table, began: Callable[[int], date | None]) -> pa.ChunkedArray:
    """For each row the date (UTC) on which the session that scored it began, by its `attempt`: a night has one date, past midnight too.
    Where the run has no such session, the date on which the row was scored.
    """
    nights = rows["scored_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.date32())
    for attempt in pc.unique(rows["attempt"]).to_pylist():
        if (night := began(attempt)) is not None:
            nights = pc.if_else(pc.equal(rows["attempt"], attempt), pa.scalar(night, pa.date32()), nights)
    return nights


def _table_rows(
    rows: pa.Table, blocks: npt.NDArray[np.int32], manifest: int, of_run: Mapping[str, str], began: Callable[[int], date | None]
) -> pa.Table:
    """Result rows in `TABLE_SCHEMA`; `blocks` (n,): the block of each. What a run has no column for is null."""
    rows, count = with_findings(with_reasons(rows)), len(rows)
    columns = {
        "night": _nights(rows, began),
        "manifest": pa.array(np.full(count, manifest, np.int32)),
        "block": pa.array(blocks),
        "scores": _score_map(rows["scores"].combine_chunks()),
        **{name: pa.array([value] * count, pa.string()) for name, value in of_run.items()},
    }
    if "input" in rows.column_names:
        given = rows["input"].to_pylist()
        columns["input"] = pa.array([one and json.dumps(one, default=str, ensure_ascii=False) for one in given], pa.string())
    for field in TABLE_SCHEMA:
        if field.name not in columns:
            there = field.name in rows.column_names
            columns[field.name] = rows[field.name].cast(field.type) if there else pa.nulls(count, field.type)
    return pa.table([columns[name] for name in TABLE_SCHEMA.names], schema=TABLE_SCHEMA)


def _score_map(scores: pa.StructArray) -> pa.MapArray:
    """A struct of scores as a map by the detectors' names; null where a row has none, a null value where one detector gave none."""
    names = [field.name for field in scores.type]
    there = np.asarray(scores.is_valid())
    values = np.stack(
        [np.asarray(pc.fill_null(pc.struct_field(scores, [place]), np.nan), np.float32) for place in range(len(names))], axis=1
    )[there].ravel()
    keys = pa.array(names, pa.string()).take(pa.array(np.tile(np.arange(len(names)), int(there.sum()))))
    offsets = pa.array(np.concatenate([[0], np.cumsum(there) * len(names)]).astype(np.int32), mask=np.append(~there, False))
    return pa.MapArray.from_arrays(offsets, keys, pa.array(values, pa.float32(), mask=~np.isfinite(values)))


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """deltalake's errors as ours."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError) as error:
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
                schema=TABLE_SCHEMA,
                partition_by=[PARTITIONED_BY],
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
    ours = {field.name: field.type for field in Schema.from_arrow(TABLE_SCHEMA).fields}
    missing = [name for name, _ in KEYS if name not in theirs]
    other = [name for name in ours if name in theirs and theirs[name] != ours[name]]
    if missing or other or divided != [PARTITIONED_BY]:
        why = (f"it has no column {missing[0]}" if missing else f"its column {other[0]} is {theirs[other[0]]}" if other
               else f"it is partitioned by {', '.join(divided) or 'nothing'}")  # fmt: skip
        raise ConfigError(
            f"--table {strip_secrets(url)} is not a table that Touchstone made: {why}",
            hint="name another place, where the table is then made",
        )
    return table


def _verdicts(described: Mapping[str, Any]) -> str:
    """What all verdicts of a run depend on, beside its scores: its identity, and why they all abstain, if they do."""
    return fingerprint({"identity": described["identity"], "unlike": described.get("unlike")})[:16]


_KINDS = "keep the table on a disk or on s3://"
PROBE_FOLDER = "_touchstone"  # Delta passes over folders whose name begins so
_DEFAULT_REGION = "us-east-1"


def table_place(url: str) -> tuple[str, dict[str, str]]:
    """deltalake's URL and options of a place. Raises ConfigError where its package is missing, or for a place of a kind not tried."""
    if find_spec("deltalake") is None:
        raise ConfigError("--table: deltalake is not installed", hint="pip install 'touchstone-forensics[delta]'")
    place, scheme = canonical(url), urls.scheme_of(url)
    if scheme == "file":
        return place, {}
    if scheme != "s3":
        raise ConfigError(f"--table {strip_secrets(url)}: {scheme}:// was never tried for tables", hint=_KINDS)
    return place, s3_options()


def s3_options() -> dict[str, str]:
    """Endpoint, region and rights as `storage.s3` has them: those of botocore's own chain, which knows profiles, SSO and instances."""
    import botocore.session

    session = botocore.session.get_session()
    region = session.get_config_variable("region") or os.environ.get("AWS_REGION") or _DEFAULT_REGION
    options = {"AWS_REGION": str(region), "AWS_CONDITIONAL_PUT": "etag"}
    endpoint = errors.endpoint_url()
    if endpoint:
        options |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}
    if os.environ.get("FSSPEC_S3_ANON", "").lower() == "true":
        return options | {"AWS_SKIP_SIGNATURE": "true"}
    found = session.get_credentials()
    if found is None:
        return options
    keys = found.get_frozen_credentials()
    options |= {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
    return options | ({"AWS_SESSION_TOKEN": keys.token} if keys.token else {})


def creates_once(store: Store) -> bool:
    """Whether the store refuses to create a file that is there: three small requests, of which nothing is left. Raises StorageError."""
    path = f"{PROBE_FOLDER}/probe-{secrets.token_hex(8)}"
    try:
        return store.create(path, b"first") and not store.create(path, b"second")
    except StorageError as error:
        if not errors.refuses_condition(error.__cause__):
            raise
        return False
    finally:
        store.delete(path)
