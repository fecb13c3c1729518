"""Confident mistakes under what they were taken for, as pages list them. Knows labels; knows no score and no page."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

_CAPTIONS = {"fake": "Fakes that it takes for real", "real": "Real images that it takes for fake"}


class Mistake(Protocol):
    """One image that was told wrong."""

    @property
    def label(self) -> str:
        """What it is: real or fake."""


M = TypeVar("M", bound=Mistake)


def captioned(mistakes: Sequence[M], picture: Callable[[M], str | None], *, most: int) -> list[tuple[str, list[tuple[M, str | None]]]]:
    """Of either label the first `most`, each with its picture's data URI or None; a label without mistakes is left out."""
    found = []
    for label, caption in _CAPTIONS.items():
        mine = [(one, picture(one)) for one in mistakes if one.label == label][:most]
        found += [(caption, mine)] if mine else []
    return found
