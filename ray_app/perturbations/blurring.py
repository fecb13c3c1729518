"""Gaussian blur by an explicit kernel, as OpenCV and torchvision do it. Knows PIL images; draws nothing."""

import numpy as np
import numpy.typing as npt
from PIL import Image

Taps = npt.NDArray[np.float64]


def gaussian_taps(size: int, sigma: float) -> Taps:
    """`size` (odd) weights of a Gaussian of `sigma` pixels, which sum to 1."""
    taps = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    normalised: Taps = taps / taps.sum()
    return normalised


def blurred(image: Image.Image, taps: Taps) -> Image.Image:
    """`taps` along both axes of every channel, in float, rounded once; outside, the image is mirrored at its outermost pixels."""
    from scipy.ndimage import correlate1d

    down = correlate1d(np.asarray(image), taps, axis=0, output=np.float32, mode="mirror")
    across = correlate1d(down, taps, axis=1, mode="mirror")
    return Image.fromarray((across + np.float32(0.5)).astype(np.uint8))
