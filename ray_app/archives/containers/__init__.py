"""Files that hold many members: one module per format. Each says which members there are and where, and reads them from there.

Members are streamed, never unpacked to a disk; their names are labels, never paths.
"""

from collections.abc import Mapping

from ray_app.archives.containers import parquet, tar
from ray_app.archives.containers import zip as zips
from ray_app.archives.containers.base import Container, ContainerFormat, ContainerLimits, Reader, Unopened
from ray_app.archives.containers.tar import Codec, CompressedTar

_CODECS: Mapping[str, Codec] = {"tar.gz": "gzip", "tar.bz2": "bzip2", "tar.xz": "xz", "tar.zst": "zstd"}
COMPRESSED: Mapping[str, ContainerFormat] = {kind: CompressedTar(kind, codec) for kind, codec in _CODECS.items()}
CONTAINERS: Mapping[str, ContainerFormat] = {"parquet": parquet, "tar": tar, **COMPRESSED, "zip": zips}

_SHORT = {".tgz": "tar.gz", ".tbz2": "tar.bz2", ".tbz": "tar.bz2", ".txz": "tar.xz", ".tzst": "tar.zst"}
_COMICS = {".cbz": "zip", ".cbt": "tar"}  # comic books: a page is an image
_ENDINGS = {f".{kind}": kind for kind in CONTAINERS} | _SHORT | _COMICS
_ALL_ENDINGS = tuple(_ENDINGS)  # asked at once: nearly every file of a listing has none of them


def kind_of(name: str) -> str | None:
    """The container format that a file's name announces, in whatever case; None for every other name."""
    name = name.lower()
    return next(kind for ending, kind in _ENDINGS.items() if name.endswith(ending)) if name.endswith(_ALL_ENDINGS) else None
