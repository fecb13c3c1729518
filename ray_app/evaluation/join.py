"""Rows of a run joined with labels (`joined_rows`) by a compact index of the labels (`index_labels`).

An index holds 24 bytes a label: two independent 64-bit words of its key, its group, and its place in the file. Texts (prompts, places of
masks) stay in the file until they are needed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datasets.masks import may_name
from ray_app.errors import ConfigError
from ray_app.evaluation.groups import Codes, EvaluationGroup, GroupCoder
from ray_app.evaluation.labels import LabelTables
from ray_app.storage import Guard

Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Rows = npt.NDArray[np.uint32]
Tables = Callable[[Sequence[str]], Iterable[pa.Table]]
"""The joined rows of a run with the columns asked for, null where there is no such column; called as often as they are read."""
KEYS = ("image_id", "sha256", "uri")
_LABEL_COLUMNS = ("label", "generator", "kind", "mask_uri")
_TEXTS = ("mask_uri", "prompt", "release_date")
LABEL_FIELDS = ("label", "generator", "kind", *_TEXTS)
"""The columns of joined rows that are of the labels; all others are the run's."""
PLACE = "label"  # the column of a sample of rows with the place of each one's label in its index
_ATTEMPTS = 4


@dataclass(frozen=True)
class JoinKey:
    """How rows and labels are named alike. Two words of `bits` bits that know nothing of each other; `salt` gives others."""

    name: str
    salt: int = 0
    bits: int = 64

    @property
    def columns(self) -> list[str]:
        """What is read of labels and rows."""
        return ["uri", "member"] if self.name == "uri" else [self.name]

    def words(self, table: pa.Table) -> tuple[Words, Words, npt.NDArray[np.bool_]]:
        """Both words of every row, (n,) each, and whether it has a key."""
        if self.name == "image_id":
            column = table["image_id"]
            ids = np.asarray(pc.fill_null(column, 0)).astype(np.int64).view(np.uint64)
            return ids, np.zeros(len(ids), np.uint64), np.asarray(pc.is_valid(column))
        texts = self.texts(table)
        has_key = np.asarray(pc.is_valid(texts))
        plain = np.asarray(pc.fill_null(texts, "").to_pylist(), dtype=object)
        return self._hashed(plain, 0), self._hashed(plain, 1), has_key

    def texts(self, table: pa.Table) -> pa.ChunkedArray:
        """The keys as shown in messages."""
        if self.name == "image_id":
            return table["image_id"].cast(pa.string())
        if self.name == "sha256":
            return pc.utf8_lower(table["sha256"].cast(pa.string()))
        uris = table["uri"].cast(pa.string())
        if "member" not in table.column_names or table["member"].null_count == len(table):
            return uris
        members = table["member"].cast(pa.string())
        return pc.if_else(pc.is_valid(members), pc.binary_join_element_wise(uris, members, "\0", null_handling="replace"), uris)

    def _hashed(self, texts: npt.NDArray[np.object_], which: int) -> Words:
        from pandas.util import hash_array

        if not len(texts):
            return np.empty(0, np.uint64)
        words: Words = hash_array(texts, hash_key=f"touchstone{which}{self.salt:05d}", categorize=False)
        return words >> np.uint64(64 - self.bits)


@dataclass(frozen=True)
class JoinedLabels:
    """Of some rows: the number of each one's group among `groups`, -1 = not labelled; and the label's place in its index, -1 = none."""

    codes: Codes
    groups: Sequence[EvaluationGroup]
    places: Places


@dataclass(frozen=True)
class LabelIndex:
    """All labels of a table, sorted by their keys. `order`: the number of each one's row; `doubled`: equal ones that are there once."""

    source: LabelTables
    key: JoinKey
    words: Words
    checks: Words
    codes: Codes
    order: Rows
    groups: Sequence[EvaluationGroup]
    rows: int
    doubled: int = 0
    other_split: int = 0

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.source.name

    @property
    def guard(self) -> Guard:
        """The web servers that may be asked for the masks that the labels name."""
        return self.source.guard

    @property
    def columns(self) -> list[str]:
        """What a row must have to be looked up."""
        return self.key.columns

    def truth(self, table: pa.Table) -> JoinedLabels:
        """That of rows with the key's columns."""
        words, checks, has_key = self.key.words(table)
        if not len(self.words):
            return JoinedLabels(np.full(len(words), -1, np.int32), self.groups, np.full(len(words), -1, np.int64))
        turn = np.argsort(words)  # needles in order stay within the cache
        places = np.empty(len(words), np.int64)
        places[turn] = np.minimum(np.searchsorted(self.words, words[turn]), len(self.words) - 1)
        found = has_key & (self.words[places] == words) & (self.checks[places] == checks)
        places[~found] = -1
        return JoinedLabels(np.where(found, self.codes[places], -1).astype(np.int32), self.groups, places)

    def texts(self, names: Sequence[str]) -> pa.Table:
        """These columns of all labels, in the order of the index; null where the source has no such column."""
        there = [name for name in names if name in self.source.names()]
        columns = {name: pa.nulls(len(self.order), pa.string()) for name in names}
        if there:
            whole = pa.concat_tables(self.source.tables(there))
            columns |= {name: whole[name].cast(pa.large_string()).combine_chunks().take(pa.array(self.order)) for name in there}
        return pa.table(columns)

    def shown(self, place: int) -> str:
        """The key of one label, as shown in messages."""
        left = int(self.order[place])
        for table in self.source.tables(_present(self.source, self.key.columns)):
            if left < len(table):
                return str(self.key.texts(table)[left].as_py()).replace("\0", "/")
            left -= len(table)
        raise IndexError(place)


@dataclass(frozen=True)
class OwnLabels:
    """The labels that a run carries in its own column `input`; only those of `split` where their rows have any."""

    url: str
    split: str | None = None
    columns: list[str] = field(default_factory=lambda: ["input"])

    @property
    def guard(self) -> Guard:
        """No server but the run's own, which are allowed in any case."""
        return Guard()

    @property
    def name(self) -> str:
        """The name in messages."""
        return f"the columns of {self.url}"

    def truth(self, table: pa.Table) -> JoinedLabels:
        """That of rows with `input`, of the split if one is requested. Raises ConfigError for a label that is none."""
        fields = own_fields(table)
        coder = GroupCoder(self.name)
        codes = coder.codes(fields, complete=False) if "label" in fields.column_names else np.full(len(table), -1, np.int32)
        if self.split is not None and "split" in fields.column_names:
            codes[~_of_split(fields, self.split)] = -1
        return JoinedLabels(codes, coder.groups, np.full(len(table), -1, np.int64))


Labels = LabelIndex | OwnLabels


@dataclass
class Joined:
    """What a pass over a run counts of its join with labels. `used`: which labels of an index have a row; `joined`: rows with a label;
    `others`: rows without one, `other`: one of them by its key.
    """

    used: npt.NDArray[np.bool_] | None = None
    others: int = 0
    other: str | None = None
    joined: int = 0

    @property
    def unused(self) -> int:
        """How many labels of the index have no row."""
        return 0 if self.used is None else int(len(self.used) - self.used.sum())

    def begin(self, labels: Labels) -> None:
        """Before the first row, no label of an index has one."""
        if isinstance(labels, LabelIndex):
            self.used = np.zeros(len(labels.words), np.bool_)

    def matched(self, labels: Labels, table: pa.Table) -> tuple[pa.Table, JoinedLabels]:
        """The rows of a table that are labelled, and their truth."""
        truth = labels.truth(table)
        found = np.flatnonzero(truth.codes >= 0)
        if len(found) < len(table):
            self.others += len(table) - len(found)
            if self.other is None:
                self.other = _shown(labels, table, int(np.argmin(truth.codes)))
            table, truth = table.take(pa.array(found)), JoinedLabels(truth.codes[found], truth.groups, truth.places[found])
        if self.used is not None:
            self.used[truth.places] = True
        self.joined += len(table)
        return table, truth


def index_labels(source: LabelTables, *, key: str | None = None, split: str | None = None, bits: int = 64) -> LabelIndex:
    """Read all labels. `key`: null = the first of KEYS that there is. `split`: only labels of this one, where they have any.

    Raises ConfigError for labels without key or label, for doubled ones that contradict each other, and for a split that is not there.
    """
    named = source.names()
    chosen = key or next((name for name in KEYS if name in named), None)
    if chosen is None or chosen not in named or "label" not in named:
        raise ConfigError(
            f"{source.name}: labels need the column `label` and one of {', '.join(KEYS)}",
            hint=f"of these it has {', '.join(named)}" if named else "it has none of them; the first line of a CSV names its columns",
        )
    for salt in range(_ATTEMPTS):
        read = _read(source, JoinKey(chosen, salt, bits), split if "split" in named else None)
        if read is not None:
            return read
    raise ConfigError(f"{source.name}: the keys of two labels cannot be told apart", hint="this looks like a bug")


def joined_rows(tables: Iterator[pa.Table], labels: Labels, names: Sequence[str]) -> Iterator[pa.Table]:
    """Those rows that are labelled, with the columns `names`, their own or of `LABEL_FIELDS`; a missing one is all null."""
    asked = [name for name in _TEXTS if name in names]
    texts = labels.texts(asked) if asked and isinstance(labels, LabelIndex) else None
    for table in tables:
        truth = labels.truth(table)
        found = np.flatnonzero(truth.codes >= 0)
        if not len(found):
            continue
        rows = table.take(pa.array(found))
        label_texts = _checked(own_fields(rows), rows) if texts is None and asked else texts and texts.take(pa.array(truth.places[found]))
        yield _with_truth(rows, [truth.groups[code] for code in truth.codes[found].tolist()], label_texts, names)


def own_fields(table: pa.Table) -> pa.Table:
    """The fields of `input` that are labels; a ClassLabel's number by its name."""
    inputs = table["input"].combine_chunks() if "input" in table.column_names else None
    names = [] if inputs is None else [one.name for one in inputs.type]
    fields = {"label": "label_name" if "label_name" in names else "label", "mask_uri": "mask_uri" if "mask_uri" in names else "mask"}
    columns = {name: fields.get(name, name) for name in (*_LABEL_COLUMNS, "prompt", "split", "release_date", "source")}
    return pa.table({name: pc.struct_field(inputs, field) for name, field in columns.items() if field in names})


def _read(source: LabelTables, key: JoinKey, split: str | None) -> LabelIndex | None:
    """The index, or None where such words do not separate two keys."""
    coder = GroupCoder(source.name)
    pieces: list[tuple[Words, Words, Codes]] = []
    kept: list[Rows] = []
    rows = others = 0
    names = _present(source, [*key.columns, *_LABEL_COLUMNS, *(["split"] if split else [])])
    for table in source.tables(names):
        codes = coder.codes(table, complete=True)
        words, checks, has_key = key.words(table)
        if not has_key.all():
            raise ConfigError(f"{source.name}, row {rows + int(np.argmin(has_key)) + 1}: no {key.name}")
        wanted = _of_split(table, split)
        pieces.append((words[wanted], checks[wanted], codes[wanted]))
        kept.append((rows + np.flatnonzero(wanted)).astype(np.uint32))
        others += len(table) - int(wanted.sum())
        rows += len(table)
    if not rows - others:
        raise ConfigError(f"{source.name}: no labels" + (f" of split '{split}'" if others else ""))
    words, checks, codes = (np.concatenate(column) for column in zip(*pieces, strict=True))
    pieces.clear()
    return _sorted(source, key, (words, checks, codes, np.concatenate(kept)), coder.groups, (rows, others))


def _sorted(
    source: LabelTables, key: JoinKey, columns: tuple[Words, Words, Codes, Rows], groups: Sequence[EvaluationGroup], rows: tuple[int, int]
) -> LabelIndex | None:
    turn = np.argsort(columns[0], kind="stable")
    words, checks, codes, order = columns[0][turn], columns[1][turn], columns[2][turn], columns[3][turn]
    again = np.flatnonzero(words[1:] == words[:-1]) + 1
    if (checks[again] != checks[again - 1]).any():
        return None
    index = LabelIndex(source, key, words, checks, codes, order, groups, rows[0], len(again), rows[1])
    if not len(again):
        return index
    if (differing := again[codes[again] != codes[again - 1]]).size:
        raise _contradiction(index, int(differing[0]))
    once = np.ones(len(words), np.bool_)
    once[again] = False
    return replace(index, words=words[once], checks=checks[once], codes=codes[once], order=order[once])


def _contradiction(index: LabelIndex, place: int) -> ConfigError:
    first, second = (f"row {index.order[one] + 1} says {' of '.join(_truth(index.groups[index.codes[one]]))}" for one in (place - 1, place))
    return ConfigError(
        f"{index.name}: {index.key.name} {index.shown(place)} is labelled twice: {first}, {second}", hint="keep one of the two rows"
    )


def _truth(group: EvaluationGroup) -> tuple[str, str]:
    return {"real": "real", "whole": "fake", "local": "fake, edited locally,"}[group.kind], group.generator


def _checked(fields: pa.Table, rows: pa.Table) -> pa.Table:
    """The fields that rows have themselves. Raises ConfigError for a mask's address that its archive may not name."""
    for place, uri, member in zip(*(_texts_of(fields, "mask_uri"), _texts_of(rows, "uri"), _texts_of(rows, "member")), strict=True):
        if place is not None and not may_name(uri or "", member, place):
            raise ConfigError(
                f"{uri}: what lies in an archive may not say that a mask lies at {place}", hint="give the labels as a file: --labels FILE"
            )
    return fields


def _texts_of(table: pa.Table, name: str) -> list[str | None]:
    texts: list[str | None] = table[name].cast(pa.string()).to_pylist() if name in table.column_names else [None] * len(table)
    return texts


def _with_truth(rows: pa.Table, groups: Sequence[EvaluationGroup], label_texts: pa.Table | None, names: Sequence[str]) -> pa.Table:
    truth = {"label": [one.label for one in groups], "generator": [one.generator for one in groups], "kind": [one.kind for one in groups]}
    columns = {}
    for name in names:
        if name in truth:
            columns[name] = pa.chunked_array([pa.array(truth[name], pa.string()).dictionary_encode()])
        elif label_texts is not None and name in label_texts.column_names:
            columns[name] = label_texts[name].cast(pa.string())
        else:
            columns[name] = rows[name] if name in rows.column_names else pa.chunked_array([pa.nulls(len(rows), pa.string())])
    return pa.table(columns)


def _shown(labels: Labels, table: pa.Table, row: int) -> str:
    """One row's key as shown in messages: the labels' own, else its place."""
    if isinstance(labels, LabelIndex):
        shown = labels.key.texts(table.slice(row, 1))[0].as_py()
        if shown is not None:
            return str(shown).replace("\0", "/")
    return "/".join(str(part) for part in (table["uri"][row].as_py(), table["member"][row].as_py()) if part is not None)


def _of_split(table: pa.Table, split: str | None) -> npt.NDArray[np.bool_]:
    if split is None or table["split"].null_count == len(table):
        return np.ones(len(table), np.bool_)
    return np.asarray(pc.fill_null(pc.equal(table["split"].cast(pa.string()), split), False))


def _present(source: LabelTables, names: Sequence[str]) -> list[str]:
    there = source.names()
    return [name for name in names if name in there]
