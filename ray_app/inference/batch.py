"""What decoding hands to detectors: results per member, and fixed slots of pixels (`Batch`), also
of perturbed views.

`LazyImages` and `LateDecoder` make or decode large images only when a detector reads them.
"""

import logging
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_app.errors import InputError, Status, describe_error, is_of_one_image, one_line
from ray_app.images import DecodedImage, Demand, ImageFileFacts
from ray_app.transforms.perturbations import Perturbation, seed_of

Pixels = npt.NDArray[np.uint8]
Ragged = Sequence[Pixels | None]
Size = tuple[int, int]
File = bytes | Image.Image  # an image as somebody gave it
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
    """A batch as one perturbation shows it. `pixels` as in `Batch`; where sizes are kept, an image
    is made when it is asked for.

    `sizes`: per member the (width, height) of the perturbed image before it was prepared; None
    where there is none.
    """

    pixels: tuple[Pixels | Ragged, ...]
    sizes: tuple[Size | None, ...]


@dataclass(frozen=True)
class Batch:
    """Fixed slots. Per distinct preprocessing, `pixels` has one (slots, H, W, 3) array with zeros
    in unusable slots; or, where sizes are kept, one array or None per slot.

    `outcomes` has one entry per member, in slot order; there are fewer than slots only at the end
    of a block. `sizes`: per member the (width, height) of the image where it has pixels, else None.
    `pixels` is empty where no member could be decoded. `encoded`: the files themselves, for
    detectors that keep sizes and sit in another process, and for a second look; None where they do
    not decode. `views`: one for each of the spec's, empty where `pixels` is. `ids`: image ids of
    the members, where files are kept in the process that decoded them.
    """

    outcomes: tuple[DecodeResult, ...]
    pixels: tuple[Pixels | Ragged, ...]
    sizes: tuple[Size | None, ...]
    encoded: tuple[File | None, ...] = ()
    views: tuple[PerturbedBatch, ...] = ()
    ids: tuple[int, ...] = ()


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


_log = logging.getLogger(__name__)

# an image that is there, or in memory, as long as the block lasts
Opening = Callable[[], AbstractContextManager[DecodedImage]]
ImageOf = Callable[[int], AbstractContextManager[DecodedImage | None]]
Prepare = Callable[[Image.Image], Pixels | None]

# What codecs raise on an image that they cannot hold; Pillow's check for bombs also stands before
# what we have just encoded ourselves.
CODEC_ERRORS = (OSError, ValueError, RuntimeError, Image.DecompressionBombError)

# Decoded images that are kept while their views are read: all that go through a network together,
# or the one that is larger.
KEPT_PIXELS = 2**23


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


class LazyImages(Sequence[Pixels | None]):
    """The images of a batch in one preprocessing and one view (None = clean), each made when it is
    asked for, since it may be large.
    """

    def __init__(
        self, count: int, image_of: ImageOf, prepare: Prepare, view: Perturbation | None = None
    ) -> None:
        self._count, self._image_of, self._prepare, self._view = count, image_of, prepare, view

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, slot: Any) -> Any:
        if slot >= self._count:
            # the end of an iteration, which must not pass for an image's fault
            raise IndexError(slot)
        try:
            with self._image_of(slot) as image:
                seen = (
                    None
                    if image is None
                    else image.pixels
                    if self._view is None
                    else perturbed(self._view, image)
                )
                return None if seen is None else self._prepare(seen)
        except InputError:
            return None  # it decoded once; what is refused now, the detector has no score for
        except Exception as error:
            if not is_of_one_image(error):
                raise
            _log.exception(
                "an image that decoded could not be prepared; its detector gives no score"
            )
            return None


class LateDecoder:
    """Files of a batch, decoded when asked for. With `keeps`, the last few stay decoded, so that
    all views of an image cost one decode; but for large ones, whose turn on their node ends with
    the block that asked.
    """

    def __init__(
        self,
        files: Sequence[File | None],
        decode: Callable[[File], AbstractContextManager[DecodedImage]],
        *,
        keeps: bool,
    ) -> None:
        self._files, self._decode, self._keeps = files, decode, keeps
        self._kept: OrderedDict[int, DecodedImage] = OrderedDict()

    @contextmanager
    def __call__(self, slot: int) -> Iterator[DecodedImage | None]:
        """The image in a slot; None where there is no file. Raises InputError."""
        data, kept = self._files[slot], self._kept.pop(slot, None)
        if data is None:
            yield None
            return
        with nullcontext(kept) if kept is not None else self._decode(data) as image:
            if self._keeps and not is_large(image):
                self._keep(slot, image)
            yield image

    def _keep(self, slot: int, image: DecodedImage) -> None:
        self._kept[slot] = image
        while (
            len(self._kept) > 1
            and sum(kept.pixels.width * kept.pixels.height for kept in self._kept.values())
            > KEPT_PIXELS
        ):
            self._kept.popitem(last=False)


def is_large(image: DecodedImage) -> bool:
    """Whether an image that is decoded has its turn on its node by its size alone, and is not kept
    beyond it.
    """
    return Demand(image.pixels.width * image.pixels.height, 0).is_large
