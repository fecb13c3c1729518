"""Files and indexes of labels as bounded tables (`open_labels`), and the group that each label
stands for (`GroupCoder`).

CSV, JSON lines or Parquet on any fsspec URL, keyed by `image_id`, `sha256` or `uri` (and `member`);
or what `touchstone data index` wrote.
"""

import functools
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import guard_of, read_block, read_blocks
from ray_app.archives.label_tables import LabelTable, is_label_table, match_columns
from ray_app.datasets import index, labels
from ray_app.datasets.labels import names_a_real, parse_label, real_of
from ray_app.datasets.masks import may_lead
from ray_app.errors import ConfigError
from ray_app.storage import Guard, Store, canonical, local_path, strip_secrets, urls

TEXTS = ("mask_uri", "prompt", "release_date", "architecture", "source", "group", "part", "phash")
COLUMNS = ("image_id", "sha256", "uri", "member", "label", "generator", "kind", "split", *TEXTS)
"""What labels may say of an image; other columns are not looked at."""


@dataclass(frozen=True)
class _Place:
    """Where labels lie: a path or an fsspec URL. Tables may be read more than once."""

    place: str

    @property
    def name(self) -> str:
        """The name in messages, without secrets."""
        return strip_secrets(self.place)


@dataclass(frozen=True)
class LabelsOfIndex(_Place):
    """The labels of an index directory, keyed by `image_id`."""

    @property
    def guard(self) -> Guard:
        """The web servers that may be asked for what it names: those of who made the index."""
        return guard_of(Store.open(self.place))

    def list_columns(self) -> list[str]:
        """Return the columns of the index."""
        return self.names()

    def names(self) -> list[str]:
        """Which of COLUMNS there are."""
        return [
            name for name in COLUMNS if name in ("image_id", "uri", "member", *labels.INPUT.names)
        ]

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """These columns of all rows, in order, a block at a time: `image_id` int64, `label` of any
        type, all others texts.
        """
        store = Store.open(self.place)
        for ref in read_blocks(store, 0):
            rows = read_block(store, ref)
            yield pa.table(
                {
                    name: labels.texts(rows, name) if name in labels.INPUT.names else rows[name]
                    for name in columns
                }
            )


@dataclass(frozen=True)
class LabelFile(_Place):
    """One file of labels. A relative `uri`, `mask_uri` alike, is relative to the file."""

    @property
    def guard(self) -> Guard:
        """The same: the server that it lies on, wherever that is."""
        return Guard.of([self.place])

    @functools.cached_property
    def _table(self) -> LabelTable:
        return LabelTable(self.place)

    def list_columns(self) -> list[str]:
        """Return the columns that the file has. Raises ConfigError for a file that cannot be read."""
        return self._table.column_names

    def names(self) -> list[str]:
        """Return which of COLUMNS there are, in any case. Raises ConfigError for a file that cannot
        be read.
        """
        return list(match_columns(self.list_columns(), COLUMNS, self.name))

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The same, some rows at a time. Raises ConfigError naming the file and what is wrong in
        it.
        """
        folder = posixpath.dirname(
            canonical(self.name) if urls.scheme_of(self.place) == "file" else self.name
        )
        for table in self._table.tables(columns):
            yield pa.table(
                {name: self._typed(name, table[name].combine_chunks(), folder) for name in columns}
            )

    def _typed(self, name: str, column: pa.Array, folder: str) -> pa.Array:
        if name == "label":
            return column
        column = (
            column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        )
        try:
            if name == "image_id":
                return _whole_numbers(column).cast(pa.int64())
            column = column.cast(pa.string())
        except pa.ArrowInvalid as error:
            raise ConfigError(
                f"{self.name}: column '{name}': {error}",
                hint="an image_id is a whole number of 64 bits",
            ) from None
        if name == "mask_uri":
            return self._led(_absolute(column, folder))
        return _absolute(column, folder) if name == "uri" else column

    def _led(self, masks: pa.Array) -> pa.Array:
        """Masks at addresses that such a file may name."""
        for place in masks.unique().to_pylist():
            if place is not None and not may_lead(self.place, place):
                raise ConfigError(
                    f"{self.name}: it may not say that a mask lies at {place}",
                    hint="labels from elsewhere name no local files",
                )
        return masks


LabelTables = LabelFile | LabelsOfIndex


def open_labels(place: str) -> LabelTables:
    """The labels at a path or fsspec URL. Raises ConfigError where they are neither a file of
    labels nor an index.
    """
    if is_label_table(place):
        return LabelFile(place)
    if index.is_index(place):
        return LabelsOfIndex(place)
    raise ConfigError(
        f"{strip_secrets(place)}: neither a file of labels nor an index",
        hint="labels are a .csv, .tsv, .jsonl, or .parquet file, or what `touchstone data index SOURCE --layout NAME --out DIR` wrote",
    )


def _whole_numbers(column: pa.Array) -> pa.Array:
    """Return texts without a fraction of zeros, which pandas writes for whole numbers in a column
    that has a gap.
    """
    return (
        pc.replace_substring_regex(column, r"\.0+$", "")
        if pa.types.is_string(column.type)
        else column
    )


def _absolute(column: pa.Array, folder: str) -> pa.Array:
    """Uris as a run writes them: whole, without secrets."""
    is_plain = pc.and_(
        pc.starts_with(column, "/"), pc.invert(pc.match_substring_regex(column, r"/\.{0,2}(/|$)"))
    )
    is_url = pc.and_(
        pc.match_substring(column, "://"),
        pc.invert(pc.match_substring_regex(column, r"^file://|[?@]")),
    )
    is_done = pc.fill_null(pc.or_(is_plain, is_url), True)
    if pc.all(is_done, min_count=0).as_py():
        return column
    others = pa.array(
        [
            one if ok else _whole(one, folder)
            for one, ok in zip(column.to_pylist(), is_done.to_pylist(), strict=True)
        ]
    )
    return others.cast(pa.string())


def _whole(uri: str, folder: str) -> str:
    if "://" in uri and not uri.startswith("file://"):
        return strip_secrets(uri)
    path = local_path(uri)
    if posixpath.isabs(path):
        return posixpath.normpath(path)
    if urls.scheme_of(folder) == "file":
        return posixpath.normpath(posixpath.join(folder, path))
    scheme, _, rest = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(rest, path))}"


FAKE_KINDS = ("whole", "local")
"""Of a group: generated as a whole, or edited inside a photograph."""
MOST_GROUPS = 5_000
_BETWEEN = "\x1f"
_KINDS = {
    "real": "", "whole": "whole", "full": "whole", "generated": "whole", "synthetic": "whole",
    "local": "local", "partial": "local", "edited": "local", "inpainted": "local", "inpainting": "local",
}  # fmt: skip


class EvaluationGroup(NamedTuple):
    """`kind`: real, whole (generated as a whole) or local (an edit inside a photograph).
    `generator`: as in the labels.
    """

    kind: str
    generator: str

    @property
    def label(self) -> str:
        """`real` or `fake`."""
        return "real" if self.kind == "real" else "fake"


class GroupCoder:
    """Numbers groups in the order in which it meets them. `where`: what the labels are called in
    messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._numbers: dict[EvaluationGroup, int] = {}
        self._rows = 0

    @property
    def groups(self) -> list[EvaluationGroup]:
        """All so far, by number."""
        return list(self._numbers)

    def codes(self, table: pa.Table, *, complete: bool) -> npt.NDArray[np.int32]:
        """(n,) the number of every row's group, by its columns `label`, `generator`, `kind` and
        `mask_uri` (all but the first may be missing); -1 for a row without a label, which
        `complete` refuses.

        A fake with a mask, or of kind local, is a local edit. Raises ConfigError naming file, row
        and value.
        """
        label, kind, mask, generator = (
            _words(table, name) for name in ("label", "kind", "mask_uri", "generator")
        )
        has_mask = pc.if_else(pc.equal(mask, ""), "", "mask")
        found = pc.binary_join_element_wise(
            label, kind, has_mask, generator, _BETWEEN
        ).dictionary_encode()
        indices = np.asarray(found.indices)
        numbers = [
            self._number(words.split(_BETWEEN, 3), indices == code, complete)
            for code, words in enumerate(found.dictionary.to_pylist())
        ]
        self._rows += len(table)
        codes: npt.NDArray[np.int32] = np.array(numbers, np.int32)[indices]
        return codes

    def _number(self, words: list[str], rows: npt.NDArray[np.bool_], complete: bool) -> int:
        """The number of the group of some rows (n,), bool, by their label, kind, mask (empty: none)
        and generator.
        """
        label, kind, mask, generator = words
        where = f"{self._where}, row {self._rows + int(np.argmax(rows)) + 1}"
        if not label:
            if complete:
                raise ConfigError(
                    f"{where}: no label", hint="labels are real or fake, or 0 (real) and 1 (fake)"
                )
            return -1
        is_fake = parse_label(label, where) == "fake"
        if kind and kind.lower() not in _KINDS:
            raise ConfigError(
                f"{where}: {kind!r} is no kind", hint="kinds are real, whole and local"
            )
        if is_fake and names_a_real(generator):
            raise ConfigError(f"{where}: labelled fake, but its generator is '{generator}'")
        usual = "local" if mask else "whole"
        group = (
            EvaluationGroup(_KINDS.get(kind.lower()) or usual, generator or "unknown")
            if is_fake
            else EvaluationGroup("real", real_of(generator))
        )
        number = self._numbers.setdefault(group, len(self._numbers))
        if number >= MOST_GROUPS:
            raise ConfigError(
                f"{self._where}: more than {MOST_GROUPS:,} generators, such as '{group.generator}'",
                hint="is that the right column?",
            )
        return number


def _words(table: pa.Table, name: str) -> pa.Array:
    """A column as texts without blanks around them, "" where there is none."""
    if name not in table.column_names:
        return pa.array([""]).take(pa.array(np.zeros(len(table), np.int32)))
    column = table[name].combine_chunks()
    column = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    return pc.fill_null(pc.utf8_trim_whitespace(column.cast(pa.string())), "")
