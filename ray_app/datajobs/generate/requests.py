"""Prompts (`read_prompts`) → requests of one image each, with all that is drawn for it (`make_requests`) → equal blocks (`cut_blocks`).

The same for every session of a job: what is drawn follows from one number per image (`randomness`), on any machine, in any batch.

How files of a real set are stored (format, quality, subsampling, size): `measure` reads headers of a sample, for generated files.

Where fakes are PNG and reals JPEG, a detector learns the file and not the picture (specs/detectors.md §12; Grommelt et al. 2024,
arXiv 2403.17608).
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
from PIL import Image, JpegImagePlugin

from ray_app import archives
from ray_app.archives.members import ListedWithColumns
from ray_app.datajobs.generate.config import FileEncoding, GenerateConfig, Like, PromptColumns, Size
from ray_app.datasets.index import is_index
from ray_app.datasets.masks import may_name
from ray_app.errors import ConfigError, InputError
from ray_app.images import ImageLimits, jpeg, sniff_format
from ray_app.runs import RunDirectory, current_rows
from ray_app.storage import Fetcher, RetryPolicy, Store, canonical, strip_secrets

_SUBSAMPLINGS = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
_WRITTEN = ("JPEG", "PNG", "WEBP")
_WEBP_QUALITY = 80  # of a lossy one; no header says it, and this is what cwebp and Pillow write unless they are asked


@dataclass(frozen=True)
class FileStyle:
    """One way to store an image; `size` (width, height) is that of the real file, None where size is not to be alike.

    `quality` 1 … 100 of JPEG and lossy WebP, None of PNG and lossless WebP; `subsampling` of JPEG alone.
    """

    format: str
    quality: int | None = None
    subsampling: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class FileStyles:
    """The looks of a sample of real files, in a fixed order; `left_out` counts files by why they are none."""

    looks: tuple[FileStyle, ...]
    left_out: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """Counts, as JSON."""
        formats = dict(Counter(look.format for look in self.looks).most_common())
        qualities = sorted(look.quality for look in self.looks if look.format == "JPEG" and look.quality is not None)
        subsampling = Counter(look.subsampling for look in self.looks if look.subsampling is not None)
        median = qualities[len(qualities) // 2] if qualities else None
        return {"files": len(self.looks), "formats": formats, "jpeg_quality_median": median, "subsampling": dict(subsampling),
                "left_out": self.left_out}  # fmt: skip


def plain_look(encoding: FileEncoding) -> FileStyle:
    """The one look of a job without a real set."""
    quality = encoding.quality or (90 if encoding.format == "JPEG" else None)
    if encoding.format == "PNG":
        return FileStyle("PNG")
    return FileStyle(encoding.format, quality, encoding.subsampling if encoding.format == "JPEG" else None)


def measure(like: Like, limits: ImageLimits, retry: RetryPolicy, *, allow_private: bool = False) -> FileStyles:
    """Measure up to `like.sample` real files, evenly spread over the set; where it is labelled, its reals alone. `allow_private`: see
    `fetcher_of`.

    Raises ConfigError where there is no file that could be imitated, StorageError when the set is out of reach.
    """
    fetcher = archives.fetcher_of([like.source], retry, allow_private=allow_private)
    if _has_manifest(like.source):
        fetcher.guard = fetcher.guard.joined(archives.guard_of(Store.open(like.source)))
    members = _spread(list(_reals(like.source, fetcher)), like.sample)
    looks, left_out = [], Counter[str]()
    reader = archives.MemberReader(fetcher, max_bytes=limits.max_bytes)
    for _, data in reader.read(members):
        look = data.status.value if isinstance(data, InputError) else look_of(data, size=like.size)
        if isinstance(look, FileStyle):
            looks.append(look)
        else:
            left_out[look] += 1
    if not looks and "::" not in like.source and RunDirectory(Store.open(like.source)).exists():
        looks = list(_row_styles(RunDirectory.open(like.source), like))
    if not looks:
        raise ConfigError(
            f"like: no JPEG, PNG or WebP was read from {strip_secrets(like.source)}", hint=f"left out: {dict(left_out) or 'nothing there'}"
        )
    return FileStyles(tuple(looks), dict(left_out))


def look_of(data: bytes, *, size: bool = False) -> FileStyle | str:
    """How a file is stored, or the reason why nothing like it is written."""
    kind = sniff_format(data)
    if kind not in _WRITTEN:
        return f"{kind or 'no image'} is not written"
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            area = image.size if size else None
            if kind == "JPEG":
                assert isinstance(image, JpegImagePlugin.JpegImageFile)
                found = _SUBSAMPLINGS.get(JpegImagePlugin.get_sampling(image), "4:2:0") if len(image.layer) == 3 else "4:2:0"
                return FileStyle(kind, jpeg.jpeg_quality(image.quantization) or 90, found, area)
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, Image.DecompressionBombError) as error:
        return f"unreadable header: {type(error).__name__}"
    is_lossy = kind == "WEBP" and b"VP8 " in data[12:] and b"VP8L" not in data[12:64]
    return FileStyle(kind, _WEBP_QUALITY if is_lossy else None, None, area)


def _has_manifest(place: str) -> bool:
    store = Store.open(place) if "::" not in place else None
    return store is not None and (RunDirectory(store).exists() or is_index(store))


def _reals(place: str, fetcher: Fetcher) -> Iterator[archives.ManifestMember]:
    """Members of a run, an index or an archive; without those that are labelled fake."""
    if _has_manifest(place):
        store = Store.open(place)
        blocks = (
            ref
            for number in archives.manifests(store)
            if archives.read_complete(store, number)
            for ref in archives.iter_blocks(store, number)
        )
        found = (member for ref in blocks for member in archives.member_rows(archives.read_block(store, ref)))
    else:
        found = (as_member(item, slot) for slot, item in enumerate(islice(archives.open_source([place], fetcher=fetcher), 1_000_000)))
    return (member for member in found if str(member.input.get("label", "real")).lower() not in ("fake", "1", "true"))


def as_member(item: Any, slot: int) -> archives.ManifestMember:
    """A listed file as one that can be read; `slot` is its number in the listing."""
    listed = (item.uri, item.member, item.occurrence, item.version, item.size_bytes)
    return archives.ManifestMember(archives.image_id(item), *listed, 0, slot, item.input, item.place, item.refused)


def _row_styles(run: RunDirectory, like: Like) -> Iterator[FileStyle]:
    """From a run's rows, when its files are gone. Rows know no subsampling: most JPEGs are 4:2:0."""
    found = (row for row in current_rows(run, status="ok") if row["format"] in _WRITTEN)
    for row in islice(found, like.sample):
        area = (row["width"], row["height"]) if like.size else None
        is_jpeg = row["format"] == "JPEG"
        yield FileStyle(row["format"], (row["quality"] or 90) if is_jpeg else None, "4:2:0" if is_jpeg else None, area)


def _spread(members: Sequence[archives.ManifestMember], most: int) -> list[archives.ManifestMember]:
    if len(members) <= most:
        return list(members)
    return [members[round(number * (len(members) - 1) / (most - 1 or 1))] for number in range(most)]


_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_MOST_BYTES = 2**31


@dataclass(frozen=True)
class Prompt:
    """One line of work. `image` and `mask` (a uri): the real picture to be altered, and where; None for text alone."""

    id: str
    text: str
    negative: str | None = None
    group: str | None = None
    split: str | None = None
    image: archives.ManifestMember | None = None
    mask: str | None = None


@dataclass(frozen=True)
class ImageRequest:
    """One image to be made: `index` counts all of a job, `size` is (width, height) of what the pipeline makes."""

    index: int
    seed: int
    prompt: Prompt
    size: Size
    look: FileStyle

    @property
    def image_path(self) -> str:
        """Where the image goes, below the job's directory."""
        return f"images/{self.index:08}.{_SUFFIXES[self.look.format]}"

    @property
    def mask_path(self) -> str:
        """Where the mask of an altered image goes."""
        return f"masks/{self.index:08}.png"


@dataclass(frozen=True)
class GenerationBlock:
    """Orders of one size: the unit of commit and resume."""

    number: int
    orders: tuple[ImageRequest, ...]

    @property
    def path(self) -> str:
        """Its rows. They exist when, and only when, all of its images are there."""
        return f"parts/{self.number:06}.parquet"


def make_requests(
    prompts: Sequence[Prompt], *, per_prompt: int, base_seed: int, sizes: Sequence[Size], looks: Sequence[FileStyle]
) -> list[ImageRequest]:
    """An order per image, prompt by prompt; seed, size and look follow from (base seed, index) alone."""
    return [
        _order(number * per_prompt + repeat, prompt, base_seed, sizes, looks)
        for number, prompt in enumerate(prompts)
        for repeat in range(per_prompt)
    ]


def _order(index: int, prompt: Prompt, base_seed: int, sizes: Sequence[Size], looks: Sequence[FileStyle]) -> ImageRequest:
    seed = seed_of(base_seed, index)
    look = looks[pick(seed, "look", len(looks))]
    size = sizes[pick(seed, "size", len(sizes))] if look.size is None else nearest_shape(look.size, sizes)
    return ImageRequest(index, seed, prompt, size, look)


def nearest_shape(wanted: Size, sizes: Sequence[Size]) -> Size:
    """The one of `sizes` whose width ÷ height is nearest; of equals the first."""
    ratio = wanted[0] / wanted[1]
    return min(sizes, key=lambda size: max(ratio * size[1] / size[0], size[0] / (ratio * size[1])))


def cut_blocks(orders: Sequence[ImageRequest], block_images: int) -> list[GenerationBlock]:
    """Blocks of one size each, numbered; sizes in the order in which they first come."""
    by_size: defaultdict[Size, list[ImageRequest]] = defaultdict(list)
    for order in orders:
        by_size[order.size].append(order)
    cut = (tuple(group[start : start + block_images]) for group in by_size.values() for start in range(0, len(group), block_images))
    return [GenerationBlock(number, some) for number, some in enumerate(cut)]


def digest_of_orders(orders: Sequence[ImageRequest]) -> str:
    """SHA-256 over all that was drawn: another list of prompts, or another real set, is another job."""
    digest = hashlib.sha256()
    for order in orders:
        image = order.prompt.image
        drawn = [order.index, order.seed, order.prompt.id, order.prompt.text, order.prompt.negative, order.prompt.mask, order.size,
                [order.look.format, order.look.quality, order.look.subsampling, order.look.size], image and image.image_id]  # fmt: skip
        digest.update(json.dumps(drawn, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def seed_of(base: int, index: int) -> int:
    """The seed of image `index` of a job: 63 bits of SHA-256 over both, so that no two images of a job share one, nor two jobs theirs."""
    return _word(f"touchstone:{base}:{index}") >> 1


def pick(seed: int, what: str, number: int) -> int:
    """0 … number − 1, drawn from a seed for one purpose; draws for different purposes know nothing of each other."""
    return _word(f"{what}:{seed}") % number


def randomness(seed: int, what: str) -> random.Random:
    """Many draws for one purpose."""
    return random.Random(_word(f"{what}:{seed}"))


def _word(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


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


def _prompts(rows: Iterator[tuple[Mapping[str, Any], archives.ManifestMember | None]], config: GenerateConfig) -> Iterator[Prompt]:
    columns, [place] = config.columns, archives.places_of([config.prompts or ""])
    source = strip_secrets(canonical(place))
    is_checked = _is_index(config.prompts or "")  # by those who made it

    def mask(row: Mapping[str, Any], member: archives.ManifestMember) -> str | None:
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


def _rows(place: str, columns: PromptColumns) -> Iterator[tuple[Mapping[str, Any], archives.ManifestMember | None]]:
    """Rows of a text file, a table or an index, without images."""
    if _is_index(place):
        yield from ((row, None) for row, _ in _indexed(place))
        return
    data = _bytes(place)
    try:
        table = archives.tabular.read_table(data, "." + place.partition("?")[0].rpartition(".")[2].lower(), str)
    except (pa.ArrowException, ValueError) as error:
        message = f"{strip_secrets(place)}: {' '.join(str(error).split())}"
        raise ConfigError(message, hint="a table has one header and columns of one type") from error
    if table is None:
        lines = io.StringIO(data.decode("utf-8-sig"), newline=None)  # prompts hold other line breaks than a file's
        yield from (({columns.prompt: line.rstrip("\n")}, None) for line in lines if line.strip())
        return
    if columns.prompt not in table.column_names:
        raise ConfigError(
            f"{strip_secrets(place)}: no column '{columns.prompt}'",
            hint=f"its columns: {', '.join(table.column_names)}; --set columns.prompt=NAME",
        )
    wanted = [name for name in columns.model_dump().values() if name in table.column_names]
    for batch in table.select(wanted).to_batches():
        yield from ((row, None) for row in batch.to_pylist())


def _members(place: str, config: GenerateConfig) -> Iterator[tuple[Mapping[str, Any], archives.ManifestMember | None]]:
    """Rows with the image that each names: of an index its reals, of anything else all that it lists."""
    if _is_index(place):
        yield from ((row, member) for row, member in _indexed(place) if row.get("label") == "real")
        return
    for slot, item in enumerate(archives.open_source([place], allow_private=config.allow_private)):
        # A table that came with files leads to no others.
        hidden = config.columns.mask if isinstance(item, ListedWithColumns) else None
        yield {name: value for name, value in item.input.items() if name != hidden}, as_member(item, slot)


def _indexed(place: str) -> Iterator[tuple[Mapping[str, Any], archives.ManifestMember]]:
    store = Store.open(place)
    for ref in archives.iter_blocks(store, 0):
        for member in archives.member_rows(archives.read_block(store, ref)):
            yield {**member.input, "id": str(member.image_id)}, member


def fetcher_for(config: GenerateConfig) -> Fetcher:
    """What reads the images and masks that the prompts name."""
    place = config.prompts or ""
    found = archives.fetcher_of([place], config.retry, allow_private=config.allow_private)
    if place and _is_index(place):
        found.guard = found.guard.joined(archives.guard_of(Store.open(place)))
    return found


def _is_index(place: str) -> bool:
    return "::" not in place and is_index(Store.open(place))


def _bytes(place: str) -> bytes:
    try:
        return Fetcher(signed=archives.places_of([place])).fetch(strip_secrets(canonical(place)), "", _MOST_BYTES)
    except InputError as error:
        raise ConfigError(f"{strip_secrets(place)}: {error.detail}", hint="--prompts names a file or an index") from error


def _text(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    return None if value is None or value == "" else str(value)


def _mask(row: Mapping[str, Any], column: str, source: str, member: archives.ManifestMember) -> str | None:
    """The uri of a row's mask; a relative one is below the table's folder. Raises ConfigError for a place that the row may not name."""
    place = _text(row, column)
    if place is None:
        return None
    if "://" not in place and not place.startswith("/"):
        place = f"{source.rpartition('/')[0]}/{place}"
    if not any(may_name(uri, member.member, place) for uri in (member.uri, source)):
        raise ConfigError(f"{source}: what lies in an archive, or comes from elsewhere, may not say that a mask lies at {place}")
    return place
