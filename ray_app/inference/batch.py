"""What decoding hands to detectors: results per member, and fixed slots of pixels (`Batch`), also
of perturbed views. Images that keep their size may stay encoded (`EncodedImages`).
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
from ray_app.errors import InputError, Status, describe_error, is_of_one_image, one_line
from ray_app.images import DecodedImage, Demand, ImageFileFacts
from ray_app.transforms.perturbations import Perturbation, seed_of

_log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Ragged = Sequence[Pixels | None]
# The images of a batch in one preprocessing.
BatchTensor: TypeAlias = "Pixels | Ragged | EncodedImages"
Size = tuple[int, int]
File = bytes | Image.Image  # an image as somebody gave it
MemberFile = tuple[int, File]  # with its image id; 0 if the ids of the batch are not known
# counts, each followed by the backbone's name
RUNS, REQUESTED = "runs of backbone ", "asked of backbone "
# Counts, each followed by a detector's name: images that it looked at, in every view; microseconds
# that it took for them; and that it would have taken alone: with the run of a shared backbone that
# another one before it paid for.
SEEN, SPENT_US, ALONE_US = "images seen by ", "microseconds of ", "microseconds alone of "
# counts: members that were decoded again, and the milliseconds that took
LOOKED, LOOKED_MS = "looked_again", "looked_again_ms"
DESCRIBED = "described"  # a count: members that words were found for
# how the detail of a member begins that met a bug of ours
OWN_FAILURE = "Touchstone's own code failed: "


@dataclass(frozen=True)
class DecodeResult:
    """What became of one member before any detector saw it.

    `provenance`: the JSON of what the file says of its origin, where the spec asks for it and it
    says something. `failure`: the traceback, where our own code failed on it.
    """

    status: Status
    detail: str | None
    facts: ImageFileFacts | None
    provenance: str | None = None
    failure: str | None = None

    @classmethod
    def of_failure(cls, error: Exception, facts: ImageFileFacts | None) -> "DecodeResult":
        """What a bug of ours costs the member that met it; of its facts no more is kept than which
        file it is.
        """
        known = None if facts is None else ImageFileFacts(facts.sha256, facts.format)
        trace = "".join(traceback.format_exception(error))
        return cls(
            Status.DECODER_CRASHED,
            one_line(OWN_FAILURE + describe_error(error)),
            known,
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
    """Fixed slots. Per distinct preprocessing, `pixels` has one (slots, H, W, 3) array with zeros
    in unusable slots; or, if sizes are kept, one array or None per slot, or `EncodedImages`.

    `outcomes` has one entry per member, in slot order; there are fewer than slots only at the end
    of a block. `sizes`: per member the (width, height) of the image where it has pixels, else None.
    `pixels` is empty where no member could be decoded. `encoded`: the files themselves, for
    detectors that keep sizes and sit in another process, and for a second look; None where they do
    not decode. `views`: one for each of the spec's, empty where `pixels` is. `ids`: image ids of
    the members, where files are kept in the process that decoded them.
    """

    outcomes: tuple[DecodeResult, ...]
    pixels: tuple[BatchTensor, ...]
    sizes: tuple[Size | None, ...]
    encoded: tuple[File | None, ...] = ()
    views: tuple[PerturbedBatch, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Memory of the pixels in all views, and of the files."""
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
    """Return the memory of an encoded file, or of an image that somebody else decoded."""
    return len(file) if isinstance(file, bytes) else 3 * file.width * file.height


def joined(batches: Sequence[Batch], slots: int) -> list[Batch]:
    """Batches of `slots`, in order, as one with as many slots as all of them; as they are where an
    image keeps its size, or where one has no pixels at all. Files and ids stay with the batches as
    they were.
    """
    whole = all(batch.pixels and len(batch.outcomes) == slots for batch in batches[:-1]) and bool(
        batches[-1].pixels
    )
    by_batch: list[list[Any]] = [[batch, *batch.views] for batch in batches]
    tensors = chain.from_iterable(shown.pixels for views in by_batch for shown in views)
    if (
        len(batches) == 1
        or not whole
        or not all(isinstance(tensor, np.ndarray) for tensor in tensors)
    ):
        return list(batches)
    clean, *views = (
        PerturbedBatch(
            tuple(
                np.concatenate(arrays)
                for arrays in zip(*(one.pixels for one in shown), strict=True)
            ),
            tuple(size for one in shown for size in one.sizes),
        )
        for shown in zip(*by_batch, strict=True)
    )
    return [
        Batch(
            tuple(outcome for batch in batches for outcome in batch.outcomes),
            clean.pixels,
            clean.sizes,
            views=tuple(views),
        )
    ]


# What codecs raise on an image that they cannot hold; Pillow's check for bombs also stands before
# what we have just encoded ourselves.
CODEC_ERRORS = (OSError, ValueError, RuntimeError, Image.DecompressionBombError)


@dataclass(frozen=True)
class PreparedViews:
    """One image of a batch: a tensor per preprocessing, and the same with its size per view; None
    where that could not be made.
    """

    tensors: list[Pixels | None]
    views: list["tuple[Size, Sequence[Pixels | None]] | None"]


def perturbed(view: Perturbation, image: DecodedImage) -> Image.Image | None:
    """The image under a view, the same on every call; None where a codec cannot.

    Raises MemoryError: how much memory there is must not decide which scores are there.
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
        """Decode one image. The block raises InputError if it is refused."""

    def prepare(self, target: DetectorInput, image: Image.Image) -> Pixels | None:
        """Prepare an image for detectors, or return None if none of them scores it."""


# Pixels of decoded images that are kept while their views are read: as many as go through a network
# together, or one larger image.
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
        self._kept: OrderedDict[int, DecodedImage] = OrderedDict()

    def keep(self, slot: int, image: DecodedImage) -> None:
        """Keep a decoded image, unless it is large, as the last one to be dropped."""
        if is_large(image) or not self._max_kept_pixels:
            return
        self._kept[slot] = image
        self._kept.move_to_end(slot)
        while len(self._kept) > 1 and self._kept_pixels > self._max_kept_pixels:
            self._kept.popitem(last=False)

    @contextmanager
    def open(self, slot: int) -> Iterator[DecodedImage | None]:
        """Yield the image in a slot, None if there is no file. Raises InputError."""
        kept, file = self._kept.get(slot), self._files[slot]
        if kept is not None or file is None:
            if kept is not None:
                self.keep(slot, kept)
            yield kept
            return
        with self._decoder.open_file(*file) as image:
            self.keep(slot, image)
            yield image

    @property
    def _kept_pixels(self) -> int:
        return sum(image.pixels.width * image.pixels.height for image in self._kept.values())


class EncodedImages:
    """The images of a batch as one preprocessing and one view (None = clean) show them."""

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
                shown = image.pixels if self._view is None else perturbed(self._view, image)
                return None if shown is None else self._decoder.prepare(self._target, shown)
        except InputError:
            return None  # It decoded before. What is refused now has no score of this detector.
        except Exception as error:
            if not is_of_one_image(error):
                raise
            _log.exception(
                "an image that decoded could not be prepared; its detector gives no score"
            )
            return None


def images_at(images: Pixels | Ragged | EncodedImages, slots: Sequence[int]) -> dict[int, Pixels]:
    """Return the images in some slots of a batch that keeps sizes, without those that are missing."""
    if isinstance(images, EncodedImages):
        return images.complete(slots)
    return {slot: image for slot in slots if (image := images[slot]) is not None}


def is_large(image: DecodedImage) -> bool:
    """Return whether a decoded image has a turn on its node by its size alone."""
    return Demand(image.pixels.width * image.pixels.height, 0).is_large
