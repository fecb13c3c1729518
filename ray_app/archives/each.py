"""How a function is applied to many items: `Each`, and `in_turn`, which needs nothing but this process."""

from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Each(Protocol):
    """Something that applies a picklable function to items, in whatever processes, and gives the results in their order."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Generator[R, None, None]:
        """Raises what the function raises, if it is a TouchstoneError as it was. To be closed by whoever may leave early."""


def in_turn(function: Callable[[T], R], items: Iterable[T], /) -> Generator[R, None, None]:
    """One after another, in this process."""
    return (function(item) for item in items)
