"""Define the data that decoding passes to detectors.

A `Batch` has one decoding result for each member, which is one file of an archive. It also has
arrays of pixels with a fixed number of slots: one array for the images as they are, and one for
each perturbed view, such as the images after JPEG compression. Images that are not resized for a
detector may stay encoded (`EncodedImages`).
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
    """The result of decoding one member, which is one file of an archive.

    Attributes:
        status: `ok`, or the reason why the member has no pixels, such as `corrupt_image`.
        detail: Text with the numbers and names that explain the status, or None.
        facts: Properties of the file. None if they are unknown.
        provenance: What the file states about its origin, as JSON. None if the `ScoringSpec` does
            not request it, or if the file states nothing.
        failure: The traceback, if a bug in Touchstone made decoding fail. Otherwise None.
    """

    status: Status
    detail: str | None
    facts: ImageFileFacts | None
    provenance: str | None = None
    failure: str | None = None

    @classmethod
    def from_failure(cls, error: Exception, facts: ImageFileFacts | None) -> "DecodeResult":
        """Return the result for a file that a bug in Touchstone prevented from being decoded.

        The status is DECODER_CRASHED. Only the hash and the format of `facts` are kept.
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
    """The images of a batch after one perturbation, such as JPEG compression.

    Attributes:
        pixels: For each distinct preprocessing of detectors, one (slots, H, W, 3) array.
            `EncodedImages` if the preprocessing does not resize.
        sizes: For each file of the batch, the (width, height) of the perturbed image before it was
            resized for detectors. None for an image that could not be perturbed.
    """

    pixels: tuple[BatchTensor, ...]
    sizes: tuple[Size | None, ...]


@dataclass(frozen=True)
class Batch:
    """Decoded images in a fixed number of slots, which are the rows of the arrays.

    A member is one file of an archive. A block is a group of members that one task scores, and is
    divided into batches. Member i of a batch is in slot i.

    Attributes:
        outcomes: The decoding result of each member. Only the last batch of a block has fewer
            members than slots.
        pixels: For each distinct preprocessing, one (slots, H, W, 3) array, with zeros in slots
            without an image. If the preprocessing does not resize, one array per slot (None without
            an image), or `EncodedImages`, which decodes on demand. Empty if no member could be
            decoded.
        sizes: The (width, height) of each member that has pixels, else None.
        encoded: For each member, its file if it is decoded again later, else None. Files are needed
            by detectors that read images in their own size. A cascade also needs files, because its
            second stage scores some images again. Empty if the decoder passes on no files.
        views: The images after each perturbation that the spec requests. Empty if `pixels` is
            empty.
        ids: The image ids of the members. Empty if the ids are unknown.
    """

    outcomes: tuple[DecodeResult, ...]
    pixels: tuple[BatchTensor, ...]
    sizes: tuple[Size | None, ...]
    encoded: tuple[File | None, ...] = ()
    views: tuple[PerturbedBatch, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """The memory of the batch in bytes: the pixels in all views, and the encoded files."""
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
        """For each member (a file of an archive), the pair of its image id and its file.

        None if the file is not decoded again later. The image id is 0 if it is unknown.
        """
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
    """Join decoded batches, so that a network processes their images in one forward pass.

    The joined batch has neither files nor ids.

    Args:
        batches: Batches of up to `slots` images each.
        slots: The fixed number of images per batch.

    Returns:
        A list with only the joined batch. If the batches cannot be joined, the list has the batches
        unchanged. They cannot be joined if a preprocessing does not resize its images, if a batch
        has no pixels, or if a batch before the last one is not full.
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
    """The prepared tensors of one image: unperturbed, and after each requested perturbation.

    Attributes:
        tensors: One tensor of the unperturbed image per preprocessing. None if the image is to be
            prepared later, or if no detector reads images of its size.
        views: For each perturbation, a pair: the (width, height) of the perturbed image, and its
            tensors. The pair is None if the image could not be perturbed or prepared. A tensor is
            None if its preprocessing does not resize.
    """

    tensors: list[Pixels | None]
    views: list["tuple[Size, Sequence[Pixels | None]] | None"]


def apply_view(view: Perturbation, image: DecodedImage) -> Image.Image | None:
    """Return an image after a perturbation, or None if a codec cannot encode the image.

    Random perturbations use a seed from the file's hash, so each call returns the same pixels.

    Raises:
        MemoryError: Memory runs out. The function does not return None in this case, because the
            available memory must not decide which images have a score.
    """
    try:
        return view.apply(image.pixels, seed_of(image.facts.sha256, view.name))
    except CODEC_ERRORS:
        return None


class DetectorInput(NamedTuple):
    """A preprocessing, and the detectors that read the images which it prepares.

    Attributes:
        preprocessing: How images are resized and cropped for the detectors.
        shape: (height, width) of a prepared image, or None if images are not resized.
        detectors: Names of the detectors.
        is_described: Whether the describer, which guesses the prompt of an image, also reads the
            prepared images. Images are then prepared even if no detector scores images of their
            size.
    """

    preprocessing: Preprocessing
    shape: tuple[int, int] | None
    detectors: tuple[str, ...]
    is_described: bool


class ImageDecoder(Protocol):
    """An object that decodes images and prepares them for detectors, such as `BatchDecoder`."""

    def open_file(self, image_id: int, data: File) -> AbstractContextManager[DecodedImage]:
        """Return a context manager that yields the decoded image.

        Entering it raises InputError if the image is rejected.
        """

    def prepare(self, target: DetectorInput, image: Image.Image) -> Pixels | None:
        """Prepare an image for the detectors of `target`.

        Args:
            target: The preprocessing and its detectors.
            image: The RGB image.

        Returns:
            The (height, width, 3) pixels. None if nothing in `target` reads images of this size.
        """


# Pixels of decoded images that are kept while their views are read. This is the number that goes
# through a network together. One larger image is kept, too.
KEPT_PIXELS = 2**23


class BatchImages:
    """The encoded files of a batch, with a cache of decoded images.

    Detectors read an image once unperturbed, and once after each perturbation. The cache avoids
    decoding it each time. An image of over 50 million pixels is not kept, but decoded again. The
    reason is that it takes memory from a budget that all processes of the node share.

    Args:
        decoder: Decodes the files, and counts them.
        files: (image_id, file) per slot, None if there is no file.
        max_kept_pixels: Maximum number of pixels of decoded images that are kept. One image may
            exceed the limit. 0 keeps no image.
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
        """Keep a decoded image in the cache as the most recently used one.

        An image of over 50 million pixels is not kept. With `max_kept_pixels` 0, no image is kept.
        """
        if is_large(image) or not self._max_kept_pixels:
            return
        self._cache[slot] = image
        self._cache.move_to_end(slot)
        while len(self._cache) > 1 and self._cached_pixels > self._max_kept_pixels:
            self._cache.popitem(last=False)

    @contextmanager
    def open(self, slot: int) -> Iterator[DecodedImage | None]:
        """Yield the decoded image at a position (slot) of the batch, as a context manager.

        It yields None if the batch keeps no file at this position. Entering the `with` block raises
        InputError if the image is rejected.
        """
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
    """The images of a batch for one preprocessing, each decoded only when a detector reads it.

    An `EncodedImages` is in `Batch.pixels` in place of an array if the preprocessing does not
    resize. Images in their original size may be too large to keep all of them decoded.

    Args:
        decoder: Prepares the images for the detectors.
        images: The files of the batch.
        target: The preprocessing, and the detectors that read its images.
        view: The perturbation to apply before the preprocessing. None for the unperturbed images.
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
        """Decode and prepare the images at the given positions (slots) of the batch, one by one.

        Returns:
            Prepared images by slot. Images that no detector scores or that cannot be prepared are
            left out.
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
            _log.exception(
                "cannot prepare a decoded image for a detector: the image gets no score of it"
            )
            return None


def images_at(images: Pixels | Ragged | EncodedImages, slots: Sequence[int]) -> dict[int, Pixels]:
    """Return the prepared images at some slots of a batch, and decode them if necessary.

    Args:
        images: An entry of `Batch.pixels`: the images of the batch for one preprocessing.
        slots: The positions of the images in the batch.

    Returns:
        The images by slot. Missing images are left out.
    """
    if isinstance(images, EncodedImages):
        return images.complete(slots)
    return {slot: image for slot in slots if (image := images[slot]) is not None}


def is_large(image: DecodedImage) -> bool:
    """Return whether an image has over 50 million pixels.

    Decoding such an image waits until the memory budget of the node has space for it.
    """
    return DecodeCost(image.pixels.width * image.pixels.height, 0).is_large
