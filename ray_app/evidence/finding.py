"""The one row of a run that a person means by a uri, an id or a path. Knows names and rows; decides nothing."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.detectors.weights import file_sha256
from ray_app.errors import ConfigError
from ray_app.runs import RunDirectory
from ray_app.runs.reader import current_files, tables_in
from ray_app.storage import canonical, strip_secrets

BETWEEN = " › "  # as reports write a member of a container: s3://bucket/photos.tar › 12/a.jpg
_NAMED = 3


class Found(NamedTuple):
    """A current row of the run, and by what it was found: `image_id`, `uri`, `path` or `sha256`."""

    row: dict[str, Any]
    by: str


def find_row(run: RunDirectory, image: str) -> Found:
    """The current row of one image: by its image_id, its uri (`CONTAINER › MEMBER` inside one), its path, or a copy of the file.

    A local file whose place the run does not know is looked for by its bytes. Raises ConfigError where no row, or more than one, is meant.
    """
    for by, found in _found(run, list(_meanings(image))):
        if len(found) > 1:
            raise ConfigError(f"{image}: {len(found):,} rows of the run", hint=f"give one's image_id: {_few(run, found)}")
        if found:
            return Found(_row(run, *found[0]), by)
    raise ConfigError(
        f"{run.store.url}: no row of {image}", hint=f"touchstone results {run.store.url} --json shows each row's image_id and uri"
    )


Wanted = dict[str, Any]  # column → its value
Place = tuple[str, int]  # a file of the run, and the image_id of a row in it


def _meanings(image: str) -> Iterator[tuple[str, Wanted]]:
    """What a word may mean, most literal first."""
    if re.fullmatch(r"[-−]?\d{1,19}", image):
        yield "image_id", {"image_id": int(image.replace("−", "-"))}
    uri, between, member = image.partition(BETWEEN)
    inside = {"member": member} if between else {}
    yield "uri", {"uri": strip_secrets(uri)} | inside
    place = strip_secrets(canonical(uri))
    if place != uri:
        yield "path", {"uri": place} | inside
    if "://" not in image and Path(image).is_file():
        yield "sha256", {"sha256": file_sha256(Path(image))}


def _found(run: RunDirectory, meanings: Sequence[tuple[str, Wanted]]) -> Iterator[tuple[str, list[Place]]]:
    """Per meaning the rows that have it, in one pass; an id is one row's alone, so that nothing is read behind it."""
    columns = list(dict.fromkeys(["image_id", *(name for _, wanted in meanings for name in wanted)]))
    found: list[list[Place]] = [[] for _ in meanings]
    for path in current_files(run):
        for table in tables_in(run, [path], columns):
            for places, (_, wanted) in zip(found, meanings, strict=True):
                places += [(path, number) for number in _matching(table, wanted)]
        if meanings[0][0] == "image_id" and found[0]:
            break
    return zip((by for by, _ in meanings), found, strict=True)


def _matching(table: pa.Table, wanted: Wanted) -> list[int]:
    """The ids of the rows that have these values."""
    for name, value in wanted.items():
        column = table[name]
        within = -(2**63) <= value < 2**63 if isinstance(value, int) else True
        table = table.filter(pc.equal(column, pa.scalar(value, column.type))) if within else table.slice(0, 0)
    ids: list[int] = table["image_id"].to_pylist()
    return ids


def _row(run: RunDirectory, path: str, number: int) -> dict[str, Any]:
    for table in tables_in(run, [path]):
        rows = table.filter(pc.equal(table["image_id"], number))
        if len(rows):
            row: dict[str, Any] = rows.slice(0, 1).to_pylist()[0]
            return row
    raise AssertionError(f"{path} had a row of {number} a moment ago")


def _few(run: RunDirectory, found: Sequence[Place]) -> str:
    rows = [_row(run, *one) for one in found[:_NAMED]]
    names = [f"{row['image_id']} ({row['uri'] if row['member'] is None else row['uri'] + BETWEEN + row['member']})" for row in rows]
    return ", ".join(names) + (", …" if len(found) > _NAMED else "")
