"""What is to be pictured: prompts from a text file, a table or an index, and for inpainting the real images that are to be altered.

Knows files of rows; knows no pipeline and draws nothing.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ray_app.archives import Member, fetcher_of, guard_of, iter_blocks, member_rows, open_source, places_of, read_block
from ray_app.archives.lists import check_depth, pieces
from ray_app.archives.members import Described
from ray_app.datasets.index import is_index
from ray_app.datasets.masks import may_name
from ray_app.datasets.texts import separated_texts
from ray_app.errors import ConfigError, InputError
from ray_app.generation.config import Columns, GenerateConfig
from ray_app.generation.looks import as_member
from ray_app.storage import Fetcher, Store, canonical, strip_secrets

_TABLES = {"csv": ",", "tsv": "\t"}
_MOST_BYTES = 2**31


@dataclass(frozen=True)
class Prompt:
    """One line of work. `image` and `mask` (a uri): the real picture to be altered, and where; None for text alone."""

    id: str
    text: str
    negative: str | None = None
    group: str | None = None
    split: str | None = None
    image: Member | None = None
    mask: str | None = None


def read_prompts(config: GenerateConfig, *, images: bool) -> list[Prompt]:
    """The prompts of a job, in the source's order; with `images`, of rows that name an image each.

    A row of an index or table without a prompt is left out. Raises ConfigError: nothing given, nothing there, no such column, an id that
    stands twice; StorageError when the place is out of reach.
    """
    if not config.prompts:
        raise ConfigError(
            "nothing to picture", hint="--prompts FILE: one prompt a line, or a CSV, JSONL, Parquet or index with a prompt column"
        )
    rows = _members(config.prompts, config) if images else _rows(config.prompts, config.columns)
    prompts = list(islice((prompt for prompt in _prompts(rows, config) if prompt.text.strip()), config.limit))
    if not prompts:
        raise ConfigError(
            f"{strip_secrets(config.prompts)}: no prompt in it", hint=f"they are looked for in the column '{config.columns.prompt}'"
        )
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise ConfigError(
                f"{strip_secrets(config.prompts)}: the id {prompt.id!r} stands twice", hint="--set columns.id=… names another column"
            )
        seen.add(prompt.id)
    return prompts


def _prompts(rows: Iterator[tuple[Mapping[str, Any], Member | None]], config: GenerateConfig) -> Iterator[Prompt]:
    columns, [place] = config.columns, places_of([config.prompts or ""])
    source = strip_secrets(canonical(place))
    is_checked = _is_index(config.prompts or "")  # by those who made it

    def mask(row: Mapping[str, Any], member: Member) -> str | None:
        return _text(row, columns.mask) if is_checked else _mask(row, columns.mask, source, member)

    for number, (row, member) in enumerate(rows):
        own = _text(row, columns.id)
        yield Prompt(
            id=own if own is not None else str(number),
            text=_text(row, columns.prompt) or "",
            negative=_text(row, columns.negative) or config.negative_prompt,
            group=_text(row, columns.group),
            split=_text(row, columns.split),
            image=member,
            mask=mask(row, member) if member is not None else None,
        )


def _rows(place: str, columns: Columns) -> Iterator[tuple[Mapping[str, Any], Member | None]]:
    """Rows of a text file, a table or an index, without images."""
    if _is_index(place):
        yield from ((row, None) for row, _ in _indexed(place))
        return
    ending = place.partition("?")[0].rpartition(".")[2].lower()
    if ending not in (*_TABLES, "jsonl", "ndjson", "parquet"):
        lines = io.StringIO(_bytes(place).decode("utf-8-sig"), newline=None)  # prompts hold other line breaks than a file's
        yield from (({columns.prompt: line.rstrip("\n")}, None) for line in lines if line.strip())
        return
    table = _table(_bytes(place), ending, place)
    if columns.prompt not in table.column_names:
        raise ConfigError(
            f"{strip_secrets(place)}: no column '{columns.prompt}'",
            hint=f"its columns: {', '.join(table.column_names)}; --set columns.prompt=NAME",
        )
    wanted = [name for name in columns.model_dump().values() if name in table.column_names]
    for batch in table.select(wanted).to_batches():
        yield from ((row, None) for row in batch.to_pylist())


def _members(place: str, config: GenerateConfig) -> Iterator[tuple[Mapping[str, Any], Member | None]]:
    """Rows with the image that each names: of an index its reals, of anything else all that it lists."""
    if _is_index(place):
        yield from ((row, member) for row, member in _indexed(place) if row.get("label") == "real")
        return
    for slot, item in enumerate(open_source([place], allow_private=config.allow_private)):
        # A table that came with files leads to no others.
        hidden = config.columns.mask if isinstance(item, Described) else None
        yield {name: value for name, value in item.input.items() if name != hidden}, as_member(item, slot)


def _indexed(place: str) -> Iterator[tuple[Mapping[str, Any], Member]]:
    store = Store.open(place)
    for ref in iter_blocks(store, 0):
        for member in member_rows(read_block(store, ref)):
            yield {**member.input, "id": str(member.image_id)}, member


def fetcher_for(config: GenerateConfig) -> Fetcher:
    """What reads the images and masks that the prompts name."""
    place = config.prompts or ""
    found = fetcher_of([place], config.retry, allow_private=config.allow_private)
    if place and _is_index(place):
        found.guard = found.guard.joined(guard_of(Store.open(place)))
    return found


def _is_index(place: str) -> bool:
    return "::" not in place and is_index(Store.open(place))


def _table(data: bytes, ending: str, place: str) -> Any:
    import pyarrow as pa
    import pyarrow.json as pa_json
    import pyarrow.parquet as pq

    try:
        if ending == "parquet":
            return pq.read_table(io.BytesIO(data))
        if ending in _TABLES:
            return separated_texts(data, _TABLES[ending])
        for piece in pieces(io.BytesIO(data), quoted=False):
            check_depth(piece)
        return pa_json.read_json(io.BytesIO(data))
    except pa.ArrowException as error:
        raise ConfigError(
            f"{strip_secrets(place)}: {' '.join(str(error).split())}", hint="a table has one header and columns of one type"
        ) from error


def _bytes(place: str) -> bytes:
    try:
        return Fetcher(signed=places_of([place])).fetch(strip_secrets(canonical(place)), "", _MOST_BYTES)
    except InputError as error:
        raise ConfigError(f"{strip_secrets(place)}: {error.detail}", hint="--prompts names a file or an index") from error


def _text(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    return None if value is None or value == "" else str(value)


def _mask(row: Mapping[str, Any], column: str, source: str, member: Member) -> str | None:
    """The uri of a row's mask; a relative one is below the table's folder. Raises ConfigError for a place that the row may not name."""
    place = _text(row, column)
    if place is None:
        return None
    if "://" not in place and not place.startswith("/"):
        place = f"{source.rpartition('/')[0]}/{place}"
    if not any(may_name(uri, member.member, place) for uri in (member.uri, source)):
        raise ConfigError(f"{source}: what lies in an archive, or comes from elsewhere, may not say that a mask lies at {place}")
    return place
