"""Batches of uint8 tensors → detector outputs (`EnsembleScorer`). The hot loop: plain, profiled and
measured without Ray.

Prompts predicted for the images of a profile (`Describing`): which images, and what the describer
reads. How long each detector takes (`DetectorTimes`).
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ray_app.detectors import Preprocessing, compilation, load_detector, shared_backbone
from ray_app.detectors.detector import BACKBONE, BatchPrediction, Detector
from ray_app.identification.captions import Caption
from ray_app.inference import device_batches
from ray_app.inference.batch import (
    ALONE_US,
    DESCRIBED,
    REQUESTED,
    RUNS,
    SEEN,
    SPENT_US,
    Batch,
    DecodeResult,
    PerturbedBatch,
    Pixels,
    Size,
    images_at,
    joined,
)
from ray_app.inference.decision import (
    CAPTIONS,
    CLEAN,
    EMBEDDINGS,
    LISTS,
    MASKS,
    SCORES,
    DetectorOutputs,
    OutputKey,
    rows_to_describe,
)
from ray_app.inference.decoder import StageClock
from ray_app.inference.spec import ScoringSpec

# per member what the describer would look at; None where it has no tensor, or reads embeddings
DescriberInputs = Sequence[Pixels | None]


# Words come last, since a verdict decides who gets any: from embeddings that a detector left, or
# from a tensor of the same decode.
class Describing:
    """The spec's describer, loaded on the spec's device. It says the same of an image whatever else
    it is asked about.
    """

    def __init__(self, spec: ScoringSpec, clock: StageClock) -> None:
        from ray_app.identification.captioners import build_describer  # torch, for most tiers

        assert spec.describer is not None
        self._spec, self._clock = spec, clock
        self._describer = build_describer(spec.describer, device=spec.device)
        self.described = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many members were described, since the start."""
        return {DESCRIBED: self.described}

    def after(
        self, outcomes: Sequence[DecodeResult], outputs: DetectorOutputs, seen: DescriberInputs = ()
    ) -> DetectorOutputs:
        """The outputs of all detectors for these members, with captions for those that the profile
        wants them for.

        `seen`: see `describer_inputs`; may be left out where the describer reads embeddings.
        """
        with self._clock("describe"):
            words = self.words(rows_to_describe(self._spec, outcomes, outputs), outputs, seen)
        captions = {self._describer.card.name: [words.get(row) for row in range(len(outcomes))]}
        return outputs.joined(DetectorOutputs.clean(**{CAPTIONS: captions}))

    def words(
        self, rows: Sequence[int], outputs: DetectorOutputs, seen: DescriberInputs = ()
    ) -> dict[int, Caption]:
        """Captions of some members. A row has none where the describer can see nothing of it, or
        gives its words no likelihood: a network whose numbers overflow says anything.
        """
        there = [row for row in rows if self._has(row, outputs, seen)]
        captions: dict[int, Caption] = {}
        for start in range(0, len(there), self._spec.slots):
            some = there[start : start + self._spec.slots]
            words = zip(
                some, self._describer.describe(self._given(some, outputs, seen)), strict=True
            )
            captions |= {row: one for row, one in words if one.likelihood is not None}
        self.described += len(captions)
        return captions

    def _has(self, row: int, outputs: DetectorOutputs, seen: DescriberInputs) -> bool:
        vectors = self._vectors(outputs)
        return seen[row] is not None if vectors is None else bool(np.isfinite(vectors[row]).all())

    def _given(
        self, rows: Sequence[int], outputs: DetectorOutputs, seen: DescriberInputs
    ) -> npt.NDArray[Any]:
        vectors = self._vectors(outputs)
        return (
            np.stack([image for row in rows if (image := seen[row]) is not None])
            if vectors is None
            else vectors[list(rows)]
        )

    def _vectors(self, outputs: DetectorOutputs) -> npt.NDArray[np.float32] | None:
        card = self._spec.describer
        return (
            None if card is None or card.detector is None else outputs.of(EMBEDDINGS)[card.detector]
        )


def describer_inputs(spec: ScoringSpec, batch: Batch) -> DescriberInputs:
    """Return what the describer would see of each member of a batch: (height, width, 3) uint8.

    The batch must be prepared for the first stage of `spec`.
    """
    if spec.words_seen is None or not batch.pixels:
        return [None] * len(batch.outcomes)
    tensor = batch.pixels[spec.stages[0].preprocessings.index(spec.words_seen)]
    images = images_at(tensor, [slot for slot, size in enumerate(batch.sizes) if size is not None])
    return [images.get(slot) for slot in range(len(batch.sizes))]


@dataclass(eq=False)
class _Reading:
    """One batch through one detector. `ran`: whether the backbone that it shares ran for it; `end`:
    an event of a GPU, or a time.
    """

    name: str
    backbone: shared_backbone.SharedBackbone | None
    ran: bool
    images: int
    start: Any
    end: Any


class DetectorTimes:
    """Counts what detectors on one device do, and how long each takes: on a GPU by its own clock,
    without waiting for it.

    What a GPU has yet to do is counted by `settle`, after it was waited for.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self._now: Callable[[], Any] = _gpu_event if self._on_gpu else time.perf_counter
        self.counts = Counter[str]()
        self._open: list[_Reading] = []
        # microseconds of the last batch for which each backbone ran
        self._paid: dict[shared_backbone.SharedBackbone, float] = {}

    def read(self, detector: Detector, pixels: torch.Tensor, images: int) -> BatchPrediction:
        """What the detector says of a normalised batch with so many images, timed."""
        found = getattr(detector.network, BACKBONE, None)
        # else it has all to itself
        backbone = found if isinstance(found, shared_backbone.SharedBackbone) else None
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
            spent = (
                1000 * reading.start.elapsed_time(reading.end)
                if self._on_gpu
                else 1e6 * (reading.end - reading.start)
            )
            alone = spent
            if reading.backbone is not None and reading.ran:
                self._paid[reading.backbone] = spent
            elif reading.backbone is not None:
                alone += self._paid.get(reading.backbone, 0.0)
            self.counts[SEEN + reading.name] += reading.images
            self.counts[SPENT_US + reading.name] += round(spent)
            self.counts[ALONE_US + reading.name] += round(alone)


def _gpu_event() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


class LoadedDetectors:
    """Detectors in memory on one device, by name: all of a spec, or those of one pool. What they
    have in common is held once.

    `steps`: by the images in a decoded batch and their preprocessing, how many go through networks
    at once where that was measured.
    """

    def __init__(self, spec: ScoringSpec, pool: Sequence[str] | None = None) -> None:
        self.by_name = dict[str, Detector]()
        for name, card in spec.cards.items():
            if pool is None or name in pool:
                precision = spec.precision[name]
                self.by_name[name] = load_detector(
                    card,
                    device=spec.device,
                    precision=precision,
                    resize=spec.resize,
                    slots=spec.slots,
                )
                # at once: of a backbone that many share, memory has to hold two at most
                if card.backbone is not None:
                    shared_backbone.hold_equal_weights_once(
                        one.network
                        for one in self.by_name.values()
                        if one.card.backbone == card.backbone
                    )
        for name in spec.embedded:
            if name in self.by_name:
                self.by_name[name].keep_embeddings()
        self.backbones = shared_backbone.share_backbones(self.by_name.values())
        self.steps = dict[tuple[int, Preprocessing], int]()
        self.times = DetectorTimes(spec.device)
        self.upload = (
            device_batches.DeviceUpload(spec.device)
            if torch.device(spec.device).type == "cuda"
            else None
        )


class EnsembleScorer:
    """Detectors of an ensemble on one device, all of them or those of one pool; or, of those that
    are `loaded`, the ones that `spec` asks.

    Detectors with equal preprocessing share one tensor, and those that also name one backbone share
    its features.
    """

    def __init__(
        self,
        spec: ScoringSpec,
        clock: StageClock,
        pool: Sequence[str] | None = None,
        *,
        loaded: LoadedDetectors | None = None,
    ) -> None:
        self._spec, self._clock, self._loaded = spec, clock, loaded or LoadedDetectors(spec, pool)
        self._detectors = {
            name: detector for name, detector in self._loaded.by_name.items() if name in spec.cards
        }
        self._users = _by_preprocessing(self._detectors.values())
        self._columns = dict.fromkeys(_columns_of(spec, self._detectors.values()))
        self._views = (CLEAN, *(view.name for view in spec.views))

    def for_spec(self, spec: ScoringSpec, clock: StageClock) -> "EnsembleScorer":
        """The same detectors in memory, those of them that `spec` asks (see
        `ScoringSpec.limited_to`), in its views and batches.
        """
        return EnsembleScorer(spec, clock, loaded=self._loaded)

    @property
    def names(self) -> tuple[str, ...]:
        """The detectors that are asked."""
        return tuple(self._detectors)

    @property
    def counts(self) -> dict[str, int]:
        """Per shared backbone, how often detectors asked for features and how often it ran for
        them, and what `DetectorTimes` counts, since the start.
        """
        counts = Counter(self._loaded.times.counts)
        for backbone in self._loaded.backbones:
            counts.update(
                {REQUESTED + backbone.name: backbone.asked, RUNS + backbone.name: backbone.runs}
            )
        return counts

    def fit_batches(
        self, pieces: Sequence[int], meter: device_batches.DeviceMeter
    ) -> dict[str, int]:
        """Measure how many images the networks should see at once where `pieces` of so many come
        together, and keep to that from now on; per detector, what was found. Decoded batches stay
        as they are, and so does what runs are known by.

        The shape is static from then on: a score still does not depend on what it was batched with.
        But for its last bits it does not depend on the batch's size either; these may differ
        between sizes as between two models of GPU.
        """
        for preprocessing in self._spec.scored_preprocessings:
            users = [
                detector
                for detector in self._detectors.values()
                if detector.card.preprocessing == preprocessing
            ]
            if (
                preprocessing.shape is None
                or not users
                or any(detector.card.batch for detector in users)
            ):
                continue

            def run(
                count: int,
                users: Sequence[Detector] = users,
                shape: tuple[int, int] = preprocessing.shape,
            ) -> None:
                normalised = users[0].normalise(torch.zeros(count, *shape, 3, dtype=torch.uint8))
                for detector in users:
                    detector.read(normalised)

            slots = self._spec.slots
            measured = device_batches.measured_batches(
                device_batches.batch_sizes(slots, max(pieces)), run, meter
            )
            self._loaded.steps[slots, preprocessing] = device_batches.paying_batch(measured, pieces)
        return {name: self._step_of(one) for name, one in self._detectors.items()}

    def compile(
        self, compiler: compilation.Compiler = compilation.with_cuda_graphs
    ) -> dict[str, str | None]:
        """Let networks run compiled from now on, at the sizes of batches that hold here; per
        detector None, or why it runs as before.
        """
        return {
            name: compilation.compile_checked(detector, self._step_of(detector), compiler)
            for name, detector in self._detectors.items()
        }

    def start(self, only: Collection[str] | None = None) -> "BlockReadings":
        """Start the scores of a block, by all detectors or `only` some of them."""
        users, columns = self._users, self._columns
        if only is not None:
            users = _by_preprocessing(
                detector for name, detector in self._detectors.items() if name in only
            )
            columns = {key: None for key in columns if key.detector in only}
        return BlockReadings(self, _Columns(users, columns, self._views, self._spec.embedded))

    def score(
        self, batches: Iterable[Batch], only: Collection[str] | None = None
    ) -> DetectorOutputs:
        """Score batch after batch, in order, by all detectors or `only` some; see `BlockReadings`."""
        readings = self.start(only)
        for batch in batches:
            readings.add(batch)
        return readings.finish()

    def _step_of(self, detector: Detector) -> int:
        """How many images one of the detectors sees at once."""
        return self._loaded.steps.get(
            (self._spec.slots, detector.card.preprocessing), self._spec.slots
        )

    @property
    def _together(self) -> int:
        """How many decoded batches the largest step takes."""
        slots = self._spec.slots
        steps = [step for (size, _), step in self._loaded.steps.items() if size == slots]
        return max([step // slots for step in steps], default=1) or 1

    def _read_joined(self, batches: Sequence[Batch], block: "_Columns") -> None:
        """Let every detector read some batches, joined if their images go through it together."""
        for batch in joined(batches, self._spec.slots) if batches else ():
            without_pixels = PerturbedBatch((), (None,) * len(batch.outcomes))
            views = [batch, *(batch.views or [without_pixels] * len(self._spec.views))]
            with self._clock("score"):
                self._read(views, block)

    def _gather(self, block: "_Columns") -> DetectorOutputs:
        with self._clock("score"):
            outputs = block.gathered()
            self._loaded.times.settle()
            return outputs

    def _read(self, views: Sequence[Batch | PerturbedBatch], block: "_Columns") -> None:
        """Let every detector read a batch in all its views."""
        for place, preprocessing in enumerate(self._spec.preprocessings if views[0].pixels else ()):
            users = block.users.get(preprocessing, ())
            groups = self._fixed if isinstance(views[0].pixels[place], np.ndarray) else self._ragged
            for group in groups(users, views, place) if users else ():
                tensor = torch.from_numpy(group.pixels)
                normalised = users[0].normalise(
                    tensor if self._loaded.upload is None else self._loaded.upload(tensor)
                )
                for detector in users:
                    if group.size is None or self._spec.is_scored(detector.card.name, *group.size):
                        reading = self._loaded.times.read(detector, normalised, group.images)
                        block.put(group, detector, reading, views[group.view].sizes)
        for name, view in zip(self._views, views, strict=True):
            block.usable[name] += map(bool, view.sizes)

    def _fixed(
        self, users: Sequence[Detector], views: Sequence[Batch | PerturbedBatch], place: int
    ) -> "Iterator[_Group]":
        """All slots, or as many as the cards allow, in one view after another."""
        members, slots = len(views[0].sizes), self._spec.slots
        step = self._loaded.steps.get((slots, users[0].card.preprocessing), slots)
        for detector in users:
            step = min(step, detector.card.batch or step)
        for first in range(0, members, step):
            for number, view in enumerate(views):
                sizes = view.sizes[first : first + step]
                images = len(sizes) - sizes.count(None)
                if images:
                    tensor = view.pixels[place]
                    assert isinstance(tensor, np.ndarray)
                    pixels = tensor[first : first + step]
                    if slots < step != len(pixels):
                        pixels = np.concatenate(
                            [pixels, np.zeros((step - len(pixels), *pixels.shape[1:]), np.uint8)]
                        )
                    yield _Group(
                        number, None, range(first, min(first + step, members)), pixels, images
                    )

    def _ragged(
        self, users: Sequence[Detector], views: Sequence[Batch | PerturbedBatch], place: int
    ) -> "Iterator[_Group]":
        """Images that have one size go together, and are read in all views before the next are
        decoded.
        """
        for size, slots in _by_size(views[0].sizes, range(len(views[0].sizes))).items():
            step = users[0].together(*size)
            for first in range(0, len(slots), step):
                for number, view in enumerate(views):
                    yield from self._of_one_size(
                        users, number, view, place, slots[first : first + step]
                    )

    def _of_one_size(
        self,
        users: Sequence[Detector],
        number: int,
        view: Batch | PerturbedBatch,
        place: int,
        slots: Sequence[int],
    ) -> "Iterator[_Group]":
        for size, same in _by_size(view.sizes, slots).items():
            if not any(self._spec.is_scored(one.card.name, *size) for one in users):
                continue
            step = users[0].together(*size)
            for first in range(0, len(same), step):
                read = images_at(view.pixels[place], same[first : first + step])
                if read:
                    yield _Group(number, size, list(read), np.stack(list(read.values())), len(read))


class BlockReadings:
    """The scores of one block, batch after batch; members without pixels have none.

    Every batch runs at its full static shape, so that a score never depends on the images that
    share its batch. On a GPU, images that keep their size run with others of that size. A GPU is
    waited for once, in `finish`: while it computes, the next batch is decoded and moved.
    """

    def __init__(self, scorer: EnsembleScorer, columns: "_Columns") -> None:
        self._scorer, self._columns = scorer, columns
        self._waiting: list[Batch] = []

    def add(self, batch: Batch) -> None:
        """Let the detectors read a batch, at once or together with the next ones."""
        self._waiting.append(batch)
        if len(self._waiting) >= self._scorer._together:
            self._read_waiting()

    def finish(self) -> DetectorOutputs:
        """Return the outputs for all batches, in order."""
        self._read_waiting()
        return self._scorer._gather(self._columns)

    def _read_waiting(self) -> None:
        batches, self._waiting = self._waiting, []
        self._scorer._read_joined(batches, self._columns)


class _Group(NamedTuple):
    """What goes through a network together: slots of one view (0 = clean), all of one size where
    sizes are kept (else None).

    `images`: how many of the slots have an image.
    """

    view: int
    size: Size | None
    slots: Sequence[int]
    pixels: Pixels
    images: int


def _by_size(sizes: Sequence[Size | None], slots: Iterable[int]) -> dict[Size, list[int]]:
    """The slots among these that have a size, by it."""
    by_size: dict[Size, list[int]] = defaultdict(list)
    for slot in slots:
        if (size := sizes[slot]) is not None:
            by_size[size].append(slot)
    return by_size


def _by_preprocessing(detectors: Iterable[Detector]) -> dict[Preprocessing, list[Detector]]:
    users: dict[Preprocessing, list[Detector]] = defaultdict(list)
    for detector in detectors:
        users[detector.card.preprocessing].append(detector)
    return dict(users)


def _columns_of(spec: ScoringSpec, detectors: Collection[Detector]) -> Iterator[OutputKey]:
    """The columns that are kept: all kinds of images as they are, of a view scores, and masks where
    it leaves everything in its place.
    """
    for view in (None, *spec.views):
        for detector in detectors:
            name = detector.card.name
            for kind in detector.kinds:
                of_clean = view is None and (kind != EMBEDDINGS or name in spec.embedded)
                if (
                    of_clean
                    or kind == SCORES
                    or (kind == MASKS and view is not None and view.keeps_place)
                ):
                    yield OutputKey(CLEAN if view is None else view.name, name, kind)


@dataclass
class _Columns:
    """The detectors' readings of a block, left on the device until the end. `users`: by
    preprocessing, the detectors that read it; `columns`: what is kept of them; `views`: their
    names; `widths`: of embeddings, by detector. `usable`: per view, which members of the batches
    before the one at work have pixels.
    """

    users: Mapping[Preprocessing, Sequence[Detector]]
    columns: Mapping[OutputKey, None]
    views: Sequence[str]
    widths: Mapping[str, int]
    usable: dict[str, list[bool]] = field(default_factory=partial(defaultdict, list))
    parts: dict[OutputKey, list[Any]] = field(default_factory=partial(defaultdict, list))
    places: dict[tuple[str, str], list[int]] = field(default_factory=partial(defaultdict, list))

    def put(
        self,
        group: _Group,
        detector: Detector,
        reading: BatchPrediction,
        sizes: Sequence[Size | None],
    ) -> None:
        """Keep what a detector read in a group of the batch at work; what fills that up behind its
        slots is dropped, and so is what a mask says of filling beside an image of its slot's size.
        """
        view, name, count = self.views[group.view], detector.card.name, len(group.slots)
        for slot in group.slots:
            self.places[view, name].append(len(self.usable[CLEAN]) + slot)
        for kind in detector.kinds:
            key, given = OutputKey(view, name, kind), getattr(reading, kind)
            if key in self.columns:
                kept = [None] * count if given is None else given[:count]
                if kind == MASKS and given is not None:
                    area = detector.card.preprocessing.image_area
                    drawn = zip(kept, group.slots, strict=True)
                    kept = [
                        None if mask is None else mask[area(*sizes[slot] or mask.shape[::-1])]
                        for mask, slot in drawn
                    ]
                self.parts[key].append(kept)

    def gathered(self) -> DetectorOutputs:
        """All columns, with nothing where a member is not usable."""
        outputs: dict[OutputKey, Any] = {}
        for key in self.columns:
            usable, places, parts = (
                self.usable[key.view],
                self.places[key.view, key.detector],
                self.parts[key],
            )
            if key.kind in LISTS:
                outputs[key] = column = list[Any]([None] * len(usable))
                for place, one in zip(places, chain.from_iterable(parts), strict=True):
                    if usable[place]:
                        column[place] = one.cpu().numpy() if isinstance(one, torch.Tensor) else one
                continue
            shape = (
                (len(usable), self.widths[key.detector])
                if key.kind == EMBEDDINGS
                else (len(usable),)
            )
            outputs[key] = numbers = np.full(shape, np.nan, np.float32)
            if parts:
                numbers[places] = torch.cat(parts).float().cpu().numpy()
                numbers[~np.array(usable, bool)] = np.nan
        return DetectorOutputs(outputs)
