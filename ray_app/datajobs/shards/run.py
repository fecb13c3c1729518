"""One session of `pack` or `filter`: `pack_archive` and `write_shards` list once, write the missing shards, compare the figures.

pack.json           what was packed, how: another command on the same directory is refused
manifest/0/         the listing, cut into blocks; which shard holds which members follows from it alone
notes/, data/       per shard what became of its members, and the shard
unpacked.parquet    members that are in no shard, each with status and detail
summary.json        the figures, when all shards are there
The same command resumes from the files that are there. Small jobs run in this process, larger ones in a pool on Ray.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_app.archives import Archive, Each, fetcher_of, in_turn, iter_blocks, list_members, name_of, open_source, read_block, read_complete
from ray_app.cluster.progress import Progress
from ray_app.cluster.ray_cluster import cluster, named_cluster, on_ray
from ray_app.config import going_on
from ray_app.datajobs.shards.plan import BLOCKS, FilterConfig, Form, PackConfig, Shard, plan_shards
from ray_app.datajobs.shards.writer import EXPECTED, ShardReport, WriteShard
from ray_app.datasets.labelling import ProgressLog
from ray_app.errors import ClusterError, ConfigError, Status, resumable
from ray_app.reports import format as wording
from ray_app.runs.directory import claim_directory, claimed_by, is_claimed
from ray_app.runs.table_files import write_tables
from ray_app.storage import Lease, Store
from ray_app.streams.each import in_pool

# Less than this is written before a local cluster would be up.
_SMALL_BYTES = 10**9
_CHOSEN = ("form", "include", "exclude", "limit", "columns", "container_limits", "shard_mb", "max_member_bytes")
_FORMAT = 1
CLAIM, _SAME = "pack.json", "source, form and decisions"
_READERS = 16
# What another attempt may give; what has changed since it was listed stays changed.
FROM_STORAGE = frozenset((Status.SOURCE_MISSING, Status.SOURCE_DENIED, Status.SOURCE_THROTTLED, Status.SOURCE_TIMEOUT))
_UNPACKED = pa.schema(
    [("uri", pa.string()), ("member", pa.string()), ("occurrence", pa.int32()), ("status", pa.string()), ("detail", pa.string())]
)
_WIDTH = 11
_SHARDS = {"parquet": "Parquet", "webdataset": "WebDataset"}
_DROPPED = {"fake": "flagged as fake", "abstain": "abstained", "failed": "without a score"}


def write_shards(
    archive: Archive | None,
    sources: Sequence[str],
    config: PackConfig | FilterConfig,
    form: Form,
    lease: Lease,
    store: Store,
    *,
    limit: int | None = None,
    retry: bool = False,
) -> dict[str, Any]:
    """List an archive (None: nothing is left of it) into `store`, write all its shards, and return the figures.

    What interrupts it carries the note RESUMABLE: the shards that are there stay.
    """
    start = time.monotonic()
    directory = PackDirectory(store, form, config.shard_mb * 1e6)
    with resumable(KeyboardInterrupt, ClusterError):
        if archive is not None and read_complete(store, 0) is None:
            with _workers(config, on_ray) as each:
                _list(store, archive, each, limit)
        if retry:
            directory.reopen()
        pending = directory.pending()
        if pending:
            write = WriteShard(
                store,
                form,
                directory.input_type(),
                fetcher_of(sources, config.retry, allow_private=config.allow_private),
                config.max_member_bytes,
            )
            large = len(pending) > 1 and sum(ref.size_bytes for shard in pending for ref in shard.blocks) > _SMALL_BYTES
            with _workers(config, in_pool, wanted=large) as each:
                _write(each, write, pending, lease, total=sum(shard.members for shard in directory.shards()))
        summary = directory.reconcile() | {
            "session": {"shards": len(pending), "wall_s": round(time.monotonic() - start, 2), **lease.facts()}
        }
        store.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return summary


def _list(store: Store, archive: Archive, each: Each, limit: int | None) -> None:
    try:
        list_members(store, archive, BLOCKS, each=each, progress=ProgressLog("listing").count, limit=limit)
    except ConfigError:
        give_up(store)
        raise


def _write(each: Each, write: WriteShard, pending: Sequence[Shard], lease: Lease, *, total: int) -> None:
    progress = Progress(total, done=total - sum(shard.members for shard in pending), name="pack")
    progress.say(f"{total:,} files in {pending[0].count:,} shard{'s' * (pending[0].count != 1)}, {len(pending):,} to be written")
    try:
        with closing(each(write, pending)) as written:
            for notes in written:
                progress.advance(notes.members, len(notes.unpacked))
                lease.check()
    finally:
        progress.close()


@contextmanager
def _workers(config: PackConfig | FilterConfig, each: Each, *, wanted: bool = False) -> Iterator[Each]:
    """What runs a step: `each` where there is a cluster, or where one is `wanted`; else, or with one worker, this process."""
    if config.cluster.workers == 1 or not (wanted or named_cluster(config.cluster.address)):
        yield in_turn
        return
    with cluster(config.cluster):
        yield each


def pack_archive(config: PackConfig, *, retry: bool = False) -> dict[str, Any]:
    """Pack `config.source` into shards in `config.out`; returns the content of `summary.json`.

    The source is listed once: what comes to it later belongs into another directory. With `retry`, shards in which members could not
    be read from storage are written again. Raises ConfigError, IdentityError, StorageError, ClusterError, and KeyboardInterrupt after
    saying how to go on.
    """
    store = Store.open(config.out)
    if (begun := claimed_by(store, CLAIM)) is not None:
        config = going_on(config, {name: begun[name] for name in _CHOSEN if name in begun}, where=f"{store.url}/{CLAIM}")
    archive = open_source(
        config.source,
        config.include,
        config.exclude,
        skip=[store.url],
        columns=config.columns,
        limits=config.container_limits,
        allow_private=config.allow_private,
    )
    if not is_own(store, _identity(config)):
        archive.check()  # a misspelt source must not make the directory its own
    with Lease(store, unguarded=config.unguarded) as lease:
        claim(store, _identity(config))
        return write_shards(archive, config.source, config, config.form, lease, store, limit=config.limit, retry=retry)


def _identity(config: PackConfig) -> dict[str, Any]:
    """What another command on the same directory must match: all that decides which bytes lie in which shard."""
    chosen = config.model_dump(mode="json", include=set(_CHOSEN))
    return {"command": "pack", "source": [name_of(source) for source in config.source], **chosen}


@dataclass(frozen=True)
class PackDirectory:
    """Shards of one archive, of `shard_bytes` each, in one form, on any fsspec URL."""

    store: Store
    form: Form
    shard_bytes: float

    def shards(self) -> Iterator[Shard]:
        """All shards, in order; none while nothing is listed."""
        return plan_shards(self.store, self.shard_bytes) if read_complete(self.store, 0) else iter(())

    def pending(self) -> list[Shard]:
        """Shards that are not there yet."""
        done = set(self.store.names("data"))
        return [shard for shard in self.shards() if shard.path(self.form).removeprefix("data/") not in done]

    def reopen(self) -> int:
        """Remove the shards with members that the storage did not give, so that they are written again; returns how many."""
        self.store.delete("summary.json")
        again = [shard for shard, notes in self.notes() if any(row["status"] in FROM_STORAGE for row in notes.unpacked)]
        for shard in again:
            self.store.delete(shard.path(self.form))
        return len(again)

    def notes(self) -> Iterator[tuple[Shard, ShardReport]]:
        """What became of the members, for each shard that is there."""
        done = set(self.store.names("data"))
        present = (shard for shard in self.shards() if shard.path(self.form).removeprefix("data/") in done)
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(lambda shard: (shard, ShardReport.decode(self.store.read(shard.notes_path))), present)

    def input_type(self) -> pa.StructType | None:
        """The source's own columns, as the listing typed them; None where it has none."""
        first = next(iter(iter_blocks(self.store, 0)), None)
        schema = pa.schema([]) if first is None else read_block(self.store, first).schema
        fields = list(schema.field("input").type) if "input" in schema.names else []
        return pa.struct([field for field in fields if field.name != EXPECTED]) or None

    def reconcile(self) -> dict[str, Any]:
        """Write `unpacked.parquet`, compare what was packed with what was listed, and return the figures; once only.

        Raises ClusterError when a member is in no shard and in no list.
        """
        if self.store.exists("summary.json"):
            return dict(json.loads(self.store.read("summary.json")))
        listed = read_complete(self.store, 0)
        members = listed.members if listed else 0
        total: Counter[str] = Counter()
        formats: Counter[str] = Counter()
        statuses: Counter[str] = Counter()

        def tables() -> Iterator[pa.Table]:
            for _, notes in self.notes():
                total.update(shards=1, members=notes.members, packed=notes.packed, size_bytes=notes.size_bytes)
                formats.update(notes.formats)
                statuses.update(row["status"] for row in notes.unpacked)
                yield pa.Table.from_pylist(notes.unpacked, _UNPACKED)

        unpacked = write_tables(self.store, "unpacked", _UNPACKED, tables())
        if total["packed"] + unpacked != members:
            raise ClusterError(
                f"{self.store.url}: {total['packed']} files packed and {unpacked} listed as unpacked, of {members}",
                hint="please report this: it is a bug",
            )
        return {"out": self.store.url, "form": self.form, "shards": total["shards"], "members": members, "packed": total["packed"],
                "size_bytes": total["size_bytes"], "unpacked": unpacked, "statuses": dict(statuses.most_common()),
                "formats": dict(formats.most_common())}  # fmt: skip


def claim(store: Store, identity: Mapping[str, Any]) -> None:
    """Make a directory this command's, or check that it already is. Raises IdentityError with the differences."""
    claim_directory(store, CLAIM, {"format": _FORMAT, **identity}, same=_SAME)


def is_own(store: Store, identity: Mapping[str, Any]) -> bool:
    """Whether it is this command's already; False where it is anybody's. Raises IdentityError with the differences."""
    return is_claimed(store, CLAIM, {"format": _FORMAT, **identity}, same=_SAME)


def give_up(store: Store) -> None:
    """Forget a job of which nothing was listed, so that the directory is anybody's again."""
    store.clear("manifest")
    store.delete(CLAIM)


def pack_lines(summary: Mapping[str, Any]) -> list[str]:
    """What was packed, what was not and where that is listed, and how to read the shards."""
    return [f"{label:{_WIDTH}}{text}" for label, text in _packed(summary)]


def filter_lines(summary: Mapping[str, Any]) -> list[str]:
    """What went and why that is known, what stayed and where it is."""
    drop = " or ".join(_DROPPED[word] for word in summary["drop"])
    out = wording.visible(summary["out"])
    lines = [
        ("removed", f"{summary['removed']:,} of {wording.counted(summary['current'], 'file')}: {drop}; reasons in {out}/removed.csv"),
        ("kept", f"{summary['kept']:,}" + (f", listed in {out}/kept.parquet and kept.csv" if summary["form"] == "list" else "")),
        *(_packed(summary) if summary["form"] != "list" else []),
        ("", "nothing was deleted: the removal list is for you to act on"),
    ]
    return [f"{label:{_WIDTH}}{text}".rstrip() for label, text in lines]


def _packed(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    out = wording.visible(summary["out"])
    shards = wording.counted(summary["shards"], f"{_SHARDS[summary['form']]} shard")
    members = wording.counted(summary["members"], "file")
    yield "packed", f"{summary['packed']:,} of {members} into {shards} in {out}/data, {wording.size(summary['size_bytes'])}"
    if none := summary["formats"].get("none"):
        yield (
            "no image",
            f"{none:,} of these are in no image format that Touchstone reads (source.format is null); their bytes are packed as they are",
        )
    if summary["unpacked"]:
        yield "unpacked", f"{summary['unpacked']:,}, listed with reasons in {out}/unpacked.parquet"
        for status, number in summary["statuses"].items():
            yield "", f"{number:,} {status}: {wording.meaning(status)}"
        if not FROM_STORAGE.isdisjoint(summary["statuses"]):
            yield "", "--retry tries again those that the storage did not give"
    if summary["form"] == "parquet":
        yield "read", f"datasets.load_dataset({out!r})"
    elif summary["shards"]:
        count = summary["shards"]
        last = f"{{00000..{count - 1:05}}}" if count > 1 else "00000"
        yield "read", f"webdataset.WebDataset({f'{out}/data/train-{last}-of-{count:05}.tar'!r}, shardshuffle=False)"
