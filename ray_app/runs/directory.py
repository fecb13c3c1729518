"""The run directory (`RunDirectory`): where its files lie, what is done, and how parts become published files.

A block is done when its part exists or a published file covers it; both are facts on disk, read back by listing names.

What two commands must share to use one directory: a run's identity (`fingerprint`, `differences`), and the JSON file by which any
command's directory is claimed (`claim_directory`, `is_claimed`).

Only what changes a score or a verdict belongs here; workers, retries and cluster do not.
"""

import contextlib
import difflib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives import BlockList, Each, in_turn, manifests, read_blocks
from ray_app.errors import ConfigError, IdentityError
from ray_app.runs import score_files as published_files
from ray_app.runs.compaction import Compactor, Merger, consecutive, remove_parts
from ray_app.runs.schema import MASK_SCHEMA, SCHEMA_VERSION
from ray_app.runs.score_files import Published
from ray_app.storage import Store

if TYPE_CHECKING:
    from ray_app.images import ImageLimits

Identity = Mapping[str, Any]


ADDED = {"output": 2, "valid_range": 2, "masks": 2}  # facts of a detector, and the schema since which runs note them


def as_known_to(schema: int, identity: Identity) -> dict[str, Any]:
    """An identity without what a run of an older schema could not note."""
    detectors = {
        name: {key: value for key, value in facts.items() if ADDED.get(key, 1) <= schema} for name, facts in identity["detectors"].items()
    }
    return {**identity, "detectors": detectors}


def fingerprint(identity: Identity) -> str:
    """SHA-256 of the canonical JSON of an identity; also names a served ensemble."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(ours: Identity, theirs: Identity) -> list[str]:
    """One line per key that differs, as `key: this command X, the run Y`; empty when they match."""
    return [f"{key}: this command {left}, the run {right}" for key, left, right in differing_keys(ours, theirs)]


def differing_keys(ours: Identity, theirs: Identity) -> list[tuple[str, str, str]]:
    """Each dotted key that differs, with either's value as JSON or `has none`; empty when they match."""
    left, right = dict(_leaves(ours)), dict(_leaves(theirs))
    keys = [*left, *(key for key in right if key not in left)]
    return [(".".join(key), _show(left, key), _show(right, key)) for key in keys if left.get(key) != right.get(key)]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each value with its keys, which stay apart: a name may have a dot in it."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, value


def _show(leaves: Mapping[tuple[str, ...], Any], key: tuple[str, ...]) -> str:
    return json.dumps(leaves[key]) if key in leaves else "has none"


# The files by which a directory is known, and what that is.
KINDS = {
    "run.json": "a scored run",
    "pack.json": "packed shards or a filtered archive",
    "index.json": "an index",
    "collect.json": "a collection",
    "generate.json": "generated images",
    "train.json": "a training",
}


def refuse_others(store: Store, name: str) -> None:
    """Raises ConfigError for a directory of another kind than the one that is known by the file `name`."""
    for other, what in KINDS.items():
        if other != name and store.exists(other):
            raise ConfigError(f"{store.url} is another command's directory: {what} ({other})", hint="give another --out")


def claim_directory(store: Store, name: str, identity: Mapping[str, Any], *, same: str) -> None:
    """Make a directory this command's, or check that it already is. Raises as `is_claimed`."""
    if not is_claimed(store, name, identity, same=same):
        store.write(name, json.dumps(identity, indent=2, ensure_ascii=False).encode())


def claimed_by(store: Store, name: str) -> dict[str, Any] | None:
    """The identity of the command that a directory is of, by the file `name`; None where there is none."""
    try:
        return dict(json.loads(store.read(name)))
    except FileNotFoundError:
        return None


def is_claimed(store: Store, name: str, identity: Mapping[str, Any], *, same: str) -> bool:
    """Whether a directory is this command's already; False where it is anybody's. Writes nothing.

    `name`: the file that holds the identity, one of KINDS. `same`: what would have to be the same, in words. Raises ConfigError for
    another kind, IdentityError with the differences.
    """
    theirs = claimed_by(store, name)
    if theirs is None:
        refuse_others(store, name)
        return False
    differing = [line.replace(", the run ", ", the directory ") for line in differences(identity, theirs)]
    if differing:
        raise IdentityError(
            f"{store.url} was made by another command:\n  " + "\n  ".join(differing), hint=f"give another --out, or the same {same}"
        )
    return True


LITTLE_BYTES = 4 * 2**20  # of parts, that are merged at once rather than by tasks
SETTLED = "settled.json"  # see `runs.settled_state`; whoever changes published rows removes it first
SCORE_DECIDES = "score"  # who is writing verdicts anew, as `run.json` notes it; anybody else notes True


@dataclass(frozen=True)
class RunDirectory:
    """One run on any fsspec URL. Small and picklable: workers receive it and write their parts through it."""

    store: Store

    @classmethod
    def open(cls, url: str) -> "RunDirectory":
        """The run directory at a URL or path; touches nothing yet."""
        return cls(Store.open(url))

    # -- what the run is ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether a run was ever begun here."""
        return self.store.exists("run.json")

    def missing(self) -> ConfigError:
        """What to say where no run was ever begun: whether nothing is there, a file, another command's directory or something else."""
        hint = "name the folder that `touchstone score SOURCE --out FOLDER` wrote"
        if "://" not in self.store.url:
            folder = Path(self.store.url)
            if not os.path.lexists(folder):
                beside = [path.parent.name for path in folder.parent.glob("*/run.json")]
                nearest = difflib.get_close_matches(folder.name, beside, 1)
                return ConfigError(f"there is no folder {folder}", hint=f"did you mean {folder.parent / nearest[0]}?" if nearest else hint)
            if not folder.is_dir():
                return ConfigError(f"{folder} is a file, not the folder of a run", hint=hint)
        for name, what in KINDS.items():
            if self.store.exists(name):
                return ConfigError(f"no run in {self.store.url}: it holds {what} ({name})", hint=hint)
        return ConfigError(f"no run in {self.store.url}: it has no run.json", hint=hint)

    def describe(self) -> dict[str, Any]:
        """The content of `run.json`: schema, creation time, detectors and identity."""
        return self.read_json("run.json")

    def limits(self) -> "ImageLimits":
        """The intake limits that its members were let in by."""
        from ray_app.images import ImageLimits

        return ImageLimits(**self.describe()["identity"].get("limits", {}))

    def check_settled(self, *, by_score: bool = False) -> None:
        """Raises ConfigError while verdicts were being written anew, by `touchstone runs decide` or at the end of `touchstone score`,
        and that was interrupted: different ones then stand side by side. `by_score`: to a `score` command that finishes its own work.
        """
        deciding = self.describe().get("deciding")
        if deciding and not (by_score and deciding == SCORE_DECIDES):
            command = SCORE_DECIDES if deciding == SCORE_DECIDES else "decide"
            raise ConfigError(
                f"{self.store.url}: a `touchstone {command}` was interrupted here, and left old and new verdicts side by side",
                hint=f"run the same `touchstone {command}` again",
            )

    def check_known(self) -> None:
        """Raises ConfigError where rows are of a later schema than this Touchstone writes. To read them is well, to write beside them is
        not: what is new in them would be lost.
        """
        newest = int(self.describe()["schema"])
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, int(self.read_json("summary.json").get("row_schema", 0)))
        if newest > SCHEMA_VERSION:
            raise ConfigError(
                f"{self.store.url}: its rows have schema {newest}, and this Touchstone writes schema {SCHEMA_VERSION}",
                hint="continue it with the Touchstone that wrote it, or a later one; this one can read it",
            )

    def describe_finished(self) -> dict[str, Any]:
        """The same of a run that has ended. Raises ConfigError where there is none, or where blocks are still to be scored."""
        if not self.store.exists("summary.json"):
            if not self.exists():
                raise self.missing()
            raise ConfigError(
                f"the run in {self.store.url} is not finished yet", hint="the `touchstone score` command that began it finishes it"
            )
        return self.describe()

    def describe_settled(self) -> dict[str, Any]:
        """The same of a run in which nothing is under way: no listing, no retry, no verdicts. Raises ConfigError for any other."""
        described = self.describe_finished()
        self.check_settled()
        if self.read_json("summary.json")["listing"] != max(manifests(self.store)) or self.store.folders("retries"):
            raise ConfigError(
                f"{self.store.url}: a listing or a retry is not finished", hint="finish it with its `touchstone score` command first"
            )
        return described

    def claim(self, identity: Identity, detectors: list[str], ensemble: dict[str, Any]) -> None:
        """Make the directory this command's, or check that it already is. Raises IdentityError with the differences."""
        self.check_free()
        if not self.exists():
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self.write_json(
                "run.json",
                {"schema": SCHEMA_VERSION, "created_at": now, "detectors": detectors, "ensemble": ensemble, "identity": dict(identity)},
            )
            return
        self.check_settled(by_score=True)
        if differing := self.differing(identity):
            raise self.mismatch(differing)

    def check_free(self) -> None:
        """Raises ConfigError for a directory that is none of a run, but that of another command."""
        if not self.exists():
            refuse_others(self.store, "run.json")

    def give_up(self) -> None:
        """Forget a run of which nothing was listed, so that the directory is anybody's again."""
        for folder in ("manifest", "sessions"):
            self.store.clear(folder)
        self.store.delete("run.json")

    def mismatch(self, differing: list[str], *, hint: str | None = None) -> IdentityError:
        """What to say of a command whose identity differs from the run's in these lines."""
        usual = (
            "give another --out, or the same source, detectors and settings; what a command does not say is as in the run; "
            "`touchstone runs decide` applies other thresholds without scoring again"
        )
        return IdentityError(f"{self.store.url} was made by another command:\n  " + "\n  ".join(differing), hint=hint or usual)

    def differing(self, identity: Identity) -> list[str]:
        """How the identity of a command differs from the run's, in lines; none where it is the run's own."""
        described = self.describe()
        return differences(as_known_to(described["schema"], identity), described["identity"])

    # -- what is done ------------------------------------------------------------------------------------

    def part_path(self, manifest: int, block: int) -> str:
        """Where a block's own rows lie."""
        return f"parts/{manifest:05d}/{block:08d}.parquet"

    def write_part(self, manifest: int, block: int, rows: pa.Table) -> int:
        """Commit one block; returns its size in bytes. A repeated commit replaces the same file."""
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd")
        self.store.write(self.part_path(manifest, block), buffer.getvalue())
        return buffer.tell()

    def write_masks(self, manifest: int, block: int, rows: pa.Table) -> None:
        """Keep a block's masks; called before the block is committed, so that a row whose block is done has its mask."""
        self.write_beside("masks", manifest, block, rows)

    def block_masks(self, manifest: int, block: int) -> pa.Table:
        """The masks of one block; none where it has no such file."""
        found = self.beside("masks", manifest, block)
        return MASK_SCHEMA.empty_table() if found is None else found

    def write_beside(self, folder: str, manifest: int, block: int, rows: pa.Table) -> None:
        """Keep what stands beside a block's rows, in `folder`: masks, embeddings. Their bytes hardly compress, so nothing is tried."""
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="none")
        self.store.write(_beside(folder, manifest, block), buffer.getvalue())

    def beside(self, folder: str, manifest: int, block: int) -> pa.Table | None:
        """What stands there of one block; None where it has no such file."""
        try:
            return pq.read_table(pa.BufferReader(self.store.read(_beside(folder, manifest, block))))
        except FileNotFoundError:
            return None

    def masks(self, manifest: int) -> Iterator[pa.Table]:
        """The masks of a manifest in all its views (`MASK_SCHEMA`, or the viewed one), a bounded table at a time, in block order."""
        for name in sorted(self.store.names(f"masks/{manifest:05d}")):
            yield from self.rows_in(f"masks/{manifest:05d}/{name}", None)

    def parts(self, manifest: int) -> list[int]:
        """Blocks of a manifest with a part of their own."""
        return sorted(self._part_sizes(manifest))

    def _part_sizes(self, manifest: int) -> dict[int, int]:
        sizes = self.store.sizes(f"parts/{manifest:05d}")
        return {int(name.removesuffix(".parquet")): size for name, size in sizes.items() if re.fullmatch(r"\d+\.parquet", name)}

    def part_folders(self) -> list[int]:
        """Manifests that may have blocks with a part of their own: of those that are published, none has on a store without folders."""
        return sorted(int(name) for name in self.store.folders("parts") if name.isdigit())

    def published(self) -> list[Published]:
        """The files that people read, in the order of their blocks; small ones in whose place a merged one stands are passed over."""
        return published_files.split_off(self.all_published())[0]

    def all_published(self) -> list[Published]:
        """The same with those that are passed over: an interrupted merge leaves them."""
        return published_files.named(self.store.names("scores"))

    def remove_replaced(self) -> None:
        """Finish interrupted merges: files in whose place a merged one stands go."""
        replaced = published_files.split_off(self.all_published())[1]
        self.store.delete_all([file.path for file in replaced])

    def done_blocks(self, manifest: int) -> set[int]:
        """Every block that needs no more work."""
        files = [file for file in self.published() if manifest in file.manifests()]
        count = len(read_blocks(self.store, manifest)) if files else 0
        return set(self.parts(manifest)) | {block for file in files for block in file.blocks_of(manifest, count)}

    def without_rows(self, lists: Mapping[int, BlockList]) -> list[BlockList]:
        """Of manifests and all their blocks those blocks that need work."""
        files, folders = self.published(), set(self.part_folders())
        pending = []
        for number, blocks in lists.items():
            done = set(self.parts(number)) if number in folders else set()
            done.update(block for file in files for block in file.blocks_of(number, len(blocks)))
            pending.append(blocks.without(done))
        return pending

    # -- rows --------------------------------------------------------------------------------------------

    def row_files(self, wanted: Sequence[int]) -> list[str]:
        """The files with the rows of some manifests, in block order; a part that a published file covers is passed over.

        A merged file may also have rows of others.
        """
        numbers = set(wanted)
        files = [file for file in self.published() if not numbers.isdisjoint(file.manifests())]
        placed = [(file.start, file.path) for file in files]
        for number in self.part_folders():
            if number in numbers:
                covering = [file for file in files if number in file.manifests()]
                own = [block for block in self.parts(number) if not any(file.holds(number, block) for file in covering)]
                placed += [((number, block), self.part_path(number, block)) for block in own]
        return [path for _, path in sorted(placed)]

    def tables(self, manifest: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a manifest in block order, a bounded table at a time; a part that a published file covers is passed over."""
        files = {file.path: file for file in self.published()}
        for path in self.row_files([manifest]):
            if path not in files or len(files[path].manifests()) == 1:
                yield from self.rows_in(path, columns)
            else:
                yield from self._rows_of(files[path], manifest, columns)

    def _rows_of(self, file: Published, manifest: int, columns: list[str] | None) -> Iterator[pa.Table]:
        """The rows that a merged file has of one manifest."""
        first = sum(self._members_in(file, number) for number in range(file.manifest, manifest))
        end, at = first + self._members_in(file, manifest), 0
        for table in self.rows_in(file.path, columns):
            start, at = at, at + len(table)
            if start < end and at > first:
                yield table.slice(max(first - start, 0), min(end, at) - max(first, start))

    def _members_in(self, file: Published, manifest: int) -> int:
        blocks = read_blocks(self.store, manifest)
        some = file.blocks_of(manifest, len(blocks))
        return blocks[some.start : some.stop].members

    def rows_in(self, path: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of one file of the run, a bounded table at a time."""
        filesystem, full = self.store.filesystem_and_path(path)
        with filesystem.open(full, "rb") as handle, pq.ParquetFile(handle) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns)

    def publish(self, manifest: int, *, each: Each = in_turn) -> list[str]:
        """Merge the parts of a finished manifest into files of 64 to 256 MiB, each published before its parts go.

        Interrupted anywhere, the next call goes on: published files and remaining parts together hold every row once.
        `each` runs what is not little.
        """
        files = [file for file in self.published() if manifest in file.manifests()]
        sizes = self._part_sizes(manifest)
        covered = {block for block in sizes if any(file.holds(manifest, block) for file in files)}
        remove_parts(self, manifest, sorted(covered))
        pieces = [piece for parts in consecutive(manifest, sizes, covered) for piece in parts.divided()]
        is_little = sum(piece.size_bytes for piece in pieces) <= LITTLE_BYTES
        paths = [path for paths in (in_turn if is_little else each)(Compactor(self), pieces) for path in paths]
        self.store.drop_folder(f"parts/{manifest:05d}")
        return paths

    def publish_all(self, *, each: Each = in_turn) -> list[str]:
        """Publish whatever manifest has parts, and finish merges that were interrupted."""
        self.remove_replaced()
        return [path for manifest in self.part_folders() for path in self.publish(manifest, each=each)]

    def rewrite_all(self, change: Callable[[pa.Table], pa.Table]) -> None:
        """Replace all published rows by `change` of them, file by file, each at once."""
        for file in self.published():
            self.rewrite_file(file, change)

    def rewrite_file(self, file: Published, change: Callable[[pa.Table], pa.Table]) -> None:
        """Replace the rows of one published file by `change` of them, at once."""
        merger = Merger()
        for table in self.rows_in(file.path):
            merger.add(change(table))
        self.store.write(file.path, merger.finish())

    def file_tables(self, file: Published, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of one published file, a bounded table at a time."""
        yield from self.rows_in(file.path, columns)

    # -- small files -------------------------------------------------------------------------------------

    def read_json(self, path: str) -> dict[str, Any]:
        """A small file of the run. Raises FileNotFoundError."""
        content: dict[str, Any] = json.loads(self.store.read(path))
        return content

    def write_json(self, path: str, content: dict[str, Any]) -> None:
        """Write a small file of the run, at once."""
        self.store.write(path, json.dumps(content, indent=2, ensure_ascii=False).encode())


def _beside(folder: str, manifest: int, block: int) -> str:
    return f"{folder}/{manifest:05d}/{block:08d}.parquet"
