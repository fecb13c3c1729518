"""A short probe of this machine: `probe_members` reads, decodes and scores a few members on one
core as a worker would. Writes nothing.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from ray_app.archives import ListedMember, ManifestMember, MemberReader
from ray_app.errors import InputError
from ray_app.inference import (
    Batch,
    DetectorOutputs,
    ResourceEstimate,
    ScoringSpec,
    StageClock,
    decision,
)
from ray_app.inference.decision import EMBEDDINGS, rows_to_describe
from ray_app.inference.scorer import describer_inputs
from ray_app.inference.spec import counted_once
from ray_app.inference.worker import open_decoder
from ray_app.runs.document import Example
from ray_app.scoring.forecast.rates import ESTIMATED, MEASURED, ImagePace
from ray_app.scoring.layout import GMAC_PER_S, ScoringLayout
from ray_app.scoring.session import detector_times
from ray_app.storage import Fetcher

T = TypeVar("T")

SCORING_S = 60.0  # a probe of slow detectors scores no further; all of it is decoded
ENOUGH_S, ENOUGH_IMAGES = 1.0, 16  # nor does any further than this, which is a rate
READ_AHEAD = 16  # members fetched together, as a worker's threads do
EXAMPLES = 2
LOOKS = 16  # images of a probe that a cascade's later detectors, or a describer, look at


@dataclass
class Probe:
    """What became of the probed members, and the seconds that one image of the archive takes
    (`pace`).

    `scored` of them went through the detectors, `examples` holds refused ones by status. Of a
    cascade: the `share` of images that goes on, by its card or else of those that were probed, and
    the seconds per image of the archive that detectors take for either look. `share_described`: of
    a profile that describes, the share of images that it is expected to describe. By detector, in
    seconds per image: `alone_s`, and `spent_s` beside the others, where the first that has a shared
    backbone pays for it; None where it is not known.
    """

    members: int = 0
    scored: int = 0
    size_bytes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    clock: StageClock = field(default_factory=StageClock)
    fetch_cpu_s: float = 0.0
    share: float = 1.0
    first_s: float = 0.0
    second_s: float = 0.0
    share_described: float | None = None
    alone_s: dict[str, float | None] = field(default_factory=dict)
    spent_s: dict[str, float | None] = field(default_factory=dict)
    pace: ImagePace = field(default_factory=ImagePace)

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
    write_s: float,
) -> Probe:
    """Fetch, decode and prepare the sample and score it, for a second or, if that is few images, a
    minute; GPUs that are not here are reckoned from the cards.

    `write_s`: what committing takes per image, in seconds, which is not measured.
    """
    estimate = ResourceEstimate.of(spec)
    probe = Probe(
        share=estimate.second_stage_share,
        share_described=estimate.share_described if spec.describer else None,
    )
    with _on_one_core(spec) as is_here:
        scoring = _Scoring(spec, probe) if is_here else None
        for batch in _batches(spec, layout, fetcher, sample, probe):
            if scoring is not None:
                scoring.score(batch)
    fetch_s, decode_s, prepare_s = (
        probe.clock.seconds[stage] / probe.members for stage in ("fetch", "decode", "prepare")
    )
    score, identify_s, describe_s = (
        scoring.finished() if scoring is not None else _estimated(spec, probe, decode_s)
    )
    apart = spec.describes_apart
    probe.pace = ImagePace(
        fetch=fetch_s,
        fetch_cpu=probe.fetch_cpu_s / probe.members,
        decode=decode_s,
        prepare=prepare_s,
        score=(*score, describe_s or None) if apart else score,
        identify=identify_s if spec.identifier else None,
        describe=None if apart or not spec.describer else describe_s,
        describes_apart=apart,
        write=write_s,
        scored_by=MEASURED if scoring is not None else ESTIMATED,
    )
    return probe


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
    spec: ScoringSpec,
    layout: ScoringLayout,
    fetcher: Fetcher,
    sample: Iterable[ListedMember | ManifestMember],
    probe: Probe,
) -> Iterator[Batch]:
    """The sample decoded; times and statuses go into the probe."""
    # In the order of their containers, so that one that can only be read from its beginning is read
    # once.
    ordered = sorted(sample, key=lambda item: (item.uri, item.place.offset if item.place else 0))
    members = [_member(item, slot) for slot, item in enumerate(ordered)]
    decoder = open_decoder(spec, probe.clock, hand_over=layout.kind == "split")
    reader = MemberReader(fetcher, max_bytes=spec.limits.max_bytes)
    for group in _cut(members, spec.slots * math.ceil(READ_AHEAD / spec.slots)):
        for part in _cut(_fetched(reader, fetcher, group, probe), spec.slots):
            batch = decoder.decode([(member.image_id, data) for member, data in part])
            for (member, _), outcome in zip(part, batch.outcomes, strict=True):
                probe.note(member, outcome.status, outcome.detail)
            yield batch


def _fetched(
    reader: MemberReader, fetcher: Fetcher, group: Sequence[ManifestMember], probe: Probe
) -> list[tuple[ManifestMember, bytes | InputError]]:
    began, busy, before = time.perf_counter(), time.process_time(), fetcher.bytes_read
    fetched = list(reader.read(group))
    wanted = sum(len(data) for _, data in fetched if isinstance(data, bytes))
    # Members drawn here and there from a container bring their neighbours along, which a run would
    # have wanted too.
    useful = min(wanted / max(fetcher.bytes_read - before, 1), 1.0)
    probe.clock.add({"fetch": (time.perf_counter() - began) * useful})
    probe.fetch_cpu_s += (time.process_time() - busy) * useful
    probe.size_bytes += wanted
    return fetched


def _cut(items: Sequence[T], length: int) -> Iterator[Sequence[T]]:
    return (items[start : start + length] for start in range(0, len(items), length))


def _member(item: ListedMember | ManifestMember, slot: int) -> ManifestMember:
    if isinstance(item, ManifestMember):
        return item
    return ManifestMember(
        slot,
        item.uri,
        item.member,
        item.occurrence,
        item.version,
        item.size_bytes,
        0,
        slot,
        item.input,
        item.place,
        item.refused,
    )


class _Scoring:
    """All pools of detectors, each timed by itself; the first batch goes through twice, since the
    first time warms up.

    Those of a cascade that look again do so at a few images, whether these go on or not. In a
    cascade, what a profile describes is not counted: it is known only once all have scored.
    """

    def __init__(self, spec: ScoringSpec, probe: Probe) -> None:
        from ray_app.inference.scorer import Describing
        from ray_app.inference.worker import open_scorer

        self._spec, self._probe = spec, probe
        self._clocks = [StageClock() for _ in spec.pools]
        self._opened = [
            open_scorer(spec, spec.device, clock, pool=pool)
            for clock, pool in zip(self._clocks, spec.pools, strict=True)
        ]
        self._again_clocks = [StageClock() for _ in spec.pools]
        self._words_clock = StageClock()
        self._describing = Describing(spec, self._words_clock) if spec.describer else None
        # that went on, were looked at again, to be described, described
        self._images = Counter[str]()
        self._warm = self._counts()

    def _counts(self) -> Counter[str]:
        counts = (Counter(opened.scorer.detectors.counts) for opened in self._opened)
        return sum(counts, Counter[str]())

    def _all_clocks(self) -> list[StageClock]:
        return [*self._clocks, *self._again_clocks, self._words_clock]

    def score(self, batch: Batch) -> None:
        """Score one batch, unless the time is up."""
        if sum(map(_total, self._all_clocks())) > (
            SCORING_S if self._probe.scored < ENOUGH_IMAGES else ENOUGH_S
        ):
            return
        if not self._probe.scored:
            self._once(batch)
            for clock in self._all_clocks():
                clock.take()
            self._images.clear()
            self._warm = self._counts()
        self._once(batch)
        self._probe.scored += len(batch.outcomes)

    def _once(self, batch: Batch) -> None:
        outputs, spec, images = DetectorOutputs(), self._spec, self._images
        for decoder, scorer in self._opened:
            outputs = outputs.joined(scorer.first.score([decoder.complete(batch)]))
        with self._words_clock("identify"):
            decision.identified(spec, outputs.of(EMBEDDINGS))
        if self._describing is not None:
            images["to describe"] += (
                0 if spec.late else len(rows_to_describe(spec, batch.outcomes, outputs))
            )
            rows = [row for row, size in enumerate(batch.sizes) if size is not None][
                : max(LOOKS - images["described"], 0)
            ]
            seen = describer_inputs(spec, batch)
            with self._words_clock("describe"):
                images["described"] += len(self._describing.words(rows, outputs, seen))
        if spec.late:
            images["went on"] += len(decision.second_stage_rows(spec, batch.outcomes, outputs))
            files = [file for file in batch.files if file is not None][
                : max(LOOKS - images["looked at"], 0)
            ]
            for opened, clock in zip(self._opened, self._again_clocks, strict=True):
                if opened.scorer.late is not None and files:
                    opened.scorer.late.score(files)
                    clock.add(opened.scorer.late.take_seconds())
            images["looked at"] += len(files)

    def finished(self) -> tuple[tuple[float | None, ...], float, float]:
        """Seconds per image of the archive: for each pool, for naming the generator, and for
        describing the share that will be. The probe is given the shares of images, and what each
        detector took.
        """
        probe, spec, images, scored = (
            self._probe,
            self._spec,
            self._images,
            max(self._probe.scored, 1),
        )
        if spec.ensemble.cascade is not None and spec.ensemble.cascade.expected_share is None:
            probe.share = images["went on"] / scored
        if self._describing is not None and not spec.late:
            probe.share_described = images["to describe"] / scored
        first = [clock.seconds["score"] / scored for clock in self._clocks]
        second = [
            probe.share * _total(clock) / max(images["looked at"], 1)
            for clock in self._again_clocks
        ]
        probe.first_s, probe.second_s = sum(first), sum(second)
        words = self._words_clock.seconds
        times = detector_times(self._counts() - self._warm)
        for name in spec.cards:
            time_of = times.get(name)
            repeated = probe.share if name in spec.late else spec.passes
            probe.alone_s[name] = (
                time_of.ms_per_image / 1000
                if time_of and time_of.ms_per_image is not None
                else None
            )
            probe.spent_s[name] = (
                time_of.seconds / time_of.images * repeated if time_of and time_of.images else None
            )
        describe_s = (
            (probe.share_described or 0.0) * words["describe"] / max(images["described"], 1)
        )
        return (
            tuple(a + b for a, b in zip(first, second, strict=True)),
            words["identify"] / scored,
            describe_s,
        )


def _total(clock: StageClock) -> float:
    return sum(clock.seconds.values())


def _estimated(
    spec: ScoringSpec, probe: Probe, decode_s: float
) -> tuple[tuple[float | None, ...], float, float]:
    """The same as `_Scoring.finished`, from the multiply-adds on the cards, a shared backbone once;
    None where a card states none.

    A scorer decodes again, in `decode_s`, for each preprocessing that keeps sizes, and what goes on
    in a cascade.
    """
    seconds: list[float | None] = []
    for pool in spec.pools:
        share = {name: probe.share if name in spec.late else 1.0 for name in pool}
        cards = [spec.cards[name] for name in pool]
        native = {
            card.preprocessing
            for card in cards
            if card.preprocessing.shape is None and card.name in spec.first
        }
        again = probe.share if set(pool) & set(spec.late) else 0.0
        runs = {
            (
                card.backbone.name if card.backbone else card.name,
                card.preprocessing,
                spec.precision[card.name],
                share[name],
            ): card.size
            for name, card in zip(pool, cards, strict=True)
        }
        known = [
            size.gmac * looked_at for (*_, looked_at), size in runs.items() if size is not None
        ]
        scoring_s = spec.passes * sum(known) / GMAC_PER_S["gpu"]
        seconds.append(
            scoring_s + decode_s * (len(native) + again) if len(known) == len(runs) else None
        )
    sizes = {name: card.size.gmac for name, card in spec.cards.items() if card.size}
    once = counted_once(sizes, spec, lambda card: (card.preprocessing, card.own_pool))
    for name in spec.cards:
        probe.alone_s[name] = sizes[name] / GMAC_PER_S["gpu"] if name in sizes else None
        probe.spent_s[name] = spec.passes * once[name] / GMAC_PER_S["gpu"] if name in once else None
    words = (spec.describer.gmac if spec.describer else None) or 0.0
    return tuple(seconds), 0.0, (probe.share_described or 0.0) * words / GMAC_PER_S["gpu"]
