"""Names of generators as an evaluation compares them (`Names`): by any spelling, and by family.

What an identifier could have named at all stands in its run's identity: names that it has no class
for are unknown to it (`names_of`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_app.identification.generators import find_generator, generator_index, spelling_key

REAL = "real"


class Names:
    """Keys that are equal where two names mean one generator. `classes`: an identifier's;
    `families`: of those the index does not know.

    Where all classes are families of the index, names are compared as families throughout.
    """

    def __init__(
        self, classes: Sequence[str] = (), families: Mapping[str, str] | None = None
    ) -> None:
        self._keys: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._predicted: dict[str, str] = {}
        self._families: dict[str, str] = {}
        listed = generator_index().families
        self._by_family = bool(classes) and all(name in listed or name == REAL for name in classes)
        entry = families or {}
        self._families = {self._key(name): entry.get(name) or self.family(name) for name in classes}
        self._predicted = {self._key(name): name for name in classes}
        self.classes = frozenset(self._families) - {REAL} if classes else None
        """The keys that could be named, None where nobody knows."""
        self.class_families = (
            frozenset(self._families[key] for key in self.classes)
            if self.classes is not None
            else None
        )

    def label(self, name: str) -> str:
        """The key of a true name. Its first spelling is the one that is shown."""
        key = self._key(name)
        self._labels.setdefault(key, name.strip())
        return key

    def predicted(self, name: str | None) -> str | None:
        """The key of a predicted name; None of none, and of blanks."""
        if name is None or not name.strip():
            return None
        key = self._key(name)
        self._predicted.setdefault(key, name.strip())
        return key

    def shown(self, key: str | None) -> str | None:
        """The shown spelling of a key: how labels spell it, else how it was predicted."""
        return None if key is None else self._labels.get(key) or self._predicted.get(key) or key

    def family(self, key: str) -> str:
        """The family of a key or name: the identifier's, the index's, or itself where none is
        known.
        """
        if found := self._families.get(key):
            return found
        entry = find_generator(key)
        return entry.family if entry else key

    def _key(self, name: str) -> str:
        if name not in self._keys:
            key = _key(name.strip())
            self._keys[name] = self.family(key) if self._by_family else key
        return self._keys[name]


def names_of(described: Mapping[str, Any]) -> Names:
    """Those of a run by its `run.json`, with the classes of its identifier where it had one."""
    card = (described["identity"].get("profile") or {}).get("identifier") or {}
    return Names(card.get("classes", ()), card.get("families"))


def _key(name: str) -> str:
    if name.partition(":")[0].casefold() == REAL:
        return REAL
    found = find_generator(name)
    if found is None:
        return spelling_key(name) or name
    own = name.partition("/")[2]
    return found.name or (
        f"{found.family}/{spelling_key(own)}"
        if own and spelling_key(name) != spelling_key(found.family)
        else found.family
    )
