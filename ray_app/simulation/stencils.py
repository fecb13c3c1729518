"""Small 2-D filters on (height, width[, channels]) float32 arrays, on one core and without a thread pool.

Knows arrays. Knows nothing about what they show.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Plane = NDArray[np.float32]


def convolve(image: Plane, kernel: ArrayLike) -> Plane:
    """Correlate every channel with one odd-sized kernel; borders are mirrored; same shape out."""
    from scipy.ndimage import correlate

    weight = np.asarray(kernel, dtype=np.float32)
    if image.ndim == 2:
        return np.asarray(correlate(image, weight, mode="mirror"), dtype=np.float32)
    planes = [convolve(np.ascontiguousarray(image[..., channel]), weight) for channel in range(image.shape[2])]
    return np.stack(planes, axis=-1)


def blur(image: Plane, sigma: float) -> Plane:
    """Gaussian blur of every channel, cut off at 3 sigma."""
    from scipy.ndimage import gaussian_filter

    sigmas = (sigma, sigma, 0)[: image.ndim]
    return np.asarray(gaussian_filter(image, sigmas, mode="mirror", truncate=3), dtype=np.float32)
