"""What workers counted, as a summary says it: of shared backbones, of each detector, of each pass (`PassRecord`)."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ray_app.inference.batch import ALONE_US, REQUESTED, RUNS, SEEN, SPENT_US
from ray_app.runs import document
from ray_app.scoring.messages import BlockReport

MEASURABLE_S = 2.0  # over less time than this a rate would say nothing


class PassRecord:
    """Counts while the blocks of one pass are committed. `process_bytes`: of one of its workers, by the sizes on cards."""

    def __init__(self, detectors: Sequence[str], kind: str, workers: int, process_bytes: int) -> None:
        self._facts = document.PassSummary(detectors=list(detectors), kind=kind, workers=workers, process_bytes=process_bytes)
        self._began = self._last = time.monotonic()
        self._first: float | None = None
        self._images = self._first_images = self._peak_bytes = 0
        self._counts = Counter[str]()

    def committed(self, report: BlockReport) -> None:
        """Add one block's report."""
        self._last = time.monotonic()
        self._images += report.ref.members
        if self._first is None:
            self._first, self._first_images = self._last, self._images
        self._counts.update(report.work.counts)
        self._peak_bytes = max(self._peak_bytes, report.work.peak_bytes)

    def facts(self) -> document.PassSummary:
        """The same for a summary; the rate is that between the first and the last block."""
        steady = self._last - (self._first or self._last)
        found = {
            "peak_worker_bytes": self._peak_bytes,
            "images": self._images,
            "wall_s": round(self._last - self._began, 2),
            "images_per_s": round((self._images - self._first_images) / steady, 2) if steady >= MEASURABLE_S else None,
            "backbones": sharing(self._counts),
        }
        return self._facts.model_copy(update=found)


def sharing(counts: Mapping[str, int]) -> dict[str, document.Sharing]:
    """Per shared backbone, how often it was asked and how often it ran."""
    runs = {name.removeprefix(RUNS): count for name, count in counts.items() if name.startswith(RUNS)}
    return {name: document.Sharing(runs=count, asked=counts.get(REQUESTED + name, 0)) for name, count in runs.items()}


def detector_times(counts: Mapping[str, int]) -> dict[str, document.DetectorTime]:
    """Per detector, how long it took for how many images."""
    names = [name.removeprefix(SEEN) for name in counts if name.startswith(SEEN)]
    return {
        name: document.DetectorTime(
            seconds=round(counts.get(SPENT_US + name, 0) / 1e6, 6),
            images=counts[SEEN + name],
            ms_per_image=round(counts.get(ALONE_US + name, 0) / 1000 / counts[SEEN + name], 4) if counts[SEEN + name] else None,
        )
        for name in names
    }


def together(times: Iterable[Mapping[str, document.DetectorTime]]) -> dict[str, document.DetectorTime]:
    """What several commands took, together."""
    found: dict[str, document.DetectorTime] = {}
    for some in times:
        for name, one in some.items():
            before = found.get(name, document.DetectorTime())
            images = before.images + one.images
            spent_ms = sum((each.ms_per_image or 0.0) * each.images for each in (before, one))
            found[name] = document.DetectorTime(
                seconds=round(before.seconds + one.seconds, 6), images=images, ms_per_image=round(spent_ms / images, 4) if images else None
            )
    return found


def one_after_another(rates: Iterable[float | None]) -> float | None:
    """Images a second of passes over the same images, by the rate of each; None where one is not known."""
    known = [1 / rate if rate else None for rate in rates]
    return None if None in known else round(1 / sum(one for one in known if one), 2)
