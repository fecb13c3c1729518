"""`pack_archive` lists an archive once, writes the missing shards, and compares the counts. The
same command resumes.

pack.json           what was packed, how: another command on the same directory is refused
manifest/0/         the listing, cut into blocks; which shard holds which members follows from it
alone (`plan_shards`) parts/, data/       per shard what became of its members, and the shard; it is
done when both are there unpacked.parquet    members that are in no shard, each with status and
detail summary.json        the figures, when all shards are there Small jobs run in this process,
larger ones in a pool on Ray.
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
from ray_app.archives.progress import ProgressLog
from ray_app.cluster.progress import Progress
from ray_app.cluster.ray_cluster import cluster, named_cluster, on_ray
from ray_app.config import as_begun
from ray_app.datajobs.parts import OK, labelled, part_names, read_parts, remove_part, work_through
from ray_app.datajobs.shards.config import Form, PackConfig
from ray_app.datajobs.shards.writer import UNPACKED, Shard, WriteShard
from ray_app.errors import ClusterError, ConfigError, Status, resumable
from ray_app.reports import format as wording
from ray_app.reports.folders import describe_closed_folders
from ray_app.runs.directory import claim_directory, claimed_by, is_claimed
from ray_app.runs.table_files import write_tables
from ray_app.storage import Lease, Store, with_s3_settings
from ray_app.streams.worker_pool import in_pool

# Less than this is written before a local cluster would be up.
_SMALL_BYTES = 10**9
_CHOSEN = (
    "form",
    "include",
    "exclude",
    "limit",
    "columns",
    "container_limits",
    "shard_mb",
    "max_member_bytes",
)
# of a directory; 1 had notes in the place of parts, without which a shard would be written again
FORMAT = 2
_CLAIM, _SAME = "pack.json", "source and form"
# Small blocks of one size, so that a shard of large files is not much larger than requested.
_BLOCKS = archives.BlockPlan(batch_slots=64, max_block_members=64)
# What a member weighs whose store does not say: the mean of a web photograph, roughly.
_UNKNOWN_BYTES = 256 * 1024
# The members of a shard are held as names while it is written.
_MOST_MEMBERS = 65_536
# What another attempt may give; what has changed since it was listed stays changed.
FROM_STORAGE = frozenset(
    (Status.SOURCE_MISSING, Status.SOURCE_DENIED, Status.SOURCE_THROTTLED, Status.SOURCE_TIMEOUT)
)
_SHARDS = {"parquet": "Parquet", "webdataset": "WebDataset"}


@with_s3_settings
def pack_archive(config: PackConfig, *, retry: bool = False) -> dict[str, Any]:
    """Pack `config.source` into shards in `config.out`; returns the content of `summary.json`.

    The source is listed once: what comes to it later belongs into another directory. With `retry`,
    shards in which members could not be read from storage are written again; folders that could not
    be listed are not listed again. Raises ConfigError, IdentityError, StorageError, ClusterError,
    and KeyboardInterrupt after saying how to go on.
    """
    store = Store.open(config.out)
    if (begun := claimed_by(store, _CLAIM)) is not None:
        config = as_begun(
            config,
            {name: begun[name] for name in _CHOSEN if name in begun},
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
    # What another command on the same directory must match: all that decides which bytes lie in
    # which shard.
    chosen = config.model_dump(mode="json", include=set(_CHOSEN))
    identity = {
        "format": FORMAT,
        "command": "pack",
        "source": [archives.name_of(source) for source in config.source],
        **chosen,
    }
    if not is_claimed(store, _CLAIM, identity, same=_SAME):
        archive.check()  # a misspelt source must not make the directory its own
    with Lease(store, unguarded=config.unguarded) as lease:
        claim_directory(store, _CLAIM, identity, same=_SAME)
        return _write_shards(archive, config, lease, store, retry=retry)


def _write_shards(
    archive: archives.Archive, config: PackConfig, lease: Lease, store: Store, *, retry: bool
) -> dict[str, Any]:
    """List an archive into `store`, write all its shards, and return the summary.

    An exception that interrupts it carries the note RESUMABLE, because finished shards stay.
    """
    start = time.monotonic()
    with resumable(KeyboardInterrupt, ClusterError):
        if archives.read_complete(store, 0) is None:
            with _workers(config, on_ray) as each:
                _list(store, archive, each, config.limit)
        shards = plan_shards(store, config.form, config.shard_mb * 1e6)
        if retry:
            store.delete("summary.json")
            for name, rows in read_parts(store):
                if not FROM_STORAGE.isdisjoint(rows["status"].to_pylist()):
                    remove_part(store, name)
        done, there = set(part_names(store)), {f"data/{name}" for name in store.names("data")}
        pending = [shard for shard in shards if shard.name not in done or shard.path not in there]
        if pending:
            fetcher = archives.fetcher_of(
                config.source, config.retry, allow_private=config.allow_private
            )
            total = sum(shard.members for shard in shards)
            write = WriteShard(
                store, config.form, _input_type(store), fetcher, config.max_member_bytes
            )
            large = (
                len(pending) > 1
                and sum(ref.size_bytes for shard in pending for ref in shard.blocks) > _SMALL_BYTES
            )
            say = f"{total:,} files in {wording.counted(len(shards), 'shard')}, {len(pending):,} to be written"
            progress = Progress(
                total, done=total - sum(shard.members for shard in pending), name="pack"
            )
            with _workers(config, in_pool, wanted=large) as each:
                work_through(each, write, pending, progress=progress, lease=lease, say=say)
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


def _list(store: Store, archive: archives.Archive, each: archives.Each, limit: int | None) -> None:
    try:
        listed = archives.list_members(
            store, archive, _BLOCKS, each=each, progress=ProgressLog("listing").count, limit=limit
        )
    except ConfigError:  # nothing was listed: the directory is anybody's again
        store.clear("manifest")
        store.delete(_CLAIM)
        raise
    if listed is not None and listed.closed_folders:
        sentence = describe_closed_folders(listed.closed_folders, listed.closed_example)
        print(f"listing: {sentence}", file=sys.stderr, flush=True)


@contextmanager
def _workers(
    config: PackConfig, each: archives.Each, *, wanted: bool = False
) -> Iterator[archives.Each]:
    """What runs a step: `each` where there is a cluster, or where one is `wanted`; else, or with
    one worker, this process.
    """
    if config.cluster.workers == 1 or not (wanted or named_cluster(config.cluster.address)):
        yield archives.in_turn
        return
    with cluster(config.cluster):
        yield each


def plan_shards(store: Store, form: Form, shard_bytes: float) -> list[Shard]:
    """The shards of the listing in `store`, the same for every session: as many whole blocks as
    `shard_bytes` hold, one at least.
    """
    runs: list[list[archives.BlockRef]] = []
    size = members = 0
    for ref in archives.read_blocks(store, 0) if archives.read_complete(store, 0) else ():
        expected = ref.size_bytes or ref.members * _UNKNOWN_BYTES
        if not runs or size + expected > shard_bytes or members + ref.members > _MOST_MEMBERS:
            runs.append([])
            size = members = 0
        runs[-1].append(ref)
        size, members = size + expected, members + ref.members
    return [Shard(number, len(runs), form, tuple(blocks)) for number, blocks in enumerate(runs)]


def _input_type(store: Store) -> pa.StructType | None:
    """The source's own columns, as the listing typed them; None where it has none."""
    schema = archives.read_block(store, next(iter(archives.read_blocks(store, 0)))).schema
    return pa.struct(schema.field("input").type) if "input" in schema.names else None


def _reconcile(store: Store, form: Form, shards: Sequence[Shard]) -> dict[str, Any]:
    """Write `unpacked.parquet`, compare what was packed with what was listed, and return the
    figures; once only.

    Raises ClusterError when a member is in no shard and in no list.
    """
    if store.exists("summary.json"):
        return dict(json.loads(store.read("summary.json")))
    listed = archives.read_complete(store, 0)
    members = listed.members if listed else 0
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
        message = (
            f"{store.url}: {packed} files packed and {unpacked} listed as unpacked, of {members}"
        )
        raise ClusterError(message, hint="please report this: it is a bug")
    return {"out": store.url, "form": form, "shards": len(shards), "members": members, "packed": packed, "size_bytes": size_bytes,
            "unpacked": unpacked, "closed_folders": listed.closed_folders if listed else 0,
            "statuses": dict(statuses.most_common()), "formats": dict(formats.most_common())}  # fmt: skip


@labelled
def pack_lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was packed, what was not and where that is listed, and how to read the shards."""
    out = wording.visible(summary["out"])
    shards = wording.counted(summary["shards"], f"{_SHARDS[summary['form']]} shard")
    members = wording.counted(summary["members"], "file")
    yield (
        "packed",
        f"{summary['packed']:,} of {members} into {shards} in {out}/data, {wording.size(summary['size_bytes'])}",
    )
    if none := summary["formats"].get("none"):
        yield (
            "no image",
            f"{none:,} of these are in no image format that Touchstone reads (source.format is null); their bytes are packed as they are",
        )
    if summary["unpacked"]:
        yield "unpacked", f"{summary['unpacked']:,}, listed with reasons in {out}/unpacked.parquet"
        for status, number in summary["statuses"].items():
            yield "", f"{number:,} {status}: {wording.meaning(status)}"
        closed_folders = summary.get("closed_folders", 0)
        if (
            sum(number for status, number in summary["statuses"].items() if status in FROM_STORAGE)
            > closed_folders
        ):
            yield "", "--retry tries again those that the storage did not give"
        if closed_folders:
            yield (
                "",
                f"{wording.counted(closed_folders, 'folder')} could not be listed: to list again, pack into a new --out",
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
