"""The index of known generators: their names, other spellings, and families, from
configs/generators.yaml.

A name that is not listed may still begin with its family, as FAMILY/NAME does, the label of a
fine-tuned model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from pydantic import Field, model_validator

from ray_app.config import Frozen, config_root, load_yaml

_SEPARATORS = re.compile(r"[\s._-]+")


class Family(Frozen):
    """A base architecture."""

    title: str
    maker: str | None = None


class GeneratorEntry(Frozen):
    """A generator."""

    family: str
    title: str
    aliases: tuple[str, ...] = ()
    open: bool | None = Field(
        default=None, description="whether its weights are available; null = not known"
    )


@dataclass(frozen=True)
class ResolvedGenerator:
    """The entry of a name.

    Attributes:
        name: The generator's name in the index; None if only its family is known.
        family: The family's name in the index.
    """

    name: str | None
    family: str


class GeneratorIndex(Frozen):
    """All known families and generators by name."""

    families: Mapping[str, Family]
    generators: Mapping[str, GeneratorEntry]

    @model_validator(mode="after")
    def _is_unambiguous(self) -> "GeneratorIndex":
        names: dict[str, str] = {}
        for name, entry in self.generators.items():
            if entry.family not in self.families:
                raise ValueError(f"{name}: its family {entry.family!r} is not listed")
            for spelling in (name, *entry.aliases):
                other = names.setdefault(spelling_key(spelling), name)
                if other != name:
                    raise ValueError(f"{spelling!r} is {other} and {name}")
        return self

    @cached_property
    def families_by_key(self) -> Mapping[str, str]:
        """The name of each family by its key."""
        return {spelling_key(name): name for name in self.families}

    @cached_property
    def entries_by_key(self) -> Mapping[str, ResolvedGenerator]:
        """The generator or family of each spelling's key. A generator replaces a family of its
        name.
        """
        entries = {key: ResolvedGenerator(None, name) for key, name in self.families_by_key.items()}
        for name, entry in self.generators.items():
            for spelling in (name, *entry.aliases):
                entries[spelling_key(spelling)] = ResolvedGenerator(name, entry.family)
        return entries


def spelling_key(name: str) -> str:
    """Return the key under which names are compared: without case, spaces, dots, dashes, and
    underscores.
    """
    return _SEPARATORS.sub("", name.casefold())


@cache
def generator_index() -> GeneratorIndex:
    """Load the shipped index."""
    return load_yaml(config_root() / "generators.yaml", GeneratorIndex)


def find_generator(name: str) -> ResolvedGenerator | None:
    """Return the generator that a name means, by any spelling; the family alone for its name or
    FAMILY/NAME; None for an unknown name.
    """
    index = generator_index()
    if entry := index.entries_by_key.get(spelling_key(name)):
        return entry
    family = index.families_by_key.get(spelling_key(name.partition("/")[0]))
    return None if family is None else ResolvedGenerator(None, family)


def family_of(name: str) -> str | None:
    """Return the family of a generator by any spelling of its name; None for an unknown one."""
    entry = find_generator(name)
    return None if entry is None else entry.family


def title_of(name: str) -> str:
    """Return the title of a generator by any spelling; the name itself if it has none."""
    entry = find_generator(name)
    if entry is None or entry.name is None:
        return name
    return generator_index().generators[entry.name].title


def family_title(family: str) -> str:
    """Return the title of a family; the name itself if it has none."""
    entry = generator_index().families.get(family)
    return family if entry is None else entry.title


def matches(query: str, name: str | None, family: str | None) -> bool:
    """Return whether a query, in any spelling, means this generator or its family."""
    if name is None:
        return False
    if spelling_key(query) in (spelling_key(name), spelling_key(family or name)):
        return True
    entry = find_generator(query)
    return entry is not None and entry.name is not None and find_generator(name) == entry
