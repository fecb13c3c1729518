"""Score batches of uint8 tensors with the detectors of an ensemble (`EnsembleScorer`).

This module is the hot loop of scoring. It does not use Ray, so that it can be profiled alone.
`ImageDescriber` predicts prompts for all images or for those with the verdict `fake`, as the card
of the ensemble requests. `DetectorTimes` measures the time of each detector.
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
    ELAPSED_US,
    REQUESTED,
    RUNS,
    SEEN,
    Batch,
    DecodeResult,
    PerturbedBatch,
    Pixels,
    Size,
    images_at,
    join_batches,
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

# For each member the input of the describer. None if the member has no tensor, or if the describer
# reads embeddings.
DescriberInputs = Sequence[Pixels | None]

# Decoders and networks evict each other from the caches of a core. `touchstone-tiny` takes 0.4 ms
# longer per image if they alternate after each batch.
WAITING_BYTES = 32 * 2**20


# Captions come last, since the verdict decides which images get one. The describer reads embeddings
# of a detector, or a tensor of the same decode.
class ImageDescriber:
    """Predict captions with the describer of a spec, which is loaded on the device of the spec.

    A describer is a model that guesses the prompt from which an image was generated. This guess is
    the caption. It does not depend on other images in the same call.
    """

    def __init__(self, spec: ScoringSpec, clock: StageClock) -> None:
        from ray_app.identification.captioners import build_describer  # Imports torch.

        assert spec.describer is not None
        self._spec, self._clock = spec, clock
        self._describer = build_describer(spec.describer, device=spec.device)
        self.described = 0

    @property
    def counts(self) -> dict[str, int]:
        """The counter `described`: the number of images that got a caption from this object."""
        return {DESCRIBED: self.described}

    def add_captions(
        self,
        outcomes: Sequence[DecodeResult],
        outputs: DetectorOutputs,
        inputs: DescriberInputs = (),
    ) -> DetectorOutputs:
        """Return the outputs of detectors with a column of captions added.

        A caption is a guess at the prompt. The card of the ensemble requests captions for all
        images with a score, or only for those with the verdict `fake`. Other images get None.

        Args:
            outcomes: The decoding result of each image.
            outputs: The outputs of all detectors for the images.
            inputs: The inputs of the describer (see `describer_inputs`). May be empty if the
                describer reads embeddings.

        Returns:
            The outputs with the captions.
        """
        with self._clock("describe"):
            captions_by_row = self.describe(
                rows_to_describe(self._spec, outcomes, outputs), outputs, inputs
            )
        captions = {
            self._describer.card.name: [captions_by_row.get(row) for row in range(len(outcomes))]
        }
        return outputs.merge(DetectorOutputs.clean(**{CAPTIONS: captions}))

    def describe(
        self, rows: Sequence[int], outputs: DetectorOutputs, inputs: DescriberInputs = ()
    ) -> dict[int, Caption]:
        """Predict captions, which are guesses at the prompt, for the images at `rows`.

        A row is left out if the describer has no input for it. It is also left out if the caption
        has no likelihood. Values in the network have then overflowed, and the text is meaningless.

        Args:
            rows: The indices of the images to describe.
            outputs: The outputs of all detectors for all images.
            inputs: The inputs of the describer (see `describer_inputs`). May be empty if the
                describer reads embeddings.

        Returns:
            The captions by row.
        """
        available = [row for row in rows if self._has_input(row, outputs, inputs)]
        captions: dict[int, Caption] = {}
        for start in range(0, len(available), self._spec.slots):
            chunk = available[start : start + self._spec.slots]
            pairs = zip(
                chunk, self._describer.describe(self._stack(chunk, outputs, inputs)), strict=True
            )
            captions |= {row: caption for row, caption in pairs if caption.likelihood is not None}
        self.described += len(captions)
        return captions

    def _has_input(self, row: int, outputs: DetectorOutputs, inputs: DescriberInputs) -> bool:
        vectors = self._get_vectors(outputs)
        return inputs[row] is not None if vectors is None else bool(np.isfinite(vectors[row]).all())

    def _stack(
        self, rows: Sequence[int], outputs: DetectorOutputs, inputs: DescriberInputs
    ) -> npt.NDArray[Any]:
        vectors = self._get_vectors(outputs)
        return (
            np.stack([image for row in rows if (image := inputs[row]) is not None])
            if vectors is None
            else vectors[list(rows)]
        )

    def _get_vectors(self, outputs: DetectorOutputs) -> npt.NDArray[np.float32] | None:
        card = self._spec.describer
        return (
            None
            if card is None or card.detector is None
            else outputs.get(EMBEDDINGS)[card.detector]
        )


def describer_inputs(spec: ScoringSpec, batch: Batch) -> DescriberInputs:
    """Return what the describer, which guesses prompts, reads for each image of a batch.

    An input is a (height, width, 3) uint8 array. It is None if the image has no pixels, or if the
    describer reads embeddings. The batch must be prepared for the first stage of `spec`.
    """
    if spec.describer_preprocessing is None or not batch.pixels:
        return [None] * len(batch.outcomes)
    tensor = batch.pixels[spec.stages[0].preprocessings.index(spec.describer_preprocessing)]
    images = images_at(tensor, [slot for slot, size in enumerate(batch.sizes) if size is not None])
    return [images.get(slot) for slot in range(len(batch.sizes))]


@dataclass(eq=False)
class _Reading:
    """One batch that went through one detector.

    Attributes:
        name: The name of the detector.
        backbone: The backbone that it shares with other detectors. None if it shares none.
        ran: Whether the shared backbone ran for this batch. If not, its features were reused.
        images: The number of images in the batch.
        start: A CUDA event or a time in seconds.
        end: A CUDA event or a time in seconds.
    """

    name: str
    backbone: shared_backbone.SharedBackbone | None
    ran: bool
    images: int
    start: Any
    end: Any


class DetectorTimes:
    """Measure the time that each detector takes on one device, and count its images.

    On a GPU, CUDA events measure the time without waiting for the GPU. Call `settle` to wait for
    the GPU and add the measured times to the counts.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self._now: Callable[[], Any] = _record_gpu_event if self._on_gpu else time.perf_counter
        self.counts = Counter[str]()
        self._pending: list[_Reading] = []
        # Microseconds of the last batch for which each backbone ran.
        self._last_run_us: dict[shared_backbone.SharedBackbone, float] = {}

    def read(self, detector: Detector, pixels: torch.Tensor, images: int) -> BatchPrediction:
        """Run a detector on a normalised batch, measure its time, and return its outputs.

        Args:
            detector: The detector to run.
            pixels: The normalised batch.
            images: The number of slots of the batch that have an image. Only these are counted.

        Returns:
            The outputs of the detector for all slots.
        """
        module = getattr(detector.network, BACKBONE, None)
        # A backbone of another type is not shared.
        backbone = module if isinstance(module, shared_backbone.SharedBackbone) else None
        runs = backbone.runs if backbone is not None else 0
        start = self._now()
        prediction = detector.read(pixels)
        ran = backbone is not None and backbone.runs > runs
        self._pending.append(
            _Reading(detector.card.name, backbone, ran, images, start, self._now())
        )
        if not self._on_gpu:
            self.settle()  # A CPU has finished the batch at this point.
        return prediction

    def settle(self) -> None:
        """Wait until the device has run all batches, and add their measured times to `counts`."""
        readings, self._pending = self._pending, []
        if self._on_gpu and readings:
            readings[-1].end.synchronize()
        for reading in readings:
            elapsed_us = (
                1000 * reading.start.elapsed_time(reading.end)
                if self._on_gpu
                else 1e6 * (reading.end - reading.start)
            )
            alone_us = elapsed_us
            if reading.backbone is not None and reading.ran:
                self._last_run_us[reading.backbone] = elapsed_us
            elif reading.backbone is not None:
                alone_us += self._last_run_us.get(reading.backbone, 0.0)
            self.counts[SEEN + reading.name] += reading.images
            self.counts[ELAPSED_US + reading.name] += round(elapsed_us)
            self.counts[ALONE_US + reading.name] += round(alone_us)


def _record_gpu_event() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


class LoadedDetectors:
    """Load detectors into the memory of one device. Shared weights are in memory once.

    Args:
        spec: The spec with the cards of the detectors, their precision, and the device.
        pool: The names of the detectors to load. None loads all detectors of the spec.

    Attributes:
        by_name: The loaded detectors, by name.
        steps: The best number of images per forward pass that `EnsembleScorer.fit_batches` has
            measured, by (slots, preprocessing). `slots` is the size of decoded batches. Without an
            entry, a forward pass has `slots` images.
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
                    resize=spec.choose_resize(name),
                    slots=spec.slots,
                )
                # Deduplicate after each load, so that memory holds at most two copies of a backbone
                # that many detectors share.
                if card.backbone is not None:
                    shared_backbone.share_equal_weights(
                        detector.network
                        for detector in self.by_name.values()
                        if detector.card.backbone == card.backbone
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
    """Score batches with detectors of an ensemble on one device.

    Detectors with equal preprocessing share one tensor. If their cards also name the same backbone,
    they share its features.

    Args:
        spec: Has the detectors, the perturbations of images (views), and the batch size.
        clock: Counts the seconds of scoring.
        pool: The names of the detectors to use. None uses all detectors of the spec.
        loaded: Detectors that are already in memory. None loads the detectors.
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
        self._users = _group_by_preprocessing(self._detectors.values())
        self._columns = dict.fromkeys(_list_columns(spec, self._detectors.values()))
        self._views = (CLEAN, *(view.name for view in spec.views))

    def for_spec(self, spec: ScoringSpec, clock: StageClock) -> "EnsembleScorer":
        """Return a scorer for another spec that uses the detectors already in memory.

        The perturbations, the batch size, and the choice of detectors are those of the new spec.
        Use `ScoringSpec.select_detectors` to get a spec with fewer detectors.
        """
        return EnsembleScorer(spec, clock, loaded=self._loaded)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the detectors that score."""
        return tuple(self._detectors)

    @property
    def counts(self) -> dict[str, int]:
        """Counters since the detectors were loaded, by name of the count.

        Examples are `images seen by NAME` and `microseconds of NAME` for a detector. For a backbone
        that detectors share, `asked of backbone NAME` counts how often they requested its features,
        and `runs of backbone NAME` how often it was executed.
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
        """Measure the best number of images per forward pass, and use it from now on.

        The size of decoded batches (`slots` of the spec) does not change. All forward passes of a
        detector have the same shape, so a score does not depend on the other images in its forward
        pass. Another number of images per forward pass may change the last bits of a score.

        Args:
            pieces: The numbers of images that are typically scored together. An example is the
                number of images that one task scores.
            meter: Measures time and memory on the device.

        Returns:
            The number of images per forward pass, by detector.
        """
        for preprocessing in self._spec.scored_preprocessings:
            users = [
                detector
                for detector in self._detectors.values()
                if detector.preprocessing == preprocessing
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
            measurements = device_batches.measure_batches(
                device_batches.batch_sizes(slots, max(pieces)), run, meter
            )
            self._loaded.steps[slots, preprocessing] = device_batches.choose_batch_size(
                measurements, pieces
            )
        return {name: self._get_step(detector) for name, detector in self._detectors.items()}

    def compile(
        self, compiler: compilation.Compiler = compilation.compile_with_cuda_graphs
    ) -> dict[str, str | None]:
        """Compile the networks for the current batch sizes, and use the compiled ones from now on.

        Returns:
            For each detector, the reason why it is not compiled, or None if it is compiled.
        """
        return {
            name: compilation.compile_checked(detector, self._get_step(detector), compiler)
            for name, detector in self._detectors.items()
        }

    def start(self, only: Collection[str] | None = None) -> "BlockReadings":
        """Start to score a sequence of batches, and return the object to which they are added.

        To score an iterable of batches with one call, use `score` instead.

        Args:
            only: The names of the detectors that score the batches. None uses all detectors.

        Returns:
            The object whose `add` takes a batch, and whose `finish` returns the outputs.
        """
        users, columns = self._users, self._columns
        if only is not None:
            users = _group_by_preprocessing(
                detector for name, detector in self._detectors.items() if name in only
            )
            columns = {key: None for key in columns if key.detector in only}
        return BlockReadings(self, _Columns(users, columns, self._views, self._spec.embedded))

    def score(
        self, batches: Iterable[Batch], only: Collection[str] | None = None
    ) -> DetectorOutputs:
        """Score batches, and return the outputs of the detectors for all their images in order.

        Args:
            batches: The decoded batches.
            only: The names of the detectors that score the batches. None uses all detectors.

        Returns:
            The outputs with one row per image, in the order of the batches.
        """
        readings = self.start(only)
        for batch in batches:
            readings.add(batch)
        return readings.finish()

    def _get_step(self, detector: Detector) -> int:
        """Return how many images a detector processes at a time."""
        return self._loaded.steps.get((self._spec.slots, detector.preprocessing), self._spec.slots)

    @property
    def _max_joined(self) -> int:
        """The number of decoded batches that the largest step takes."""
        slots = self._spec.slots
        steps = [step for (size, _), step in self._loaded.steps.items() if size == slots]
        return max([step // slots for step in steps], default=1) or 1

    @property
    def _waiting_bytes(self) -> int:
        """The size of the batches that wait until the detectors run."""
        # A GPU computes while the next batch is decoded. With views, images stay decoded as well.
        return WAITING_BYTES if self._spec.device == "cpu" and not self._spec.views else 0

    def _read_joined(self, batches: Sequence[Batch], block: "_Columns") -> None:
        """Run every detector on some batches, joined if their images go through it together."""
        for batch in join_batches(batches, self._spec.slots):
            without_pixels = PerturbedBatch((), (None,) * len(batch.outcomes))
            views = [batch, *(batch.views or [without_pixels] * len(self._spec.views))]
            with self._clock("score"):
                self._read(views, block)

    def _gather(self, block: "_Columns") -> DetectorOutputs:
        with self._clock("score"):
            outputs = block.gather()
            self._loaded.times.settle()
            return outputs

    def _read(self, views: Sequence[Batch | PerturbedBatch], block: "_Columns") -> None:
        """Run every detector on a batch in all its views."""
        for index, preprocessing in enumerate(self._spec.preprocessings if views[0].pixels else ()):
            users = block.users.get(preprocessing, ())
            groups = (
                self._group_fixed
                if isinstance(views[0].pixels[index], np.ndarray)
                else self._group_ragged
            )
            for group in groups(users, views, index) if users else ():
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

    def _group_fixed(
        self, users: Sequence[Detector], views: Sequence[Batch | PerturbedBatch], index: int
    ) -> "Iterator[_Group]":
        """Yield groups of a fixed number of slots, view after view.

        The groups are smaller if a card limits its batch.
        """
        members, slots = len(views[0].sizes), self._spec.slots
        step = self._loaded.steps.get((slots, users[0].preprocessing), slots)
        for detector in users:
            step = min(step, detector.card.batch or step)
        for first in range(0, members, step):
            for view_index, view in enumerate(views):
                sizes = view.sizes[first : first + step]
                images = len(sizes) - sizes.count(None)
                if images:
                    tensor = view.pixels[index]
                    assert isinstance(tensor, np.ndarray)
                    pixels = tensor[first : first + step]
                    if slots < step != len(pixels):
                        pixels = np.concatenate(
                            [pixels, np.zeros((step - len(pixels), *pixels.shape[1:]), np.uint8)]
                        )
                    yield _Group(
                        view_index, None, range(first, min(first + step, members)), pixels, images
                    )

    def _group_ragged(
        self, users: Sequence[Detector], views: Sequence[Batch | PerturbedBatch], index: int
    ) -> "Iterator[_Group]":
        """Yield groups of images of one size, in all views before the next images are decoded."""
        for size, slots in _group_by_size(views[0].sizes, range(len(views[0].sizes))).items():
            step = users[0].batch_size_for(*size)
            for first in range(0, len(slots), step):
                for view_index, view in enumerate(views):
                    yield from self._split_by_size(
                        users, view_index, view, index, slots[first : first + step]
                    )

    def _split_by_size(
        self,
        users: Sequence[Detector],
        view_index: int,
        view: Batch | PerturbedBatch,
        index: int,
        slots: Sequence[int],
    ) -> "Iterator[_Group]":
        for size, same_size in _group_by_size(view.sizes, slots).items():
            if not any(self._spec.is_scored(user.card.name, *size) for user in users):
                continue
            step = users[0].batch_size_for(*size)
            for first in range(0, len(same_size), step):
                images = images_at(view.pixels[index], same_size[first : first + step])
                if images:
                    yield _Group(
                        view_index, size, list(images), np.stack(list(images.values())), len(images)
                    )


class BlockReadings:
    """Score batches one after another. `EnsembleScorer.start` creates this object.

    Images that were not decoded get no score. Resized images go through the networks in batches of
    one fixed shape. Therefore a score never depends on the other images in the batch. Images that
    are not resized go through them one at a time, or on a GPU in groups of images that all have the
    same size. The GPU is synchronised only once, in `finish`. While the GPU computes, the next
    batch is decoded and copied to it.
    """

    def __init__(self, scorer: EnsembleScorer, columns: "_Columns") -> None:
        self._scorer, self._columns = scorer, columns
        self._pending: list[Batch] = []
        self._pending_bytes = 0

    def add(self, batch: Batch) -> None:
        """Add a batch, and run the detectors when there are enough images for a forward pass.

        A forward pass has the images of one batch, or the number of images that
        `EnsembleScorer.fit_batches` has chosen. On a CPU, batches wait until they have
        `WAITING_BYTES`. `finish` runs the detectors on the remaining batches.
        """
        self._pending.append(batch)
        self._pending_bytes += batch.size_bytes
        if (
            len(self._pending) >= self._scorer._max_joined
            and self._pending_bytes >= self._scorer._waiting_bytes
        ):
            self._read_waiting()

    def finish(self) -> DetectorOutputs:
        """Wait for the device, and return the outputs for the members of all batches, in order."""
        self._read_waiting()
        return self._scorer._gather(self._columns)

    def _read_waiting(self) -> None:
        batches, self._pending, self._pending_bytes = self._pending, [], 0
        for start in range(0, len(batches), self._scorer._max_joined):
            joined = batches[start : start + self._scorer._max_joined]
            self._scorer._read_joined(joined, self._columns)


class _Group(NamedTuple):
    """Slots of one view that go through a network together.

    Attributes:
        view: The index of the view. 0 is the clean image.
        size: The common size of the images if sizes are kept, else None.
        slots: The slots.
        pixels: The images.
        images: How many of the slots have an image.
    """

    view: int
    size: Size | None
    slots: Sequence[int]
    pixels: Pixels
    images: int


def _group_by_size(sizes: Sequence[Size | None], slots: Iterable[int]) -> dict[Size, list[int]]:
    """Group the slots that have a size by that size."""
    by_size: dict[Size, list[int]] = defaultdict(list)
    for slot in slots:
        if (size := sizes[slot]) is not None:
            by_size[size].append(slot)
    return by_size


def _group_by_preprocessing(detectors: Iterable[Detector]) -> dict[Preprocessing, list[Detector]]:
    users: dict[Preprocessing, list[Detector]] = defaultdict(list)
    for detector in detectors:
        users[detector.preprocessing].append(detector)
    return dict(users)


def _list_columns(spec: ScoringSpec, detectors: Collection[Detector]) -> Iterator[OutputKey]:
    """Yield the columns that are kept.

    Clean images keep all kinds of output. Views keep scores, and masks if the view leaves
    everything in its place.
    """
    for view in (None, *spec.views):
        for detector in detectors:
            name = detector.card.name
            for kind in detector.kinds:
                is_clean_output = view is None and (kind != EMBEDDINGS or name in spec.embedded)
                if (
                    is_clean_output
                    or kind == SCORES
                    or (kind == MASKS and view is not None and view.keeps_place)
                ):
                    yield OutputKey(CLEAN if view is None else view.name, name, kind)


@dataclass
class _Columns:
    """The readings of the detectors for one block. They stay on the device until the end.

    Attributes:
        users: The detectors that read each preprocessing.
        columns: The columns that are kept.
        views: The names of the views.
        widths: The width of the embeddings of each detector.
        usable: For each view, which members of the previous batches have pixels.
        parts: The readings of each column.
        rows: The members of these readings, by view and detector.
    """

    users: Mapping[Preprocessing, Sequence[Detector]]
    columns: Mapping[OutputKey, None]
    views: Sequence[str]
    widths: Mapping[str, int]
    usable: dict[str, list[bool]] = field(default_factory=partial(defaultdict, list))
    parts: dict[OutputKey, list[Any]] = field(default_factory=partial(defaultdict, list))
    rows: dict[tuple[str, str], list[int]] = field(default_factory=partial(defaultdict, list))

    def put(
        self,
        group: _Group,
        detector: Detector,
        reading: BatchPrediction,
        sizes: Sequence[Size | None],
    ) -> None:
        """Keep the outputs of a detector for a group of the current batch.

        Outputs for padding after the slots of the group are dropped, and so are the parts of a mask
        that cover padding next to an image.

        Args:
            group: The slots.
            detector: The detector.
            reading: Its outputs for the group.
            sizes: The sizes of all images of the batch in this view.
        """
        view, name, count = self.views[group.view], detector.card.name, len(group.slots)
        for slot in group.slots:
            self.rows[view, name].append(len(self.usable[CLEAN]) + slot)
        for kind in detector.kinds:
            key, output = OutputKey(view, name, kind), getattr(reading, kind)
            if key in self.columns:
                values = [None] * count if output is None else output[:count]
                if kind == MASKS and output is not None:
                    area = detector.card.preprocessing.image_area
                    pairs = zip(values, group.slots, strict=True)
                    values = [
                        None if mask is None else mask[area(*sizes[slot] or mask.shape[::-1])]
                        for mask, slot in pairs
                    ]
                self.parts[key].append(values)

    def gather(self) -> DetectorOutputs:
        """Return all columns, without a value for members that are not usable."""
        outputs: dict[OutputKey, Any] = {}
        for key in self.columns:
            usable, rows, parts = (
                self.usable[key.view],
                self.rows[key.view, key.detector],
                self.parts[key],
            )
            if key.kind in LISTS:
                outputs[key] = column = list[Any]([None] * len(usable))
                for row, value in zip(rows, chain.from_iterable(parts), strict=True):
                    if usable[row]:
                        column[row] = (
                            value.cpu().numpy() if isinstance(value, torch.Tensor) else value
                        )
                continue
            shape = (
                (len(usable), self.widths[key.detector])
                if key.kind == EMBEDDINGS
                else (len(usable),)
            )
            outputs[key] = values = np.full(shape, np.nan, np.float32)
            if parts:
                values[rows] = torch.cat(parts).float().cpu().numpy()
                values[~np.array(usable, bool)] = np.nan
        return DetectorOutputs(outputs)
