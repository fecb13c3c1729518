"""In how many passes the detectors of a run go over its blocks: all at once where they fit a process, else group after group (`PassPlan`).

A pass is operational: it decides who is in memory together, never what is scored. What is done stands in `runs.partials`, by detector, so
that a run goes on under any other grouping.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ray_app.archives import BlockList
from ray_app.cluster.config import RAY_SHARE
from ray_app.errors import ConfigError
from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.inference.spec import PROCESS_BYTES
from ray_app.reports.format import size
from ray_app.runs import RunDirectory
from ray_app.runs.partials import Partials
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.layout import DECODE_GMAC

Group = tuple[str, ...]


@dataclass(frozen=True)
class PassPlan:
    """`spec`: of all detectors. `limit_bytes`: what those of one pass may take in one process. `joins`: whether a block may have been
    looked at by some of them before.
    """

    spec: ScoringSpec
    limit_bytes: float = math.inf
    joins: bool = True

    def groups(self, names: Collection[str] | None = None) -> list[Group]:
        """All detectors, or some, by pass: first-fit decreasing over those that must stay together. Where the first group is done, the
        others stay as they are.
        """
        wanted = self.spec.cards if names is None else names
        units = sorted(units_of(self.spec, wanted), key=lambda unit: -pass_bytes(self.spec, unit))
        groups: list[Group] = []
        for unit in units:
            fitting = (place for place, group in enumerate(groups) if pass_bytes(self.spec, group + unit) <= self.limit_bytes)
            place = next(fitting, len(groups))
            groups[place:] = [groups[place] + unit, *groups[place + 1 :]] if place < len(groups) else [unit]
        return [tuple(name for name in self.spec.cards if name in group) for group in groups]

    def specs(self) -> list[ScoringSpec]:
        """What each pass scores with, in their order."""
        return [self.spec_of(group) for group in self.groups()]

    def spec_of(self, group: Collection[str]) -> ScoringSpec:
        """What the pass of a group scores with: the whole where there is only one."""
        return self.spec if set(group) == set(self.spec.cards) else self.spec.asking(group, self.spec.views)


def units_of(spec: ScoringSpec, names: Collection[str]) -> list[Group]:
    """The detectors that are never in different passes: those that share a backbone in one precision, and each of the others."""
    units: dict[tuple[str, ...], Group] = {}
    for name, card in spec.cards.items():
        if name in names:
            key = (name,) if card.backbone is None else (card.backbone.name, spec.precision[name])
            units[key] = (*units.get(key, ()), name)
    return list(units.values())


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
    if config.reuse:
        return "--reuse copies what all detectors said of the same bytes"
    return None


def plan_passes(config: ScoreConfig, spec: ScoringSpec, *, cpus: float, gpus: float, nodes: int, node_bytes: float | None) -> PassPlan:
    """How the detectors are grouped on such nodes, the smallest of which has so much memory (None: nobody has stated it).

    `cluster.worker_bytes` decides where it is set. Else as many processes share a node as let the whole run take the least time: with fewer
    passes over the files, or with more processes in each. Raises ConfigError where detectors that must be together, or one alone, take
    more than `cluster.worker_bytes`.
    """
    together = why_together(config, spec)
    whole = PassPlan(spec, joins=together is None)
    limit = config.cluster.worker_bytes
    if limit is not None:
        return _within(PassPlan(spec, limit, joins=whole.joins), together)
    if together is not None or node_bytes is None or len(units_of(spec, spec.cards)) < 2:
        return whole
    room = RAY_SHARE * node_bytes
    at_most = 1 if gpus >= 1 else max(int(cpus / nodes), 1)
    counts = range(at_most, 0, -1) if config.cluster.workers is None else [max(math.ceil(config.cluster.workers / nodes), 1)]
    plans = [PassPlan(spec, room / count) for count in counts]
    best = min(plans, key=lambda plan: _work(plan, room, at_most))
    return best if len(best.groups()) > 1 else whole


def _work(plan: PassPlan, room: float, at_most: int) -> float:
    """The time of all passes, in a unit of its own: fetched and decoded in each, by as many processes as have room."""
    spent = 0.0
    for group in plan.groups():
        processes = min(max(int(room // pass_bytes(plan.spec, group)), 1), at_most)
        spent += (DECODE_GMAC + sum(ResourceEstimate.of(plan.spec_of(group)).pool_gmac)) / processes
    return spent


def _within(plan: PassPlan, together: str | None) -> PassPlan:
    groups = plan.groups()
    if len(groups) > 1 and together is not None:
        raise ConfigError(
            f"cluster.worker_bytes {size(int(plan.limit_bytes))}: the detectors together take about "
            f"{size(pass_bytes(plan.spec, plan.spec.cards))}, and they cannot be asked in several passes: {together}",
            hint="raise cluster.worker_bytes or leave it out, or take fewer detectors",
        )
    for group in groups:
        needed = pass_bytes(plan.spec, group)
        if needed > plan.limit_bytes:
            raise ConfigError(
                f"cluster.worker_bytes {size(int(plan.limit_bytes))}: {' and '.join(group)}"
                f"{' share a backbone and' if len(group) > 1 else ''} need about {size(needed)}",
                hint=f"--set cluster.worker_bytes={needed} or more, or leave that detector out",
            )
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
    partials, everybody, number = Partials(run, plan.spec.cards), frozenset(plan.spec.cards), 0
    while True:
        pending = pending_now()
        if not len(pending) and not listing:
            return
        there = partials.there() if plan.joins else {}
        left = [everybody - there.get(ref.place, frozenset()) or everybody for ref in pending] if there else []
        sets = {everybody} if listing or not there else set(left)
        group, *others = plan.groups(max(sets, key=lambda names: (len(names), sorted(names))))
        mine = pending.where([names >= set(group) for names in left]) if there else pending
        listing, number = False, number + 1
        is_last = not others and len(mine) == len(pending)
        of = number + len(others) + (not others and not is_last)
        spec, earlier = plan.spec_of(group), partials.groups() if there else ()
        yield Pass(number, of, spec, mine, earlier, is_last, is_whole=spec is plan.spec and not earlier)
        if is_last:
            return
