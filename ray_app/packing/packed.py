"""One member on its way into a shard, and what stands beside its bytes there. Knows names and types; knows no file format."""

import base64
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

import pyarrow as pa

from ray_app.archives import Member

_TEXT = pa.string()
SOURCE_TYPE = pa.struct(
    [("uri", _TEXT), ("member", _TEXT), ("occurrence", pa.int32()), ("version", _TEXT), ("sha256", _TEXT), ("format", _TEXT)]
)
ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff", "AVIF": "avif", "HEIC": "heic",
           "JPEG2000": "jp2", "JXL": "jxl", "PNM": "pnm", "RAW": "raw"}  # fmt: skip
NO_IMAGE = "bin"
RESERVED = ("image", "source")
# Beside the source's own columns in the listing of a filtered run: the hash of the bytes that were scored. No source calls one so.
EXPECTED = "\x1ftouchstone.sha256"


@dataclass(frozen=True)
class Packed:
    """A member with its bytes; `key` is ours and safe in any file system, `format` is what the bytes say (None: no image)."""

    key: str
    member: Member
    data: bytes
    sha256: str
    format: str | None

    @property
    def ending(self) -> str:
        """The file ending that the bytes deserve, whatever the member's name says; `bin` for no image."""
        return ENDINGS.get(self.format or "", NO_IMAGE)

    @property
    def name(self) -> str:
        """The name that the member had, as a label: the last part of its path; a table's row may name one, its own is a number."""
        member = self.member
        given = member.input.get("path") if member.place is not None and member.place.kind == "parquet" else None
        name = str(given or member.member or member.uri).rpartition("/")[2]
        return self.key if name in ("", ".", "..") else name

    @property
    def source(self) -> dict[str, Any]:
        """Where it came from, as `SOURCE_TYPE`."""
        named = {name: getattr(self.member, name) for name in ("uri", "member", "occurrence", "version")}
        return {**named, "sha256": self.sha256, "format": self.format}

    def beside(self, names: Mapping[str, str]) -> dict[str, Any]:
        """The source's own columns under the names that they have in the shard."""
        return {new: self.member.input.get(old) for old, new in names.items()}


def free_names(columns: Collection[str], taken: Collection[str] = RESERVED) -> dict[str, str]:
    """A name for each of the source's columns: its own, or `input.NAME` where that is taken."""
    names: dict[str, str] = {}
    for column in columns:
        name = column
        while name in taken or name in names.values() or (name != column and name in columns):
            name = f"input.{name}"
        names[column] = name
    return names


def plain(value: Any) -> Any:
    """A column's value as JSON has it: bytes as base64, times as ISO 8601, numbers that are none as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
