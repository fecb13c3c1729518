"""Localization: agreement of one mask with its truth (`mask_figures`), and over many images by our
convention (`localization_of`) and IMDLBenCo's (`imdlbenco_of`), which OpenSDI uses.

Sources: specs/localization.md §2.2 and §3.1, golden/maskclip.md §5 (executed).
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_app.metrics.arrays import Counts, Floats
from ray_app.metrics.intervals import mean_figure
from ray_app.metrics.values import MetricValue

THRESHOLD = 0.5  # strictly above it a pixel counts as altered
_PIECE = 1 << 20  # pixels counted at once: counting widens each to eight bytes

Empty = Literal["skip", "zero", "one"]
Mode = Literal["origin", "reverse", "double"]
LOCALIZATION = ("pixel_f1", "pixel_iou", "pixel_auc", "pixel_accuracy")
EMPTY: dict[Empty, str] = {
    "skip": "images of which nothing is altered are left out",
    "zero": "an image of which nothing is altered counts as F1 = IoU = 0, however empty its mask",
    "one": "an image of which nothing is altered counts as F1 = IoU = 1 where nothing is marked, else as 0",
}
_EPSILON = 1e-8  # IMDLBenCo adds it to denominators


class MaskFigures(NamedTuple):
    """One mask against its truth, in whole pixels: every figure of it follows from these.

    `hits`: altered and marked. `auc`: None where only one kind of pixel is there. `even`,
    `even_altered`: pixels exactly at the threshold, which count as not marked (a mask turned round
    has them unmarked as well).
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


def mask_figures(
    mask: NDArray[Any], truth: NDArray[Any], *, threshold: float = THRESHOLD
) -> MaskFigures:
    """The figures of one mask against its truth, as `PixelLevels.of` takes them. Raises ValueError
    as that does.
    """
    return PixelLevels.of(mask, truth).figures(threshold)


def pixel_figures(masks: Iterable[NDArray[Any]], truths: Iterable[NDArray[Any]]) -> dict[str, Any]:
    """Mean F1 and IoU per image, over the images of which something is altered; `n` is how many
    those are.

    An image without altered pixels says nothing of place and would count as 0 however empty its
    mask: it is left out (specs/localization.md §3.1). With none left both are None. Raises
    ValueError for numbers of images that differ, and as `mask_figures`.
    """
    found = [
        mask_figures(mask, truth)
        for mask, truth in zip(masks, truths, strict=True)
        if np.any(truth)
    ]
    f1, iou = (
        np.mean(np.array([(one.f1, one.iou) for one in found], np.float64), axis=0).tolist()
        if found
        else (None, None)
    )
    return {"pixel_f1": f1, "pixel_iou": iou, "n": len(found)}


Rows = Sequence[MaskFigures] | Floats


def localization_of(rows: Rows, *, empty: Empty) -> dict[str, MetricValue]:
    """The means over images of pixel F1, IoU, AUC and accuracy, under one policy for images of
    which nothing is altered (`EMPTY`).

    An AUC needs altered and intact pixels: images without it are left out under every policy, and
    the figure's `n` says how many stayed.
    """
    hits, altered, marked, pixels, auc, *_ = _columns(rows)
    counts = altered > 0 if empty == "skip" else np.ones(len(hits), np.bool_)
    of_empty = np.where(marked == 0, 1.0, 0.0) if empty == "one" else np.zeros(len(hits))
    f1 = np.where(altered > 0, 2 * hits / np.maximum(altered + marked, 1), of_empty)
    iou = np.where(altered > 0, hits / np.maximum(altered + marked - hits, 1), of_empty)
    return _means(
        f1[counts],
        iou[counts],
        auc[counts],
        ((pixels - altered - marked + 2 * hits) / pixels)[counts],
        images=len(hits),
    )


def imdlbenco_of(rows: Rows, *, mode: Mode = "origin") -> dict[str, MetricValue]:
    """The same as IMDLBenCo computes them at threshold ½: 1e-8 in the denominators, and every image
    counts.

    An image of which nothing is altered has F1 = IoU = AUC = 0. `reverse` turns the mask round: F1
    and accuracy the marked pixels, IoU the probabilities, so that pixels at exactly ½ are marked
    for one and not for the other. `double` takes per image and figure the better of the two.
    Departures: ties have mid-ranks (theirs depend on the order of sorting), and where everything is
    altered, which makes their mean AUC NaN, the image is left out of it.

    OpenSDI's figures are these of partial fakes alone at the network's size; one whose truth is
    empty at that size counts as 0, as there.
    """
    if mode == "double":
        better = [
            np.fmax(*pair)
            for pair in zip(
                _imdlbenco(rows, turned=False), _imdlbenco(rows, turned=True), strict=True
            )
        ]
        return _means(*better)
    return _means(*_imdlbenco(rows, turned=mode == "reverse"))


def counts_of(rows: Rows) -> dict[str, int]:
    """How many images there are, of how many nothing is altered, and of how many everything, which
    have no AUC either.
    """
    _, altered, _, pixels, *_ = _columns(rows)
    return {
        "images": len(altered),
        "empty": int((altered == 0).sum()),
        "all_altered": int((altered == pixels).sum()),
    }


class PixelLevels(NamedTuple):
    """How many pixels have each probability: `values` float64 (k,) ascending, the `altered` and the
    `intact` of each int64 (k,).
    """

    values: Floats
    altered: Counts
    intact: Counts

    @classmethod
    def of(cls, mask: NDArray[Any], truth: NDArray[Any]) -> "PixelLevels":
        """Those of a mask (H, W) with its truth (H, W), not 0 where altered.

        The mask is of probabilities, or uint8 of grey levels that are 255 times as much. Raises
        ValueError for shapes that differ, no pixels, and values that are not finite.
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
        """The share of pairs, one altered pixel and one intact, in which the altered one is higher;
        ties count half.
        """
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


class MaskRows:
    """The figures of many images in 56 bytes each."""

    def __init__(self) -> None:
        self._numbers = array("d")

    def add(self, figures: MaskFigures) -> None:
        """Append those of one image."""
        self._numbers.extend(np.nan if number is None else number for number in figures)

    def __len__(self) -> int:
        return len(self._numbers) // len(MaskFigures._fields)

    def table(self) -> Floats:
        """(n, 7), the fields of `MaskFigures`; NaN where there is no AUC."""
        return np.array(self._numbers, np.float64).reshape(-1, len(MaskFigures._fields))


def _counted(codes: NDArray[Any], truth: NDArray[np.bool_], size: int) -> Counts:
    """(2, size): how many intact and how many altered pixels have each code."""
    counts = np.zeros(2 * size, np.int64)
    for start in range(0, len(codes), _PIECE):
        piece = slice(start, start + _PIECE)
        counts += np.bincount(
            codes[piece] + size * truth[piece].astype(np.int64), minlength=2 * size
        )
    return counts.reshape(2, size)


def _imdlbenco(rows: Rows, *, turned: bool) -> tuple[Floats, Floats, Floats, Floats]:
    hits, altered, marked, pixels, auc, even, even_altered = _columns(rows)
    over_hits, over_marked = hits, marked
    if turned:
        hits, marked, auc = altered - hits, pixels - marked, 1 - auc
        over_hits, over_marked = hits - even_altered, marked - even
    precision, recall = hits / (marked + _EPSILON), hits / (altered + _EPSILON)
    f1 = 2 * precision * recall / (precision + recall + _EPSILON)
    iou = over_hits / (over_marked + altered - over_hits + _EPSILON)
    return (
        f1,
        iou,
        np.where(altered == 0, 0.0, auc),
        (pixels - altered - marked + 2 * hits) / pixels,
    )


def _means(
    f1: Floats, iou: Floats, auc: Floats, accuracy: Floats, *, images: int = 0
) -> dict[str, MetricValue]:
    """The mean of each over images; `images`: how many there were before a policy left some out."""
    why = "no image of which something is altered" if images else "no image with a mask and a truth"
    no_auc = "no image with both altered and intact pixels" if images or len(auc) else why
    columns = zip(LOCALIZATION, (f1, iou, auc, accuracy), strict=True)
    return {
        name: mean_figure(values, no_auc if name == "pixel_auc" else why)
        for name, values in columns
    }


def _columns(rows: Rows) -> tuple[Floats, ...]:
    """The fields of `MaskFigures` as columns (n,), NaN where there is no AUC."""
    table = np.array(rows, dtype=np.float64).reshape(-1, len(MaskFigures._fields))
    return tuple(table.T)
