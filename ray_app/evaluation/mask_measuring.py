"""The masks of one image measured against its truth, at the network's size and at the image's own. Knows pixels; sums nothing up."""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ray_app.datasets.masks import MaskReader
from ray_app.errors import ConfigError, InputError, Status
from ray_app.evaluation.mask_truths import Kind, MaskedImage
from ray_app.images import ImageLimits
from ray_app.metrics.pixels import THRESHOLD, MaskFigures, PixelLevels
from ray_app.runs import mask_image
from ray_app.storage import Fetcher

RESIZING = {
    "network": "truth to the network's size by its nearest pixel (rounded down, as OpenCV's INTER_NEAREST): it stays black and white, and "
    "is what OpenSDI and IMDLBenCo compare with",
    "original": "mask to the image's size, bilinearly, as `touchstone masks` writes it: its steps become slopes, no truth is lost",
}
_WORKERS, _AHEAD = 4, 16

T = TypeVar("T")
R = TypeVar("R")


class Measured(NamedTuple):
    """One mask of an image. `network`, `original` (None where not asked for): at the threshold asked for; `half`: network size, at ½, where
    that is another threshold.
    """

    system: str
    view: str | None
    network: MaskFigures
    original: MaskFigures | None
    half: MaskFigures | None


@dataclass(frozen=True)
class Unreadable:
    """Why an image's truth is not known: nothing of it is measured."""

    image: MaskedImage
    status: str
    detail: str


class MaskMeasurer:
    """Reads truths and measures masks. Safe to share between threads: each keeps the tables open that it reads masks from.

    `at_original`: the kinds of images that are measured at their own size, too.
    """

    def __init__(self, fetcher: Fetcher, limits: ImageLimits, *, threshold: float, at_original: Collection[Kind]) -> None:
        self._fetcher, self._limits, self._threshold, self._at_original = fetcher, limits, threshold, at_original
        self._own = threading.local()

    def measure(self, image: MaskedImage) -> list[Measured] | Unreadable:
        """All masks of one image."""
        try:
            truth = self.truth(image)
        except InputError as refused:
            return Unreadable(image, refused.status, refused.detail)
        except ConfigError as error:
            return Unreadable(image, "no_reference", error.message)
        return [self._measured(row, truth, image) for row in image.masks]

    def truth(self, image: MaskedImage) -> NDArray[np.uint8]:
        """(H, W) at the image's own size, 255 where it was altered. Raises InputError or ConfigError where that is not known."""
        if image.truth.kind == "local" and image.truth.mask_uri is None:
            raise InputError(Status.SOURCE_MISSING, "a local edit without a mask: where it was altered is not known")
        if not hasattr(self._own, "reader"):
            self._own.reader = MaskReader(self._fetcher, self._limits)
        truth: NDArray[np.uint8] = np.asarray(self._own.reader.read(image.member, image.size))
        return truth

    def _measured(self, row: dict[str, Any], truth: NDArray[np.uint8], image: MaskedImage) -> Measured:
        small = np.asarray(mask_image(row, stretched=False)[0])
        levels = PixelLevels.of(small, nearest(truth, small.shape))
        original = None
        if image.truth.kind in self._at_original:
            original = PixelLevels.of(np.asarray(mask_image(row, stretched=True)[0]), truth).figures(self._threshold)
        half = None if self._threshold == THRESHOLD else levels.figures(THRESHOLD)
        return Measured(row["detector"], row.get("view"), levels.figures(self._threshold), original, half)


def nearest(truth: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A mask (H, W) at another size (h, w): of each new pixel the old one at its upper left corner, as OpenCV's INTER_NEAREST."""
    rows, columns = (np.arange(new) * old // new for old, new in zip(truth.shape, shape, strict=True))
    smaller: NDArray[np.uint8] = truth[rows][:, columns]
    return smaller


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `work` gives of each, in their order, from a few threads that are a few items ahead: masks are waited for, not computed."""
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="masks") as pool:
        running: deque[Future[R]] = deque()
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > _AHEAD:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
