"""Prompts predicted for the images of a profile (`Describing`): which images, and what the describer reads. No torch at import."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.attribution.captioners import Caption
from ray_app.errors import Status
from ray_app.inference.batch import DESCRIBED, Batch, DecodeResult, Pixels, StageClock
from ray_app.inference.decision import decided_on
from ray_app.inference.outputs import CAPTIONS, EMBEDDINGS, DetectorOutputs
from ray_app.inference.spec import ScoringSpec

Seen = Sequence[Pixels | None]  # per member what the describer would look at; None where it has no tensor, or reads embeddings


# Words come last, since a verdict decides who gets any: from embeddings that a detector left, or from a tensor of the same decode.
class Describing:
    """The spec's describer, loaded on the spec's device. It says the same of an image whatever else it is asked about."""

    def __init__(self, spec: ScoringSpec, clock: StageClock) -> None:
        from ray_app.attribution.captioners.registry import load_describing  # torch, for most tiers

        assert spec.describer is not None
        self._spec, self._clock = spec, clock
        self._describer = load_describing(spec.describer, device=spec.device)
        self.described = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many members were described, since the start."""
        return {DESCRIBED: self.described}

    def after(self, outcomes: Sequence[DecodeResult], outputs: DetectorOutputs, seen: Seen = ()) -> DetectorOutputs:
        """The outputs, in which all detectors have spoken of these members, with words for those that the profile asks for.

        `seen`: see `seen_by_describer`; may be left out where the describer reads embeddings.
        """
        with self._clock("describe"):
            words = self.words(asked_for(self._spec, outcomes, outputs), outputs, seen)
        captions = {self._describer.card.name: [words.get(row) for row in range(len(outcomes))]}
        return outputs.joined(DetectorOutputs.clean(**{CAPTIONS: captions}))

    def words(self, rows: Sequence[int], outputs: DetectorOutputs, seen: Seen = ()) -> dict[int, Caption]:
        """Words for some members, whoever asks for them. A row has none where the describer can see nothing of it, or gives its words no
        likelihood: a network whose numbers overflow says anything.
        """
        there = [row for row in rows if self._has(row, outputs, seen)]
        captions: dict[int, Caption] = {}
        for start in range(0, len(there), self._spec.slots):
            some = there[start : start + self._spec.slots]
            words = zip(some, self._describer.describe(self._given(some, outputs, seen)), strict=True)
            captions |= {row: one for row, one in words if one.likelihood is not None}
        self.described += len(captions)
        return captions

    def _has(self, row: int, outputs: DetectorOutputs, seen: Seen) -> bool:
        vectors = self._vectors(outputs)
        return seen[row] is not None if vectors is None else bool(np.isfinite(vectors[row]).all())

    def _given(self, rows: Sequence[int], outputs: DetectorOutputs, seen: Seen) -> npt.NDArray[Any]:
        vectors = self._vectors(outputs)
        return np.stack([image for row in rows if (image := seen[row]) is not None]) if vectors is None else vectors[list(rows)]

    def _vectors(self, outputs: DetectorOutputs) -> npt.NDArray[np.float32] | None:
        card = self._spec.describer
        return None if card is None or card.detector is None else outputs.of(EMBEDDINGS)[card.detector]


def asked_for(spec: ScoringSpec, outcomes: Sequence[DecodeResult], outputs: DetectorOutputs) -> list[int]:
    """The rows, ascending, that the profile wants words for: of what has a score all, or what the ensemble calls fake.

    `outputs`: what all detectors said, recompressed views included.
    """
    profile = spec.ensemble.profile
    if profile is None or spec.describer is None:
        return []
    scored = decided_on(spec, outcomes, outputs)
    return [
        row
        for row, (outcome, verdict) in enumerate(zip(scored.outcomes, scored.decisions.verdict, strict=True))
        if outcome.status is Status.OK and (profile.describe == "all" or verdict == "fake")
    ]


def seen_by_describer(spec: ScoringSpec, batch: Batch) -> Seen:
    """Per member of a batch that was prepared for `spec.early`, what the describer would see of it: (height, width, 3) uint8."""
    early = spec.early
    if early.words_seen is None or not batch.pixels:
        return [None] * len(batch.outcomes)
    tensor = batch.pixels[early.preprocessings.index(early.words_seen)]
    return [tensor[slot] if usable else None for slot, usable in enumerate(batch.usable)]
