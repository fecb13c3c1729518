"""A predicted prompt, and what predicts some. Knows text and numbers; knows no model."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from ray_app.profiling.cards import DescriberCard


class Described(NamedTuple):
    """The words that an image may have been made from. `likelihood`: how much its model believes in them: the mean log-probability of a
    token (at most 0) where words were generated, the cosine to the nearest embedding where they were found; never NaN or infinite, but
    None where there was nothing to say words of, or where the model gave no number.
    """

    text: str
    likelihood: float | None


NOTHING = Described("", None)
"""What is said of an image that left no embedding."""


class Describer(Protocol):
    """One of the means, loaded and ready."""

    @property
    def card(self) -> DescriberCard:
        """Which it is."""
        ...

    def describe(self, given: npt.NDArray[Any]) -> Sequence[Described]:
        """One per row of `given`: embeddings (n, d) float32 where the card names a detector, else pixels (n, H, W, 3) uint8 as its
        preprocessing prepares them. The same for an image whatever it was batched with; NOTHING of a row of NaN.
        """
        ...
