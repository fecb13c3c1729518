"""Read labels of images as tables, some rows at a time.

`open_labels` opens a CSV, JSON lines, or Parquet file, or an index that `touchstone data index`
wrote. `read_input` reads the labels that rows of a scoring run have in their column `input`. In all
tables `label` is `real`, `fake`, or null, `image_id` is int64, and all other columns are strings.
"""

import functools
import posixpath
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import load_guard, read_block, read_blocks
from ray_app.archives.label_tables import LabelTable, is_label_table, match_columns
from ray_app.datasets import index
from ray_app.datasets.labels import INPUT, drop_missing, parse_label, texts
from ray_app.datasets.masks import may_lead
from ray_app.errors import ConfigError
from ray_app.storage import Guard, Store, canonicalize, local_path, strip_secrets, urls

KEYS = ("image_id", "sha256", "uri", "member")
TRUTH = ("label", "generator", "kind", "split")
TEXTS = ("mask_uri", "prompt", "release_date", "architecture", "source", "group", "part", "phash")
COLUMNS = (*KEYS, *TRUTH, *TEXTS)
"""Columns that labels may have: the keys of the image, and its labels."""


@dataclass(frozen=True)
class LabelFile:
    """A CSV, JSON lines, or Parquet file with labels of images. It may be read more than once.

    Attributes:
        words: Values of the column `label`, in lower case, that are valid in addition to real and
            fake. An example is "unsure", in an audit by people. `tables` returns these values in
            lower case.
        resolves_uris: Whether `tables` makes the column `uri` absolute and removes secrets, so that
            its values equal the URIs in a scoring run. Relative paths are relative to the file.
    """

    place: str
    words: Collection[str] = ()
    resolves_uris: bool = True

    @property
    def name(self) -> str:
        """The path or URL of the file for messages, without secrets."""
        return strip_secrets(self.place)

    @property
    def guard(self) -> Guard:
        """The web servers from which files that the labels name, such as masks, may be fetched.

        These are all servers with a public address, and the server of this file with any address.
        """
        return Guard.from_urls([self.place])

    @functools.cached_property
    def _table(self) -> LabelTable:
        return LabelTable(self.place)

    def list_columns(self) -> list[str]:
        """Return the names of all columns of the file."""
        return self._table.column_names

    def find_columns(self, names: Sequence[str] = COLUMNS) -> list[str]:
        """Return those of `names` that the file has as columns. Letter case does not matter.

        Raises ConfigError if two columns match one name.
        """
        return list(match_columns(self.list_columns(), names, self.name))

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield tables with the given columns, which together have all rows in order.

        The names are results of `find_columns`. Raises ConfigError with the file and a label's row
        if a value is invalid.
        """
        first_row = 1
        for table in self._table.tables(columns):
            columns_read = {
                name: self._read(name, _to_plain_array(table[name]), first_row) for name in columns
            }
            yield pa.table(columns_read)
            first_row += len(table)

    def _read(self, name: str, column: pa.Array, first_row: int) -> pa.Array:
        if name == "label":
            return parse_labels(column, self.name, first_row, self.words)
        if name == "image_id":
            return _to_ids(column, self.name)
        values = _to_labels(column, name, self.name)
        if name == "mask_uri":
            masks = _resolve_all(values, self._folder)
            self._check_masks(masks)
            return masks
        return (
            _resolve_all(values, self._folder) if name == "uri" and self.resolves_uris else values
        )

    @property
    def _folder(self) -> str:
        is_local = urls.get_scheme(self.place) == "file"
        return posixpath.dirname(canonicalize(self.name) if is_local else self.name)

    def _check_masks(self, masks: pa.Array) -> None:
        """Raise ConfigError for a mask at a path or URL that such a file may not name."""
        for uri in masks.unique().to_pylist():
            if uri is not None and not may_lead(self.place, uri):
                raise ConfigError(
                    f"{self.name}: for security, a label file at this place may not name the mask {uri}",
                    hint="name masks by URLs such as s3 or https, or copy the labels and the masks to this machine",
                )


@dataclass(frozen=True)
class LabelIndex:
    """The labels in an index that `touchstone data index` wrote, keyed by `image_id`."""

    place: str

    @property
    def name(self) -> str:
        """The path or URL of the index for messages, without secrets."""
        return strip_secrets(self.place)

    @property
    def guard(self) -> Guard:
        """The web servers from which files that the index names may be fetched.

        They are the servers that `touchstone data index` was allowed to use.
        """
        return load_guard(Store.open(self.place))

    def list_columns(self) -> list[str]:
        """Return the names of the columns that `tables` can return."""
        return ["image_id", "uri", "member", *INPUT.names]

    def find_columns(self, names: Sequence[str] = COLUMNS) -> list[str]:
        """Return those of `names` that are columns of an index.

        The columns are the same for all indexes, so that no file is read.
        """
        return [name for name in names if name in self.list_columns()]

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield tables with the given columns, one per file of the index, in order.

        `columns` are names that `find_columns` has returned.
        """
        store = Store.open(self.place)
        for block in read_blocks(store, 0):
            rows = read_block(store, block)
            yield pa.table(
                {
                    name: _to_labels(texts(rows, name).combine_chunks(), name, self.name)
                    if name in INPUT.names
                    else _to_plain_array(rows[name])
                    for name in columns
                }
            )


Labels = LabelFile | LabelIndex


def open_labels(place: str, words: Collection[str] = ()) -> Labels:
    """Open the labels of a file, or of an index that `touchstone data index` wrote.

    `words` are values of the column `label`, in lower case, that a file may have in addition to
    real and fake. Raises ConfigError if the path is neither.
    """
    if is_label_table(place):
        return LabelFile(place, words)
    if index.is_index(place):
        return LabelIndex(place)
    raise ConfigError(
        f"{strip_secrets(place)}: neither a file of labels nor an index",
        hint="give a .csv, .tsv, .jsonl, or .parquet file, or the output of `touchstone data index SOURCE --layout NAME --out DIR`",
    )


def read_input(
    rows: pa.Table, where: str, columns: Sequence[str] = (*TRUTH, *TEXTS), first_row: int = 1
) -> pa.Table:
    """Return the labels that rows of a scoring run have in their column `input`.

    The column `input` is a struct with the columns that the source of an image has, such as `label`
    and `prompt`. `where` and `first_row` are for messages. The result has those of the columns that
    `input` has, none if `input` is missing. `label` is read from `label_name`, the name of a
    ClassLabel, and `mask_uri` from `mask` if there is no `mask_uri`. Raises ConfigError if a label
    is invalid.
    """
    inputs = rows["input"].combine_chunks() if "input" in rows.column_names else None
    if inputs is None or not pa.types.is_struct(inputs.type):
        return pa.table({})
    fields = [field.name for field in inputs.type]
    preferred = {"label": ("label_name", "label"), "mask_uri": ("mask_uri", "mask")}
    labels = {}
    for name in columns:
        source = next((key for key in preferred.get(name, (name,)) if key in fields), None)
        if source is not None:
            column = _to_plain_array(pc.struct_field(inputs, source))
            labels[name] = (
                parse_labels(column, where, first_row)
                if name == "label"
                else _to_labels(column, name, where)
            )
    return pa.table(labels)


def parse_labels(
    column: pa.Array | pa.ChunkedArray, where: str, first_row: int = 1, words: Collection[str] = ()
) -> pa.Array:
    """Return `real` or `fake` for each label of a column, or null for a blank value.

    `parse_label` lists the accepted values, such as 1 for fake. `words` are further values, in
    lower case, which are returned in lower case. Raises ConfigError with the row and the value if a
    value is not a label.
    """
    values = pc.utf8_trim_whitespace(_to_texts(_to_plain_array(column), "label", where))
    encoded = values.dictionary_encode()
    labels: list[str | None] = []
    for code, value in enumerate(encoded.dictionary.to_pylist()):
        if not value:
            labels.append(None)
        elif value.lower() in words:
            labels.append(value.lower())
        else:
            row = first_row + pc.index(encoded.indices, code).as_py()
            labels.append(parse_label(value, f"{where}, row {row}"))
    return pa.array(labels, pa.string()).take(encoded.indices)


def _to_plain_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a single array without a dictionary."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def _to_texts(column: pa.Array, name: str, where: str) -> pa.Array:
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"{where}: column '{name}' must have strings: {error}") from None


def _to_labels(column: pa.Array, name: str, where: str) -> pa.Array:
    """Return strings, with null for texts that stand for a missing value.

    In a key of the image, and in a prompt, such a text may be the value.
    """
    values = _to_texts(column, name, where)
    return values if name in (*KEYS, "label", "prompt") else drop_missing(values)


def _to_ids(column: pa.Array, where: str) -> pa.Array:
    """Return 64-bit integers, also of strings with a fraction of zeros.

    pandas writes such strings for integers in a column with a gap.
    """
    if pa.types.is_string(column.type):
        column = pc.replace_substring_regex(column, r"\.0+$", "")
    try:
        return column.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(
            f"{where}: column 'image_id' must have 64-bit integers: {error}",
            hint="give a 64-bit integer as image_id in every row",
        ) from None


def _resolve_all(column: pa.Array, folder: str) -> pa.Array:
    """Return URIs as a run writes them: absolute and without secrets."""
    is_path = pc.and_(
        pc.starts_with(column, "/"), pc.invert(pc.match_substring_regex(column, r"/\.{0,2}(/|$)"))
    )
    is_url = pc.and_(
        pc.match_substring(column, "://"),
        pc.invert(pc.match_substring_regex(column, r"(?i)^file:|[?@]")),
    )
    is_done = pc.fill_null(pc.or_(is_path, is_url), True)
    if pc.all(is_done, min_count=0).as_py():
        return column
    pairs = zip(column.to_pylist(), is_done.to_pylist(), strict=True)
    return pa.array(
        [uri if is_resolved else _resolve(uri, folder) for uri, is_resolved in pairs], pa.string()
    )


def _resolve(uri: str, folder: str) -> str:
    if urls.get_scheme(uri) != "file":
        return strip_secrets(uri)
    is_local = urls.get_scheme(folder) == "file"
    path = local_path(uri, folder if is_local else "")
    if posixpath.isabs(path):
        return posixpath.normpath(path)
    if is_local:
        return posixpath.normpath(posixpath.join(folder, path))
    scheme, _, path_in_store = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(path_in_store, path))}"
