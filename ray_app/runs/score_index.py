"""The scores that a run has for certain bytes, by their digest (`ScoreIndex`, `build_index`): a sorted file per published one.

    reuse/<manifest>-<first>-<last>.arrow    rows of those blocks that have scores, sorted by the first 8 bytes of the SHA-256
    reuse/<manifest>-<first>--<manifest>-<last>.arrow    of a merged file

Arrow IPC, uncompressed, one record batch: a worker maps it, and pages that a search touches are shared by all processes of a node.
From a bucket each file is copied once to each node's disk. A file is never wrong, at worst it lacks rows, since bytes and scores belong
together for as long as the run does.
"""

import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from ray_app.archives import Each, in_turn
from ray_app.errors import Status
from ray_app.images import ImageFileFacts
from ray_app.inference import DecodeResult, ScoringSpec, batch, reuse
from ray_app.runs import directory, schema, score_files
from ray_app.runs.rows import FACTS

COPIED = ("phash", "scores", "replies")
PARTS_PER_FILE = 4096


@dataclass(frozen=True)
class Span:
    """Consecutive blocks, in one published file or as parts of their own."""

    blocks: score_files.Published
    is_published: bool

    @property
    def path(self) -> str:
        """Where its index lies, relative to the run."""
        return f"reuse/{self.blocks.name.removesuffix('.parquet')}.arrow"

    def tables(self, run: directory.RunDirectory, columns: list[str] | None) -> Iterator[pa.Table]:
        """Its rows."""
        if self.is_published:
            yield from run.rows_in(self.blocks.path, columns)
        else:
            for block in range(self.blocks.first, self.blocks.last + 1):
                yield from run.rows_in(run.part_path(self.blocks.manifest, block), columns)


def _indexed(run: directory.RunDirectory) -> list[Span]:
    """The indexes that are there, in the order of their blocks."""
    stems = (name.removesuffix(".arrow") for name in run.store.names("reuse") if name.endswith(".arrow"))
    return [Span(blocks, blocks.is_merged) for blocks in score_files.named(f"{stem}.parquet" for stem in stems)]


def build_index(run: directory.RunDirectory, spec: ScoringSpec, each: Each = in_turn) -> int:
    """Index every block that is done and not indexed yet, one task per file; returns how many files that took."""
    spans = list(_unindexed(run))
    count = sum(1 for _ in each(partial(_index, run, spec), spans))
    wholes = [span.blocks for span in spans if span.blocks.is_merged]
    if wholes:
        replaced = [one.path for one in _indexed(run) if any(one.blocks != whole and whole.contains(one.blocks) for whole in wholes)]
        run.store.delete_all(replaced)
    return count


def forget_index(run: directory.RunDirectory, file: score_files.Published) -> None:
    """Remove what is known of a published file, since some of its members have scores now that had none."""
    known = (one for one in _indexed(run) if one.blocks.start <= file.end and one.blocks.end >= file.start)
    run.store.delete_all([one.path for one in known])


class ScoreIndex:
    """The index of a run, as one process uses it. `cache`: a folder on the node's own disk, for runs that lie elsewhere."""

    def __init__(self, run: directory.RunDirectory, cache: Path) -> None:
        self._files = [_File(_local(run, one.path.rpartition("/")[2], cache)) for one in _indexed(run)]

    def find(self, sha256: str) -> DecodeResult | None:
        """The outcome of such bytes, with what detectors said of them; None where they are not known."""
        digest = bytes.fromhex(sha256)
        key = np.uint64(int.from_bytes(digest[:8], "big"))
        return next((outcome for file in self._files if (outcome := file.find(key, digest)) is not None), None)

    def __len__(self) -> int:
        return sum(len(file.keys) for file in self._files)


class _File:
    def __init__(self, path: str) -> None:
        self._rows = pa.ipc.open_file(pa.memory_map(path)).read_all()
        self.keys = self._rows["key"].chunk(0).to_numpy() if len(self._rows) else np.empty(0, np.uint64)

    def find(self, key: np.uint64, digest: bytes) -> DecodeResult | None:
        for row in range(np.searchsorted(self.keys, key), len(self.keys)):
            if self.keys[row] != key:
                return None
            if self._rows["digest"][row].as_py() == digest:
                return _outcome(self._rows.slice(row, 1).to_pylist()[0])
        return None


def _outcome(row: dict[str, Any]) -> DecodeResult:
    facts = {name: row.get(name) for name in FACTS if name != "sha256"} | {"flags": tuple(row["flags"])}
    said = batch.ReusedOutput(None, row["scores"], row.get("replies") or {})
    known = ImageFileFacts(sha256=row["digest"].hex(), **facts)
    return DecodeResult(Status.OK, None, known, phash=row.get("phash"), said=said, provenance=row.get("provenance"))


def _unindexed(run: directory.RunDirectory) -> Iterator[Span]:
    """A merged file wants an index of its own, so that there are as few of those as of files."""
    known = [one.blocks for one in _indexed(run)]
    for file in run.published():
        has_own = any(one.start == file.start and one.end == file.end for one in known)
        if not has_own and (file.is_merged or not all(_is_in(known, file.manifest, block) for block in range(file.first, file.last + 1))):
            known.append(file)
            yield Span(file, True)
    for manifest in run.part_folders():
        parts = np.array([block for block in run.parts(manifest) if not _is_in(known, manifest, block)], np.int64)
        for group in np.split(parts, np.flatnonzero(np.diff(parts) > 1) + 1):
            for start in range(0, len(group), PARTS_PER_FILE):
                some = group[start : start + PARTS_PER_FILE].tolist()
                yield Span(score_files.Published(manifest, some[0], some[-1]), False)


def _is_in(files: list[score_files.Published], manifest: int, block: int) -> bool:
    return any(file.holds(manifest, block) for file in files)


def _index(run: directory.RunDirectory, spec: ScoringSpec, span: Span) -> None:
    tables = [_usable(table, spec) for table in span.tables(run, None)]
    rows = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({"key": pa.array([], pa.uint64())})
    rows = rows.sort_by("key").combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=max(1, len(rows)))
    run.store.write(span.path, sink.getvalue().to_pybytes())


def _usable(table: pa.Table, spec: ScoringSpec) -> pa.Table:
    """The rows that can stand for others, with their keys, words written out."""
    table = table.filter(pc.equal(table["status"].cast(pa.string()), "ok"))
    goes_on = table[schema.SECOND_LOOK].is_valid().to_pylist() if schema.SECOND_LOOK in table.column_names else [True] * len(table)
    facts = zip(*(table[name].to_pylist() for name in ("width", "height", "scores")), goes_on, strict=True)
    table = table.filter(pa.array([reuse.is_complete(spec, *row, goes_on=on) for *row, on in facts], pa.bool_()))
    digests = [bytes.fromhex(text) for text in table["sha256"].to_pylist()]
    keys = np.frombuffer(b"".join(digest[:8] for digest in digests), ">u8").astype(np.uint64)
    columns = {"key": pa.array(keys), "digest": pa.array(digests, pa.binary(32))}
    for name in (*FACTS[1:], *COPIED):
        if name in table.column_names:
            column = table[name]
            columns[name] = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    return pa.table(columns)


def _local(run: directory.RunDirectory, name: str, cache: Path) -> str:
    """A path of this machine with the file's bytes; fetched by the first process of the node that asks, awaited by the others."""
    filesystem, path = run.store.filesystem_and_path(f"reuse/{name}")
    if isinstance(filesystem, LocalFileSystem):
        return path
    cache.mkdir(parents=True, exist_ok=True)
    copy = cache / name
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            aside = cache / f"{name}.part"
            aside.write_bytes(run.store.read(f"reuse/{name}"))
            aside.replace(copy)
    return str(copy)
