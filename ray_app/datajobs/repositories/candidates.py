"""Files of one rule → candidates: images that are fit for training by themselves (`candidates_of`), with hashes, or why they are not.

What depends on other files, repetitions and near-duplicates, is decided later, over all rules (`decide`).
"""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image

from ray_app.datajobs.repositories.image_rules import MAX_ASPECT, MAX_BYTES, MIN_SIDE, ImageRule
from ray_app.datajobs.repositories.mirrors import Mirror, TrackedFile
from ray_app.datasets.labels import INPUT
from ray_app.datasets.near_duplicates import NEAR_BITS, bonds_of
from ray_app.errors import InputError
from ray_app.images import ImageLimits, decode_image, facts

# A row for each file, or each quarter of a sheet. `reason`: why it is left out. `sheet`, `quarter`: of what it is cut, 0 to 3 by rows.
CANDIDATE = pa.schema(
    [("path", pa.string()), ("blob", pa.string()), ("reason", pa.string()), ("sha256", pa.string()), ("phash", pa.string()),
     ("format", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("quality", pa.int32()), ("size_bytes", pa.int64()),
     ("sheet", pa.string()), ("quarter", pa.int8())]
)  # fmt: skip
DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"
REASONS: Mapping[str, str] = {
    "too_large": f"over {MAX_BYTES:,} bytes",
    "absent": f"not in the repository's copy: mirrors leave out what is over {MAX_BYTES:,} bytes or so",
    "refused": "its SHA-256 is in the list of refused ones",
    "lfs_pointer": "kept elsewhere by git LFS",
    "too_small": f"a side under {MIN_SIDE} pixels",
    "too_long": f"one side over {MAX_ASPECT:g} times the other",
    "several_frames": "an animation, or several pages",
    DUPLICATE: "the same file, or picture, as one before it",
    NEAR_DUPLICATE: f"perceptual hashes differ in at most {NEAR_BITS} of 64 bits from one before it",
    "over_cap": "more than the row's cap",
}
_LIMITS = ImageLimits(max_bytes=MAX_BYTES)
_POINTER = b"version https://git-lfs"
_ENDINGS = {"JPEG": "jpg", "JPEG2000": "jp2"}

Row = dict[str, Any]


def candidates_of(rule: ImageRule, mirror: Mirror, files: Sequence[TrackedFile], refused: frozenset[str]) -> Iterator[Row]:
    """Rows of CANDIDATE for all files that the rule chooses, some at a time; of the same content once. Raises StorageError.

    Files are taken in the rule's own order until as many as its cap are fit; the others are `over_cap`.
    """
    by_path = {file.path: file for file in files}
    blobs: set[str] = set()
    readable = []
    for path in rule.drawn(list(by_path)):
        file = by_path[path]
        if reason := _unread(file, blobs):
            yield _row(file, reason)
        else:
            readable.append(file)
        blobs.add(file.blob)
    fit = 0
    contents = mirror.contents(readable)
    for place, file in enumerate(readable):
        if rule.cap is not None and fit >= rule.cap:
            contents.close()  # type: ignore[attr-defined] # a generator
            yield from (_row(left, "over_cap") for left in readable[place:])
            return
        found = examined(rule, file, next(contents), refused)
        fit += any(row["reason"] is None for row in found)
        yield from found


def examined(rule: ImageRule, file: TrackedFile, data: bytes, refused: frozenset[str]) -> list[Row]:
    """The rows of one file: itself, or four of a sheet."""
    digest = hashlib.sha256(data).hexdigest()
    if digest in refused or data.startswith(_POINTER):
        return [_row(file, "refused" if digest in refused else "lfs_pointer", sha256=digest)]
    try:
        decoded = decode_image(data, _LIMITS)
    except InputError as error:
        return [_row(file, str(error.status), sha256=digest)]
    known = decoded.facts
    if known.frames != 1 or {"animated", "multipage"} & set(known.flags):
        return [_row(file, "several_frames", sha256=digest)]
    if not rule.is_sheet:
        return [_picture(file, decoded.pixels, digest, len(data), refused, format=known.format, quality=known.quality)]
    rows = []
    for quarter, (pixels, png) in enumerate(quarters(decoded.pixels)):
        name = hashlib.sha256(png).hexdigest()
        rows.append(_picture(file, pixels, name, len(png), refused, format="PNG", sheet=digest, quarter=quarter))
    return rows


def cut(data: bytes) -> list[bytes]:
    """The four pictures of a sheet's file, each as PNG."""
    return [png for _, png in quarters(decode_image(data, _LIMITS).pixels)]


def quarters(pixels: Image.Image) -> Iterator[tuple[Image.Image, bytes]]:
    """The four pictures of a 2 × 2 sheet, by rows, and each as PNG; of odd sides the last line is left out."""
    width, height = pixels.width // 2, pixels.height // 2
    for top in (0, height):
        for left in (0, width):
            quarter, file = pixels.crop((left, top, left + width, top + height)), io.BytesIO()
            quarter.save(file, "PNG", compress_level=1)
            yield quarter, file.getvalue()


def ending(format_name: str) -> str:
    """That of a file's name."""
    return _ENDINGS.get(format_name, format_name.lower())


@dataclass(frozen=True)
class Decision:
    """`reasons` (N,): why each candidate is left out, None for those that stay; `of` (N,): the earlier one that it repeats, or None."""

    reasons: list[str | None]
    of: list[int | None]


def decide(rows: Sequence[Row]) -> Decision:
    """What stays of all candidates in order. Of repetitions (SHA-256, or the same quarter) and near-duplicates the first stays.

    Near-duplicates are the project's bond `looks`: perceptual hashes that differ in at most NEAR_BITS of 64 bits, pictures without detail
    apart. Each is compared with those that stay: what is near to a dropped one alone is not dropped.
    """
    reasons: list[str | None] = [row["reason"] for row in rows]
    of: list[int | None] = [None] * len(rows)
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        if reasons[place] is None and (earlier := first.setdefault(canonical_id(row), place)) != place:
            reasons[place], of[place] = DUPLICATE, earlier
    here = [place for place, reason in enumerate(reasons) if reason is None]
    codes, near = _looks([rows[place]["phash"] for place in here])
    kept: dict[int, int] = {}
    for place, code in zip(here, codes, strict=True):
        alike = [kept[other] for other in (code, *near[code]) if other in kept] if code >= 0 else []
        if alike:
            reasons[place], of[place] = NEAR_DUPLICATE, min(alike)
        elif code >= 0:
            kept[code] = place
    return Decision(reasons, of)


def canonical_id(row: Row) -> str:
    """A picture's name on every machine: of a file its SHA-256; of a quarter its sheet's and its number, since PNG encoders differ."""
    return str(row["sha256"]) if row["sheet"] is None else f"{row['sheet']}:{row['quarter']}"


def counted(reasons: Sequence[str | None]) -> dict[str, int]:
    """How many candidates stay (`kept`), and for each reason are left out."""
    counts = Counter(reason or "kept" for reason in reasons)
    return {"kept": counts.pop("kept", 0)} | dict(sorted(counts.items()))


def _looks(hashes: Sequence[str]) -> tuple[list[int], Mapping[int, list[int]]]:
    columns = [pa.array(hashes if field.name == "phash" else [None] * len(hashes), pa.string()) for field in INPUT]
    table = pa.table({"input": pa.StructArray.from_arrays(columns, fields=list(INPUT))})
    (bond,) = bonds_of(table, ["looks"])
    near: dict[int, list[int]] = defaultdict(list)
    for low, high in bond.pairs.tolist():
        near[low].append(high)
        near[high].append(low)
    return bond.codes.tolist(), near


def _unread(file: TrackedFile, blobs: set[str]) -> str | None:
    if file.size_bytes is None:
        return "absent"
    if file.size_bytes > MAX_BYTES:
        return "too_large"
    return DUPLICATE if file.blob in blobs else None


def _picture(file: TrackedFile, pixels: Image.Image, digest: str, size: int, refused: frozenset[str], **known: Any) -> Row:
    short, long = sorted(pixels.size)
    reason = "refused" if digest in refused else "too_small" if short < MIN_SIDE else "too_long" if long > short * MAX_ASPECT else None
    phash = facts.perceptual_hash(pixels) if reason is None else None
    sides = {"width": pixels.width, "height": pixels.height}
    return _row(file, reason, sha256=digest, phash=phash, size_bytes=size, **sides, **known)


def _row(file: TrackedFile, reason: str | None, **known: Any) -> Row:
    return dict.fromkeys(CANDIDATE.names) | {"path": file.path, "blob": file.blob, "reason": reason} | known
