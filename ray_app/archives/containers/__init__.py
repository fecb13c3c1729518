"""List and read files that hold many members (tar, zip, Parquet). Each format has its own module.

`list_container` lists the members of a container. `CONTAINERS` has the `ContainerFormat` of each
kind, such as `tar.gz`. Members are streamed and never unpacked to a disk. Their names are labels
and are never used as paths.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ray_app.archives.containers import parquet, tar
from ray_app.archives.containers import zip as zips
from ray_app.archives.containers.base import (
    Container,
    ContainerFormat,
    ContainerLimits,
    Reader,
    Unopened,
)
from ray_app.archives.containers.tar import Codec, CompressedTar
from ray_app.archives.members import ListedMember, RefusedMember
from ray_app.archives.split_archives import describe_numbered
from ray_app.errors import InputError, Status
from ray_app.images.formats import describe_signature
from ray_app.storage import Fetcher

_CODECS: Mapping[str, Codec] = {
    "tar.gz": "gzip",
    "tar.bz2": "bzip2",
    "tar.xz": "xz",
    "tar.zst": "zstd",
}
COMPRESSED: Mapping[str, ContainerFormat] = {
    kind: CompressedTar(kind, codec) for kind, codec in _CODECS.items()
}
CONTAINERS: Mapping[str, ContainerFormat] = {
    "parquet": parquet,
    "tar": tar,
    **COMPRESSED,
    "zip": zips,
}

_SHORT_ENDINGS = {
    ".tgz": "tar.gz",
    ".tbz2": "tar.bz2",
    ".tbz": "tar.bz2",
    ".txz": "tar.xz",
    ".tzst": "tar.zst",
}
_COMIC_ENDINGS = {".cbz": "zip", ".cbt": "tar"}  # Comic books; each page is an image.
_ENDINGS = {f".{kind}": kind for kind in CONTAINERS} | _SHORT_ENDINGS | _COMIC_ENDINGS
# Tested in one call, because nearly every file of a listing has none of these endings.
_ALL_ENDINGS = tuple(_ENDINGS)

_HEAD_BYTES = 512
# Kind and name of a container by its first bytes. An uncompressed tar has its magic at byte 257.
_STARTS = {
    b"\x1f\x8b": ("tar.gz", "a gzip file"),
    b"BZh": ("tar.bz2", "a bzip2 file"),
    b"\xfd7zXZ\0": ("tar.xz", "an xz file"),
    b"\x28\xb5\x2f\xfd": ("tar.zst", "a zstd file"),
    b"PK\x03\x04": ("zip", "a zip archive"),
    b"PAR1": ("parquet", "a Parquet file"),
}
_TAR = ("tar", "a tar archive")


def list_container(container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
    """Yield every member of a container in the container's order.

    If the file does not have the format that its name announces, the only member represents the
    file itself. Its `refused.detail` names the actual format if that is known. Raises ConfigError
    if the user named a table as a source, and must choose the column with the images.
    """
    members = CONTAINERS[container.kind].index(container, fetcher)
    first = next(members, None)
    if isinstance(first, Unopened):
        first = recognise_container(first, container, fetcher)
    if first is not None:
        yield first
        yield from members


def recognise_container(item: Unopened, container: Container, fetcher: Fetcher) -> Unopened:
    """Name the actual format of a container that cannot be opened because its ending is wrong.

    A tar that is named `.zip` is an example. The first bytes of the file show the format. If they
    show none, the file may be a part of an archive, if its name is numbered. Any other member is
    returned unchanged.
    """
    refused = item.refused
    if refused is None or refused.status not in (Status.CORRUPT_IMAGE, Status.TRUNCATED_IMAGE):
        return item
    try:
        head = fetcher.fetch_range(container.uri, container.version, 0, _HEAD_BYTES)
    except InputError:  # The present detail stays.
        return item
    kind, name = next(
        (kind_name for start, kind_name in _STARTS.items() if head.startswith(start)),
        _TAR if head[257:262] == b"ustar" else ("", ""),
    )
    if kind == container.kind:
        return item
    advice = (
        f"{name}: name it .{kind}, or give {kind}::{container.uri} as a source"
        if kind
        else describe_signature(head)
    )
    if advice is not None:
        detail = f"not a {container.kind} file but {advice}"
        return replace(item, refused=RefusedMember(Status.CORRUPT_IMAGE, detail))
    if advice := describe_numbered(container.uri):
        detail = f"{refused.detail}; {advice}"
        return replace(item, refused=RefusedMember(refused.status, detail))
    return item


def detect_kind(name: str) -> str | None:
    """Return the container format that the ending of a file's name announces, such as `tar.gz`.

    The result is None if the ending is not that of a container.
    """
    name = name.lower()
    return (
        next(kind for ending, kind in _ENDINGS.items() if name.endswith(ending))
        if name.endswith(_ALL_ENDINGS)
        else None
    )
