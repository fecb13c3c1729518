"""Batches of uint8 tensors → what the detectors say. The hot loop: plain, profiled and measured without Ray."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch

from ray_app.detectors import load_detector
from ray_app.detectors.detector import BatchPrediction, Detector
from ray_app.detectors.shared_backbone import share_backbones
from ray_app.inference.batch import Batch, DecodeResult, PerturbedBatch, Pixels, Size
from ray_app.inference.decision import DetectorOutputs
from ray_app.inference.spec import ScoringSpec
from ray_app.inference.timing import ASKED, RUNS, StageClock


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
        for name in spec.embedded:
            if name in self._detectors:
                self._detectors[name].keep_embeddings()
        self._backbones = share_backbones(self._detectors.values())
        is_cuda = torch.device(spec.device).type == "cuda"
        self._copying = torch.cuda.Stream(spec.device) if is_cuda else None  # type: ignore[no-untyped-call]

    def asking(self, spec: ScoringSpec, clock: StageClock) -> "EnsembleScorer":
        """The same detectors in memory, those of them that `spec` asks (see `ScoringSpec.asking`), in its views and batches."""
        other = copy(self)
        other._spec, other._clock = spec, clock
        other._detectors = {name: detector for name, detector in self._detectors.items() if name in spec.cards}
        return other

    @property
    def names(self) -> tuple[str, ...]:
        """The detectors that are loaded."""
        return tuple(self._detectors)

    @property
    def counts(self) -> dict[str, int]:
        """Per shared backbone, how often detectors asked for features and how often it ran for them, since the start."""
        counts: Counter[str] = Counter()
        for backbone in self._backbones:
            counts.update({ASKED + backbone.name: backbone.asked, RUNS + backbone.name: backbone.runs})
        return counts

    def score(self, batches: Iterable[Batch], only: Collection[str] | None = None) -> DetectorOutputs:
        """Score batch after batch, in order, by all detectors or `only` some; NaN where a member has no pixels. The same of every view.

        Every batch runs at its full static shape, so that a score never depends on what it was batched with; but on a GPU, images that
        keep their size run with those of the same size, however many of them could be read. A GPU is waited for once, at the end: while
        it computes, the next batch is decoded and moved.
        """
        names = [name for name in self._detectors if only is None or name in only]
        keeping = [True, *(view.keeps_place for view in self._spec.views)]  # the first is the clean one
        columns = [{name: _Column(keeps_masks=keeps) for name in names} for keeps in keeping]
        columns[0] |= {name: _Column(keeps_masks=True, width=width) for name, width in self._spec.embedded.items() if name in names}
        usable: list[list[bool]] = [[] for _ in keeping]
        for batch in batches:
            views = self._seen(batch)
            with self._clock("score"):
                self._read(views, len(usable[0]), columns)
            for so_far, view in zip(usable, views, strict=True):
                so_far += [size is not None for size in view.sizes]
        with self._clock("score"):
            answers = [{name: one.gathered(usable[view]) for name, one in column.items()} for view, column in enumerate(columns)]
        return self._readings(*answers)

    def _readings(self, clean: "Mapping[str, _Answer]", *seen: "Mapping[str, _Answer]") -> DetectorOutputs:
        cards = self._spec.cards
        views = {view.name: answers for view, answers in zip(self._spec.views, seen, strict=True)}
        drawn = [view.name for view in self._spec.views if view.keeps_place and any(cards[name].masks for name in clean)]
        return DetectorOutputs(
            {name: answer.scores for name, answer in clean.items()},
            {name: answer.masks for name, answer in clean.items() if cards[name].masks},
            {name: answer.replies for name, answer in clean.items() if cards[name].replies},
            {view: {name: answer.scores for name, answer in answers.items()} for view, answers in views.items()},
            {view: {name: answer.masks for name, answer in views[view].items() if cards[name].masks} for view in drawn},
            {name: answer.embeddings for name, answer in clean.items() if answer.embeddings is not None},
        )

    def _seen(self, batch: Batch) -> list[PerturbedBatch]:
        """The batch as it is and in every view; those of a batch without pixels are empty."""
        clean = PerturbedBatch(
            batch.pixels, tuple(_size(outcome) if usable else None for outcome, usable in zip(batch.outcomes, batch.usable, strict=True))
        )
        return [clean, *(batch.views or [PerturbedBatch((), (None,) * len(batch.outcomes))] * len(self._spec.views))]

    def _read(self, views: Sequence[PerturbedBatch], start: int, columns: "Sequence[dict[str, _Column]]") -> None:
        """Let every detector read a batch in all its views; its first member is number `start` of the block."""
        for place, preprocessing in enumerate(self._spec.preprocessings if views[0].pixels else ()):
            users = [(name, self._detectors[name]) for name in columns[0] if self._detectors[name].card.preprocessing == preprocessing]
            groups = self._fixed if isinstance(views[0].pixels[place], np.ndarray) else self._ragged
            for group in groups([one for _, one in users], views, place) if users else ():
                normalised = users[0][1].normalise(self._moved(group.pixels))
                for name, detector in users:
                    if group.size is None or self._spec.is_scored(name, *group.size):
                        columns[group.view][name].put([start + slot for slot in group.slots], detector.read(normalised))

    def _fixed(self, users: Sequence[Detector], views: Sequence[PerturbedBatch], place: int) -> "Iterator[_Group]":
        """All slots, or as many as the cards allow, in one view after another."""
        members = len(views[0].sizes)
        step = min(one.card.batch or self._spec.slots for one in users)
        for first in range(0, members, step):
            for number, view in enumerate(views):
                if any(size is not None for size in view.sizes[first : first + step]):
                    pixels = np.asarray(view.pixels[place][first : first + step])
                    yield _Group(number, None, range(first, min(first + step, members)), pixels)

    def _ragged(self, users: Sequence[Detector], views: Sequence[PerturbedBatch], place: int) -> "Iterator[_Group]":
        """Images that have one size go together, and are read in all views before the next are decoded."""
        for size, slots in _by_size(views[0].sizes, range(len(views[0].sizes))).items():
            step = users[0].together(*size)
            for first in range(0, len(slots), step):
                for number, view in enumerate(views):
                    yield from self._of_one_size(users, number, view, place, slots[first : first + step])

    def _of_one_size(
        self, users: Sequence[Detector], number: int, view: PerturbedBatch, place: int, slots: Sequence[int]
    ) -> "Iterator[_Group]":
        for size, same in _by_size(view.sizes, slots).items():
            if not any(self._spec.is_scored(one.card.name, *size) for one in users):
                continue
            step = users[0].together(*size)
            for first in range(0, len(same), step):
                read = [(slot, image) for slot in same[first : first + step] if (image := view.pixels[place][slot]) is not None]
                if read:
                    yield _Group(number, size, [slot for slot, _ in read], np.stack([image for _, image in read]))

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


class _Group(NamedTuple):
    """What goes through a network together: slots of one view (0 = clean), all of one size where sizes are kept (else None)."""

    view: int
    size: Size | None
    slots: Sequence[int]
    pixels: Pixels


class _Answer(NamedTuple):
    scores: np.ndarray
    masks: list[Pixels | None]
    replies: list[str | None]
    embeddings: np.ndarray | None


def _by_size(sizes: Sequence[Size | None], slots: Iterable[int]) -> dict[Size, list[int]]:
    """The slots among these that have a size, by it."""
    by_size: dict[Size, list[int]] = defaultdict(list)
    for slot in slots:
        if (size := sizes[slot]) is not None:
            by_size[size].append(slot)
    return by_size


def _size(outcome: DecodeResult) -> Size:
    facts = outcome.facts
    return (0, 0) if facts is None else (facts.width or 0, facts.height or 0)


class _Column:
    """One detector's readings of a block in one view, left on the device until the end. `width`: of the embeddings to keep, 0 = none."""

    def __init__(self, *, keeps_masks: bool, width: int = 0) -> None:
        self._keeps_masks, self._width = keeps_masks, width
        self._places: list[int] = []
        self._scores: list[torch.Tensor] = []
        self._masks: list[torch.Tensor] = []
        self._replies: list[str | None] = []
        self._embeddings: list[torch.Tensor] = []

    def put(self, places: Sequence[int], reading: BatchPrediction) -> None:
        """Keep a reading of the members at these places; what fills the batch up behind them is dropped."""
        count = len(places)
        self._places += places
        self._scores.append(reading.scores[:count])
        self._masks += [] if reading.masks is None or not self._keeps_masks else reading.masks[:count].unbind()
        self._replies += [None] * count if reading.replies is None else reading.replies[:count]
        self._embeddings += [reading.embeddings[:count]] if self._width and reading.embeddings is not None else []

    def gathered(self, usable: Sequence[bool]) -> _Answer:
        """Scores, masks, replies and embeddings of all members; nothing where a member is not usable."""
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
        return _Answer(scores, masks, replies, self._gathered_embeddings(usable) if self._width else None)

    def _gathered_embeddings(self, usable: Sequence[bool]) -> np.ndarray:
        embeddings = np.full((len(usable), self._width), np.nan, np.float32)
        if self._embeddings:
            embeddings[self._places] = torch.cat(self._embeddings).cpu().numpy()
        embeddings[~np.asarray(usable, bool)] = np.nan
        return embeddings
