"""Known generators: their names, other spellings of them, and their families (`find_generator`,
`family_of`, `title_of`), from configs/generators.yaml.

A name that is not listed may still say its family, as FAMILY/NAME: that is how fine-tuned models
are labelled.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import model_validator

from ray_app.config import Frozen, config_root, load_yaml

_SEPARATORS = re.compile(r"[\s._-]+")


class Family(Frozen):
    """A base architecture, and who made it."""

    title: str
    maker: str | None = None


class GeneratorEntry(Frozen):
    """One generator. `open`: its weights can be had; null where nobody checked."""

    family: str
    title: str
    aliases: tuple[str, ...] = ()
    open: bool | None = None


class GeneratorIndex(Frozen):
    """All that are known, by name."""

    families: Mapping[str, Family]
    generators: Mapping[str, GeneratorEntry]

    @model_validator(mode="after")
    def _unambiguous(self) -> "GeneratorIndex":
        taken: dict[str, str] = {}
        for name, one in self.generators.items():
            if one.family not in self.families:
                raise ValueError(f"{name}: its family {one.family!r} is not listed")
            for spelling in (name, *one.aliases):
                if taken.setdefault(spelling_key(spelling), name) != name:
                    raise ValueError(f"{spelling!r} is {taken[spelling_key(spelling)]} and {name}")
        return self


@dataclass(frozen=True)
class ResolvedGenerator:
    """What the index knows of a name: the generator's own (None where only its family is known),
    and the family's.
    """

    name: str | None
    family: str


def spelling_key(name: str) -> str:
    """A name as names are compared: without case, blanks, dots, dashes and underscores."""
    return _SEPARATORS.sub("", name.casefold())


@cache
def generator_index(path: Path | None = None) -> GeneratorIndex:
    """The shipped index, or that of a file. Raises ConfigError."""
    return load_yaml(path or config_root() / "generators.yaml", GeneratorIndex)


def find_generator(name: str, index: GeneratorIndex | None = None) -> ResolvedGenerator | None:
    """The generator that a name means, by any spelling; the family alone of a family's name or of
    FAMILY/NAME; None for a stranger.
    """
    index, wanted = index or generator_index(), spelling_key(name)
    for own, entry in index.generators.items():
        if wanted in map(spelling_key, (own, *entry.aliases)):
            return ResolvedGenerator(own, entry.family)
    families = {spelling_key(family): family for family in index.families}
    family = families.get(wanted) or families.get(spelling_key(name.partition("/")[0]))
    return None if family is None else ResolvedGenerator(None, family)


def family_of(name: str, index: GeneratorIndex | None = None) -> str | None:
    """The family of a generator by any spelling of its name; None for a stranger."""
    found = find_generator(name, index)
    return None if found is None else found.family


def title_of(name: str) -> str:
    """A generator's name for people: its title where the index knows it by this or another
    spelling, else the name itself.
    """
    found = find_generator(name)
    return (
        name
        if found is None or found.name is None
        else generator_index().generators[found.name].title
    )


def family_title(family: str) -> str:
    """A family's name for people: its title where the index has it, else its own name."""
    one = generator_index().families.get(family)
    return family if one is None else one.title


def matches(wanted: str, name: str | None, family: str | None) -> bool:
    """Whether a word that a user typed, in any spelling, means this generator or its family."""
    if name is None:
        return False
    entry = find_generator(wanted)
    return spelling_key(wanted) in (spelling_key(name), spelling_key(family or name)) or (
        entry is not None and entry.name is not None and find_generator(name) == entry
    )
