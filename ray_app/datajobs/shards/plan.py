"""The settings of packing and filtering, and which members go into which shard: `plan_shards`, the same for every session."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from ray_app.archives import BlockPlan, BlockRef, ContainerLimits, TableColumns, iter_blocks
from ray_app.cluster.config import ClusterConfig
from ray_app.config import Frozen
from ray_app.storage import UNGUARDED, RetryPolicy, Store

# Small blocks of one size, so that a shard of large files is not much larger than requested.
BLOCKS = BlockPlan(batch_slots=64, max_block_members=64)
# What a member weighs whose store does not say: the mean of a web photograph, roughly.
_UNKNOWN_BYTES = 256 * 1024
# The members of a shard are held as names while it is written.
_MOST_MEMBERS = 65_536
Form = Literal["parquet", "webdataset"]
SHARD_ENDINGS: dict[Form, str] = {"parquet": "parquet", "webdataset": "tar"}
Drop = Literal["fake", "abstain", "failed"]


@dataclass(frozen=True)
class Shard:
    """One file to be written: a run of blocks of manifest 0, shard `number` of `count`."""

    number: int
    count: int
    blocks: tuple[BlockRef, ...]

    @property
    def members(self) -> int:
        """How many members the manifest has for it."""
        return sum(ref.members for ref in self.blocks)

    @property
    def name(self) -> str:
        """Its file's name without ending, as the Hugging Face hub names the shards of one split."""
        return f"train-{self.number:05}-of-{self.count:05}"

    def path(self, form: Form) -> str:
        """Where it lies in the output directory. It exists when, and only when, the shard is finished."""
        return f"data/{self.name}.{SHARD_ENDINGS[form]}"

    @property
    def notes_path(self) -> str:
        """Where it is written down what became of its members, before the shard itself is published."""
        return f"notes/{self.name}.json"


def plan_shards(store: Store, shard_bytes: float) -> Iterator[Shard]:
    """The shards of the listing in `store`, in order: as many whole blocks as `shard_bytes` hold, one at least."""
    count = sum(1 for _ in _runs(store, shard_bytes))
    for number, blocks in enumerate(_runs(store, shard_bytes)):
        yield Shard(number, count, blocks)


def _runs(store: Store, shard_bytes: float) -> Iterator[tuple[BlockRef, ...]]:
    run: list[BlockRef] = []
    size = members = 0
    for ref in iter_blocks(store, 0):
        expected = ref.size_bytes or ref.members * _UNKNOWN_BYTES
        if run and (size + expected > shard_bytes or members + ref.members > _MOST_MEMBERS):
            yield tuple(run)
            run, size, members = [], 0, 0
        run.append(ref)
        size, members = size + expected, members + ref.members
    if run:
        yield tuple(run)


class _Writing(Frozen):
    """How shards are written, whatever goes into them."""

    out: str = Field(description="the directory to write; any fsspec URL")
    shard_mb: float = Field(default=256.0, gt=0, description="bytes of files in one shard, in MB of 10⁶ bytes; it ends with a block of 64")
    max_member_bytes: int = Field(
        default=256 * 2**20, gt=0, lt=2**31, description="a larger file is not packed but listed; held in memory by each worker"
    )
    allow_private: bool = Field(
        default=False, description="read what a list names also from web servers that are not on the public Internet"
    )
    retry: RetryPolicy = RetryPolicy()
    unguarded: bool = Field(default=False, description=UNGUARDED)
    cluster: ClusterConfig = ClusterConfig()


class PackConfig(_Writing):
    """One archive to be packed: what, into what, where to."""

    source: tuple[str, ...] = Field(min_length=1, description="folders, files, prefixes or globs; any fsspec URL")
    form: Form = Field(default="parquet", description="parquet as the Hugging Face hub writes it, or webdataset tars")
    include: tuple[str, ...] = Field(default=(), description="globs on the path below the source; none = everything")
    exclude: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1, description="pack no more than this many files")
    columns: TableColumns = TableColumns()
    container_limits: ContainerLimits = ContainerLimits()


class FilterConfig(_Writing):
    """One finished run whose archive is wanted without some of its members."""

    run: str = Field(description="the run directory; any fsspec URL")
    form: Form | Literal["list"] = Field(default="list", description="list = names only, nothing is copied")
    drop: tuple[Drop, ...] = Field(default=("fake",), min_length=1, description="verdicts that go; failed = files without a score")
