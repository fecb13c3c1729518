"""One session of `pack` or `filter`: list once, write the shards that are not there, compare the figures.

Interrupted anywhere, the same command goes on from the files that are there. Small jobs run in this process, larger ones as Ray tasks.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray_app.archives import Archive, Each, fetcher_of, in_turn, list_members, read_complete
from ray_app.errors import ClusterError, ConfigError, StorageError, resumable
from ray_app.packing.config import FilterConfig, Form, PackConfig
from ray_app.packing.directory import PackDirectory, give_up
from ray_app.packing.shards import BLOCKS, Shard
from ray_app.packing.writing import WriteShard
from ray_app.scoring.cluster import cluster, named_cluster
from ray_app.scoring.listing import Telling
from ray_app.scoring.progress import Progress
from ray_app.storage import Lease, Store

# Less than this is written before a local cluster would be up.
_SMALL_BYTES = 10**9


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
            with _workers(config, wanted=False) as each:
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
            with _workers(config, wanted=_pays(pending)) as each:
                _write(each, write, pending, lease, total=sum(shard.members for shard in directory.shards()))
        summary = directory.reconcile() | {
            "session": {"shards": len(pending), "wall_s": round(time.monotonic() - start, 2), **lease.facts()}
        }
        store.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return summary


def _list(store: Store, archive: Archive, each: Each, limit: int | None) -> None:
    try:
        list_members(store, archive, BLOCKS, each=each, progress=Telling(), limit=limit)
    except ConfigError:
        give_up(store)
        raise


def _write(each: Each, write: WriteShard, pending: Sequence[Shard], lease: Lease, *, total: int) -> None:
    progress = Progress(total, done=total - sum(shard.members for shard in pending), name="pack")
    progress.say(f"{total:,} members in {pending[0].count:,} shard{'s' * (pending[0].count != 1)}, {len(pending):,} to be written")
    try:
        for notes in each(write, pending):
            progress.advance(notes.members, len(notes.unpacked))
            if lease.lost.is_set():
                raise StorageError(f"{write.store.url}: another command took this directory over", hint="only one may write it")
    finally:
        progress.close()


def _pays(pending: Sequence[Shard]) -> bool:
    return len(pending) > 1 and sum(ref.size_bytes for shard in pending for ref in shard.blocks) > _SMALL_BYTES


@contextmanager
def _workers(config: PackConfig | FilterConfig, *, wanted: bool) -> Iterator[Each]:
    """What runs the steps: Ray tasks where there is a cluster, or where one is `wanted`; else, or with one worker, this process."""
    if config.cluster.workers == 1 or not (wanted or named_cluster(config.cluster.address)):
        yield in_turn
        return
    from ray_app.scoring.tasks import on_ray

    with cluster(config.cluster):
        yield on_ray
