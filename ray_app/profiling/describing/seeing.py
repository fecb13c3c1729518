"""What all describers that look at pixels do alike: normalise a batch, search for words. Knows no particular network."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from ray_app.detectors.detector import Normalise
from ray_app.errors import DetectorError
from ray_app.profiling.cards import DescriberCard
from ray_app.profiling.describing.described import Described
from ray_app.profiling.describing.speaking import Speaking, in_batches, likeliest
from ray_app.profiling.describing.words import Words


class PixelDescriber:
    """A network on its `device`, ready to be asked; `slots`: images that go through it at once where the card says nothing."""

    def __init__(self, card: DescriberCard, network: Speaking, words: Words, device: str, slots: int) -> None:
        assert card.preprocessing is not None, "its card says so"
        self.card, self._network, self._words, self._device = card, network, words, device
        self._slots = card.batch or slots
        self._normalise = Normalise(card.preprocessing).to(device)

    def describe(self, given: npt.NDArray[Any]) -> Sequence[Described]:
        """(n, H, W, 3) uint8, prepared as the card says → what is likeliest said of each. Raises DetectorError for other shapes."""
        if given.ndim != 4 or given.shape[3] != 3:
            raise DetectorError(f"{self.card.name}: pixels of shape {given.shape}, not (n, H, W, 3)")
        return in_batches(given, self._slots, self._said)

    def _said(self, pixels: npt.NDArray[Any]) -> Sequence[Described]:
        images = self._normalise(torch.from_numpy(pixels).to(self._device)).contiguous()
        return likeliest(self._network, images, self._words, self.card)
