"""The directory that shards are written to: whose it is, what is done in it, what is left, and whether the figures agree.

pack.json           what was packed, how: another command on the same directory is refused
manifest/0/         the listing, cut into blocks; which shard holds which members follows from it alone
notes/, data/       per shard what became of its members, and the shard
unpacked.parquet    members that are in no shard, each with status and detail
summary.json        the figures, when all shards are there
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_app.archives import iter_blocks, read_block, read_complete
from ray_app.errors import ClusterError, Status
from ray_app.packing.config import Form
from ray_app.packing.packed import EXPECTED
from ray_app.packing.shards import Shard, plan_shards
from ray_app.packing.streaming import write_tables
from ray_app.packing.writing import Notes
from ray_app.runs.claiming import claim_directory, is_claimed
from ray_app.storage import Store

_FORMAT = 1
CLAIM, _SAME = "pack.json", "source, form and decisions"
_READERS = 16
# What another attempt may give; what has changed since it was listed stays changed.
FROM_STORAGE = frozenset((Status.SOURCE_MISSING, Status.SOURCE_DENIED, Status.SOURCE_THROTTLED, Status.SOURCE_TIMEOUT))
_UNPACKED = pa.schema(
    [("uri", pa.string()), ("member", pa.string()), ("occurrence", pa.int32()), ("status", pa.string()), ("detail", pa.string())]
)


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

    def notes(self) -> Iterator[tuple[Shard, Notes]]:
        """What became of the members, for each shard that is there."""
        done = set(self.store.names("data"))
        present = (shard for shard in self.shards() if shard.path(self.form).removeprefix("data/") in done)
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(lambda shard: (shard, Notes.decode(self.store.read(shard.notes_path))), present)

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
                f"{self.store.url}: {total['packed']} members packed and {unpacked} listed as unpacked, of {members}",
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
