"""Compile a detector with torch.compile and CUDA graphs if its scores stay the same.

Start at `compile_checked`. Compiling takes about a minute per network and batch shape. It saves
time only for runs of several hundred thousand images on a GPU, and never on a CPU.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ray_app.detectors.card_sections import generate_formula_image
from ray_app.detectors.detector import Detector
from ray_app.detectors.precision import TOLERANCE, exceeds_tolerance
from ray_app.errors import describe_error

Compiler = Callable[[nn.Module], Any]


def compile_with_cuda_graphs(network: nn.Module) -> Any:
    """Compile a network for a constant input shape, so that it runs as one CUDA graph."""
    return torch.compile(network, mode="reduce-overhead", dynamic=False)


def compile_checked(
    detector: Detector, count: int, compiler: Compiler = compile_with_cuda_graphs
) -> str | None:
    """Compile the network of a detector, and keep the compiled network if its scores agree.

    The original and the compiled network score a batch of generated images. The compiled network
    does so twice, because the first pass only records the CUDA graph that later passes replay. Both
    passes must agree with the original within the tolerance of the precision (`TOLERANCE`).

    A network is not compiled if it keeps the size of images, replies with text, has a backbone, or
    records embeddings. Such a network has no static graph of its own.

    Args:
        detector: The detector, which is changed in place.
        count: Images per batch. The compiled network is for batches of this size.
        compiler: Compiles a network.

    Returns:
        None if the compiled network is in use, else the reason why it is not.
    """
    card, eager = detector.card, detector.network
    if (
        card.preprocessing.shape is None
        or card.replies
        or card.backbone is not None
        or detector.keeps_embeddings
    ):
        return "not compiled: it has no static graph of its own"
    pixels = _generate_images(count, card.preprocessing.shape)
    expected = _scores(detector, pixels)
    try:
        detector.network = compiler(eager)
        compiled_scores = [_scores(detector, pixels) for _ in range(2)]
    except Exception as error:  # The compiler raises exceptions of all its layers.
        detector.network = eager
        return f"not compiled: {describe_error(error)}"
    if any(exceeds_tolerance(scores, expected, detector.precision) for scores in compiled_scores):
        detector.network = eager
        max_difference = max(
            float(np.nanmax(np.abs(scores - expected))) for scores in compiled_scores
        )
        return f"not compiled: scores move by up to {max_difference:.2g}, {detector.precision} allows {TOLERANCE[detector.precision]:g}"
    return None


def _generate_images(count: int, shape: tuple[int, int]) -> torch.Tensor:
    """Return (count, height, width, 3) uint8: different crops of one generated image."""
    height, width = shape
    image = generate_formula_image(width + count, height)
    return torch.from_numpy(np.stack([image[:, start : start + width] for start in range(count)]))


def _scores(detector: Detector, pixels: torch.Tensor) -> npt.NDArray[np.float32]:
    scores: npt.NDArray[np.float32] = (
        detector.read(detector.normalise(pixels)).scores.float().cpu().numpy()
    )
    return scores
