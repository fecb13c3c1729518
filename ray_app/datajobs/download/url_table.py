"""Read a list of URLs as a table of strings (`read_url_table`).

The list is DFLIP-3K's JSON (arXiv 2401.02335), CSV, TSV, JSON lines, or Parquet. Each column is
kept as text under a name in lower case with underscores: `Negative prompt` becomes
`negative_prompt`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives.label_tables import LabelTable, format_value, get_ending, is_label_table
from ray_app.archives.tabular import text_table
from ray_app.datajobs.download.config import CollectConfig
from ray_app.datasets.label_reader import parse_labels
from ray_app.datasets.labels import name_real_generator
from ray_app.datasets.layouts.published import FAMILIES_V1
from ray_app.errors import ConfigError, InputError
from ray_app.storage import Fetcher, canonicalize, strip_secrets

_IDS, _URLS = ("id", "image_id", "key"), ("url", "image_url", "uri", "link")
# Columns of the tables that this command writes. A column of the list with such a name is renamed
# to meta_NAME.
_RESERVED = frozenset(
    ("id", "url", "uri", "version", "etag", "sha256", "format", "width", "height", "size_bytes", "place", "shard", "status", "image",
     "source", "path")
)  # fmt: skip
_SUFFIXES = (".json (DFLIP-3K)", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_MAX_BYTES = 2**31  # Of a JSON file. The largest published list has 195 MB.
_DIFFUSION_DB = "https://huggingface.co/datasets/poloclub/diffusiondb"


@dataclass(frozen=True)
class UrlTable:
    """A list of URLs to download, with the other columns of the list.

    Attributes:
        rows: The list as a table with columns of strings. Every row has a unique `id` and a `url`.
        repeated: Number of dropped rows with the id and URL of an earlier row.
        without_url: Number of dropped rows without a URL.
    """

    rows: pa.Table
    repeated: int = 0
    without_url: int = 0

    @property
    def columns(self) -> list[str]:
        """Names of the columns; `id` and `url` come first."""
        return list(self.rows.schema.names)


def read_url_table(config: CollectConfig) -> UrlTable:
    """Read the list of URLs that `config.meta` names.

    Raises:
        ConfigError: If the file is not a list of URLs or cannot be read, has no URLs, lacks a
            column that the settings name, or gives one id to two URLs.
    """
    source = strip_secrets(canonicalize(config.meta))
    table = _convert_to_text(_read(config, source))
    if config.limit is not None:
        table = table.slice(0, config.limit)
    return _make_url_table(table, config, source)


def _read(config: CollectConfig, source: str) -> pa.Table:
    suffix = get_ending(config.meta)
    if suffix != ".json":
        if not is_label_table(config.meta) or suffix == ".txt":
            raise ConfigError(
                f"{source}: not a list of URLs",
                hint=f"name a file that ends with {', '.join(_SUFFIXES)}",
            )
        return LabelTable(config.meta).read()
    try:
        return _read_dflip(
            Fetcher(signed=[config.meta]).fetch(source, "", _MAX_BYTES), source, config.generator
        )
    except InputError as error:
        raise ConfigError(f"{source}: {error.detail}") from None
    except (pa.ArrowException, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{source}: cannot be read as JSON: {' '.join(str(error).split())[:300]}",
            hint="download the file again, because it is damaged or not a file of DFLIP-3K",
        ) from None


def _read_dflip(data: bytes, source: str, generator: str | None) -> pa.Table:
    repeated_keys: Counter[str] = Counter()

    def make_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated_keys.update(
            name for name, count in Counter(name for name, _ in pairs).items() if count > 1
        )
        return dict(pairs)

    content = json.loads(data, object_pairs_hook=make_dict)
    if isinstance(content, list):
        return text_table(
            [row if isinstance(row, dict) else {"url": row} for row in content], format_value
        )
    if not isinstance(content, dict) or not all(
        isinstance(record, dict) for record in content.values()
    ):
        raise ConfigError(
            f"{source}: the JSON must be an object of records by id (DFLIP-3K), or a list of records"
        )
    if duplicates := [name for name in repeated_keys if name in content]:
        raise ConfigError(
            f"{source}: duplicate id {duplicates[0]!r} ({len(duplicates)} such ids)",
            hint="keep one record for each id",
        )
    if content and not any("url" in record for record in content.values()):
        raise _make_no_urls_error(source, next(iter(content.values())))
    stem = source.rpartition("/")[2].partition(".")[0]
    family = FAMILIES_V1.get(stem)
    rows = []
    for name, record in content.items():
        record_generator = (
            family or record.get("generator") or record.get("Model") or record.get("Model hash")
        )
        rows.append(
            {
                **record,
                "id": name,
                "generator": record_generator or generator or ("sdft" if stem == "pd" else None),
            }
        )
    return text_table(rows, format_value)


def _make_no_urls_error(source: str, record: Mapping[str, Any]) -> ConfigError:
    if {"p", "se"} <= record.keys():
        message = f"{source}: this is DFLIP-3K's sd.json: it has names, prompts, and seeds of DiffusionDB's images, but no urls"
        return ConfigError(
            message,
            hint=f"download the parts of DiffusionDB ({_DIFFUSION_DB}), or score hf://datasets/poloclub/diffusiondb",
        )
    return ConfigError(
        f"{source}: its records have no key 'url'",
        hint=f"rename the key of URLs to 'url'; the keys are {', '.join(record)}",
    )


def _convert_to_text(table: pa.Table) -> pa.Table:
    """Convert all columns but those of bytes to strings with plain names, and "" to null."""
    columns: dict[str, pa.Array] = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            continue
        if pa.types.is_nested(column.type):
            column = pa.chunked_array(
                [
                    pa.array(
                        [
                            None if value is None else format_value(value)
                            for value in column.to_pylist()
                        ],
                        pa.string(),
                    )
                ]
            )
        strings = column.cast(pa.string())
        columns.setdefault(_plain_name(name), pc.if_else(pc.equal(strings, ""), None, strings))
    return pa.table(columns)


def _plain_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_") or "column"


def _make_url_table(table: pa.Table, config: CollectConfig, source: str) -> UrlTable:
    url_column = _find_column(table, config.url, _URLS, source)
    if url_column is None:
        raise ConfigError(
            f"{source}: no column of URLs among {', '.join(table.schema.names)}",
            hint="use --set url=NAME to name the column of URLs",
        )
    has_url = pc.is_valid(table[url_column])
    without, table = table.num_rows - (pc.sum(has_url).as_py() or 0), table.filter(has_url)
    if not len(table):
        raise ConfigError(
            f"{source}: no row has a URL in the column '{url_column}'",
            hint="fill the column, or use --set url=NAME to name another one",
        )
    id_column = _find_column(table, config.id, _IDS, source)
    urls: list[str] = table[url_column].to_pylist()
    listed_ids = table[id_column].to_pylist() if id_column else [None] * len(urls)
    ids: list[str] = [
        name or hashlib.sha256(url.encode()).hexdigest()[:16]
        for name, url in zip(listed_ids, urls, strict=True)
    ]
    first_rows: dict[str, int] = {}
    for row, name in enumerate(ids):
        if first_rows.setdefault(name, row) != row and urls[first_rows[name]] != urls[row]:
            message = f"{strip_secrets(urls[first_rows[name]])} and {strip_secrets(urls[row])}"
            raise ConfigError(
                f"{source}: two URLs have the id {name!r}: {message}",
                hint="make ids unique, or use --set id=COLUMN to name another column",
            )
    selected = pa.array(list(first_rows.values()), pa.int64())
    other_columns = {
        _output_name(name): table[name].take(selected)
        for name in table.schema.names
        if name not in (url_column, id_column, "label", "generator")
    }
    columns = {"id": pa.array(list(first_rows)), "url": table[url_column].take(selected)}
    return UrlTable(
        pa.table(columns | _make_labels(table.take(selected), config, source) | other_columns),
        len(ids) - len(first_rows),
        without,
    )


def _make_labels(table: pa.Table, config: CollectConfig, source: str) -> dict[str, pa.Array]:
    """Return the columns `label` and `generator` of the list, completed from the config."""
    none: list[str | None] = [None] * len(table)
    listed_labels = (
        parse_labels(table["label"], source).to_pylist() if "label" in table.schema.names else none
    )
    labels = [config.label if label is None else label for label in listed_labels]
    listed_generators = next(
        (table[name].to_pylist() for name in ("generator", "model") if name in table.schema.names),
        none,
    )
    generators = [
        name_real_generator(generator) if label == "real" else generator or config.generator
        for label, generator in zip(labels, listed_generators, strict=True)
    ]
    return {"label": pa.array(labels, pa.string()), "generator": pa.array(generators, pa.string())}


def _output_name(name: str) -> str:
    return f"meta_{name}" if name in _RESERVED else name


def _find_column(
    table: pa.Table, name: str | None, usual_names: tuple[str, ...], source: str
) -> str | None:
    """Return the plain name of column `name`, or the first usual name in the table if it is None."""
    if name is None:
        return next((usual for usual in usual_names if usual in table.schema.names), None)
    if _plain_name(name) not in table.schema.names:
        raise ConfigError(
            f"{source}: no column '{name}'",
            hint=f"choose one of its columns: {', '.join(table.schema.names)}",
        )
    return _plain_name(name)
