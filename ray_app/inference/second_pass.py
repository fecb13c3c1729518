"""The second pass over a block: members decoded again from kept bytes into dense batches, and read
by some detectors.

`CascadeScorer`: what a cascade's first members leave uncertain and what the audit draws.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ray_app.inference import decision
from ray_app.inference.batch import LOOKED, LOOKED_MS, Batch, DecodeResult, File, Pixels
from ray_app.inference.decision import DetectorOutputs
from ray_app.inference.decoder import BatchDecoder, StageClock
from ray_app.inference.scorer import EnsembleScorer, describer_inputs
from ray_app.inference.spec import ScoringSpec

if TYPE_CHECKING:
    from ray_app.inference.scorer import Describing


# Images that go through a network together: few of a block go on, and slots that stay empty cost as
# much as full ones.
SLOTS = 16
# files that a process holds until it is known which members are looked at again
KEPT_BYTES = 64 * 2**20


class SecondPass:
    """Some detectors and views (those of `spec`, see `ScoringSpec.asking`) on members that were
    decoded before.

    `scorer` holds the detectors; `decoder` says how to decode: its crumb and its child process are
    used.
    """

    def __init__(self, spec: ScoringSpec, scorer: EnsembleScorer, decoder: BatchDecoder) -> None:
        plain = replace(spec, slots=min(spec.slots, SLOTS), provenance=None)
        self._clock, self._slots, self._looked = StageClock(), plain.slots, 0
        self._scorer, self._decoder = (
            scorer.for_spec(plain, self._clock),
            decoder.for_spec(plain, self._clock),
        )
        self._spent_ms = 0.0

    def at(self, files: Sequence[tuple[int, File]]) -> DetectorOutputs:
        """What the detectors say of (image_id, file), in their order."""
        self._looked += len(files)
        parts = (files[start : start + self._slots] for start in range(0, len(files), self._slots))
        return self._scorer.score(self._decoder.decode(part) for part in parts)

    def take_seconds(self) -> dict[str, float]:
        """Seconds per stage since the last call."""
        taken = self._clock.take()
        self._spent_ms += 1000 * sum(taken.values())
        return taken

    @property
    def counts(self) -> dict[str, int]:
        """How many members were looked at again and how long that took, since the start; seconds
        count once they are taken.
        """
        return {
            LOOKED: self._looked,
            LOOKED_MS: round(self._spent_ms),
            "decoded": self._decoder.counts["decoded"],
        }


class CascadeScorer:
    """A block's batches → outputs of all that the detectors of one process have to say.

    The ensemble's first members read every batch, and each of the others what goes on. Where
    anything may go on, batches must carry their files (`BatchDecoder` with `keeps_files`). These
    are held until it is known who needs them, at most `kept_bytes`. `describing`: captions images
    after all detectors.
    """

    def __init__(
        self,
        spec: ScoringSpec,
        scorer: EnsembleScorer,
        decoder: BatchDecoder,
        clock: StageClock,
        *,
        kept_bytes: float = KEPT_BYTES,
        describing: "Describing | None" = None,
    ) -> None:
        self._spec, self._clock, self._kept_bytes = spec, clock, kept_bytes
        self._describing = describing
        late = [name for name in spec.late if name in scorer.names]
        self._scorer = scorer
        self._first = scorer.for_spec(spec.for_stage(spec.stages[0]), clock)
        self._late = SecondPass(spec.limited_to(late), scorer, decoder) if late else None

    @property
    def simplest(self) -> "CascadeScorer | EnsembleScorer":
        """Who says the same with less: the first detectors alone, where nothing is looked at again
        or described.
        """
        return self if self._late is not None or self._describing is not None else self._first

    @property
    def counts(self) -> dict[str, int]:
        """Of shared backbones, of second looks and of words, since the start."""
        counts = Counter(self._scorer.counts)
        for counter in (self._late, self._describing):
            counts.update(counter.counts if counter else {})
        return counts

    def score(self, batches: Iterable[Batch]) -> DetectorOutputs:
        """What the detectors say of all members of the batches, in order."""
        if self._late is None and self._describing is None:
            return self._first.score(batches)
        arriving, parts = iter(batches), list[DetectorOutputs]()
        while True:
            part = _Part()
            first = self._first.score(self._some(arriving, part))
            if not part.outcomes and parts:
                return DetectorOutputs.chained(parts)
            found = self.again(part.outcomes, part.files, first)
            parts.append(
                found
                if self._describing is None
                else self._describing.after(part.outcomes, found, part.seen)
            )
            if not part.outcomes:
                return parts[0]

    def again(
        self,
        outcomes: Sequence[DecodeResult],
        files: Sequence[tuple[int, File] | None],
        first: DetectorOutputs,
    ) -> DetectorOutputs:
        """`first`, what the ensemble's first members said of these members, joined with what those
        of this process say that look again.
        """
        if self._late is None:
            return first
        going = [
            row
            for row in decision.second_stage_rows(self._spec, outcomes, first)
            if files[row] is not None
        ]
        late = self._late.at([file for row in going if (file := files[row]) is not None])
        self._clock.add(self._late.take_seconds())
        return first.joined(late.spread(going, len(outcomes)))

    def _some(self, arriving: Iterator[Batch], part: "_Part") -> Iterator[Batch]:
        """Batches until so many bytes of files, and of what the describer may look at, are held;
        what they are of is noted.
        """
        size = 0.0
        for batch in arriving:
            part.outcomes += batch.outcomes
            part.files += files_of(batch) if self._late is not None else ()
            size += (
                sum(_size(file) for file in batch.encoded if file is not None)
                if self._late is not None
                else 0
            )
            seen = () if self._describing is None else describer_inputs(self._spec, batch)
            part.seen += seen
            size += sum(image.nbytes for image in seen if image is not None)
            yield batch
            if size > self._kept_bytes:
                return


@dataclass
class _Part:
    """Members of some batches, what is held of them until it is known who is looked at again, or
    described.
    """

    outcomes: list[DecodeResult] = field(default_factory=list)
    files: list[tuple[int, File] | None] = field(default_factory=list)
    seen: list[Pixels | None] = field(default_factory=list)


def files_of(batch: Batch) -> list[tuple[int, File] | None]:
    """(image_id, file) per member; None where there is no file, or no need of one. Ids are 0 where
    the batch does not say them.
    """
    ids = batch.ids or (0,) * len(batch.outcomes)
    files = batch.encoded or (None,) * len(batch.outcomes)
    return [
        None if file is None else (image_id, file)
        for image_id, file in zip(ids, files, strict=True)
    ]


def _size(file: File) -> int:
    return len(file) if isinstance(file, bytes) else 3 * file.width * file.height
