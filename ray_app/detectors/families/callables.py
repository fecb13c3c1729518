"""Build the family `callable`: Python code of a user, run in a separate process.

`callables.process` starts the process. The code gets pixels from 0 to 255. The card of a callable
therefore has mean 0 and standard deviation 1/255, with which `Normalise` keeps their values.
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

    A callable is Python code of a user, which runs in a process of its own. If it fails on an
    image, the score of the image is NaN, and `failures` of the prediction has the reason. The
    network has no parameters. Call `attach`, then `to`, which starts the process for a device.
    Copies of the network share the process.

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
        """Read the identity that the callable had when its card was written.

        The identity is everything that affects the callable's scores, such as digests of its
        source. `to` compares it with the present callable. `files` is the card's folder. Raises
        DetectorError if the file of the identity is unreadable.
        """
        self._identity = read_identity(self._card, files)

    def to(self, *where: Any, **how: Any) -> Self:
        """Start the process of the callable for a device, such as "cpu" or "cuda:0".

        Raises DetectorError if the process cannot be started, if the callable cannot be loaded, or
        if it has changed since its card was written.
        """
        if where and isinstance(where[0], str) and self._process is None:
            self._process = CallableProcess(self._card, self._identity, where[0])
            weakref.finalize(self, self._process.close)
            self._process.open()
        return self

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """Score a batch of images: pixels (N, 3, H, W), 0 to 255 → log-odds of fake and masks.

        Raises DetectorError if `to` was not called, or if the process has exited and cannot be
        started again.
        """
        if self._process is None:
            raise DetectorError(
                f"{self._card.name}: its process is not started",
                hint="call .to(device) on the network first, which starts the process",
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
    """Build the network of a card, without starting its process.

    A callable gets pixels from 0 to 255. Raises DetectorError if the mean and standard deviation on
    the card would change their values, or if the card has no section `process`.
    """
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
