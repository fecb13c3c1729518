"""Members near a threshold, looked at again in recompressed views. Knows what decoding and detectors are; no Ray, no file of a run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ray_app.inference.batches import File, Outcome
from ray_app.inference.clock import LOOKED, LOOKED_MS, StageClock
from ray_app.inference.decoding import BatchDecoder
from ray_app.inference.judging import Readings, decided_on, going_on
from ray_app.inference.scoring import EnsembleScorer
from ray_app.inference.second_look import SecondLook
from ray_app.inference.spec import ScoringSpec
from ray_app.inference.stability import uncertain

VIEWED, VIEWED_MS = "viewed", "viewed_ms"  # counts: members that were shown recompressed, and the milliseconds that took


class Recompressing:
    """All detectors of an ensemble on the stability views of members whose verdict hangs on little.

    A view of a cascade's image is a picture of its own: the first members look at all views, the others at all views of an image of which
    one goes on. `scorer` and `decoder` as for `SecondLook`; the scorer holds every detector.
    """

    def __init__(self, spec: ScoringSpec, scorer: EnsembleScorer, decoder: BatchDecoder, clock: StageClock) -> None:
        assert spec.stability is not None
        self._spec, self._clock, self._margin = spec, clock, spec.stability.margin
        seen = replace(spec, features={}, identifier=None, describer=None)
        self._first = SecondLook(seen.asking(spec.first, spec.stability.views), scorer, decoder)
        self._late = SecondLook(seen.asking(spec.late, spec.stability.views), scorer, decoder) if spec.late else None

    @property
    def counts(self) -> Mapping[str, int]:
        """How many members were shown to detectors in their views, how long that took, and how often files were decoded for it."""
        first, late = self._first.counts, self._late.counts if self._late else Counter[str]()
        return {
            VIEWED: first[LOOKED],
            VIEWED_MS: first[LOOKED_MS] + late[LOOKED_MS],
            "decoded": first["decoded"] + late["decoded"],
        }

    def after(self, outcomes: Sequence[Outcome], files: Sequence[tuple[int, File] | None], readings: Readings) -> Readings:
        """The readings, in which everybody has spoken of these members, with what views of those near a threshold are scored."""
        decisions = decided_on(self._spec, outcomes, readings).decisions
        near = uncertain(decisions.score, decisions.verdict, self._spec.ensemble.thresholds, self._margin).tolist()
        again = [(row, file) for row in near if (file := files[row]) is not None]
        rows, held = [row for row, _ in again], [file for _, file in again]
        seen = self._first.at(held)
        self._clock.add(self._first.take_seconds())
        if self._late is not None:
            theirs = [outcomes[row] for row in rows]
            on = sorted({place for scores in seen.views.values() for place in going_on(self._spec, theirs, Readings(scores))})
            seen = seen.joined(self._late.at([held[place] for place in on]).spread(on, len(rows)))
            self._clock.add(self._late.take_seconds())
        return replace(readings, stability=seen.spread(rows, len(outcomes)).views)
