"""Define the data that decoding passes to detectors.

A `Batch` has a result per member and fixed slots of pixels, also for perturbed views. Images that
keep their size may stay encoded (`EncodedImages`).
"""

import logging
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_app.detectors import Preprocessing
from ray_app.errors import InputError, Status, describe_error, is_image_error, one_line
from ray_app.images import DecodeCost, DecodedImage, ImageFileFacts
from ray_app.transforms.perturbations import Perturbation, seed_of

_log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Ragged = Sequence[Pixels | None]
# The images of a batch in one preprocessing.
BatchTensor: TypeAlias = "Pixels | Ragged | EncodedImages"
Size = tuple[int, int]
File = bytes | Image.Image  # An image as the caller passed it.
MemberFile = tuple[int, File]  # Image id and file. The id is 0 if the ids are not known.
# Names of counts, each followed by the name of a backbone.
RUNS, REQUESTED = "runs of backbone ", "asked of backbone "
# Names of counts, each followed by the name of a detector: images that it scored, in every view;
# microseconds that it took for them; and microseconds that it would have taken alone, which include
# the run of a shared backbone that an earlier detector started.
SEEN, ELAPSED_US, ALONE_US = "images seen by ", "microseconds of ", "microseconds alone of "
# Counts of members that were decoded again, and of the milliseconds for it.
RESCORED, RESCORED_MS = "looked_again", "looked_again_ms"
DESCRIBED = "described"  # The count of members that got a caption.
# The detail of a member begins with this text if a bug in Touchstone made it fail.
OWN_FAILURE = "Touchstone's own code failed: "


@dataclass(frozen=True)
class DecodeResult:
    """The result of decoding one member.

    Attributes:
        status: `ok`, or the reason why the member has no pixels.
        detail: Numbers and names that explain the status.
        facts: Properties of the file. None if they are unknown.
        provenance: What the file states about its origin, as JSON. None if the spec does not read
            it, or if the file states nothing.
        failure: The traceback, if a bug in Touchstone made the member fail.
    """

    status: Status
    detail: str | None
    facts: ImageFileFacts | None
    provenance: str | None = None
    failure: str | None = None

    @classmethod
    def from_failure(cls, error: Exception, facts: ImageFileFacts | None) -> "DecodeResult":
        """Return the result for a member that failed because of a bug in Touchstone.

        Of its facts only the hash and the format are kept.
        """
        identity = None if facts is None else ImageFileFacts(facts.sha256, facts.format)
        trace = "".join(traceback.format_exception(error))
        return cls(
            Status.DECODER_CRASHED,
            one_line(OWN_FAILURE + describe_error(error)),
            identity,
            failure=trace,
        )


@dataclass(frozen=True)
class PerturbedBatch:
    """A batch as one perturbation shows it.

    Attributes:
        pixels: As in `Batch`; images that keep their size are always encoded.
        sizes: Per member the (width, height) of the perturbed image before it was prepared, or
            None.
    """

    pixels: tuple[BatchTensor, ...]
    sizes: tuple[Size | None, ...]


@dataclass(frozen=True)
class Batch:
    """Fixed slots of decoded images.

    Attributes:
        outcomes: One result per member, in slot order. Only the last batch of a block has fewer
            members than slots.
        pixels: For each distinct preprocessing, one (slots, H, W, 3) array with zeros in unusable
            slots. If sizes are kept, one array or None per slot, or `EncodedImages`. Empty if no
            member could be decoded.
        sizes: The (width, height) of each member that has pixels, else None.
        encoded: The files, for detectors that keep sizes in another process and for the second
            stage. None for a file that does not decode.
        views: One for each view of the spec. Empty if `pixels` is empty.
        ids: The image ids of the members, if files are kept in the process that decoded them.
    """

    outcomes: tuple[DecodeResult, ...]
    pixels: tuple[BatchTensor, ...]
    sizes: tuple[Size | None, ...]
    encoded: tuple[File | None, ...] = ()
    views: tuple[PerturbedBatch, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """The memory of the pixels in all views and of the files, in bytes."""
        tensors = chain(self.pixels, *(view.pixels for view in self.views))
        total = sum(count_file_bytes(file) for file in self.encoded if file is not None)
        for tensor in tensors:
            if isinstance(tensor, np.ndarray):
                total += tensor.nbytes
            elif not isinstance(tensor, EncodedImages):
                total += sum(image.nbytes for image in tensor if image is not None)
        return total

    @property
    def files(self) -> list[MemberFile | None]:
        """The files of the members that are decoded again, None for the others."""
        ids = self.ids or (0,) * len(self.outcomes)
        files = self.encoded or (None,) * len(self.outcomes)
        return [
            None if file is None else (image_id, file)
            for image_id, file in zip(ids, files, strict=True)
        ]


def count_file_bytes(file: File) -> int:
    """Return the memory of an encoded file, or of an image that the caller decoded, in bytes."""
    return len(file) if isinstance(file, bytes) else 3 * file.width * file.height


def join_batches(batches: Sequence[Batch], slots: int) -> list[Batch]:
    """Join batches of `slots` images into one batch with the slots of all of them.

    The batches are returned as they are if an image keeps its size, or if a batch has no pixels.
    Files and ids stay with the original batches.
    """
    is_full = all(batch.pixels and len(batch.outcomes) == slots for batch in batches[:-1]) and bool(
        batches[-1].pixels
    )
    by_batch: list[list[Any]] = [[batch, *batch.views] for batch in batches]
    tensors = chain.from_iterable(view.pixels for views in by_batch for view in views)
    if (
        len(batches) == 1
        or not is_full
        or not all(isinstance(tensor, np.ndarray) for tensor in tensors)
    ):
        return list(batches)
    clean, *views = (
        PerturbedBatch(
            tuple(
                np.concatenate(arrays)
                for arrays in zip(*(part.pixels for part in view), strict=True)
            ),
            tuple(size for part in view for size in part.sizes),
        )
        for view in zip(*by_batch, strict=True)
    )
    return [
        Batch(
            tuple(outcome for batch in batches for outcome in batch.outcomes),
            clean.pixels,
            clean.sizes,
            views=tuple(views),
        )
    ]


# Codecs raise these for an image that they cannot encode. Pillow's check for decompression bombs
# also applies to images that this process has just encoded.
CODEC_ERRORS = (OSError, ValueError, RuntimeError, Image.DecompressionBombError)


@dataclass(frozen=True)
class PreparedViews:
    """One prepared image of a batch.

    Attributes:
        tensors: One tensor per preprocessing. None if the tensor could not be prepared.
        views: The size and the tensors of each view. None if the view could not be prepared.
    """

    tensors: list[Pixels | None]
    views: list["tuple[Size, Sequence[Pixels | None]] | None"]


def apply_view(view: Perturbation, image: DecodedImage) -> Image.Image | None:
    """Return the image under a view, or None if a codec fails. Every call gives the same image.

    Raises:
        MemoryError: It is raised, because the available memory must not decide which images have a
            score.
    """
    try:
        return view.apply(image.pixels, seed_of(image.facts.sha256, view.name))
    except CODEC_ERRORS:
        return None


class DetectorInput(NamedTuple):
    """A preprocessing and the detectors that read its images.

    Attributes:
        preprocessing: How images are prepared.
        shape: (height, width), or None if images keep their size.
        detectors: Names of the detectors.
        is_described: Whether the describer sees the images, whatever their size.
    """

    preprocessing: Preprocessing
    shape: tuple[int, int] | None
    detectors: tuple[str, ...]
    is_described: bool


class ImageDecoder(Protocol):
    """Opens encoded images, and prepares them for detectors (`BatchDecoder`)."""

    def open_file(self, image_id: int, data: File) -> AbstractContextManager[DecodedImage]:
        """Decode one image. The block raises InputError if the image is rejected."""

    def prepare(self, target: DetectorInput, image: Image.Image) -> Pixels | None:
        """Prepare an image for detectors, or return None if none of them scores it."""


# Pixels of decoded images that are kept while their views are read. This is the number that goes
# through a network together. One larger image is kept, too.
KEPT_PIXELS = 2**23


class BatchImages:
    """Images of a batch that are decoded from their files, once for all their views.

    A large image is decoded for each view, since its turn on the node ends with the block that
    reads it.

    Args:
        decoder: Decodes the files, and counts them.
        files: (image_id, file) per slot, None if there is no file.
        max_kept_pixels: Pixels of decoded images that are kept. One image may exceed the limit.
    """

    def __init__(
        self,
        decoder: ImageDecoder,
        files: Sequence[MemberFile | None],
        *,
        max_kept_pixels: float,
    ) -> None:
        self._decoder, self._files, self._max_kept_pixels = decoder, files, max_kept_pixels
        self._cache: OrderedDict[int, DecodedImage] = OrderedDict()

    def keep(self, slot: int, image: DecodedImage) -> None:
        """Keep a decoded image as the last to be dropped, unless it is large."""
        if is_large(image) or not self._max_kept_pixels:
            return
        self._cache[slot] = image
        self._cache.move_to_end(slot)
        while len(self._cache) > 1 and self._cached_pixels > self._max_kept_pixels:
            self._cache.popitem(last=False)

    @contextmanager
    def open(self, slot: int) -> Iterator[DecodedImage | None]:
        """Yield the image in a slot, None if there is no file. Raises InputError."""
        cached, file = self._cache.get(slot), self._files[slot]
        if cached is not None or file is None:
            if cached is not None:
                self.keep(slot, cached)
            yield cached
            return
        with self._decoder.open_file(*file) as image:
            self.keep(slot, image)
            yield image

    @property
    def _cached_pixels(self) -> int:
        return sum(image.pixels.width * image.pixels.height for image in self._cache.values())


class EncodedImages:
    """The images of a batch in one preprocessing and one view, decoded when they are read.

    Args:
        decoder: Decodes and prepares the images.
        images: The files of the batch.
        target: The preprocessing and its detectors.
        view: The perturbation. None is the clean image.
    """

    def __init__(
        self,
        decoder: ImageDecoder,
        images: BatchImages,
        target: DetectorInput,
        view: Perturbation | None = None,
    ) -> None:
        self._decoder, self._images, self._target, self._view = decoder, images, target, view

    def complete(self, slots: Sequence[int]) -> dict[int, Pixels]:
        """Decode and prepare the images in some slots, one at a time.

        Returns:
            Arrays by slot, without images that no detector scores or that cannot be prepared.
        """
        prepared = {}
        for slot in slots:
            pixels = self._prepare(slot)
            if pixels is not None:
                prepared[slot] = pixels
        return prepared

    def _prepare(self, slot: int) -> Pixels | None:
        try:
            with self._images.open(slot) as image:
                if image is None:
                    return None
                pixels = image.pixels if self._view is None else apply_view(self._view, image)
                return None if pixels is None else self._decoder.prepare(self._target, pixels)
        except InputError:
            return None  # It decoded before. An image that fails now has no score of this detector.
        except Exception as error:
            if not is_image_error(error):
                raise
            _log.exception("cannot prepare a decoded image: the detector gives no score")
            return None


def images_at(images: Pixels | Ragged | EncodedImages, slots: Sequence[int]) -> dict[int, Pixels]:
    """Return the images in some slots of a batch that keeps sizes, without missing images."""
    if isinstance(images, EncodedImages):
        return images.complete(slots)
    return {slot: image for slot in slots if (image := images[slot]) is not None}


def is_large(image: DecodedImage) -> bool:
    """Return whether a decoded image needs a turn on its node because of its size alone."""
    return DecodeCost(image.pixels.width * image.pixels.height, 0).is_large
