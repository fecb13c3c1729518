"""Pack an archive into shards, large files with many images each (`pack_archive`).

`pack_archive` lists the archive once, writes the missing shards, and checks that no file was lost.
Small jobs run in this process, larger ones in worker processes on Ray. The output directory has
these files:

- `pack.json`: source and settings. A command with other settings is rejected.
- `manifest/0/`: the listing, in blocks. It alone determines which shard holds which member
  (`plan_shards`).
- `parts/` and `data/`: for each shard a part with the result of each member, and the shard itself.
  A shard is done if both exist.
- `unpacked.parquet`: members that are in no shard, each with its status and detail.
- `summary.json`: the counts, written when all shards exist.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app import archives
from ray_app.archives.manifest import get_folder
from ray_app.archives.progress import ProgressLog
from ray_app.cluster.progress import Progress
from ray_app.cluster.ray_cluster import cluster, map_on_ray, named_cluster
from ray_app.config import complete_from_run
from ray_app.datajobs.parts import (
    OK,
    format_labels,
    list_parts,
    read_parts,
    remove_part,
    run_units,
)
from ray_app.datajobs.shards.config import Form, PackConfig
from ray_app.datajobs.shards.writer import UNPACKED, Shard, WriteShard
from ray_app.errors import ClusterError, ConfigError, Status, resumable
from ray_app.reports import format as text_format
from ray_app.reports.folders import describe_closed_folders
from ray_app.runs.directory import claim_directory, is_claimed, read_claiming_identity
from ray_app.runs.table_files import write_tables
from ray_app.storage import Lease, Store, apply_s3_settings
from ray_app.streams.worker_pool import map_in_pool

# This process writes less than this amount before a local cluster would have started.
_SMALL_BYTES = 10**9
_IDENTITY_FIELDS = (
    "form",
    "include",
    "exclude",
    "limit",
    "columns",
    "container_limits",
    "shard_mb",
    "max_member_bytes",
)
# Version of the output directory. Version 1 had no parts; its shards would be written again.
FORMAT = 2
_CLAIM, _SAME = "pack.json", "source and form"
# Small blocks of one size, so that a shard of large files is not much larger than requested.
_BLOCKS = archives.BlockPlan(batch_slots=64, max_block_members=64)
# Assumed size of a member whose store does not state it: roughly the mean of web photographs.
_UNKNOWN_BYTES = 256 * 1024
# Limits the memory of a writer, which holds the list of the members of its shard.
_MAX_MEMBERS = 65_536
# Another attempt may succeed. It cannot for a file that changed after it was listed.
FROM_STORAGE = frozenset(
    (Status.SOURCE_MISSING, Status.SOURCE_DENIED, Status.SOURCE_THROTTLED, Status.SOURCE_TIMEOUT)
)
_SHARDS = {"parquet": "Parquet", "webdataset": "WebDataset"}


@apply_s3_settings
def pack_archive(config: PackConfig, *, retry: bool = False) -> dict[str, Any]:
    """Pack the files of `config.source` into shards in `config.out`, or resume an earlier call.

    The source is listed once. To pack files that are added later, use another directory. `retry`
    rewrites the shards with members that could not be read from storage. Folders that could not be
    listed are not listed again. The result is the content of `summary.json`. After a ClusterError
    or a KeyboardInterrupt, the same call resumes.
    """
    store = Store.open(config.out)
    if (existing := read_claiming_identity(store, _CLAIM)) is not None:
        config = complete_from_run(
            config,
            {name: existing[name] for name in _IDENTITY_FIELDS if name in existing},
            where=f"{store.url}/{_CLAIM}",
        )
    archive = archives.open_source(
        config.source,
        config.include,
        config.exclude,
        skip=[store.url],
        columns=config.columns,
        limits=config.container_limits,
        allow_private=config.allow_private,
    )
    # A later command on this directory must match these settings, which determine the bytes of
    # each shard.
    settings = config.model_dump(mode="json", include=set(_IDENTITY_FIELDS))
    identity = {
        "format": FORMAT,
        "command": "pack",
        "source": [archives.canonical_name(source) for source in config.source],
        **settings,
    }
    if not is_claimed(store, _CLAIM, identity, same=_SAME):
        archive.check()  # Before the claim, so that a misspelt source does not claim the directory.
    with Lease(store, unguarded=config.unguarded) as lease:
        claim_directory(store, _CLAIM, identity, same=_SAME)
        return _write_shards(archive, config, lease, store, retry=retry)


def _write_shards(
    archive: archives.Archive, config: PackConfig, lease: Lease, store: Store, *, retry: bool
) -> dict[str, Any]:
    """List an archive into `store`, write its missing shards, and return the summary.

    KeyboardInterrupt and ClusterError get the RESUMABLE note, because finished shards are kept.
    """
    start = time.monotonic()
    with resumable(KeyboardInterrupt, ClusterError):
        if archives.read_complete(store, 0) is None:
            with _workers(config, map_on_ray) as map_fn:
                _list(store, archive, map_fn, config.limit)
        shards = plan_shards(store, config.form, config.shard_mb * 1e6)
        if retry:
            store.delete("summary.json")
            for name, rows in read_parts(store):
                if not FROM_STORAGE.isdisjoint(rows["status"].to_pylist()):
                    remove_part(store, name)
        done, existing = set(list_parts(store)), {f"data/{name}" for name in store.names("data")}
        pending = [
            shard for shard in shards if shard.name not in done or shard.path not in existing
        ]
        if pending:
            fetcher = archives.create_fetcher(
                config.source, config.retry, allow_private=config.allow_private
            )
            total = sum(shard.members for shard in shards)
            write = WriteShard(
                store, config.form, _input_type(store), fetcher, config.max_member_bytes
            )
            is_large = (
                len(pending) > 1
                and sum(ref.size_bytes for shard in pending for ref in shard.blocks) > _SMALL_BYTES
            )
            message = f"{total:,} files in {text_format.pluralize(len(shards), 'shard')}, {len(pending):,} left to write"
            progress = Progress(
                total, done=total - sum(shard.members for shard in pending), name="pack"
            )
            with _workers(config, map_in_pool, needs_cluster=is_large) as map_fn:
                run_units(map_fn, write, pending, progress=progress, lease=lease, message=message)
        summary = _reconcile(store, config.form, shards)
        summary |= {
            "session": {
                "shards": len(pending),
                "wall_s": round(time.monotonic() - start, 2),
                **lease.facts(),
            }
        }
        store.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return summary


def _list(
    store: Store, archive: archives.Archive, map_fn: archives.MapFunction, limit: int | None
) -> None:
    try:
        listing = archives.list_members(
            store, archive, _BLOCKS, each=map_fn, progress=ProgressLog("listing").count, limit=limit
        )
    except ConfigError:  # Nothing was listed: release the directory for other commands.
        store.clear(get_folder(0))
        store.delete(_CLAIM)
        raise
    if listing is not None and listing.closed_folders:
        sentence = describe_closed_folders(listing.closed_folders, listing.closed_example)
        print(f"listing: {sentence}", file=sys.stderr, flush=True)


@contextmanager
def _workers(
    config: PackConfig, map_fn: archives.MapFunction, *, needs_cluster: bool = False
) -> Iterator[archives.MapFunction]:
    """Yield the function that runs a step: `map_fn` on a cluster, or a loop in this process.

    A cluster is used if the config names one or `needs_cluster` is set, unless the config asks for
    one worker.
    """
    if config.cluster.workers == 1 or not (needs_cluster or named_cluster(config.cluster.address)):
        yield archives.map_serial
        return
    with cluster(config.cluster):
        yield map_fn


def plan_shards(store: Store, form: Form, shard_bytes: float) -> list[Shard]:
    """Decide which files go into which shard, by the listing of the archive in `store`.

    Every session of a job gets the same shards, so that it can write the missing ones. The listing
    is divided into blocks of files, which are not divided further. Consecutive blocks go into one
    shard, up to `shard_bytes` bytes and 65,536 files. A block above these limits is a shard of its
    own.
    """
    runs: list[list[archives.BlockRef]] = []
    size = members = 0
    for ref in archives.read_blocks(store, 0) if archives.read_complete(store, 0) else ():
        expected = ref.size_bytes or ref.members * _UNKNOWN_BYTES
        if not runs or size + expected > shard_bytes or members + ref.members > _MAX_MEMBERS:
            runs.append([])
            size = members = 0
        runs[-1].append(ref)
        size, members = size + expected, members + ref.members
    return [Shard(index, len(runs), form, tuple(blocks)) for index, blocks in enumerate(runs)]


def _input_type(store: Store) -> pa.StructType | None:
    """Return the type of the source's own columns in the listing; None if it has no columns."""
    schema = archives.read_block(store, next(iter(archives.read_blocks(store, 0)))).schema
    return pa.struct(schema.field("input").type) if "input" in schema.names else None


def _reconcile(store: Store, form: Form, shards: Sequence[Shard]) -> dict[str, Any]:
    """Write `unpacked.parquet`, check that no member was lost, and return the counts.

    If `summary.json` exists, return its content. Raises ClusterError if a member is neither in a
    shard nor in `unpacked.parquet`.
    """
    if store.exists("summary.json"):
        return dict(json.loads(store.read("summary.json")))
    listing = archives.read_complete(store, 0)
    members = listing.members if listing else 0
    size_bytes, formats, statuses = 0, Counter[str](), Counter[str]()

    def tables() -> Iterator[pa.Table]:
        nonlocal size_bytes
        for _, rows in read_parts(store, [shard.name for shard in shards]):
            size_bytes += pc.sum(rows["size_bytes"]).as_py() or 0
            statuses.update(rows["status"].to_pylist())
            formats.update(rows["format"].drop_null().to_pylist())
            yield rows.filter(pc.not_equal(rows["status"], OK)).select(UNPACKED.names)

    unpacked = write_tables(store, "unpacked", UNPACKED, tables())
    packed = statuses.pop(OK, 0)
    if packed + unpacked != members:
        message = f"{store.url}: {packed} packed and {unpacked} unpacked files do not add up to {members} listed files"
        raise ClusterError(message, hint="report this: it is a bug in Touchstone")
    return {"out": store.url, "form": form, "shards": len(shards), "members": members, "packed": packed, "size_bytes": size_bytes,
            "unpacked": unpacked, "closed_folders": listing.closed_folders if listing else 0,
            "statuses": dict(statuses.most_common()), "formats": dict(formats.most_common())}  # fmt: skip


@format_labels
def pack_lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the lines of text that the command prints about packed and unpacked files.

    The last line is Python code that reads the shards. Each line is a label and a text, which
    `format_labels` joins.
    """
    out = text_format.escape_invisible(summary["out"])
    shards = text_format.pluralize(summary["shards"], f"{_SHARDS[summary['form']]} shard")
    members = text_format.pluralize(summary["members"], "file")
    yield (
        "packed",
        f"{summary['packed']:,} of {members} into {shards} in {out}/data, {text_format.size(summary['size_bytes'])}",
    )
    if none := summary["formats"].get("none"):
        yield (
            "no image",
            f"{none:,} of these files are not in an image format that Touchstone reads (source.format is null); they are packed unchanged",
        )
    if summary["unpacked"]:
        yield "unpacked", f"{summary['unpacked']:,}, listed with reasons in {out}/unpacked.parquet"
        for status, count in summary["statuses"].items():
            yield "", f"{count:,} {status}: {text_format.describe_status(status)}"
        closed_folders = summary.get("closed_folders", 0)
        if (
            sum(count for status, count in summary["statuses"].items() if status in FROM_STORAGE)
            > closed_folders
        ):
            yield "", "use --retry to read again the files that could not be read from storage"
        if closed_folders:
            yield (
                "",
                f"{text_format.pluralize(closed_folders, 'folder')} could not be listed: to list again, pack into another --out",
            )
    if summary["form"] == "parquet":
        yield "read", f"datasets.load_dataset({out!r})"
    elif summary["shards"]:
        count = summary["shards"]
        last = f"{{00000..{count - 1:05}}}" if count > 1 else "00000"
        yield (
            "read",
            f"webdataset.WebDataset({f'{out}/data/train-{last}-of-{count:05}.tar'!r}, shardshuffle=False)",
        )
