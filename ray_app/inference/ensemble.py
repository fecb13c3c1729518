"""The ensemble as a Python object (`load_ensemble`): images in, in whatever form, verdicts out; no
cluster, no files written.
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

from ray_app.detectors import DetectorCard, licences
from ray_app.ensembles import (
    EnsembleCard,
    choose_operating_point,
    ensemble_of,
    find,
    load_ensemble_card,
)
from ray_app.errors import ConfigError, InputError, Status, StorageError, describe_error
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

# that are scored before their results are handed out: a GPU is waited for once for all of them
_MOST_BATCHES = 8
_TEXTS = ("status", "finding", "verdict", "predicted_generator", "predicted_prompt")
# of files on other machines that are read before they are wanted
_AHEAD_BYTES, _EXPECTED_BYTES, _THREADS = 64 * 2**20, 2 * 2**20, 16

# numbers are for decoders that know images by one: 0
Arriving = Iterator[tuple[int, File | PreparedImage | InputError]]
# the name of each image, and what it can be drawn from
Sources = list[tuple[str | int | None, Any]]


class Ensemble:
    """Score images with an ensemble of detectors on one device.

    Several threads may share an ensemble; it scores one call at a time. Give each thread a `twin`
    to score in parallel. A pickled ensemble loads its weights again.

    Args:
        name_or_path: The name of a shipped ensemble, the path of a card, or a card.
        fpr: Decide at the operating point of the card for this false-positive rate, such as 0.05.
            Defaults to the thresholds of the card.
        device: `cpu`, `cuda`, `cuda:0`, or `auto` for a GPU if one is available.
        precision: `bf16`, `fp32`, or `auto` for the settings of the card and the device.
        resize: `exact`, `fast`, or `auto` for the settings of the card.
        limits: Limits on the size of an image.
        batch_size: Images per forward pass. Defaults to 4 on a CPU and 64 on a GPU.
        image_column: The column of a batch that has the images. Found if it is not given.
        accept_licences: Detectors, or licences, whose terms you accept.
        waive_guarantee: Keep verdicts that the guarantee of the card does not cover.
        provenance: How to read what a file states about its origin.
        children: Processes that decode the images. Defaults to the current process.

    Raises:
        ConfigError: No ensemble has this name, or its card has no operating point for `fpr`.
        DetectorError: Weights are missing, or a licence is not accepted.
    """

    def __init__(
        self,
        name_or_path: str | Path | EnsembleCard | spec.ScoringSpec = "default",
        *,
        fpr: float | None = None,
        device: str = "auto",
        precision: spec.RequestedPrecision = "auto",
        resize: spec.RequestedResize = "auto",
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
                card, device=device_batches.found_device(device), precision=precision, resize=resize, limits=limits or BatchLimits(),
                slots=None if batch_size is None else _checked(batch_size), waive_guarantee=waive_guarantee,
                provenance=(provenance or ProvenanceConfig()).policy(),
            )  # fmt: skip
        for detector in self.spec.cards.values():
            licences.require_accepted(detector, accept_licences)
        decision.require_embeddings(self.spec)
        self._image_column, self._accepted = image_column, tuple(accept_licences)
        self._inputs, self._lock = ImageInputs(self.spec.limits.max_bytes), threading.RLock()
        self._is_demonstration = any(
            detector.demonstration for detector in self.spec.cards.values()
        )
        clock = StageClock()
        # Beside others of its kind large images take turns, as in a run; but none is too large for
        # the caller's machine.
        most = max(node_budget.budget_of(node_budget.node_memory()), worst_bytes(self.spec.limits))
        budget = node_budget.NodeBudget(decoder.BUDGET, most)
        self._careful = decoder.CarefulDecoder(
            self.spec.limits, None, decoder.WALL_LIMIT_S, budget, children=children
        )
        self._is_late = children is not None  # what keeps its size is decoded when it is read
        self._describing = scorer.Describing(self.spec, clock) if self.spec.describer else None
        self._loaded = scorer.LoadedDetectors(self.spec)
        self._set_up(self.spec, clock)

    def _set_up(self, wanted: spec.ScoringSpec, clock: StageClock) -> None:
        """Decode and score by a spec that may differ in the size of batches from the one that
        detectors were loaded by.
        """
        self.spec = wanted
        self._decoder, self._scorer = worker.open_scorer(
            wanted,
            wanted.device,
            clock,
            careful=self._careful,
            hand_over=self._is_late,
            loaded=self._loaded,
            describing=self._describing,
        )

    @property
    def cards(self) -> Mapping[str, DetectorCard]:
        """The detector cards by name."""
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

        One image is a path or URL, the bytes of a file, a binary file, a PIL image, a uint8 array
        or tensor, or a dict with `bytes` or `path`. Many images are a folder, a glob, or any
        iterable of these. An image that cannot be scored gives a result with a `status`, never an
        exception.

        Args:
            images: One image, or many images.
            batch_size: Images per forward pass in this call.
            progress: Show a progress bar on stderr, or in a notebook.

        Returns:
            A `Result` for one image. `Results` for many: an iterator that scores as it is read.

        Raises:
            UnknownInputError: The type of an image is not supported. It is a TypeError.
            ConfigError: The folder or glob has no files.
        """
        ensemble = (
            self
            if batch_size in (None, self.spec.slots)
            else self._in_batches_of(_checked(batch_size))
        )
        given = self._inputs.sources(images)
        if isinstance(given, image_inputs.ImageSource):
            return ensemble._scored(
                iter([(0, self._inputs.read(given.given))]), [(given.name, given.picture)]
            )[0]
        stream = ensemble._stream(given.sources, given.total, progress=progress)
        return result.Results(stream, tuple(self.spec.cards), given.total)

    def score_read(self, images: Iterable[Any]) -> list[result.Result]:
        """Score images that were read, all of them before it returns: one result each, in order.

        Args:
            images: Bytes, PIL images, images that a child process prepared for the first stage of
                `spec` (`PreparedImage`), and reasons for missing images (InputError).

        Returns:
            The results, in the order of the images.
        """
        return self._scored(zip(repeat(0), images, strict=False), repeat((None, None)))

    def twin(self) -> "Ensemble":
        """Return an ensemble for another thread that shares the weights in memory."""
        held: dict[int, Any] = {id(self._decoder.careful): self._decoder.careful}
        for network in (detector.network for detector in self._loaded.by_name.values()):
            held |= {
                id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())
            }
        other = self._copied()
        other._lock = threading.RLock()
        # its second argument: what is taken as it is
        other._scorer = copy.deepcopy(self._scorer, held)
        return other

    def _in_batches_of(self, size: int) -> "Ensemble":
        """The same detectors in other batches, for one call."""
        other = self._copied()
        other._set_up(replace(self.spec, slots=size), StageClock())
        return other

    def _copied(self) -> "Ensemble":
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

        The columns are `status`, `finding`, `verdict`, `probability`, `score`, and
        `score_<detector>`. An identifier adds `predicted_generator` and `generator_probability`. A
        describer adds `predicted_prompt` and `prompt_likelihood`.

        Args:
            images: A mapping of columns; anything else is passed to `score`. The images are in
                `image_column`, else in `bytes` or `image`, else in the only column whose first
                value is an image.

        Returns:
            A dict with its own columns and these. Only these for any other mapping.

        Raises:
            ConfigError: No column has images.
        """
        if not isinstance(images, Mapping) or image_inputs.is_picture(images):
            return self.score(images)
        found = self._columns(image_inputs.batch_column(images, self._image_column))
        if not isinstance(images, dict):
            return found
        has_arrays = any(isinstance(column, np.ndarray) for column in images.values())
        as_given = {
            name: np.array(column, object if name in _TEXTS else np.float64)
            for name, column in found.items()
        }
        return {**images, **(as_given if has_arrays else found)}

    def _columns(self, images: Any) -> dict[str, list[Any]]:
        results = list(self._stream(image_inputs.many(images).sources))
        columns: dict[str, list[Any]] = {"status": [one.status.value for one in results]}
        names: tuple[str, ...] = ("finding", "verdict", "probability", "score")
        names += ("predicted_generator", "generator_probability") if self.spec.identifier else ()
        names += ("predicted_prompt", "prompt_likelihood") if self.spec.describer else ()
        columns |= {name: [getattr(one, name) for one in results] for name in names}
        return columns | {
            f"score_{name}": [one.scores[name] for one in results] for name in self.spec.cards
        }

    def _stream(
        self,
        sources: Iterator[image_inputs.ImageSource],
        count: int | None = None,
        *,
        progress: bool = False,
    ) -> Iterator[result.Result]:
        """Results as they come: the first after one batch, later ones after some batches more at a
        time.
        """
        noted, batches = Sources(), 1
        arriving = self._inputs.arriving(sources, noted)
        with _progress_bar(self.spec.ensemble.name, count) if progress else nullcontext() as bar:
            while True:
                found = self._scored(islice(arriving, batches * self.spec.slots), noted)
                noted.clear()
                for one in found:
                    if bar is not None:
                        bar.update()
                    yield one
                if len(found) < batches * self.spec.slots:
                    return
                batches = min(2 * batches, _MOST_BATCHES)

    def _scored(
        self, arriving: Arriving, sources: Iterable[tuple[str | int | None, Any]]
    ) -> list[result.Result]:
        """A result of each; `sources` has names and pictures of as many by the time all have been
        read. A bug of ours is logged.
        """
        outcomes = list[DecodeResult]()
        with self._lock:
            outputs = self._scorer.score(self._batches(arriving, outcomes))
            block = decision.judge(self.spec, outcomes, outputs)
        decisions, masks = block.decisions, block.outputs.of(decision.MASKS)
        has_profile = block.identified is not None or bool(block.outputs.of(decision.CAPTIONS))
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
            finding, grounds = find(outcome.provenance, verdict, block.thresholds)
            origin: dict[str, Any] = {
                "source": source,
                "demonstration": self._is_demonstration,
                "fpr": self.spec.ensemble.thresholds.target_fpr,
                "finding": finding,
                "grounds": grounds,
            }
            scores: dict[str, float | None] = dict.fromkeys(block.scores)
            if outcome.status is not Status.OK:
                nothing: tuple[Any, ...] = (
                    None,
                    None,
                    None,
                    decisions.calibrated,
                    None,
                    scores,
                    outcome.facts,
                    {},
                )
                results.append(result.Result(outcome.status, outcome.detail, *nothing, **origin))
                continue
            for name, column in block.scores.items():
                scores[name] = decision.finite(column[row])
            results.append(result.Result(
                outcome.status, None, verdict, decisions.reason[row], decision.finite(decisions.probability[row]),
                decisions.calibrated, decision.finite(decisions.score[row]), scores, outcome.facts,
                {name: drawn[row] for name, drawn in masks.items()} if masks else {},
                second_look=decisions.second_look[row] if decisions.second_look else None, verdict_detail=decisions.detail[row],
                **_profile(block, row) if has_profile else {}, **origin, picture=picture,
            ))  # fmt: skip
        return results

    def _batches(self, arriving: Arriving, outcomes: list[DecodeResult]) -> Iterator[Batch]:
        """One batch after another, so that no more than one is in memory; what became of each image
        is added to `outcomes`.
        """
        for first in arriving:
            batch = self._decoder.decode(chain([first], islice(arriving, self.spec.slots - 1)))
            outcomes += batch.outcomes
            yield self._decoder.complete(batch) if self._is_late else batch


class ImageInputs:
    """Reads what callers give. `max_bytes`: of one file; what is larger is a refusal."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def sources(self, given: Any) -> image_inputs.ImageSource | image_inputs.ManySources:
        """One image, or many. Of a list or tuple all types are checked here, of any other iterable
        each as it comes. What is at another machine's prefix shows only when one asks whether it is
        one file.

        Raises UnknownInputError for what is not accepted, ConfigError for a folder or glob without
        a file, StorageError for one that cannot be listed.
        """
        if not isinstance(given, str | os.PathLike):
            one = image_inputs.one_image(given, None, keeps=True)
            return image_inputs.many(given) if one is None else one
        place = os.fsdecode(given)
        scheme = urls.scheme_of(place) if "://" in place else "file"
        if scheme == "file":
            path = urls.local_path(place) if "://" in place else place
            if os.path.isdir(path) or (not os.path.lexists(path) and is_pattern(place)):
                return self._listed(place)
            return image_inputs.ImageSource(place, place, place)
        name = strip_secrets(place)
        if scheme in WEB:
            data = self.read(place)
            return image_inputs.ImageSource(name, data, data)
        if is_pattern(place) or place.endswith("/"):
            return self._listed(place)
        data = self.read(place)
        if isinstance(data, InputError):
            # nothing is below it either: what the first answer said stands
            with suppress(ConfigError, StorageError):
                if next(list_objects(place)).uri != name:
                    return self._listed(place)
        return image_inputs.ImageSource(name, data, data)

    def read(self, given: Any) -> File | PreparedImage | InputError:
        """The encoded bytes or the pixels, or why there are none."""
        if isinstance(given, bytes | PreparedImage | InputError):
            return given
        try:
            if isinstance(given, str):
                return self._of_url(given) if "://" in given else self._of_path(given)
            if isinstance(given, Image.Image):
                return image_inputs.loaded_image(given)
            if hasattr(given, "read"):
                return self._of_file(given)
            return (
                bytes(given)
                if isinstance(given, bytearray | memoryview)
                else image_inputs.image_of_array(given)
            )
        except InputError as refused:
            return refused

    def arriving(self, sources: Iterable[image_inputs.ImageSource], noted: Sources) -> Arriving:
        """What was read of every source, in order, once its name and picture are `noted`. Where the
        first source is on another machine, several are read at once.
        """
        waiting = iter(sources)
        first = next(waiting, None)
        if first is None:
            return
        everything = chain([first], waiting)
        if not isinstance(first.given, str) or "://" not in first.given:
            for source in everything:
                noted.append((source.name, source.picture))
                yield 0, self.read(source.given)
            return
        begun = deque[image_inputs.ImageSource]()

        def jobs() -> Iterator[tuple[int, Any]]:
            for source in everything:
                begun.append(source)
                yield _EXPECTED_BYTES, lambda _, given=source.given: self.read(given)

        for data in fetch.read_ahead(jobs(), depth_bytes=_AHEAD_BYTES, threads=_THREADS):
            source = begun.popleft()
            noted.append((source.name, source.picture))
            yield 0, data

    def _of_path(self, path: str) -> bytes:
        try:
            with open(path, "rb", buffering=0) as file:
                facts = os.fstat(file.fileno())
                if not stat.S_ISREG(facts.st_mode):
                    raise InputError(Status.SOURCE_DENIED, f"{path}: not a regular file")
                if facts.st_size > self._max_bytes:
                    raise errors.too_large(facts.st_size, self._max_bytes)
                data = file.read()
        except IsADirectoryError:
            reason = (
                "this is a folder: give it alone, as score(FOLDER), and all files in it are scored"
            )
            raise InputError(Status.UNSUPPORTED_FORMAT, reason) from None
        except OSError as error:
            raise errors.translate(error, path) from error
        except ValueError as error:  # a text that can be no path
            raise InputError(Status.SOURCE_MISSING, f"{path!r}: {describe_error(error)}") from None
        return attach_sidecar(data, path)

    def _of_url(self, url: str) -> bytes:
        if urls.scheme_of(url) == "file":
            try:
                path = urls.local_path(url)
            except ConfigError as error:
                raise InputError(Status.SOURCE_MISSING, error.message) from None
            return self._of_path(path)
        return Fetcher(signed=[url]).fetch(url, "", self._max_bytes)

    def _of_file(self, file: Any) -> bytes:
        """All of it, as Pillow reads it: from its beginning where it can be rewound."""
        try:
            if callable(getattr(file, "seekable", None)) and file.seekable():
                file.seek(0)
            data = file.read(self._max_bytes + 1)
        except (OSError, ValueError) as error:
            raise InputError(
                Status.SOURCE_DENIED, f"the file cannot be read: {describe_error(error)}"
            ) from None
        if len(data) > self._max_bytes:
            raise errors.too_large(len(data), self._max_bytes)
        return bytes(data)

    def _listed(self, place: str) -> image_inputs.ManySources:
        """The files of a folder or glob, sorted, and folders that cannot be listed. Raises
        ConfigError if nothing is there.
        """
        found = list_objects(place)
        sources = (
            image_inputs.ImageSource(info.uri, info.error, None)
            if isinstance(info, ClosedFolder)
            else image_inputs.source_at(info.uri)
            for info in chain([next(found)], found)
        )
        return image_inputs.ManySources(sources, None)


def _profile(scored: decision.BlockResult, row: int) -> dict[str, Any]:
    """Return the generator and the prompt of one image, by the names of a result's fields."""
    captions = scored.outputs.captions
    caption = captions[row] if captions else None
    fields: dict[str, Any] = {}
    if caption is not None:
        fields = {"predicted_prompt": caption.text, "prompt_likelihood": caption.likelihood}
    generator = None if scored.identified is None else scored.identified.name_image(row)
    return fields if generator is None else fields | generator._asdict()


def load_ensemble(name_or_path: str | Path = "default", **options: Any) -> Ensemble:
    """Load an ensemble.

    Args:
        name_or_path: The name of a shipped ensemble, or the path of a card.
        **options: Keyword arguments of `Ensemble`.

    Returns:
        The ensemble with its weights loaded.

    Raises:
        ConfigError: No ensemble has this name.
        DetectorError: Weights are missing, or a licence is not accepted.
    """
    return Ensemble(name_or_path, **options)


def load_detector(name_or_path: str | Path, **options: Any) -> Ensemble:
    """Load one detector as an ensemble, whose verdicts are split at log-odds 0.

    Args:
        name_or_path: The name of a shipped detector, or the path of a card.
        **options: Keyword arguments of `Ensemble`.

    Returns:
        The detector with its weights loaded.

    Raises:
        ConfigError: No detector has this name.
        DetectorError: Weights are missing, or a licence is not accepted.
    """
    return Ensemble(ensemble_of([str(name_or_path)]), **options)


def _progress_bar(name: str, count: int | None) -> Any:
    from tqdm.auto import tqdm  # its own line on a terminal, a widget in a notebook

    return tqdm(total=count, desc=name, unit=" images", unit_scale=False)


def _checked(batch_size: int | None) -> int:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size!r}, and must be a whole number from 1")
    return batch_size
