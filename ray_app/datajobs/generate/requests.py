"""Read prompts (`read_prompts`), and make one request per image to generate (`make_requests`).

`cut_blocks` divides the requests into blocks, which are generated and committed as a whole. All
random choices for an image follow from its seed (`make_rng`). Requests are therefore equal in every
session of a job, on every machine, and in every batch.
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
from ray_app.storage import Fetcher, Store, canonicalize, strip_secrets

_MAX_TEXT_BYTES = 2**31
_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}

PromptRow = tuple[Mapping[str, Any], archives.ManifestMember | None]


@dataclass(frozen=True)
class Prompt:
    """A prompt to generate images from and, for inpainting, the real image to alter.

    Attributes:
        id: Unique id of the prompt.
        text: The prompt.
        negative: The negative prompt.
        group: Group of the images. `touchstone data split` keeps a group in one split.
        split: Split of the images, such as "train".
        image: The real image to alter. None unless the pipeline is for inpainting.
        mask: URI of the mask that marks the part of the image to alter. None to draw a mask.
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
    """A request for one image.

    Attributes:
        index: Index of the image in the job.
        seed: Seed of all random choices for this image.
        prompt: The prompt.
        size: (width, height) of the output of the pipeline in pixels.
        style: Format and quality of the file.
    """

    index: int
    seed: int
    prompt: Prompt
    size: Size
    style: FileStyle

    @property
    def image_path(self) -> str:
        """Path of the image below the directory of the job."""
        return f"images/{self.index:08}.{_SUFFIXES[self.style.format]}"

    @property
    def mask_path(self) -> str:
        """Path of the mask of an inpainted image below the directory of the job."""
        return f"masks/{self.index:08}.png"


@dataclass(frozen=True)
class GenerationBlock:
    """Requests for images of one size, which a worker generates and commits as a whole.

    A job that is resumed generates only the blocks that are not committed.

    Attributes:
        number: Index of the block in the job.
        requests: The requests.
    """

    number: int
    requests: tuple[ImageRequest, ...]

    @property
    def name(self) -> str:
        """Name, without extension, of the file in `parts/` with the rows of the block.

        An example is "000012". The file exists only if the block is done.
        """
        return f"{self.number:06}"


def make_requests(
    prompts: Sequence[Prompt],
    *,
    per_prompt: int,
    base_seed: int,
    sizes: Sequence[Size],
    encoding: FileEncoding,
) -> list[ImageRequest]:
    """Make a request for each image, in the order of the prompts.

    The seed, the size, and the style of an image follow from the base seed and the index alone.

    Args:
        prompts: The prompts.
        per_prompt: Number of images per prompt.
        base_seed: Base seed of the job.
        sizes: (width, height) pairs to draw from.
        encoding: Formats and qualities to draw from.
    """
    requests = []
    for index, prompt in enumerate(prompt for prompt in prompts for _ in range(per_prompt)):
        seed = derive_seed(base_seed, index)
        size = sizes[pick(seed, "size", len(sizes))]
        requests.append(ImageRequest(index, seed, prompt, size, draw_style(encoding, seed)))
    return requests


def draw_style(encoding: FileEncoding, seed: int) -> FileStyle:
    """Draw the file format and the quality of a generated image at random.

    Equal seeds give equal results.

    Args:
        encoding: The formats and qualities to draw from.
        seed: Seed of the image.

    Returns:
        The format and quality.
    """
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
    """Divide requests into blocks, each of which a worker generates and commits as a whole.

    A block has up to `block_images` requests for images of one size. Blocks are in the order in
    which the sizes first occur.
    """
    by_size: defaultdict[Size, list[ImageRequest]] = defaultdict(list)
    for request in requests:
        by_size[request.size].append(request)
    chunks = (
        tuple(group[start : start + block_images])
        for group in by_size.values()
        for start in range(0, len(group), block_images)
    )
    return [GenerationBlock(number, chunk) for number, chunk in enumerate(chunks)]


def hash_requests(requests: Sequence[ImageRequest]) -> str:
    """Return the SHA-256 of all requests in hex, by which a resumed job recognises changes.

    The hash changes if the prompts or the settings of the images change.
    """
    digest = hashlib.sha256()
    for request in requests:
        image = request.prompt.image
        prompt, style = request.prompt, request.style
        values = [request.index, request.seed, prompt.id, prompt.text, prompt.negative, prompt.mask, request.size,
                [style.format, style.quality, style.subsampling], image and image.image_id]  # fmt: skip
        digest.update(json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def derive_seed(base: int, index: int) -> int:
    """Return the seed of image `index` of a job with the base seed `base`.

    The seed is 63 bits of the SHA-256 of `base` and `index`, so that images of one job or of
    different jobs do not share a seed.
    """
    return _hash64(f"touchstone:{base}:{index}") >> 1


def pick(seed: int, purpose: str, count: int) -> int:
    """Draw a reproducible integer from 0 to count − 1 for one image.

    Args:
        seed: Seed of the image.
        purpose: Name of the choice. Draws for different purposes are independent.
        count: Number of alternatives.
    """
    return _hash64(f"{purpose}:{seed}") % count


def make_rng(seed: int, purpose: str) -> random.Random:
    """Return a random number generator that depends only on an image's seed and the purpose.

    Use it for several draws for one purpose.
    """
    return random.Random(_hash64(f"{purpose}:{seed}"))


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_prompts(config: GenerateConfig, *, images: bool) -> list[Prompt]:
    """Read the prompts of a job, in the order of the source.

    Rows of an index or a table without a prompt are left out. If the source is a scoring run and
    `images` is False, the prompts are those that the run predicted for its images.

    Args:
        config: Settings of the job, which name the source.
        images: Whether each row also names a real image to alter.

    Raises:
        ConfigError: If no source is set, or if the source has no prompts, lacks the column of
            prompts, or repeats an id.
        StorageError: If the source is unreachable.
    """
    if not config.prompts:
        raise ConfigError(
            "--prompts FILE is missing: there are no prompts to generate images from",
            hint="set --prompts to a text file with one prompt per line, or a CSV, JSONL, Parquet, or index with a prompt column",
        )
    source = strip_secrets(config.prompts)
    is_indexed = is_index(config.prompts)
    hint = f"check that prompts are in the column '{config.columns.prompt}'"
    if is_indexed:
        rows: Iterator[PromptRow] = _read_index(config.prompts, images=images)
    elif not images and has_manifest(config.prompts):
        rows, hint = (
            _read_predicted_prompts(config.prompts, config.columns),
            "name a run whose ensemble's profile has a describer, which predicts prompts",
        )
    else:
        rows = (
            _read_members(config.prompts, config)
            if images
            else _read_rows(config.prompts, config.columns)
        )
    all_prompts = (
        _make_prompt(number, row, member, config, is_indexed)
        for number, (row, member) in enumerate(rows)
    )
    prompts = list(islice((prompt for prompt in all_prompts if prompt.text.strip()), config.limit))
    if not prompts:
        raise ConfigError(f"{source}: it has no prompts", hint=hint)
    if repeated := [
        name for name, count in Counter(prompt.id for prompt in prompts).items() if count > 1
    ]:
        raise ConfigError(
            f"{source}: duplicate id {repeated[0]!r}",
            hint="use --set columns.id=NAME to name a column of unique ids",
        )
    return prompts


def _make_prompt(
    number: int,
    row: Mapping[str, Any],
    member: archives.ManifestMember | None,
    config: GenerateConfig,
    is_indexed: bool,
) -> Prompt:
    columns = config.columns
    prompt_id, mask = _text(row, columns.id), None
    if member is not None:  # Masks of an index were checked when it was written.
        mask = _text(row, columns.mask) if is_indexed else _find_mask(row, config, member)
    return Prompt(
        id=str(number) if prompt_id is None else prompt_id,
        text=_text(row, columns.prompt) or "",
        negative=_text(row, columns.negative) or config.negative_prompt,
        group=_text(row, columns.group),
        split=_text(row, columns.split),
        image=member,
        mask=mask,
    )


def _read_rows(path: str, columns: PromptColumns) -> Iterator[PromptRow]:
    """Yield the rows of a text file or a table, without images."""
    [file] = archives.strip_kinds([path])
    if not is_label_table(file) or get_ending(file) == ".txt":
        yield from (({columns.prompt: line}, None) for line in _read_lines(file))
        return
    table = LabelTable(file)
    names = table.column_names
    matched = match_columns(names, columns.model_dump().values(), table.name)
    if columns.prompt not in matched:
        raise ConfigError(
            f"{table.name}: no column '{columns.prompt}'",
            hint=f"{columns_hint(names)}; --set columns.prompt=NAME",
        )
    for chunk in table.tables(list(matched)):
        yield from ((row, None) for row in chunk.to_pylist())


def _read_lines(path: str) -> Iterator[str]:
    """Yield the lines of a text file that are not empty."""
    source = strip_secrets(canonicalize(path))
    try:
        text = Fetcher(signed=[path]).fetch(source, "", _MAX_TEXT_BYTES).decode("utf-8-sig")
    except InputError as error:
        raise ConfigError(
            f"{source}: {error.detail}", hint="set --prompts to a file or an index"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{source}: not UTF-8: {error}",
            hint="encode the prompts as UTF-8, or name a table of prompts",
        ) from None
    # StringIO splits at line ends only; str.splitlines also splits at other characters.
    lines = io.StringIO(text, newline=None)
    yield from (line.rstrip("\n") for line in lines if line.strip())


def _read_members(path: str, config: GenerateConfig) -> Iterator[PromptRow]:
    """Yield the rows of a table, each with the image that it names."""
    for slot, item in enumerate(archives.open_source([path], allow_private=config.allow_private)):
        # Columns from inside an archive may not name other files, so their masks are ignored.
        hidden = config.columns.mask if isinstance(item, ListedWithColumns) else None
        yield (
            {name: value for name, value in item.input.items() if name != hidden},
            archives.to_manifest_member(item, slot),
        )


def _read_index(path: str, *, images: bool) -> Iterator[PromptRow]:
    """Yield the rows of an index; with `images`, only real images, each with its member."""
    store = Store.open(path)
    for ref in archives.read_blocks(store, 0):
        for member in archives.rows_to_members(archives.read_block(store, ref)):
            if not images or member.input.get("label") == "real":
                yield {**member.input, "id": str(member.image_id)}, member if images else None


def _read_predicted_prompts(path: str, columns: PromptColumns) -> Iterator[PromptRow]:
    """Yield the prompts that a run predicted and the ids of their images, in ascending order.

    `touchstone evaluate` also uses the images with the lowest ids if there are more than it needs.
    """
    tables = current_tables(RunDirectory.open(path), ["image_id", "predicted_prompt"])
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


def _find_mask(
    row: Mapping[str, Any], config: GenerateConfig, member: archives.ManifestMember
) -> str | None:
    """Return the URI of a row's mask; a relative path is below the folder of the table.

    Raises:
        ConfigError: If the row may not name this path.
    """
    path, [table] = _text(row, config.columns.mask), archives.strip_kinds([config.prompts or ""])
    if path is None:
        return None
    source = strip_secrets(canonicalize(table))
    if "://" not in path and not path.startswith("/"):
        path = f"{source.rpartition('/')[0]}/{path}"
    if not any(may_name(uri, member.member, path) for uri in (member.uri, source)):
        raise ConfigError(
            f"{source}: for security, a row from an archive or from another host may not name the mask {path}",
            hint="unpack the archive, or copy the table and its masks to this machine",
        )
    return path
