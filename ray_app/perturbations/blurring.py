"""Gaussian blur by an explicit kernel, as OpenCV and torchvision do it, and as scipy does it. Knows PIL images; draws nothing."""

import numpy as np
import numpy.typing as npt
from PIL import Image

Taps = npt.NDArray[np.float64]

# OpenCV's fixed kernels for sizes whose sigma nobody gave (getGaussianKernel).
_SMALL = {1: (1.0,), 3: (0.25, 0.5, 0.25), 5: (0.0625, 0.25, 0.375, 0.25, 0.0625),
          7: (0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125)}  # fmt: skip


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


def opencv_taps(size: int) -> Taps:
    """What OpenCV takes for a kernel of `size` (odd) whose sigma it is to derive: 0.3 · ((size − 1) / 2 − 1) + 0.8, from 9 on."""
    if size in _SMALL:
        return np.array(_SMALL[size])
    return gaussian_taps(size, 0.3 * ((size - 1) * 0.5 - 1) + 0.8)


def scipy_blurred(image: Image.Image, sigma: float) -> Image.Image:
    """`scipy.ndimage.gaussian_filter` on each channel as uint8, as CNNDetection's code and its heirs call it.

    Both of its passes cut fractions off: the image comes out up to two grey levels darker, which is theirs to measure too.
    """
    from scipy.ndimage import gaussian_filter

    pixels = np.array(image)
    for channel in range(pixels.shape[2]):
        pixels[:, :, channel] = gaussian_filter(np.ascontiguousarray(pixels[:, :, channel]), sigma)
    return Image.fromarray(pixels)
