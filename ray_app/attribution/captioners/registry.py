"""`load_describing`: from a describer's card to what predicts prompts (`Describer` → `Caption`); torch is imported only for tiers that need
it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from ray_app.attribution.cards import DescriberCard


class Caption(NamedTuple):
    """The words that an image may have been made from. `likelihood`: how much its model believes in them: the mean log-probability of a
    token (at most 0) where words were generated, the cosine to the nearest embedding where they were found; never NaN or infinite, but
    None where there was nothing to say words of, or where the model gave no number.
    """

    text: str
    likelihood: float | None


NOTHING = Caption("", None)
"""The caption of an image that left no embedding."""


class Describer(Protocol):
    """One of the means, loaded and ready."""

    @property
    def card(self) -> DescriberCard:
        """Which it is."""
        ...

    def describe(self, given: npt.NDArray[Any]) -> Sequence[Caption]:
        """One per row of `given`: embeddings (n, d) float32 where the card names a detector, else pixels (n, H, W, 3) uint8 as its
        preprocessing prepares them. The same for an image whatever it was batched with; NOTHING of a row of NaN.
        """
        ...


def load_describing(card: DescriberCard, *, device: str = "cpu", cache_dir: Path | None = None, offline: bool | None = None) -> Describer:
    """The describer of a card, its weights read and on `device`, ready to be given batches. Raises DetectorError."""
    if device.startswith("cuda") and card.tier != "retrieval":
        from ray_app.detectors.precision import forbid_tf32

        forbid_tf32()  # else its words would hang on which detectors share its process
    if card.tier == "retrieval":
        from ray_app.attribution.captioners.retrieval import Retrieval

        return Retrieval(card, cache_dir, offline)
    if card.tier == "prefix":
        from ray_app.attribution.captioners.prefix import PrefixDescriber

        return PrefixDescriber(card, device, cache_dir, offline)
    if card.tier == "captioner":
        from ray_app.attribution.captioners.caption import Captioner

        return Captioner(card, device, cache_dir, offline)
    from ray_app.attribution.captioners.caption import DialogueDescriber

    return DialogueDescriber(card, device, cache_dir, offline)
