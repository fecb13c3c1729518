"""Score with more detectors than fit into the memory of one process (`GroupScorer`).

The detectors are divided into groups. The process loads one group, scores some images with it, and
then loads the next group for the same images.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ray_app.inference.batch import RESCORED, Batch
from ray_app.inference.cascade import CascadeScorer
from ray_app.inference.decision import DetectorOutputs
from ray_app.inference.decoder import BatchDecoder, StageClock
from ray_app.inference.device_batches import DeviceMeter, release_memory
from ray_app.inference.groups import Group
from ray_app.inference.scorer import (
    EnsembleScorer,
    ImageDescriber,
    LoadedDetectors,
    describer_inputs,
)
from ray_app.inference.spec import ScoringSpec

if TYPE_CHECKING:
    from ray_app.detectors import Preprocessing


class GroupScorer:
    """Score batches of images with groups of detectors, one group in memory at a time.

    As many batches as fit into `kept_bytes` are decoded, and all groups score them before the next
    batches are decoded. The group that is still in memory scores the next batches first. Images
    that are not resized stay encoded, and each group that reads them decodes them.

    Args:
        spec: The spec of the whole ensemble.
        groups: The groups of detectors (see `DetectorGroups`).
        decoder: Makes encoded images of batches readable (see `BatchDecoder.complete`), and decodes
            again the images that the first stage of a cascade did not decide.
        clock: Counts the seconds of all steps, including loading.
        kept_bytes: Memory for decoded batches. One batch may exceed the limit.
        block_members: The number of images in a block, which is what one task scores. Pass it
            on a GPU, so that the best number of images per forward pass is measured for blocks of
            this size. None uses the batch size of the spec.
    """

    def __init__(
        self,
        spec: ScoringSpec,
        groups: Sequence[Group],
        decoder: BatchDecoder,
        clock: StageClock,
        *,
        kept_bytes: float,
        block_members: int | None = None,
    ) -> None:
        self._spec, self._decoder, self._clock = spec, decoder, clock
        self._kept_bytes, self._block_members = kept_bytes, block_members
        self._early = [group for group in groups if set(group) <= set(spec.first)]
        self._late = [group for group in groups if set(group) <= set(spec.late)]
        self._steps = dict[Group, dict[tuple[int, "Preprocessing"], int]]()
        self._dropped_counts = Counter[str]()
        self._describing: ImageDescriber | None = None
        self._group = self._early[0]
        self._scorer: CascadeScorer | None = self._load(self._group)

    @property
    def counts(self) -> dict[str, int]:
        """The counts of all detectors and of the describer since this object was created.

        The keys are those of `CascadeScorer.counts`, such as `images seen by NAME`. Groups that are
        no longer in memory are included.
        """
        counts = Counter(self._dropped_counts)
        counts.update(self._counts_in_memory())
        return counts

    def score(self, batches: Iterable[Batch]) -> DetectorOutputs:
        """Return the outputs of all detectors for all images of the batches, in order."""
        remaining, outputs = iter(batches), list[DetectorOutputs]()
        while (chunk := self._take_batches(remaining)) or not outputs:
            outputs.append(self._score_batches(chunk))
        return DetectorOutputs.concatenate(outputs)

    def _take_batches(self, remaining: Iterator[Batch]) -> list[Batch]:
        """Decode the next batches, until they fill the memory for them."""
        batches, kept_bytes = list[Batch](), 0
        for batch in remaining:
            batches.append(batch)
            kept_bytes += batch.size_bytes
            # The next batch is about as large as this one.
            if kept_bytes + batch.size_bytes > self._kept_bytes:
                break
        return batches

    def _score_batches(self, batches: Sequence[Batch]) -> DetectorOutputs:
        spec, outputs = self._spec, DetectorOutputs()
        outcomes = [outcome for batch in batches for outcome in batch.outcomes]
        names, views = [*spec.cards], [view.name for view in spec.views]
        for group in sorted(self._early, key=lambda group: group != self._group):
            scored = self._swap_in(group).score(map(self._decoder.complete, batches))
            outputs = outputs.merge(scored)
        outputs = outputs.sort(names, views)
        files = [file for batch in batches for file in batch.files] if self._late else ()
        for group in self._late:
            outputs = self._swap_in(group).rescore(outcomes, files, outputs)
        outputs = outputs.sort(names, views)
        if spec.describer is None:
            return outputs
        describer_images = [image for batch in batches for image in describer_inputs(spec, batch)]
        return self._swap_in_describer().add_captions(outcomes, outputs, describer_images)

    def _swap_in(self, group: Group) -> CascadeScorer:
        """Return the scorer of a group; load its detectors unless they are in memory."""
        if self._scorer is None or group != self._group:
            with self._clock("load"):
                self._drop()
                self._group, self._scorer = group, self._load(group)
        return self._scorer

    def _load(self, group: Group) -> CascadeScorer:
        loaded = LoadedDetectors(self._spec, group)
        loaded.steps |= self._steps.get(group, {})
        detectors = EnsembleScorer(self._spec, self._clock, loaded=loaded)
        if self._block_members is not None and group not in self._steps:
            detectors.fit_batches((self._block_members,), DeviceMeter(self._spec.device))
        self._steps[group] = loaded.steps
        return CascadeScorer(self._spec, detectors, self._decoder, self._clock)

    def _swap_in_describer(self) -> ImageDescriber:
        if self._describing is None:
            with self._clock("load"):
                self._drop()
                self._describing = ImageDescriber(self._spec, self._clock)
        return self._describing

    def _drop(self) -> None:
        """Unload the detectors or the describer, and keep their counts."""
        self._dropped_counts.update(self._counts_in_memory())
        self._scorer = self._describing = None
        self._group = ()
        release_memory(self._spec.device)

    def _counts_in_memory(self) -> dict[str, int]:
        if self._scorer is None:
            return {} if self._describing is None else self._describing.counts
        counts = self._scorer.counts
        if self._group in self._late[1:]:  # Each late group sees the same members.
            counts.pop(RESCORED)
        return counts
