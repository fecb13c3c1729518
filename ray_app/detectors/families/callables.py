"""The family `callable`: any Python callable, asked in a process of its own (`callables.process`).

What such a "network" is given are pixels, not numbers around zero: its card has mean 0 and standard
deviation 1/255.
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
    """Pixels (N, 3, H, W), 0 to 255, → log-odds of fake (N, 1) and masks, NaN and a word of why
    where the detector failed on an image.

    It has no parameters: `attach` reads what the detector must be, `to` starts its process for a
    device. Copies share that process.
    """

    reads_its_own_weights = True

    def __init__(self, card: DetectorCard) -> None:
        super().__init__()
        self._card = card
        self._identity: dict[str, Any] | None = None
        self._process: CallableProcess | None = None

    def attach(self, files: Path) -> None:
        """Read from the folder of the card's file what the detector was when the card was written.
        Raises DetectorError.
        """
        self._identity = read_identity(self._card, files)

    def to(self, *where: Any, **how: Any) -> Self:
        """Start the process for a device. Raises DetectorError where the detector cannot be had
        there, or is another one.
        """
        if where and isinstance(where[0], str) and self._process is None:
            self._process = CallableProcess(self._card, self._identity, where[0])
            weakref.finalize(self, self._process.close)
            self._process.open()
        return self

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """Score a batch; see the class for shapes."""
        if self._process is None:
            raise DetectorError(
                f"{self._card.name}: its process is not started",
                hint="move the network to a device first",
            )
        images = pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous().numpy()
        unlike, given = (
            "it gives a mask of some images, and of others none",
            self._process.score(list(images)),
        )
        found = [
            one if isinstance(one, str) or (one.mask is not None) == self._card.masks else unlike
            for one in given
        ]
        scores = [math.nan if isinstance(one, str) else one.score for one in found]
        masks = [
            None if isinstance(one, str) or one.mask is None else torch.tensor(one.mask)
            for one in found
        ]
        return Prediction(
            torch.tensor(scores, dtype=torch.float64, device=pixels.device)[:, None],
            masks if self._card.masks else None,
            failures=tuple(one if isinstance(one, str) else None for one in found),
        )

    def __deepcopy__(self, known: dict[int, Any]) -> Self:
        return self


def build(card: DetectorCard) -> nn.Module:
    """The callable that a card describes, not started. Raises DetectorError."""
    if card.process is None:
        raise DetectorError(
            f"{card.name}: `process` is missing",
            hint=f"touchstone detectors add {card.family}:… writes such a card",
        )
    if card.preprocessing.mean != (0.0, 0.0, 0.0) or card.preprocessing.std != (PIXEL_STD,) * 3:
        raise DetectorError(
            f"{card.name}: it is given pixels",
            hint="preprocessing: mean 0, std 0.00392156862745098 (1/255), three times",
        )
    return CallableNetwork(card)
