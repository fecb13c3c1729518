"""Measure masks of altered pixels against the truth (`measure_mask`), and average over images.

`average_masks` averages by the convention of this project. `average_masks_imdlbenco` averages by
the convention of IMDLBenCo, which OpenSDI uses. The values of IMDLBenCo were checked by running its
code.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_app.metrics.arrays import Counts, Floats
from ray_app.metrics.intervals import mean_figure
from ray_app.metrics.values import MetricValue

# A pixel counts as altered if its probability is strictly above the threshold.
THRESHOLD = 0.5
# Number of pixels counted at once. Counting widens each to eight bytes.
_CHUNK_PIXELS = 1 << 20

Empty = Literal["skip", "zero", "one"]
Mode = Literal["origin", "reverse", "double"]
LOCALIZATION = ("pixel_f1", "pixel_iou", "pixel_auc", "pixel_accuracy")
EMPTY: dict[Empty, str] = {
    "skip": "images without altered pixels are left out",
    "zero": "an image without altered pixels counts as F1 = IoU = 0, even if its mask is empty",
    "one": "an image without altered pixels counts as F1 = IoU = 1 if its mask is empty, else as 0",
}
_EPSILON = 1e-8  # IMDLBenCo adds this to denominators.


class MaskMetrics(NamedTuple):
    """Numbers of pixels that compare one mask with its truth. All mask metrics follow from them.

    Attributes:
        hits: Number of pixels that are altered and marked by the mask.
        altered: Number of pixels that are altered.
        marked: Number of pixels that the mask marks: their probability is above the threshold.
        pixels: Number of all pixels.
        auc: ROC AUC of the pixels; None if all or no pixels are altered.
        even: Number of pixels whose probability equals the threshold. The mask does not mark them.
            At the threshold ½, a mask of the probabilities 1 − p does not mark them either.
        even_altered: Number of altered pixels whose probability equals the threshold.
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
        """2 · hits / (altered + marked); None if no pixel is altered or marked."""
        return 2 * self.hits / (self.altered + self.marked) if self.altered + self.marked else None

    @property
    def iou(self) -> float | None:
        """The hits divided by the pixels that are altered or marked; None if no pixel is either."""
        union = self.altered + self.marked - self.hits
        return self.hits / union if union else None


def measure_mask(
    mask: NDArray[Any], truth: NDArray[Any], *, threshold: float = THRESHOLD
) -> MaskMetrics:
    """Count the pixels that compare one mask of altered pixels with its truth.

    Args:
        mask: Probabilities (H, W), or uint8 grey levels.
        truth: The truth (H, W), nonzero for altered pixels.
        threshold: The probability above which a pixel is marked.

    Raises:
        ValueError: The shapes differ, the mask is empty, or a value is not finite.
    """
    return PixelLevels.from_mask(mask, truth).measure(threshold)


def pixel_figures(masks: Iterable[NDArray[Any]], truths: Iterable[NDArray[Any]]) -> dict[str, Any]:
    """Return the mean F1 and IoU over the images that have altered pixels.

    An image without altered pixels would count as 0 even if its mask were empty, so it is left out.

    Args:
        masks: Probabilities (H, W), or uint8 grey levels, of each image.
        truths: The truth (H, W) of each image, nonzero for altered pixels.

    Returns:
        `pixel_f1` and `pixel_iou`, which are None if no image remains, and `n`, the number of
        images with altered pixels.

    Raises:
        ValueError: The numbers of masks and truths differ, or the shapes of a mask and its truth
            differ, or a mask has a value that is not finite or no pixels.
    """
    metrics = [
        measure_mask(mask, truth)
        for mask, truth in zip(masks, truths, strict=True)
        if np.any(truth)
    ]
    f1, iou = (
        np.mean(
            np.array([(metric.f1, metric.iou) for metric in metrics], np.float64), axis=0
        ).tolist()
        if metrics
        else (None, None)
    )
    return {"pixel_f1": f1, "pixel_iou": iou, "n": len(metrics)}


Rows = Sequence[MaskMetrics] | Floats


def average_masks(rows: Rows, *, empty: Empty) -> dict[str, MetricValue]:
    """Return the means over images of pixel F1, IoU, AUC, and accuracy.

    The AUC of an image needs both altered and intact pixels. Images with only one kind of pixels
    are left out of the mean AUC, regardless of `empty`, and are not counted in its `n`.

    Args:
        rows: The `MaskMetrics` of the images, or the table of a `MaskRows`.
        empty: How images without altered pixels count for the other metrics. `skip` leaves them
            out, `zero` counts F1 and IoU as 0, and `one` counts them as 1 if the predicted mask is
            empty, else as 0.

    Returns:
        The means with their intervals, by the names in `LOCALIZATION`.
    """
    hits, altered, marked, pixels, auc, *_ = _to_columns(rows)
    counts = altered > 0 if empty == "skip" else np.ones(len(hits), np.bool_)
    empty_score = np.where(marked == 0, 1.0, 0.0) if empty == "one" else np.zeros(len(hits))
    f1 = np.where(altered > 0, 2 * hits / np.maximum(altered + marked, 1), empty_score)
    iou = np.where(altered > 0, hits / np.maximum(altered + marked - hits, 1), empty_score)
    return _average(
        f1[counts],
        iou[counts],
        auc[counts],
        ((pixels - altered - marked + 2 * hits) / pixels)[counts],
        images=len(hits),
    )


def average_masks_imdlbenco(rows: Rows, *, mode: Mode = "origin") -> dict[str, MetricValue]:
    """Return the means over images of pixel F1, IoU, AUC, and accuracy as IMDLBenCo computes them.

    The threshold is ½, the denominators have 1e-8 added, and every image counts. An image without
    altered pixels has F1 = IoU = AUC = 0. The results depart from IMDLBenCo's in two cases. Tied
    pixels have mid-ranks in the AUC, whereas IMDLBenCo's ranks depend on the order of sorting. An
    image that is altered everywhere makes IMDLBenCo's mean AUC NaN, and is left out of the mean
    here.

    OpenSDI reports these metrics only for fakes that are edited locally, with masks at the size of
    the network's output. As in OpenSDI's code, an image without altered pixels at this size counts
    as 0.

    Args:
        rows: The `MaskMetrics` of the images, or the table of a `MaskRows`.
        mode: `origin` uses the mask as it is. `reverse` inverts the mask: F1 and accuracy invert
            the marked pixels, and IoU inverts the probabilities. Pixels at exactly ½ are therefore
            marked for F1 and accuracy, but not for IoU. `double` takes the better of `origin` and
            `reverse` for each image and metric.
    """
    if mode == "double":
        better = [
            np.fmax(*pair)
            for pair in zip(
                _measure_imdlbenco(rows, inverted=False),
                _measure_imdlbenco(rows, inverted=True),
                strict=True,
            )
        ]
        return _average(*better)
    return _average(*_measure_imdlbenco(rows, inverted=mode == "reverse"))


def count_masks(rows: Rows) -> dict[str, int]:
    """Return the number of images, and of images whose pixels are all intact or all altered.

    Such images have no AUC of pixels.

    Args:
        rows: The `MaskMetrics` of the images, or the table of a `MaskRows`.

    Returns:
        `images`, the number of all images; `empty`, that of images without altered pixels; and
        `all_altered`, that of images that are altered everywhere.
    """
    _, altered, _, pixels, *_ = _to_columns(rows)
    return {
        "images": len(altered),
        "empty": int((altered == 0).sum()),
        "all_altered": int((altered == pixels).sum()),
    }


class PixelLevels(NamedTuple):
    """Numbers of altered and intact pixels at each probability of a predicted mask.

    They are sufficient to compute the AUC, and the counts at any threshold.

    Attributes:
        values: The distinct probabilities, float64 (k,), ascending.
        altered: Number of altered pixels, int64 (k,).
        intact: Number of intact pixels, int64 (k,).
    """

    values: Floats
    altered: Counts
    intact: Counts

    @classmethod
    def from_mask(cls, mask: NDArray[Any], truth: NDArray[Any]) -> "PixelLevels":
        """Count the pixels at each level of a predicted mask, separately by their truth.

        Both arrays have the shape (H, W). `truth` is nonzero for altered pixels. The mask has
        probabilities, or uint8 grey levels, which are 255 times the probabilities.

        Raises:
            ValueError: The shapes differ, the mask is empty, or a value is not finite.
        """
        if mask.shape != truth.shape:
            raise ValueError(
                f"mask and truth must have equal shapes, got {mask.shape} and {truth.shape}"
            )
        if not mask.size:
            raise ValueError("a mask has no pixels")
        if mask.dtype == np.uint8:
            values, codes = np.arange(256) / 255, mask.ravel()
        else:
            if not np.isfinite(mask).all():
                raise ValueError("a mask has values that are not finite")
            values, codes = np.unique(mask.astype(np.float64), return_inverse=True)
        counts = _count_pixels(codes.ravel(), truth.astype(np.bool_).ravel(), len(values))
        return cls(values, counts[1], counts[0])

    def auc(self) -> float | None:
        """Return the ROC AUC of the pixels, or None if all or no pixels are altered.

        The AUC is the fraction of pairs of an altered and an intact pixel in which the altered
        pixel has the higher probability; ties count half.
        """
        pairs = int(self.altered.sum()) * int(self.intact.sum())
        lower = np.cumsum(self.intact) - self.intact
        return int(self.altered @ (2 * lower + self.intact)) / (2 * pairs) if pairs else None

    def measure(self, threshold: float = THRESHOLD) -> MaskMetrics:
        """Return the counts of pixels for a mask that marks probabilities above a threshold."""
        above, even = self.values > threshold, self.values == threshold
        hits, altered = int(self.altered[above].sum()), int(self.altered.sum())
        even_altered = int(self.altered[even].sum())
        return MaskMetrics(
            hits, altered, hits + int(self.intact[above].sum()), altered + int(self.intact.sum()), self.auc(),
            even_altered + int(self.intact[even].sum()), even_altered,
        )  # fmt: skip


class MaskRows:
    """Collect the `MaskMetrics` of many masks, in 56 bytes of memory each."""

    def __init__(self) -> None:
        self._values = array("d")

    def add(self, metrics: MaskMetrics) -> None:
        """Append the `MaskMetrics` of one mask."""
        self._values.extend(np.nan if value is None else value for value in metrics)

    def __len__(self) -> int:
        return len(self._values) // len(MaskMetrics._fields)

    def table(self) -> Floats:
        """Return an array (n, 7) with the fields of `MaskMetrics` per mask.

        A missing AUC is NaN.
        """
        return np.array(self._values, np.float64).reshape(-1, len(MaskMetrics._fields))


def _count_pixels(codes: NDArray[Any], truth: NDArray[np.bool_], size: int) -> Counts:
    """Return the number of intact and of altered pixels with each code (2, size)."""
    counts = np.zeros(2 * size, np.int64)
    for start in range(0, len(codes), _CHUNK_PIXELS):
        piece = slice(start, start + _CHUNK_PIXELS)
        counts += np.bincount(
            codes[piece] + size * truth[piece].astype(np.int64), minlength=2 * size
        )
    return counts.reshape(2, size)


def _measure_imdlbenco(rows: Rows, *, inverted: bool) -> tuple[Floats, Floats, Floats, Floats]:
    hits, altered, marked, pixels, auc, even, even_altered = _to_columns(rows)
    over_hits, over_marked = hits, marked
    if inverted:
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


def _average(
    f1: Floats, iou: Floats, auc: Floats, accuracy: Floats, *, images: int = 0
) -> dict[str, MetricValue]:
    """Return the mean of each metric over images.

    `images` is the number of images before a policy left some out.
    """
    reason = "no image with altered pixels" if images else "no image with a mask and a truth"
    no_auc = "no image with both altered and intact pixels" if images or len(auc) else reason
    columns = zip(LOCALIZATION, (f1, iou, auc, accuracy), strict=True)
    return {
        name: mean_figure(values, no_auc if name == "pixel_auc" else reason)
        for name, values in columns
    }


def _to_columns(rows: Rows) -> tuple[Floats, ...]:
    """Return the fields of `MaskMetrics` as columns (n,); NaN for a missing AUC."""
    table = np.array(rows, dtype=np.float64).reshape(-1, len(MaskMetrics._fields))
    return tuple(table.T)
