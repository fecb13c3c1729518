"""What one pass found of a block, kept until all detectors have spoken (`Partials`), and how passes are put together (`joined`).

    passes/<manifest>/<block>-<detectors>.arrow    one row per member of the block

`<detectors>`: which of the run's detectors have spoken, as bits in hexadecimal over their names in order. So what is done is a listing of
names, as it is with parts, and however the detectors are grouped next time, none is asked twice.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.errors import Status
from ray_app.images import ImageFileFacts
from ray_app.inference import DecodeResult, DetectorOutputs
from ray_app.inference.outputs import LISTS, MASKS, OutputKey, blank
from ray_app.runs.directory import RunDirectory

FOLDER = "passes"
_NAME = re.compile(r"(\d+)-([0-9a-f]+)\.arrow")
_OUTCOME = "outcome"
_MASK = pa.struct([("shape", pa.list_(pa.int32())), ("pixels", pa.large_binary())])
_CHANGED = "its bytes changed between two passes of this run"

Found = tuple[list[DecodeResult], DetectorOutputs]


class Partials:
    """The partial results of one run (or retry); `detectors`: all that it has. Small and picklable."""

    def __init__(self, run: RunDirectory, detectors: Iterable[str]) -> None:
        self._run, self._names = run, sorted(detectors)

    def there(self) -> dict[tuple[int, int], frozenset[str]]:
        """By (manifest, block) the names of detectors that have spoken of it, of blocks of which some have."""
        spoken: dict[tuple[int, int], frozenset[str]] = {}
        for manifest, block, bits in self._files():
            spoken[manifest, block] = spoken.get((manifest, block), frozenset()) | self._spelled(bits)
        return spoken

    def groups(self) -> list[frozenset[str]]:
        """The groups of detectors whose words on any block were kept."""
        return [self._spelled(bits) for bits in sorted({bits for _, _, bits in self._files()})]

    def kept(self, manifest: int, block: int, groups: Iterable[Collection[str]]) -> Iterator[Found]:
        """What these groups of detectors said of a block, of those groups that have spoken of it."""
        for group in groups:
            try:
                yield _read(self._run.store.read(self._path(manifest, block, group)))
            except FileNotFoundError:
                continue

    def keep(self, manifest: int, block: int, group: Collection[str], found: Found) -> None:
        """Keep what a group said, at once. A repeated call replaces the same file."""
        self._run.store.write(self._path(manifest, block, group), _written(*found))

    def _files(self) -> Iterator[tuple[int, int, str]]:
        for folder in self._run.store.folders(FOLDER):
            for name in self._run.store.names(f"{FOLDER}/{folder}"):
                if found := _NAME.fullmatch(name):
                    yield int(folder), int(found[1]), found[2]

    def _path(self, manifest: int, block: int, group: Collection[str]) -> str:
        bits = sum(1 << place for place, name in enumerate(self._names) if name in group)
        return f"{FOLDER}/{manifest:05d}/{block:08d}-{bits:x}.arrow"

    def _spelled(self, bits: str) -> frozenset[str]:
        number = int(bits, 16)
        return frozenset(name for place, name in enumerate(self._names) if number >> place & 1)


def clear_partials(run: RunDirectory) -> None:
    """Remove what passes have left, once every block has its part."""
    run.store.clear(FOLDER)


def joined(one: Found, other: Found) -> Found:
    """What two passes found of the same members, as one would have: a member that either could not read has the first reason why, and no
    output at all; one whose bytes are not the same any more is `source_changed`.
    """
    outcomes = [_agreed(*pair) for pair in zip(one[0], other[0], strict=True)]
    columns = dict(one[1].joined(other[1]).columns)
    refused = [row for row, outcome in enumerate(outcomes) if outcome.status is not Status.OK]
    for key, column in columns.items() if refused else ():
        columns[key] = cleared = list(column) if key.kind in LISTS else np.array(column)
        nothing = blank(key.kind, 1, np.shape(column)[1:] if key.kind not in LISTS else ())[0]
        for row in refused:
            cleared[row] = nothing
    return outcomes, DetectorOutputs(columns)


def _agreed(one: DecodeResult, other: DecodeResult) -> DecodeResult:
    if one.status is not Status.OK or other.status is not Status.OK:
        return other if one.status is Status.OK else one
    if one.facts is None or other.facts is None:
        return one
    if one.facts.sha256 != other.facts.sha256:
        return replace(one, status=Status.SOURCE_CHANGED, detail=_CHANGED)
    # What is measured on pixels is what cards of the pass ask for.
    known = {field.name: getattr(other.facts, field.name) for field in fields(one.facts) if getattr(one.facts, field.name) is None}
    return replace(one, facts=replace(one.facts, **known))


def _written(outcomes: Sequence[DecodeResult], outputs: DetectorOutputs) -> bytes:
    columns = {_OUTCOME: pa.array([json.dumps(asdict(outcome)) for outcome in outcomes], pa.large_string())}
    for key, column in outputs.columns.items():
        columns[json.dumps(key)] = _array(key.kind, column)
    table, sink = pa.table(columns), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _array(kind: str, column: Any) -> pa.Array:
    if kind == MASKS:
        masks = [None if mask is None else {"shape": mask.shape, "pixels": np.ascontiguousarray(mask).tobytes()} for mask in column]
        return pa.array(masks, _MASK)
    if kind in LISTS:
        return pa.array(column, pa.large_string())
    numbers = np.asarray(column, np.float32)
    flat = pa.array(numbers.ravel())
    return flat if numbers.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, numbers.shape[1])


def _read(data: bytes) -> Found:
    table = pa.ipc.open_stream(data).read_all().combine_chunks()
    columns = {}
    for name in table.column_names:
        if name != _OUTCOME:
            key = OutputKey(*json.loads(name))
            columns[key] = _column(key.kind, table[name].combine_chunks())
    return [_outcome(json.loads(one)) for one in table[_OUTCOME].to_pylist()], DetectorOutputs(columns)


def _column(kind: str, array: pa.Array) -> Any:
    if kind == MASKS:
        masks = array.to_pylist()
        return [None if one is None else np.frombuffer(one["pixels"], np.uint8).reshape(one["shape"]) for one in masks]
    if kind in LISTS:
        return array.to_pylist()
    if isinstance(array, pa.FixedSizeListArray):
        return array.flatten().to_numpy().reshape(len(array), -1).copy()
    return array.to_numpy().copy()


def _outcome(said: Mapping[str, Any]) -> DecodeResult:
    facts = said["facts"]
    known = None if facts is None else ImageFileFacts(**{**facts, "flags": tuple(facts["flags"])})
    return DecodeResult(Status(said["status"]), said["detail"], known, said["phash"], None, said["provenance"], said["failure"])
