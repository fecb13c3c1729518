"""A finished run as an archive of its own: the members that stay, with the hash of the bytes that were scored. Reads manifests and rows."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import Archive, Listed, Member, iter_blocks, manifests, member_rows, read_block, read_vanished
from ray_app.archives.members import Described
from ray_app.errors import ClusterError, ConfigError
from ray_app.packing.packed import EXPECTED
from ray_app.packing.removing import goes
from ray_app.runs import RunDirectory, current_tables
from ray_app.runs.directory import Published
from ray_app.storage import Fetcher

_DECIDING = ["image_id", "verdict", "status"]


class KeptMembers(Archive):
    """The members of a run that `drop` leaves. `sources`: what the run scored, for reading it again."""

    def __init__(self, run: RunDirectory, sources: Sequence[str], drop: Sequence[str]) -> None:
        super().__init__(sources)
        self._run, self._drop = run, tuple(drop)

    def sections(self) -> Iterator["KeptSection"]:
        """One section per published file of rows."""
        for file in self._run.published():
            yield KeptSection(self._run, file, self._drop)

    def empty(self, found: int, opened: int) -> ConfigError:
        """What to say when every member goes."""
        return ConfigError(f"{self._run.store.url}: no member is left", hint="removed.parquet lists them all")


@dataclass(frozen=True)
class KeptSection:
    """The members whose rows are in one file: manifest and rows are in the same order, so both are read once, side by side."""

    run: RunDirectory
    file: Published
    drop: tuple[str, ...]

    def found(self, fetcher: Fetcher) -> Iterator[tuple[str, Listed]]:
        """Members as the manifest has them, `EXPECTED` beside the source's own columns."""
        rows = self._rows()
        for member in self._members():
            image_id, stays, sha256 = next(rows, (None, False, None))
            if image_id != member.image_id:
                raise ClusterError(f"{self.run.store.url}: {self.file.path} is not in its manifest's order",
                                   hint="please report this: it is a bug")  # fmt: skip
            if stays:
                name = member.uri if member.member is None else f"{member.uri}/{member.member}"
                # Listings of one run may tell of a column in types of their own, which is nobody's to change any more.
                yield name, Described(member.uri, member.member, member.occurrence, member.version, member.size_bytes,
                                      {**member.input, EXPECTED: sha256}, member.place, member.refused)  # fmt: skip

    def _members(self) -> Iterator[Member]:
        for ref in iter_blocks(self.run.store, self.file.manifest):
            if self.file.first <= ref.block <= self.file.last:
                yield from member_rows(read_block(self.run.store, ref))

    def _rows(self) -> Iterator[tuple[int, bool, str | None]]:
        gone = pa.array(read_vanished(self.run.store, manifests(self.run.store)[-1]))
        for table in self.run.file_tables(self.file, [*_DECIDING, "sha256"]):
            stays = ~goes(table, self.drop) & ~pc.is_in(table["image_id"], gone).to_numpy()
            yield from zip(table["image_id"].to_pylist(), stays.tolist(), table["sha256"].to_pylist(), strict=True)


def decisions_digest(run: RunDirectory, drop: Sequence[str]) -> str:
    """SHA-256 over (id, goes) of all current members: equal as long as the same members go."""
    digest = hashlib.sha256()
    for table in current_tables(run, _DECIDING):
        digest.update(table["image_id"].to_numpy().tobytes())
        digest.update(np.packbits(goes(table, drop)).tobytes())
    return digest.hexdigest()
