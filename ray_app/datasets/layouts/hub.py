"""How the Hugging Face hub names the Parquet files of a data set. Knows names alone."""

import re

# data/train-00000-of-00070.parquet, as `datasets` writes them
_SHARD = re.compile(r"([^/]+?)-\d{3,}-of-\d{3,}[^/]*\.parquet$")
# core/partial-train/0000.parquet, as on the branch refs/convert/parquet
_CONVERTED = re.compile(r"(?:^|/)([^/]+)/(?:partial-)?([^/]+)/\d{4}\.parquet$")


def split_of(uri: str) -> str | None:
    """The split that a shard is of; None where its name does not say."""
    if match := _SHARD.search(uri):
        return match.group(1)
    return match.group(2) if (match := _CONVERTED.search(uri)) else None


def config_of(uri: str) -> str | None:
    """The configuration that a shard is of: the folder it lies in, `default` for `data`; None where its name does not say."""
    if match := _SHARD.search(uri):
        folder = uri[: match.start(1)].rstrip("/").rpartition("/")[2]
        return "default" if folder == "data" else folder
    return match.group(1) if (match := _CONVERTED.search(uri)) else None
