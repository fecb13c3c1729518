"""Archives that intake must read, or refuse member by member, each made in code; and the two ways
to look at one.
"""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from backports import zstd

from ray_app.archives import (
    Container,
    ContainerLimits,
    ListedMember,
    ManifestMember,
    MemberReader,
    TableColumns,
)
from ray_app.archives.containers import CONTAINERS
from ray_app.errors import InputError
from ray_app.storage import Fetcher, list_objects
from tests.make.servers.faulty import LOOPBACK

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"
)
FILES = {
    "a/1.jpg": b"first" * 99,
    "a/2.jpg": b"second" * 200,
    "empty.jpg": b"",
    "b.png": bytes(range(256)) * 9,
}


def container_at(place: str | Path, kind: str, **limits) -> Container:
    """A file as a container."""
    [info] = list_objects(str(place))
    found = (info.uri, info.version, info.size_bytes)
    return Container(*found, kind, "a", TableColumns(), ContainerLimits(**limits))


def opened(
    place: str | Path | Container, kind: str, *, fetcher: Fetcher | None = None, **limits
) -> list[ListedMember]:
    """What a container lists."""
    container = place if isinstance(place, Container) else container_at(place, kind, **limits)
    return list(CONTAINERS[kind].index(container, fetcher or Fetcher(guard=LOOPBACK)))


def written(folder: Path, data: bytes, kind: str, **limits) -> list[ListedMember]:
    """What a container with these bytes lists."""
    path = folder / f"archive.{kind}"
    path.write_bytes(data)
    return opened(path, kind, **limits)


def members(listed: list[ListedMember]) -> list[ManifestMember]:
    """Rows of a manifest for them."""
    fields = ("uri", "member", "occurrence", "version", "size_bytes")
    return [
        ManifestMember(
            slot, *(getattr(m, name) for name in fields), 0, slot, m.input, m.place, m.refused
        )
        for slot, m in enumerate(listed)
    ]


def contents(
    listed: list[ListedMember], *, fetcher: Fetcher | None = None, max_bytes: int = 2**20
) -> list[bytes | str]:
    """Bytes, or the status, of each."""
    reading = MemberReader(fetcher or Fetcher(guard=LOOPBACK), max_bytes=max_bytes).read(
        members(listed)
    )
    return [str(data.status) if isinstance(data, InputError) else data for _, data in reading]


def statuses(listed: list[ListedMember]) -> list[tuple[str | None, str | None]]:
    """Name and refusal of each."""
    return [(item.member, item.refused and str(item.refused.status)) for item in listed]


def tar(
    files: dict[str, bytes] | None = None,
    *,
    extra: tuple[tarfile.TarInfo, ...] = (),
    tar_format: int = tarfile.PAX_FORMAT,
    pax_headers: dict[str, str] | None = None,
) -> bytes:
    """A tar; `pax_headers` hold for all its members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format, pax_headers=pax_headers) as archive:
        for name, data in (FILES if files is None else files).items():
            archive.addfile(member(name, size=len(data)), io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return out.getvalue()


def member(name: str, type_: bytes = tarfile.REGTYPE, size: int = 0, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = type_, size
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def header(name: bytes, size: bytes = b"%011o\0" % 0, type_: bytes = b"0") -> bytes:
    """One ustar header whose fields no library would write."""
    owner, blank = b"0000644\0" + b"0000000\0" * 2, b" " * 8
    block = name.ljust(100, b"\0") + owner + size + b"%011o\0" % 0 + blank + type_
    block = (block + bytes(100) + b"ustar\x0000").ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def gnu_header(name: bytes, *, size: int = 0, type_: bytes = b"0", prefix: bytes = b"") -> bytes:
    """One header of GNU's own format; `prefix` is where POSIX has the prefix of a name and GNU two
    times.
    """
    written = bytearray(header(name, b"%011o\0" % size, type_))
    written[257:265], written[148:156] = b"ustar  \0", b" " * 8
    written[345 : 345 + len(prefix)] = prefix
    written[148:156] = b"%06o\0 " % sum(written)
    return bytes(written)


def block(data: bytes) -> bytes:
    """Data as a tar holds it."""
    return data + bytes(-len(data) % 512)


def pax(record: bytes) -> bytes:
    """An extended header with these bytes in it."""
    return header(b"pax", b"%011o\0" % len(record), b"x") + block(record)


def sparse_old() -> bytes:
    """GNU's old sparse header, with one further block of its map."""
    first = bytearray(header(b"sparse.jpg", b"%011o\0" % 3, b"S"))
    first[257:265], first[482] = b"ustar  \0", 1
    first[148:156] = b"%06o\0 " % (sum(first[:148]) + 8 * 32 + sum(first[156:]))
    return bytes(first) + bytes(512) + block(b"abc") + tar({"after.jpg": b"x"})


def zipped(files: dict[str, bytes] | None = None, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in (FILES if files is None else files).items():
            archive.writestr(name, data)
    return out.getvalue()


def zip_with(name: str, data: bytes = b"x", **fields) -> bytes:
    """A zip of one entry whose directory says what `fields` say."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        archive.writestr(info, data)
    return out.getvalue()


class Unseekable(io.BytesIO):
    """Where zipfile has to write sizes behind the data."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def streamed_zip(method: int) -> bytes:
    out = Unseekable()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    return out.getvalue()


def local_entry(
    name: bytes, data: bytes, size: int, *, crc: int = 0, method: int = 0, flags=0, extra=b""
) -> bytes:
    """A member of a zip as it is before the directory: its header and `data`."""
    facts = (20, flags, method, 0, 0, crc, len(data) or size, size, len(name), len(extra))
    return struct.pack("<4s5H3L2H", b"PK\3\4", *facts) + name + extra + data


def directory_entry(
    name: bytes, packed: int, size: int, offset: int, crc: int = 0, method: int = 8, **more
) -> bytes:
    flags, extra, mode = more.get("flags", 0), more.get("extra", b""), more.get("mode", 0)
    facts = (20, flags, method, 0, 0, crc, packed, size, len(name), len(extra), 0, 0, 0, mode)
    return (
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 0x314 if mode else 20, *facts, offset) + name + extra
    )


def directory(entries: list[bytes], start: int) -> bytes:
    """The directory of a zip, which begins at `start`, with its end record."""
    listed, count = b"".join(entries), len(entries)
    facts = (0, 0, count, count, len(listed), start % 2**32, 0)
    return listed + struct.pack("<4s4H2LH", b"PK\5\6", *facts)


def ended(data: bytes, entries: list[bytes]) -> bytes:
    """Local data, then a directory, then its end record."""
    return data + directory(entries, len(data))


def overlapping_zip() -> bytes:
    """One kernel of packed zeros that many names share
    (https://www.bamsoftware.com/hacks/zipbomb/).
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(50_000)) + packer.flush()
    crc = zlib.crc32(bytes(50_000))
    local = local_entry(b"0.jpg", packed, 50_000, crc=crc, method=8)
    return ended(
        local, [directory_entry(b"%d.jpg" % n, len(packed), 50_000, 0, crc) for n in range(9)]
    )


def zip64_forced() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in FILES.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)
    return out.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "tar.gz": lambda data: gzip.compress(data, 1),
    "tar.bz2": lambda data: bz2.compress(data, 1),
    "tar.xz": lambda data: lzma.compress(data, preset=0),
    # as the command does
    "tar.zst": lambda data: zstd.compress(
        data, options={zstd.CompressionParameter.checksum_flag: 1}
    ),
}


def bomb(kind: str, size: int = 40 * 2**20) -> bytes:
    """Zeros that pack a thousandfold."""
    if kind == "zip":
        return zipped({"first.jpg": b"x" * 10, "bomb.jpg": bytes(size)})
    return PACK[kind](tar({"first.jpg": b"x" * 10, "bomb.jpg": bytes(size), "last.jpg": b"y"}))
