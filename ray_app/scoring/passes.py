"""Detectors that do not fit a process together go over the blocks in passes, one group after
another (`PassPlan`, `passes_of`); what a pass found of a block is kept until all detectors have
scored it (`Partials`, `joined`).

    passes/<manifest>/<block>-<detectors>.arrow    one row per member of the block

`<detectors>`: which of the run's have scored it, as bits in hexadecimal over their sorted names. So
however they are grouped next time, none runs twice. A pass decides who is in memory together, never
what is scored.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import feather
from pydantic import TypeAdapter

from ray_app.archives import BlockList
from ray_app.cluster.config import RAY_SHARE
from ray_app.errors import ConfigError, Status
from ray_app.inference import DecodeResult, DetectorOutputs, ResourceEstimate, ScoringSpec
from ray_app.inference.decision import LISTS, MASKS, OutputKey, blank
from ray_app.inference.spec import PROCESS_BYTES
from ray_app.reports.format import size
from ray_app.runs.directory import RunDirectory
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.layout import DECODE_GMAC

FOLDER = "passes"
_NAME = re.compile(r"(\d+)-([0-9a-f]+)\.arrow")
_OUTCOMES, _OUTCOME_LIST = b"outcomes", TypeAdapter(list[DecodeResult])
_MASK = pa.struct([("shape", pa.list_(pa.int32())), ("pixels", pa.large_binary())])

Group = tuple[str, ...]
Found = tuple[Sequence[DecodeResult], DetectorOutputs]


@dataclass(frozen=True)
class PassPlan:
    """`spec`: of all detectors. `limit_bytes`: what those of one pass may take in one process.
    `joins`: whether a block may have been looked at by some of them before.
    """

    spec: ScoringSpec
    limit_bytes: float = math.inf
    joins: bool = True

    def groups(self, names: Collection[str] | None = None) -> list[Group]:
        """All detectors, or some, by pass: first-fit decreasing over those that share a backbone in
        one precision, which stay together. Where the first group is done, the others stay as they
        are.
        """
        units: dict[Group, Group] = {}
        for name, card in self.spec.cards.items():
            if names is None or name in names:
                key = (
                    (name,)
                    if card.backbone is None
                    else (card.backbone.name, self.spec.precision[name])
                )
                units[key] = (*units.get(key, ()), name)
        groups: list[list[str]] = []
        for unit in sorted(units.values(), key=lambda unit: -pass_bytes(self.spec, unit)):
            fitting = (
                group
                for group in groups
                if pass_bytes(self.spec, [*group, *unit]) <= self.limit_bytes
            )
            if (group := next(fitting, None)) is None:
                groups.append(group := [])
            group.extend(unit)
        return [tuple(name for name in self.spec.cards if name in group) for group in groups]

    def specs(self, names: Collection[str] | None = None) -> list[ScoringSpec]:
        """What each pass scores with, in their order: the whole where there is only one."""
        groups = self.groups(names)
        return [
            self.spec
            if len(group) == len(self.spec.cards)
            else self.spec.limited_to(group, self.spec.views)
            for group in groups
        ]


def pass_bytes(spec: ScoringSpec, names: Collection[str]) -> int:
    """What these detectors take at most in one process; of those with processes of their own, in
    one for each, which run side by side.
    """
    some = spec.limited_to(names, spec.views)
    return ResourceEstimate.of(some).process_bytes + (len(some.pools) - 1) * PROCESS_BYTES


def why_together(config: ScoreConfig, spec: ScoringSpec) -> str | None:
    """Why the detectors cannot go over an image one group after another; None where they can."""
    if spec.late:
        return f"{spec.ensemble.name} is a cascade: which detectors look at an image depends on what others said of it"
    if spec.describer is not None:
        return f"{spec.describer.name} describes images once all detectors have scored, while their pixels are at hand"
    return None


def plan_passes(
    config: ScoreConfig,
    spec: ScoringSpec,
    *,
    cpus: float,
    gpus: float,
    nodes: int,
    node_bytes: float | None,
) -> PassPlan:
    """How the detectors are grouped on such nodes, the smallest of which has so much memory (None:
    not stated).

    `cluster.worker_bytes` decides where it is set. Else as many processes share a node as let the
    whole run take the least time: with fewer passes over the files, or with more processes in each.
    Raises ConfigError where detectors that must be together, or one alone, take more than
    `cluster.worker_bytes`.
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
        specs = plan.specs()
        processes = [
            min(max(int(room // pass_bytes(spec, one.cards)), 1), at_most) for one in specs
        ]
        return sum(
            (DECODE_GMAC + sum(ResourceEstimate.of(one).pool_gmac)) / count
            for one, count in zip(specs, processes, strict=True)
        )

    counts = (
        range(at_most, 0, -1)
        if config.cluster.workers is None
        else [max(math.ceil(config.cluster.workers / nodes), 1)]
    )
    best = min((PassPlan(spec, room / count) for count in counts), key=seconds)
    return best if len(best.groups()) > 1 else whole


def _within(plan: PassPlan, together: str | None) -> PassPlan:
    for group in plan.groups() if together is None else [tuple(plan.spec.cards)]:
        if (needed := pass_bytes(plan.spec, group)) > plan.limit_bytes:
            named = " and ".join(group) + (
                " share a backbone and" if len(group) > 1 and together is None else ""
            )
            why = (
                f" together, and they cannot be asked in several passes: {together}"
                if together
                else ""
            )
            raise ConfigError(
                f"cluster.worker_bytes {size(int(plan.limit_bytes))}: {named} need about {size(needed)}{why}",
                hint=f"--set cluster.worker_bytes={needed} or more, or fewer detectors",
            )
    return plan


@dataclass(frozen=True)
class Pass:
    """One pass of a session, its blocks, and the groups that may have scored them. `is_whole`:
    there is no other pass and never was.
    """

    number: int
    of: int
    spec: ScoringSpec
    pending: BlockList
    earlier: Sequence[frozenset[str]]
    is_last: bool
    is_whole: bool


def passes_of(
    plan: PassPlan,
    run: RunDirectory,
    pending_now: Callable[[], BlockList],
    *,
    listing: bool = False,
) -> Iterator[Pass]:
    """The passes that blocks of a run still need, each to be done before the next is asked for.
    `listing`: more blocks come meanwhile.

    Blocks that some detectors have scored are given to the others alone, however they were grouped
    then.
    """
    everybody, number, is_last = frozenset(plan.spec.cards), 0, False
    while not is_last and (len(pending := pending_now()) or listing):
        scored = Partials(run, everybody).groups() if plan.joins else {}
        left = (
            [everybody.difference(*scored.get(ref.place, ())) or everybody for ref in pending]
            if scored
            else [everybody] * len(pending)
        )
        widest = max(
            {everybody} if listing else set(left), key=lambda names: (len(names), sorted(names))
        )
        first, *others = plan.specs(widest)
        mine = pending.where([names >= set(first.cards) for names in left])
        listing, number = False, number + 1
        is_last = not others and len(mine) == len(pending)
        earlier = sorted({group for groups in scored.values() for group in groups}, key=sorted)
        of = number + len(others) + (not others and not is_last)
        yield Pass(
            number, of, first, mine, earlier, is_last, is_whole=first is plan.spec and not earlier
        )


class Partials:
    """The partial results of one run (or retry); `detectors`: all that it has."""

    def __init__(self, run: RunDirectory, detectors: Iterable[str]) -> None:
        self._store, self._names = run.store, sorted(detectors)

    def groups(self) -> dict[tuple[int, int], set[frozenset[str]]]:
        """By (manifest, block) the groups of detectors that have scored it."""
        found = defaultdict[tuple[int, int], set[frozenset[str]]](set)
        for folder in self._store.folders(FOLDER):
            for file in self._store.names(f"{FOLDER}/{folder}"):
                if match := _NAME.fullmatch(file):
                    bits = int(match[2], 16)
                    found[int(folder), int(match[1])].add(
                        frozenset(name for at, name in enumerate(self._names) if bits >> at & 1)
                    )
        return found

    def completed(
        self,
        place: tuple[int, int],
        group: Collection[str],
        found: Found,
        earlier: Iterable[Collection[str]],
    ) -> Found | None:
        """What a group found of a block, with what `earlier` groups did that have scored it; None
        where others have yet to: then it is kept, at once. A repeated call replaces the same file.
        """
        whole = found
        for other in earlier:
            with suppress(FileNotFoundError):
                whole = joined(_read(self._store.read(self._path(place, other))), whole)
        if whole[1].scores.keys() >= set(self._names):
            return whole
        self._store.write(self._path(place, group), _written(*found))
        return None

    def _path(self, place: tuple[int, int], group: Collection[str]) -> str:
        bits = sum(1 << at for at, name in enumerate(self._names) if name in group)
        return f"{FOLDER}/{place[0]:05d}/{place[1]:08d}-{bits:x}.arrow"


def joined(one: Found, other: Found) -> Found:
    """What two passes found of the same members, as one would have: a member that either could not
    read has the first reason why, and no output at all; one whose bytes are not the same any more
    is `source_changed`.
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
    if one.status is not Status.OK or one.facts is None:
        return one
    if other.status is not Status.OK or other.facts is None:
        return other
    if one.facts.sha256 != other.facts.sha256:
        return replace(
            one,
            status=Status.SOURCE_CHANGED,
            detail="its bytes changed between two passes of this run",
        )
    # What is measured on pixels is what cards of the pass ask for.
    known = {
        field.name: getattr(other.facts, field.name)
        for field in fields(one.facts)
        if getattr(one.facts, field.name) is None
    }
    return replace(one, facts=replace(one.facts, **known))


def _written(outcomes: Sequence[DecodeResult], outputs: DetectorOutputs) -> bytes:
    columns = {json.dumps(key): _array(key.kind, column) for key, column in outputs.columns.items()}
    table, sink = (
        pa.table(columns, metadata={_OUTCOMES: _OUTCOME_LIST.dump_json(list(outcomes))}),
        pa.BufferOutputStream(),
    )
    feather.write_feather(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _array(kind: str, column: Any) -> pa.Array:
    if kind == MASKS:
        masks = [
            None
            if mask is None
            else {"shape": mask.shape, "pixels": np.ascontiguousarray(mask).tobytes()}
            for mask in column
        ]
        return pa.array(masks, _MASK)
    return (
        pa.array(column, pa.large_string())
        if kind in LISTS
        else pa.array(list(np.asarray(column, np.float32)))
    )


def _read(data: bytes) -> Found:
    table = feather.read_table(pa.BufferReader(data)).combine_chunks()
    keys = {
        OutputKey(*json.loads(name)): table[name].combine_chunks() for name in table.column_names
    }
    columns = {key: _column(key.kind, array) for key, array in keys.items()}
    return _OUTCOME_LIST.validate_json(table.schema.metadata[_OUTCOMES]), DetectorOutputs(columns)


def _column(kind: str, array: pa.Array) -> Any:
    if kind == MASKS:
        return [
            one and np.frombuffer(one["pixels"], np.uint8).reshape(one["shape"])
            for one in array.to_pylist()
        ]
    return array.to_pylist() if kind in LISTS else np.array(array.to_pylist(), np.float32)
