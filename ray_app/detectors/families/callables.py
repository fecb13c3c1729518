"""Build the family `callable`: any Python callable, run in a separate process.

`callables.process` starts the process. The input of the "network" is pixels from 0 to 255, so the
card of a callable has mean 0 and standard deviation 1/255.
"""

import math
import weakref
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from ray_app.detectors.callables.process import CallableProcess, read_identity
from ray_app.detectors.card import DetectorCard
from ray_app.detectors.detector import Prediction
from ray_app.errors import DetectorError

PIXEL_STD = 1 / 255


class CallableNetwork(nn.Module):
    """A callable as a network: pixels (N, 3, H, W), 0 to 255 → log-odds of fake (N, 1) and masks.

    If the callable fails on an image, the score of the image is NaN, and `failures` has the reason.
    The network has no parameters: `attach` reads the identity of the detector, `to` starts its
    process for a device. Copies share the process.

    Args:
        card: The detector card.
    """

    reads_its_own_weights = True

    def __init__(self, card: DetectorCard) -> None:
        super().__init__()
        self._card = card
        self._identity: dict[str, Any] | None = None
        self._process: CallableProcess | None = None

    def attach(self, files: Path) -> None:
        """Read the identity that the detector had when its card was written.

        `files` is the card's folder. Raises DetectorError.
        """
        self._identity = read_identity(self._card, files)

    def to(self, *where: Any, **how: Any) -> Self:
        """Start the process for a device.

        Raises DetectorError if the detector is unavailable or has another identity than expected.
        """
        if where and isinstance(where[0], str) and self._process is None:
            self._process = CallableProcess(self._card, self._identity, where[0])
            weakref.finalize(self, self._process.close)
            self._process.open()
        return self

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """Score a batch of images. See the class for shapes."""
        if self._process is None:
            raise DetectorError(
                f"{self._card.name}: its process is not started",
                hint="move the network to a device first",
            )
        images = pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous().numpy()
        inconsistent, outputs = (
            "the callable must return a mask for all images or for none",
            self._process.score(list(images)),
        )
        results = [
            result
            if isinstance(result, str) or (result.mask is not None) == self._card.masks
            else inconsistent
            for result in outputs
        ]
        scores = [math.nan if isinstance(result, str) else result.score for result in results]
        masks = [
            None if isinstance(result, str) or result.mask is None else torch.tensor(result.mask)
            for result in results
        ]
        return Prediction(
            torch.tensor(scores, dtype=torch.float64, device=pixels.device)[:, None],
            masks if self._card.masks else None,
            failures=tuple(result if isinstance(result, str) else None for result in results),
        )

    def __deepcopy__(self, known: dict[int, Any]) -> Self:
        return self


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card, without its process. Raises DetectorError."""
    if card.process is None:
        raise DetectorError(
            f"{card.name}: the card has no `process` section",
            hint=f"write the card with touchstone detectors add {card.family}:…",
        )
    if card.preprocessing.mean != (0.0, 0.0, 0.0) or card.preprocessing.std != (PIXEL_STD,) * 3:
        raise DetectorError(
            f"{card.name}: preprocessing must keep pixels from 0 to 255",
            hint="set preprocessing to mean 0 and std 0.00392156862745098 (1/255), three times each",
        )
    return CallableNetwork(card)
