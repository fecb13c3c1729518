"""The directory of a job: whose it is, which blocks are done, and the tables that others read.

generate.json       what is made, how: another command on the same directory is refused
looks.json          how the real set's files are stored, measured once
images/, masks/     what was made
parts/              the rows of each block; a block is done when they are there
generated.parquet   the rows of all images that were made: what `touchstone index` and `touchstone score` take
failed.parquet      the rows of those that were not, each with its status
summary.json        the figures, when all blocks are done
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.errors import ClusterError
from ray_app.generation.looks import Look, Measured
from ray_app.generation.orders import Block
from ray_app.generation.rows import BLANKED, OK, SCHEMA
from ray_app.packing.streaming import write_tables
from ray_app.runs.claiming import claim_directory
from ray_app.storage import Store

_FORMAT = 1


@dataclass(frozen=True)
class GeneratedDirectory:
    """What a job makes, on any fsspec URL."""

    store: Store

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make the directory this job's, or check that it already is. Raises IdentityError with the differences."""
        ours = {"format": _FORMAT, **identity}
        claim_directory(self.store, "generate.json", ours, same="pipeline, prompts, seed and settings")

    def described(self) -> dict[str, Any] | None:
        """What the directory was begun with; None where nothing was."""
        try:
            return dict(json.loads(self.store.read("generate.json")))
        except FileNotFoundError:
            return None

    def looks(self) -> Measured | None:
        """The looks that were measured when the directory was begun."""
        try:
            told = json.loads(self.store.read("looks.json"))
        except FileNotFoundError:
            return None
        looks = [
            Look(one["format"], one["quality"], one["subsampling"], tuple(one["size"]) if one["size"] else None) for one in told["looks"]
        ]
        return Measured(tuple(looks), told["left_out"])

    def keep_looks(self, measured: Measured) -> None:
        """Write them down, so that a later session draws from the same."""
        told = {"looks": [asdict(look) for look in measured.looks], "left_out": measured.left_out}
        self.store.write("looks.json", json.dumps(told).encode())

    def pending(self, blocks: Sequence[Block]) -> list[Block]:
        """Blocks that are not done."""
        done = set(self.store.names("parts"))
        return [block for block in blocks if block.path.removeprefix("parts/") not in done]

    def reopen(self) -> int:
        """Take back the blocks with images that failed, so that they are made again; returns how many. What a safety checker blanked
        would be blanked again and is no failure.
        """
        failed = [path for path, table in self._parts() if _failures(table)]
        for path in failed:
            self.store.delete(path)
        return len(failed)

    def publish(self, ordered: int) -> dict[str, Any]:
        """Write the tables and return the figures. Raises ClusterError where the rows are not one for each of the `ordered` images."""
        statuses, formats, generators, masks = Counter[str](), Counter[str](), Counter[str](), 0
        seen, noises = set[int](), set[str]()
        for _, table in self._parts():
            statuses.update(table["status"].to_pylist())
            seen.update(table["index"].to_pylist())
            made = table.filter(pc.equal(table["status"], OK))
            formats.update(made["format"].to_pylist())
            generators.update(made["generator"].to_pylist())
            noises.update(made["latents_sha256"].to_pylist())
            masks += len(made) - made["mask"].null_count
        if len(seen) != ordered or statuses.total() != ordered:
            raise ClusterError(
                f"{self.store.url}: {statuses.total()} rows of {len(seen)} images, of {ordered}", hint="please report this: it is a bug"
            )
        write_tables(self.store, "generated", SCHEMA, (table.filter(pc.equal(table["status"], OK)) for _, table in self._parts()))
        write_tables(self.store, "failed", SCHEMA, (table.filter(pc.not_equal(table["status"], OK)) for _, table in self._parts()))
        return {"out": self.store.url, "images": ordered, "made": statuses[OK], "statuses": dict(statuses.most_common()),
                "formats": dict(formats.most_common()), "generators": dict(generators), "noises": len(noises), "masks": masks}  # fmt: skip

    def _parts(self) -> Iterator[tuple[str, pa.Table]]:
        for name in self.store.names("parts"):
            yield f"parts/{name}", pq.read_table(io.BytesIO(self.store.read(f"parts/{name}")))


def _failures(table: pa.Table) -> bool:
    return bool(set(table["status"].to_pylist()) - {OK, BLANKED})
