"""The band around a mask's outline that MaskCLIP's edge loss looks at. Knows boolean arrays alone."""

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def edge_map(mask: Mask, width: int = 7) -> Mask:
    """Pixels of (H, W) within reach of both sides of the outline: mask and its inverse, each dilated by a cross of `width` pixels.

    Outside the array is neither, so a mask that touches the border has no edge along it, and an empty or full one has none at all.
    specs/localization.md §3.2; golden/maskclip.md §5.3, C13. An odd `width`, or ValueError. The reference refuses a side that is not
    longer than `width`; here it is a band like any other.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"the width of an edge is odd: {width}")
    return _dilated(mask, width // 2) & _dilated(~mask, width // 2)


def _dilated(mask: Mask, reach: int) -> Mask:
    result = mask.copy()
    for step in range(1, reach + 1):
        result[step:] |= mask[:-step]
        result[:-step] |= mask[step:]
        result[:, step:] |= mask[:, :-step]
        result[:, :-step] |= mask[:, step:]
    return result
