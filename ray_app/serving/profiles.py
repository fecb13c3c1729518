"""The generator and the prompt of an image at the endpoint, after its ensemble decided: a
`ProfileRequest` gets a `ProfileResponse`.

Identifiers and describers are in the group of the detector whose embeddings they read. Describers
that read pixels are in the first group.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.identification.captions import Caption, Describer
from ray_app.identification.cards import DescriberCard, IdentifierCard
from ray_app.identification.identifier import Identified, Identifier
from ray_app.inference import ScoringSpec, batch

_log = logging.getLogger(__name__)
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ProfileRequest:
    """One image for the profile of an ensemble.

    Attributes:
        group: Fingerprint of the group that gets the request.
        ensemble: Name of the ensemble.
        identify: Embedding (d,) for the identifier; None if it is not in this group.
        describe: Embedding, or pixels (H, W, 3) uint8, for the describer; None if it is not in this
            group or no prompt is needed.
    """

    group: str
    ensemble: str
    identify: Vector | None
    describe: Vector | batch.Pixels | None


@dataclass(frozen=True)
class ProfileResponse:
    """The generator of one image (one row) and its prompt; None if not requested or not predicted."""

    identified: Identified | None = None
    described: Caption | None = None

    def joined(self, other: "ProfileResponse") -> "ProfileResponse":
        """Return this response with the parts that another group predicted."""
        return ProfileResponse(
            self.identified or other.identified, self.described or other.described
        )


def profile_cards(spec: ScoringSpec) -> tuple[IdentifierCard | DescriberCard, ...]:
    """Return the cards of an ensemble's profile."""
    return tuple(card for card in (spec.identifier, spec.describer) if card is not None)


def group_of_card(card: IdentifierCard | DescriberCard, groups: Mapping[str, Sequence[str]]) -> str:
    """Return the group of a profile's card: that of its detector, or the first."""
    for name, pool in groups.items():
        if card.detector in pool:
            return name
    return next(iter(groups))


def without_profile(spec: ScoringSpec, profiled: Sequence[ScoringSpec]) -> ScoringSpec:
    """Return a spec that keeps the embeddings that some ensembles' profiles read, and that predicts
    nothing from them.
    """
    cards = [card for ensemble in profiled for card in profile_cards(ensemble)]
    features = {card.detector: dict(card.embedding) for card in cards if card.detector is not None}
    return replace(spec, identifier=None, describer=None, features=features)


class Profilers:
    """The identifiers and describers of one group, by ensemble.

    Raises:
        ConfigError: A card was fitted on other embeddings.
        DetectorError: Weights are missing or do not fit.
    """

    def __init__(
        self, ensembles: Mapping[str, ScoringSpec], groups: Mapping[str, Sequence[str]], group: str
    ) -> None:
        from ray_app.identification.captioners import build_describer
        from ray_app.inference.decision import require_embeddings

        self._identifiers: dict[str, Identifier] = {}
        self._describers: dict[str, Describer] = {}
        for name, spec in ensembles.items():
            if profile_cards(spec):
                require_embeddings(spec)
            if spec.identifier is not None and group_of_card(spec.identifier, groups) == group:
                self._identifiers[name] = Identifier(spec.identifier)
            if spec.describer is not None and group_of_card(spec.describer, groups) == group:
                self._describers[name] = build_describer(spec.describer, device=spec.device)

    def check(self, embeddings: Mapping[str, Vector]) -> None:
        """Run each on an ordinary image with these embeddings, and raise what it raises."""
        for identifier in self._identifiers.values():
            identifier.identify(embeddings[identifier.card.detector])
        for describer in self._describers.values():
            card = describer.card
            if card.detector is not None:
                describer.describe(embeddings[card.detector])
            elif card.preprocessing is not None and card.preprocessing.shape is not None:
                describer.describe(np.zeros((1, *card.preprocessing.shape, 3), np.uint8))

    def predict(self, requests: Sequence[ProfileRequest]) -> list[ProfileResponse]:
        """Return one response for each request, in order.

        If an identifier or describer raises, its part of all these responses is None.
        """
        responses = [ProfileResponse()] * len(requests)
        for name in dict.fromkeys(request.ensemble for request in requests):
            slots = [slot for slot, request in enumerate(requests) if request.ensemble == name]
            if name in self._identifiers:
                identify = partial(_identify_each, self._identifiers[name])
                vectors = {slot: requests[slot].identify for slot in slots}
                for slot, identified in _predict(vectors, identify).items():
                    responses[slot] = replace(responses[slot], identified=identified)
            if name in self._describers:
                images = {slot: requests[slot].describe for slot in slots}
                for slot, caption in _predict(images, self._describers[name].describe).items():
                    has_prompt = caption.text and caption.likelihood is not None
                    responses[slot] = replace(
                        responses[slot], described=caption if has_prompt else None
                    )
        return responses


def _identify_each(identifier: Identifier, vectors: npt.NDArray[Any]) -> list[Identified]:
    identified = identifier.identify(vectors)
    return [identified.select(slice(row, row + 1)) for row in range(len(vectors))]


def _predict(
    inputs: Mapping[int, npt.NDArray[Any] | None],
    predict: Callable[[npt.NDArray[Any]], Sequence[Any]],
) -> dict[int, Any]:
    """Return the prediction for each input that is finite, by its slot."""
    finite = {
        slot: image
        for slot, image in inputs.items()
        if image is not None and np.isfinite(image).all()
    }
    if not finite:
        return {}
    try:
        return dict(zip(finite, predict(np.stack(list(finite.values()))), strict=True))
    except Exception:
        _log.exception("a profile predicted nothing for %d images", len(finite))
        return {}
