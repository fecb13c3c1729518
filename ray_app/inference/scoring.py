"""Batches of uint8 tensors → detector scores. The hot loop: plain, profiled and measured without Ray."""

from collections.abc import Iterable

import numpy as np
import torch

from ray_app.detectors import load_detector
from ray_app.inference.clock import StageClock
from ray_app.inference.decoding import Batch, Pixels
from ray_app.inference.judging import Scores
from ray_app.inference.spec import ScoringSpec


class EnsembleScorer:
    """Every detector of an ensemble on one device; detectors with equal preprocessing share one tensor."""

    def __init__(self, spec: ScoringSpec, clock: StageClock) -> None:
        self._spec, self._clock = spec, clock
        self._detectors = {
            name: load_detector(card, device=spec.device, precision=spec.precision[name], resize=spec.resize, slots=spec.slots)
            for name, card in spec.cards.items()
        }
        is_cuda = torch.device(spec.device).type == "cuda"
        self._copying = torch.cuda.Stream(spec.device) if is_cuda else None  # type: ignore[no-untyped-call]

    def score(self, batches: Iterable[Batch]) -> Scores:
        """Score batch after batch into one column per detector, NaN where a member has no pixels.

        Every batch runs at its full static shape, so that a score never depends on what it was batched with. A GPU is waited for
        once, at the end: while it computes, the next batch is decoded and moved.
        """
        usable: list[bool] = []
        columns: dict[str, list[torch.Tensor]] = {name: [torch.empty(0, device=self._spec.device)] for name in self._detectors}
        for batch in batches:
            usable += batch.usable
            with self._clock("score"):
                for name, scores in self._launch(batch).items():
                    columns[name].append(scores[: len(batch.outcomes)])
        with self._clock("score"):
            gathered = {name: torch.cat(parts).cpu().numpy() for name, parts in columns.items()}
        return {name: np.where(usable, column, np.float32(np.nan)).astype(np.float32) for name, column in gathered.items()}

    def _launch(self, batch: Batch) -> dict[str, torch.Tensor]:
        if not batch.pixels:
            nothing = torch.full((self._spec.slots,), torch.nan, device=self._spec.device)
            return dict.fromkeys(self._detectors, nothing)
        tensors = dict(zip(self._spec.preprocessings, map(self._moved, batch.pixels), strict=True))
        return {name: detector.score_batch(tensors[detector.card.preprocessing]) for name, detector in self._detectors.items()}

    def _moved(self, pixels: Pixels) -> torch.Tensor:
        tensor = torch.from_numpy(pixels)
        if self._copying is None:
            return tensor
        computing = torch.cuda.current_stream(self._spec.device)
        with torch.cuda.stream(self._copying):
            moved = tensor.pin_memory().to(self._spec.device, non_blocking=True)
        computing.wait_stream(self._copying)
        moved.record_stream(computing)
        return moved
