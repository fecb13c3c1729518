"""`compile_checked`: torch.compile with CUDA graphs for one detector on a GPU, kept only where its
scores stay what they were.

Compiling takes about a minute per network and shape; it is for runs of many hundred thousand
images, and never for a CPU.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ray_app.detectors.card_sections import formula_image
from ray_app.detectors.detector import Detector
from ray_app.detectors.precision import TOLERANCE, beyond_tolerance
from ray_app.errors import describe_error

Compiler = Callable[[nn.Module], Any]


def with_cuda_graphs(network: nn.Module) -> Any:
    """The network compiled for shapes that do not change, launched as one graph."""
    return torch.compile(network, mode="reduce-overhead", dynamic=False)


def compile_checked(
    detector: Detector, count: int, compiler: Compiler = with_cuda_graphs
) -> str | None:
    """Let a detector's network run compiled from now on, for batches of `count`; None, or why it
    stays as it was.

    Both ways score a batch of made images; the compiled one has to agree within the tolerance of
    the precision, twice, since the first pass records what later ones replay. What keeps images'
    sizes, answers in words, shares a backbone or keeps embeddings has no static graph of its own.
    """
    card, eager = detector.card, detector.network
    if (
        card.preprocessing.shape is None
        or card.replies
        or card.backbone is not None
        or detector.keeps_embeddings
    ):
        return "not compiled: it has no static graph of its own"
    pixels = _made_images(count, card.preprocessing.shape)
    expected = _scores(detector, pixels)
    try:
        detector.network = compiler(eager)
        found = [_scores(detector, pixels) for _ in range(2)]
    except Exception as error:  # a compiler raises whatever its layers do
        detector.network = eager
        return f"not compiled: {describe_error(error)}"
    if any(beyond_tolerance(scores, expected, detector.precision) for scores in found):
        detector.network = eager
        most = max(float(np.nanmax(np.abs(scores - expected))) for scores in found)
        return f"not compiled: scores move by up to {most:.2g}, beyond what {detector.precision} allows ({TOLERANCE[detector.precision]:g})"
    return None


def _made_images(count: int, shape: tuple[int, int]) -> torch.Tensor:
    """(count, height, width, 3) uint8: cuts from one image by formula, no two alike."""
    height, width = shape
    whole = formula_image(width + count, height)
    return torch.from_numpy(np.stack([whole[:, start : start + width] for start in range(count)]))


def _scores(detector: Detector, pixels: torch.Tensor) -> npt.NDArray[np.float32]:
    scores: npt.NDArray[np.float32] = (
        detector.read(detector.normalise(pixels)).scores.float().cpu().numpy()
    )
    return scores
