"""The settings of packing."""

from typing import Literal

from pydantic import Field

from ray_app.archives import ContainerLimits, TableColumns
from ray_app.cluster.config import ClusterConfig
from ray_app.config import Frozen
from ray_app.storage import UNGUARDED, RetryPolicy, S3Config

Form = Literal["parquet", "webdataset"]


class PackConfig(Frozen):
    """One archive to be packed: what, into what, where to."""

    source: tuple[str, ...] = Field(
        min_length=1, description="folders, files, prefixes or globs; any fsspec URL"
    )
    form: Form = Field(
        default="parquet",
        description="parquet as the Hugging Face hub writes it, or webdataset tars",
    )
    include: tuple[str, ...] = Field(
        default=(), description="only files whose path below the source matches this glob"
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="leave out files whose path matches this glob, and folders by FOLDER/**",
    )
    limit: int | None = Field(default=None, ge=1, description="pack no more than this many files")
    columns: TableColumns = TableColumns()
    container_limits: ContainerLimits = ContainerLimits()
    out: str = Field(
        description="directory of the shards; any fsspec URL; the same command resumes there"
    )
    shard_mb: float = Field(
        default=256.0,
        gt=0,
        description="bytes of files in one shard, in MB of 10⁶ bytes; it ends with a block of 64",
    )
    max_member_bytes: int = Field(
        default=256 * 2**20,
        gt=0,
        lt=2**31,
        description="a larger file is not packed but listed; held in memory by each worker",
    )
    allow_private: bool = Field(
        default=False,
        description="read what a list names also from web servers that are not on the public Internet",
    )
    retry: RetryPolicy = RetryPolicy()
    s3: S3Config = S3Config()
    unguarded: bool = Field(default=False, description=UNGUARDED)
    cluster: ClusterConfig = ClusterConfig()
