"""Batches of uint8 tensors → detector scores. The hot loop: plain, profiled and measured without Ray."""

from collections.abc import Iterable
from itertools import compress

import numpy as np

from ray_app.detectors import load_detector
from ray_app.inference.clock import StageClock
from ray_app.inference.decoding import Batch
from ray_app.inference.judging import Scores
from ray_app.inference.spec import ScoringSpec


class EnsembleScorer:
    """Every detector of an ensemble on one device; detectors with equal preprocessing share one tensor."""

    def __init__(self, spec: ScoringSpec, clock: StageClock) -> None:
        self._clock = clock
        self._detectors = {
            name: (load_detector(card, device=spec.device, precision=spec.precision[name], resize=spec.resize, slots=spec.slots),
                   spec.preprocessings.index(card.preprocessing))
            for name, card in spec.cards.items()
        }  # fmt: skip

    def score(self, batches: Iterable[Batch]) -> Scores:
        """Score batch after batch into one column per detector, NaN where a member has no pixels.

        Every batch runs at its full static shape, so that a score never depends on what it was batched with.
        """
        columns: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.float32)] for name in self._detectors}
        for batch in batches:
            usable = list(compress(range(len(batch.outcomes)), batch.usable))
            for name, (detector, index) in self._detectors.items():
                scores = np.full(len(batch.outcomes), np.nan, np.float32)
                if usable:
                    with self._clock("score"):
                        scores[usable] = detector.score(batch.pixels[index])[usable]
                columns[name].append(scores)
        return {name: np.concatenate(parts) for name, parts in columns.items()}
