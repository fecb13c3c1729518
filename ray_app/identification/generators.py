"""Look up generators in the index of known generators (configs/generators.yaml).

A generator is a model that generates images, such as a version of Stable Diffusion. The index has
the name, other spellings, and the family of each generator. A name that is not in the index may
still begin with its family: FAMILY/NAME is the label of a fine-tuned model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from pydantic import Field, model_validator

from ray_app.config import Frozen, config_root, load_yaml

_SEPARATORS = re.compile(r"[\s._-]+")


class Family(Frozen):
    """A family of generators with the same base architecture."""

    title: str = Field(description="name for people")
    maker: str | None = Field(default=None, description="organisation that created it")


class GeneratorEntry(Frozen):
    """A known generator in the index."""

    family: str = Field(description="name of its family")
    title: str = Field(description="name for people")
    aliases: tuple[str, ...] = Field(default=(), description="other spellings")
    open: bool | None = Field(
        default=None, description="whether its weights are available. null means unknown"
    )


@dataclass(frozen=True)
class ResolvedGenerator:
    """The known generator or family that a name means, such as "SDXL 1.0" in any spelling.

    Attributes:
        name: Name of the generator in the index. None if only its family is known.
        family: Name of the family in the index.
    """

    name: str | None
    family: str


class GeneratorIndex(Frozen):
    """The index of known generators, which are models that generate images, by name and family."""

    families: Mapping[str, Family] = Field(description="families by name")
    generators: Mapping[str, GeneratorEntry] = Field(description="generators by name")

    @model_validator(mode="after")
    def _check_names(self) -> "GeneratorIndex":
        names: dict[str, str] = {}
        for name, entry in self.generators.items():
            if entry.family not in self.families:
                raise ValueError(f"{name}: unknown family {entry.family!r}")
            for spelling in (name, *entry.aliases):
                other = names.setdefault(spelling_key(spelling), name)
                if other != name:
                    raise ValueError(f"{spelling!r} means both {other} and {name}")
        return self

    @cached_property
    def families_by_key(self) -> Mapping[str, str]:
        """Name of each family by its key, with which a family is found in any spelling.

        To look up a name, use the result of `spelling_key` as the key.
        """
        return {spelling_key(name): name for name in self.families}

    @cached_property
    def entries_by_key(self) -> Mapping[str, ResolvedGenerator]:
        """Every known generator and family by its key. The aliases of generators are also keys.

        To look up a name in any spelling, use the result of `spelling_key` as the key. If a
        generator and a family have equal keys, the key means the generator.
        """
        entries = {key: ResolvedGenerator(None, name) for key, name in self.families_by_key.items()}
        for name, entry in self.generators.items():
            for spelling in (name, *entry.aliases):
                entries[spelling_key(spelling)] = ResolvedGenerator(name, entry.family)
        return entries


def spelling_key(name: str) -> str:
    """Return the key by which names of generators are compared.

    It is the name in lower case without spaces, dots, dashes, and underscores.
    """
    return _SEPARATORS.sub("", name.casefold())


@cache
def generator_index() -> GeneratorIndex:
    """Load the shipped index of known generators."""
    return load_yaml(config_root() / "generators.yaml", GeneratorIndex)


def find_generator(name: str) -> ResolvedGenerator | None:
    """Return the known generator that a name means, in any spelling, or None if it is unknown.

    The result has only a family if `name` is the name of a family, or FAMILY/NAME. FAMILY/NAME is
    the label of a fine-tuned model that is not in the index.
    """
    index = generator_index()
    if entry := index.entries_by_key.get(spelling_key(name)):
        return entry
    family = index.families_by_key.get(spelling_key(name.partition("/")[0]))
    return None if family is None else ResolvedGenerator(None, family)


def find_family(name: str) -> str | None:
    """Return the family of a generator, in any spelling of its name, or None if it is unknown."""
    entry = find_generator(name)
    return None if entry is None else entry.family


def find_title(name: str) -> str:
    """Return the title of a generator for people, or the name itself if the generator is unknown.

    `name` is the name of the generator in any spelling.
    """
    entry = find_generator(name)
    if entry is None or entry.name is None:
        return name
    return generator_index().generators[entry.name].title


def family_title(family: str) -> str:
    """Return the title of a family of generators for people, or its name if it is unknown."""
    entry = generator_index().families.get(family)
    return family if entry is None else entry.title


def matches(query: str, name: str | None, family: str | None) -> bool:
    """Return whether a user's query means the generator of an image, or its family.

    Args:
        query: Name of a generator or family that the user searches for, in any spelling.
        name: Name of the image's generator. None if it is unknown; then the result is False.
        family: Family of the image's generator. None if it is unknown.
    """
    if name is None:
        return False
    if spelling_key(query) in (spelling_key(name), spelling_key(family or name)):
        return True
    entry = find_generator(query)
    return entry is not None and entry.name is not None and find_generator(name) == entry
