"""Groups of labelled images (`GroupCoder`: real, whole fakes or local edits, by maker) and the scores of one cell (`ScoreTally`).

Names of generators as an evaluation compares them: by any spelling, and by family (`names_of`).

What an identifier could have named at all stands in its run's identity: names that it has no class for are unknown to it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.attribution.generators import find_generator, generator_index, spelling_key
from ray_app.datasets.labels import names_a_real, parse_label, real_of
from ray_app.errors import ConfigError
from ray_app.metrics.arrays import ScoreHistogram

REAL = "real"


class Names:
    """Keys that are equal where two names mean one generator. `classes`: an identifier's; `families`: of those the index does not know.

    Where all classes are families of the index, names are compared as families throughout.
    """

    def __init__(self, classes: Sequence[str] = (), families: Mapping[str, str] | None = None) -> None:
        self._keys: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._families: dict[str, str] = {}
        listed = generator_index().families
        self._by_family = bool(classes) and all(name in listed or name == REAL for name in classes)
        entry = families or {}
        self._families = {self._key(name): entry.get(name) or self.family(name) for name in classes}
        self._said = {self._key(name): name for name in classes}
        self.classes = frozenset(self._families) - {REAL} if classes else None
        """The keys that could be named, None where nobody knows."""
        self.class_families = frozenset(self._families[key] for key in self.classes) if self.classes is not None else None

    def label(self, name: str) -> str:
        """The key of a true name. Its first spelling is the one that is shown."""
        key = self._key(name)
        self._labels.setdefault(key, name.strip())
        return key

    def said(self, name: str | None) -> str | None:
        """The key of a predicted name; None of none, and of blanks."""
        if name is None or not name.strip():
            return None
        key = self._key(name)
        self._said.setdefault(key, name.strip())
        return key

    def shown(self, key: str | None) -> str | None:
        """The shown spelling of a key: how labels spell it, else how it was predicted."""
        return None if key is None else self._labels.get(key) or self._said.get(key) or key

    def family(self, key: str) -> str:
        """The family of a key or name: the identifier's, the index's, or itself where none is known."""
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
    card = described["identity"].get("profile", {}).get("identifier") or {}
    return Names(card.get("classes", ()), card.get("families"))


def _key(name: str) -> str:
    if name.partition(":")[0].casefold() == REAL:
        return REAL
    found = find_generator(name)
    if found is None:
        return spelling_key(name) or name
    own = name.partition("/")[2]
    return found.name or (
        f"{found.family}/{spelling_key(own)}" if own and spelling_key(name) != spelling_key(found.family) else found.family
    )


Scores = npt.NDArray[np.float32] | npt.NDArray[np.float64]
_WAITING = 16_384


class ScoreTally:
    """Distinct scores and how often each occurs, exactly, in 4 bytes a count and as many a score as its column has.

    What comes in waits until there is as much of it as was counted before, so that a stream of n scores costs O(n log n).
    """

    __slots__ = ("_counts", "_values", "_waiting", "_weights")

    def __init__(self) -> None:
        self._values: Scores = np.empty(0, np.float32)
        self._counts: npt.NDArray[np.uint32] = np.empty(0, np.uint32)
        self._waiting: list[Scores] = []
        self._weights = 0

    def add(self, scores: Scores) -> None:
        """Count finite scores (n,)."""
        self._waiting.append(scores)
        self._weights += len(scores)
        if self._weights > max(_WAITING, len(self._values)):
            self._settle()

    def merge(self, other: "ScoreTally") -> None:
        """Count what another has counted."""
        self._settle()
        other._settle()
        self._join(other._values, other._counts)

    def histogram(self) -> ScoreHistogram:
        """All that was counted."""
        self._settle()
        return ScoreHistogram(self._values.astype(np.float64), self._counts.astype(np.int64))

    def __getstate__(self) -> tuple[Scores, npt.NDArray[np.uint32]]:
        self._settle()
        return self._values, self._counts

    def __setstate__(self, state: tuple[Scores, npt.NDArray[np.uint32]]) -> None:
        self._values, self._counts = state
        self._waiting, self._weights = [], 0

    def _settle(self) -> None:
        if self._weights:
            values, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
            self._waiting, self._weights = [], 0
            self._join(values, counts.astype(np.uint32))

    def _join(self, values: Scores, counts: npt.NDArray[np.uint32]) -> None:
        if not len(self._values):
            self._values, self._counts = values, counts
            return
        both = np.concatenate([self._values, values])
        turn = np.argsort(both, kind="stable")  # two ascending runs are merged
        both = both[turn]
        firsts = np.flatnonzero(np.r_[True, both[1:] != both[:-1]]) if len(both) else np.empty(0, np.int64)
        sums = np.add.reduceat(np.concatenate([self._counts, counts])[turn], firsts) if len(firsts) else np.empty(0, np.uint32)
        self._values, self._counts = both[firsts], sums.astype(np.uint32)


Codes = npt.NDArray[np.int32]

MOST_GROUPS = 5_000
_KINDS = {
    "real": "", "whole": "whole", "full": "whole", "generated": "whole", "synthetic": "whole",
    "local": "local", "partial": "local", "edited": "local", "inpainted": "local", "inpainting": "local",
}  # fmt: skip
_CHOICES = ("", "local", "whole")


class EvaluationGroup(NamedTuple):
    """`kind`: real, whole (generated as a whole) or local (an edit inside a photograph). `generator`: as in the labels."""

    kind: str
    generator: str

    @property
    def label(self) -> str:
        """`real` or `fake`."""
        return "real" if self.kind == "real" else "fake"


class GroupCoder:
    """Numbers groups in the order in which it meets them."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._numbers: dict[EvaluationGroup, int] = {}
        self._rows = 0

    @property
    def groups(self) -> list[EvaluationGroup]:
        """All so far, by number."""
        return list(self._numbers)

    def codes(self, table: pa.Table, *, complete: bool) -> Codes:
        """(n,) the number of every row's group, by its columns `label`, `generator`, `kind` and `mask_uri` (all but the first may be
        missing); -1 for a row without a label, which `complete` refuses.

        A fake with a mask, or of kind local, is a local edit. Raises ConfigError naming file, row and value.
        """
        labels, words = _coded(table, "label")
        if complete and (labels < 0).any():
            raise ConfigError(f"{self._at(labels < 0)}: no label", hint="labels are real or fake, or 0 (real) and 1 (fake)")
        is_fake = np.array([parse_label(word, self._at(labels == code)) == "fake" for code, word in enumerate(words)] + [False])[labels]
        kinds = self._kinds(table)
        has_mask = _has_text(table, "mask_uri")
        kind = np.where(kinds > 0, kinds, np.where(has_mask, 1, 2))
        makers, names = _coded(table, "generator")
        combined = (np.where(is_fake, kind, 0) * (len(names) + 1) + makers + 1).astype(np.int64)
        combined[labels < 0] = -1
        distinct, places = np.unique(combined, return_inverse=True)
        numbers = np.array([self._number(int(one), names, combined) for one in distinct], np.int32)
        self._rows += len(table)
        return numbers[places]

    def _number(self, combined: int, names: list[Any], rows: npt.NDArray[np.int64]) -> int:
        if combined < 0:
            return -1
        kind, maker = divmod(combined, len(names) + 1)
        name = str(names[maker - 1]).strip() if maker else ""
        if kind and names_a_real(name):
            raise ConfigError(f"{self._at(rows == combined)}: labelled fake, but its generator is '{name}'")
        group = EvaluationGroup(_CHOICES[kind], name or "unknown") if kind else EvaluationGroup("real", real_of(name))
        number = self._numbers.setdefault(group, len(self._numbers))
        if number >= MOST_GROUPS:
            raise ConfigError(
                f"{self._where}: more than {MOST_GROUPS:,} generators, such as '{group.generator}'", hint="is that the right column?"
            )
        return number

    def _kinds(self, table: pa.Table) -> Codes:
        codes, words = _coded(table, "kind")
        numbers = []
        for code, word in enumerate(words):
            kind = _KINDS.get(str(word).strip().lower())
            if kind is None:
                raise ConfigError(f"{self._at(codes == code)}: {word!r} is no kind", hint="kinds are real, whole and local")
            numbers.append(_CHOICES.index(kind))
        found: Codes = np.array([*numbers, 0], np.int32)[codes]
        return found

    def _at(self, rows: npt.NDArray[np.bool_]) -> str:
        return f"{self._where}, row {self._rows + int(np.argmax(rows)) + 1}"


def _coded(table: pa.Table, name: str) -> tuple[Codes, list[Any]]:
    """(n,) the place of every row's value in the list of all different ones; -1 where there is none, or nothing but blanks."""
    if name not in table.column_names or pa.types.is_null(table.schema.field(name).type):
        return np.full(len(table), -1, np.int32), []
    column = table[name].combine_chunks()
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    words = encoded.dictionary.to_pylist()
    kept = [place for place in np.unique(codes[codes >= 0]).tolist() if words[place] is not None and str(words[place]).strip()]
    places = np.full(len(words) + 1, -1, np.int32)
    places[kept] = np.arange(len(kept))
    return places[codes], [words[place] for place in kept]


def _has_text(table: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    if name not in table.column_names or pa.types.is_null(table.schema.field(name).type):
        return np.zeros(len(table), np.bool_)
    found: npt.NDArray[np.bool_] = np.asarray(pc.fill_null(pc.greater(pc.utf8_length(table[name]), 0), False))
    return found
