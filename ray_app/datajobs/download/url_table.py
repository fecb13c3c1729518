"""A list of urls → one table of texts (`read_list`).

Reads DFLIP-3K's JSON (specs/localization.md §5.1), CSV, TSV, JSON lines and Parquet. Every column
is kept, as text, under a name in small letters with underscores: `Negative prompt` is
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
from ray_app.datasets.labels import real_of
from ray_app.datasets.layouts.published import FAMILIES_V1
from ray_app.errors import ConfigError, InputError
from ray_app.storage import Fetcher, canonical, strip_secrets

_IDS, _URLS = ("id", "image_id", "key"), ("url", "image_url", "uri", "link")
# What our own tables call so; a list's column of that name stands beside as meta_NAME.
_OURS = frozenset(
    ("id", "url", "uri", "version", "etag", "sha256", "format", "width", "height", "size_bytes", "place", "shard", "status", "image",
     "source", "path")
)  # fmt: skip
_ENDINGS = (".json (DFLIP-3K)", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_MAX_BYTES = 2**31  # of a JSON file; the largest published list has 195 MB
_DIFFUSION_DB = "https://huggingface.co/datasets/poloclub/diffusiondb"


@dataclass(frozen=True)
class UrlTable:
    """`rows`: texts; `id` and `url` in every row, ids unique. `repeated`: rows that stood there
    before; `without_url`: left out.
    """

    rows: pa.Table
    repeated: int = 0
    without_url: int = 0

    @property
    def columns(self) -> list[str]:
        """All names, `id` and `url` first."""
        return list(self.rows.schema.names)


def read_list(config: CollectConfig) -> UrlTable:
    """The whole list. Raises ConfigError, naming the file, where it is none, names no urls, or
    gives one id to two urls.
    """
    where = strip_secrets(canonical(config.meta))
    table = _texts(_read(config, where))
    if config.limit is not None:
        table = table.slice(0, config.limit)
    return _listed(table, config, where)


def _read(config: CollectConfig, where: str) -> pa.Table:
    ending = get_ending(config.meta)
    if ending != ".json":
        if not is_label_table(config.meta) or ending == ".txt":
            raise ConfigError(
                f"{where}: not a list of urls",
                hint=f"give a file whose name ends in {', '.join(_ENDINGS)}",
            )
        return LabelTable(config.meta).read()
    try:
        return _dflip(
            Fetcher(signed=[config.meta]).fetch(where, "", _MAX_BYTES), where, config.generator
        )
    except InputError as error:
        raise ConfigError(f"{where}: {error.detail}") from None
    except (pa.ArrowException, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where}: cannot be read as JSON: {' '.join(str(error).split())[:300]}"
        ) from None


def _dflip(data: bytes, where: str, generator: str | None) -> pa.Table:
    twice: Counter[str] = Counter()

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.update(
            name for name, count in Counter(name for name, _ in found).items() if count > 1
        )
        return dict(found)

    content = json.loads(data, object_pairs_hook=pairs)
    if isinstance(content, list):
        return text_table(
            [row if isinstance(row, dict) else {"url": row} for row in content], format_value
        )
    if not isinstance(content, dict) or not all(
        isinstance(record, dict) for record in content.values()
    ):
        raise ConfigError(f"{where}: neither id → record (DFLIP-3K) nor a list of records")
    if doubled := [name for name in twice if name in content]:
        raise ConfigError(
            f"{where}: the id {doubled[0]!r} is there twice ({len(doubled)} such ids)",
            hint="one record per id",
        )
    if content and not any("url" in record for record in content.values()):
        raise _no_urls(where, next(iter(content.values())))
    stem = where.rpartition("/")[2].partition(".")[0]
    family = FAMILIES_V1.get(stem)
    rows = []
    for name, record in content.items():
        made_by = (
            family or record.get("generator") or record.get("Model") or record.get("Model hash")
        )
        rows.append(
            {
                **record,
                "id": name,
                "generator": made_by or generator or ("sdft" if stem == "pd" else None),
            }
        )
    return text_table(rows, format_value)


def _no_urls(where: str, record: Mapping[str, Any]) -> ConfigError:
    if {"p", "se"} <= record.keys():
        message = f"{where}: this is DFLIP-3K's sd.json: names, prompts and seeds of DiffusionDB's images, and no urls"
        return ConfigError(
            message,
            hint=f"the images are in DiffusionDB ({_DIFFUSION_DB}): fetch its parts there, or score hf://datasets/poloclub/diffusiondb",
        )
    return ConfigError(f"{where}: its records have no url", hint=f"they have {', '.join(record)}")


def _texts(table: pa.Table) -> pa.Table:
    """All columns as texts, null for the empty one, under plain names; columns of bytes are left
    out.
    """
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
        texts = column.cast(pa.string())
        columns.setdefault(_plain(name), pc.if_else(pc.equal(texts, ""), None, texts))
    return pa.table(columns)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_") or "column"


def _listed(table: pa.Table, config: CollectConfig, where: str) -> UrlTable:
    url = _column(table, config.url, _URLS, where)
    if url is None:
        raise ConfigError(
            f"{where}: none of its columns holds urls: {', '.join(table.schema.names)}",
            hint="say which: --set url=NAME",
        )
    has_url = pc.is_valid(table[url])
    without, table = table.num_rows - (pc.sum(has_url).as_py() or 0), table.filter(has_url)
    if not len(table):
        raise ConfigError(f"{where}: no row has a url")
    own = _column(table, config.id, _IDS, where)
    urls: list[str] = table[url].to_pylist()
    given = table[own].to_pylist() if own else [None] * len(urls)
    ids: list[str] = [
        name or hashlib.sha256(at.encode()).hexdigest()[:16]
        for name, at in zip(given, urls, strict=True)
    ]
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if first.setdefault(name, row) != row and urls[first[name]] != urls[row]:
            message = f"{strip_secrets(urls[first[name]])} and {strip_secrets(urls[row])}"
            raise ConfigError(
                f"{where}: the id {name!r} is given to {message}",
                hint="ids must be unique; or --set id=COLUMN names another",
            )
    kept = pa.array(list(first.values()), pa.int64())
    beside = {
        _beside(name): table[name].take(kept)
        for name in table.schema.names
        if name not in (url, own, "label", "generator")
    }
    named = {"id": pa.array(list(first)), "url": table[url].take(kept)}
    return UrlTable(
        pa.table(named | _labels(table.take(kept), config, where) | beside),
        len(ids) - len(first),
        without,
    )


def _labels(table: pa.Table, config: CollectConfig, where: str) -> dict[str, pa.Array]:
    """The columns `label` and `generator`: of the list, else of the config."""
    none: list[str | None] = [None] * len(table)
    listed = (
        parse_labels(table["label"], where).to_pylist() if "label" in table.schema.names else none
    )
    labels = [config.label if label is None else label for label in listed]
    makers = next(
        (table[name].to_pylist() for name in ("generator", "model") if name in table.schema.names),
        none,
    )
    generators = [
        real_of(maker) if label == "real" else maker or config.generator
        for label, maker in zip(labels, makers, strict=True)
    ]
    return {"label": pa.array(labels, pa.string()), "generator": pa.array(generators, pa.string())}


def _beside(name: str) -> str:
    return f"meta_{name}" if name in _OURS else name


def _column(table: pa.Table, chosen: str | None, usual: tuple[str, ...], where: str) -> str | None:
    """The plain name of the column that the user names, else the first usual one that is there."""
    if chosen is None:
        return next((name for name in usual if name in table.schema.names), None)
    if _plain(chosen) not in table.schema.names:
        raise ConfigError(
            f"{where}: no column '{chosen}'", hint=f"its columns: {', '.join(table.schema.names)}"
        )
    return _plain(chosen)
