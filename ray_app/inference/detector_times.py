"""How long each detector takes (`DetectorTimes`): on a GPU by its own clock, without waiting for it."""

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from ray_app.detectors.detector import BACKBONE, BatchPrediction, Detector
from ray_app.detectors.shared_backbone import SharedBackbone
from ray_app.inference.batch import ALONE_US, SEEN, SPENT_US


@dataclass(eq=False)
class _Reading:
    """One batch through one detector. `ran`: whether the backbone that it shares ran for it; `end`: an event of a GPU, or a time."""

    name: str
    backbone: SharedBackbone | None
    ran: bool
    images: int
    start: Any
    end: Any


@dataclass
class DetectorTimes:
    """Counts what detectors on one device do; what a GPU has yet to do is counted by `settle`, after it was waited for."""

    device: str
    counts: Counter[str] = field(default_factory=Counter)
    _open: list[_Reading] = field(default_factory=list)
    _paid: dict[SharedBackbone, float] = field(default_factory=dict)  # microseconds of the last batch for which each backbone ran

    def read(self, detector: Detector, pixels: torch.Tensor, images: int) -> BatchPrediction:
        """What the detector says of a normalised batch with so many images, timed."""
        backbone = shared_by(detector)
        runs = backbone.runs if backbone is not None else 0
        start = self._now()
        prediction = detector.read(pixels)
        ran = backbone is not None and backbone.runs > runs
        self._open.append(_Reading(detector.card.name, backbone, ran, images, start, self._now()))
        if not self._on_gpu:
            self.settle()  # a CPU has done it by now
        return prediction

    def settle(self) -> None:
        """Count what was read since the last call, once it is done."""
        done, self._open = self._open, []
        if self._on_gpu and done:
            done[-1].end.synchronize()
        for reading in done:
            spent = 1000 * reading.start.elapsed_time(reading.end) if self._on_gpu else 1e6 * (reading.end - reading.start)
            alone = spent
            if reading.backbone is not None and reading.ran:
                self._paid[reading.backbone] = spent
            elif reading.backbone is not None:
                alone += self._paid.get(reading.backbone, 0.0)
            self.counts[SEEN + reading.name] += reading.images
            self.counts[SPENT_US + reading.name] += round(spent)
            self.counts[ALONE_US + reading.name] += round(alone)

    @property
    def _on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def shared_by(detector: Detector) -> SharedBackbone | None:
    """The backbone that a detector shares with others, or could; None where it has all to itself."""
    with suppress(AttributeError):
        found = detector.network.get_submodule(BACKBONE)
        return found if isinstance(found, SharedBackbone) else None
    return None
