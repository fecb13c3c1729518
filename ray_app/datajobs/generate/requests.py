"""Prompts (`read_prompts`) → requests of one image each, with all that is drawn for it
(`make_requests`) → equal blocks (`cut_blocks`).

The same for every session of a job: what is drawn follows from one number per image (`randomness`),
on any machine, in any batch.
"""

import hashlib
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app import archives
from ray_app.archives.label_tables import (
    LabelTable,
    columns_hint,
    get_ending,
    is_label_table,
    match_columns,
)
from ray_app.archives.members import ListedWithColumns
from ray_app.datajobs.generate.config import FileEncoding, GenerateConfig, PromptColumns, Size
from ray_app.datajobs.generate.files import FileStyle, has_manifest
from ray_app.datasets.index import is_index
from ray_app.datasets.masks import may_name
from ray_app.errors import ConfigError, InputError
from ray_app.runs import RunDirectory, current_tables
from ray_app.storage import Fetcher, Store, canonical, strip_secrets

_MAX_TEXT_BYTES = 2**31
_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}

FoundRow = tuple[Mapping[str, Any], archives.ManifestMember | None]


@dataclass(frozen=True)
class Prompt:
    """One line of work. `image` and `mask` (a uri): the real picture to be altered, and where; None
    for text alone.
    """

    id: str
    text: str
    negative: str | None = None
    group: str | None = None
    split: str | None = None
    image: archives.ManifestMember | None = None
    mask: str | None = None


@dataclass(frozen=True)
class ImageRequest:
    """One image to be made: `index` counts all of a job, `size` is (width, height) of what the
    pipeline makes.
    """

    index: int
    seed: int
    prompt: Prompt
    size: Size
    style: FileStyle

    @property
    def image_path(self) -> str:
        """Where the image goes, below the job's directory."""
        return f"images/{self.index:08}.{_SUFFIXES[self.style.format]}"

    @property
    def mask_path(self) -> str:
        """Where the mask of an altered image goes."""
        return f"masks/{self.index:08}.png"


@dataclass(frozen=True)
class GenerationBlock:
    """Orders of one size: the unit of commit and resume."""

    number: int
    requests: tuple[ImageRequest, ...]

    @property
    def name(self) -> str:
        """That of its part, which exists when, and only when, all of its images are there."""
        return f"{self.number:06}"


def make_requests(
    prompts: Sequence[Prompt],
    *,
    per_prompt: int,
    base_seed: int,
    sizes: Sequence[Size],
    encoding: FileEncoding,
) -> list[ImageRequest]:
    """A request per image, prompt by prompt; seed, size and style follow from (base seed, index)
    alone.
    """
    found = []
    for index, prompt in enumerate(prompt for prompt in prompts for _ in range(per_prompt)):
        seed = seed_of(base_seed, index)
        size = sizes[pick(seed, "size", len(sizes))]
        found.append(ImageRequest(index, seed, prompt, size, draw_style(encoding, seed)))
    return found


def draw_style(encoding: FileEncoding, seed: int) -> FileStyle:
    """Draw how one image is stored; the style follows from its seed alone."""
    kind = encoding.format[pick(seed, "look", len(encoding.format))]
    if kind == "PNG":
        return FileStyle(kind)
    quality = None
    if encoding.quality is not None:
        lowest, highest = encoding.quality
        quality = lowest + pick(seed, "quality", highest - lowest + 1)
    return (
        FileStyle(kind, quality or 90, encoding.subsampling)
        if kind == "JPEG"
        else FileStyle(kind, quality)
    )


def cut_blocks(requests: Sequence[ImageRequest], block_images: int) -> list[GenerationBlock]:
    """Blocks of one size each, numbered; sizes in the order in which they first come."""
    by_size: defaultdict[Size, list[ImageRequest]] = defaultdict(list)
    for request in requests:
        by_size[request.size].append(request)
    cut = (
        tuple(group[start : start + block_images])
        for group in by_size.values()
        for start in range(0, len(group), block_images)
    )
    return [GenerationBlock(number, some) for number, some in enumerate(cut)]


def digest_of_requests(requests: Sequence[ImageRequest]) -> str:
    """SHA-256 over all that was drawn: another list of prompts is another job."""
    digest = hashlib.sha256()
    for request in requests:
        image = request.prompt.image
        prompt, style = request.prompt, request.style
        drawn = [request.index, request.seed, prompt.id, prompt.text, prompt.negative, prompt.mask, request.size,
                [style.format, style.quality, style.subsampling], image and image.image_id]  # fmt: skip
        digest.update(json.dumps(drawn, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def seed_of(base: int, index: int) -> int:
    """The seed of image `index` of a job: 63 bits of SHA-256 over both, so that no two images of a
    job share one, nor two jobs theirs.
    """
    return _word(f"touchstone:{base}:{index}") >> 1


def pick(seed: int, what: str, number: int) -> int:
    """0 … number − 1, drawn from a seed for one purpose; draws for different purposes know nothing
    of each other.
    """
    return _word(f"{what}:{seed}") % number


def randomness(seed: int, what: str) -> random.Random:
    """Many draws for one purpose."""
    return random.Random(_word(f"{what}:{seed}"))


def _word(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_prompts(config: GenerateConfig, *, images: bool) -> list[Prompt]:
    """The prompts of a job, in the source's order; with `images`, of rows that name an image each.
    Those of a run are what it predicted.

    A row of an index or table without a prompt is left out. Raises ConfigError: nothing given,
    nothing there, no such column, an id that stands twice; StorageError when the place is out of
    reach.
    """
    if not config.prompts:
        raise ConfigError(
            "nothing to picture",
            hint="--prompts FILE: one prompt a line, or a CSV, JSONL, Parquet or index with a prompt column",
        )
    shown = strip_secrets(config.prompts)
    is_indexed = is_index(config.prompts)
    hint = f"they are looked for in the column '{config.columns.prompt}'"
    if is_indexed:
        rows: Iterator[FoundRow] = _indexed(config.prompts, images=images)
    elif not images and has_manifest(config.prompts):
        rows, hint = (
            _predicted(config.prompts, config.columns),
            "a run has some where its ensemble's profile has a describer",
        )
    else:
        rows = _members(config.prompts, config) if images else _rows(config.prompts, config.columns)
    found = (
        _prompt(number, row, member, config, is_indexed)
        for number, (row, member) in enumerate(rows)
    )
    prompts = list(islice((prompt for prompt in found if prompt.text.strip()), config.limit))
    if not prompts:
        raise ConfigError(f"{shown}: no prompt in it", hint=hint)
    if twice := [
        name for name, count in Counter(prompt.id for prompt in prompts).items() if count > 1
    ]:
        raise ConfigError(
            f"{shown}: the id {twice[0]!r} stands twice",
            hint="--set columns.id=… names another column",
        )
    return prompts


def _prompt(
    number: int,
    row: Mapping[str, Any],
    member: archives.ManifestMember | None,
    config: GenerateConfig,
    is_indexed: bool,
) -> Prompt:
    columns = config.columns
    own, mask = _text(row, columns.id), None
    if member is not None:  # masks of an index are checked by those who made it
        mask = _text(row, columns.mask) if is_indexed else _mask(row, config, member)
    return Prompt(
        id=str(number) if own is None else own,
        text=_text(row, columns.prompt) or "",
        negative=_text(row, columns.negative) or config.negative_prompt,
        group=_text(row, columns.group),
        split=_text(row, columns.split),
        image=member,
        mask=mask,
    )


def _rows(place: str, columns: PromptColumns) -> Iterator[FoundRow]:
    """Rows of a text file or a table, without images."""
    [file] = archives.places_of([place])
    if not is_label_table(file) or get_ending(file) == ".txt":
        yield from (({columns.prompt: line}, None) for line in _lines(file))
        return
    table = LabelTable(file)
    names = table.column_names
    found = match_columns(names, columns.model_dump().values(), table.name)
    if columns.prompt not in found:
        raise ConfigError(
            f"{table.name}: no column '{columns.prompt}'",
            hint=f"{columns_hint(names)}; --set columns.prompt=NAME",
        )
    for piece in table.tables(list(found)):
        yield from ((row, None) for row in piece.to_pylist())


def _lines(place: str) -> Iterator[str]:
    """Yield the lines of a text file that are not empty."""
    shown = strip_secrets(canonical(place))
    try:
        text = Fetcher(signed=[place]).fetch(shown, "", _MAX_TEXT_BYTES).decode("utf-8-sig")
    except InputError as error:
        raise ConfigError(
            f"{shown}: {error.detail}", hint="--prompts names a file or an index"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown}: {error}", hint="prompts are a text file in UTF-8, or a table"
        ) from None
    lines = io.StringIO(text, newline=None)  # prompts hold other line breaks than a file's
    yield from (line.rstrip("\n") for line in lines if line.strip())


def _members(place: str, config: GenerateConfig) -> Iterator[FoundRow]:
    """Rows with the image that each names."""
    for slot, item in enumerate(archives.open_source([place], allow_private=config.allow_private)):
        # A table that came with files leads to no others.
        hidden = config.columns.mask if isinstance(item, ListedWithColumns) else None
        yield (
            {name: value for name, value in item.input.items() if name != hidden},
            archives.as_member(item, slot),
        )


def _indexed(place: str, *, images: bool) -> Iterator[FoundRow]:
    """Rows of an index; with `images`, its real ones and their images."""
    store = Store.open(place)
    for ref in archives.read_blocks(store, 0):
        for member in archives.member_rows(archives.read_block(store, ref)):
            if not images or member.input.get("label") == "real":
                yield {**member.input, "id": str(member.image_id)}, member if images else None


def _predicted(place: str, columns: PromptColumns) -> Iterator[FoundRow]:
    """The prompts that a run predicted, with their images' ids, the lowest first: of many images
    `evaluate` takes those.
    """
    tables = current_tables(RunDirectory.open(place), ["image_id", "predicted_prompt"])
    tables_with_prompts = [
        table.filter(pc.field("predicted_prompt").is_valid()) for table in tables
    ]
    if not tables_with_prompts:
        return
    for batch in pa.concat_tables(tables_with_prompts).sort_by("image_id").to_batches():
        yield from (
            ({columns.prompt: row["predicted_prompt"], columns.id: row["image_id"]}, None)
            for row in batch.to_pylist()
        )


def _text(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    return None if value is None or value == "" else str(value)


def _mask(
    row: Mapping[str, Any], config: GenerateConfig, member: archives.ManifestMember
) -> str | None:
    """The uri of a row's mask; a relative one is below the table's folder. Raises ConfigError for a
    place that the row may not name.
    """
    place, [listed] = _text(row, config.columns.mask), archives.places_of([config.prompts or ""])
    if place is None:
        return None
    source = strip_secrets(canonical(listed))
    if "://" not in place and not place.startswith("/"):
        place = f"{source.rpartition('/')[0]}/{place}"
    if not any(may_name(uri, member.member, place) for uri in (member.uri, source)):
        raise ConfigError(
            f"{source}: what lies in an archive, or comes from elsewhere, may not say that a mask lies at {place}"
        )
    return place
