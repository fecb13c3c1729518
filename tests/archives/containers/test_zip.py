import io
import stat
import struct
import unicodedata
import zipfile
import zlib

import pytest

from ray_app.archives import open_source
from ray_app.errors import ConfigError
from ray_app.storage import Fetcher
from tests.archives.containers import hazards
from tests.archives.containers.hazards import (
    FILES,
    contents,
    directory,
    directory_entry,
    ended,
    local_entry,
    opened,
    statuses,
    written,
    zip_with,
    zipped,
)
from tests.make.servers.faulty import LOOPBACK

GIB = 2**30
LINK, PIPE = (stat.S_IFLNK | 0o777) << 16, (stat.S_IFIFO | 0o600) << 16
CUT, DAMAGED, LARGE, UNSAFE = "truncated_image", "corrupt_image", "image_too_large", "unsafe_member"


def patched(data: bytes, offset: int, new: bytes, after: bytes) -> bytes:
    """The archive with bytes changed at `offset` behind the first `after`."""
    place = data.index(after) + offset
    return data[:place] + new + data[place + len(new) :]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip_from_zipfile_lists_and_reads_every_member(tmp_path, method):
    for write in (lambda method: zipped(method=method), hazards.streamed_zip):
        listed = written(tmp_path, write(method), "zip")
        assert [(item.member, item.size_bytes, item.refused) for item in listed] == [
            (name, len(data), None) for name, data in FILES.items()
        ]
        assert contents(listed) == list(FILES.values())


@pytest.mark.slow
def test_zip_with_more_entries_than_16_bits_count_is_read(tmp_path):
    files = {f"{n}.jpg": b"%d" % n for n in range(66_000)}
    listed = written(tmp_path, zipped(files, zipfile.ZIP_STORED), "zip")
    assert len(listed) == 66_000
    assert contents(listed[-2:]) == [b"65998", b"65999"]


@pytest.mark.parametrize("write", [zipped, hazards.zip64_forced])
def test_zip_between_a_program_and_a_comment_is_read(tmp_path, write):
    path = tmp_path / "archive.zip"
    assert contents(written(tmp_path, b"#!/bin/sh\n" * 99 + write(), "zip")) == [*FILES.values()]
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"c" * 65535
    assert contents(opened(path, "zip")) == [*FILES.values()]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_equal_names_counts_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for data in (b"1", b"2"):
            archive.writestr("a.jpg", data)
    listed = opened(tmp_path / "a.zip", "zip")
    assert [(item.member, item.occurrence) for item in listed] == [("a.jpg", 0), ("a.jpg", 1)]
    assert contents(listed) == [b"1", b"2"]


def test_zip_of_3000_files_is_listed_and_read_in_two_requests(faulty):
    files = {f"{n}.jpg": bytes([n % 256]) * 900 for n in range(3000)}
    faulty.objects["/bucket/a.zip"] = zipped(files, zipfile.ZIP_STORED)
    fetcher = Fetcher(guard=LOOPBACK)
    listed = opened(f"{faulty.url}/bucket/a.zip", "zip", fetcher=fetcher)
    assert (len(listed), fetcher.counts["requests"]) == (3000, 1)
    assert contents(listed, fetcher=fetcher) == [*files.values()]
    assert fetcher.counts["requests"] == 2


def mac_zip(path, entries: list[tuple[str, bytes | int]], *, backwards: bool = False):
    """List a zip that macOS' Archive Utility writes: without zip64, the low 32 bits of offsets and
    sizes. A number is a hole of N bytes.
    """
    listed = []
    with path.open("wb") as file:
        for text, content in entries:
            name, data = text.encode(), b"" if isinstance(content, int) else content
            offset, size = file.tell() % 2**32, (len(data) or content) % 2**32
            file.write(local_entry(name, data, size, crc=zlib.crc32(data)))
            if not data:
                file.seek(content, 1)
            listed.append(directory_entry(name, size, size, offset, zlib.crc32(data), method=0))
        file.write(directory(listed[::-1] if backwards else listed, file.tell()))
    fetcher = Fetcher()
    found = opened(path, "zip", fetcher=fetcher)
    assert fetcher.bytes_read < 8 * 2**20
    return found


@pytest.mark.parametrize("sizes", [(2, 2), (5, 9), (13, 1), (1, 4), (4, 4)], ids=str)
def test_zip_from_macos_over_4_gib_loses_no_other_file(tmp_path, sizes):
    names = ["1.jpg", "a.mov", "2.jpg", "b.mov", "3.jpg"]
    contained = [b"one", sizes[0] * GIB, b"two", sizes[1] * GIB, b"three"]
    listed = mac_zip(tmp_path / "a.zip", list(zip(names, contained, strict=True)))
    films = [LARGE if size >= 4 else None for size in sizes]
    assert statuses(listed)[::2] == [(name, None) for name in names[::2]]
    assert statuses(listed)[1::2] == list(zip(names[1::2], films, strict=True))
    assert contents(listed[::2]) == [b"one", b"two", b"three"]


def test_zip_from_macos_in_another_order_says_what_to_do(tmp_path):
    entries = [("1.jpg", b"one"), ("a.mov", 3 * GIB), ("2.jpg", b"two"), ("b.mov", 2 * GIB)]
    *_, last = mac_zip(tmp_path / "a.zip", entries, backwards=True)
    assert statuses([last]) == [(None, DAMAGED)]
    assert "pack it again with `zip -r`" in last.refused.detail


def named_zip(*names: tuple[bytes, int, bytes]) -> bytes:
    """A zip of files with these names, flags and extra fields in its directory."""
    data, entries = b"", []
    for number, (name, flags, extra) in enumerate(names):
        content = b"%d" % number
        more = {"flags": flags, "extra": extra}
        crc = zlib.crc32(content)
        entries.append(
            directory_entry(name, 1, 1, len(data), crc, method=0, mode=0o100644 << 16, **more)
        )
        data += local_entry(name, content, 1, crc=crc, **more)
    return ended(data, entries)


def unicode_path(name: bytes, stored: bytes, version: int = 1) -> bytes:
    """Info-ZIP's extra field with the UTF-8 of a name, for the name that is `stored`; another field
    is before it.
    """
    body = struct.pack("<BL", version, zlib.crc32(stored)) + name
    return struct.pack("<2H3x", 0x5455, 3) + struct.pack("<2H", 0x7075, len(body)) + body


NAME = "Größe/日本 é.jpg"
DECOMPOSED = unicodedata.normalize("NFD", NAME)
UTF8 = 0x800
DOS = "Größe.jpg".encode("cp437")


# Names are part of image ids.
@pytest.mark.parametrize(
    ("stored", "flags", "extra", "shown"),
    [
        (DECOMPOSED.encode(), 0, b"", NAME),
        (DECOMPOSED.encode(), UTF8, b"", DECOMPOSED),
        (DOS, 0, b"", "Größe.jpg"),
        (b"\xff.jpg", UTF8, b"", r"\xff.jpg"),
        (b"Gr__e/__ _.jpg", 0, unicode_path(DECOMPOSED.encode(), b"Gr__e/__ _.jpg"), NAME),
        (DOS, 0, unicode_path(DECOMPOSED.encode(), DOS), NAME),
        (b"a.jpg", 0, unicode_path(b"other.jpg", b"another name"), "a.jpg"),
        (b"a.jpg", 0, unicode_path(b"other.jpg", b"a.jpg", 2), "a.jpg"),
        (b"a.jpg", 0, unicode_path(b"\xff.jpg", b"a.jpg"), "a.jpg"),
    ],
    ids=[
        "utf8",
        "utf8-flag",
        "cp437",
        "bad-utf8",
        "path",
        "path-cp437",
        "checksum",
        "version",
        "bytes",
    ],
)
def test_zip_name_is_decoded_as_its_writer_meant(tmp_path, stored, flags, extra, shown):
    listed = written(tmp_path, named_zip((stored, flags, extra)), "zip")
    assert ([item.member for item in listed], contents(listed)) == ([shown], [b"0"])


def test_zip_with_an_unsafe_unicode_path_refuses_the_member(tmp_path):
    data = named_zip((b"a.jpg", 0, unicode_path(b"../a.jpg", b"a.jpg")))
    assert statuses(written(tmp_path, data, "zip")) == [("../a.jpg", UNSAFE)]


def test_zip_with_names_that_become_equal_counts_them(tmp_path):
    data = named_zip((NAME.encode(), UTF8, b""), (DECOMPOSED.encode(), 0, b""))
    listed = written(tmp_path, data, "zip")
    assert [(item.member, item.occurrence) for item in listed] == [(NAME, 0), (NAME, 1)]


def windows_zip(*names: str, create_system: int = 0) -> bytes:
    """A zip with backslashes in its names, as PowerShell 5 and .NET before 4.6.1 write it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number, name in enumerate(names):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, create_system
            archive.writestr(info, b"" if name.endswith(("\\", "/")) else b"%d" % number)
    return out.getvalue()


def test_zip_from_windows_has_folders(tmp_path):
    data = windows_zip("day\\", "day\\1\\a.jpg", "b.jpg", "day/c\\d.jpg", "day/1/a.jpg", "day\\1/")
    listed = written(tmp_path, data, "zip")
    assert [(item.member, item.occurrence) for item in listed] == [
        ("day/1/a.jpg", 0),
        ("b.jpg", 0),
        ("day/c\\d.jpg", 0),  # A name with a slash is left as it is, as in unzip.
        ("day/1/a.jpg", 1),
    ]
    assert contents(listed) == [b"1", b"2", b"3", b"4"]


def test_patterns_select_folders_of_a_zip_from_windows(tmp_path):
    (tmp_path / "w.zip").write_bytes(windows_zip("day\\", "day\\1\\a.jpg", "b.jpg"))
    for pattern in ("w.zip/day/**", "**/1/*"):
        [item] = open_source([f"{tmp_path}/w.zip"], include=[pattern])
        assert item.member == "day/1/a.jpg"
    with pytest.raises(ConfigError) as caught:
        list(open_source([f"{tmp_path}/w.zip"], include=["day/**"]))
    assert "begins with the archive's name" in caught.value.hint


def test_zip_from_another_system_keeps_backslashes(tmp_path):
    data = windows_zip("day\\a.jpg", create_system=3)
    assert [item.member for item in written(tmp_path, data, "zip")] == ["day\\a.jpg"]


@pytest.mark.parametrize(
    ("name", "shown", "reason"),
    [
        ("..\\a.jpg", "../a.jpg", "'..'"),
        ("b\\..\\a.jpg", "b/../a.jpg", "'..'"),
        ("\\a.jpg", "/a.jpg", "absolute"),
        ("C:\\a.jpg", "C:/a.jpg", "drive"),
    ],
)
def test_zip_from_windows_with_an_unsafe_name_is_refused(tmp_path, name, shown, reason):
    [item] = written(tmp_path, windows_zip(name), "zip")
    assert statuses([item]) == [(shown, UNSAFE)]
    assert reason in item.refused.detail


LYING = patched(zip_with("a.jpg"), 20, struct.pack("<L", 9999), b"PK\1\2")
RATIO = zipped({"a.jpg": bytes(2_000_000), "noise": bytes(range(256)) * 4})


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (zip_with("l.jpg", b"/etc/passwd", external_attr=LINK, create_system=3), UNSAFE, "link"),
        (zip_with("l.jpg", external_attr=PIPE, create_system=3), UNSAFE, "pipe"),
        (zip_with("../l.jpg"), UNSAFE, "'..'"),
        (zip_with("folder/", b"data"), UNSAFE, "folder that has data"),
        (zip_with("aXb.jpg").replace(b"aXb.jpg", b"a\0b.jpg"), UNSAFE, "NUL"),
        (patched(zip_with("a.jpg"), 8, b"\1", b"PK\1\2"), "encrypted_member", "encrypted"),
        (patched(zip_with("a.jpg"), 10, b"\x63", b"PK\1\2"), "unsupported_format", "method 99"),
        (LYING, DAMAGED, "beyond the data of the archive"),
        (RATIO, LARGE, "max_ratio (900)"),
    ],
    ids=["link", "pipe", "dots", "folder", "nul", "encrypted", "method", "outside", "ratio"],
)
def test_zip_member_that_is_unsafe_is_refused(tmp_path, data, status, reason):
    item = written(tmp_path, data, "zip", max_ratio=900)[0]
    assert (str(item.refused.status), item.member is None) == (status, False)
    assert reason in item.refused.detail
    assert contents([item]) == [status]


def test_zip_over_a_limit_is_listed_up_to_it(tmp_path):
    listed = written(tmp_path, zipped(), "zip", max_members=2)
    assert statuses(listed) == [("a/1.jpg", None), ("a/2.jpg", None), (None, UNSAFE)]
    assert statuses(written(tmp_path, hazards.bomb("zip"), "zip")) == [(None, LARGE)]


def test_zip_with_overlapping_entries_keeps_the_first(tmp_path):
    listed = written(tmp_path, hazards.overlapping_zip(), "zip", max_ratio=5000)
    assert statuses(listed) == [("0.jpg", None)] + [(f"{n}.jpg", UNSAFE) for n in range(1, 9)]
    assert contents(listed)[0] == bytes(50_000)


def test_zip_that_is_not_a_zip_is_one_row(tmp_path):
    for data in (b"\xff" * 5000, b"PK", bytes(100)):
        assert statuses(written(tmp_path, data, "zip")) == [(None, DAMAGED)], data[:9]
    cuts = [zipped()[:cut] for cut in (10, 300, -1, -22, -30)]
    for data in (*cuts, *(zipped({})[:length] for length in (4, 17, 18, 21))):
        assert statuses(written(tmp_path, data, "zip")) == [(None, CUT)], data[-9:]
    assert statuses(written(tmp_path, b"", "zip")) == [(None, "empty_file")]


def test_zip_without_files_has_no_member(tmp_path):
    assert written(tmp_path, zipped({}), "zip") == []
    assert statuses(written(tmp_path, zipped({"a/": b"", "a/b": b"x"}), "zip")) == [("a/b", None)]


def test_zip_entry_without_its_zip64_sizes_is_refused_alone(tmp_path):
    data = patched(zipped(), 20, b"\xff" * 8, b"PK\1\2")
    first, *others = statuses(written(tmp_path, data, "zip", max_ratio=10**9))
    assert first == ("a/1.jpg", DAMAGED)
    assert others == [(name, None) for name in list(FILES)[1:]]


def test_zip_directory_that_is_damaged_keeps_what_is_before(tmp_path):
    data = zipped()
    place = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    listed = written(tmp_path, data[:place] + b"XX" + data[place + 2 :], "zip")
    assert statuses(listed) == [("a/1.jpg", None), (None, DAMAGED)]
    assert contents(listed[:1]) == [FILES["a/1.jpg"]]


SOME, ZEROS = {"a.jpg": b"some bytes" * 9}, {"a.jpg": bytes(2**21)}
STORED = zipfile.ZIP_STORED


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (patched(zipped(SOME), 35, b"\xff\xff", b"PK\3\4"), DAMAGED),
        (patched(zipped(SOME, STORED), 40, b"X", b"PK\3\4"), DAMAGED),
        (patched(zipped(SOME), 6, b"\1", b"PK\3\4"), "encrypted_member"),
        (patched(zipped(SOME), 18, b"\xff\xff\0", b"PK\3\4"), DAMAGED),
        (patched(zipped(SOME), 24, b"\x09", b"PK\1\2"), DAMAGED),
        (patched(zipped(SOME), 24, b"\xff", b"PK\1\2"), CUT),
        (patched(zipped(ZEROS), 24, struct.pack("<L", 1000), b"PK\1\2"), DAMAGED),
        (patched(zipped(ZEROS, STORED), 24, struct.pack("<L", 10), b"PK\1\2"), UNSAFE),
    ],
    ids=[
        "stream",
        "checksum",
        "encrypted",
        "local-size",
        "smaller",
        "larger",
        "bomb",
        "stored-bomb",
    ],
)
def test_zip_member_that_is_not_what_was_listed_is_refused(tmp_path, data, status):
    assert contents(written(tmp_path, data, "zip")) == [status]
