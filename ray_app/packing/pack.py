"""`touchstone pack`: list once, write the shards that are not there, compare figures. Interrupted anywhere, the same command goes on."""

from typing import Any

from ray_app.archives import name_of, open_source
from ray_app.packing.config import PackConfig
from ray_app.packing.directory import claim
from ray_app.packing.session import write_shards
from ray_app.storage import Lease, Store


def pack_archive(config: PackConfig, *, retry: bool = False) -> dict[str, Any]:
    """Pack `config.source` into shards in `config.out`; returns the content of `summary.json`.

    The source is listed once: what comes to it later belongs into another directory. With `retry`, shards in which members could not
    be read from storage are written again. Raises ConfigError, IdentityError, StorageError, ClusterError, and KeyboardInterrupt after
    saying how to go on.
    """
    store = Store.open(config.out)
    archive = open_source(
        config.source, config.include, config.exclude, skip=[store.url], columns=config.columns, limits=config.container_limits
    )
    with Lease(store, unguarded=config.unguarded) as lease:
        if not store.exists("pack.json"):
            next(iter(archive))  # a misspelt source must not make the directory its own
        claim(store, _identity(config))
        return write_shards(archive, config.source, config, config.form, lease, store, limit=config.limit, retry=retry)


def _identity(config: PackConfig) -> dict[str, Any]:
    """What another command on the same directory must match: all that decides which bytes lie in which shard."""
    chosen = config.model_dump(
        mode="json", include={"form", "include", "exclude", "limit", "columns", "container_limits", "shard_mb", "max_member_bytes"}
    )
    return {"command": "pack", "source": [name_of(source) for source in config.source], **chosen}
