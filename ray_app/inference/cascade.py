"""Score a cascade in one process (`CascadeScorer`).

A cascade is an ensemble in two stages. The detectors of the first stage score every image. Images
that they leave undecided are decoded again for the costly detectors of the second stage. As a
check, the second stage also scores a few other images, which the audit of the cascade selects.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ray_app.inference import decision
from ray_app.inference.batch import (
    RESCORED,
    RESCORED_MS,
    Batch,
    DecodeResult,
    MemberFile,
    Pixels,
    count_file_bytes,
)
from ray_app.inference.decision import DetectorOutputs
from ray_app.inference.decoder import BatchDecoder, StageClock
from ray_app.inference.scorer import EnsembleScorer, describer_inputs
from ray_app.inference.spec import ScoringSpec

if TYPE_CHECKING:
    from ray_app.inference.scorer import ImageDescriber


# Images of a block that go through the networks of the second stage together. Few images of a block
# are undecided, and empty slots cost as much as full ones.
SLOTS = 16
# Files that a process keeps until it knows which images are undecided.
KEPT_BYTES = 64 * 2**20


class SecondStage:
    """Score the images of a cascade that its first stage leaves undecided.

    The files of these images are decoded again, and scored by the costly detectors of the second
    stage.

    Args:
        spec: The spec of the second-stage detectors (see `ScoringSpec.select_detectors`).
        scorer: Holds the loaded detectors.
        decoder: The decoder of the process. Its protection against files that crash the decoder
            (`CrashSafeDecoder`) is also used here.
    """

    def __init__(self, spec: ScoringSpec, scorer: EnsembleScorer, decoder: BatchDecoder) -> None:
        plain = replace(spec, slots=min(spec.slots, SLOTS), provenance=None)
        self._clock, self._slots, self._scored = StageClock(), plain.slots, 0
        self._scorer = scorer.for_spec(plain, self._clock)
        self._decoder = decoder.for_spec(plain, self._clock)
        self._spent_ms = 0.0

    def score(self, files: Sequence[MemberFile]) -> DetectorOutputs:
        """Decode files, and return the outputs of the detectors in the order of the files."""
        readings = self._scorer.start()
        for start in range(0, len(files), self._slots):
            readings.add(self._decoder.decode(files[start : start + self._slots]))
        self._scored += len(files)
        return readings.finish()

    def take_seconds(self) -> dict[str, float]:
        """Return the seconds since the last call by step, such as `decode` or `score`."""
        seconds = self._clock.take()
        self._spent_ms += 1000 * sum(seconds.values())
        return seconds

    @property
    def counts(self) -> dict[str, int]:
        """Totals since this object was created, by name.

        `looked_again` counts the scored images, `looked_again_ms` the milliseconds for them, and
        `decoded` the decoded images. The milliseconds include only time that `take_seconds` has
        already returned.
        """
        return {
            RESCORED: self._scored,
            RESCORED_MS: round(self._spent_ms),
            "decoded": self._decoder.counts["decoded"],
        }


class CascadeScorer:
    """Score batches of images with all detectors of one process, and add captions last.

    It also scores an ensemble that is not a cascade, which has only a first stage. For a cascade,
    the batches must contain their files (`BatchDecoder` with `keeps_files`), because the second
    stage decodes undecided images again. A caption is the describer's guess at the prompt of an
    image.

    Args:
        spec: The spec of the whole ensemble. Its first stage scores every batch.
        scorer: Holds the loaded detectors. They may be only some of the ensemble's detectors, if
            the others are in other processes.
        decoder: Decodes undecided images again.
        clock: Counts the seconds of all steps of scoring, such as `decode`.
        kept_bytes: Maximum size in bytes of the images that wait for the second stage or the
            describer. When they reach this limit, the second stage and the describer process them.
            One batch may exceed the limit.
        describing: The describer that adds captions. None for no captions.

    Attributes:
        detectors: The scorer with all detectors of the process.
        first: The scorer with the detectors of the first stage.
        late: The second stage. None if the process has no second-stage detectors.
    """

    def __init__(
        self,
        spec: ScoringSpec,
        scorer: EnsembleScorer,
        decoder: BatchDecoder,
        clock: StageClock,
        *,
        kept_bytes: float = KEPT_BYTES,
        describing: "ImageDescriber | None" = None,
    ) -> None:
        self._spec, self._clock, self._kept_bytes = spec, clock, kept_bytes
        self.detectors, self._describing = scorer, describing
        self.first = scorer.for_spec(spec.for_stage(spec.stages[0]), clock)
        late = [name for name in spec.late if name in scorer.names]
        self.late = SecondStage(spec.select_detectors(late), scorer, decoder) if late else None

    @property
    def counts(self) -> dict[str, int]:
        """The counts of the detectors, the second stage, and the describer, by name.

        Examples are `images seen by NAME`, `looked_again`, and `described`.
        """
        counts = Counter(self.detectors.counts)
        for counter in (self.late, self._describing):
            counts.update(counter.counts if counter else {})
        return counts

    def score(
        self, batches: Iterable[Batch], only: Collection[str] | None = None
    ) -> DetectorOutputs:
        """Return the outputs of the detectors for all images of the batches, in order.

        The second stage scores the images that the first stage leaves undecided. Captions, which
        are guesses at the prompts of images, are added last.

        Args:
            batches: Decoded images.
            only: The names of the first-stage detectors that score the batches. None for all.

        Returns:
            The outputs with one row per image. Columns of the second stage have NaN or None for an
            image that it did not score.
        """
        remaining, outputs = iter(batches), list[DetectorOutputs]()
        while True:
            part = self._score_part(remaining, only)
            if part.outcomes or not outputs:
                scored = self.rescore(part.outcomes, part.files, part.outputs)
                if self._describing is not None:
                    scored = self._describing.add_captions(
                        part.outcomes, scored, part.describer_images
                    )
                outputs.append(scored)
            if not part.outcomes:
                return DetectorOutputs.concatenate(outputs)

    def rescore(
        self,
        outcomes: Sequence[DecodeResult],
        files: Sequence[MemberFile | None],
        first: DetectorOutputs,
    ) -> DetectorOutputs:
        """Score the images that the first stage of a cascade leaves undecided.

        It also scores the few images that the audit of the cascade selects as a check.

        Args:
            outcomes: The decoding result of each image.
            files: The image id and file of each image. None for an image that was not decoded.
            first: Outputs of the first stage.

        Returns:
            The outputs of both stages. If this process has no second-stage detectors, `first`
            unchanged.
        """
        if self.late is None:
            return first
        undecided = {
            row: file
            for row in decision.second_stage_rows(self._spec, outcomes, first)
            if (file := files[row]) is not None
        }
        late = self.late.score(list(undecided.values()))
        self._clock.add(self.late.take_seconds())
        return first.merge(late.spread(list(undecided), len(outcomes)))

    def _score_part(self, batches: Iterator[Batch], only: Collection[str] | None) -> "_Part":
        """Score batches with the first stage until their files reach the limit, or none is left."""
        readings, kept_bytes = self.first.start(only), 0
        outcomes, files, describer_images = (
            list[DecodeResult](),
            list[MemberFile | None](),
            list[Pixels | None](),
        )
        for batch in batches:
            readings.add(batch)
            outcomes += batch.outcomes
            if self.late is not None:
                files += batch.files
                kept_bytes += sum(
                    count_file_bytes(item[1]) for item in batch.files if item is not None
                )
            if self._describing is not None:
                images = describer_inputs(self._spec, batch)
                describer_images += images
                kept_bytes += sum(image.nbytes for image in images if image is not None)
            if kept_bytes > self._kept_bytes:
                break
        return _Part(outcomes, files, describer_images, readings.finish())


@dataclass(frozen=True)
class _Part:
    """Some batches of a block after the first stage.

    Attributes:
        outcomes: The result of decoding, per member.
        files: Files of the members, if this process has a second stage.
        describer_images: The inputs of the describer, if there is one.
        outputs: Outputs of the first stage.
    """

    outcomes: Sequence[DecodeResult]
    files: Sequence[MemberFile | None]
    describer_images: Sequence[Pixels | None]
    outputs: DetectorOutputs
