"""Settings of `touchstone data pack`, which packs an archive into shards (`PackConfig`)."""

from typing import Literal

from pydantic import Field

from ray_app.archives import ContainerLimits, TableColumns
from ray_app.cluster.config import ClusterConfig
from ray_app.config import Frozen
from ray_app.storage import UNGUARDED, RetryPolicy, S3Config

Form = Literal["parquet", "webdataset"]


class PackConfig(Frozen):
    """Settings of `touchstone data pack`, which packs an archive into shards.

    A shard is a large Parquet or tar file with many images.
    """

    source: tuple[str, ...] = Field(
        min_length=1, description="folders, files, prefixes, or globs; any fsspec URL"
    )
    form: Form = Field(
        default="parquet",
        description="format of the shards: parquet in the layout of the Hugging Face hub, or webdataset tar files",
    )
    include: tuple[str, ...] = Field(
        default=(), description="only files whose path below the source matches this glob"
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="leave out files whose path matches this glob; FOLDER/** leaves out a folder",
    )
    limit: int | None = Field(default=None, ge=1, description="maximum number of files to pack")
    columns: TableColumns = Field(
        default=TableColumns(), description="columns of the tables in the source"
    )
    container_limits: ContainerLimits = Field(
        default=ContainerLimits(), description="limits on containers such as tar and zip files"
    )
    out: str = Field(
        description="directory of the shards; any fsspec URL; run the same command again to resume"
    )
    shard_mb: float = Field(
        default=256.0,
        gt=0,
        description="size of the files in one shard, in MB of 10⁶ bytes; a shard holds whole blocks of up to 64 files",
    )
    max_member_bytes: int = Field(
        default=256 * 2**20,
        gt=0,
        lt=2**31,
        description="maximum size of a file in bytes; larger files are listed as unpacked. Each worker holds one file in memory",
    )
    allow_private: bool = Field(
        default=False,
        description="also read URLs of lists from web servers that are not on the public Internet",
    )
    retry: RetryPolicy = Field(default=RetryPolicy(), description="retries of reads from storage")
    s3: S3Config = Field(default=S3Config(), description="settings of S3 clients")
    unguarded: bool = Field(default=False, description=UNGUARDED)
    cluster: ClusterConfig = Field(
        default=ClusterConfig(), description="the Ray cluster on which a large job runs"
    )
