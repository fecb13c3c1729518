"""What real training images look like to OpenFake's first policy: how large and how sharp they are. Knows pixels; knows no data set."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_app.errors import ConfigError


@dataclass(frozen=True)
class RealStatistics:
    """`areas_px` (n,) int64 and `sharpness` (m,) float64 of real images; the policy draws from each on its own."""

    areas_px: npt.NDArray[np.int64]
    sharpness: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, values, least in (("areas", self.areas_px, 1), ("sharpness", self.sharpness, 0)):
            if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or values.min() < least:
                raise ConfigError(f"statistics of real images: {name} must be one list of numbers from {least} on, with at least one")


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the luma, in grey levels squared: the measure of blur in `real_train_stats.npz`.

    The 3 × 3 Laplacian (0 1 0, 1 −4 1, 0 1 0) with the border mirrored at its pixels' centres, as OpenCV's. specs/detectors.md §1b.
    """
    luma = np.pad(np.asarray(image.convert("L"), np.int16), 1, mode="reflect")
    centre = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * centre
    return float(laplacian.var(dtype=np.float64))


def load_statistics(path: Path) -> RealStatistics:
    """Read the authors' form: .npz with `blur_vals` (m,) and `res_vals` (n, 2) of (height, width). Raises ConfigError naming the file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            blur, sizes = arrays["blur_vals"].astype(np.float64), arrays["res_vals"].astype(np.int64)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise ConfigError(f"{path}: no statistics of real images: {error}", hint="an .npz with blur_vals and res_vals") from error
    if sizes.ndim != 2 or sizes.shape[1] != 2:
        raise ConfigError(f"{path}: res_vals must be (n, 2) heights and widths, but its shape is {sizes.shape}")
    return RealStatistics(areas_px=sizes.prod(axis=1), sharpness=blur)


def save_statistics(path: Path, statistics: RealStatistics) -> None:
    """Write what `load_statistics` reads; a size is kept as its area × 1, which is all that the policy asks of it."""
    sizes = np.stack([statistics.areas_px, np.ones_like(statistics.areas_px)], axis=1)
    np.savez(path, blur_vals=statistics.sharpness, res_vals=sizes)
