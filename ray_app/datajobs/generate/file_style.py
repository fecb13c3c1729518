"""How files of a real set are stored (format, quality, subsampling, size): `measure` reads headers of a sample, for generated files.

Where fakes are PNG and reals JPEG, a detector learns the file and not the picture (specs/detectors.md §12; Grommelt et al. 2024,
arXiv 2403.17608).
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from PIL import Image, JpegImagePlugin

from ray_app.archives import (
    ManifestMember,
    MemberReader,
    fetcher_of,
    guard_of,
    image_id,
    iter_blocks,
    manifests,
    member_rows,
    open_source,
    read_block,
    read_complete,
)
from ray_app.datajobs.generate.config import FileEncoding, Like
from ray_app.datasets.index import is_index
from ray_app.errors import ConfigError, InputError
from ray_app.images import ImageLimits, sniff_format
from ray_app.images.jpeg import jpeg_quality
from ray_app.runs import RunDirectory, current_rows
from ray_app.storage import Fetcher, RetryPolicy, Store, strip_secrets

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
    fetcher = fetcher_of([like.source], retry, allow_private=allow_private)
    if _has_manifest(like.source):
        fetcher.guard = fetcher.guard.joined(guard_of(Store.open(like.source)))
    members = _spread(list(_reals(like.source, fetcher)), like.sample)
    looks, left_out = [], Counter[str]()
    reader = MemberReader(fetcher, max_bytes=limits.max_bytes)
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
                return FileStyle(kind, jpeg_quality(image.quantization) or 90, found, area)
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, Image.DecompressionBombError) as error:
        return f"unreadable header: {type(error).__name__}"
    is_lossy = kind == "WEBP" and b"VP8 " in data[12:] and b"VP8L" not in data[12:64]
    return FileStyle(kind, _WEBP_QUALITY if is_lossy else None, None, area)


def _has_manifest(place: str) -> bool:
    store = Store.open(place) if "::" not in place else None
    return store is not None and (RunDirectory(store).exists() or is_index(store))


def _reals(place: str, fetcher: Fetcher) -> Iterator[ManifestMember]:
    """Members of a run, an index or an archive; without those that are labelled fake."""
    if _has_manifest(place):
        store = Store.open(place)
        blocks = (ref for number in manifests(store) if read_complete(store, number) for ref in iter_blocks(store, number))
        found = (member for ref in blocks for member in member_rows(read_block(store, ref)))
    else:
        found = (as_member(item, slot) for slot, item in enumerate(islice(open_source([place], fetcher=fetcher), 1_000_000)))
    return (member for member in found if str(member.input.get("label", "real")).lower() not in ("fake", "1", "true"))


def as_member(item: Any, slot: int) -> ManifestMember:
    """A listed file as one that can be read; `slot` is its number in the listing."""
    listed = (item.uri, item.member, item.occurrence, item.version, item.size_bytes)
    return ManifestMember(image_id(item), *listed, 0, slot, item.input, item.place, item.refused)


def _row_styles(run: RunDirectory, like: Like) -> Iterator[FileStyle]:
    """From a run's rows, when its files are gone. Rows know no subsampling: most JPEGs are 4:2:0."""
    found = (row for row in current_rows(run, status="ok") if row["format"] in _WRITTEN)
    for row in islice(found, like.sample):
        area = (row["width"], row["height"]) if like.size else None
        is_jpeg = row["format"] == "JPEG"
        yield FileStyle(row["format"], (row["quality"] or 90) if is_jpeg else None, "4:2:0" if is_jpeg else None, area)


def _spread(members: Sequence[ManifestMember], most: int) -> list[ManifestMember]:
    if len(members) <= most:
        return list(members)
    return [members[round(number * (len(members) - 1) / (most - 1 or 1))] for number in range(most)]
