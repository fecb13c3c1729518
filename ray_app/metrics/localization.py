"""Figures of masks over many images, with what counts where nothing is altered said aloud: ours, OpenSDI's and IMDLBenCo's.

Knows rows of pixel counts; knows no images. Sources: specs/localization.md §2.2 and §3.1, golden/maskclip.md §5 (executed).
"""

from array import array
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ray_app.metrics.arrays import Floats
from ray_app.metrics.figure import Figure
from ray_app.metrics.means import mean_figure
from ray_app.metrics.pixels import MaskFigures

Empty = Literal["skip", "zero", "one"]
Mode = Literal["origin", "reverse", "double"]
LOCALIZATION = ("pixel_f1", "pixel_iou", "pixel_auc", "pixel_accuracy")
EMPTY: dict[Empty, str] = {
    "skip": "images of which nothing is altered are left out",
    "zero": "an image of which nothing is altered counts as F1 = IoU = 0, however empty its mask",
    "one": "an image of which nothing is altered counts as F1 = IoU = 1 where nothing is marked, else as 0",
}
_EPSILON = 1e-8  # IMDLBenCo adds it to denominators


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


Rows = Sequence[MaskFigures] | Floats


def localization_of(rows: Rows, *, empty: Empty) -> dict[str, Figure]:
    """The means over images of pixel F1, IoU, AUC and accuracy, under one policy for images of which nothing is altered (`EMPTY`).

    An AUC needs altered and intact pixels: images without it are left out under every policy, and the figure's `n` says how many stayed.
    """
    hits, altered, marked, pixels, auc, *_ = _columns(rows)
    counts = altered > 0 if empty == "skip" else np.ones(len(hits), np.bool_)
    told = np.where(marked == 0, 1.0, 0.0) if empty == "one" else np.zeros(len(hits))
    f1 = np.where(altered > 0, 2 * hits / np.maximum(altered + marked, 1), told)
    iou = np.where(altered > 0, hits / np.maximum(altered + marked - hits, 1), told)
    return _means(f1[counts], iou[counts], auc[counts], ((pixels - altered - marked + 2 * hits) / pixels)[counts], images=len(hits))


def imdlbenco_of(rows: Rows, *, mode: Mode = "origin") -> dict[str, Figure]:
    """The same as IMDLBenCo computes them at threshold ½: 1e-8 in the denominators, and every image counts.

    An image of which nothing is altered has F1 = IoU = AUC = 0. `reverse` turns the mask round: F1 and accuracy the marked pixels,
    IoU the probabilities, so that pixels at exactly ½ are marked for one and not for the other. `double` takes per image and figure
    the better of the two. Departures: ties have mid-ranks (theirs depend on the order of sorting), and where everything is altered,
    which makes their mean AUC NaN, the image is left out of it.
    """
    if mode == "double":
        better = [np.fmax(*pair) for pair in zip(_imdlbenco(rows, turned=False), _imdlbenco(rows, turned=True), strict=True)]
        return _means(*better)
    return _means(*_imdlbenco(rows, turned=mode == "reverse"))


def opensdi_of(rows: Rows) -> dict[str, Figure]:
    """OpenSDI's figures, of rows of partial fakes alone at the network's size: IMDLBenCo's formulas, the mean over images.

    A partial fake whose truth is empty at that size counts as 0, as there (`counts_of` says how many there are).
    """
    return imdlbenco_of(rows)


def counts_of(rows: Rows) -> dict[str, int]:
    """How many images there are, of how many nothing is altered, and of how many everything, which have no AUC either."""
    _, altered, _, pixels, *_ = _columns(rows)
    return {"images": len(altered), "empty": int((altered == 0).sum()), "all_altered": int((altered == pixels).sum())}


def _imdlbenco(rows: Rows, *, turned: bool) -> tuple[Floats, Floats, Floats, Floats]:
    hits, altered, marked, pixels, auc, even, even_altered = _columns(rows)
    over_hits, over_marked = hits, marked
    if turned:
        hits, marked, auc = altered - hits, pixels - marked, 1 - auc
        over_hits, over_marked = hits - even_altered, marked - even
    precision, recall = hits / (marked + _EPSILON), hits / (altered + _EPSILON)
    f1 = 2 * precision * recall / (precision + recall + _EPSILON)
    iou = over_hits / (over_marked + altered - over_hits + _EPSILON)
    return f1, iou, np.where(altered == 0, 0.0, auc), (pixels - altered - marked + 2 * hits) / pixels


def _means(f1: Floats, iou: Floats, auc: Floats, accuracy: Floats, *, images: int = 0) -> dict[str, Figure]:
    """The mean of each over images; `images`: how many there were before a policy left some out."""
    why = "no image of which something is altered" if images else "no image with a mask and a truth"
    no_auc = "no image with both altered and intact pixels" if images or len(auc) else why
    columns = zip(LOCALIZATION, (f1, iou, auc, accuracy), strict=True)
    return {name: mean_figure(values, no_auc if name == "pixel_auc" else why) for name, values in columns}


def _columns(rows: Rows) -> tuple[Floats, ...]:
    """The fields of `MaskFigures` as columns (n,), NaN where there is no AUC."""
    table = np.array(rows, dtype=np.float64).reshape(-1, len(MaskFigures._fields))
    return tuple(table.T)
