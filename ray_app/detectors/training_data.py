"""`TrainingData`: what a card says of the images that its weights were trained on; `SeenNames`, what labels tell of them."""

import glob
from collections.abc import Iterable
from typing import NamedTuple, Self

from pydantic import Field

from ray_app.config import Frozen

_UNKNOWN = ("", "real", "unknown")  # what labels say where nobody knows the maker of a fake, or the source of a real image


class TrainingData(Frozen):
    """What the weights were trained on, and under which licence that is published.

    `generators`: globs over the names that labels give to the generators of its fakes (case, spaces, dots, dashes and underscores make no
    difference). `sources`: such globs over the `source` that labels give images, of all that weights were fitted or chosen on.
    `complete`: no other generator was seen, and where sources are named no other source; without it, what is not named is unknown.
    """

    name: str
    images: str | None = None
    licence: str
    source: str | None = None
    generators: tuple[str, ...] = ()
    sources: tuple[str, ...] = Field(default=(), exclude_if=lambda named: not named)
    complete: bool = False


class SeenNames(NamedTuple):
    """The fields of `TrainingData` that say which generators and sources weights have seen."""

    generators: tuple[str, ...]
    sources: tuple[str, ...]
    complete: bool

    @classmethod
    def of(cls, makers: Iterable[str], sources: Iterable[str]) -> Self:
        """From the generators of all fakes and the sources of all real images, as labels name them (`real:camera` or `camera`)."""
        generators, all_made = _named(makers)
        known, all_from = _named(source.removeprefix("real:") for source in sources)
        return cls(generators, known, bool(generators) and all_made and (all_from or not known))

    def after(self, before: TrainingData) -> Self:
        """With all that the weights had seen of which these are a fine-tune. Sources that only one of the two names are not all."""
        complete = before.complete and self.complete and bool(before.sources) == bool(self.sources)
        generators, sources = (
            tuple(dict.fromkeys((*old, *new))) for old, new in ((before.generators, self.generators), (before.sources, self.sources))
        )
        return type(self)(generators, sources, complete)


def _named(names: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """A glob for each different name, and whether none is unknown."""
    found = dict.fromkeys(names)
    return tuple(glob.escape(name) for name in found if name not in _UNKNOWN), found.keys().isdisjoint(_UNKNOWN)
