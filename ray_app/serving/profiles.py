"""Generator and prompt of an image behind the endpoint, once an ensemble has decided:
`ProfileRequest` → `ProfileResponse`.

Heads and describers sit with the detector whose embeddings they read, those that look at pixels in
the first group.
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
    """One image for the profile of an ensemble, as a group with this fingerprint has it.
    `identify`: an embedding (d,), None where that is not this group's, or not wanted; `describe`:
    an embedding or pixels (H, W, 3) uint8, likewise.
    """

    group: str
    ensemble: str
    identify: Vector | None
    describe: Vector | batch.Pixels | None


@dataclass(frozen=True)
class ProfileResponse:
    """What a profile predicts for one image (`identified`: one row); None where it was not
    requested, or there is none.
    """

    identified: Identified | None = None
    described: Caption | None = None

    def joined(self, other: "ProfileResponse") -> "ProfileResponse":
        """Both, of other groups."""
        return ProfileResponse(
            self.identified or other.identified, self.described or other.described
        )


def profile_cards(spec: ScoringSpec) -> tuple[IdentifierCard | DescriberCard, ...]:
    """The cards of an ensemble's profile."""
    return tuple(card for card in (spec.identifier, spec.describer) if card is not None)


def group_of_card(card: IdentifierCard | DescriberCard, groups: Mapping[str, Sequence[str]]) -> str:
    """The group of a profile's card: that of its detector, the first for one that looks at pixels."""
    return next(
        (name for name, pool in groups.items() if card.detector in pool), next(iter(groups))
    )


def without_profile(spec: ScoringSpec, profiled: Sequence[ScoringSpec]) -> ScoringSpec:
    """A spec of all detectors: embeddings are kept of those that the profiles of some ensembles
    read, and nothing is made of them.
    """
    cards = [card for one in profiled for card in profile_cards(one)]
    read = {card.detector: dict(card.embedding) for card in cards if card.detector is not None}
    return replace(spec, identifier=None, describer=None, features=read)


class Profilers:
    """The identifiers and describers of one group, by ensemble. Raises ConfigError and
    DetectorError where one cannot be loaded.
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

    def check(self, embeddings: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Run each once, on an ordinary image with these embeddings. Raises what they raise."""
        for head in self._identifiers.values():
            head.identify(embeddings[head.card.detector])
        for describer in self._describers.values():
            card = describer.card
            if card.detector is not None:
                describer.describe(embeddings[card.detector])
            elif card.preprocessing is not None and card.preprocessing.shape is not None:
                describer.describe(np.zeros((1, *card.preprocessing.shape, 3), np.uint8))

    def say(self, requests: Sequence[ProfileRequest]) -> list[ProfileResponse]:
        """One answer per request, in order. One that raises predicts nothing, of the images that
        came with it neither.
        """
        answers = [ProfileResponse()] * len(requests)
        for name in dict.fromkeys(request.ensemble for request in requests):
            places = [place for place, request in enumerate(requests) if request.ensemble == name]
            if head := self._identifiers.get(name):
                for place, one in _predicted(
                    [(place, requests[place].identify) for place in places],
                    partial(_identify_each, head),
                ):
                    answers[place] = replace(answers[place], identified=one)
            if describer := self._describers.get(name):
                for place, words in _predicted(
                    [(place, requests[place].describe) for place in places], describer.describe
                ):
                    answers[place] = replace(
                        answers[place],
                        described=words if words.text and words.likelihood is not None else None,
                    )
        return answers


def _identify_each(head: Identifier, vectors: npt.NDArray[Any]) -> list[Identified]:
    identified = head.identify(vectors)
    return [identified.select(slice(row, row + 1)) for row in range(len(vectors))]


def _predicted(
    inputs: Sequence[tuple[int, Any]], predict: Callable[[npt.NDArray[Any]], Sequence[Any]]
) -> list[tuple[int, Any]]:
    """Places with the prediction for what stands there; none for what is not there or not finite."""
    there = [(place, one) for place, one in inputs if one is not None and np.isfinite(one).all()]
    if not there:
        return []
    try:
        return list(
            zip(
                [place for place, _ in there],
                predict(np.stack([one for _, one in there])),
                strict=True,
            )
        )
    except Exception:
        _log.exception("a profile predicted nothing for %d images", len(there))
        return []
