"""`touchstone pack`: list once, write the shards that are not there, compare figures. Interrupted anywhere, the same command goes on."""

from typing import Any

from ray_app.archives import name_of, open_source
from ray_app.config.loading import going_on
from ray_app.packing.config import PackConfig
from ray_app.packing.directory import CLAIM, claim, is_own
from ray_app.packing.session import write_shards
from ray_app.runs.claiming import claimed_by
from ray_app.storage import Lease, Store

_CHOSEN = ("form", "include", "exclude", "limit", "columns", "container_limits", "shard_mb", "max_member_bytes")


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
