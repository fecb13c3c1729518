"""The scores that a run has for certain bytes, by their digest (`ScoreIndex`, `build_index`): a sorted file per published one.

    reuse/<manifest>-<first>-<last>.arrow    rows of those blocks that have scores, sorted by the first 8 bytes of the SHA-256
    reuse/<manifest>-<first>--<manifest>-<last>.arrow    of a merged file

Arrow IPC, uncompressed, one record batch: a worker maps it, and pages that a search touches are shared by all processes of a node.
From a bucket each file is copied once to each node's disk. A file is never wrong, at worst it lacks rows, since bytes and scores belong
together for as long as the run does.
"""

import fcntl
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import Each, in_turn
from ray_app.errors import Status
from ray_app.images import ImageFileFacts
from ray_app.inference import DecodeResult, ScoringSpec, batch, reuse
from ray_app.runs import directory, schema, score_files
from ray_app.runs.rows import FACTS

COPIED = ("phash", "scores", "replies")
PARTS_PER_FILE = 4096


def _path(blocks: score_files.Published) -> str:
    """Where the index of some blocks lies, relative to the run."""
    return f"reuse/{blocks.name.removesuffix('.parquet')}.arrow"


def _indexed(run: directory.RunDirectory) -> list[score_files.Published]:
    """The blocks of the indexes that are there, in their order."""
    stems = (name.removesuffix(".arrow") for name in run.store.names("reuse") if name.endswith(".arrow"))
    return score_files.named(f"{stem}.parquet" for stem in stems)


def build_index(run: directory.RunDirectory, spec: ScoringSpec, each: Each = in_turn) -> int:
    """Index every block that is done and not indexed yet, one task per file; returns how many files that took."""
    missing = list(_unindexed(run))
    count = sum(1 for _ in each(partial(_index, run, spec), missing))
    wholes = [blocks for blocks, _ in missing if blocks.is_merged]
    if wholes:
        run.store.delete_all([_path(one) for one in _indexed(run) if any(one != whole and whole.contains(one) for whole in wholes)])
    return count


def forget_index(run: directory.RunDirectory, file: score_files.Published) -> None:
    """Remove what is known of a published file, since some of its members have scores now that had none."""
    run.store.delete_all([_path(one) for one in _indexed(run) if one.start <= file.end and one.end >= file.start])


class ScoreIndex:
    """The index of a run, as one process uses it. `cache`: a folder on the node's own disk, for runs that lie elsewhere."""

    def __init__(self, run: directory.RunDirectory, cache: Path) -> None:
        self._files = [_File(_local(run, _path(one), cache)) for one in _indexed(run)]

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


def _unindexed(run: directory.RunDirectory) -> Iterator[tuple[score_files.Published, tuple[str, ...]]]:
    """Blocks that have no index, with the files of their rows. A merged file wants one of its own, so that there are as few as of files."""
    known = _indexed(run)

    def unknown(manifest: int, blocks: Iterable[int]) -> list[int]:
        return [block for block in blocks if not any(one.holds(manifest, block) for one in known)]

    for file in run.published():
        has_own = any(one.start == file.start and one.end == file.end for one in known)
        if not has_own and (file.is_merged or unknown(file.manifest, range(file.first, file.last + 1))):
            known.append(file)
            yield file, (file.path,)
    for manifest in run.part_folders():
        yield from run.part_spans(manifest, unknown(manifest, run.parts(manifest)), PARTS_PER_FILE)


def _index(run: directory.RunDirectory, spec: ScoringSpec, missing: tuple[score_files.Published, tuple[str, ...]]) -> None:
    blocks, paths = missing
    tables = [_usable(table, spec) for path in paths for table in run.rows_in(path)]
    rows = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({"key": pa.array([], pa.uint64())})
    rows = rows.sort_by("key").combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=max(1, len(rows)))
    run.store.write(_path(blocks), sink.getvalue().to_pybytes())


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


def _local(run: directory.RunDirectory, path: str, cache: Path) -> str:
    """A path of this machine with the file's bytes; fetched by the first process of the node that asks, awaited by the others."""
    here = run.store.local_path(path)
    if here:
        return str(here)
    cache.mkdir(parents=True, exist_ok=True)
    name = path.rpartition("/")[2]
    copy = cache / name
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            aside = cache / f"{name}.part"
            aside.write_bytes(run.store.read(path))
            aside.replace(copy)
    return str(copy)
