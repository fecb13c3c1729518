"""How well the pixels that were found in one image agree with those that were altered. Knows arrays; resizes nothing."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_app.metrics.arrays import Floats

THRESHOLD = 0.5  # strictly above it a pixel counts as altered
_PIECE = 1 << 20  # pixels counted at once: counting widens each to eight bytes

Counts = NDArray[np.int64]


class MaskFigures(NamedTuple):
    """One mask against its truth, in whole pixels: every figure of it follows from these.

    `hits`: altered and marked. `auc`: None where only one kind of pixel is there. `even`, `even_altered`: pixels exactly at the
    threshold, which count as not marked (a mask turned round has them unmarked as well).
    """

    hits: int
    altered: int
    marked: int
    pixels: int
    auc: float | None
    even: int = 0
    even_altered: int = 0

    @property
    def f1(self) -> float | None:
        """2 hits / (altered + marked); None where nothing is altered and nothing marked."""
        return 2 * self.hits / (self.altered + self.marked) if self.altered + self.marked else None

    @property
    def iou(self) -> float | None:
        """Hits by the pixels that are altered or marked; None where there are none."""
        union = self.altered + self.marked - self.hits
        return self.hits / union if union else None

    @property
    def accuracy(self) -> float:
        """The share of pixels told right."""
        return (self.pixels - self.altered - self.marked + 2 * self.hits) / self.pixels


class PixelLevels(NamedTuple):
    """How many pixels have each probability: `values` float64 (k,) ascending, the `altered` and the `intact` of each int64 (k,)."""

    values: Floats
    altered: Counts
    intact: Counts

    @classmethod
    def of(cls, mask: NDArray[Any], truth: NDArray[Any]) -> "PixelLevels":
        """Those of a mask (H, W) with its truth (H, W), not 0 where altered.

        The mask is of probabilities, or uint8 of grey levels that are 255 times as much. Raises ValueError for shapes that differ, no
        pixels, and values that are not finite.
        """
        if mask.shape != truth.shape:
            raise ValueError(f"a mask of {mask.shape} for a truth of {truth.shape}")
        if not mask.size:
            raise ValueError("a mask without pixels")
        if mask.dtype == np.uint8:
            values, codes = np.arange(256) / 255, mask.ravel()
        else:
            if not np.isfinite(mask).all():
                raise ValueError("a mask holds values that are not finite")
            values, codes = np.unique(mask.astype(np.float64), return_inverse=True)
        counts = _counted(codes.ravel(), truth.astype(np.bool_).ravel(), len(values))
        return cls(values, counts[1], counts[0])

    def auc(self) -> float | None:
        """The share of pairs, one altered pixel and one intact, in which the altered one is higher; ties count half."""
        pairs = int(self.altered.sum()) * int(self.intact.sum())
        lower = np.cumsum(self.intact) - self.intact
        return int(self.altered @ (2 * lower + self.intact)) / (2 * pairs) if pairs else None

    def figures(self, threshold: float = THRESHOLD) -> MaskFigures:
        """What follows when pixels strictly above the threshold are marked."""
        above, even = self.values > threshold, self.values == threshold
        hits, altered = int(self.altered[above].sum()), int(self.altered.sum())
        even_altered = int(self.altered[even].sum())
        return MaskFigures(
            hits, altered, hits + int(self.intact[above].sum()), altered + int(self.intact.sum()), self.auc(),
            even_altered + int(self.intact[even].sum()), even_altered,
        )  # fmt: skip


def mask_figures(mask: NDArray[Any], truth: NDArray[Any], *, threshold: float = THRESHOLD) -> MaskFigures:
    """The figures of one mask against its truth, as `PixelLevels.of` takes them. Raises ValueError as that does."""
    return PixelLevels.of(mask, truth).figures(threshold)


def pixel_figures(masks: Iterable[NDArray[Any]], truths: Iterable[NDArray[Any]]) -> dict[str, Any]:
    """Mean F1 and IoU per image, over the images of which something is altered; `n` is how many those are.

    An image without altered pixels says nothing of place and would count as 0 however empty its mask: it is left out
    (specs/localization.md §3.1). With none left both are None. Raises ValueError for numbers of images that differ, and as `mask_figures`.
    """
    found = [mask_figures(mask, truth) for mask, truth in zip(masks, truths, strict=True) if np.any(truth)]
    f1, iou = np.mean(np.array([(one.f1, one.iou) for one in found], np.float64), axis=0).tolist() if found else (None, None)
    return {"pixel_f1": f1, "pixel_iou": iou, "n": len(found)}


def _counted(codes: NDArray[Any], truth: NDArray[np.bool_], size: int) -> Counts:
    """(2, size): how many intact and how many altered pixels have each code."""
    counts = np.zeros(2 * size, np.int64)
    for start in range(0, len(codes), _PIECE):
        piece = slice(start, start + _PIECE)
        counts += np.bincount(codes[piece] + size * truth[piece].astype(np.int64), minlength=2 * size)
    return counts.reshape(2, size)
