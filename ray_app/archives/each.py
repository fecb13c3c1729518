"""How a function is applied to many items: `Each`, and `in_turn`, which needs nothing but this process."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Each(Protocol):
    """Something that applies a picklable function to items, in whatever processes, and gives the results in their order."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """Raises what the function raises, if it is a TouchstoneError as it was."""


def in_turn(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
    """One after another, in this process."""
    return map(function, items)
