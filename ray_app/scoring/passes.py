"""Detectors that do not fit a process together go over the blocks in passes, one group after another (`PassPlan`, `passes_of`); what a pass
found of a block is kept until all detectors have spoken (`Partials`, `joined`).

    passes/<manifest>/<block>-<detectors>.arrow    one row per member of the block

`<detectors>`: which of the run's have spoken, as bits in hexadecimal over their names in order. So what is done is a listing of names,
as it is with parts, and however the detectors are grouped next time, none is asked twice. A pass decides who is in memory together, never
what is scored.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.archives import BlockList
from ray_app.cluster.config import RAY_SHARE
from ray_app.errors import ConfigError, Status
from ray_app.images import ImageFileFacts
from ray_app.inference import DecodeResult, DetectorOutputs, ResourceEstimate, ScoringSpec
from ray_app.inference.decision import LISTS, MASKS, OutputKey, blank
from ray_app.inference.spec import PROCESS_BYTES
from ray_app.reports.format import size
from ray_app.runs.directory import RunDirectory
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.layout import DECODE_GMAC

FOLDER = "passes"
_NAME = re.compile(r"(\d+)-([0-9a-f]+)\.arrow")
_OUTCOME = "outcome"
_MASK = pa.struct([("shape", pa.list_(pa.int32())), ("pixels", pa.large_binary())])

Group = tuple[str, ...]
Found = tuple[Sequence[DecodeResult], DetectorOutputs]


@dataclass(frozen=True)
class PassPlan:
    """`spec`: of all detectors. `limit_bytes`: what those of one pass may take in one process. `joins`: whether a block may have been
    looked at by some of them before.
    """

    spec: ScoringSpec
    limit_bytes: float = math.inf
    joins: bool = True

    def groups(self, names: Collection[str] | None = None) -> list[Group]:
        """All detectors, or some, by pass: first-fit decreasing over those that share a backbone in one precision, which stay together.
        Where the first group is done, the others stay as they are.
        """
        wanted = self.spec.cards if names is None else names
        units: dict[Group, Group] = {}
        for name, card in self.spec.cards.items():
            if name in wanted:
                key = (name,) if card.backbone is None else (card.backbone.name, self.spec.precision[name])
                units[key] = (*units.get(key, ()), name)
        groups: list[Group] = []
        for unit in sorted(units.values(), key=lambda unit: -pass_bytes(self.spec, unit)):
            fitting = (place for place, group in enumerate(groups) if pass_bytes(self.spec, group + unit) <= self.limit_bytes)
            if (place := next(fitting, None)) is None:
                groups.append(unit)
            else:
                groups[place] += unit
        return [tuple(name for name in self.spec.cards if name in group) for group in groups]

    def specs(self) -> list[ScoringSpec]:
        """What each pass scores with, in their order."""
        return [self.spec_of(group) for group in self.groups()]

    def spec_of(self, group: Collection[str]) -> ScoringSpec:
        """What the pass of a group scores with: the whole where there is only one."""
        return self.spec if set(group) == set(self.spec.cards) else self.spec.asking(group, self.spec.views)


def pass_bytes(spec: ScoringSpec, names: Collection[str]) -> int:
    """What these detectors take at most in one process; of those with processes of their own, in one for each, which run side by side."""
    some = spec.asking(names, spec.views)
    return ResourceEstimate.of(some).process_bytes + (len(some.pools) - 1) * PROCESS_BYTES


def why_together(config: ScoreConfig, spec: ScoringSpec) -> str | None:
    """Why the detectors cannot go over an image one group after another; None where they can."""
    if spec.late:
        return f"{spec.ensemble.name} is a cascade: which detectors look at an image depends on what others said of it"
    if spec.stability is not None:
        return "--stability shows images again once all detectors have spoken, while their files are at hand"
    if spec.describer is not None:
        return f"{spec.describer.name} describes images once all detectors have spoken, while their pixels are at hand"
    return "--reuse copies what all detectors said of the same bytes" if config.reuse else None


def plan_passes(config: ScoreConfig, spec: ScoringSpec, *, cpus: float, gpus: float, nodes: int, node_bytes: float | None) -> PassPlan:
    """How the detectors are grouped on such nodes, the smallest of which has so much memory (None: nobody has stated it).

    `cluster.worker_bytes` decides where it is set. Else as many processes share a node as let the whole run take the least time: with fewer
    passes over the files, or with more processes in each. Raises ConfigError where detectors that must be together, or one alone, take
    more than `cluster.worker_bytes`.
    """
    together, limit = why_together(config, spec), config.cluster.worker_bytes
    whole = PassPlan(spec, joins=together is None)
    if limit is not None:
        return _within(PassPlan(spec, limit, joins=whole.joins), together)
    if together is not None or node_bytes is None:
        return whole
    room = RAY_SHARE * node_bytes
    at_most = 1 if gpus >= 1 else max(int(cpus / nodes), 1)

    def seconds(plan: PassPlan) -> float:  # in a unit of its own
        spent = 0.0
        for group in plan.groups():
            processes = min(max(int(room // pass_bytes(spec, group)), 1), at_most)
            spent += (DECODE_GMAC + sum(ResourceEstimate.of(plan.spec_of(group)).pool_gmac)) / processes
        return spent

    counts = range(at_most, 0, -1) if config.cluster.workers is None else [max(math.ceil(config.cluster.workers / nodes), 1)]
    best = min((PassPlan(spec, room / count) for count in counts), key=seconds)
    return best if len(best.groups()) > 1 else whole


def _within(plan: PassPlan, together: str | None) -> PassPlan:
    groups, most = plan.groups(), f"cluster.worker_bytes {size(int(plan.limit_bytes))}"
    if len(groups) > 1 and together is not None:
        taken = size(pass_bytes(plan.spec, plan.spec.cards))
        raise ConfigError(
            f"{most}: the detectors together take about {taken}, and they cannot be asked in several passes: {together}",
            hint="raise cluster.worker_bytes or leave it out, or take fewer detectors",
        )
    for group in groups:
        if (needed := pass_bytes(plan.spec, group)) > plan.limit_bytes:
            named = " and ".join(group) + " share a backbone and" * (len(group) > 1)
            hint = f"--set cluster.worker_bytes={needed} or more, or leave that detector out"
            raise ConfigError(f"{most}: {named} need about {size(needed)}", hint=hint)
    return plan


@dataclass(frozen=True)
class Pass:
    """One pass of a session: its detectors' spec, its blocks, and the groups that may have spoken of them before. `is_whole`: it leaves
    nothing to any other and finds nothing of one.
    """

    number: int
    of: int
    spec: ScoringSpec
    pending: BlockList
    earlier: Sequence[frozenset[str]]
    is_last: bool
    is_whole: bool


def passes_of(plan: PassPlan, run: RunDirectory, pending_now: Callable[[], BlockList], *, listing: bool = False) -> Iterator[Pass]:
    """The passes that blocks of a run still need, each to be done before the next is asked for. `listing`: more blocks come meanwhile.

    Blocks of which detectors have spoken before are given to the others alone, however they were grouped then.
    """
    partials, everybody, number, is_last = Partials(run, plan.spec.cards), frozenset(plan.spec.cards), 0, False
    while not is_last and (len(pending := pending_now()) or listing):
        there = partials.there() if plan.joins else {}
        left = [everybody - there.get(ref.place, frozenset()) or everybody for ref in pending] if there else []
        sets = {everybody} if listing or not there else set(left)
        group, *others = plan.groups(max(sets, key=lambda names: (len(names), sorted(names))))
        mine = pending.where([names >= set(group) for names in left]) if there else pending
        listing, number = False, number + 1
        is_last = not others and len(mine) == len(pending)
        spec, earlier = plan.spec_of(group), partials.groups() if there else ()
        of = number + len(others) + (not others and not is_last)
        yield Pass(number, of, spec, mine, earlier, is_last, is_whole=spec is plan.spec and not earlier)


class Partials:
    """The partial results of one run (or retry); `detectors`: all that it has."""

    def __init__(self, run: RunDirectory, detectors: Iterable[str]) -> None:
        self._store, self._names = run.store, sorted(detectors)

    def there(self) -> dict[tuple[int, int], frozenset[str]]:
        """By (manifest, block) the names of detectors that have spoken of it, of blocks of which some have."""
        spoken: dict[tuple[int, int], frozenset[str]] = {}
        for place, group in self._files():
            spoken[place] = spoken.get(place, frozenset()) | group
        return spoken

    def groups(self) -> list[frozenset[str]]:
        """The groups of detectors whose words on any block were kept."""
        return sorted({group for _, group in self._files()}, key=sorted)

    def kept(self, place: tuple[int, int], groups: Iterable[Collection[str]]) -> Iterator[Found]:
        """What these groups of detectors said of a block, of those groups that have spoken of it."""
        for group in groups:
            try:
                yield _read(self._store.read(self._path(place, group)))
            except FileNotFoundError:
                continue

    def keep(self, place: tuple[int, int], group: Collection[str], found: Found) -> None:
        """Keep what a group said, at once. A repeated call replaces the same file."""
        self._store.write(self._path(place, group), _written(*found))

    def _files(self) -> Iterator[tuple[tuple[int, int], frozenset[str]]]:
        for folder in self._store.folders(FOLDER):
            for file in self._store.names(f"{FOLDER}/{folder}"):
                if found := _NAME.fullmatch(file):
                    bits = int(found[2], 16)
                    yield (int(folder), int(found[1])), frozenset(name for at, name in enumerate(self._names) if bits >> at & 1)

    def _path(self, place: tuple[int, int], group: Collection[str]) -> str:
        bits = sum(1 << at for at, name in enumerate(self._names) if name in group)
        return f"{FOLDER}/{place[0]:05d}/{place[1]:08d}-{bits:x}.arrow"


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
        return replace(one, status=Status.SOURCE_CHANGED, detail="its bytes changed between two passes of this run")
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
    return pa.array(column, pa.large_string()) if kind in LISTS else pa.array(list(np.asarray(column, np.float32)))


def _read(data: bytes) -> Found:
    table = pa.ipc.open_stream(data).read_all().combine_chunks()
    keys = {name: OutputKey(*json.loads(name)) for name in table.column_names if name != _OUTCOME}
    columns = {key: _column(key.kind, table[name].combine_chunks()) for name, key in keys.items()}
    return [_outcome(json.loads(one)) for one in table[_OUTCOME].to_pylist()], DetectorOutputs(columns)


def _column(kind: str, array: pa.Array) -> Any:
    if kind == MASKS:
        return [one and np.frombuffer(one["pixels"], np.uint8).reshape(one["shape"]) for one in array.to_pylist()]
    return array.to_pylist() if kind in LISTS else np.array(array.to_pylist(), np.float32)


def _outcome(said: Mapping[str, Any]) -> DecodeResult:
    facts = said["facts"]
    known = None if facts is None else ImageFileFacts(**{**facts, "flags": tuple(facts["flags"])})
    return DecodeResult(Status(said["status"]), said["detail"], known, said["phash"], None, said["provenance"], said["failure"])
