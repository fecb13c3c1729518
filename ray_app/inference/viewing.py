"""Decoded images → the views that perturbations give of them, and images that are decoded late. Knows no detector's name, file or Ray."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ray_app.errors import InputError, is_of_one_image
from ray_app.images import DecodedImage, Demand
from ray_app.inference.batches import File, Pixels, Ragged, Size
from ray_app.perturbations import Perturbation, seed_of

_log = logging.getLogger(__name__)

Opening = Callable[[], AbstractContextManager[DecodedImage]]  # an image that is there, or in memory, as long as the block lasts
ImageOf = Callable[[int], AbstractContextManager[DecodedImage | None]]
Prepare = Callable[[Image.Image], Pixels | None]

# What codecs raise on an image that they cannot hold; Pillow's check for bombs also stands before what we have just encoded ourselves.
CANNOT = (OSError, ValueError, RuntimeError, Image.DecompressionBombError)

# Decoded images that are kept while their views are read: all that go through a network together, or the one that is larger.
KEPT_PIXELS = 2**23


@dataclass(frozen=True)
class Prepared:
    """One image of a batch: a tensor per preprocessing, and the same with its size per view; None where that could not be made."""

    tensors: Sequence[Pixels | None]
    views: Sequence["tuple[Size, Sequence[Pixels | None]] | None"] = ()


def perturbed(view: Perturbation, image: DecodedImage) -> Image.Image | None:
    """The image as a view shows it, the same whoever asks; None where a codec cannot.

    Raises MemoryError: how much memory there is must not decide which scores are there.
    """
    try:
        return view.apply(image.pixels, seed_of(image.facts.sha256, view.name))
    except CANNOT:
        return None


class Lazily(Sequence[Pixels | None]):
    """The images of a batch in one preprocessing and one view (None = clean), each made when it is asked for, since it may be large."""

    def __init__(self, count: int, image_of: ImageOf, prepare: Prepare, view: Perturbation | None = None) -> None:
        self._count, self._image_of, self._prepare, self._view = count, image_of, prepare, view

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, slot: Any) -> Any:
        if slot >= self._count:
            raise IndexError(slot)  # the end of an iteration, which must not pass for an image's fault
        try:
            with self._image_of(slot) as image:
                seen = None if image is None else image.pixels if self._view is None else perturbed(self._view, image)
                return None if seen is None else self._prepare(seen)
        except InputError:
            return None  # it decoded once; what is refused now, the detector has no score for
        except Exception as error:
            if not is_of_one_image(error):
                raise
            _log.exception("an image that decoded could not be prepared; its detector gives no score")
            return None


class Late:
    """Files of a batch, decoded when asked for. With `keeps`, the last few stay decoded, so that all views of an image cost one decode;
    but for large ones, whose turn on their node ends with the block that asked.
    """

    def __init__(
        self, files: Sequence[File | None], decode: Callable[[File], AbstractContextManager[DecodedImage]], *, keeps: bool
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
        while len(self._kept) > 1 and sum(kept.pixels.width * kept.pixels.height for kept in self._kept.values()) > KEPT_PIXELS:
            self._kept.popitem(last=False)


def is_large(image: DecodedImage) -> bool:
    """Whether an image that is decoded has its turn on its node by its size alone, and is not kept beyond it."""
    return Demand(image.pixels.width * image.pixels.height, 0).is_large


def column(prepared: Sequence[Prepared | None], view: int | None, place: int) -> Ragged:
    """What the members of a batch have in one view (None = clean) and preprocessing."""
    if view is None:
        return [None if one is None else one.tensors[place] for one in prepared]
    seen = [None if one is None else one.views[view] for one in prepared]
    return [None if one is None else one[1][place] for one in seen]
