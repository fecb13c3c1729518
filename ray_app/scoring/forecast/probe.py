"""A short probe of this machine: `probe_members` reads, decodes and scores a few members on one core as a worker would. Writes nothing."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from ray_app.archives import ListedMember, ManifestMember, MemberReader
from ray_app.errors import InputError
from ray_app.inference import Batch, BatchDecoder, DetectorOutputs, ResourceEstimate, ScoringSpec, StageClock, decision
from ray_app.inference.decision import EMBEDDINGS, rows_to_describe
from ray_app.inference.scorer import describer_inputs
from ray_app.runs.document import DetectorTime, Example
from ray_app.scoring.forecast.rates import ESTIMATED, MEASURED, ImagePace
from ray_app.scoring.layout import GMAC_PER_S, ScoringLayout
from ray_app.scoring.session import detector_times
from ray_app.storage import Fetcher

T = TypeVar("T")

SCORING_S = 60.0  # a probe of slow detectors scores no further; all of it is decoded
READ_AHEAD = 16  # members fetched together, as a worker's threads do
WRITE_S = {True: 0.1, False: 0.01}  # to commit a block: a PUT and its answer, or a local file; not measured, since nothing is written
EXAMPLES = 2
LOOKS = 16  # images of a probe that a cascade's later detectors look at


@dataclass
class Probe:
    """What became of the probed members. `scored` of them went through the detectors, `examples` holds refused ones by status.

    Of a cascade: the `share` of images that goes on, by its card or else of those that were probed, and how long detectors take for
    either look, in seconds per image of the archive. Where recompressed views are asked for: the share `near` a threshold, of those scored.
    `share_described`: of a profile that describes, the share of images that it is expected to describe. `times`: per detector, as measured.
    """

    members: int = 0
    scored: int = 0
    size_bytes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("fetch", "fetch_cpu", "decode", "prepare"), 0.0))
    share: float = 1.0
    first_s: float = 0.0
    second_s: float = 0.0
    near: float | None = None
    share_described: float | None = None
    times: dict[str, DetectorTime] = field(default_factory=dict)

    @property
    def mean_bytes(self) -> float:
        """Bytes of one member, over those that could be read."""
        return self.size_bytes / self.members if self.members else 0.0

    def note(self, member: ManifestMember, status: str, detail: str | None) -> None:
        """Count one member."""
        self.members += 1
        self.statuses[status] += 1
        shown = self.examples.setdefault(status, []) if detail is not None else []
        if len(shown) < EXAMPLES:
            shown.append(Example(uri=member.uri, member=member.member, detail=detail or ""))


def probe_members(
    spec: ScoringSpec,
    layout: ScoringLayout,
    fetcher: Fetcher,
    sample: Sequence[ListedMember | ManifestMember],
    *,
    blocks: int,
    members: int,
    remote_out: bool,
) -> tuple[Probe, ImagePace]:
    """Fetch, decode and prepare the sample and score it, for up to a minute; GPUs that are not here are reckoned from the cards.

    `blocks` and `members` of the whole run say how many members share the time to commit a block.
    """
    probe = Probe()
    with _on_one_core(spec) as here:
        scoring = _Scoring(spec, probe) if here else None
        for batch in _batches(spec, layout, fetcher, sample, probe):
            if scoring is not None:
                scoring.score(batch)
        estimate = ResourceEstimate.of(spec)
        probe.share = estimate.second_stage_share
        probe.share_described = estimate.share_described if spec.describer else None
        score = scoring.seconds_per_image() if scoring is not None else _estimated_s(spec, probe.seconds["decode"] / probe.members)
        probe.times = scoring.times() if scoring is not None else {}
        identify_s, describe_s = scoring.of_profile() if scoring is not None else (0.0, _estimated_text_s(spec))
    apart = spec.describes_apart
    each = {stage: spent / probe.members for stage, spent in probe.seconds.items()}
    return probe, ImagePace(
        fetch=each["fetch"],
        fetch_cpu=each["fetch_cpu"],
        decode=each["decode"],
        prepare=each["prepare"],
        score=(*score, describe_s or None) if apart else score,
        identify=identify_s if spec.identifier else None,
        describe=None if apart or not spec.describer else describe_s,
        describes_apart=apart,
        write=WRITE_S[remote_out] * blocks / members,
        scored_by=MEASURED if scoring is not None else ESTIMATED,
    )


@contextmanager
def _on_one_core(spec: ScoringSpec) -> Iterator[bool]:
    """Inside, torch computes on one core; gives whether the device of the spec is here at all."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield spec.device == "cpu" or torch.cuda.is_available()
    finally:
        torch.set_num_threads(threads)


def _batches(
    spec: ScoringSpec, layout: ScoringLayout, fetcher: Fetcher, sample: Iterable[ListedMember | ManifestMember], probe: Probe
) -> Iterator[tuple[Batch, int]]:
    """The sample decoded, each batch with its members' number; times and statuses go into the probe."""
    # In the order of their containers, so that one that can only be read from its beginning is read once.
    ordered = sorted(sample, key=lambda item: (item.uri, item.place.offset if item.place else 0))
    members = [_member(item, slot) for slot, item in enumerate(ordered)]
    clock = StageClock()
    decoder = BatchDecoder(spec.early, clock, hand_over=layout.kind == "split", keeps_files=spec.looks_again)
    reader = MemberReader(fetcher, max_bytes=spec.limits.max_bytes)
    for group in _cut(members, spec.slots * math.ceil(READ_AHEAD / spec.slots)):
        for part in _cut(_fetched(reader, fetcher, group, probe), spec.slots):
            batch = decoder.decode([(member.image_id, data) for member, data in part])
            for (member, _), outcome in zip(part, batch.outcomes, strict=True):
                probe.note(member, outcome.status, outcome.detail)
            yield batch, len(part)
    for stage in ("decode", "prepare"):
        probe.seconds[stage] += clock.seconds[stage]


def _fetched(
    reader: MemberReader, fetcher: Fetcher, group: Sequence[ManifestMember], probe: Probe
) -> list[tuple[ManifestMember, bytes | InputError]]:
    began, busy, before = time.perf_counter(), time.process_time(), fetcher.bytes_read
    fetched = list(reader.read(group))
    wanted = sum(len(data) for _, data in fetched if isinstance(data, bytes))
    # Members drawn here and there from a container bring their neighbours along, which a run would have wanted too.
    useful = min(wanted / max(fetcher.bytes_read - before, 1), 1.0)
    probe.seconds["fetch"] += (time.perf_counter() - began) * useful
    probe.seconds["fetch_cpu"] += (time.process_time() - busy) * useful
    probe.size_bytes += wanted
    return fetched


def _cut(items: Sequence[T], length: int) -> Iterator[Sequence[T]]:
    return (items[start : start + length] for start in range(0, len(items), length))


def _member(item: ListedMember | ManifestMember, slot: int) -> ManifestMember:
    if isinstance(item, ManifestMember):
        return item
    return ManifestMember(
        slot, item.uri, item.member, item.occurrence, item.version, item.size_bytes, 0, slot, item.input, item.place, item.refused
    )


class _Scoring:
    """All pools of detectors, each timed by itself; the first batch goes through twice, since the first time warms up.

    Those of a cascade that look again do so at a few images, whether these go on or not. Recompressed views are looked at where a run
    would, but not in a cascade: who is near a threshold there is known only once all have scored.
    """

    def __init__(self, spec: ScoringSpec, probe: Probe) -> None:
        from ray_app.inference.scorer import Describing, EnsembleScorer
        from ray_app.inference.second_pass import SecondPass, StabilityScorer

        self._spec, self._probe = spec, probe
        self._clocks = [StageClock() for _ in spec.pools]
        self._scorers = scorers = [EnsembleScorer(spec, clock, pool) for clock, pool in zip(self._clocks, spec.pools, strict=True)]
        self._decoder = BatchDecoder(spec.early, StageClock(), keeps_files=spec.looks_again)
        self._first = [scorer.for_spec(spec.early, clock) for scorer, clock in zip(scorers, self._clocks, strict=True)]
        late = [[name for name in pool if name in spec.late] for pool in spec.pools]
        self._again = [SecondPass(spec.limited_to(names), scorer, self._decoder) for names, scorer in zip(late, scorers, strict=True)]
        has_views = spec.stability is not None and not spec.late  # and then one pool: a run has no others
        self._views_clock = StageClock()
        self._views = StabilityScorer(spec, scorers[0], self._decoder, self._views_clock) if has_views else None
        self._words_clock = StageClock()
        self._describing = Describing(spec, self._words_clock) if spec.describer else None
        self._start_over()

    def _start_over(self) -> None:
        """Forget what was timed and counted so far."""
        for clock in (*self._clocks, self._views_clock, self._words_clock):
            clock.take()
        self._warm = self._counts()
        self._asked = self._described = 0
        self._again_s = [0.0] * len(self._clocks)
        self._looked = self._went_on = self._viewed = 0

    def _counts(self) -> Counter[str]:
        counts = Counter[str]()
        for scorer in self._scorers:
            counts.update(scorer.counts)
        return counts

    def times(self) -> dict[str, DetectorTime]:
        """What each detector took, without the first time."""
        return detector_times(self._counts() - self._warm)

    def score(self, batch_and_members: tuple[Batch, int]) -> None:
        """Score one batch, unless the time is up."""
        batch, members = batch_and_members
        words_s = sum(self._words_clock.seconds.values())
        if sum(clock.seconds["score"] for clock in self._clocks) + sum(self._again_s) + self._views_s + words_s > SCORING_S:
            return
        if not self._probe.scored:
            self._once(batch)
            self._start_over()
        self._once(batch)
        self._probe.scored += members

    def seconds_per_image(self) -> tuple[float | None, ...]:
        """Of each pool, where only a share of the images is looked at again, or in views."""
        probe, spec = self._probe, self._spec
        if self._views is not None:
            probe.near = self._viewed / probe.scored
        if spec.ensemble.cascade is not None and spec.ensemble.cascade.expected_share is None and probe.scored:
            probe.share = self._went_on / probe.scored
        first = [clock.seconds["score"] / probe.scored for clock in self._clocks]
        second = [probe.share * spent / max(self._looked, 1) for spent in self._again_s]
        probe.first_s, probe.second_s = sum(first), sum(second)
        views = self._views_s / probe.scored
        return tuple(a + b + views for a, b in zip(first, second, strict=True))

    def of_profile(self) -> tuple[float, float]:
        """Seconds per image for naming its generator, and for describing the share of images that will be."""
        spent, probe = self._words_clock.seconds, self._probe
        if self._describing is not None and not self._spec.late:
            probe.share_described = self._asked / max(probe.scored, 1)
        share = probe.share_described or 0.0
        return spent["identify"] / max(probe.scored, 1), share * spent["describe"] / max(self._described, 1)

    @property
    def _views_s(self) -> float:
        return sum(self._views_clock.seconds.values())

    def _once(self, batch: Batch) -> None:
        from ray_app.inference.second_pass import VIEWED, files_of

        outputs = DetectorOutputs()
        for scorer in self._first:
            outputs = outputs.joined(scorer.score([self._decoder.complete(batch)]))
        if self._views is not None:
            before = self._views.counts[VIEWED]
            self._views.after(batch.outcomes, files_of(batch), outputs)
            self._viewed += self._views.counts[VIEWED] - before
        self._profile(batch, outputs)
        if not self._spec.late:
            return
        self._went_on += len(decision.second_stage_rows(self._spec, batch.outcomes, outputs))
        files = [file for file in files_of(batch) if file is not None][: max(LOOKS - self._looked, 0)]
        for place, look in enumerate(self._again if files else ()):
            look.at(files)
            self._again_s[place] += sum(look.take_seconds().values())
        self._looked += len(files)

    def _profile(self, batch: Batch, outputs: DetectorOutputs) -> None:
        """Name what can be named; describe a few images, whether the profile requests them or not. Who is flagged in a cascade is known
        only once all have scored.
        """
        with self._words_clock("identify"):
            decision.identified(self._spec, outputs.of(EMBEDDINGS))
        if self._describing is None:
            return
        if not self._spec.late:
            self._asked += len(rows_to_describe(self._spec, batch.outcomes, outputs))
        seen = describer_inputs(self._spec, batch)
        rows = [row for row, size in enumerate(batch.sizes) if size is not None][: max(LOOKS - self._described, 0)]
        with self._words_clock("describe"):
            self._described += len(self._describing.words(rows, outputs, seen))


def _estimated_text_s(spec: ScoringSpec) -> float:
    """Seconds per image for the describer, from its card; 0 where it states no size."""
    card = spec.describer
    return 0.0 if card is None or card.gmac is None else ResourceEstimate.of(spec).share_described * card.gmac / GMAC_PER_S["gpu"]


def _estimated_s(spec: ScoringSpec, decode_s: float) -> tuple[float | None, ...]:
    """Per pool, from the multiply-adds on the cards, a shared backbone once; None where a card states none.

    A scorer decodes again, in `decode_s`, for each preprocessing that keeps sizes, and what goes on in a cascade.
    """
    seconds: list[float | None] = []
    second_stage = ResourceEstimate.of(spec).second_stage_share
    for pool in spec.pools:
        share = {name: second_stage if name in spec.late else 1.0 for name in pool}
        cards = [spec.cards[name] for name in pool]
        native = {card.preprocessing for card in cards if card.preprocessing.shape is None and card.name in spec.first}
        again = second_stage if set(pool) & set(spec.late) else 0.0
        runs = {
            (card.backbone.name if card.backbone else card.name, card.preprocessing, spec.precision[card.name], share[name]): card.size
            for name, card in zip(pool, cards, strict=True)
        }
        known = [size.gmac * looked_at for (*_, looked_at), size in runs.items() if size is not None]
        scoring_s = spec.passes * sum(known) / GMAC_PER_S["gpu"]
        seconds.append(scoring_s + decode_s * (len(native) + again) if len(known) == len(runs) else None)
    return tuple(seconds)
