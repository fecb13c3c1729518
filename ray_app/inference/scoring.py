"""Batches of uint8 tensors → what the detectors say. The hot loop: plain, profiled and measured without Ray."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import torch

from ray_app.detectors import Preprocessing, load_detector
from ray_app.detectors.detector import Detector
from ray_app.detectors.prediction import Reading
from ray_app.detectors.sharing import share_backbones
from ray_app.inference.batches import Batch, Pixels, Ragged
from ray_app.inference.clock import ASKED, RUNS, StageClock
from ray_app.inference.judging import Readings
from ray_app.inference.spec import ScoringSpec


class EnsembleScorer:
    """Detectors of an ensemble on one device, all of them or those of one pool.

    Detectors with equal preprocessing share one tensor, and those that also name one backbone share its features.
    """

    def __init__(self, spec: ScoringSpec, clock: StageClock, pool: Sequence[str] | None = None) -> None:
        self._spec, self._clock = spec, clock
        self._detectors = {
            name: load_detector(card, device=spec.device, precision=spec.precision[name], resize=spec.resize, slots=spec.slots)
            for name, card in spec.cards.items()
            if pool is None or name in pool
        }
        self._backbones = share_backbones(self._detectors.values())
        is_cuda = torch.device(spec.device).type == "cuda"
        self._copying = torch.cuda.Stream(spec.device) if is_cuda else None  # type: ignore[no-untyped-call]

    @property
    def counts(self) -> dict[str, int]:
        """Per shared backbone, how often detectors asked for features and how often it ran for them, since the start."""
        counts: Counter[str] = Counter()
        for backbone in self._backbones:
            counts.update({ASKED + backbone.name: backbone.asked, RUNS + backbone.name: backbone.runs})
        return counts

    def score(self, batches: Iterable[Batch], only: Collection[str] | None = None) -> Readings:
        """Score batch after batch, in order, by all detectors or `only` some; NaN where a member has no pixels.

        Every batch runs at its full static shape, so that a score never depends on what it was batched with; but on a GPU, images that
        keep their size run with those of the same size, however many of them could be read. A GPU is waited for once, at the end: while
        it computes, the next batch is decoded and moved.
        """
        usable: list[bool] = []
        columns = {name: _Column() for name in self._detectors if only is None or name in only}
        for batch in batches:
            with self._clock("score"):
                self._read(batch, len(usable), columns)
            usable += batch.usable
        with self._clock("score"):
            answers = {name: column.gathered(usable) for name, column in columns.items()}
        return Readings(
            {name: scores for name, (scores, _, _) in answers.items()},
            {name: masks for name, (_, masks, _) in answers.items() if self._spec.cards[name].masks},
            {name: replies for name, (_, _, replies) in answers.items() if self._spec.cards[name].replies},
        )

    def _read(self, batch: Batch, start: int, columns: "dict[str, _Column]") -> None:
        """Let every detector read the batch, whose first member is number `start` of the block."""
        for preprocessing, images in zip(self._spec.preprocessings, batch.pixels, strict=False):
            users = [(name, self._detectors[name]) for name in columns if self._detectors[name].card.preprocessing == preprocessing]
            for slots, pixels in self._groups(users, preprocessing, images, batch):
                normalised = users[0][1].normalise(self._moved(pixels))
                for name, detector in users:
                    if self._wanted(name, batch, slots[0]):
                        columns[name].put([start + slot for slot in slots], detector.read(normalised))

    def _groups(
        self, users: list[tuple[str, Detector]], preprocessing: Preprocessing, images: Pixels | Ragged, batch: Batch
    ) -> Iterator[tuple[Sequence[int], Pixels]]:
        """(slots, pixels) that go through a network together: the whole batch, or the images of one size."""
        if not users:
            return
        if isinstance(images, np.ndarray):
            step = min(one.card.batch or self._spec.slots for _, one in users)
            for first in range(0, len(batch.outcomes), step):
                if any(batch.usable[first : first + step]):
                    yield range(first, min(first + step, len(batch.outcomes))), images[first : first + step]
            return
        for size, slots in self._by_size(batch).items():
            wanted = any(self._wanted(name, batch, slots[0]) for name, _ in users)
            step = users[0][1].together(*size)
            for first in range(0, len(slots) if wanted else 0, step):
                same = [(slot, image) for slot in slots[first : first + step] if (image := images[slot]) is not None]
                if same:
                    yield [slot for slot, _ in same], np.stack([image for _, image in same])

    def _by_size(self, batch: Batch) -> dict[tuple[int, int], list[int]]:
        sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for slot, is_usable in enumerate(batch.usable):
            if is_usable:
                sizes[self._size(batch, slot)].append(slot)
        return sizes

    def _wanted(self, name: str, batch: Batch, slot: int) -> bool:
        return self._spec.is_scored(name, *self._size(batch, slot))

    @staticmethod
    def _size(batch: Batch, slot: int) -> tuple[int, int]:
        facts = batch.outcomes[slot].facts
        return (0, 0) if facts is None else (facts.width or 0, facts.height or 0)

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


class _Column:
    """One detector's readings of a block, left on the device until the end."""

    def __init__(self) -> None:
        self._places: list[int] = []
        self._scores: list[torch.Tensor] = []
        self._masks: list[torch.Tensor] = []
        self._replies: list[str | None] = []

    def put(self, places: Sequence[int], reading: Reading) -> None:
        """Keep a reading of the members at these places; what fills the batch up behind them is dropped."""
        count = len(places)
        self._places += places
        self._scores.append(reading.scores[:count])
        self._masks += [] if reading.masks is None else reading.masks[:count].unbind()
        self._replies += [None] * count if reading.replies is None else reading.replies[:count]

    def gathered(self, usable: Sequence[bool]) -> tuple[np.ndarray, list[Pixels | None], list[str | None]]:
        """Scores, masks and replies of all members; nothing where a member is not usable."""
        scores = np.full(len(usable), np.nan, np.float32)
        masks: list[Pixels | None] = [None] * len(usable)
        replies: list[str | None] = [None] * len(usable)
        if self._scores:
            scores[self._places] = torch.cat(self._scores).float().cpu().numpy()
        for place, mask in zip(self._places, self._masks, strict=False):  # a detector without masks has none for any
            masks[place] = mask.cpu().numpy()
        for place, reply in zip(self._places, self._replies, strict=True):
            replies[place] = reply
        for place, is_usable in enumerate(usable):
            if not is_usable:
                scores[place], masks[place], replies[place] = np.nan, None, None
        return scores, masks, replies
