"""Score images with an ensemble from Python (`load_ensemble`), in the calling process.

No Ray cluster is needed, and results are returned as objects, not written to files.
"""

import copy
import logging
import os
import stat
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from ray_app.archives.saved_datasets import refuse_saved_dataset
from ray_app.detectors import DetectorCard, RequestedResize, licences
from ray_app.detectors.callables.process import require_device
from ray_app.ensembles import (
    EnsembleCard,
    build_ensemble,
    choose_operating_point,
    find_origin,
    load_ensemble_card,
)
from ray_app.errors import (
    ConfigError,
    DetectorError,
    InputError,
    Status,
    StorageError,
    describe_error,
)
from ray_app.images import BatchLimits, ImageLimits
from ray_app.images.limits import worst_bytes
from ray_app.images.provenance import ProvenanceConfig, attach_sidecar
from ray_app.inference import (
    decision,
    decoder,
    device_batches,
    image_inputs,
    result,
    scorer,
    spec,
    worker,
)
from ray_app.inference.batch import Batch, DecodeResult, File
from ray_app.inference.decoder import StageClock
from ray_app.inference.decoder_pool import IsolatedDecoders, PreparedImage
from ray_app.storage import (
    ClosedFolder,
    Fetcher,
    canonicalize,
    errors,
    fetch,
    is_pattern,
    list_objects,
    node_budget,
    strip_secrets,
    urls,
)
from ray_app.storage.http import WEB

_log = logging.getLogger(__name__)

# Batches that are scored before their results are returned. The GPU is synchronised once for them.
_MAX_BATCHES = 8
_TEXT_COLUMNS = ("status", "finding", "verdict", "predicted_generator", "predicted_prompt")
# Remote files are read ahead: the total size, the expected size per file, the number of threads.
_AHEAD_BYTES, _EXPECTED_BYTES, _THREADS = 64 * 2**20, 2 * 2**20, 16

# Decoders identify images by a number. It is always 0 here.
LoadedImages = Iterator[tuple[int, File | PreparedImage | InputError]]
# For each image its name, and the image or path from which it can be displayed.
SourceList = list[tuple[str | int | None, Any]]


class Ensemble:
    """Score images with an ensemble of detectors on one device.

    An ensemble combines the scores of its detectors into one verdict per image. A card is a YAML
    file that describes an ensemble: its detectors, thresholds, and calibration.

    Several threads may share an ensemble, which then scores one call at a time. To score in
    parallel, give each thread its own `twin()`. A pickled ensemble loads its weights again when it
    is unpickled. A forked process may use an ensemble of its parent on a CPU, with one thread of
    torch.

    Examples:
        >>> ensemble = Ensemble("default", device="cpu", batch_size=8)
        >>> for result in ensemble.score("photos/"):
        ...     print(result.source, result.verdict, result.probability)

    Args:
        name_or_path: The name of a shipped ensemble, the path of a card, or a card.
        fpr: Decide with the thresholds that the card has for this false-positive rate, such as
            0.05. Defaults to the thresholds in the section `thresholds` of the card.
        device: `cpu`, `cuda`, `cuda:0`, or `auto` for a GPU if one is available.
        precision: `bf16`, `fp32`, or `auto` for the settings of the card and the device.
        resize: `exact` resizes with the library of a detector's authors. `fast` replaces Pillow by
            torch, which takes a fifth of the time. `auto` uses the setting of the card, or else
            is fast for detectors in bf16.
        limits: Limits on the size of an image.
        batch_size: Images per forward pass. Defaults to 4 on a CPU and 64 on a GPU.
        image_column: The column with the images, if you call the ensemble with a batch of columns,
            as Ray Data's `map_batches` does. Defaults to `bytes` or `image`, or to the only column
            whose first value is an image.
        accept_licences: Names of detectors, or licences, whose terms you accept.
        waive_guarantee: Allow a precision or resize mode that differs from the calibration of the
            card. The card's guarantee on false positives then does not cover the verdicts.
        provenance: How to read what a file states about its origin.
        children: Child processes that decode the images. Defaults to decoding in this process.

    Raises:
        ConfigError: No ensemble has this name, or its card has no thresholds for `fpr`.
        DetectorError: Weights are missing, or a licence is not accepted.
    """

    def __init__(
        self,
        name_or_path: str | Path | EnsembleCard | spec.ScoringSpec = "default",
        *,
        fpr: float | None = None,
        device: str = "auto",
        precision: spec.RequestedPrecision = "auto",
        resize: RequestedResize = "auto",
        limits: ImageLimits | None = None,
        batch_size: int | None = None,
        image_column: str | None = None,
        accept_licences: Sequence[str] = (),
        waive_guarantee: bool = False,
        provenance: ProvenanceConfig | None = None,
        children: IsolatedDecoders | None = None,
    ) -> None:
        if isinstance(name_or_path, spec.ScoringSpec):
            self.spec: spec.ScoringSpec = name_or_path
        else:
            card = (
                name_or_path
                if isinstance(name_or_path, EnsembleCard)
                else load_ensemble_card(name_or_path)
            )
            if fpr is not None:
                card = choose_operating_point(card, fpr)
            self.spec = spec.make_spec(
                card, device=device_batches.resolve_device(device), precision=precision, resize=resize, limits=limits or BatchLimits(),
                slots=None if batch_size is None else _validate_batch_size(batch_size), waive_guarantee=waive_guarantee,
                provenance=(provenance or ProvenanceConfig()).policy(),
            )  # fmt: skip
        device_batches.limit_threads_after_fork()
        self._pid = os.getpid()
        for detector in self.spec.cards.values():
            licences.require_accepted(detector, accept_licences)
            require_device(detector, device)
        decision.require_embeddings(self.spec)
        self._image_column, self._accepted = image_column, tuple(accept_licences)
        self._inputs, self._lock = ImageInputs(self.spec.limits.max_bytes), threading.RLock()
        self._is_demonstration = any(
            detector.demonstration for detector in self.spec.cards.values()
        )
        clock = StageClock()
        # Large images take turns with those of other processes on this machine, as in a run. The
        # budget always admits the largest image alone, so that no image is too large.
        budget_bytes = max(
            node_budget.compute_budget(node_budget.node_memory()), worst_bytes(self.spec.limits)
        )
        budget = node_budget.NodeBudget(decoder.BUDGET, budget_bytes)
        self._careful = decoder.CrashSafeDecoder(
            self.spec.limits, None, decoder.WALL_LIMIT_S, budget, children=children
        )
        # Images that keep their size are then decoded only when a detector reads them.
        self._is_late = children is not None
        self._describing = scorer.ImageDescriber(self.spec, clock) if self.spec.describer else None
        self._loaded = scorer.LoadedDetectors(self.spec)
        self._set_up(self.spec, clock)

    def _set_up(self, scoring_spec: spec.ScoringSpec, clock: StageClock) -> None:
        """Open the decoder and the scorer for a spec.

        The spec may differ in batch size only from the spec that the detectors were loaded with.
        """
        self.spec = scoring_spec
        self._decoder, self._scorer = worker.open_scorer(
            scoring_spec,
            scoring_spec.device,
            clock,
            careful=self._careful,
            hand_over=self._is_late,
            loaded=self._loaded,
            describing=self._describing,
        )

    @property
    def cards(self) -> Mapping[str, DetectorCard]:
        """The cards (YAML descriptions) of the ensemble's detectors, by name."""
        return self.spec.cards

    @overload
    def score(
        self,
        images: bytes | bytearray | Image.Image,
        *,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> result.Result: ...
    @overload
    def score(
        self,
        images: list[Any] | tuple[Any, ...] | Iterator[Any],
        *,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> result.Results: ...
    @overload
    def score(
        self, images: Any, *, batch_size: int | None = None, progress: bool = False
    ) -> Any: ...
    def score(self, images: Any, *, batch_size: int | None = None, progress: bool = False) -> Any:
        """Score one image, or many images.

        One image is one of these values: a path or URL; the bytes of a file; a binary file; a PIL
        image; a uint8 array or tensor; or a dict with `bytes` or `path`. Many images are a folder, a
        glob, or any iterable of these values. An image that cannot be scored gives a result with a `status`, never an
        exception.

        Args:
            images: One image, or many images.
            batch_size: Images per forward pass in this call.
            progress: Show a progress bar on stderr, or in a notebook.

        Returns:
            A `Result` for one image. `Results` for many: an iterator that scores as it is read.

        Raises:
            UnknownInputError: The type of an image is not supported. It is a TypeError.
            ConfigError: The folder or glob has no files, or `batch_size` is less than 1.
            StorageError: The folder or glob cannot be listed.
        """
        ensemble = (
            self
            if batch_size in (None, self.spec.slots)
            else self._with_batch_size(_validate_batch_size(batch_size))
        )
        inputs = self._inputs.resolve(images)
        if isinstance(inputs, image_inputs.ImageSource):
            return ensemble._score_images(
                iter([(0, self._inputs.read(inputs.value))]), [(inputs.name, inputs.picture)]
            )[0]
        stream = ensemble._stream(inputs.sources, inputs.total, progress=progress)
        return result.Results(stream, tuple(self.spec.cards), inputs.total)

    def score_read(self, images: Iterable[Any]) -> list[result.Result]:
        """Score images that are already in memory, and return when all of them are scored.

        Use `score` for paths, URLs, and folders.

        Args:
            images: For each image, the bytes of its file, a PIL image, a `PreparedImage`, or the
                InputError with which reading failed. A `PreparedImage` must have the preprocessings
                of the first stage of this ensemble's `spec`.

        Returns:
            One result for each image, in the same order.
        """
        return self._score_images(zip(repeat(0), images, strict=False), repeat((None, None)))

    def twin(self) -> "Ensemble":
        """Return a copy for another thread. It shares the weights in memory with this ensemble."""
        shared: dict[int, Any] = {id(self._decoder.careful): self._decoder.careful}
        for network in (detector.network for detector in self._loaded.by_name.values()):
            shared |= {
                id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())
            }
        other = self._copy()
        other._lock = threading.RLock()
        # The objects in the memo are shared, not copied.
        other._scorer = copy.deepcopy(self._scorer, shared)
        return other

    def _with_batch_size(self, size: int) -> "Ensemble":
        """Return an ensemble of the same detectors with another batch size, for one call."""
        other = self._copy()
        other._set_up(replace(self.spec, slots=size), StageClock())
        return other

    def _copy(self) -> "Ensemble":
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__
        return other

    def __reduce__(self) -> tuple[object, ...]:
        return (
            partial(type(self), image_column=self._image_column, accept_licences=self._accepted),
            (self.spec,),
        )

    def __call__(self, images: Any) -> Any:
        """Score a batch of Ray Data's `map_batches` or of `datasets.Dataset.map(…, batched=True)`.

        The new columns are `status`, `finding`, `verdict`, `probability`, `score`, and
        `score_<detector>`. If the ensemble has an identifier, it adds `predicted_generator` and
        `generator_probability`. If it has a describer, it adds `predicted_prompt` and
        `prompt_likelihood`.

        Args:
            images: A mapping of column names to columns. Any other value is passed to `score`. The
                images are in the column `image_column`. If that is not set, they are in `bytes` or
                `image`, or else in the only column whose first value is an image.

        Returns:
            For a dict, its columns and the new ones. For any other mapping, only the new ones. For
            any other value, the return value of `score`.

        Raises:
            ConfigError: No column has images.
        """
        if not isinstance(images, Mapping) or image_inputs.is_picture(images):
            return self.score(images)
        columns = self._score_columns(image_inputs.find_image_column(images, self._image_column))
        if not isinstance(images, dict):
            return columns
        has_arrays = any(isinstance(column, np.ndarray) for column in images.values())
        arrays = {
            name: np.array(column, object if name in _TEXT_COLUMNS else np.float64)
            for name, column in columns.items()
        }
        return {**images, **(arrays if has_arrays else columns)}

    def _score_columns(self, images: Any) -> dict[str, list[Any]]:
        results = list(self._stream(image_inputs.list_sources(images).sources))
        columns: dict[str, list[Any]] = {"status": [scored.status.value for scored in results]}
        names: tuple[str, ...] = ("finding", "verdict", "probability", "score")
        names += ("predicted_generator", "generator_probability") if self.spec.identifier else ()
        names += ("predicted_prompt", "prompt_likelihood") if self.spec.describer else ()
        columns |= {name: [getattr(scored, name) for scored in results] for name in names}
        return columns | {
            f"score_{name}": [scored.scores[name] for scored in results] for name in self.spec.cards
        }

    def _stream(
        self,
        sources: Iterator[image_inputs.ImageSource],
        count: int | None = None,
        *,
        progress: bool = False,
    ) -> Iterator[result.Result]:
        """Yield results: the first after one batch, then after up to `_MAX_BATCHES` batches."""
        names, batches = SourceList(), 1
        images = self._inputs.read_all(sources, names)
        with (
            _make_progress_bar(self.spec.ensemble.name, count) if progress else nullcontext() as bar
        ):
            while True:
                results = self._score_images(islice(images, batches * self.spec.slots), names)
                names.clear()
                for scored in results:
                    if bar is not None:
                        bar.update()
                    yield scored
                if len(results) < batches * self.spec.slots:
                    return
                batches = min(2 * batches, _MAX_BATCHES)

    def _score_images(
        self, images: LoadedImages, sources: Iterable[tuple[str | int | None, Any]]
    ) -> list[result.Result]:
        """Score images in order, and log a failure that is a bug in Touchstone.

        `sources` has for each image its name and the image for display, and may grow while `images`
        is read. Raises DetectorError on a GPU in a fork of the process that loaded the ensemble.
        """
        if self._pid != os.getpid() and self.spec.device.startswith("cuda"):
            raise DetectorError(
                f"a forked process cannot use {self.spec.device} with the ensemble of its parent",
                hint="load the ensemble in each process, and start processes with spawn, not fork",
            )
        device_batches.limit_threads_after_fork()
        outcomes = list[DecodeResult]()
        with self._lock:
            outputs = self._scorer.score(self._decode_batches(images, outcomes))
            block = decision.judge(self.spec, outcomes, outputs)
        decisions, masks = block.decisions, block.outputs.get(decision.MASKS)
        has_profile = block.identified is not None or bool(block.outputs.get(decision.CAPTIONS))
        results = []
        for row, (outcome, (source, picture)) in enumerate(
            zip(block.outcomes, sources, strict=False)
        ):
            if outcome.failure is not None:
                _log.error(
                    "image %s: this is a bug in Touchstone; please report it\n%s",
                    source,
                    outcome.failure,
                )
            verdict = decisions.verdict[row] if outcome.status is Status.OK else None
            finding, grounds = find_origin(outcome.provenance, verdict, block.thresholds)
            origin: dict[str, Any] = {
                "source": source,
                "demonstration": self._is_demonstration,
                "fpr": self.spec.ensemble.thresholds.target_fpr,
                "finding": finding,
                "grounds": grounds,
            }
            scores: dict[str, float | None] = dict.fromkeys(block.scores)
            if outcome.status is not Status.OK:
                missing: tuple[Any, ...] = (
                    None,
                    None,
                    None,
                    decisions.calibrated,
                    None,
                    scores,
                    outcome.facts,
                    {},
                )
                results.append(result.Result(outcome.status, outcome.detail, *missing, **origin))
                continue
            for name, column in block.scores.items():
                scores[name] = decision.finite(column[row])
            results.append(result.Result(
                outcome.status, None, verdict, decisions.reason[row], decision.finite(decisions.probability[row]),
                decisions.calibrated, decision.finite(decisions.score[row]), scores, outcome.facts,
                {name: mask_column[row] for name, mask_column in masks.items()} if masks else {},
                second_look=decisions.second_look[row] if decisions.second_look else None, verdict_detail=decisions.detail[row],
                **_collect_profile(block, row) if has_profile else {}, **origin, picture=picture,
            ))  # fmt: skip
        return results

    def _decode_batches(
        self, images: LoadedImages, outcomes: list[DecodeResult]
    ) -> Iterator[Batch]:
        """Yield one batch at a time, and append the outcomes of its images to `outcomes`.

        No more than one batch is in memory.
        """
        for first in images:
            batch = self._decoder.decode(chain([first], islice(images, self.spec.slots - 1)))
            outcomes += batch.outcomes
            yield self._decoder.complete(batch) if self._is_late else batch


class ImageInputs:
    """Read the images of callers, whether they are paths, URLs, files, or arrays.

    A file over `max_bytes` is rejected.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def resolve(self, inputs: Any) -> image_inputs.ImageSource | image_inputs.ManySources:
        """Return the source of one image, or the sources of many images.

        The items of a list or tuple are checked here. The items of any other iterable are checked
        when they are read. For a URL, a request may be sent to find out whether it is one file or a
        prefix of many. Raises UnknownInputError if the type of an image is not supported, and
        ConfigError if a folder or glob has no file.
        """
        if not isinstance(inputs, str | os.PathLike):
            source = image_inputs.parse_image(inputs, None, keeps=True)
            return image_inputs.list_sources(inputs) if source is None else source
        location = os.fsdecode(inputs)
        scheme = urls.get_scheme(location) if "://" in location else "file"
        if scheme == "file":
            path = urls.local_path(location) if "://" in location else location
            if os.path.isdir(path) or (not os.path.lexists(path) and is_pattern(location)):
                return self._list_files(location)
            return image_inputs.ImageSource(location, location, location)
        name = strip_secrets(location)
        if scheme in WEB:
            data = self.read(location)
            return image_inputs.ImageSource(name, data, data)
        if is_pattern(location) or location.endswith("/"):
            return self._list_files(location)
        data = self.read(location)
        if isinstance(data, InputError):
            # If there are no files below the URL either, the error of the first request is kept.
            with suppress(ConfigError, StorageError):
                if next(list_objects(location)).uri != name:
                    return self._list_files(location)
        return image_inputs.ImageSource(name, data, data)

    def read(self, value: Any) -> File | PreparedImage | InputError:
        """Return the bytes or the pixels of an image, or the error if the image cannot be read."""
        if isinstance(value, bytes | PreparedImage | InputError):
            return value
        try:
            if isinstance(value, str):
                return self._read_url(value) if "://" in value else self._read_path(value)
            if isinstance(value, Image.Image):
                return image_inputs.load_image(value)
            if hasattr(value, "read"):
                return self._read_file(value)
            return (
                bytes(value)
                if isinstance(value, bytearray | memoryview)
                else image_inputs.read_array(value)
            )
        except InputError as error:
            return error

    def read_all(
        self, sources: Iterable[image_inputs.ImageSource], names: SourceList
    ) -> LoadedImages:
        """Read all sources, and yield pairs for `BatchDecoder.decode` in order.

        A pair is an image id, which is always 0 here, and the image, or the error if it cannot be
        read. Before that, the source's `name` and its `picture`, an image or path for display, are
        appended to `names`. If the first source is on another machine, several sources are read at
        the same time.
        """
        remaining = iter(sources)
        first = next(remaining, None)
        if first is None:
            return
        all_sources = chain([first], remaining)
        if not isinstance(first.value, str) or "://" not in first.value:
            for source in all_sources:
                names.append((source.name, source.picture))
                yield 0, self.read(source.value)
            return
        started = deque[image_inputs.ImageSource]()

        def jobs() -> Iterator[tuple[int, Any]]:
            for source in all_sources:
                started.append(source)
                yield _EXPECTED_BYTES, lambda _, value=source.value: self.read(value)

        for data in fetch.read_ahead(jobs(), depth_bytes=_AHEAD_BYTES, threads=_THREADS):
            source = started.popleft()
            names.append((source.name, source.picture))
            yield 0, data

    def _read_path(self, path: str) -> bytes:
        try:
            with open(path, "rb", buffering=0) as file:
                facts = os.fstat(file.fileno())
                if not stat.S_ISREG(facts.st_mode):
                    raise InputError(Status.SOURCE_DENIED, f"{path} is not a regular file")
                if facts.st_size > self._max_bytes:
                    raise errors.make_too_large_error(facts.st_size, self._max_bytes)
                data = file.read()
        except IsADirectoryError:
            reason = "this is a folder; to score all files in it, pass it alone, as score(FOLDER)"
            raise InputError(Status.UNSUPPORTED_FORMAT, reason) from None
        except OSError as error:
            raise errors.translate(error, path) from error
        except ValueError as error:  # Such as a text with a null character.
            raise InputError(Status.SOURCE_MISSING, f"{path!r}: {describe_error(error)}") from None
        return attach_sidecar(data, path)

    def _read_url(self, url: str) -> bytes:
        if urls.get_scheme(url) == "file":
            try:
                path = urls.local_path(url)
            except ConfigError as error:
                raise InputError(Status.SOURCE_MISSING, error.message) from None
            return self._read_path(path)
        return Fetcher(signed=[url]).fetch(url, "", self._max_bytes)

    def _read_file(self, file: Any) -> bytes:
        """Read the whole file as Pillow does: from the beginning if it can be rewound."""
        try:
            if callable(getattr(file, "seekable", None)) and file.seekable():
                file.seek(0)
            data = file.read(self._max_bytes + 1)
        except (OSError, ValueError) as error:
            raise InputError(
                Status.SOURCE_DENIED, f"the file cannot be read: {describe_error(error)}"
            ) from None
        if len(data) > self._max_bytes:
            raise errors.make_too_large_error(len(data), self._max_bytes)
        return bytes(data)

    def _list_files(self, location: str) -> image_inputs.ManySources:
        """Return the sorted files of a folder or glob, and folders that cannot be listed.

        Raises ConfigError if there is no file, or `Dataset.save_to_disk` wrote the folder.
        """
        objects = list_objects(location)
        first = next(objects)
        refuse_saved_dataset(strip_secrets(canonicalize(location)), first.uri)
        sources = (
            image_inputs.ImageSource(info.uri, info.error, None)
            if isinstance(info, ClosedFolder)
            else image_inputs.make_source(info.uri)
            for info in chain([first], objects)
        )
        return image_inputs.ManySources(sources, None)


def _collect_profile(scored: decision.BlockResult, row: int) -> dict[str, Any]:
    """Return the generator and the prompt of one image, by the names of a result's fields."""
    captions = scored.outputs.captions
    caption = captions[row] if captions else None
    fields: dict[str, Any] = {}
    if caption is not None:
        fields = {"predicted_prompt": caption.text, "prompt_likelihood": caption.likelihood}
    generator = None if scored.identified is None else scored.identified.name_image(row)
    return fields if generator is None else fields | generator._asdict()


def load_ensemble(name_or_path: str | Path = "default", **options: Any) -> Ensemble:
    """Load an ensemble of detectors, and return an `Ensemble` that scores images.

    Args:
        name_or_path: The name of a shipped ensemble, or the path of its card, a YAML file that
            describes an ensemble.
        **options: Keyword arguments of `Ensemble`.

    Returns:
        The ensemble with its weights loaded.

    Examples:
        >>> ensemble = load_ensemble("default", device="auto")
        >>> ensemble.score("photo.jpg").verdict
        'real'

    Raises:
        ConfigError: No ensemble has this name.
        DetectorError: Weights are missing, or a licence is not accepted.
    """
    return Ensemble(name_or_path, **options)


def load_detector(name_or_path: str | Path, **options: Any) -> Ensemble:
    """Load one detector as an ensemble that separates `real` from `fake` at log-odds 0.

    Args:
        name_or_path: The name of a shipped detector, or the path of its card, a YAML file that
            describes a detector.
        **options: Keyword arguments of `Ensemble`.

    Returns:
        The detector with its weights loaded.

    Examples:
        >>> detector = load_detector("NAME")  # See list_detectors().
        >>> detector.score("photo.jpg").score

    Raises:
        ConfigError: No detector has this name.
        DetectorError: Weights are missing, or a licence is not accepted.
    """
    return Ensemble(build_ensemble([str(name_or_path)]), **options)


def _make_progress_bar(name: str, count: int | None) -> Any:
    from tqdm.auto import tqdm  # It draws a line on a terminal, and a widget in a notebook.

    return tqdm(total=count, desc=name, unit=" images", unit_scale=False)


def _validate_batch_size(batch_size: int | None) -> int:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    return batch_size
