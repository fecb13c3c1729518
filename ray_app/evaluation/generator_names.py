"""Compare names of generators in labels and predictions in any spelling (`Names`).

`read_names` reads the names that the identifier of a run, a model that names generators, can
predict.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_app.identification.generators import find_generator, generator_index, spelling_key

REAL = "real"


class Names:
    """Map names of generators to keys, so that all spellings of a generator have one key.

    The map uses a shipped index of generators with their spellings and families. An identifier is a
    model that names generators. If all names that it can predict are families of this index, all
    generators of a family have one key.

    Args:
        classes: The names that the identifier of a run can predict; empty without an identifier.
        families: The family of each class that is not in the index of generators.
    """

    def __init__(
        self, classes: Sequence[str] = (), families: Mapping[str, str] | None = None
    ) -> None:
        self._keys: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._predicted: dict[str, str] = {}
        self._families: dict[str, str] = {}
        index_families = generator_index().families
        self._by_family = bool(classes) and all(
            name in index_families or name == REAL for name in classes
        )
        entry = families or {}
        self._families = {self._key(name): entry.get(name) or self.family(name) for name in classes}
        self._predicted = {self._key(name): name for name in classes}
        self.classes = frozenset(self._families) - {REAL} if classes else None
        """The keys that the identifier can predict; None if they are not recorded."""
        self.class_families = (
            frozenset(self._families[key] for key in self.classes)
            if self.classes is not None
            else None
        )

    def label(self, name: str) -> str:
        """Return the key of a generator that the labels name, and remember its first spelling.

        `shown` returns this spelling.
        """
        key = self._key(name)
        self._labels.setdefault(key, name.strip())
        return key

    def predicted(self, name: str | None) -> str | None:
        """Return the key of a name that a run predicted; None if the name is None or blank.

        All spellings of a generator have one key. The first spelling is kept for `shown`.
        """
        if name is None or not name.strip():
            return None
        key = self._key(name)
        self._predicted.setdefault(key, name.strip())
        return key

    def shown(self, key: str | None) -> str | None:
        """Return the spelling of a generator to show in reports, given its key.

        The spelling is the first one that is available, in this order: from the labels, from the
        names that the run's identifier can predict (`classes`), and from predictions. If no
        spelling is available, it is the key.
        """
        return None if key is None else self._labels.get(key) or self._predicted.get(key) or key

    def family(self, key: str) -> str:
        """Return the family of a generator, such as `midjourney` for all versions of Midjourney.

        If the run's identifier, a model that names generators, records the family, this is the
        result. Otherwise, it is the family in the shipped index of generators. A generator that is
        not in the index is a family of its own.

        Args:
            key: The key or the name of the generator.

        Returns:
            The family.
        """
        if family := self._families.get(key):
            return family
        entry = find_generator(key)
        return entry.family if entry else key

    def _key(self, name: str) -> str:
        if name not in self._keys:
            key = _key(name.strip())
            self._keys[name] = self.family(key) if self._by_family else key
        return self._keys[name]


def read_names(run_info: Mapping[str, Any]) -> Names:
    """Return a map from names of generators to keys, for the predictions and labels of a run.

    Args:
        run_info: The content of `run.json`. If the run has an identifier, a model that names
            generators, `run.json` records the names that this model can predict.

    Returns:
        The map.
    """
    card = (run_info["identity"].get("profile") or {}).get("identifier") or {}
    return Names(card.get("classes", ()), card.get("families"))


def _key(name: str) -> str:
    if name.partition(":")[0].casefold() == REAL:
        return REAL
    match = find_generator(name)
    if match is None:
        return spelling_key(name) or name
    variant = name.partition("/")[2]
    return match.name or (
        f"{match.family}/{spelling_key(variant)}"
        if variant and spelling_key(name) != spelling_key(match.family)
        else match.family
    )
