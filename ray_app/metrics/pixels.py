"""Figures of masks: how well the pixels that were found agree with those that were altered. Knows arrays; resizes nothing."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.5  # strictly above it a pixel counts as altered


def pixel_figures(masks: Iterable[NDArray[Any]], truths: Iterable[NDArray[Any]]) -> dict[str, Any]:
    """Mean F1 and IoU per image, over the images of which something is altered; `n` is how many those are.

    masks: P(altered) of each pixel, (H, W) each; truths: 0 and 1, of the same shapes. An image without altered pixels says nothing of
    place and would count as 0 however empty its mask: it is left out (specs/localization.md §3.1). With none left both are None.
    Raises ValueError for shapes or numbers of images that differ, and for a mask that is not finite.
    """
    found = [agreement(mask, truth) for mask, truth in zip(masks, truths, strict=True) if np.any(truth)]
    f1, iou = np.mean(found, axis=0).tolist() if found else (None, None)
    return {"pixel_f1": f1, "pixel_iou": iou, "n": len(found)}


def agreement(mask: NDArray[Any], truth: NDArray[Any]) -> tuple[float, float]:
    """F1 and IoU of one mask of probabilities (H, W) against its truth, of which some pixel is altered. Raises ValueError."""
    if mask.shape != truth.shape:
        raise ValueError(f"a mask of {mask.shape} for a truth of {truth.shape}")
    if not np.isfinite(mask).all():
        raise ValueError("a mask holds values that are not finite")
    marked, altered = mask > THRESHOLD, truth.astype(np.bool_)
    hits, union = int((marked & altered).sum()), int((marked | altered).sum())
    return 2 * hits / (union + hits), hits / union
