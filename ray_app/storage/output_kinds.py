"""Tell the output directories of different commands apart (`refuse_others`)."""

from ray_app.errors import ConfigError
from ray_app.storage.store import Store

# The files that mark a command's directory, each with a description of the directory.
KINDS = {
    "run.json": "a scored run",
    "pack.json": "packed shards or a filtered archive",
    "index.json": "an index",
    "collect.json": "a collection",
    "generate.json": "generated images",
    "train.json": "a training",
    "metrics.parquet": "an evaluation",  # A training has other files with metrics.
}


def refuse_others(store: Store, name: str) -> None:
    """Raise ConfigError if the output directory contains the results of another kind of command.

    Each kind of command writes a file with a name of its own, such as `train.json`. `name` is the
    file of the calling kind of command, a key of `KINDS`.
    """
    for other, description in KINDS.items():
        if other != name and store.exists(other):
            raise ConfigError(
                f"{store.url} belongs to another kind of command: it contains {description} ({other})",
                hint="set another --out",
            )
